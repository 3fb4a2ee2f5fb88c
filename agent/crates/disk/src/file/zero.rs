//! Making ranges read as zeros: by the file system's or device's own means, otherwise by writing.
//!
//! Devices take `fallocate` too (Linux 4.9): punching unmaps where the device promises zeros afterwards and fails
//! otherwise, which is why plain discards (BLKDISCARD, which promises nothing) are never used. After it comes
//! BLKZEROOUT, by which the kernel writes zeros itself.

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use volume::{Buffer, ByteOffset, ByteRange, Op, VolumeError, ZeroMode};

use super::Body;
use crate::probe::{self, Shape};
use crate::request::{Access, Guard, MAX_OPERATION};

impl Body {
    pub(super) async fn zero(&self, range: ByteRange, mode: ZeroMode) -> Result<(), VolumeError> {
        let len = range.end.checked_sub(range.start);
        let range = self.check(Op::Zero, range.start, len.unwrap_or(u64::MAX))?;
        if range.is_empty() {
            return Ok(());
        }
        // The part that the file system or device can zero by itself. Files take any range.
        let grain = match self.shape {
            Shape::File => 1,
            Shape::Device { sector } => u64::from(sector),
        };
        let inner = ByteRange { start: range.start.next_multiple_of(grain), end: range.end / grain * grain };
        if inner.start >= inner.end || !self.zero_by_kernel(inner, mode).await? {
            return self.write_zeros(range).await;
        }
        self.write_zeros(ByteRange { start: range.start, end: inner.start }).await?;
        self.write_zeros(ByteRange { start: inner.end, end: range.end }).await
    }

    /// False when there is no such way here.
    async fn zero_by_kernel(&self, range: ByteRange, mode: ZeroMode) -> Result<bool, VolumeError> {
        // Partial blocks of a file are zeroed through the page cache, like buffered writes.
        let aligned = self.direct.as_ref().is_none_or(|(_, alignment)| {
            // Pages, because that is the grain of the cache whatever the disk's is.
            let grain = alignment.offset.max(volume::PAGE);
            range.start.is_multiple_of(grain) && range.end.is_multiple_of(grain)
        });
        let guard = if aligned { self.share().await } else { self.exclude().await };
        let (anchor, shape) = (Arc::clone(&self.anchor), self.shape);
        let result = self.disk.block(move || zero_now(&anchor, shape, range, mode, guard)).await;
        result.map_err(|error| self.fail(Op::Zero, Some(range), error))
    }

    async fn write_zeros(&self, range: ByteRange) -> Result<(), VolumeError> {
        let most = MAX_OPERATION as u64;
        let mut at = range.start;
        let mut buffer = Buffer::heap(usize::try_from(range.len().min(most)).unwrap_or(MAX_OPERATION));
        while at < range.end {
            // Up to the next multiple of the piece, so that all but the edges stay aligned.
            let end = range.end.min((at / most + 1) * most);
            buffer.set_len(usize::try_from(end - at).unwrap_or(MAX_OPERATION));
            let result;
            (result, buffer) = self.transfer(Access::Write, ByteOffset(at), buffer).await;
            result?;
            at = end;
        }
        Ok(())
    }
}

fn zero_now(file: &File, shape: Shape, range: ByteRange, mode: ZeroMode, guard: Guard) -> io::Result<bool> {
    // Dropped after the call, whether or not anybody waits for it.
    let _held = guard;
    let flags = match mode {
        ZeroMode::Deallocate => FallocateFlags::PUNCH_HOLE,
        ZeroMode::Allocate => FallocateFlags::ZERO_RANGE,
    };
    let unsupported =
        |error: Errno| matches!(error, Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::NOTTY);
    let result =
        retry(|| rustix::fs::fallocate(file, flags | FallocateFlags::KEEP_SIZE, range.start, range.len()));
    match result {
        Ok(()) => return Ok(true),
        Err(error) if unsupported(error) => {}
        Err(error) => return Err(error.into()),
    }
    if shape == Shape::File {
        return Ok(false);
    }
    match retry(|| probe::zero_out(file, range.start, range.len())) {
        Ok(()) => Ok(true),
        Err(error) if unsupported(error) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn retry(mut call: impl FnMut() -> Result<(), Errno>) -> Result<(), Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}
