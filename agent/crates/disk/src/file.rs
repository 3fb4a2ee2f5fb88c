//! [`FileSource`] and [`FileSink`]: a regular file or block device as a volume.
//!
//! A volume has three open file descriptions of one inode: the *anchor* (locks, a device's exclusive claim, `fstat`, `fallocate`), the *direct*
//! lane (`O_DIRECT`, absent where that is not possible) and the *buffered* lane. An operation whose place and memory
//! are aligned goes direct up to its last whole block; the rest, and everything unaligned, goes buffered.
//!
//! # Coherence of the two
//! The kernel keeps direct and buffered I/O coherent only while they do not overlap in time: a direct read or write
//! first writes back dirty cached pages of its range, and a direct write drops cached pages of its range afterwards.
//! A buffered write of part of a page *beside* a direct write in flight to the same page or large folio could cache
//! the old bytes and write them back over the new ones. So buffered writes (rare: the end of an odd-sized volume)
//! take the volume's lock exclusively and direct writes share it; the lock is held until the kernel has answered,
//! not merely until the caller's future is gone. Reads need no lock.
//!
//! One `fdatasync` covers both lanes: it works on the inode, and the kernel reports a write-back error to every
//! description that was open when it happened (`errseq_t`, Linux 4.13).

mod span;
mod zero;

use std::fmt;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use tokio::sync::RwLock;
use volume::{
    BufResult, Buffer, ByteLen, ByteOffset, ByteRange, Content, Fingerprint, Geometry, Io, Op, Sink, Source,
    VolumeError, ZeroMode,
};

use crate::context::Disk;
use crate::failure;
use crate::probe::{self, Alignment, Shape};
use crate::request::{Access, Guard, Lane, Transfer};

/// What both sides share.
pub(crate) struct Body {
    pub(crate) disk: Disk,
    pub(crate) name: String,
    pub(crate) anchor: Arc<File>,
    pub(crate) direct: Option<(Arc<Lane>, Alignment)>,
    pub(crate) buffered: Arc<Lane>,
    /// Set when direct I/O turned out not to work although it was promised.
    pub(crate) direct_refused: AtomicBool,
    pub(crate) shape: Shape,
    pub(crate) geometry: Geometry,
    pub(crate) order: Arc<RwLock<()>>,
    pub(crate) poison: Arc<AtomicBool>,
}

impl Body {
    fn check(&self, op: Op, at: u64, len: u64) -> Result<ByteRange, VolumeError> {
        self.check_poison(op)?;
        let size = self.geometry.size.0;
        match ByteRange::new(ByteOffset(at), ByteLen(len)) {
            Some(range) if range.end <= size => Ok(range),
            _ => Err(failure::out_of_range(op, &self.name, at, len, size)),
        }
    }

    fn check_poison(&self, op: Op) -> Result<(), VolumeError> {
        if self.poison.load(Ordering::SeqCst) { Err(failure::poisoned(op, &self.name)) } else { Ok(()) }
    }

    fn fail(&self, op: Op, range: Option<ByteRange>, error: std::io::Error) -> VolumeError {
        failure::of(op, &self.name, range, error)
    }

    fn direct(&self) -> Option<&(Arc<Lane>, Alignment)> {
        self.direct.as_ref().filter(|_| !self.direct_refused.load(Ordering::Relaxed))
    }

    async fn transfer(&self, access: Access, at: ByteOffset, mut buffer: Buffer) -> BufResult {
        let op = if access == Access::Read { Op::Read } else { Op::Write };
        let len = buffer.len();
        let range = match self.check(op, at.0, len as u64) {
            Ok(range) => range,
            Err(error) => return (Err(error), buffer),
        };
        let mut done = 0;
        if let Some((lane, alignment)) = self.direct() {
            let whole = span::direct_part(*alignment, at.0, buffer.as_ptr(), len);
            if whole > 0 {
                let guard = match access {
                    Access::Read => None,
                    Access::Write => Some(self.share().await),
                };
                let result;
                (result, buffer) = self.move_span(access, lane, at.0, buffer, 0..whole, guard).await;
                match result {
                    Ok(()) => done = whole,
                    Err(error) if is_refusal(&error) => self.refuse_direct(&error),
                    Err(error) => return (Err(self.fail(op, Some(range), error)), buffer),
                }
            }
        }
        if done < len {
            let guard = match access {
                Access::Write if self.direct.is_some() => Some(self.exclude().await),
                _ => None,
            };
            let place = at.0 + done as u64;
            let result;
            (result, buffer) = self.move_span(access, &self.buffered, place, buffer, done..len, guard).await;
            if let Err(error) = result {
                return (Err(self.fail(op, Some(range), error)), buffer);
            }
        }
        (Ok(()), buffer)
    }

    async fn move_span(
        &self,
        access: Access,
        lane: &Arc<Lane>,
        at: u64,
        buffer: Buffer,
        span: std::ops::Range<usize>,
        guard: Option<Guard>,
    ) -> (std::io::Result<()>, Buffer) {
        let lane = Arc::clone(lane);
        self.disk.transfer(|reply| Transfer { access, lane, at, buffer, span, guard, reply }).await
    }

    async fn share(&self) -> Guard {
        Guard::Shared { _held: Arc::clone(&self.order).read_owned().await }
    }

    async fn exclude(&self) -> Guard {
        Guard::Exclusive { _held: Arc::clone(&self.order).write_owned().await }
    }

    fn refuse_direct(&self, error: &std::io::Error) {
        if !self.direct_refused.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                volume = %self.name, %error,
                "direct I/O was refused although it was announced; going through the page cache, which costs CPU"
            );
        }
    }

    async fn next_data(&self, at: ByteOffset) -> Result<Option<ByteRange>, VolumeError> {
        let size = self.geometry.size.0;
        self.check(Op::FindData, at.0.min(size), 0)?;
        if at.0 >= size {
            return Ok(None);
        }
        let rest = ByteRange { start: at.0, end: size };
        if matches!(self.shape, Shape::Device { .. }) {
            return Ok(Some(rest));
        }
        let anchor = Arc::clone(&self.anchor);
        let found = self.disk.block(move || seek_data(&anchor, rest)).await;
        found.map_err(|error| self.fail(Op::FindData, Some(rest), error))
    }

    async fn fingerprint(&self) -> Result<Option<Fingerprint>, VolumeError> {
        self.check_poison(Op::Check)?;
        if matches!(self.shape, Shape::Device { .. }) {
            return Ok(None);
        }
        let anchor = Arc::clone(&self.anchor);
        let found = self.disk.block(move || probe::fingerprint(&anchor)).await;
        found.map(Some).map_err(|error| self.fail(Op::Check, None, error))
    }
}

/// True for errors that a file system gives when it does not do direct I/O after all, or not at this alignment.
fn is_refusal(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw_os_error), Some(Errno::INVAL | Errno::OPNOTSUPP))
}

/// The first data of `within`, from the file system's own map (`SEEK_DATA`, `SEEK_HOLE`).
fn seek_data(file: &File, within: ByteRange) -> std::io::Result<Option<ByteRange>> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(within.start)) {
        Ok(start) => start.max(within.start),
        Err(Errno::NXIO) => return Ok(None),
        // A file system without the notion: all of it may be data.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(within)),
        Err(error) => return Err(error.into()),
    };
    if start >= within.end {
        return Ok(None);
    }
    let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
    Ok(Some(ByteRange { start, end: end.clamp(start + 1, within.end) }))
}

/// A file or block device that is read.
pub struct FileSource {
    pub(crate) body: Body,
}

/// A file or block device that is written.
pub struct FileSink {
    pub(crate) body: Body,
    pub(crate) content: Content,
}

impl FileSource {
    /// Whether aligned operations bypass the page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.body.direct().is_some()
    }
}

impl FileSink {
    /// Whether aligned operations bypass the page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.body.direct().is_some()
    }

    /// Whether a flush has failed.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.body.poison.load(Ordering::SeqCst)
    }
}

macro_rules! source {
    ($($name:ident),*) => {$(
        impl Source for $name {
            fn geometry(&self) -> Geometry {
                self.body.geometry
            }
            fn describe(&self) -> String {
                self.body.name.clone()
            }
            fn read_at(&self, at: ByteOffset, buf: Buffer) -> Io<'_, BufResult> {
                Box::pin(self.body.transfer(Access::Read, at, buf))
            }
            fn next_data(&self, at: ByteOffset) -> Io<'_, Result<Option<ByteRange>, VolumeError>> {
                Box::pin(self.body.next_data(at))
            }
            fn fingerprint(&self) -> Io<'_, Result<Option<Fingerprint>, VolumeError>> {
                Box::pin(self.body.fingerprint())
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({}, {} bytes)"), self.body.name, self.body.geometry.size.0)
            }
        }
    )*};
}
source!(FileSource, FileSink);

impl Sink for FileSink {
    fn content(&self) -> Content {
        self.content
    }

    fn write_at(&self, at: ByteOffset, buf: Buffer) -> Io<'_, BufResult> {
        Box::pin(self.body.transfer(Access::Write, at, buf))
    }

    fn zero(&self, range: ByteRange, mode: ZeroMode) -> Io<'_, Result<(), VolumeError>> {
        Box::pin(self.body.zero(range, mode))
    }

    fn flush(&self) -> Io<'_, Result<(), VolumeError>> {
        Box::pin(async move {
            self.body.check_poison(Op::Flush)?;
            let lane = match &self.body.direct {
                Some((lane, _)) => lane,
                None => &self.body.buffered,
            };
            let result = self.body.disk.flush(Arc::clone(lane), Arc::clone(&self.body.poison)).await;
            result.map_err(|error| self.body.fail(Op::Flush, None, error))
        })
    }
}
