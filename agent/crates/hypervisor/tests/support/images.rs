//! Disk images to test with, and whether the programs for them are there.

use std::path::{Path, PathBuf};

use volume::conformance::Dice;

/// Whether `program` is in PATH. If not, prints the SKIP line, or fails when the capability is required.
pub(crate) fn have(capability: &str, program: &str, test: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|folder| folder.join(program).is_file()) {
        return true;
    }
    let required = std::env::var("NOVAFERRY_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|name| name == capability),
        "{test} requires {program} (NOVAFERRY_REQUIRE={required})"
    );
    #[expect(clippy::print_stdout, reason = "a skipped test says so by name")]
    {
        println!("SKIP {test}: {program} is not installed");
    }
    false
}

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
