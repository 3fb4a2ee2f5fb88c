//! What breaks on a host while a volume is copied: each ends in one error that says what to do, shows nothing that is
//! not sealed, and goes on when the cause is gone.

use std::fs::File;
use std::io::Write;
use std::net::{TcpStream, UdpSocket};
use std::os::unix::fs::FileExt;

use rustix::process::Signal;

use crate::harness::copy::Outcome;
use crate::harness::disks::{Dice, LoopDevice, MIB, Mount, random_file, same, tool};
use crate::harness::{Capability, Harness, capable, until};

#[test]
fn a_full_pool_says_so_and_goes_on_when_there_is_room() {
    if !capable("a_full_pool_says_so_and_goes_on_when_there_is_room", &[Capability::Loop]) {
        return;
    }
    let harness = Harness::new();
    let pool = harness.path("pool");
    let mount = Mount::tmpfs(&pool, 24 * MIB);
    let host = harness.host("host-b").with_pool(&pool);
    let daemon = host.start();
    let source = harness.path("source");
    random_file(&source, 48 * MIB, 1);
    harness.allow_log("session failed on this host");
    let copy = harness.copy(&source, host.url("disk"));
    let failure = copy.fails("no-space");
    assert!(failure.advice.contains("free some space"), "{}", failure.advice);
    host.shows_nothing("disk");
    tool("mount", &["-o", "remount,size=128m", mount.path().to_str().unwrap()]);
    assert!(copy.done().resumed());
    same(&source, &host.volume("disk"));
    daemon.stop();
}

#[test]
fn a_full_file_system_on_a_device_says_so() {
    if !capable("a_full_file_system_on_a_device_says_so", &[Capability::Loop]) {
        return;
    }
    let harness = Harness::new();
    let pool = harness.path("pool");
    let _mount = Mount::ext4(&pool, 80 * MIB);
    std::fs::create_dir(pool.join("in")).unwrap();
    let host = harness.host("host-b").with_pool(&pool.join("in"));
    let daemon = host.start();
    let source = harness.path("source");
    random_file(&source, 40 * MIB, 2);
    let ballast = pool.join("ballast");
    random_file(&ballast, 48 * MIB, 3);
    harness.allow_log("session failed on this host");
    let copy = harness.copy(&source, host.url("disk"));
    copy.fails("no-space");
    host.shows_nothing("disk");
    std::fs::remove_file(ballast).unwrap();
    copy.done();
    same(&source, &host.volume("disk"));
    daemon.stop();
}

#[test]
fn a_quota_counts_what_volumes_claim() {
    let harness = Harness::new();
    let host = harness.host("host-b").with_quota("40MiB");
    let daemon = host.start();
    let source = harness.path("source");
    File::create(&source).unwrap().set_len(24 * MIB).unwrap();
    harness.copy(&source, host.url("first")).done();
    harness.allow_log("session ended");
    let failure = harness.copy(&source, host.url("second")).fails("quota");
    assert!(failure.advice.contains("quota"), "{}", failure.advice);
    host.shows_nothing("second");
    daemon.stop();
}

/// A loop device larger than the tmpfs below it. Only the last page is missing; it is written through the page cache,
/// so the write succeeds and the flush must own up.
#[test]
fn a_failed_flush_is_never_acknowledged() {
    if !capable("a_failed_flush_is_never_acknowledged", &[Capability::Loop]) {
        return;
    }
    let harness = Harness::new();
    let mount = Mount::tmpfs(&harness.path("small"), 6 * MIB);
    let device = LoopDevice::new(&mount.path().join("backing"), 16 * MIB, 512);
    let source = harness.path("source");
    random_file(&source, 6 * MIB + 265, 4);
    let copy = harness.copy(&source, device.path()).with(["--resync", "full"]);
    let failure = copy.fails("flush-failed");
    println!("{}", failure.message);
    tool("mount", &["-o", "remount,size=32m", mount.path().to_str().unwrap()]);
    let summary = copy.done();
    assert_eq!(summary.count("logical_bytes"), 6 * MIB + 265);
    let differing = crate::harness::disks::differing_bytes(&source, device.path(), 6 * MIB + 265);
    assert_eq!(differing, 0);
}

#[test]
fn a_source_that_somebody_writes_to_is_refused() {
    let harness = Harness::new();
    let host = harness.host("host-b");
    let daemon = host.start();
    let source = harness.path("source");
    random_file(&source, 2 * MIB, 5);
    let writer = File::options().write(true).open(&source).unwrap();
    let copy = harness.copy(&source, host.url("disk"));
    copy.fails("busy");
    drop(writer);
    copy.done();
    daemon.stop();
}

#[test]
fn a_source_that_changes_gets_no_receipt() {
    let harness = Harness::new();
    let host = harness.host("host-b");
    let daemon = host.start();
    harness.allow_log("session ended");
    type Change = fn(&std::path::Path);
    let changes: [(&str, Change); 3] = [
        ("written", |path| {
            let file = File::options().write(true).open(path).unwrap();
            file.write_all_at(b"a guest", 63 * MIB).unwrap();
        }),
        ("shrunk", |path| File::options().write(true).open(path).unwrap().set_len(MIB).unwrap()),
        ("gone", |path| std::fs::remove_file(path).unwrap()),
    ];
    for (seed, (name, change)) in (6..).zip(changes) {
        let source = harness.path(name);
        random_file(&source, 64 * MIB, seed);
        let running = harness.copy(&source, host.url(name)).with(["--limit", "400Mbit/s"]).start();
        daemon.await_settled(MIB);
        change(&source);
        Outcome::of(running.finish()).fails(1, "source-changed");
        host.shows_nothing(name);
        daemon.await_idle();
    }
    daemon.stop();
}

#[test]
fn a_damaged_sidecar_costs_work_or_says_what_to_do() {
    let harness = Harness::new();
    let host = harness.host("host-b");
    let daemon = host.start();
    let source = harness.path("source");
    random_file(&source, 64 * MIB, 10);
    let copy = harness.copy(&source, host.url("disk"));
    let stopped = |seen: &crate::harness::host::Daemon| {
        let running = copy.clone().with(["--limit", "400Mbit/s"]).start();
        seen.await_settled(8 * MIB);
        running.signal(Signal::TERM);
        Outcome::of(running.finish()).fails(2, "interrupted");
        seen.await_idle();
    };
    harness.allow_log("session ended");

    stopped(&daemon);
    let journal = File::options().write(true).open(host.sidecar("disk").join("journal")).unwrap();
    journal.set_len(journal.metadata().unwrap().len() / 2 + 1).unwrap();
    copy.done();
    same(&source, &host.volume("disk"));

    random_file(&source, 64 * MIB, 11);
    let copy = copy.clone().with(["--resync", "full"]);
    std::fs::write(host.sidecar("disk").join("meta"), b"\xff garbage").unwrap();
    harness.allow_log("session failed on this host");
    harness.allow_log("passed over");
    copy.fails("storage");
    // The operator does what the log says.
    daemon.await_message("remove that folder");
    std::fs::remove_dir_all(host.sidecar("disk")).unwrap();
    std::fs::remove_file(host.volume("disk")).unwrap();
    copy.done();
    same(&source, &host.volume("disk"));
    daemon.stop();
}

#[test]
fn strangers_at_the_port_do_not_disturb() {
    let harness = Harness::new();
    let host = harness.host("host-b");
    let daemon = host.start();
    let source = harness.path("source");
    random_file(&source, 64 * MIB, 12);
    for (name, transport) in [("by-quic", "quic"), ("by-tcp", "tcp")] {
        let arguments = ["--limit", "400Mbit/s", "--transport", transport];
        let mut running = harness.copy(&source, host.url(name)).with(arguments).start();
        daemon.await_settled(MIB);
        let seed = 13;
        println!("seed {seed}");
        let mut dice = Dice::new(seed);
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut junk = vec![0; 1400];
        let mut strangers = 0;
        until("the copy's end", || {
            let length = usize::try_from(1 + dice.below(1400)).unwrap();
            dice.fill(&mut junk[..length]);
            // The first byte of a QUIC packet, now and then.
            junk[0] |= u8::try_from(dice.below(4) << 6).unwrap();
            udp.send_to(&junk[..length], host.address()).unwrap();
            // The daemon may close before all is written.
            let stream = TcpStream::connect(host.address()).and_then(|mut stream| stream.write_all(&junk));
            strangers += u64::from(stream.is_ok());
            running.has_ended().then_some(())
        });
        assert!(strangers > 0);
        println!("{strangers} strangers by TCP and by UDP");
        Outcome::of(running.finish()).done();
        same(&source, &host.volume(name));
    }
    daemon.stop();
}
