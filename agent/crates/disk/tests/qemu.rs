//! Our locks and QEMU's, against a real QEMU tool. One test: it starts processes.

#[path = "harness/shared.rs"]
mod harness;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use harness::{Capability, disk_with, skip};
use novaferry_disk::{Backend, SinkOptions, SourceOptions};
use volume::{ByteLen, Kind};

/// A qemu-io that has an image open until it is dropped.
struct Holder(Child);

impl Holder {
    fn open(image: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new("qemu-io")
            .args(["-f", "raw"])
            .args(arguments)
            .arg(image)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Its answer says that the image is open.
        child.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
        let mut answer = String::new();
        let mut lines = BufReader::new(child.stdout.as_mut().unwrap());
        while !answer.contains("MiB") {
            assert_ne!(lines.read_line(&mut answer).unwrap(), 0, "qemu-io ended: {answer}");
        }
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

/// Whether qemu-io can open the image and run one command.
fn qemu(image: &Path, arguments: &[&str]) -> bool {
    let output = Command::new("qemu-io").args(["-f", "raw"]).args(arguments).arg(image).output().unwrap();
    output.status.success()
}

#[test]
fn qemu_and_we_respect_each_other() {
    let test = "qemu_and_we_respect_each_other";
    if let Some(why) = harness::missing(Capability::Qemu) {
        return skip(test, Capability::Qemu, &why);
    }
    let disk = disk_with(test, Backend::Auto, true).unwrap();
    let folder = harness::folder();
    let path = folder.path().join("image");
    let (read, write) = (["-r", "-c", "read 0 4k"], ["-c", "write 0 4k"]);
    let sink = disk.create_sink(&path, ByteLen(1 << 20)).unwrap();
    assert!(!qemu(&path, &read) && !qemu(&path, &write), "a target belongs to us alone");
    drop(sink);
    assert!(qemu(&path, &write));

    let source = disk.open_source(&path, SourceOptions::default()).unwrap();
    assert!(qemu(&path, &read), "a source may be read by others");
    assert!(!qemu(&path, &write), "a source may not be written by others");
    drop(source);

    let writer = Holder::open(&path, &[]);
    for refused in [
        disk.open_source(&path, SourceOptions::default()).unwrap_err(),
        disk.open_sink(&path, SinkOptions::default()).unwrap_err(),
    ] {
        assert_eq!(refused.kind(), Kind::InUse, "{refused}");
    }
    disk.open_source(&path, SourceOptions { allow_shared: true }).unwrap();
    drop(writer);

    let reader = Holder::open(&path, &["-r"]);
    disk.open_source(&path, SourceOptions::default()).unwrap();
    assert_eq!(disk.open_sink(&path, SinkOptions::default()).unwrap_err().kind(), Kind::InUse);
    drop(reader);
    disk.open_sink(&path, SinkOptions::default()).unwrap();
}
