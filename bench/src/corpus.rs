//! The volumes that are copied: files made from a seed, or from this machine's own files.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use reduce::HashKey;
use volume::conformance::Dice;
use volume::{CHUNK, ChunkId, PAGE};

/// Bytes written at once.
const STEP: usize = 1 << 20;
/// Bytes in a chunk as a length in memory.
const CHUNK_LEN: usize = 64 << 10;
const _: () = assert!(CHUNK_LEN as u64 == CHUNK);
/// Where real files come from: there on every Linux, and alike on most.
const REAL_FILES: &str = "/usr";
/// Least length of a real corpus: below, ratios say nothing.
const LEAST_REAL: usize = 1 << 20;

/// What of a volume can be reduced, found by looking at all of its chunks.
#[derive(Clone, Copy, PartialEq, Debug, Default, serde::Serialize)]
pub(crate) struct Mix {
    /// Part of the bytes in chunks that are not all zero (`u` of the model).
    pub(crate) not_zero: f64,
    /// Part of those whose content did not occur before in the volume (`m` of the model).
    pub(crate) unique: f64,
}

fn create(path: &Path, size: u64) -> Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .with_context(|| format!("create {}", path.display()))?;
    file.set_len(size).with_context(|| format!("make {} {size} bytes long", path.display()))?;
    Ok(file)
}

/// Writes pieces one after the other, and makes them durable so that writing back does not disturb what is measured.
fn write(file: &File, pieces: impl Iterator<Item = (u64, Vec<u8>)>) -> Result<()> {
    for (at, piece) in pieces {
        file.write_all_at(&piece, at).context("write a corpus (is the file system full?)")?;
    }
    file.sync_all().context("make a corpus durable")
}

fn pieces(size: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..size).step_by(STEP).map(move |at| (at, usize::try_from(size - at).unwrap_or(STEP).min(STEP)))
}

/// Random bytes: neither compressible nor duplicate.
pub(crate) fn random(path: &Path, size: u64, seed: u64) -> Result<()> {
    let mut dice = Dice::new(seed);
    write(
        &create(path, size)?,
        pieces(size).map(|(at, len)| {
            let mut piece = vec![0; len];
            dice.fill(&mut piece);
            (at, piece)
        }),
    )
}

/// Every other chunk is zero; of the rest, the second half of the volume repeats the first.
pub(crate) fn zeros_and_duplicates(path: &Path, size: u64, seed: u64) -> Result<()> {
    let file = create(path, size)?;
    let half = (size / CHUNK).div_ceil(2) * CHUNK;
    let fill = |at: u64, len: usize| {
        let mut piece = vec![0; len];
        for (nth, chunk) in piece.chunks_mut(CHUNK_LEN).enumerate() {
            let number = (at / CHUNK) + nth as u64;
            // Both halves count from their own beginning, so that an odd number of chunks keeps them alike.
            let within = number % (half / CHUNK);
            if within.is_multiple_of(2) {
                Dice::new(seed ^ (within << 20)).fill(chunk);
            }
        }
        (at, piece)
    };
    write(&file, pieces(size).map(|(at, len)| fill(at, len)))
}

/// A hole of `size` bytes with `data` random bytes in it, in extents at random places.
pub(crate) fn sparse(path: &Path, size: u64, data: u64, seed: u64) -> Result<()> {
    let mut dice = Dice::new(seed);
    let file = create(path, size)?;
    let step = STEP as u64;
    let count = (data / step).max(1);
    // One place in each of `count` equal parts of the volume.
    let part = size / count / step;
    write(
        &file,
        (0..count).map(|nth| {
            let mut piece = vec![0; STEP];
            dice.fill(&mut piece);
            ((nth * part + dice.below(part.max(1))) * step, piece)
        }),
    )
}

/// A tar-like image of the machine's own files: up to `size` bytes of them, each from a page's border on. Returns its
/// length.
pub(crate) fn real(path: &Path, size: u64) -> Result<u64> {
    let content = real_bytes(usize::try_from(size).context("a corpus of real files must fit in memory")?)?;
    let file = create(path, content.len() as u64)?;
    write(&file, content.chunks(STEP).enumerate().map(|(nth, piece)| ((nth * STEP) as u64, piece.to_vec())))?;
    Ok(content.len() as u64)
}

/// Up to `limit` bytes of the machine's own files, in the order of their paths.
pub(crate) fn real_bytes(limit: usize) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    let mut folders = vec![PathBuf::from(REAL_FILES)];
    let page = usize::try_from(PAGE).unwrap_or(4096);
    while let Some(folder) = folders.pop() {
        // What cannot be read is left out: the corpus is whatever this user may see.
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        let mut entries: Vec<_> = entries.flatten().collect();
        entries.sort_by_key(fs::DirEntry::path);
        for entry in &entries {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file()
                && let Ok(file) = File::open(entry.path())
            {
                content.extend_from_slice(entry.path().as_os_str().as_encoded_bytes());
                content.resize(content.len().next_multiple_of(page), 0);
                let room = limit.saturating_sub(content.len()) as u64;
                // A file that fails half-way is in the corpus half.
                let _read = file.take(room).read_to_end(&mut content);
                content.resize(content.len().next_multiple_of(page), 0);
                if content.len() >= limit {
                    content.truncate(limit);
                    return Ok(content);
                }
            }
        }
    }
    anyhow::ensure!(content.len() >= LEAST_REAL.min(limit), "find files of at least 1 MiB in {REAL_FILES}");
    Ok(content)
}

/// Changes `count` different pages of a file to random bytes. Returns how many distinct pages were changed.
pub(crate) fn change_pages(path: &Path, count: u64, seed: u64) -> Result<u64> {
    let file = File::options().write(true).open(path).with_context(|| format!("open {}", path.display()))?;
    let pages = file.metadata()?.len() / PAGE;
    let mut dice = Dice::new(seed);
    let mut changed = HashSet::new();
    while (changed.len() as u64) < count.min(pages) {
        changed.insert(dice.below(pages));
    }
    let mut places: Vec<u64> = changed.into_iter().collect();
    places.sort_unstable();
    let count = places.len() as u64;
    write(
        &file,
        places.into_iter().map(|page| {
            let mut piece = vec![0; usize::try_from(PAGE).unwrap_or(4096)];
            dice.fill(&mut piece);
            (page * PAGE, piece)
        }),
    )?;
    Ok(count)
}

/// Looks at every chunk of a file without holes.
pub(crate) fn mix(path: &Path) -> Result<Mix> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let size = file.metadata()?.len();
    let key = HashKey::from_bytes([0; 32]);
    let mut seen = HashSet::new();
    let (mut chunks, mut not_zero) = (0_u64, 0_u64);
    let mut block = vec![0; STEP];
    for (at, len) in pieces(size) {
        file.read_exact_at(&mut block[..len], at).with_context(|| format!("read {}", path.display()))?;
        for chunk in block[..len].chunks(CHUNK_LEN) {
            chunks += 1;
            let id = reduce::chunk_id(&key, chunk);
            if id != ChunkId::ZERO {
                not_zero += 1;
                seen.insert(id);
            }
        }
    }
    let part = |count: u64, of: u64| if of == 0 { 0.0 } else { count as f64 / of as f64 };
    Ok(Mix { not_zero: part(not_zero, chunks), unique: part(seen.len() as u64, not_zero) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corpora_are_what_they_say_and_the_same_for_the_same_seed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let size = (4 << 20) + 12_345;
        random(&path("a"), size, 7).unwrap();
        random(&path("b"), size, 7).unwrap();
        crate::compare::equal(&path("a"), &path("b")).unwrap();
        random(&path("c"), size, 8).unwrap();
        assert!(crate::compare::equal(&path("a"), &path("c")).is_err());
        assert_eq!(mix(&path("a")).unwrap(), Mix { not_zero: 1.0, unique: 1.0 });

        zeros_and_duplicates(&path("z"), 8 << 20, 7).unwrap();
        assert_eq!(mix(&path("z")).unwrap(), Mix { not_zero: 0.5, unique: 0.5 });

        assert_eq!(change_pages(&path("b"), 10, 3).unwrap(), 10);
        let differ = |nth: u64| {
            let page = |name: &str| {
                let mut bytes = vec![0; 4096];
                File::open(path(name)).unwrap().read_exact_at(&mut bytes, nth * PAGE).unwrap();
                bytes
            };
            page("a") != page("b")
        };
        assert_eq!((0..size / PAGE).filter(|nth| differ(*nth)).count(), 10);

        sparse(&path("s"), 1 << 40, 3 << 20, 7).unwrap();
        let metadata = fs::metadata(path("s")).unwrap();
        assert_eq!(metadata.len(), 1 << 40);
        let allocated = std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
        assert!((3 << 20..4 << 20).contains(&allocated), "{allocated}");
    }

    #[test]
    fn real_files_fill_an_image() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        assert_eq!(real(&path, 2 << 20).unwrap(), 2 << 20);
        assert!(mix(&path).unwrap().not_zero > 0.5);
    }
}
