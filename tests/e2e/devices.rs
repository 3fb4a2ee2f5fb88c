//! Volumes that are no plain files: block devices, qcow2 images, NBD exports.

use std::process::Command;

use crate::harness::disks::{LoopDevice, MIB, Mount, differing_bytes, mixed_file, same, tool};
use crate::harness::{Capability, Harness, capable, until};

#[test]
fn devices_of_different_sectors_are_copied() {
    if !capable("devices_of_different_sectors_are_copied", &[Capability::Loop]) {
        return;
    }
    let harness = Harness::new();
    let host = harness.host("host-b");
    let daemon = host.start();
    let content = harness.path("content");
    // Whole sectors of 512 bytes, but not of 4096.
    let size = 12 * MIB + 512;
    mixed_file(&content, size, 1);
    let from = LoopDevice::over(&content, 512);
    let to = LoopDevice::new(&harness.path("large-sectors"), 16 * MIB, 4096);
    harness.copy(from.path(), host.url("disk")).done();
    same(&content, &host.volume("disk"));
    // Whatever it holds is overwritten, because that was asked for.
    harness.copy(host.url("disk"), to.path()).with(["--resync", "full"]).done();
    assert_eq!(differing_bytes(&content, to.path(), size), 0, "by pull");

    let other = LoopDevice::new(&harness.path("other"), 16 * MIB, 4096);
    harness.copy(from.path(), other.path()).with(["--resync", "full", "--verify", "readback"]).done();
    assert_eq!(differing_bytes(&content, other.path(), size), 0, "within the host");
    daemon.stop();
}

#[test]
fn devices_that_cannot_be_targets_are_refused() {
    if !capable("devices_that_cannot_be_targets_are_refused", &[Capability::Loop]) {
        return;
    }
    let harness = Harness::new();
    let source = harness.path("source");
    mixed_file(&source, 12 * MIB, 2);
    let small = LoopDevice::new(&harness.path("small"), 8 * MIB, 512);
    let mounted = Mount::ext4(&harness.path("mounted"), 32 * MIB);
    let copy = |target| harness.copy(&source, target).with(["--resync", "full"]);
    let failure = copy(small.path()).fails("too-small");
    assert!(failure.advice.contains("12582912"), "{}", failure.advice);
    copy(mounted.device()).fails("busy");
    // Neither can be read as it changes.
    harness.copy(mounted.device(), harness.path("x")).fails("busy");
}

#[test]
fn images_with_backing_files_are_copied() {
    if !capable("images_with_backing_files_are_copied", &[Capability::Qemu]) {
        return;
    }
    let harness = Harness::new();
    let host = harness.host("host-b");
    let daemon = host.start();
    let raw = harness.path("raw");
    mixed_file(&raw, 16 * MIB, 3);
    let [base, top, flat, back] =
        ["base.qcow2", "top.qcow2", "flat", "back.qcow2"].map(|name| harness.text(name));
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", raw.to_str().unwrap(), &base]);
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &base, "-F", "qcow2", &top, "20M"]);
    tool("qemu-io", &["-f", "qcow2", "-c", "write -P 7 1M 700k", "-c", "write -z 3M 1M", &top]);
    tool("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &top, &flat]);

    harness.copy(&top, host.url("disk")).done();
    same(flat.as_ref(), &host.volume("disk"));
    harness.copy(&top, host.url("disk.qcow2")).done();
    let there = host.volume("disk.qcow2");
    tool("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &flat, there.to_str().unwrap()]);
    tool("qemu-img", &["check", "-q", "-f", "qcow2", there.to_str().unwrap()]);
    harness.copy(host.url("disk.qcow2"), &back).with(["--source-format", "qcow2"]).done();
    tool("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &flat, &back]);

    tool("qemu-img", &["snapshot", "-c", "before", &top]);
    let failure = harness.copy(&top, host.url("snapshots")).fails("unsupported");
    assert!(failure.advice.contains("--drop-snapshots"), "{}", failure.advice);
    harness.allow_log("internal snapshots do not survive");
    harness.copy(&top, host.url("snapshots")).with(["--drop-snapshots"]).done();
    same(flat.as_ref(), &host.volume("snapshots"));
    daemon.stop();
}

#[test]
fn an_export_is_copied() {
    if !capable("an_export_is_copied", &[Capability::Qemu]) {
        return;
    }
    let harness = Harness::new();
    let host = harness.host("host-b");
    let daemon = host.start();
    let raw = harness.path("raw");
    mixed_file(&raw, 16 * MIB + 512, 4);
    let socket = harness.path("nbd.sock");
    let mut command = Command::new("qemu-nbd");
    command.args(["--read-only", "--persistent", "--shared=4", "--format=raw", "--export-name=disk"]);
    command.arg("--socket").arg(&socket).arg(&raw);
    let server = harness.start("qemu-nbd", command);
    until("the socket", || socket.exists().then_some(()));
    let source = format!("nbd+unix:///disk?socket={}", socket.display());
    harness.copy(&source, host.url("disk")).done();
    same(&raw, &host.volume("disk"));
    server.kill();
    daemon.stop();
}
