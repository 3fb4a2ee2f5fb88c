//! What files and devices do beyond the suite: concurrency, cancellation, sparseness, full disks, poison.

#[path = "harness/shared.rs"]
mod harness;

use std::os::unix::fs::{FileExt, MetadataExt};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use harness::{block_on, disk_with};
use novaferry_disk::{BUFFER_SIZE, Backend, Disk, Options, SinkOptions, SourceOptions};
use volume::conformance::{Dice, read_all};
use volume::{Buffer, BufferPool, ByteLen, ByteOffset, ByteRange, Content, Kind, Sink, Source, ZeroMode};

const BLOCK: u64 = BUFFER_SIZE as u64;

fn both(test: &str) -> Vec<Disk> {
    [Backend::Uring, Backend::Plain]
        .into_iter()
        .filter_map(|backend| disk_with(test, backend, true))
        .collect()
}

fn poll_once<T>(mut future: Pin<&mut (impl Future<Output = T> + ?Sized)>) -> bool {
    future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

/// Waits until every operation that holds a buffer is over.
async fn all_buffers(disk: &Disk) -> Vec<Buffer> {
    let mut all = Vec::new();
    for _ in 0..disk.pool().capacity() {
        all.push(disk.pool().acquire().await);
    }
    all
}

#[test]
fn dropped_writes_finish_with_their_own_bytes_and_buffers_come_back() {
    for disk in both("dropped_writes_finish_with_their_own_bytes_and_buffers_come_back") {
        let folder = harness::folder();
        let blocks = 64;
        let sink = disk.create_sink(&folder.path().join("sink"), ByteLen(blocks * BLOCK)).unwrap();
        block_on(async {
            for block in 0..blocks {
                // A buffer that came back too early would carry this block's pattern to another one.
                let mut buffer = disk.pool().acquire().await;
                buffer.fill(u8::try_from(block + 1).unwrap());
                let mut write = sink.write_at(ByteOffset(block * BLOCK), buffer);
                poll_once(write.as_mut());
            }
            drop(all_buffers(&disk).await);
            let bytes = read_all(&sink).await;
            let mut written = 0;
            for (block, bytes) in bytes.chunks(BUFFER_SIZE).enumerate() {
                let pattern = u8::try_from(block + 1).unwrap();
                let whole = bytes.iter().all(|byte| *byte == pattern);
                assert!(whole || bytes.iter().all(|byte| *byte == 0), "block {block} holds foreign bytes");
                written += usize::from(whole);
            }
            println!("{:?}: {written} of {blocks} abandoned writes were carried out", disk.backend());
            assert!(written > 0);
        });
        assert_eq!(disk.pool().available(), disk.pool().capacity());
    }
}

#[test]
fn dropped_reads_never_write_to_a_buffer_that_has_a_new_owner() {
    for disk in both("dropped_reads_never_write_to_a_buffer_that_has_a_new_owner") {
        let folder = harness::folder();
        let path = folder.path().join("source");
        std::fs::write(&path, vec![0xee; 4 << 20]).unwrap();
        let source = disk.open_source(&path, SourceOptions::default()).unwrap();
        block_on(async {
            for round in 0..20 {
                for buffer in all_buffers(&disk).await {
                    let mut read = source.read_at(ByteOffset(BLOCK * (round % 16)), buffer);
                    poll_once(read.as_mut());
                }
                let mut held = Vec::new();
                for index in 0..disk.pool().capacity() {
                    let mut buffer = disk.pool().acquire().await;
                    buffer.fill(u8::try_from(index).unwrap());
                    held.push(buffer);
                }
                // Behind everything that was queued before.
                let (result, _) = source.read_at(ByteOffset(0), Buffer::heap(4096)).await;
                result.unwrap();
                for (index, buffer) in held.iter().enumerate() {
                    assert!(buffer.iter().all(|byte| usize::from(*byte) == index), "round {round}");
                }
            }
        });
    }
}

#[test]
fn many_concurrent_operations_keep_to_their_places() {
    for disk in both("many_concurrent_operations_keep_to_their_places") {
        let folder = harness::folder();
        let size = 16 * BLOCK + 777;
        let sink = Arc::new(disk.create_sink(&folder.path().join("sink"), ByteLen(size)).unwrap());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).build().unwrap();
        runtime.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            // Pieces of a size that is no multiple of anything: neighbours share pages, direct and buffered mix.
            let piece = 24_576 + 512;
            for start in (0..size).step_by(piece) {
                let (disk, sink) = (disk.clone(), Arc::clone(&sink));
                tasks.spawn(async move {
                    let len = usize::try_from(size - start).unwrap().min(piece);
                    for round in 0..5 {
                        let mut buffer = disk.pool().acquire().await;
                        buffer.set_len(len);
                        Dice::new(start + round).fill(&mut buffer);
                        let (result, mut buffer) = sink.write_at(ByteOffset(start), buffer).await;
                        result.unwrap();
                        buffer.fill(0);
                        let (result, buffer) = sink.read_at(ByteOffset(start), buffer).await;
                        result.unwrap();
                        let mut expected = vec![0; len];
                        Dice::new(start + round).fill(&mut expected);
                        assert!(*buffer == *expected, "{len} bytes at {start}, round {round}");
                    }
                });
            }
            tasks.join_all().await;
            sink.flush().await.unwrap();
            let bytes = read_all(&*sink).await;
            for start in (0..size).step_by(piece) {
                let place = usize::try_from(start).unwrap();
                let end = bytes.len().min(place + piece);
                let mut expected = vec![0; end - place];
                Dice::new(start + 4).fill(&mut expected);
                assert!(bytes[place..end] == expected, "a neighbour overwrote the piece at {start}");
            }
        });
        assert_eq!(disk.pool().available(), disk.pool().capacity());
    }
}

#[test]
fn sparse_stays_sparse() {
    for disk in both("sparse_stays_sparse") {
        let folder = harness::folder();
        let path = folder.path().join("sparse");
        let size = 64 << 20;
        let sink = disk.create_sink(&path, ByteLen(size)).unwrap();
        let allocated = || std::fs::metadata(&path).unwrap().blocks() * 512;
        block_on(async {
            assert_eq!(sink.next_data(ByteOffset(0)).await.unwrap(), None);
            let island = ByteRange { start: 32 << 20, end: (32 << 20) + BLOCK };
            let mut buffer = disk.pool().acquire().await;
            buffer.fill(1);
            sink.write_at(ByteOffset(island.start), buffer).await.0.unwrap();
            sink.flush().await.unwrap();
            assert!(allocated() < 1 << 20, "{} bytes allocated", allocated());
            assert_eq!(sink.next_data(ByteOffset(0)).await.unwrap(), Some(island));
            assert_eq!(sink.next_data(ByteOffset(island.end)).await.unwrap(), None);
            assert_eq!(sink.next_data(ByteOffset(size)).await.unwrap(), None);
            sink.zero(island, ZeroMode::Deallocate).await.unwrap();
            sink.flush().await.unwrap();
            assert_eq!(sink.next_data(ByteOffset(0)).await.unwrap(), None);
            assert!(allocated() < 64 << 10, "{} bytes allocated after zeroing", allocated());
            sink.zero(island, ZeroMode::Allocate).await.unwrap();
            sink.flush().await.unwrap();
            assert!(allocated() >= BLOCK, "allocated zeros take space");
        });
        assert_eq!(std::fs::metadata(&path).unwrap().len(), size);
    }
}

#[test]
fn files_take_the_exact_size() {
    let disk = disk_with("files_take_the_exact_size", Backend::Auto, true).unwrap();
    let folder = harness::folder();
    let path = folder.path().join("file");
    drop(disk.create_sink(&path, ByteLen(1000)).unwrap());
    assert_eq!(disk.create_sink(&path, ByteLen(1000)).unwrap_err().kind(), Kind::Exists);
    for size in [5000, 10] {
        let sink = disk.open_sink(&path, SinkOptions { size: Some(ByteLen(size)), fresh: false }).unwrap();
        assert_eq!((sink.geometry().size, sink.content()), (ByteLen(size), Content::Unknown));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), size);
    }
    let huge = disk.create_sink(&folder.path().join("huge"), ByteLen(u64::MAX)).unwrap_err();
    assert_eq!(huge.kind(), Kind::Invalid);
    assert!(!folder.path().join("huge").exists());
    assert_eq!(
        disk.open_sink(&folder.path().join("none"), SinkOptions::default()).unwrap_err().kind(),
        Kind::NotFound
    );
    let odd = disk.open_source(folder.path(), SourceOptions::default()).unwrap_err();
    assert_eq!(odd.kind(), Kind::Invalid, "a folder is no volume: {odd}");
}

#[test]
fn a_file_that_shrinks_under_the_reader_is_an_error() {
    for disk in both("a_file_that_shrinks_under_the_reader_is_an_error") {
        let folder = harness::folder();
        let path = folder.path().join("file");
        std::fs::write(&path, vec![1; 1 << 20]).unwrap();
        let source = disk.open_source(&path, SourceOptions { allow_shared: true }).unwrap();
        block_on(async {
            let before = source.fingerprint().await.unwrap().unwrap();
            assert_eq!(before, source.fingerprint().await.unwrap().unwrap());
            let writer = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            writer.write_all_at(&[2], 5).unwrap();
            let after = source.fingerprint().await.unwrap().unwrap();
            assert_eq!((before.size, before.inode), (after.size, after.inode));
            assert_ne!(before, after, "a write changes the fingerprint");
            writer.set_len(100_001).unwrap();
            let (result, buffer) = source.read_at(ByteOffset(65_536), Buffer::heap(65_536)).await;
            assert_eq!(result.unwrap_err().kind(), Kind::Changed);
            assert_eq!(buffer.len(), 65_536);
        });
    }
}

#[test]
fn the_pool_bounds_what_callers_hold() {
    let disk = Disk::start(&Options { buffers: 2, ..Options::default() }).unwrap();
    block_on(async {
        let first = disk.pool().acquire().await;
        let second = disk.buffers().try_acquire().unwrap();
        assert!(disk.pool().try_acquire().is_none());
        let mut third = disk.pool().acquire();
        assert!(!poll_once(third.as_mut()));
        drop(first);
        assert!(poll_once(third.as_mut()));
        drop(second);
    });
}
