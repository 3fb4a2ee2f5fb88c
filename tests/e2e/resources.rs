//! What the agents use: memory that does not grow with the volume, and nothing that stays behind.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::harness::copy::Outcome;
use crate::harness::disks::{Dice, MIB, random_file};
use crate::harness::process::Process;
use crate::harness::{Harness, until};

/// Most memory that a process has had, in bytes (`proc_pid_status(5)`); none when it has ended.
fn peak(process: &Process) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok().map(|kib: u64| kib * 1024)
}

fn entries(process: &Process, of: &str) -> usize {
    std::fs::read_dir(format!("/proc/{}/{of}", process.id())).unwrap().count()
}

#[test]
fn memory_does_not_grow_with_the_volume() {
    /// What one session may take.
    const MOST: u64 = 256 * MIB;
    const DATA: u64 = 512 * MIB;
    let harness = Harness::new();
    let host = harness.host("host-b");
    let daemon = host.start();
    let source = harness.path("source");
    let file = File::create(&source).unwrap();
    let size = 1 << 40;
    file.set_len(size).unwrap();
    let mut dice = Dice::new(1);
    let mut block = vec![0; 1 << 20];
    for _ in 0..DATA / MIB {
        dice.fill(&mut block);
        file.write_all_at(&block, dice.below(size / MIB) * MIB).unwrap();
    }
    drop(file);
    let mut running = harness.copy(&source, host.url("disk")).start();
    let mut of_sender = 0;
    until("the copy's end", || {
        of_sender = of_sender.max(peak(&running).unwrap_or(0));
        running.has_ended().then_some(())
    });
    let summary = Outcome::of(running.finish()).done();
    let of_receiver = peak(daemon.process()).unwrap();
    println!(
        "1 TiB with 512 MiB of data in {} s: sender {} MiB, receiver {} MiB",
        summary.0["seconds"],
        of_sender / MIB,
        of_receiver / MIB
    );
    assert!(of_sender <= MOST && of_receiver <= MOST);
    let written = std::os::unix::fs::MetadataExt::blocks(&host.volume("disk").metadata().unwrap()) * 512;
    assert!(written <= DATA + 16 * MIB, "{written} bytes are allocated: holes were filled");
    daemon.stop();
}

#[test]
fn nothing_stays_behind() {
    let harness = Harness::new();
    let host = harness.host("host-b");
    let daemon = host.start();
    let source = harness.path("source");
    random_file(&source, 4 * MIB, 2);
    harness.allow_log("session ended");
    let session = |number: u64| {
        let name = format!("disk-{number}");
        harness.copy(&source, host.url(&name)).with(["--connections", "3"]).done();
        harness.copy(&source, host.url(&name)).with(["--transport", "tcp"]).fails("exists");
        daemon.await_idle();
    };
    // What is made once is made now.
    session(0);
    let count = |of| entries(daemon.process(), of);
    let (files, threads) = (count("fd"), count("task"));
    println!("{files} descriptors, {threads} threads");
    (1..6).for_each(session);
    // Connections say goodbye in their own time.
    until("the descriptors' end", || (count("fd") <= files).then_some(()));
    until("the threads' end", || (count("task") <= threads).then_some(()));
    daemon.stop();
}
