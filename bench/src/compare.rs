//! Compares files byte by byte, skipping what is a hole in both.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Bytes that are read at once.
const BLOCK: usize = 1 << 20;

/// Fails, with the place of the first difference, unless both files hold the same bytes.
pub(crate) fn equal(left: &Path, right: &Path) -> Result<()> {
    let open = |path: &Path| File::open(path).with_context(|| format!("open {}", path.display()));
    let (a, b) = (open(left)?, open(right)?);
    let (size, other) = (a.metadata()?.len(), b.metadata()?.len());
    if size != other {
        bail!("{} has {size} bytes and {} has {other}", left.display(), right.display());
    }
    let (mut block_a, mut block_b) = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut at = 0;
    loop {
        at = match (next_data(&a, at)?, next_data(&b, at)?) {
            (None, None) => return Ok(()),
            (Some(at), None) | (None, Some(at)) => at,
            (Some(a), Some(b)) => a.min(b),
        };
        let len = usize::try_from(size - at).unwrap_or(BLOCK).min(BLOCK);
        a.read_exact_at(&mut block_a[..len], at).with_context(|| format!("read {}", left.display()))?;
        b.read_exact_at(&mut block_b[..len], at).with_context(|| format!("read {}", right.display()))?;
        if block_a[..len] != block_b[..len] {
            let nth = block_a.iter().zip(&block_b).position(|(a, b)| a != b).unwrap_or(0);
            bail!("{} and {} differ at byte {}", left.display(), right.display(), at + nth as u64);
        }
        at += len as u64;
    }
}

/// Where data begins at or after `at`; none when only a hole follows.
fn next_data(file: &File, at: u64) -> Result<Option<u64>> {
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(place) => Ok(Some(place)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error).context("look for data"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_and_unequal_files() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, size: u64, place: u64, content: &[u8]| {
            let path = folder.path().join(name);
            let file = File::create(&path).unwrap();
            file.set_len(size).unwrap();
            file.write_all_at(content, place).unwrap();
            path
        };
        let one = make("one", 8 << 20, 5 << 20, b"x");
        equal(&one, &make("same", 8 << 20, 5 << 20, b"x")).unwrap();
        equal(&one, &make("zeros written", 8 << 20, 5 << 20, b"x\0\0\0")).unwrap();
        let error = equal(&one, &make("other", 8 << 20, 5 << 20, b"y")).unwrap_err().to_string();
        assert!(error.ends_with("differ at byte 5242880"), "{error}");
        assert!(equal(&one, &make("elsewhere", 8 << 20, 7 << 20, b"x")).is_err());
        assert!(equal(&one, &make("shorter", 7 << 20, 5 << 20, b"x")).is_err());
    }
}
