//! How large disks are.
//!
//! A raw image says so by its length. What is in a file of another format, `qemu-img` says; looks at all VMs happen
//! every few seconds, so it is asked once, and again only when the file has changed and a while has passed: a guest
//! writes all the time, and its disk seldom grows.

use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Vm;
use super::process::read_capped;
use crate::qemu_img;

/// Between two looks into an image that changes all the time, or that could not be looked into.
const BETWEEN: Duration = Duration::from_secs(600);
/// What one round may take before the rest is left to the next, which is seconds away: a look takes some 20 ms.
const ROUND: Duration = Duration::from_secs(1);
/// Longest look into one image. Storage that takes longer is not kept waiting for.
const PATIENCE: Duration = Duration::from_secs(3);
/// QEMU counts in these, bytes; so does the kernel, whatever the device's own are.
const SECTOR: u64 = 512;
/// Longest `/sys/dev/block/…/size`: a number and a newline.
const MAX_NUMBER: u64 = 32;

/// The image of a disk, as it was when it was looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disk {
    path: PathBuf,
    format: String,
    /// The file, if it is there and may be looked at.
    file: Option<Print>,
    /// What to believe when nothing better is known, bytes; 0 for nothing.
    planned: u64,
}

/// A file, and what its changes show in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Print {
    file: (u64, u64),
    changed: (u64, i64, i64),
    /// Length in bytes, of a raw image the guest's.
    length: u64,
}

impl Disk {
    /// Looks at an image that is named absolutely.
    pub(super) fn look(path: &Path, format: &str) -> Self {
        let file = path.metadata().ok().and_then(|data| Print::of(&data));
        Self { path: path.to_owned(), format: format.to_owned(), file, planned: 0 }
    }

    /// With the size that its definition plans.
    pub(super) fn planned(self, planned: u64) -> Self {
        Self { planned, ..self }
    }
}

impl Print {
    fn of(data: &Metadata) -> Option<Self> {
        let length = match data.file_type() {
            kind if kind.is_file() => data.len(),
            kind if kind.is_block_device() => {
                // Without opening it, which may not be ours to do.
                let [major, minor] = [rustix::fs::major(data.rdev()), rustix::fs::minor(data.rdev())];
                let path = format!("/sys/dev/block/{major}:{minor}/size");
                let text = String::from_utf8(read_capped(Path::new(&path), MAX_NUMBER).ok()?).ok()?;
                text.trim().parse::<u64>().ok()?.checked_mul(SECTOR)?
            }
            _ => return None,
        };
        Some(Self {
            file: (data.dev(), data.ino()),
            changed: (data.len(), data.mtime(), data.mtime_nsec()),
            length,
        })
    }
}

/// What is remembered of an image.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// 0 if it could not be found out.
    size: u64,
    changed: (u64, i64, i64),
    at: Instant,
    /// Asked for in this round.
    used: bool,
}

/// Sizes of images, remembered from one look to the next.
#[derive(Debug, Default)]
pub struct Sizes {
    known: HashMap<(PathBuf, String, (u64, u64)), Known>,
}

impl Sizes {
    /// How large the disks of each VM are together, bytes; 0 when that of one is not known, or not yet. What is not asked
    /// for is forgotten.
    pub async fn of(&mut self, vms: &[Vm]) -> Vec<u64> {
        self.known.values_mut().for_each(|known| known.used = false);
        let began = Instant::now();
        let mut sizes = Vec::with_capacity(vms.len());
        for vm in vms {
            let mut sum = Some(0_u64);
            // All of them, so that none is forgotten.
            for disk in vm.needs.disks.iter().flatten() {
                let size = self.size(disk, began).await;
                sum =
                    sum.zip(Some(size).filter(|size| *size > 0)).map(|(sum, size)| sum.saturating_add(size));
            }
            sizes.push(sum.unwrap_or(0));
        }
        self.known.retain(|_, known| known.used);
        sizes
    }

    async fn size(&mut self, disk: &Disk, began: Instant) -> u64 {
        let Some(print) = disk.file else { return disk.planned };
        if disk.format == "raw" {
            return print.length.checked_next_multiple_of(SECTOR).unwrap_or(0);
        }
        let key = (disk.path.clone(), disk.format.clone(), print.file);
        let known = self.known.get_mut(&key).map(|known| {
            known.used = true;
            *known
        });
        let now = Instant::now();
        let is_good = |known: &Known| {
            let same = known.size > 0 && known.changed == print.changed;
            same || now.duration_since(known.at) < BETWEEN
        };
        let late = now.duration_since(began) >= ROUND;
        let size = match known {
            Some(known) if late || is_good(&known) => known.size,
            None if late => 0,
            _ => {
                let size = qemu_img::virtual_size(&disk.path, &disk.format, PATIENCE).await;
                let size = size.unwrap_or_else(|error| {
                    let path = disk.path.display();
                    tracing::debug!(%path, %error, "it is not known how large a disk is");
                    0
                });
                self.known.insert(key, Known { size, changed: print.changed, at: now, used: true });
                size
            }
        };
        if size > 0 { size } else { disk.planned }
    }
}

#[cfg(test)]
mod tests;
