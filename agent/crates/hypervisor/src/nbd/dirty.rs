//! [`DirtyMap`]: which grains of a volume must be copied again.
//!
//! A warm round reads a bitmap that QEMU keeps, and reads what it marks. Ranges as QEMU tells them can be many; the map
//! costs a bit a grain whatever the guest did, and rounds can be joined: what a failed round did not send is marked in
//! the next one. It errs towards dirty only: a range is marked with every grain that it touches.

use volume::{ByteLen, ByteOffset, ByteRange, CHUNK, MAX_VOLUME, PAGE, VolumeError};

use super::volume::NbdVolume;
use crate::error::Error;

/// Grains of one map at most: 32 MiB of bits, which is 16 TiB in chunks of 64 KiB.
pub const MAX_GRAINS: u64 = 1 << 28;

/// Grains of a volume, dirty or not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirtyMap {
    size: u64,
    grain: u64,
    /// Bit `n % 64` of word `n / 64` is grain `n`. Bits past the last grain are 0.
    words: Vec<u64>,
}

impl DirtyMap {
    /// A clean map of a volume of `size` bytes in grains of `grain` bytes, or the next power of two that keeps it
    /// below [`MAX_GRAINS`].
    ///
    /// # Errors
    /// `Invalid` when the grain is no power of two of at least [`PAGE`], or the size exceeds [`MAX_VOLUME`].
    pub fn new(size: ByteLen, grain: u64) -> Result<Self, Error> {
        let size = size.0;
        if !grain.is_power_of_two() || !(PAGE..=MAX_VOLUME).contains(&grain) || size > MAX_VOLUME {
            let what = format!("{size} bytes in grains of {grain} bytes cannot be kept in a dirty map");
            return Err(Error::Invalid { what });
        }
        let grain = grain.max(size.div_ceil(MAX_GRAINS).next_power_of_two());
        let words = index(size.div_ceil(grain).div_ceil(64));
        Ok(Self { size, grain, words: vec![0; words] })
    }

    /// What QEMU's dirty bitmap `bitmap` marks in the export behind `volume`, in grains of [`CHUNK`].
    ///
    /// # Errors
    /// Those of [`NbdVolume::next_dirty`].
    pub async fn of_bitmap(volume: &NbdVolume, bitmap: &str) -> Result<Self, VolumeError> {
        let size = volume.client().size();
        let fail = |error: Error| error.in_volume(::volume::Op::FindData, volume.client().target(), None);
        let mut map = Self::new(ByteLen(size), CHUNK).map_err(fail)?;
        let mut at = 0;
        while at < size {
            let Some(range) = volume.next_dirty(bitmap, ByteOffset(at)).await? else { break };
            map.mark(range);
            at = range.end;
        }
        Ok(map)
    }

    /// Length of the volume in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of a grain; the volume's last one may be shorter.
    #[must_use]
    pub fn grain(&self) -> u64 {
        self.grain
    }

    /// Marks every grain that `range` touches. What lies past the end is left out.
    pub fn mark(&mut self, range: ByteRange) {
        let end = range.end.min(self.size);
        if range.start >= end {
            return;
        }
        let mut at = range.start / self.grain;
        let end = end.div_ceil(self.grain);
        while at < end {
            let bit = at % 64;
            let count = (64 - bit).min(end - at);
            self.words[index(at / 64)] |= (u64::MAX >> (64 - count)) << bit;
            at += count;
        }
    }

    /// Marks what `other` marks, whatever its grain. Grains past this volume's end are left out.
    pub fn join(&mut self, other: &Self) {
        for range in other.ranges() {
            self.mark(range);
        }
    }

    /// Whether nothing is dirty.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Whether the grain of byte `at` is dirty.
    #[must_use]
    pub fn is_dirty(&self, at: ByteOffset) -> bool {
        let grain = at.0 / self.grain;
        at.0 < self.size && self.words[index(grain / 64)] >> (grain % 64) & 1 != 0
    }

    /// Bytes in dirty grains.
    #[must_use]
    pub fn dirty_bytes(&self) -> u64 {
        let grains: u64 = self.words.iter().map(|word| u64::from(word.count_ones())).sum();
        let last = self.size.checked_sub(1).map(ByteOffset).filter(|last| self.is_dirty(*last));
        let excess = last.map_or(0, |_| self.size.next_multiple_of(self.grain) - self.size);
        grains * self.grain - excess
    }

    /// The first run of dirty grains that has a byte at or after `at`, from its first such byte on.
    #[must_use]
    pub fn next_dirty(&self, at: ByteOffset) -> Option<ByteRange> {
        if at.0 >= self.size {
            return None;
        }
        let first = self.find(at.0 / self.grain, 0)?;
        // Without a clean grain it goes on to the end.
        let end = self.find(first, u64::MAX).map_or(self.size, |clean| (clean * self.grain).min(self.size));
        Some(ByteRange { start: (first * self.grain).max(at.0), end })
    }

    /// All runs of dirty grains, in order, none touching the next.
    pub fn ranges(&self) -> impl Iterator<Item = ByteRange> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let range = self.next_dirty(ByteOffset(at))?;
            at = range.end;
            Some(range)
        })
    }

    /// The first grain at or after `from` whose bit is set in the words once flipped by `flip`. With `flip` all ones,
    /// a grain past the last may be found.
    fn find(&self, from: u64, flip: u64) -> Option<u64> {
        let mut at = index(from / 64);
        let mut word = (self.words.get(at)? ^ flip) & (u64::MAX << (from % 64));
        while word == 0 {
            at += 1;
            word = self.words.get(at)? ^ flip;
        }
        Some(at as u64 * 64 + u64::from(word.trailing_zeros()))
    }
}

/// An index into the words. There are at most [`MAX_GRAINS`] / 64.
fn index(n: u64) -> usize {
    usize::try_from(n).expect("a dirty map's indices are capped far below the address space")
}

#[cfg(test)]
mod tests;
