//! [`NbdVolume`]: an export as a [`Source`] and [`Sink`].
//!
//! What a server cannot do is done in another way, never left out: payloads above its maximum are split, ranges
//! that are not aligned to its blocks are read, changed and written back, WRITE_ZEROES is replaced by writes (never
//! by TRIM, after which bytes may read as anything), FLUSH by FUA on every write. An export that offers neither
//! FLUSH nor FUA is not opened for writing, because nothing could ever be called durable.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::RwLock;
use volume::{
    BufResult, Buffer, ByteLen, ByteOffset, ByteRange, Content, Fingerprint, Geometry, Io, Kind, Op, Sink,
    Source, VolumeError, ZeroMode,
};

use super::client::{ALLOCATION, Client, DIRTY_BITMAP, Extent, Options, missing_bitmap};
use super::uri::Uri;
use super::wire::transmission::{STATE_DIRTY, STATE_ZERO};
use super::wire::{CommandFlags, ErrorCode};
use crate::error::Error;

/// Bytes of the buffer for what cannot go out as it came in. Large enough that its requests are not the bottleneck.
const BOUNCE: u64 = 1 << 20;
/// Bytes zeroed by one request, so that a slow server answers now and then.
const ZERO_STEP: u64 = 1 << 30;
/// Bytes that one block-status request asks about on a read-only export. QEMU answers with as many extents as fit.
const STATUS_STEP: u64 = 1 << 30;
/// The same on a writable export, where answers are not kept.
const STATUS_STEP_WRITABLE: u64 = 128 << 20;
/// Ranges that [`NbdVolume::dirty_extents`] collects at most: 16 MiB of memory.
pub const MAX_DIRTY_RANGES: usize = 1 << 20;

/// What a volume is opened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Reading. Block status is kept between calls: the export must not change.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

/// An NBD export as a volume.
#[derive(Debug)]
pub struct NbdVolume {
    client: Client,
    access: Access,
    content: Content,
    poisoned: AtomicBool,
    /// The server said that it offers WRITE_ZEROES, and then that it does not support it.
    zeroes_refused: AtomicBool,
    /// Read-modify-write excludes all other writes, or it could undo one. Unused when blocks are single bytes.
    edges: RwLock<()>,
    /// The last block-status answer, on read-only volumes.
    map: Mutex<Option<Arc<Map>>>,
}

/// A block-status answer: contiguous extents, never empty.
#[derive(Debug)]
struct Map {
    context: String,
    extents: Vec<Extent>,
}

impl Map {
    /// Whether it knows about byte `at` in `context`.
    fn knows(&self, context: &str, at: u64) -> bool {
        self.context == context && at >= self.extents[0].start && at < self.end()
    }

    fn end(&self) -> u64 {
        self.extents.last().map_or(0, |last| last.end)
    }

    /// The first run at or after `at` of extents that are `wanted`, as far as the answer goes.
    fn find(&self, at: u64, wanted: fn(u32) -> bool) -> Option<ByteRange> {
        let first = self.extents.partition_point(|extent| extent.end <= at);
        let mut rest = self.extents[first..].iter().skip_while(|extent| !wanted(extent.flags));
        let found = rest.next()?;
        let end = rest.take_while(|extent| wanted(extent.flags)).last().unwrap_or(found).end;
        Some(ByteRange { start: found.start.max(at), end })
    }
}

impl NbdVolume {
    /// Makes a volume of an export.
    ///
    /// # Errors
    /// When the export is read-only, or can make nothing durable, and `access` asks for writing; when its size is
    /// not a multiple of its blocks.
    pub fn new(client: Client, access: Access) -> Result<Self, Error> {
        let flags = client.flags();
        let target = || client.target().to_owned();
        if access == Access::ReadWrite && flags.read_only() {
            return Err(Error::ReadOnly { target: target() });
        }
        if access == Access::ReadWrite && !flags.flush() && !flags.fua() {
            return Err(Error::Unsupported {
                target: target(),
                what: "make writes durable (neither FLUSH nor FUA)".to_owned(),
                advice: "use another server as destination",
            });
        }
        if !client.size().is_multiple_of(client.block_sizes().minimum.into()) {
            return Err(Error::Unsupported {
                target: target(),
                what: "give access to its last bytes (its size is not a multiple of its blocks)".to_owned(),
                advice: "let the server round its size, or lower its minimum block",
            });
        }
        Ok(Self {
            client,
            access,
            content: Content::Unknown,
            poisoned: AtomicBool::new(false),
            zeroes_refused: AtomicBool::new(false),
            edges: RwLock::new(()),
            map: Mutex::new(None),
        })
    }

    /// Connects to `uri` and makes a volume of the export.
    ///
    /// # Errors
    /// Those of [`Client::connect`] and of [`Self::new`].
    pub async fn open(uri: &Uri, access: Access, options: &Options) -> Result<Self, Error> {
        Self::new(Client::connect(&uri.address, &uri.export, options).await?, access)
    }

    /// Declares that the image behind the export was just created and reads as zeros everywhere.
    #[must_use]
    pub fn freshly_created(self) -> Self {
        Self { content: Content::Zero, ..self }
    }

    /// The client underneath.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Says goodbye to the server. Flush first: this makes nothing durable.
    pub async fn close(self) {
        self.client.close().await;
    }

    /// The first range at or after `at` that the QEMU dirty bitmap `bitmap` marks, or `None` when nothing follows.
    /// The bitmap's context must have been asked for in [`Options::contexts`].
    ///
    /// # Errors
    /// When the server did not grant the bitmap, or fails.
    pub async fn next_dirty(&self, bitmap: &str, at: ByteOffset) -> Result<Option<ByteRange>, VolumeError> {
        let context = format!("{DIRTY_BITMAP}{bitmap}");
        if !self.client.has_context(&context) {
            return Err(self.fail(Op::FindData, None, missing_bitmap(self.client.target(), bitmap)));
        }
        self.check_range(Op::FindData, at.0, 0)?;
        let found = self.next_extent(&context, at.0, |flags| flags & STATE_DIRTY != 0).await;
        found.map_err(|error| self.fail(Op::FindData, None, error))
    }

    /// All ranges that the QEMU dirty bitmap `bitmap` marks, in order, none touching the next.
    ///
    /// # Errors
    /// Those of [`Self::next_dirty`]; and `Unsupported` when there are more than [`MAX_DIRTY_RANGES`].
    pub async fn dirty_extents(&self, bitmap: &str) -> Result<Vec<ByteRange>, VolumeError> {
        let mut ranges: Vec<ByteRange> = Vec::new();
        let mut at = 0;
        while at < self.client.size() {
            let Some(range) = self.next_dirty(bitmap, ByteOffset(at)).await? else { break };
            at = range.end;
            if let Some(last) = ranges.last_mut().filter(|last| last.end == range.start) {
                last.end = range.end;
            } else if ranges.len() == MAX_DIRTY_RANGES {
                return Err(VolumeError::new(Kind::Unsupported, Op::FindData, self.describe())
                    .advise("the bitmap has too many ranges to list; go through them one by one"));
            } else {
                ranges.push(range);
            }
        }
        Ok(ranges)
    }

    fn fail(&self, op: Op, range: Option<ByteRange>, error: Error) -> VolumeError {
        error.in_volume(op, self.describe(), range)
    }

    fn block(&self) -> u64 {
        self.client.block_sizes().minimum.into()
    }

    /// `at` rounded down to a block.
    fn floor(&self, at: u64) -> u64 {
        at - at % self.block()
    }

    /// `at` rounded up to a block. `at` lies within the export, whose size is a multiple of blocks.
    fn ceil(&self, at: u64) -> u64 {
        at.next_multiple_of(self.block())
    }

    /// Whether a request may go out as it is.
    fn fits(&self, at: u64, length: u64) -> bool {
        let block = self.block();
        at.is_multiple_of(block)
            && length.is_multiple_of(block)
            && length <= self.client.block_sizes().maximum.into()
    }

    fn check_range(&self, op: Op, at: u64, length: u64) -> Result<ByteRange, VolumeError> {
        if self.poisoned.load(Ordering::Acquire) {
            return Err(VolumeError::new(Kind::Poisoned, op, self.describe())
                .advise("open the destination again and start the copy from its last durable point"));
        }
        let size = self.client.size();
        match at.checked_add(length) {
            Some(end) if end <= size => Ok(ByteRange { start: at, end }),
            _ => Err(self.fail(op, None, Error::OutOfRange { offset: at, length, size })),
        }
    }

    fn check_writable(&self, op: Op) -> Result<(), VolumeError> {
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => {
                Err(self.fail(op, None, Error::ReadOnly { target: self.client.target().to_owned() }))
            }
        }
    }

    /// FUA on every write where the server has no FLUSH.
    fn durability(&self) -> CommandFlags {
        if self.client.flags().flush() { CommandFlags::NONE } else { CommandFlags::FUA }
    }

    /// The next aligned piece of `at..end` that fits the bounce buffer: where it starts and ends.
    fn piece(&self, at: u64, end: u64) -> (u64, u64) {
        let most = self.floor(BOUNCE.min(self.client.block_sizes().maximum.into()));
        let start = self.floor(at);
        (start, self.ceil(end).min(start + most))
    }

    /// Reads `out` from `at` in pieces that fit.
    async fn read_pieces(&self, mut at: u64, mut out: &mut [u8]) -> Result<(), Error> {
        let end = at + out.len() as u64;
        while at < end {
            let (from, to) = self.piece(at, end);
            let (result, bounce) = self.client.read(from, Buffer::heap(index(to - from))).await;
            result?;
            let upto = to.min(end);
            let (now, later) = out.split_at_mut(index(upto - at));
            now.copy_from_slice(&bounce[index(at - from)..index(upto - from)]);
            out = later;
            at = upto;
        }
        Ok(())
    }

    /// Writes `bytes(length)` at each of the pieces that fit, keeping what surrounds them in their blocks. The
    /// caller holds `edges` exclusively if `at` or `end` is not aligned.
    async fn write_pieces(&self, mut at: u64, end: u64, source: Bytes<'_>) -> Result<(), Error> {
        let begin = at;
        let mut bounce = Buffer::heap(0);
        while at < end {
            let (from, to) = self.piece(at, end);
            let upto = to.min(end);
            let length = index(to - from);
            if bounce.capacity() < length {
                bounce = Buffer::heap(length);
            }
            bounce.set_len(length);
            let mut result = Ok(());
            if from < at || upto < to {
                (result, bounce) = self.client.read(from, bounce).await;
            }
            result?;
            let place = &mut bounce.as_mut()[index(at - from)..index(upto - from)];
            match source {
                Bytes::Zeros => place.fill(0),
                Bytes::Slice(bytes) => place.copy_from_slice(&bytes[index(at - begin)..index(upto - begin)]),
            }
            (result, bounce) = self.client.write(from, bounce, self.durability()).await;
            result?;
            at = upto;
        }
        Ok(())
    }

    async fn write_any(&self, at: u64, buffer: Buffer) -> (Result<(), Error>, Buffer) {
        let length = buffer.len() as u64;
        if self.block() == 1 && self.fits(at, length) {
            return self.client.write(at, buffer, self.durability()).await;
        }
        if self.floor(at) == at && self.floor(length) == length {
            let _shared = self.edges.read().await;
            if self.fits(at, length) {
                return self.client.write(at, buffer, self.durability()).await;
            }
            return (self.write_pieces(at, at + length, Bytes::Slice(&buffer)).await, buffer);
        }
        let _exclusive = self.edges.write().await;
        (self.write_pieces(at, at + length, Bytes::Slice(&buffer)).await, buffer)
    }

    async fn zero_any(&self, range: ByteRange, mode: ZeroMode) -> Result<(), Error> {
        let (start, end) = (self.ceil(range.start).min(range.end), self.floor(range.end));
        if start >= end || start > range.start || end < range.end {
            // Zeros before, after or inside single blocks: rare and short.
            let _exclusive = self.edges.write().await;
            if start >= end {
                return self.write_pieces(range.start, range.end, Bytes::Zeros).await;
            }
            self.write_pieces(range.start, start, Bytes::Zeros).await?;
            self.write_pieces(end, range.end, Bytes::Zeros).await?;
        }
        let _shared = self.edges.read().await;
        self.zero_blocks(start, end, mode).await
    }

    /// Zeroes whole blocks.
    async fn zero_blocks(&self, mut at: u64, end: u64, mode: ZeroMode) -> Result<(), Error> {
        let keep = match mode {
            ZeroMode::Allocate => CommandFlags::NO_HOLE,
            ZeroMode::Deallocate => CommandFlags::NONE,
        };
        while at < end && self.client.flags().write_zeroes() && !self.zeroes_refused.load(Ordering::Relaxed) {
            // Both are multiples of the block, which is a power of two of at most 64 KiB.
            let step = ZERO_STEP.min(end - at);
            let length = u32::try_from(step).expect("a step is below 4 GiB");
            match self.client.write_zeroes(at, length, self.durability().and(keep)).await {
                Ok(()) => at += step,
                Err(Error::Server { code: ErrorCode::ENOTSUP | ErrorCode::EINVAL, .. }) => {
                    tracing::warn!(
                        target = self.client.target(),
                        "WRITE_ZEROES is refused; writing zeros instead"
                    );
                    self.zeroes_refused.store(true, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
        self.write_pieces(at, end, Bytes::Zeros).await
    }

    /// The first run of extents at or after `at` whose flags are `wanted`.
    async fn next_extent(
        &self,
        context: &str,
        mut at: u64,
        wanted: fn(u32) -> bool,
    ) -> Result<Option<ByteRange>, Error> {
        while at < self.client.size() {
            let map = self.status(context, at).await?;
            if let Some(range) = map.find(at, wanted) {
                return Ok(Some(range));
            }
            at = map.end();
        }
        Ok(None)
    }

    /// What the server, or its last answer, says about the bytes from `at` on.
    async fn status(&self, context: &str, at: u64) -> Result<Arc<Map>, Error> {
        let kept = self.access == Access::ReadOnly;
        if kept {
            let map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(map) = map.as_ref().filter(|map| map.knows(context, at)) {
                return Ok(Arc::clone(map));
            }
        }
        let step = if kept { STATUS_STEP } else { STATUS_STEP_WRITABLE };
        let from = self.floor(at);
        let length = u32::try_from((self.client.size() - from).min(step)).expect("a step is below 4 GiB");
        let extents = self.client.block_status(context, from, length).await?;
        let map = Arc::new(Map { context: context.to_owned(), extents });
        if map.end() <= at {
            // Extents smaller than a block would make no progress: the whole block counts as not known to be zero.
            return Err(Error::Unsupported {
                target: self.client.target().to_owned(),
                what: "report block status in whole blocks".to_owned(),
                advice: "use another NBD server",
            });
        }
        if kept {
            *self.map.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&map));
        }
        Ok(map)
    }
}

/// What to write.
#[derive(Clone, Copy)]
enum Bytes<'a> {
    Zeros,
    Slice(&'a [u8]),
}

/// An offset inside a buffer.
fn index(n: u64) -> usize {
    usize::try_from(n).expect("offsets in a buffer fit the address space")
}

impl Source for NbdVolume {
    fn geometry(&self) -> Geometry {
        Geometry { size: ByteLen(self.client.size()), logical_block: self.client.block_sizes().minimum }
    }

    fn describe(&self) -> String {
        self.client.target().to_owned()
    }

    fn read_at(&self, at: ByteOffset, mut buf: Buffer) -> Io<'_, BufResult> {
        Box::pin(async move {
            let range = match self.check_range(Op::Read, at.0, buf.len() as u64) {
                Ok(range) => range,
                Err(error) => return (Err(error), buf),
            };
            let result = if self.fits(at.0, range.len()) {
                let (result, back) = self.client.read(at.0, buf).await;
                buf = back;
                result
            } else {
                self.read_pieces(at.0, buf.as_mut()).await
            };
            (result.map_err(|error| self.fail(Op::Read, Some(range), error)), buf)
        })
    }

    fn next_data(&self, at: ByteOffset) -> Io<'_, Result<Option<ByteRange>, VolumeError>> {
        Box::pin(async move {
            let size = self.client.size();
            if at.0 >= size {
                return Ok(None);
            }
            self.check_range(Op::FindData, at.0, 0)?;
            let unknown = Some(ByteRange { start: at.0, end: size });
            if !self.client.has_context(ALLOCATION) {
                return Ok(unknown);
            }
            match self.next_extent(ALLOCATION, at.0, |flags| flags & STATE_ZERO == 0).await {
                Err(Error::Server { code: ErrorCode::ENOTSUP, .. }) => Ok(unknown),
                found => found.map_err(|error| self.fail(Op::FindData, None, error)),
            }
        })
    }

    fn fingerprint(&self) -> Io<'_, Result<Option<Fingerprint>, VolumeError>> {
        Box::pin(std::future::ready(Ok(None)))
    }
}

impl Sink for NbdVolume {
    fn content(&self) -> Content {
        self.content
    }

    fn write_at(&self, at: ByteOffset, buf: Buffer) -> Io<'_, BufResult> {
        Box::pin(async move {
            let checked = self
                .check_writable(Op::Write)
                .and_then(|()| self.check_range(Op::Write, at.0, buf.len() as u64));
            let range = match checked {
                Ok(range) => range,
                Err(error) => return (Err(error), buf),
            };
            let (result, buf) = self.write_any(at.0, buf).await;
            (result.map_err(|error| self.fail(Op::Write, Some(range), error)), buf)
        })
    }

    fn zero(&self, range: ByteRange, mode: ZeroMode) -> Io<'_, Result<(), VolumeError>> {
        Box::pin(async move {
            self.check_writable(Op::Zero)?;
            let Some(length) = range.end.checked_sub(range.start) else {
                let what = format!("the range {range} ends before it starts");
                return Err(self.fail(Op::Zero, None, Error::Invalid { what }));
            };
            self.check_range(Op::Zero, range.start, length)?;
            if length == 0 {
                return Ok(());
            }
            self.zero_any(range, mode).await.map_err(|error| self.fail(Op::Zero, Some(range), error))
        })
    }

    fn flush(&self) -> Io<'_, Result<(), VolumeError>> {
        Box::pin(async move {
            self.check_writable(Op::Flush)?;
            self.check_range(Op::Flush, 0, 0)?;
            if !self.client.flags().flush() {
                return Ok(()); // every write was answered with FUA
            }
            self.client.flush().await.map_err(|error| {
                self.poisoned.store(true, Ordering::Release);
                self.fail(Op::Flush, None, error)
            })
        })
    }
}
