//! Every backend passes the suite of the contract, on files and on devices, and they agree byte for byte.
#![expect(clippy::print_stdout, reason = "seeds and skips are for the reader of the test's output")]

#[path = "harness/shared.rs"]
mod harness;

use harness::{block_on, disk_with};
use novaferry_disk::sim::{Call, CrashModel, Fault, Rule, SimDisk, When};
use novaferry_disk::{self as disk, Backend, Disk, Options, SinkOptions, SourceOptions};
use volume::conformance::{Dice, check_next_data, check_sink, read_all};
use volume::{BufferPool, ByteLen, ByteOffset, ByteRange, Content, Sink, ZeroMode};

const SIZES: [u64; 7] = [1, 511, 4096, 4097, 65_536, (1 << 20) + 513, 3 << 20];

fn check_files(name: &str, disk: &Disk) {
    let folder = harness::folder();
    for (number, size) in SIZES.into_iter().enumerate() {
        let path = folder.path().join(format!("{number}"));
        block_on(async {
            let sink = disk.create_sink(&path, ByteLen(size)).unwrap();
            assert_eq!(sink.content(), Content::Zero);
            for seed in 0..3 {
                println!("{name} size {size} seed {seed} direct {}", sink.is_direct());
                if seed == 0 {
                    check_sink(&sink, seed).await;
                } else {
                    // Not zeros any more: as an existing file.
                    check_existing(disk, &path, seed, &sink).await;
                }
            }
            let bytes = read_all(&sink).await;
            drop(sink);
            assert!(bytes == std::fs::read(&path).unwrap(), "{name} size {size}: others read other bytes");
            let source = disk.open_source(&path, SourceOptions::default()).unwrap();
            assert!(bytes == read_all(&source).await);
            check_next_data(&source, &bytes, 0).await;
        });
    }
}

async fn check_existing(disk: &Disk, path: &std::path::Path, seed: u64, held: &dyn Sink) {
    // A second handle is refused while the first lives, so the suite's "unknown content" arm runs on a copy.
    let copy = path.with_extension(format!("copy{seed}"));
    std::fs::write(&copy, read_all(held).await).unwrap();
    let sink = disk.open_sink(&copy, SinkOptions::default()).unwrap();
    assert_eq!(sink.content(), Content::Unknown);
    check_sink(&sink, seed).await;
}

#[test]
fn uring_files_registered() {
    let Some(disk) = disk_with("uring_files_registered", Backend::Uring, true) else { return };
    check_files("uring", &disk);
    disk.shutdown().unwrap();
}

#[test]
fn uring_files_unregistered() {
    let Some(disk) = disk_with("uring_files_unregistered", Backend::Uring, false) else { return };
    check_files("unregistered", &disk);
    disk.shutdown().unwrap();
}

#[test]
fn plain_files() {
    let disk = disk_with("plain_files", Backend::Plain, true).unwrap();
    check_files("plain", &disk);
    disk.shutdown().unwrap();
}

#[test]
fn simulated() {
    for size in SIZES {
        for seed in 0..4 {
            println!("sim size {size} seed {seed}");
            block_on(check_sink(&SimDisk::new(ByteLen(size), seed), seed));
            let short =
                [Call::Read, Call::Write, Call::Zero].map(|call| Rule::new(call, When::Always, Fault::Short));
            let disk = SimDisk::new(ByteLen(size), seed).with_faults(short);
            block_on(check_sink(&disk, seed));
            assert!(disk.faults_fired() > 0);
            let crashed = disk.crash(CrashModel::default(), &mut Dice::new(seed));
            block_on(check_sink(&crashed, seed));
        }
    }
}

/// One seeded sequence of aligned and unaligned operations through pool buffers.
async fn run_sequence(disk: &Disk, sink: &dyn Sink, seed: u64) -> Vec<u8> {
    let size = sink.geometry().size.0;
    let mut dice = Dice::new(seed);
    for _ in 0..200 {
        let grain = [1, 512, 4096, 65_536][usize::try_from(dice.below(4)).unwrap()];
        let start = dice.below(size) / grain * grain;
        let end = size.min(
            (start + (dice.below(disk::BUFFER_SIZE as u64) / grain + 1) * grain).min(start + (256 << 10)),
        );
        match dice.below(8) {
            0 => sink.zero(ByteRange { start, end }, ZeroMode::Deallocate).await.unwrap(),
            1 => sink.zero(ByteRange { start, end }, ZeroMode::Allocate).await.unwrap(),
            2 => sink.flush().await.unwrap(),
            _ => {
                let mut buffer = disk.pool().acquire().await;
                buffer.set_len(usize::try_from(end - start).unwrap());
                dice.fill(&mut buffer);
                sink.write_at(ByteOffset(start), buffer).await.0.unwrap();
            }
        }
    }
    read_all(sink).await
}

#[test]
fn uring_and_plain_leave_identical_bytes() {
    let test = "uring_and_plain_leave_identical_bytes";
    let disks = [(Backend::Uring, true), (Backend::Uring, false), (Backend::Plain, true)];
    let mut set = Vec::new();
    for (backend, registered) in disks {
        let Some(disk) = disk_with(test, backend, registered) else { return };
        set.push(disk);
    }
    let folder = harness::folder();
    for seed in 0..8 {
        println!("seed {seed}");
        let size = ByteLen((1 << 20) + seed * 1237);
        let mut all = Vec::new();
        for (number, disk) in set.iter().enumerate() {
            let sink = disk.create_sink(&folder.path().join(format!("{seed}-{number}")), size).unwrap();
            all.push(block_on(run_sequence(disk, &sink, seed)));
        }
        let sim = SimDisk::new(size, seed);
        all.push(block_on(run_sequence(&set[0], &sim, seed)));
        assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "seed {seed}: backends differ");
    }
}

#[test]
fn the_default_options_start() {
    let disk = Disk::start(&Options::default()).unwrap();
    assert_ne!(disk.backend(), Backend::Auto);
    assert_eq!(disk.pool().capacity() * disk::BUFFER_SIZE, 64 << 20);
    disk.shutdown().unwrap();
}
