//! Disk images to test with.

use std::path::{Path, PathBuf};

use volume::conformance::Dice;

/// `size` bytes of which about half are zero, in runs of whole 64 KiB.
pub(crate) fn pattern(size: usize, seed: u64) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    let mut bytes = vec![0; size];
    for run in bytes.chunks_mut(64 << 10) {
        if dice.below(2) == 0 {
            dice.fill(run);
        }
    }
    bytes
}

/// A raw file with holes where `bytes` has whole zero runs.
pub(crate) fn raw(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    use std::os::unix::fs::FileExt;
    let path = folder.join(name);
    let file = std::fs::File::create(&path).expect("create raw file");
    file.set_len(bytes.len() as u64).expect("size raw file");
    for (at, run) in bytes.chunks(64 << 10).enumerate() {
        if run.iter().any(|b| *b != 0) {
            file.write_all_at(run, (at * (64 << 10)) as u64).expect("write raw file");
        }
    }
    path
}
