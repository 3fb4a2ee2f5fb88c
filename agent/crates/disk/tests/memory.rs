//! The pool's memory is not resident until it is used, and goes back when no volume is open. One test, because it
//! measures the process.

#[path = "harness/shared.rs"]
mod harness;

use harness::{block_on, disk_with};
use novaferry_disk::{Backend, Disk, Options};
use volume::{BufferPool, ByteLen, ByteOffset, Sink};

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn idle_buffers_are_not_resident() {
    const MIB: u64 = 1 << 20;
    let before = resident();
    let idle = Disk::start(&Options::default()).unwrap();
    assert!(resident() < before + 8 * MIB, "64 MiB of buffers that nobody used are resident");
    assert_eq!(idle.registered_buffers(), 0);
    idle.shutdown().unwrap();

    let Some(disk) = disk_with("idle_buffers_are_not_resident", Backend::Plain, true) else { return };
    drop(disk);
    let disk = Disk::start(&Options { backend: Backend::Plain, ..Options::default() }).unwrap();
    let folder = harness::folder();
    let sink = disk.create_sink(&folder.path().join("file"), ByteLen(64 * MIB)).unwrap();
    block_on(async {
        let mut held = Vec::new();
        while let Some(mut buffer) = disk.pool().try_acquire() {
            buffer.fill(1);
            held.push(buffer);
        }
        let (result, _) = sink.write_at(ByteOffset(0), held.pop().unwrap()).await;
        result.unwrap();
    });
    let busy = resident();
    assert!(busy > before + 60 * MIB);
    drop(sink);
    assert!(resident() + 48 * MIB < busy, "the memory of an idle pool stays resident");
}
