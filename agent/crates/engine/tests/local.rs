//! Copies between two files of one host: the whole engine, both halves, over the in-memory tunnel.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine::EngineError;
use engine::ends::LocalVolume;
use engine::process::{Process, SessionLimits};
use engine::progress::Progress;
use engine::transfer::{Context, CopyOptions, LocalTarget, Summary, copy_locally};
use novaferry_engine as engine;
use tokio_util::sync::CancellationToken;
use volume::conformance::Dice;
use wire::{FailCode, Mode, VolumeFormat};

struct Bench {
    folder: tempfile::TempDir,
    process: Process,
}

impl Bench {
    fn new() -> Self {
        let process = Process::start(SessionLimits::default(), disk::Backend::Auto).unwrap();
        Self { folder: tempfile::tempdir().unwrap(), process }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn context(&self, mode: Mode) -> Context {
        Context {
            process: self.process.clone(),
            options: CopyOptions {
                mode,
                format: VolumeFormat::Raw,
                level: reduce::Mode::Auto,
                readback: false,
                drop_snapshots: false,
                state: self.path("state"),
                patience: Duration::ZERO,
            },
            progress: Arc::new(Progress::default()),
            stop: CancellationToken::new(),
            cancel: CancellationToken::new(),
            signer: None,
        }
    }

    async fn copy(&self, mode: Mode) -> Result<Summary, EngineError> {
        let raw = |name| LocalVolume::Path { path: self.path(name), format: VolumeFormat::Raw };
        let target =
            LocalTarget { volume: raw("target"), owner: "local".to_owned(), receiver: "local".to_owned() };
        copy_locally(&self.context(mode), &raw("source"), &target).await
    }

    fn assert_equal(&self) {
        assert!(std::fs::read(self.path("source")).unwrap() == std::fs::read(self.path("target")).unwrap());
    }
}

/// A file with data, holes, written zeros, duplicates and a tail that is no multiple of anything.
fn mixed(path: &Path, size: u64, seed: u64) {
    let mut dice = Dice::new(seed);
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    let mut block = vec![0; 300_000];
    let mut at = 0;
    while at + 300_000 < size {
        match dice.below(4) {
            0 => {}
            1 => file.write_all_at(&vec![0; 300_000], at).unwrap(),
            2 => file.write_all_at(&block, at).unwrap(),
            _ => {
                dice.fill(&mut block);
                file.write_all_at(&block, at).unwrap();
            }
        }
        at += 65_536 * (1 + dice.below(6));
    }
    file.write_all_at(b"the end", size - 7).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_copied_and_sealed() {
    for (seed, size) in [(1, 1), (2, 4097), (3, 1 << 20), (4, (5 << 20) + 12_345), (5, 40 << 20)] {
        let bench = Bench::new();
        if size < 300_000 {
            std::fs::write(bench.path("source"), vec![7; usize::try_from(size).unwrap()]).unwrap();
        } else {
            mixed(&bench.path("source"), size, seed);
        }
        let summary = bench.copy(Mode::Create).await.unwrap();
        bench.assert_equal();
        assert_eq!(summary.receipt.body.size, size);
        assert_eq!(summary.counters.settled, size);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_file_is_copied() {
    let bench = Bench::new();
    File::create(bench.path("source")).unwrap();
    bench.copy(Mode::Create).await.unwrap();
    bench.assert_equal();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sparse_stays_sparse() {
    let bench = Bench::new();
    let file = File::create(bench.path("source")).unwrap();
    file.set_len(1 << 40).unwrap();
    file.write_all_at(&[1; 5000], 123_456_789).unwrap();
    file.write_all_at(&[2; 5000], (1 << 40) - 5000).unwrap();
    drop(file);
    bench.copy(Mode::Create).await.unwrap();
    let target = std::fs::metadata(bench.path("target")).unwrap();
    assert_eq!(target.len(), 1 << 40);
    assert!(target.blocks() * 512 < 1 << 20, "{} blocks", target.blocks());
    let file = File::open(bench.path("target")).unwrap();
    let mut bytes = [0; 5000];
    file.read_exact_at(&mut bytes, (1 << 40) - 5000).unwrap();
    assert_eq!(bytes, [2; 5000]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resync_sends_only_changed_pages() {
    for mode in [Mode::ResyncTrusted, Mode::ResyncFull] {
        let bench = Bench::new();
        mixed(&bench.path("source"), 32 << 20, 9);
        bench.copy(Mode::Create).await.unwrap();
        let again = bench.copy(mode).await.unwrap();
        assert_eq!(again.counters.payload, 0, "nothing changed, nothing is sent ({mode:?})");
        let file = File::options().write(true).open(bench.path("source")).unwrap();
        for page in [3, 700, 701, 4000] {
            file.write_all_at(&[0xee; 4096], page * 4096).unwrap();
        }
        drop(file);
        let changed = bench.copy(mode).await.unwrap();
        bench.assert_equal();
        // Where the old chunk was zero it travels whole.
        assert!(changed.counters.payload <= 4 * 65_536, "{} bytes sent ({mode:?})", changed.counters.payload);
        assert!(changed.counters.payload >= 4096);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_exists_is_not_overwritten() {
    let bench = Bench::new();
    std::fs::write(bench.path("source"), vec![1; 100_000]).unwrap();
    std::fs::write(bench.path("target"), b"precious").unwrap();
    let error = bench.copy(Mode::Create).await.unwrap_err();
    assert_eq!(error.fail_code(), FailCode::Exists, "{error}");
    let error = bench.copy(Mode::ResyncTrusted).await.unwrap_err();
    assert_eq!(error.fail_code(), FailCode::NotTrusted, "{error}");
    assert_eq!(std::fs::read(bench.path("target")).unwrap(), b"precious");
    bench.copy(Mode::ResyncFull).await.unwrap();
    bench.assert_equal();
    let error = bench.copy(Mode::Create).await.unwrap_err();
    assert_eq!(error.fail_code(), FailCode::Exists, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_was_changed_is_not_trusted() {
    let bench = Bench::new();
    mixed(&bench.path("source"), 3 << 20, 4);
    bench.copy(Mode::Create).await.unwrap();
    File::options().write(true).open(bench.path("target")).unwrap().write_all_at(b"x", 5).unwrap();
    let error = bench.copy(Mode::ResyncTrusted).await.unwrap_err();
    assert_eq!(error.fail_code(), FailCode::NotTrusted, "{error}");
    bench.copy(Mode::ResyncFull).await.unwrap();
    bench.assert_equal();
}
