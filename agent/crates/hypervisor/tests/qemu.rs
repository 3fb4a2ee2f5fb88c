//! Against real `qemu-nbd` and `qemu-img` (capability `qemu`).

#[path = "support/capability.rs"]
mod capability;
#[path = "support/images.rs"]
mod images;

use std::error::Error as _;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use capability::have;
use images::{pattern, raw};
use novaferry_hypervisor::nbd::client::Options;
use novaferry_hypervisor::nbd::wire::CommandFlags;
use novaferry_hypervisor::nbd::{Access, Client, NbdVolume};
use novaferry_hypervisor::qemu_nbd::Exporter;
use novaferry_hypervisor::{Error, qemu_img};
use volume::conformance::{check_next_data, check_sink, read_all};
use volume::{Buffer, ByteOffset, ByteRange, Content, Kind, Sink, Source, ZeroMode};

fn have_qemu(test: &str) -> bool {
    have("qemu", "qemu-nbd", test) && have("qemu", "qemu-img", test)
}

/// Runs a tool to success.
fn run<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) {
    let output = Command::new(program).args(arguments).output().expect("tool starts");
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

const SIZES: [u64; 4] = [512, 65_536 + 512, (1 << 20) + 4096, 5 << 20];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_qcow2_image_conforms() {
    if !have_qemu("a_new_qcow2_image_conforms") {
        return;
    }
    for (seed, size) in (1..).zip(SIZES) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new.qcow2");
        let export = Exporter::create_qcow2(&path, size).await.unwrap().start().await.unwrap();
        let volume = export.volume().await.unwrap();
        assert_eq!(volume.geometry().size.0, size);
        assert_eq!(volume.content(), Content::Zero);
        check_sink(&volume, seed).await;
        assert_eq!(
            export.volume().await.unwrap().content(),
            Content::Unknown,
            "the second volume cannot know"
        );
        let expected = read_all(&volume).await;
        volume.close().await;
        export.close().await.unwrap();
        let copy = folder.path().join("copy.raw");
        run("qemu-img", [OsStr::new("check"), OsStr::new("-q"), path.as_os_str()]);
        run("qemu-img", [OsStr::new("convert"), OsStr::new("-Oraw"), path.as_os_str(), copy.as_os_str()]);
        assert!(std::fs::read(&copy).unwrap() == expected, "qemu-img reads what was written");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_raw_export_conforms_over_one_and_four_connections() {
    if !have_qemu("a_raw_export_conforms_over_one_and_four_connections") {
        return;
    }
    for (seed, size) in (10..).zip(SIZES) {
        for connections in [1, 4] {
            let folder = tempfile::tempdir().unwrap();
            let bytes = pattern(usize::try_from(size).unwrap(), seed);
            let path = raw(folder.path(), "disk.raw", &bytes);
            let exporter = Exporter::writable(&path, "raw").connections(connections);
            let export = exporter.start().await.unwrap();
            let volume = export.volume().await.unwrap();
            assert_eq!(volume.client().connections(), connections, "qemu-nbd offers CAN_MULTI_CONN");
            assert!(read_all(&volume).await == bytes);
            check_next_data(&volume, &bytes, seed).await;
            check_sink(&volume, seed).await;
            let expected = read_all(&volume).await;
            export.close().await.unwrap();
            assert!(std::fs::read(&path).unwrap() == expected);
        }
    }
}

#[tokio::test]
async fn sizes_that_qemu_would_round_are_refused() {
    if !have_qemu("sizes_that_qemu_would_round_are_refused") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = raw(folder.path(), "odd.raw", &[7; 1_000_001]);
    let error = Exporter::read_only(&path, "raw").start().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported, "{error}");
    let path = folder.path().join("odd.qcow2");
    for size in [0, 1, 1_000_001, u64::MAX] {
        let error = qemu_img::create_qcow2(&path, size).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported, "{error}");
        assert!(!path.exists(), "nothing is left behind");
    }
}

/// base (raw) <- middle <- top, each layer with its own data, the upper ones larger than the base.
fn chain(folder: &Path) -> std::path::PathBuf {
    let base = raw(folder, "base.raw", &pattern(3 << 20, 21));
    let mut below = (base, "raw");
    for (name, size, writes) in [
        ("middle.qcow2", "4M", ["write -q -P 0x11 64k 128k", "write -q -z 1M 256k"]),
        ("top.qcow2", "4M", ["write -q -P 0x22 128k 100k", "write -q -P 0x33 3900k 4k"]),
    ] {
        let path = folder.join(name);
        let (backing, format) = below;
        let arguments = ["create", "-q", "-f", "qcow2", "-F", format, "-b", backing.to_str().unwrap()];
        run("qemu-img", arguments.iter().copied().chain([path.to_str().unwrap(), size]));
        for write in writes {
            run("qemu-io", ["-f", "qcow2", "-c", write, path.to_str().unwrap()]);
        }
        below = (path, "qcow2");
    }
    below.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backing_chain_reads_as_qemu_img_converts_it() {
    if !have_qemu("a_backing_chain_reads_as_qemu_img_converts_it") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let top = chain(folder.path());
    let copy = folder.path().join("copy.raw");
    run("qemu-img", ["convert", "-f", "qcow2", "-O", "raw", top.to_str().unwrap(), copy.to_str().unwrap()]);
    let expected = std::fs::read(&copy).unwrap();

    let info = qemu_img::inspect(&top, "qcow2").await.unwrap();
    assert_eq!(info.virtual_size, expected.len() as u64);
    let formats: Vec<&str> = info.backing.iter().map(|image| image.format.as_str()).collect();
    assert_eq!(formats, ["qcow2", "raw"]);
    assert!(qemu_img::findings(&info, false).is_empty());

    let export = Exporter::read_only(&top, "qcow2").start().await.unwrap();
    let volume = export.volume().await.unwrap();
    assert!(read_all(&volume).await == expected);
    check_next_data(&volume, &expected, 0).await;
    let mut data = 0;
    let mut at = 0;
    while let Some(range) = volume.next_data(ByteOffset(at)).await.unwrap() {
        data += range.len();
        at = range.end;
    }
    let non_zero = expected.chunks(64 << 10).filter(|run| run.iter().any(|b| *b != 0)).count() as u64;
    assert!(data <= non_zero << 16, "{data} bytes of data for {non_zero} runs of 64 KiB: holes are reported");
    assert_eq!(volume.fingerprint().await.unwrap(), None);
    export.close().await.unwrap();
}

#[tokio::test]
async fn a_read_only_export_refuses_writes_on_both_sides() {
    if !have_qemu("a_read_only_export_refuses_writes_on_both_sides") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = raw(folder.path(), "disk.raw", &pattern(1 << 20, 3));
    let export = Exporter::read_only(&path, "raw").start().await.unwrap();
    let volume = export.volume().await.unwrap();
    let (result, buffer) = volume.write_at(ByteOffset(0), Buffer::heap(512)).await;
    assert_eq!(result.unwrap_err().kind(), Kind::Permission);
    assert_eq!(buffer.len(), 512);
    let range = ByteRange { start: 0, end: 512 };
    assert_eq!(volume.zero(range, ZeroMode::Allocate).await.unwrap_err().kind(), Kind::Permission);
    assert_eq!(volume.flush().await.unwrap_err().kind(), Kind::Permission);
    let client = Client::connect(&export.uri().address, "", &Options::default()).await.unwrap();
    let (result, _) = client.write(0, Buffer::heap(512), CommandFlags::NONE).await;
    assert_eq!(result.unwrap_err().kind(), Kind::Permission);
    let error = NbdVolume::new(client, Access::ReadWrite).unwrap_err();
    assert_eq!(error.kind(), Kind::Permission);
}

#[tokio::test]
async fn a_stored_dirty_bitmap_is_listed() {
    if !have_qemu("a_stored_dirty_bitmap_is_listed") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    qemu_img::create_qcow2(&path, 8 << 20).await.unwrap();
    let name = path.to_str().unwrap();
    run("qemu-img", ["bitmap", "--add", "-g", "65536", "-f", "qcow2", name, "backup"]);
    for write in ["write -q -P 1 64k 64k", "write -q -P 2 128k 1k", "write -q -P 3 5M 200k"] {
        run("qemu-io", ["-f", "qcow2", "-c", write, name]);
    }
    let info = qemu_img::inspect(&path, "qcow2").await.unwrap();
    assert_eq!(info.bitmaps.len(), 1);
    let findings = qemu_img::findings(&info, false);
    assert!(findings.len() == 1 && findings[0].blocking, "{findings:?}");
    assert!(!qemu_img::findings(&info, true)[0].blocking);

    let export = Exporter::read_only(&path, "qcow2").bitmap("backup").start().await.unwrap();
    let volume = export.volume().await.unwrap();
    let expected = [(64 << 10, 192 << 10), (5 << 20, (5 << 20) + (256 << 10))]
        .map(|(start, end)| ByteRange { start, end })
        .to_vec();
    assert_eq!(volume.dirty_extents("backup").await.unwrap(), expected);
    let next = volume.next_dirty("backup", ByteOffset(100 << 10)).await.unwrap().unwrap();
    assert_eq!(next.start, 100 << 10, "a question from inside a range starts there");
    let error = volume.dirty_extents("other").await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
    drop(volume);
    drop(export);
    let error = Exporter::read_only(&path, "qcow2").bitmap("absent").start().await.unwrap_err();
    assert!(matches!(&error, Error::ToolFailed { stderr, .. } if stderr.contains("absent")), "{error}");
}

#[tokio::test]
async fn snapshots_encryption_and_data_files_are_findings() {
    if !have_qemu("snapshots_encryption_and_data_files_are_findings") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let look = async |name: String| qemu_img::inspect(Path::new(&name), "qcow2").await.unwrap();

    let snapshot = image("snapshot.qcow2");
    run("qemu-img", ["create", "-q", "-f", "qcow2", &snapshot, "1M"]);
    run("qemu-img", ["snapshot", "-c", "before upgrade", &snapshot]);
    let info = look(snapshot).await;
    assert_eq!(info.snapshots[0].name, "before upgrade");
    let [finding] = &qemu_img::findings(&info, false)[..] else { panic!("one finding") };
    assert!(finding.blocking && finding.advice.contains("--drop-snapshots"));
    assert!(!qemu_img::findings(&info, true)[0].blocking, "allowed by --drop-snapshots");

    let luks = image("luks.qcow2");
    let secret = [
        "--object",
        "secret,id=s,data=x",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
    ];
    run("qemu-img", ["create", "-q", "-f", "qcow2"].into_iter().chain(secret).chain([luks.as_str(), "1M"]));
    let info = look(luks).await;
    assert_eq!(info.encryption.as_deref(), Some("luks"));
    assert!(qemu_img::findings(&info, true)[0].blocking, "decrypting needs more than --drop-snapshots");

    let data = image("data.qcow2");
    let file = format!("data_file={}", image("data.raw"));
    run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", &file, &data, "1M"]);
    let info = look(data).await;
    assert!(info.data_file.is_some());
    assert!(qemu_img::findings(&info, true)[0].blocking, "it may name any file of the host");
}

#[tokio::test]
async fn a_crafted_header_in_a_raw_disk_stays_data() {
    if !have_qemu("a_crafted_header_in_a_raw_disk_stays_data") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let secret = raw(folder.path(), "secret.raw", &[0x5a; 64 << 10]);
    let crafted = folder.path().join("guest.raw");
    let backing = ["-F", "raw", "-b", secret.to_str().unwrap(), crafted.to_str().unwrap()];
    run("qemu-img", ["create", "-q", "-f", "qcow2"].into_iter().chain(backing));
    std::fs::OpenOptions::new().write(true).open(&crafted).unwrap().set_len(1 << 20).unwrap();
    let bytes = std::fs::read(&crafted).unwrap();
    assert!(qemu_img::looks_like_qcow2(&crafted).unwrap());
    assert!(!qemu_img::looks_like_qcow2(&secret).unwrap());
    let export = Exporter::read_only(&crafted, "raw").start().await.unwrap();
    assert!(
        read_all(&export.volume().await.unwrap()).await == bytes,
        "the header itself, not what it points to"
    );
    assert_eq!(qemu_img::inspect(&crafted, "raw").await.unwrap().virtual_size, bytes.len() as u64);
}

#[tokio::test]
async fn names_mean_nothing_but_themselves() {
    if !have_qemu("names_mean_nothing_but_themselves") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let names: [&[u8]; 9] = [
        b"a,b",
        b"nbd:unix:x",
        b"-rf",
        b"json:{}",
        b"file.filename=x,driver=nbd",
        b"sp ace\"'$(x)`",
        b"line\nbreak",
        b"not\xffutf8",
        b",,",
    ];
    for name in names {
        let path = folder.path().join(OsStr::from_bytes(name));
        let shown = path.display();
        qemu_img::create_qcow2(&path, 1 << 20).await.unwrap_or_else(|error| panic!("{shown}: {error}"));
        assert_eq!(qemu_img::create_qcow2(&path, 1 << 20).await.unwrap_err().kind(), Kind::Exists);
        let export =
            Exporter::writable(&path, "qcow2").start().await.unwrap_or_else(|e| panic!("{shown}: {e}"));
        let volume = export.volume().await.unwrap();
        let (result, _) = volume.write_at(ByteOffset(0), Buffer::heap(4096)).await;
        result.unwrap();
        volume.flush().await.unwrap();
        export.close().await.unwrap();
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), names.len(), "no other file was made");
}

#[tokio::test]
async fn an_image_in_use_is_said_to_be() {
    if !have_qemu("an_image_in_use_is_said_to_be") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    let export = Exporter::create_qcow2(&path, 1 << 20).await.unwrap().start().await.unwrap();
    for exporter in [Exporter::read_only(&path, "qcow2"), Exporter::writable(&path, "qcow2")] {
        let error = exporter.start().await.unwrap_err();
        assert_eq!(error.kind(), Kind::InUse, "{error}");
    }
    assert_eq!(qemu_img::inspect(&path, "qcow2").await.unwrap_err().kind(), Kind::InUse);
    drop(export);
    // Dropping waited for the process: the lock is free now.
    Exporter::writable(&path, "qcow2").start().await.unwrap().close().await.unwrap();
}

#[tokio::test]
async fn what_is_missing_or_broken_is_said_to_be() {
    if !have_qemu("what_is_missing_or_broken_is_said_to_be") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent");
    assert_eq!(Exporter::read_only(&absent, "raw").start().await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(qemu_img::inspect(&absent, "raw").await.unwrap_err().kind(), Kind::NotFound);
    let path = raw(folder.path(), "disk.raw", &[1; 4096]);
    let error = Exporter::read_only(&path, "qcow2").start().await.unwrap_err();
    assert!(matches!(&error, Error::ToolFailed { stderr, .. } if stderr.contains("qcow2")), "{error}");
    let error = Exporter::read_only(&path, "raw,x=y").start().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_fails_every_outstanding_request() {
    if !have_qemu("a_killed_server_fails_every_outstanding_request") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    let exporter = Exporter::create_qcow2(&path, 64 << 20).await.unwrap();
    let mut export = exporter.connections(2).start().await.unwrap();
    let volume = std::sync::Arc::new(export.volume().await.unwrap());
    let process = rustix::process::Pid::from_raw(export.process_id().unwrap().try_into().unwrap()).unwrap();
    // Stopped, so that the requests are certainly outstanding when it is killed.
    rustix::process::kill_process(process, rustix::process::Signal::STOP).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..100_u64 {
        let volume = std::sync::Arc::clone(&volume);
        tasks.spawn(async move {
            let buffer = Buffer::heap(256 << 10);
            let at = ByteOffset(n << 18);
            if n % 2 == 0 { volume.write_at(at, buffer).await } else { volume.read_at(at, buffer).await }
        });
    }
    tokio::task::yield_now().await;
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
    while let Some(ended) = tasks.join_next().await {
        let (result, buffer) = ended.unwrap();
        let error = result.unwrap_err();
        assert_eq!(error.kind(), Kind::Protocol, "{error}");
        let cause = error.source().and_then(|cause| cause.downcast_ref::<Error>());
        assert!(matches!(cause, Some(Error::Lost { .. })), "{cause:?}");
        assert_eq!(buffer.len(), 256 << 10, "the buffer comes back");
    }
    let error = volume.flush().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Protocol, "{error}");
    assert_eq!(volume.flush().await.unwrap_err().kind(), Kind::Poisoned, "a failed flush poisons");
    let (result, _) = volume.read_at(ByteOffset(0), Buffer::heap(512)).await;
    assert_eq!(result.unwrap_err().kind(), Kind::Poisoned);
    drop(tasks);
    let error = export.close().await.unwrap_err();
    assert!(error.to_string().contains("signal: 9"), "{error}");
    export = Exporter::writable(&path, "qcow2").start().await.unwrap();
    assert!(export.ended().unwrap().is_none());
}

/// Set for the process that [`an_agent_that_is_killed_leaves_no_server`] starts.
const HOLDER: &str = "NOVAFERRY_TEST_HOLD_IMAGE";

/// Not a test by itself: holds an export, says so, and waits to be killed.
#[tokio::test]
async fn holder() {
    let Some(path) = std::env::var_os(HOLDER) else { return };
    let export = Exporter::read_only(Path::new(&path), "raw").start().await.unwrap();
    let process = export.process_id().unwrap();
    std::fs::write(Path::new(&path).with_extension("pid"), process.to_string()).unwrap();
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
    std::future::pending::<()>().await;
}

#[test]
fn an_agent_that_is_killed_leaves_no_server() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    if !have_qemu("an_agent_that_is_killed_leaves_no_server") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = raw(folder.path(), "disk.raw", &[1; 4096]);
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holder"])
        .env(HOLDER, &path)
        .env("TMPDIR", folder.path())
        .status()
        .unwrap();
    assert!(!status.success(), "killed");
    let process = std::fs::read_to_string(path.with_extension("pid")).unwrap();
    // Gone already, or about to end: a pidfd becomes readable then.
    if let Ok(server) = pidfd_open(Pid::from_raw(process.parse().unwrap()).unwrap(), PidfdFlags::empty()) {
        let mut ended = [PollFd::new(&server, PollFlags::IN)];
        let limit = Timespec { tv_sec: 30, tv_nsec: 0 };
        assert_eq!(poll(&mut ended, Some(&limit)).unwrap(), 1, "qemu-nbd ends without its client");
    }
}

#[tokio::test]
async fn zeroing_gives_space_back_or_keeps_it() {
    use std::os::unix::fs::MetadataExt;
    if !have_qemu("zeroing_gives_space_back_or_keeps_it") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = raw(folder.path(), "disk.raw", &[9; 4 << 20]);
    let allocated = || std::fs::metadata(&path).unwrap().blocks() * 512;
    let export = Exporter::writable(&path, "raw").start().await.unwrap();
    let volume = export.volume().await.unwrap();
    let all = ByteRange { start: 0, end: 4 << 20 };
    volume.zero(all, ZeroMode::Allocate).await.unwrap();
    volume.flush().await.unwrap();
    assert!(allocated() >= 4 << 20, "{} bytes allocated", allocated());
    volume.zero(all, ZeroMode::Deallocate).await.unwrap();
    volume.flush().await.unwrap();
    assert!(allocated() < 1 << 20, "{} bytes allocated", allocated());
    assert!(read_all(&volume).await.iter().all(|b| *b == 0));
    assert_eq!(volume.next_data(ByteOffset(0)).await.unwrap(), None);
}
