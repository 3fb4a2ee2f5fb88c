//! Disk images: to make one, and to check from outside what the guest left on it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use crate::error::{Error, Kind};
use crate::init::slots::{BLOCK, Block, Disk, Verifier};

/// How an image is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// Byte for byte, with holes.
    Raw,
    /// As NovaCron has them.
    #[default]
    Qcow2,
}

impl Format {
    /// QEMU's name of it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// What the guest left on a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Left {
    /// No guest has used it.
    Nothing,
    /// Exactly what this many writes make, and no other bytes in the slots.
    Writes(u64),
}

/// What a disk that the guest only reads begins with: 1 MiB, as if a guest had written it.
pub(crate) fn seed() -> Vec<u8> {
    const SLOTS: u64 = 255;
    let mut bytes = vec![0; 1 << 20];
    if let Some(disk) = Disk::new(0x5eed, SLOTS) {
        let mut put = |block: u64, content: &Block| {
            let at = usize::try_from(block).unwrap_or(usize::MAX) * BLOCK;
            bytes[at..at + BLOCK].copy_from_slice(&content.0);
        };
        put(0, &disk.header());
        (1..=2 * SLOTS).for_each(|sequence| put(disk.slot_of(sequence), &disk.block(sequence)));
    }
    bytes
}

/// Makes an image of `size` bytes that begins with `first` and is zero from there on.
///
/// # Errors
/// If it cannot be written, or `qemu-img` (for qcow2) fails.
pub fn create(path: &Path, format: Format, size: u64, first: &[u8]) -> Result<(), Error> {
    let failed = |error: io::Error| {
        Error::new(Kind::Files, format!("make disk image {}", path.display())).caused_by(error)
    };
    let raw = match format {
        Format::Raw => path.to_path_buf(),
        Format::Qcow2 => path.with_extension("raw.tmp"),
    };
    let file = File::create(&raw).map_err(failed)?;
    file.set_len(size).map_err(failed)?;
    file.write_all_at(first, 0).map_err(failed)?;
    drop(file);
    if format == Format::Qcow2 {
        convert(&raw, Format::Raw, path, format)?;
        fs::remove_file(&raw).map_err(failed)?;
    }
    Ok(())
}

/// Copies an image into another format with `qemu-img`. Neither may be in use.
///
/// # Errors
/// If `qemu-img` cannot be started or fails.
pub fn convert(from: &Path, from_format: Format, to: &Path, to_format: Format) -> Result<(), Error> {
    let failed = || Error::new(Kind::Files, format!("convert {} to {}", from.display(), to.display()));
    let output = Command::new("qemu-img")
        .args(["convert", "-f", from_format.name(), "-O", to_format.name()])
        .args([from, to])
        .output()
        .map_err(|error| failed().caused_by(error))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failed().caused_by(String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}

/// Checks a disk that no guest uses at the moment.
///
/// # Errors
/// If the image cannot be read, or the slots are not what some number of writes makes.
pub fn check(path: &Path, format: Format) -> Result<Left, Error> {
    if format == Format::Raw {
        return check_raw(path);
    }
    let raw = path.with_extension("check.tmp");
    convert(path, format, &raw, Format::Raw)?;
    let left = check_raw(&raw);
    let removed = fs::remove_file(&raw);
    let left = left?;
    removed.map_err(|error| Error::new(Kind::Files, format!("remove {}", raw.display())).caused_by(error))?;
    Ok(left)
}

fn check_raw(path: &Path) -> Result<Left, Error> {
    let failed = || Error::new(Kind::Files, format!("check disk image {}", path.display()));
    let mut file =
        io::BufReader::with_capacity(1 << 20, File::open(path).map_err(|e| failed().caused_by(e))?);
    let mut block = Block::ZERO;
    file.read_exact(&mut block.0).map_err(|error| failed().caused_by(error))?;
    let Some(disk) = Disk::from_header(&block) else { return Ok(Left::Nothing) };
    let mut verifier = Verifier::new(disk);
    for _ in 0..disk.slots() {
        file.read_exact(&mut block.0).map_err(|error| failed().caused_by(error))?;
        verifier.add(&block);
    }
    let table = verifier.finish().map_err(|wrong| {
        let first: Vec<String> = wrong.iter().take(5).map(ToString::to_string).collect();
        failed().caused_by(format!("{} slots are wrong: {}", wrong.len(), first.join("; ")))
    })?;
    Ok(Left::Writes(table.last()))
}

#[cfg(test)]
mod tests;
