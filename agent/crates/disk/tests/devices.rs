//! Block devices and small file systems: the suite, sector sizes, claims, full and failing media. Needs root.
//!
//! These tests start processes, and a process that is being started holds copies of all our descriptors for a moment:
//! hence a binary of their own, and one test at a time.
#![expect(clippy::print_stdout, reason = "seeds and skips are for the reader of the test's output")]

#[path = "harness/shared.rs"]
mod harness;

use harness::{Capability, LoopDevice, Mount, block_on, disk_with, skip};
use novaferry_disk::{BUFFER_SIZE, Backend, Disk, SinkOptions, SourceOptions};
use volume::conformance::{Dice, check_sink, read_all};
use volume::{
    Buffer, BufferPool, ByteLen, ByteOffset, ByteRange, Content, Kind, Sink, Source, VolumeError, ZeroMode,
};

const BLOCK: u64 = BUFFER_SIZE as u64;

fn both(test: &str) -> Vec<Disk> {
    [Backend::Uring, Backend::Plain]
        .into_iter()
        .filter_map(|backend| disk_with(test, backend, true))
        .collect()
}

#[track_caller]
fn in_use<T: std::fmt::Debug>(result: Result<T, VolumeError>) {
    let error = result.expect_err("it is in use");
    assert_eq!(error.kind(), Kind::InUse, "{error}");
    assert!(error.advice().is_some(), "{error}");
}

fn check_devices(test: &str, backend: Backend) {
    let _alone = harness::alone();
    if let Some(why) = harness::missing(Capability::Loop) {
        return skip(test, Capability::Loop, &why);
    }
    let Some(disk) = disk_with(test, backend, true) else { return };
    for sector in [512_u32, 4096] {
        // A whole number of sectors, but of pages only for one of them; and a volume smaller than the device.
        let size = (3 << 20) + u64::from(sector);
        let device = LoopDevice::new(size, sector);
        for (seed, volume) in [(1, None), (2, Some(ByteLen((1 << 20) + 1000)))] {
            let sink = disk.open_sink(device.path(), SinkOptions { size: volume, fresh: false }).unwrap();
            println!("{test}: sector {sector} volume {volume:?} seed {seed} direct {}", sink.is_direct());
            assert_eq!(sink.geometry().logical_block, sector);
            assert_eq!(sink.geometry().size, volume.unwrap_or(ByteLen(size)));
            assert_eq!(sink.content(), Content::Unknown);
            block_on(async {
                check_sink(&sink, seed).await;
                check_odd_writes(&sink, seed).await;
                assert_eq!(sink.fingerprint().await.unwrap(), None);
            });
        }
    }
}

/// Writes and zeros that respect no sector.
async fn check_odd_writes(sink: &dyn Sink, seed: u64) {
    let mut model = read_all(sink).await;
    let mut dice = Dice::new(seed);
    for _ in 0..30 {
        let start = dice.below(model.len() as u64);
        let end = (start + 1 + dice.below(40_000)).min(model.len() as u64);
        let place = usize::try_from(start).unwrap()..usize::try_from(end).unwrap();
        if dice.below(2) == 0 {
            let mode = if dice.below(2) == 0 { ZeroMode::Deallocate } else { ZeroMode::Allocate };
            sink.zero(ByteRange { start, end }, mode).await.unwrap();
            model[place].fill(0);
        } else {
            let mut buffer = Buffer::heap(place.len());
            dice.fill(&mut buffer);
            model[place].copy_from_slice(&buffer);
            sink.write_at(ByteOffset(start), buffer).await.0.unwrap();
        }
    }
    sink.flush().await.unwrap();
    assert!(read_all(sink).await == model, "seed {seed}: unaligned operations went wrong");
}

#[test]
fn uring_devices() {
    check_devices("uring_devices", Backend::Uring);
}

#[test]
fn plain_devices() {
    check_devices("plain_devices", Backend::Plain);
}

#[test]
fn a_volume_moves_between_512_and_4096_byte_sectors() {
    let test = "a_volume_moves_between_512_and_4096_byte_sectors";
    let _alone = harness::alone();
    if let Some(why) = harness::missing(Capability::Loop) {
        return skip(test, Capability::Loop, &why);
    }
    let disk = disk_with(test, Backend::Auto, true).unwrap();
    for (from, to) in [(512_u32, 4096_u32), (4096, 512)] {
        // 512-byte sectors allow sizes that 4096-byte ones do not; the target is then rounded up.
        let size = (2 << 20) + u64::from(from);
        let source = LoopDevice::new(size, from);
        let target = LoopDevice::new(size.next_multiple_of(4096), to);
        let mut bytes = vec![0; usize::try_from(size).unwrap()];
        Dice::new(u64::from(from)).fill(&mut bytes);
        std::fs::write(source.path(), &bytes).unwrap();
        block_on(async {
            let reader = disk.open_source(source.path(), SourceOptions::default()).unwrap();
            let options = SinkOptions { size: Some(reader.geometry().size), fresh: false };
            let writer = disk.open_sink(target.path(), options).unwrap();
            let mut at = 0;
            while at < size {
                let mut buffer = disk.pool().acquire().await;
                buffer.set_len(usize::try_from((size - at).min(BUFFER_SIZE as u64)).unwrap());
                let (result, buffer) = reader.read_at(ByteOffset(at), buffer).await;
                result.unwrap();
                let (result, buffer) = writer.write_at(ByteOffset(at), buffer).await;
                result.unwrap();
                at += buffer.len() as u64;
            }
            writer.flush().await.unwrap();
            assert!(read_all(&writer).await == bytes, "{from} to {to} byte sectors");
        });
    }
}

#[test]
fn a_mounted_device_is_refused() {
    let test = "a_mounted_device_is_refused";
    let _alone = harness::alone();
    if let Some(why) = harness::missing(Capability::Loop) {
        return skip(test, Capability::Loop, &why);
    }
    let disk = disk_with(test, Backend::Auto, true).unwrap();
    let mount = Mount::ext4(8 << 20);
    in_use(disk.open_source(mount.device(), SourceOptions::default()));
    in_use(disk.open_sink(mount.device(), SinkOptions::default()));
    // With a snapshot behind it the caller may insist.
    disk.open_source(mount.device(), SourceOptions { allow_shared: true }).unwrap();
}

#[test]
fn a_device_has_one_user() {
    let test = "a_device_has_one_user";
    let _alone = harness::alone();
    if let Some(why) = harness::missing(Capability::Loop) {
        return skip(test, Capability::Loop, &why);
    }
    let disk = disk_with(test, Backend::Auto, true).unwrap();
    let device = LoopDevice::new(1 << 20, 4096);
    let sink = disk.open_sink(device.path(), SinkOptions::default()).unwrap();
    in_use(disk.open_sink(device.path(), SinkOptions::default()));
    in_use(disk.open_source(device.path(), SourceOptions::default()));
    drop(sink);
    let source = disk.open_source(device.path(), SourceOptions::default()).unwrap();
    in_use(disk.open_sink(device.path(), SinkOptions::default()));
    drop(source);
    disk.open_sink(device.path(), SinkOptions::default()).unwrap();
}
#[test]
fn a_full_file_system_is_no_space() {
    let test = "a_full_file_system_is_no_space";
    let _alone = harness::alone();
    if let Some(why) = harness::missing(Capability::Loop) {
        return skip(test, Capability::Loop, &why);
    }
    for mount in [Mount::tmpfs(2 << 20), Mount::ext4(16 << 20)] {
        for disk in both(test) {
            let path = mount.path().join(format!("{:?}", disk.backend()));
            let sink = disk.create_sink(&path, ByteLen(64 << 20)).unwrap();
            block_on(async {
                let mut failed = None;
                for block in 0..256 {
                    let mut buffer = disk.pool().acquire().await;
                    buffer.fill(1);
                    let (result, _) = sink.write_at(ByteOffset(block * BLOCK), buffer).await;
                    if let Err(error) = result {
                        failed = Some(error);
                        break;
                    }
                }
                let error = failed.expect("64 MiB do not fit");
                assert_eq!(error.kind(), Kind::NoSpace, "{error}");
                assert!(error.advice().is_some());
                let range = ByteRange { start: 0, end: 64 << 20 };
                let error = sink.zero(range, ZeroMode::Allocate).await.unwrap_err();
                assert_eq!(error.kind(), Kind::NoSpace, "{error}");
            });
            drop(sink);
            std::fs::remove_file(path).unwrap();
        }
    }
}

/// A loop device larger than the tmpfs below it: cached writes succeed, and the flush must own up.
#[test]
fn a_failed_flush_poisons_for_ever() {
    let test = "a_failed_flush_poisons_for_ever";
    let _alone = harness::alone();
    if let Some(why) = harness::missing(Capability::Loop) {
        return skip(test, Capability::Loop, &why);
    }
    for disk in both(test) {
        let mount = Mount::tmpfs(1 << 20);
        let device = LoopDevice::over(&mount.path().join("backing"), 8 << 20, 512);
        let sink = disk.open_sink(device.path(), SinkOptions::default()).unwrap();
        block_on(async {
            for at in (1..(6 << 20)).step_by(BUFFER_SIZE) {
                // An odd offset: through the page cache.
                let (result, _) = sink.write_at(ByteOffset(at), Buffer::heap(BUFFER_SIZE)).await;
                if result.is_err() {
                    break;
                }
            }
            let error = sink.flush().await.expect_err("6 MiB are not durable in 1 MiB");
            println!("{:?}: {error}", disk.backend());
            assert!(sink.is_poisoned());
            for _ in 0..2 {
                assert_eq!(sink.flush().await.unwrap_err().kind(), Kind::Poisoned);
                let (result, buffer) = sink.write_at(ByteOffset(0), Buffer::heap(512)).await;
                assert_eq!(result.unwrap_err().kind(), Kind::Poisoned);
                assert_eq!(buffer.len(), 512);
                let (result, _) = sink.read_at(ByteOffset(0), Buffer::heap(512)).await;
                assert_eq!(result.unwrap_err().kind(), Kind::Poisoned);
                let range = ByteRange { start: 0, end: 512 };
                assert_eq!(sink.zero(range, ZeroMode::Allocate).await.unwrap_err().kind(), Kind::Poisoned);
                assert_eq!(sink.next_data(ByteOffset(0)).await.unwrap_err().kind(), Kind::Poisoned);
                assert_eq!(sink.fingerprint().await.unwrap_err().kind(), Kind::Poisoned);
            }
        });
        drop(sink);
        drop(device);
        drop(mount);
    }
}

#[test]
fn devices_must_be_large_enough() {
    let test = "devices_must_be_large_enough";
    let _alone = harness::alone();
    if let Some(why) = harness::missing(Capability::Loop) {
        return skip(test, Capability::Loop, &why);
    }
    let disk = disk_with(test, Backend::Auto, true).unwrap();
    let device = LoopDevice::new(1 << 20, 512);
    let options = SinkOptions { size: Some(ByteLen((1 << 20) + 1)), fresh: false };
    let error = disk.open_sink(device.path(), options).unwrap_err();
    assert_eq!(error.kind(), Kind::TooSmall);
    assert!(error.to_string().contains("1048577"), "{error}");
}
