//! [`Client`]: one export over one or several connections. Requests are checked against what the server announced
//! and go out unchanged: splitting, aligning and falling back is [`super::NbdVolume`]'s work.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use volume::{Buffer, ByteRange, MAX_VOLUME};

use super::connection::Connection;
use super::negotiate::{Agreement, negotiate};
use super::wire::transmission::STATE_DIRTY;
use super::wire::{
    BlockSizes, Command, CommandFlags, MAX_STRING, MetaContext, OptionRefusal, ProtocolError,
    TransmissionFlags,
};
use crate::error::Error;

/// The context that tells holes and zeros from data.
pub const ALLOCATION: &str = "base:allocation";
/// What QEMU's dirty-bitmap contexts start with; the bitmap's name follows.
pub const DIRTY_BITMAP: &str = "qemu:dirty-bitmap:";

/// Most connections to one export: beyond this no server gained anything, and each costs a thread's worth of work.
pub const MAX_CONNECTIONS: usize = 16;
/// Most requests outstanding on one connection. QEMU serves 16 at a time and queues the rest in the socket.
pub const MAX_IN_FLIGHT: usize = 128;
/// Most metadata contexts asked for: one for allocation and some bitmaps.
const MAX_CONTEXTS: usize = 16;

/// An idle TCP peer that vanished is noticed after 60 + 4 x 10 s; unsent data waits no longer than this.
const TCP_USER_TIMEOUT_MS: u32 = 60_000;

/// Where a server listens.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// A host name or address, and a port.
    Tcp {
        /// Name, IPv4 or IPv6 address (without brackets).
        host: String,
        /// Port.
        port: u16,
    },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// How to connect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Connections wanted, 1 to [`MAX_CONNECTIONS`]. One is used when the server does not say CAN_MULTI_CONN,
    /// because then a flush on one would not cover the others.
    pub connections: usize,
    /// Requests outstanding on each connection, 1 to [`MAX_IN_FLIGHT`].
    pub in_flight: usize,
    /// Metadata contexts to ask for, such as [`ALLOCATION`]. What the server does not grant is left out.
    pub contexts: Vec<String>,
    /// Limit for connecting and for the handshake, for each connection.
    pub handshake_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connections: 1,
            in_flight: 16,
            contexts: vec![ALLOCATION.to_owned()],
            handshake_timeout: Duration::from_secs(30),
        }
    }
}

/// One extent of a block-status answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// First byte in the export.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// What the context says: for [`ALLOCATION`] bit 0 is "hole" and bit 1 "reads as zeros"; for a dirty bitmap
    /// bit 0 is "dirty".
    pub flags: u32,
}

/// One extent of a dirty bitmap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirtyExtent {
    /// Its bytes in the export; never empty.
    pub range: ByteRange,
    /// Whether they were written since the bitmap was started.
    pub dirty: bool,
}

/// An export, open for requests. Dropping it closes the connections.
#[derive(Debug)]
pub struct Client {
    target: String,
    size: u64,
    flags: TransmissionFlags,
    sizes: BlockSizes,
    contexts: Vec<MetaContext>,
    connections: Vec<Connection>,
    turn: AtomicUsize,
}

impl Client {
    /// Connects to `export` (the empty name is the server's default export) at `address`.
    ///
    /// # Errors
    /// When the server cannot be reached, refuses, or breaks the protocol; when its size exceeds
    /// [`volume::MAX_VOLUME`]; when connections disagree about the export.
    pub async fn connect(address: &Address, export: &str, options: &Options) -> Result<Self, Error> {
        check_names(export, &options.contexts)?;
        let target =
            if export.is_empty() { address.to_string() } else { format!("{address} export \"{export}\"") };
        let wanted = options.connections.clamp(1, MAX_CONNECTIONS);
        let (agreement, first) = open(address, export, options, &target).await?;
        let Agreement { size, flags, sizes, structured: _, contexts } = agreement;
        if size > MAX_VOLUME {
            return Err(Error::Size { target, size });
        }
        let mut client = Self {
            target,
            size,
            flags,
            sizes,
            contexts,
            connections: vec![first],
            turn: AtomicUsize::new(0),
        };
        let count = if flags.can_multi_conn() { wanted } else { 1 };
        for _ in 1..count {
            let (again, connection) = open(address, export, options, &client.target).await?;
            if (again.size, again.flags, again.sizes) != (size, flags, sizes)
                || again.contexts != client.contexts
            {
                return Err(Error::Invalid {
                    what: format!(
                        "{} described itself differently to two connections; is it being changed or resized?",
                        client.target
                    ),
                });
            }
            client.connections.push(connection);
        }
        Ok(client)
    }

    /// Address and export, for people.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Length of the export in bytes; at most [`volume::MAX_VOLUME`].
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What the export can do.
    #[must_use]
    pub fn flags(&self) -> TransmissionFlags {
        self.flags
    }

    /// The server's block sizes, the maximum lowered to [`super::wire::MAX_PAYLOAD`].
    #[must_use]
    pub fn block_sizes(&self) -> BlockSizes {
        self.sizes
    }

    /// Connections in use.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Whether the server reports on `context`.
    #[must_use]
    pub fn has_context(&self, context: &str) -> bool {
        self.contexts.iter().any(|known| known.name == context)
    }

    /// READ: fills the whole of `buffer` from `offset`. The buffer comes back with its length in every case.
    /// A caller that stops waiting loses the buffer to the connection, which drops it when the reply has come.
    pub async fn read(&self, offset: u64, buffer: Buffer) -> (Result<(), Error>, Buffer) {
        match self.check(offset, buffer.len() as u64, Some(self.sizes.maximum)) {
            Err(error) => (Err(error), buffer),
            Ok(0) => (Ok(()), buffer),
            Ok(_) => self.connection().read(offset, buffer).await,
        }
    }

    /// WRITE: writes the whole of `buffer` at `offset`. `flags` may be [`CommandFlags::FUA`].
    pub async fn write(
        &self,
        offset: u64,
        buffer: Buffer,
        flags: CommandFlags,
    ) -> (Result<(), Error>, Buffer) {
        let checked = self
            .check(offset, buffer.len() as u64, Some(self.sizes.maximum))
            .and_then(|length| self.check_flags("write", flags, true).map(|()| length));
        match checked {
            Err(error) => (Err(error), buffer),
            Ok(0) => (Ok(()), buffer),
            Ok(_) => self.connection().write(offset, buffer, flags).await,
        }
    }

    /// FLUSH: makes durable what was answered before this call, on every connection (that is what CAN_MULTI_CONN
    /// promises).
    ///
    /// # Errors
    /// When the server cannot flush or fails to. After a failure nothing written since the last flush is certain.
    pub async fn flush(&self) -> Result<(), Error> {
        if !self.flags.flush() {
            return Err(self.unsupported("flush", "use a server that offers FLUSH"));
        }
        self.connection().plain(Command::Flush, CommandFlags::NONE, 0, 0).await
    }

    /// TRIM: tells the server that the range is not needed. What it reads as afterwards is not defined.
    ///
    /// # Errors
    /// When the server lacks TRIM, the range is outside or not aligned, or the server fails.
    pub async fn trim(&self, offset: u64, length: u32) -> Result<(), Error> {
        if !self.flags.trim() {
            return Err(self.unsupported("trim", "leave the space allocated"));
        }
        self.check_flags("trim", CommandFlags::NONE, self.flags.trim())?;
        if self.check(offset, length.into(), None)? == 0 {
            return Ok(());
        }
        self.connection().plain(Command::Trim, CommandFlags::NONE, offset, length).await
    }

    /// WRITE_ZEROES: makes the range read as zeros. `flags` may be FUA, NO_HOLE and, where offered, FAST_ZERO.
    ///
    /// # Errors
    /// When the server lacks WRITE_ZEROES or the flag, the range is outside or not aligned, or the server fails.
    pub async fn write_zeroes(&self, offset: u64, length: u32, flags: CommandFlags) -> Result<(), Error> {
        self.check_flags("write zeroes", flags, self.flags.write_zeroes())?;
        if self.check(offset, length.into(), None)? == 0 {
            return Ok(());
        }
        self.connection().plain(Command::WriteZeroes, flags, offset, length).await
    }

    /// BLOCK_STATUS: what `context` says about at least the start of `offset..offset + length`. Extents are
    /// contiguous from `offset`, end within the export, and may stop short of the length or pass it.
    ///
    /// # Errors
    /// When the context was not granted, the range is empty, outside or not aligned, or the server fails.
    pub async fn block_status(&self, context: &str, offset: u64, length: u32) -> Result<Vec<Extent>, Error> {
        let Some(known) = self.contexts.iter().find(|known| known.name == context) else {
            return Err(Error::NotFound {
                what: format!("metadata context \"{context}\" of {}", self.target),
            });
        };
        if self.check(offset, length.into(), None)? == 0 {
            return Err(Error::Invalid { what: "block status of an empty range was asked".to_owned() });
        }
        let answer = self.connection().block_status(offset, length).await?;
        let descriptors = answer.into_iter().find(|(id, _)| *id == known.id).map(|(_, extents)| extents);
        let mut start = offset;
        let mut extents = Vec::new();
        for descriptor in descriptors.unwrap_or_default() {
            let end = start.saturating_add(descriptor.length.into()).min(self.size);
            if end <= start {
                break;
            }
            extents.push(Extent { start, end, flags: descriptor.flags });
            start = end;
        }
        if extents.is_empty() {
            let source = ProtocolError::BadStatus { why: "describes nothing" };
            return Err(Error::Protocol { target: self.target.clone(), source });
        }
        Ok(extents)
    }

    /// What the QEMU dirty bitmap `bitmap` says about `offset..offset + length`, in order and without gaps. Its context
    /// must have been asked for in [`Options::contexts`] as [`DIRTY_BITMAP`] and its name. The answer may stop short of
    /// the length, never pass it.
    ///
    /// # Errors
    /// `NotFound` when the server did not grant the bitmap; else those of [`Self::block_status`].
    pub async fn dirty(&self, bitmap: &str, offset: u64, length: u32) -> Result<Vec<DirtyExtent>, Error> {
        let context = format!("{DIRTY_BITMAP}{bitmap}");
        if !self.has_context(&context) {
            return Err(missing_bitmap(&self.target, bitmap));
        }
        let extents = self.block_status(&context, offset, length).await?;
        let limit = offset + u64::from(length);
        let asked = extents.into_iter().filter(|extent| extent.start < limit);
        Ok(asked
            .map(|Extent { start, end, flags }| DirtyExtent {
                range: ByteRange { start, end: end.min(limit) },
                dirty: flags & STATE_DIRTY != 0,
            })
            .collect())
    }

    /// Says goodbye on every connection and closes it.
    pub async fn close(self) {
        for connection in self.connections {
            connection.close().await;
        }
    }

    fn connection(&self) -> &Connection {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        &self.connections[turn % self.connections.len()]
    }

    fn unsupported(&self, what: &str, advice: &'static str) -> Error {
        Error::Unsupported { target: self.target.clone(), what: what.to_owned(), advice }
    }

    /// Checks a range against the export, the minimum block, and the largest payload if there is one.
    fn check(&self, offset: u64, length: u64, payload: Option<u32>) -> Result<u64, Error> {
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            return Err(Error::OutOfRange { offset, length, size: self.size });
        }
        let block = u64::from(self.sizes.minimum);
        if !offset.is_multiple_of(block) || !length.is_multiple_of(block) {
            return Err(Error::Invalid {
                what: format!(
                    "bytes {offset}+{length} are not aligned to the server's blocks of {block} bytes"
                ),
            });
        }
        match payload {
            Some(most) if length > most.into() => Err(Error::Invalid {
                what: format!("a request of {length} bytes exceeds the server's maximum of {most}; split it"),
            }),
            _ => Ok(length),
        }
    }

    fn check_flags(&self, what: &str, flags: CommandFlags, offered: bool) -> Result<(), Error> {
        if self.flags.read_only() {
            return Err(Error::ReadOnly { target: self.target.clone() });
        }
        let fua = self.flags.fua() || !flags.contains(CommandFlags::FUA);
        let fast = self.flags.fast_zero() || !flags.contains(CommandFlags::FAST_ZERO);
        if offered && fua && fast {
            Ok(())
        } else {
            Err(self.unsupported(what, "it lacks the command or one of the flags; do it another way"))
        }
    }
}

fn check_names(export: &str, contexts: &[String]) -> Result<(), Error> {
    let bad = |name: &str| name.len() > MAX_STRING || name.contains('\0');
    if bad(export) || contexts.iter().any(|context| bad(context) || context.is_empty()) {
        let what = format!("export and context names have at most {MAX_STRING} bytes and no NUL");
        return Err(Error::Invalid { what });
    }
    if contexts.len() > MAX_CONTEXTS {
        return Err(Error::Invalid {
            what: format!("at most {MAX_CONTEXTS} metadata contexts can be asked for"),
        });
    }
    Ok(())
}

/// Connects one socket and runs its handshake within the time limit.
async fn open(
    address: &Address,
    export: &str,
    options: &Options,
    target: &str,
) -> Result<(Agreement, Connection), Error> {
    let limit = options.handshake_timeout;
    let late = || Error::HandshakeTimeout { target: target.to_owned(), seconds: limit.as_secs() };
    let unreachable = |source| Error::Connect { target: target.to_owned(), source };
    let work = async {
        match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(unreachable)?;
                enter(stream, UnixStream::into_split, export, options, target).await
            }
            Address::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(unreachable)?;
                watch_over(&stream).map_err(unreachable)?;
                enter(stream, TcpStream::into_split, export, options, target).await
            }
        }
    };
    tokio::time::timeout(limit, work).await.ok().unwrap_or_else(|| Err(late()))
}

/// A vanished TCP peer must fail the requests that wait for it, and small requests must not wait for more.
fn watch_over(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(stream, 4)?;
    sockopt::set_tcp_user_timeout(stream, TCP_USER_TIMEOUT_MS)?;
    Ok(())
}

async fn enter<S, R, W>(
    mut stream: S,
    split: impl FnOnce(S) -> (R, W),
    export: &str,
    options: &Options,
    target: &str,
) -> Result<(Agreement, Connection), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    let contexts: Vec<&str> = options.contexts.iter().map(String::as_str).collect();
    let agreement = negotiate(&mut stream, target, export, &contexts).await?;
    let asked = agreement.contexts.iter().all(|context| contexts.contains(&context.name.as_str()));
    if !asked || agreement.contexts.len() > contexts.len() {
        let source = ProtocolError::BadStatus { why: "is about a context that was not chosen" };
        return Err(Error::Protocol { target: target.to_owned(), source });
    }
    let (read, write) = split(stream);
    let connection = Connection::start(
        target.to_owned(),
        (Box::new(read), Box::new(write)),
        agreement.structured,
        agreement.contexts.clone(),
        options.in_flight.clamp(1, MAX_IN_FLIGHT),
    );
    Ok((agreement, connection))
}

/// The refusal that a missing dirty bitmap amounts to.
pub(super) fn missing_bitmap(target: &str, bitmap: &str) -> Error {
    let refusal = OptionRefusal { code: 6, message: String::new() };
    Error::Refused { target: target.to_owned(), what: format!("dirty bitmap \"{bitmap}\""), refusal }
}
