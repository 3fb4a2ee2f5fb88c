//! Design rule 9 and target locks, through the public constructors.

#[path = "harness/shared.rs"]
mod harness;

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;

use harness::{block_on, disk_with};
use novaferry_disk::{Backend, SinkOptions, SourceOptions};
use volume::conformance::{check_sink, read_all};
use volume::{Content, Kind, Sink, VolumeError};

#[track_caller]
fn in_use<T: std::fmt::Debug>(result: Result<T, VolumeError>) {
    let error = result.expect_err("it is in use");
    assert_eq!(error.kind(), Kind::InUse, "{error}");
    assert!(error.advice().is_some(), "{error}");
}

#[test]
fn a_file_open_for_writing_elsewhere_is_refused() {
    let disk = disk_with("", Backend::Auto, true).unwrap();
    let folder = harness::folder();
    let path = folder.path().join("file");
    std::fs::write(&path, [1; 5000]).unwrap();
    let writer = OpenOptions::new().append(true).open(&path).unwrap();
    in_use(disk.open_source(&path, SourceOptions::default()));
    in_use(disk.open_sink(&path, SinkOptions::default()));
    disk.open_source(&path, SourceOptions { allow_shared: true }).unwrap();
    drop(writer);
    let first = disk.open_source(&path, SourceOptions::default()).unwrap();
    let second = disk.open_source(&path, SourceOptions::default()).unwrap();
    in_use(disk.open_sink(&path, SinkOptions::default()));
    drop((first, second));
    disk.open_sink(&path, SinkOptions::default()).unwrap();
}

#[test]
fn a_target_file_is_locked_until_it_is_dropped() {
    let disk = disk_with("", Backend::Auto, true).unwrap();
    let folder = harness::folder();
    let path = folder.path().join("file");
    let sink = disk.create_sink(&path, volume::ByteLen(1 << 20)).unwrap();
    block_on(async {
        let (result, _) = sink.write_at(volume::ByteOffset(0), volume::Buffer::heap(8192)).await;
        result.unwrap();
    });
    in_use(disk.open_sink(&path, SinkOptions::default()));
    in_use(disk.open_source(&path, SourceOptions::default()));
    in_use(disk.open_source(&path, SourceOptions { allow_shared: true }));
    drop(sink);
    // At once: nothing of the backend keeps it open.
    disk.open_source(&path, SourceOptions::default()).unwrap();
}

#[test]
fn descriptors_of_the_caller_work_like_paths() {
    let disk = disk_with("", Backend::Auto, true).unwrap();
    let folder = harness::folder();
    let path = folder.path().join("file");
    let open = |new| -> OwnedFd {
        OpenOptions::new().read(true).write(true).create_new(new).open(&path).unwrap().into()
    };
    let size = volume::ByteLen((1 << 20) + 77);
    let sink =
        disk.sink_from(open(true), "pool/file", SinkOptions { size: Some(size), fresh: true }).unwrap();
    assert_eq!(sink.content(), Content::Zero);
    in_use(disk.sink_from(open(false), "pool/file", SinkOptions::default()));
    let bytes = block_on(async {
        check_sink(&sink, 5).await;
        read_all(&sink).await
    });
    drop(sink);
    let file = std::fs::File::open(&path).unwrap();
    let source = disk.source_from(file.into(), "pool/file", SourceOptions::default()).unwrap();
    assert!(block_on(read_all(&source)) == bytes);
    assert_eq!(volume::Source::describe(&source), "pool/file");
}
