//! An NBD server: one export, one client, over a stream that the caller accepted. QEMU's `blockdev-mirror` writes to it.
//!
//! ```text
//! client ══► requests ── a slot and its bytes ──► Handler (concurrent, bounded) ──► replies ══► client
//!                          ▲                                                           │
//!                          └───────────────── given back when the reply is sent ◄──────┘
//! ```
//!
//! * **Truth about durability.** The server says nothing that the handler did not: WRITE is answered when
//!   [`Handler::write`] has returned, FLUSH when [`Handler::flush`] has. Whatever was answered before a FLUSH came was
//!   therefore finished by the handler before its `flush` is called; what is still in flight then is not covered,
//!   as the specification has it. FUA is handed on.
//! * **TRIM becomes zeroing**, after which the bytes read as zeros; a client may rely on less, never on more.
//! * **Order.** Requests run concurrently and are answered as they finish. A client that sends a request that overlaps
//!   an unanswered one gets either order; QEMU's mirror does not.
//! * **One client.** CAN_MULTI_CONN is not offered. [`serve`] returns only when no call of the handler runs any more,
//!   so that a write of a lost client cannot land after those of its successor: serve the next one afterwards.
//! * **Errors.** A failure of the handler is answered with its error number and logged; the connection goes on. A
//!   client that breaks the protocol is cut off. Everything that a client announces is capped before it is allocated.
//!
//! No TLS, metadata contexts or extended headers. Source:
//! <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>.

mod handshake;
mod transmission;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use volume::{ByteOffset, ByteRange, MAX_VOLUME, VolumeError};

use self::handshake::{Entry, enter};
pub use super::client::MAX_IN_FLIGHT;
use super::wire::requests::Rules;
pub use super::wire::{BlockSizes, MAX_PAYLOAD, Zeroing};
use super::wire::{MAX_STRING, TransmissionFlags};
use crate::error::{ConnectionLoss, Error};

/// Smallest "largest payload" that an export may announce, in bytes: the specification's advice.
pub const MIN_MAXIMUM: u32 = 1 << 20;

/// What is served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Export {
    /// The name that the client must ask for: at most 4096 bytes; the empty one is the default export.
    pub name: String,
    /// Length in bytes: 1 to [`volume::MAX_VOLUME`], a multiple of the minimum block.
    pub size: u64,
    /// Block sizes to announce. The maximum is at least [`MIN_MAXIMUM`] and at most [`MAX_PAYLOAD`].
    pub sizes: BlockSizes,
    /// Refuse whatever would change it.
    pub read_only: bool,
    /// Offer FAST_ZERO: [`Handler::zero`] with [`Zeroing::fast`] then fails where it would be as slow as writing.
    pub fast_zero: bool,
    /// How much may be under way.
    pub limits: Limits,
}

/// What one client may have under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Requests, 1 to [`MAX_IN_FLIGHT`].
    pub requests: usize,
    /// Bytes of their payloads, those of reads included. One request is always let through.
    pub bytes: u32,
    /// Limit for the whole handshake.
    pub handshake: Duration,
}

impl Default for Limits {
    /// 32 requests: twice what QEMU has outstanding on a connection (`MAX_NBD_REQUESTS`, block/nbd.c). 64 MiB: all of
    /// them at the mirror's usual 1 MiB, twice. 10 s: the client is on this host.
    fn default() -> Self {
        Self { requests: 32, bytes: 64 << 20, handshake: Duration::from_secs(10) }
    }
}

impl Export {
    /// A writable export with the usual sizes (512 bytes, 4 KiB, 1 MiB) and limits. 1 MiB is the largest request of
    /// QEMU's mirror at its default buffer size (`MAX_IO_BYTES`, block/mirror.c).
    #[must_use]
    pub fn new(name: impl Into<String>, size: u64) -> Self {
        Self {
            name: name.into(),
            size,
            sizes: BlockSizes { minimum: 512, preferred: 4096, maximum: MIN_MAXIMUM },
            read_only: false,
            fast_zero: false,
            limits: Limits::default(),
        }
    }

    fn check(&self) -> Result<(), Error> {
        let BlockSizes { minimum, preferred, maximum } = self.sizes;
        let known = self.name.len() <= MAX_STRING && !self.name.contains('\0');
        if !known
            || self.size > MAX_VOLUME
            || self.size == 0
            || !(MIN_MAXIMUM..=MAX_PAYLOAD).contains(&maximum)
        {
            return Err(self.unsound());
        }
        let sizes = BlockSizes::checked(minimum, preferred, maximum).map_err(|_reason| self.unsound())?;
        if self.size.is_multiple_of(sizes.minimum.into()) { Ok(()) } else { Err(self.unsound()) }
    }

    fn unsound(&self) -> Error {
        let BlockSizes { minimum, preferred, maximum } = self.sizes;
        Error::Invalid {
            what: format!(
                "an export \"{}\" of {} bytes with blocks of {minimum}/{preferred}/{maximum} bytes cannot be served",
                self.name.escape_debug(),
                self.size
            ),
        }
    }

    fn flags(&self) -> TransmissionFlags {
        TransmissionFlags::SERVED.with_read_only(self.read_only).with_fast_zero(self.fast_zero)
    }

    fn rules(&self) -> Rules {
        let &Self { size, sizes, read_only, fast_zero, .. } = self;
        Rules { size, sizes, read_only, fast_zero }
    }
}

/// What answers the requests. Calls run concurrently, up to [`Limits`]; ranges are never empty, lie inside the
/// export, and are aligned to its minimum block. An error becomes the error number that fits its
/// [`VolumeError::kind`] (ENOSPC, EPERM, EINVAL, ENOTSUP, else EIO) with its text.
///
/// Dropping [`serve`] drops the calls that run.
pub trait Handler: Send + Sync + 'static {
    /// The bytes of `range`, all of them; at most the announced maximum.
    fn read(&self, range: ByteRange) -> impl Future<Output = Result<Bytes, VolumeError>> + Send;

    /// Writes `data` at `at`. With `fua` it returns only when the data is durable.
    fn write(
        &self,
        at: ByteOffset,
        data: Bytes,
        fua: bool,
    ) -> impl Future<Output = Result<(), VolumeError>> + Send;

    /// Makes `range`, up to 4 GiB, read as zeros.
    fn zero(&self, range: ByteRange, how: Zeroing) -> impl Future<Output = Result<(), VolumeError>> + Send;

    /// Makes everything durable that [`Self::write`] and [`Self::zero`] returned for before this call.
    fn flush(&self) -> impl Future<Output = Result<(), VolumeError>> + Send;
}

/// How a client's time ended, if it did not end in an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// The client said goodbye after its requests. Everything that it sent is answered.
    Disconnected,
    /// The client left during the handshake, after having asked around.
    Aborted,
    /// `cancel` completed. What was under way is answered, if the client still listens.
    Cancelled,
}

/// Serves one client until it leaves or `cancel` completes.
///
/// After `cancel` no further request is taken; the calls of the handler that run are waited for. To end those as well,
/// drop the future.
///
/// # Errors
/// [`Error::Client`] when the connection ends without a goodbye, or the client breaks the protocol; no call of the
/// handler runs any more then. [`Error::Invalid`] when the export is not one that can be served.
///
/// # Panics
/// When the handler does: the panic is passed on.
pub async fn serve<S, H>(
    mut stream: S,
    export: &Export,
    handler: Arc<H>,
    cancel: impl Future<Output = ()> + Send,
) -> Result<Ending, Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
    H: Handler,
{
    export.check()?;
    let lost = |source| Error::Client { export: export.name.clone(), source };
    let mut cancel = pin!(cancel);
    let limit = export.limits.handshake;
    let entry = tokio::select! {
        biased;
        () = cancel.as_mut() => return Ok(Ending::Cancelled),
        entry = tokio::time::timeout(limit, enter(&mut stream, export)) => entry,
    };
    let silent = |_elapsed| lost(ConnectionLoss::Silent { seconds: limit.as_secs() });
    match entry.map_err(silent)?.map_err(lost)? {
        Entry::Aborted => Ok(Ending::Aborted),
        Entry::Started { structured } => {
            transmission::run(stream, export, structured, handler, cancel).await.map_err(lost)
        }
    }
}
