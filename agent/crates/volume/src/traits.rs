//! [`Source`] and [`Sink`]: what the byte path needs of a volume, whatever holds it (file, block device, NBD export,
//! cloud snapshot). Object-safe, runtime-free; every call may be made concurrently from several tasks.

use std::future::Future;
use std::pin::Pin;

use crate::buffer::Buffer;
use crate::error::VolumeError;
use crate::units::{ByteLen, ByteOffset, ByteRange};

/// A boxed future. One allocation per 256 KiB operation is below what can be measured.
pub type Io<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The result of an operation and the buffer that went in.
pub type BufResult = (Result<(), VolumeError>, Buffer);

/// Shape of a volume, fixed while it is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Length in bytes; need not be a multiple of anything.
    pub size: ByteLen,
    /// Smallest write that needs no read-modify-write, in bytes (512 or 4096 for devices; 1 for files).
    pub logical_block: u32,
}

/// What a sink holds before the first write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// Reads as zeros everywhere: zeros need not be written.
    Zero,
    /// Anything: holes of the source must be zeroed.
    Unknown,
}

/// How to make a range read as zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ZeroMode {
    /// Give the space back if the target can (hole, discard that reads zero), otherwise write zeros.
    Deallocate,
    /// Keep the space allocated.
    Allocate,
}

/// Evidence that a source is what it was: equal fingerprints mean that no byte was changed through the file system.
/// Sources without such evidence (block devices, NBD) have none, and are read again after their reader restarts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fingerprint {
    /// Device number of the file system.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Length in bytes.
    pub size: u64,
    /// Last change of the content, nanoseconds since the epoch.
    pub modified_ns: i128,
    /// Last change of the inode, nanoseconds since the epoch: cannot be set back by `utimensat`.
    pub changed_ns: i128,
}

/// A volume that can be read.
pub trait Source: Send + Sync {
    /// Size and block size.
    fn geometry(&self) -> Geometry;

    /// A short name for people, such as the path or the URI.
    fn describe(&self) -> String;

    /// Fills the whole of `buf` (its `len`) from `at`. Reading past the end is [`crate::Kind::OutOfRange`].
    fn read_at(&self, at: ByteOffset, buf: Buffer) -> Io<'_, BufResult>;

    /// The first range at or after `at` that may hold data, or `None` when only zeros follow. Everything between
    /// `at` and the range's start reads as zeros. A source that cannot tell answers `at..size`.
    fn next_data(&self, at: ByteOffset) -> Io<'_, Result<Option<ByteRange>, VolumeError>>;

    /// Evidence that the source did not change, if there can be any.
    fn fingerprint(&self) -> Io<'_, Result<Option<Fingerprint>, VolumeError>>;
}

/// A volume that can be written. It can be read too: dedup, deltas and read-back need that.
pub trait Sink: Source {
    /// What is there before the first write.
    fn content(&self) -> Content;

    /// Writes the whole of `buf` at `at`. Success means the target took it, not that it is durable.
    fn write_at(&self, at: ByteOffset, buf: Buffer) -> Io<'_, BufResult>;

    /// Makes the range read as zeros.
    fn zero(&self, range: ByteRange, mode: ZeroMode) -> Io<'_, Result<(), VolumeError>>;

    /// Makes all that was answered before this call durable. After an error the sink is poisoned: every later call
    /// fails with [`crate::Kind::Poisoned`], because the kernel may have dropped the dirty pages and would report
    /// success next time (Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020).
    fn flush(&self) -> Io<'_, Result<(), VolumeError>>;
}
