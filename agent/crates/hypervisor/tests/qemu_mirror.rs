//! The server against the programs that it is for (capability `qemu`), and libnbd's (`nbdkit`); and dirty bitmaps
//! that a running daemon keeps.

#[path = "support/capability.rs"]
mod capability;
#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/images.rs"]
mod images;
#[expect(dead_code, reason = "only the tests of the server alone cancel it")]
#[path = "support/memory.rs"]
mod memory;

use std::path::Path;

use capability::have;
use daemon::Daemon;
use images::{pattern, raw};
use memory::{Memory, Served};
use novaferry_hypervisor::nbd::client::{ALLOCATION, DIRTY_BITMAP, Options};
use novaferry_hypervisor::nbd::server::{BlockSizes, Ending, Export};
use novaferry_hypervisor::nbd::{Access, Address, Client, DirtyMap, NbdVolume};
use serde_json::json;
use volume::{ByteOffset, ByteRange, CHUNK, Kind, VolumeError};

const SIZE: u64 = 24 << 20;

fn bytes(size: u64, seed: u64) -> Vec<u8> {
    pattern(usize::try_from(size).unwrap(), seed)
}

/// Runs a program to its end beside the server.
async fn try_run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .expect("the program starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(said) } else { Err(said + &complained) }
}

async fn run(program: &str, arguments: &[&str]) -> String {
    try_run(program, arguments).await.unwrap_or_else(|error| panic!("{program} {arguments:?}: {error}"))
}

fn uri(served: &Served) -> String {
    format!("nbd+unix:///disk?socket={}", served.path.display())
}

fn disk() -> Export {
    Export { fast_zero: true, ..Export::new("disk", SIZE) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_io_and_qemu_img_read_and_write() {
    let test = "qemu_io_and_qemu_img_read_and_write";
    if !have("qemu", "qemu-io", test) || !have("qemu", "qemu-img", test) {
        return;
    }
    let mut served = Served::start(disk(), Memory::new(bytes(SIZE, 1)));
    let mut expected = bytes(SIZE, 1);
    let commands = [
        "write -P 17 0 1M",
        "write -P 18 1234432 3M",
        "write -f -P 19 8M 512",
        "write -z 2M 1M",
        "write -z -u 12M 10M",
        "discard 64k 64k",
        "aio_write -P 20 16M 1M",
        "aio_write -P 21 17M 1M",
        "flush",
        "read -P 17 0 64k",
        "read -P 19 8M 512",
        "read -P 0 64k 64k",
    ];
    let name = uri(&served);
    let mut arguments = vec!["-f", "raw", "-d", "unmap"];
    arguments.extend(commands.iter().flat_map(|command| ["-c", *command]));
    arguments.push(&name);
    let said = run("qemu-io", &arguments).await;
    assert!(!said.contains("failed"), "{said}");
    expected[0..1 << 20].fill(17);
    expected[1_234_432..1_234_432 + (3 << 20)].fill(18);
    expected[8 << 20..][..512].fill(19);
    expected[2 << 20..3 << 20].fill(0);
    expected[12 << 20..22 << 20].fill(0);
    expected[64 << 10..128 << 10].fill(0);
    expected[16 << 20..17 << 20].fill(20);
    expected[17 << 20..18 << 20].fill(21);
    assert!(served.memory.content() == expected);
    assert!(served.memory.durable.lock().unwrap().clone() == expected, "qemu-io flushes when it closes");
    let seen = served.memory.seen().clone();
    assert!(seen.fua > 0 && seen.flushes > 0 && seen.kept > 0 && seen.zeroes > seen.kept, "{seen:?}");
    assert_eq!(served.ending().await.unwrap(), Ending::Disconnected);

    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy.raw");
    run(
        "qemu-img",
        &["convert", "-n", "-f", "raw", "-O", "raw", &name, {
            std::fs::File::create(&copy).unwrap().set_len(SIZE).unwrap();
            copy.to_str().unwrap()
        }],
    )
    .await;
    assert!(std::fs::read(&copy).unwrap() == expected, "read by qemu-img");
    let source = raw(folder.path(), "source.raw", &bytes(SIZE, 2));
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", source.to_str().unwrap(), &name]).await;
    assert!(served.memory.content() == bytes(SIZE, 2), "written by qemu-img");
    let said = run("qemu-img", &["info", "--output=json", &name]).await;
    let info: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(info["virtual-size"], SIZE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libnbd_reads_writes_and_lists() {
    let test = "libnbd_reads_writes_and_lists";
    if !have("nbdkit", "nbdcopy", test) || !have("nbdkit", "nbdinfo", test) {
        return;
    }
    let sizes = BlockSizes { minimum: 4096, preferred: 65_536, maximum: 2 << 20 };
    let served = Served::start(Export { sizes, ..disk() }, Memory::new(bytes(SIZE, 3)));
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy.raw");
    let (copy, name) = (copy.to_str().unwrap(), uri(&served));
    run("nbdcopy", &[&name, copy]).await;
    assert!(std::fs::read(copy).unwrap() == bytes(SIZE, 3));
    let source = raw(folder.path(), "source.raw", &bytes(SIZE, 4));
    run("nbdcopy", &["--flush", source.to_str().unwrap(), &name]).await;
    assert!(served.memory.durable.lock().unwrap().clone() == bytes(SIZE, 4));

    let said = run("nbdinfo", &["--json", &name]).await;
    let info: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&info["protocol"], &info["structured"]), (&json!("newstyle-fixed"), &json!(true)));
    let export = &info["exports"][0];
    for (key, expected) in [
        ("export-name", json!("disk")),
        ("export-size", json!(SIZE)),
        ("is_read_only", json!(false)),
        ("can_flush", json!(true)),
        ("can_fua", json!(true)),
        ("can_trim", json!(true)),
        ("can_zero", json!(true)),
        ("can_fast_zero", json!(true)),
        ("can_multi_conn", json!(false)),
        ("block_size_minimum", json!(4096)),
        ("block_size_maximum", json!(2 << 20)),
    ] {
        assert_eq!(export[key], expected, "{key} in {said}");
    }
    let said = run("nbdinfo", &["--list", &name]).await;
    assert!(said.contains("export=\"disk\""), "{said}");
}

/// Starts a mirror of the qcow2 or raw image at `source` to the server, and exports the source for writing.
async fn mirror(folder: &Path, source: &Path, format: &str, served: &Served, mode: &str) -> (Daemon, String) {
    let mut daemon = Daemon::start(folder).await;
    let file = json!({ "driver": "file", "filename": source });
    let node = json!({ "driver": format, "node-name": "drive0", "discard": "unmap", "file": file });
    daemon.run("blockdev-add", node).await;
    let server = json!({ "type": "unix", "path": served.path });
    let target = json!({
        "driver": "nbd", "node-name": "target", "server": server, "export": "disk", "reconnect-delay": 10,
        "discard": "unmap", "detect-zeroes": "unmap",
    });
    daemon.run("blockdev-add", target).await;
    let socket = folder.join("guest");
    let address = json!({ "type": "unix", "data": { "path": socket } });
    daemon.run("nbd-server-start", json!({ "addr": address })).await;
    let export = json!({ "type": "nbd", "id": "guest", "node-name": "drive0", "writable": true });
    daemon.run("block-export-add", export).await;
    let job = json!({
        "job-id": "mirror", "device": "drive0", "target": "target", "sync": "full", "copy-mode": mode,
        "on-source-error": "stop", "on-target-error": "stop",
    });
    daemon.run("blockdev-mirror", job).await;
    (daemon, format!("nbd+unix:///drive0?socket={}", socket.display()))
}

/// Ends a mirror that is ready the way a migration does: whatever was written is at the target then.
async fn finish(daemon: &mut Daemon) {
    daemon.run("block-job-cancel", json!({ "device": "mirror" })).await;
    let completed = daemon.event("BLOCK_JOB_COMPLETED").await;
    assert!(completed["data"].get("error").is_none(), "{completed}");
    daemon.run("blockdev-del", json!({ "node-name": "target" })).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_of_qemu_arrives_whole() {
    let test = "a_mirror_of_qemu_arrives_whole";
    if !have("qemu", "qemu-storage-daemon", test) || !have("qemu", "qemu-io", test) {
        return;
    }
    for (seed, format, mode) in
        [(5, "raw", "background"), (6, "qcow2", "write-blocking"), (7, "qcow2", "background")]
    {
        let folder = tempfile::tempdir().unwrap();
        let mut expected = bytes(SIZE, seed);
        let mut source = raw(folder.path(), "source.raw", &expected);
        if format == "qcow2" {
            let image = folder.path().join("source.qcow2");
            let names = [source.to_str().unwrap(), image.to_str().unwrap()];
            run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", names[0], names[1]]).await;
            source = image;
        }
        // The target is full of other bytes: what the source has as holes must arrive as zeros.
        let mut served = Served::start(disk(), Memory::new(vec![0xee; usize::try_from(SIZE).unwrap()]));
        let (mut daemon, guest) = mirror(folder.path(), &source, format, &served, mode).await;
        // The guest writes before and after the mirror is ready.
        let write = |at: usize, length: usize, byte: u8| format!("write -P {byte} {at} {length}");
        let mut wrote = async |commands: &[(usize, usize, u8)]| {
            let texts: Vec<String> =
                commands.iter().map(|(at, length, byte)| write(*at, *length, *byte)).collect();
            let mut arguments = vec!["-f", "raw", "-d", "unmap"];
            arguments.extend(texts.iter().flat_map(|text| ["-c", text.as_str()]));
            arguments.extend(["-c", "write -z -u 20M 512k", &guest]);
            run("qemu-io", &arguments).await;
            for (at, length, byte) in commands {
                expected[*at..*at + *length].fill(*byte);
            }
            expected[20 << 20..(20 << 20) + (512 << 10)].fill(0);
        };
        wrote(&[(4096, 8192, 1), (5 << 20, 1 << 20, 2)]).await;
        let ready = daemon.event("BLOCK_JOB_READY").await;
        assert_eq!(ready["data"]["device"], "mirror");
        wrote(&[(512 * 77, 512, 3), (23 << 20, 1 << 20, 4)]).await;
        finish(&mut daemon).await;
        assert_eq!(served.ending().await.unwrap(), Ending::Disconnected);
        let seen = served.memory.seen().clone();
        assert!(served.memory.content() == expected, "{format} {mode}: {seen:?}");
        assert!(
            served.memory.durable.lock().unwrap().clone() == expected,
            "{format} {mode}: flushed at the end"
        );
        assert!(seen.flushes > 0 && seen.largest <= 1 << 20, "{seen:?}");
        assert!(seen.zeroes > 0, "zeros travel as such: {seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_stops_at_a_full_target_and_goes_on_when_there_is_room() {
    let test = "a_mirror_stops_at_a_full_target_and_goes_on_when_there_is_room";
    if !have("qemu", "qemu-storage-daemon", test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let source = raw(folder.path(), "source.raw", &bytes(SIZE, 9));
    let served = Served::start(disk(), Memory::new(vec![0xee; usize::try_from(SIZE).unwrap()]));
    *served.memory.failure.lock().unwrap() = Some(Kind::NoSpace);
    let (mut daemon, _guest) = mirror(folder.path(), &source, "raw", &served, "background").await;
    let error = daemon.event("BLOCK_JOB_ERROR").await;
    assert_eq!((&error["data"]["operation"], &error["data"]["action"]), (&json!("write"), &json!("stop")));
    let jobs = daemon.run("query-block-jobs", json!({})).await;
    assert_eq!(jobs[0]["io-status"], "nospace", "ENOSPC arrives as itself: {jobs}");
    *served.memory.failure.lock().unwrap() = None;
    // Requests that failed together may stop it once more.
    for _ in 0..100 {
        drop(daemon.try_run("block-job-resume", json!({ "device": "mirror" })).await);
        let jobs = daemon.run("query-block-jobs", json!({})).await;
        if jobs[0]["io-status"] == "ok" {
            break;
        }
    }
    daemon.event("BLOCK_JOB_READY").await;
    finish(&mut daemon).await;
    assert!(served.memory.content() == bytes(SIZE, 9));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dirty_bitmap_tells_what_was_written() {
    let test = "a_dirty_bitmap_tells_what_was_written";
    if !have("qemu", "qemu-storage-daemon", test) || !have("qemu", "qemu-io", test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", image.to_str().unwrap(), "24M"]).await;
    let mut daemon = Daemon::start(folder.path()).await;
    let file = json!({ "driver": "file", "filename": image });
    daemon.run("blockdev-add", json!({ "driver": "qcow2", "node-name": "drive0", "file": file })).await;
    for (name, granularity) in [("first", 65_536), ("second", 4096)] {
        let bitmap = json!({ "node": "drive0", "name": name, "granularity": granularity });
        daemon.run("block-dirty-bitmap-add", bitmap).await;
    }
    let socket = folder.path().join("nbd");
    let address = json!({ "type": "unix", "data": { "path": socket } });
    daemon.run("nbd-server-start", json!({ "addr": address })).await;
    let guest =
        json!({ "type": "nbd", "id": "guest", "node-name": "drive0", "name": "guest", "writable": true });
    daemon.run("block-export-add", guest).await;
    let uri = format!("nbd+unix:///guest?socket={}", socket.display());
    let writes = ["write -P 1 0 512", "write -P 2 1M 100k", "write -z 9M 2M", "write -P 3 25161728 4096"];
    let mut arguments = vec!["-f", "raw"];
    arguments.extend(writes.iter().flat_map(|write| ["-c", *write]));
    arguments.push(&uri);
    run("qemu-io", &arguments).await;
    daemon.run("block-export-del", json!({ "id": "guest" })).await;
    daemon.event("BLOCK_EXPORT_DELETED").await;
    // A bitmap must stand still while it is read.
    for name in ["first", "second"] {
        let bitmap = json!({ "node": "drive0", "name": name });
        daemon.run("block-dirty-bitmap-disable", bitmap).await;
    }
    let export = json!({
        "type": "nbd", "id": "round", "node-name": "drive0", "name": "round", "bitmaps": ["first", "second"],
    });
    daemon.run("block-export-add", export).await;

    let range = |start, end| ByteRange { start, end };
    let (mega, kilo) = (1 << 20, 1 << 10);
    let coarse = [
        range(0, 64 * kilo),
        range(mega, mega + 128 * kilo),
        range(9 * mega, 11 * mega),
        range(SIZE - 64 * kilo, SIZE),
    ];
    let fine = [
        range(0, 4096),
        range(mega, mega + 100 * kilo),
        range(9 * mega, 11 * mega),
        range(25_161_728, 25_161_728 + 4096),
    ];
    let contexts =
        [ALLOCATION.to_owned(), format!("{DIRTY_BITMAP}first"), format!("{DIRTY_BITMAP}second")].to_vec();
    let options = Options { contexts, ..Options::default() };
    let client = Client::connect(&Address::Unix(socket), "round", &options).await.unwrap();

    // The client: in order, without gaps, within what was asked.
    let answer = client.dirty("second", 512 * kilo, 1 << 20).await.unwrap();
    let said: Vec<(ByteRange, bool)> = answer.iter().map(|extent| (extent.range, extent.dirty)).collect();
    let expected = [
        (range(512 * kilo, mega), false),
        (range(mega, mega + 100 * kilo), true),
        (range(mega + 100 * kilo, mega + 512 * kilo), false),
    ];
    assert_eq!(said, expected);
    let error = client.dirty("third", 0, 4096).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
    assert_eq!(client.dirty("first", SIZE, 4096).await.unwrap_err().kind(), Kind::OutOfRange);

    // The volume and the map.
    let volume = NbdVolume::new(client, Access::ReadOnly).unwrap();
    assert_eq!(volume.dirty_extents("first").await.unwrap(), coarse);
    assert_eq!(volume.dirty_extents("second").await.unwrap(), fine);
    let map = DirtyMap::of_bitmap(&volume, "first").await.unwrap();
    assert_eq!((map.size(), map.grain()), (SIZE, CHUNK));
    assert_eq!(map.ranges().collect::<Vec<_>>(), coarse);
    let finer = DirtyMap::of_bitmap(&volume, "second").await.unwrap();
    assert_eq!(finer, map, "in grains of 64 KiB they are the same");
    assert_eq!(map.dirty_bytes(), (64 + 128 + 2048 + 64) * kilo);
    assert!(map.is_dirty(ByteOffset(10 * mega)) && !map.is_dirty(ByteOffset(8 * mega)));
    let error: VolumeError = DirtyMap::of_bitmap(&volume, "third").await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
    volume.close().await;
}
