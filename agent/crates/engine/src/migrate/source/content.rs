//! What is on a disk: some of its blocks, read from its image and compressed as the mirror compresses them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use reduce::{Compressor, Outcome};
use rustix::fs::SeekFrom;

/// Bytes of a block: about what the mirror writes at once.
const BLOCK: usize = 256 << 10;
/// Blocks that are looked at, at most.
const BLOCKS: u64 = 128;
/// Time for them.
const TIME: Duration = Duration::from_millis(150);
/// Stretches of data whose place is looked up, at most.
const MAX_EXTENTS: usize = 4096;
/// zstd's level, as the mirror's.
const LEVEL: i32 = 1;
/// What no permille is above.
const WHOLE: u64 = 1000;

/// What reduction leaves of an image's data, in thousandths; none when it cannot be read, or has no data. Blocks.
pub(super) fn look(image: &Path) -> Option<u64> {
    match sample(image) {
        Ok(permille) => permille,
        Err(error) => {
            tracing::debug!(image = %image.display(), error, "a disk's content cannot be sampled");
            None
        }
    }
}

fn sample(image: &Path) -> Result<Option<u64>, String> {
    let file = File::open(image).map_err(|error| error.to_string())?;
    let extents = extents(&file)?;
    let all: u64 = extents.iter().map(|(from, to)| to - from).sum();
    if all == 0 {
        return Ok(None);
    }
    let block = BLOCK as u64;
    let count = (all / block).clamp(1, BLOCKS);
    let mut compressor = Compressor::new().map_err(|error| error.to_string())?;
    let (mut plain, mut frame) = (vec![0; BLOCK], vec![0; BLOCK]);
    let (mut read, mut left) = (0_u64, 0_u64);
    let began = Instant::now();
    for nth in 0..count {
        let (at, room) = place(&extents, all / count * nth);
        let len = usize::try_from(room).unwrap_or(BLOCK).min(BLOCK);
        let got = file.read_at(&mut plain[..len], at).map_err(|error| error.to_string())?;
        let plain = &plain[..got];
        read += got as u64;
        if !reduce::is_zero(plain) {
            let outcome = compressor.compress(LEVEL, &[plain], &mut frame[..got]);
            left += match outcome.map_err(|error| error.to_string())? {
                Outcome::Compressed(len) => len as u64,
                Outcome::DoesNotPay => got as u64,
            };
        }
        if began.elapsed() > TIME {
            break;
        }
    }
    Ok((read > 0).then(|| (left * WHOLE / read).min(WHOLE)))
}

/// Where a file has data, from and to.
fn extents(file: &File) -> Result<Vec<(u64, u64)>, String> {
    let mut found = Vec::new();
    let mut at = 0;
    while found.len() < MAX_EXTENTS {
        let from = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(from) => from,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.to_string()),
        };
        let to = rustix::fs::seek(file, SeekFrom::Hole(from)).map_err(|error| error.to_string())?;
        if to <= from {
            break;
        }
        found.push((from, to));
        at = to;
    }
    Ok(found)
}

/// The place of the `nth` byte of data, and how much data follows it there.
fn place(extents: &[(u64, u64)], mut nth: u64) -> (u64, u64) {
    for (from, to) in extents {
        if nth < to - from {
            return (from + nth, to - from - nth);
        }
        nth -= to - from;
    }
    (0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_do_not_count_and_content_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let file = File::create(&path).unwrap();
        file.set_len(64 << 20).unwrap();
        assert_eq!(look(&path), None, "nothing but a hole");
        let mut random = vec![0; 4 << 20];
        volume::conformance::Dice::new(3).fill(&mut random);
        file.write_all_at(&random, 8 << 20).unwrap();
        assert_eq!(look(&path), Some(WHOLE));
        // As much again that shrinks to nothing.
        file.write_all_at(&vec![b'x'; 4 << 20], 32 << 20).unwrap();
        let found = look(&path).unwrap();
        assert!((450..=550).contains(&found), "{found}");
        assert_eq!(look(&folder.path().join("none")), None);
    }
}
