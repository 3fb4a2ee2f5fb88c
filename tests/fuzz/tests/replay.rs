//! Replays the corpus through every target, and variations of it that a fixed seed makes. Needs no fuzzer.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use novaferry_fuzz::{TARGETS, seeds};
use volume::conformance::Dice;

/// Variations of each corpus file. Enough to leave the valid range in every field of the smallest frames.
const VARIATIONS: u64 = 2000;

fn folder(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(below)
}

/// The files of a folder, in order, so that a run is the same everywhere.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("list {}: {error}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    files
}

fn names(folder: &Path) -> BTreeSet<String> {
    files(folder).iter().map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

#[test]
fn every_target_has_a_corpus_and_a_binary() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(names(&folder("corpus")), targets, "folders under corpus");
    assert_eq!(names(&folder("targets/fuzz_targets")), targets, "files under targets/fuzz_targets");
    let manifest = fs::read_to_string(folder("targets/Cargo.toml")).expect("targets/Cargo.toml can be read");
    for target in TARGETS {
        assert!(!files(&folder("corpus").join(target.name)).is_empty(), "corpus/{} is empty", target.name);
        let bin = format!("[[bin]]\nname = \"{}\"\n", target.name);
        assert!(manifest.contains(&bin), "{} has no [[bin]] in targets/Cargo.toml", target.name);
    }
}

#[test]
fn every_golden_frame_and_record_is_a_seed() {
    for seed in seeds::golden().expect("the golden frames can be read").into_iter().chain(seeds::made()) {
        let path = folder("corpus").join(seed.target).join(&seed.name);
        let stored = fs::read(&path).unwrap_or_default();
        assert!(
            stored == seed.bytes,
            "{} is missing or old: run `cargo run -p novaferry-fuzz --example seeds`",
            path.display()
        );
    }
}

#[test]
fn the_corpus_passes() {
    for target in TARGETS {
        for file in files(&folder("corpus").join(target.name)) {
            // Shown only when the target panics.
            println!("{} on {}", target.name, file.display());
            (target.run)(&fs::read(&file).expect("a corpus file can be read"));
        }
    }
}

/// One change: bits, bytes, values at the edges, cuts and repetitions.
fn vary(bytes: &mut Vec<u8>, dice: &mut Dice) {
    let len = bytes.len() as u64;
    let at = usize::try_from(dice.below(len.max(1))).expect("corpus files are small");
    let byte = dice.roll().to_le_bytes()[0];
    match dice.below(6) {
        0 if len > 0 => bytes[at] ^= 1 << (byte % 8),
        1 if len > 0 => bytes[at] = byte,
        2 if len > 0 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][usize::from(byte) % 5],
        3 => bytes.truncate(at),
        4 => bytes.insert(at, byte),
        _ => bytes.extend_from_within(at..),
    }
}

#[test]
fn variations_of_the_corpus_pass() {
    for target in TARGETS {
        for file in files(&folder("corpus").join(target.name)) {
            let original = fs::read(&file).expect("a corpus file can be read");
            for seed in 0..VARIATIONS {
                let mut dice = Dice::new(seed);
                let mut bytes = original.clone();
                for _ in 0..=dice.below(4) {
                    vary(&mut bytes, &mut dice);
                }
                println!("{} on {} varied with seed {seed}", target.name, file.display());
                (target.run)(&bytes);
            }
        }
    }
}
