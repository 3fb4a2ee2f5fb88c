//! QEMU's control socket: a typed QMP client.
//!
//! * One connection is one [`Qmp`]: cheap to clone, its commands answered in any order, each with a deadline.
//! * [`Qmp::subscribe`] gives the events from then on. Subscribe first, then ask for the state: then nothing falls
//!   between. A subscriber that is too slow is told that events are missing.
//! * A lost connection fails every outstanding command with [`MonitorErrorKind::Lost`]. Nothing reconnects by itself,
//!   because only the caller knows what a command of unknown fate means; a [`Connector`] makes the next connection.
//! * QEMU serves one client at a socket: a second one connects, but gets no greeting before the first has left.
//! * `migrate-pause` and `migrate-recover` go out of band where QEMU offers that: they work while its main loop hangs,
//!   for example on a block device that does not answer.
//!
//! What is typed are the commands that moving virtual machines needs: `machine` (state, processors, QOM),
//! `migration`, `block` (nodes, jobs, exports, bitmaps). All of QEMU's enumerations are open ([`words`]), and answers
//! may have more fields than are known, so that newer versions work; fields that QEMU 7.2 does not have are optional.
//!
//! Specification: QEMU's `docs/interop/qmp-spec.rst` and `qapi/*.json`, versions 7.2 to 10.0.

mod block;
mod connection;
pub(crate) mod error;
pub mod event;
pub(crate) mod line;
mod machine;
pub(crate) mod message;
mod migration;
pub mod words;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

pub use block::{
    Action, Backup, BitmapName, BlockCounts, BlockDevice, BlockJob, BlockNode, BlockStats, DirtyBitmap,
    Export, Image, ImageNode, Mirror, NbdExport, NbdNode, NewBitmap, NewNode,
};
pub use connection::{EVENT_QUEUE, Events, first_id};
pub use error::{MonitorError, MonitorErrorKind, MonitorLoss};
pub use event::{Event, EventKind, JobProgress};
pub use machine::{Announce, Cpu, CpuDefinition, CpuModel, MemorySize, QomProperty, Status};
pub use message::Version;
pub use migration::{
    CapabilityState, DirtyRate, DirtyRateRequest, MigrationAddress, MigrationInfo, MigrationParameters, Ram,
    SocketAddress,
};

use connection::{Band, Connection};
use line::LineReader;
use message::Message;

/// Largest message accepted, in bytes. The largest answers are lists of block nodes: about 2 KiB for each, some
/// hundred nodes with long backing chains; the whole schema of QEMU 10 has 0.2 MiB.
pub const MAX_REPLY: usize = 4 << 20;

/// Largest command sent, in bytes. The largest here are transactions over many disks.
pub const MAX_REQUEST: usize = 1 << 20;

/// Makes connections to one socket. When, how often and how long to wait in between is the caller's policy.
#[derive(Clone, Debug)]
pub struct Connector {
    /// The socket.
    pub socket: PathBuf,
    /// For connecting, greeting and capabilities together, and then for each command unless [`Qmp::within`] says
    /// otherwise.
    pub timeout: Duration,
}

impl Connector {
    /// Connects.
    ///
    /// # Errors
    /// As [`Qmp::connect`].
    pub async fn connect(&self) -> Result<Qmp, MonitorError> {
        Qmp::connect(&self.socket, self.timeout).await
    }
}

/// A connection to QEMU. Clones share it; it is closed with the last of them.
#[derive(Clone, Debug)]
pub struct Qmp {
    connection: Arc<Connection>,
    version: Version,
    out_of_band: bool,
    timeout: Duration,
}

impl Qmp {
    /// Connects, reads the greeting, and enables out-of-band commands if QEMU offers them.
    ///
    /// `timeout` is for all of that together, and then for each command.
    ///
    /// # Errors
    /// [`MonitorError::Connect`] if there is no such socket or nobody listens; [`MonitorError::Timeout`] if there is
    /// no greeting in time (most often: another client holds the socket); [`MonitorError::Lost`] if what answers is
    /// no QMP server.
    pub async fn connect(socket: &Path, timeout: Duration) -> Result<Self, MonitorError> {
        let work = Self::negotiate(socket, timeout);
        let late = |_| MonitorError::Timeout {
            socket: socket.to_owned(),
            operation: "greeting".to_owned(),
            milliseconds: timeout.as_millis(),
        };
        tokio::time::timeout(timeout, work).await.map_err(late)?
    }

    async fn negotiate(socket: &Path, timeout: Duration) -> Result<Self, MonitorError> {
        let lost = |loss| MonitorError::Lost {
            socket: socket.to_owned(),
            operation: "greeting".to_owned(),
            source: Arc::new(loss),
        };
        let failed = |source| MonitorError::Connect { socket: socket.to_owned(), source: Arc::new(source) };
        let (read, write) = UnixStream::connect(socket).await.map_err(failed)?.into_split();
        let mut lines = LineReader::new(read, MAX_REPLY);
        let line = lines.next().await.map_err(|error| lost(connection::loss(error, MAX_REPLY)))?;
        let Message::Greeting(greeting) = Message::parse(&line).map_err(lost)? else {
            return Err(lost(MonitorLoss::Protocol("no greeting".to_owned())));
        };
        let connection = Connection::start(socket.to_owned(), lines, write, MAX_REPLY);
        let out_of_band = greeting.offers_out_of_band();
        let qmp = Self { connection: Arc::new(connection), version: greeting.version, out_of_band, timeout };
        let enable: &[&str] = if out_of_band { &["oob"] } else { &[] };
        qmp.command("qmp_capabilities", &serde_json::json!({ "enable": enable })).await?;
        Ok(qmp)
    }

    /// The same connection with another deadline for each command.
    #[must_use]
    pub fn within(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        self.connection.socket()
    }

    /// QEMU's version, of its greeting.
    #[must_use]
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// Whether out-of-band commands are enabled.
    #[must_use]
    pub fn has_out_of_band(&self) -> bool {
        self.out_of_band
    }

    /// Why the connection ended; `None` while it lasts.
    #[must_use]
    pub fn ended(&self) -> Option<Arc<MonitorLoss>> {
        self.connection.ended()
    }

    /// The events from now on. On an ended connection they end at once.
    #[must_use]
    pub fn subscribe(&self) -> Events {
        self.connection.subscribe()
    }

    /// Any command: `arguments` must serialise to a JSON object or to nothing (`()`), the answer must be a `T`.
    ///
    /// Safe to cancel: the command was then sent whole or not at all, and its answer is dropped.
    ///
    /// # Errors
    /// See [`MonitorError`]; [`MonitorError::may_have_happened`] says which of them leave it open.
    pub async fn execute<T: DeserializeOwned>(
        &self,
        command: &str,
        arguments: &(impl Serialize + Sync + ?Sized),
    ) -> Result<T, MonitorError> {
        self.call(command, Band::In, arguments).await
    }

    /// As [`Self::execute`], out of band if that is enabled. Few commands may (`qapi`: `allow-oob`).
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub async fn execute_out_of_band<T: DeserializeOwned>(
        &self,
        command: &str,
        arguments: &(impl Serialize + Sync + ?Sized),
    ) -> Result<T, MonitorError> {
        let band = if self.out_of_band { Band::Out } else { Band::In };
        self.call(command, band, arguments).await
    }

    /// A command that answers with nothing.
    async fn command(
        &self,
        command: &str,
        arguments: &(impl Serialize + Sync + ?Sized),
    ) -> Result<(), MonitorError> {
        self.execute::<Nothing>(command, arguments).await.map(|Nothing {}| ())
    }

    async fn call<T: DeserializeOwned>(
        &self,
        command: &str,
        band: Band,
        arguments: &(impl Serialize + Sync + ?Sized),
    ) -> Result<T, MonitorError> {
        let refuse = |reason| MonitorError::Request { operation: command.to_owned(), reason };
        let arguments = serde_json::to_value(arguments).map_err(|error| refuse(error.to_string()))?;
        let mut request = serde_json::Map::new();
        let verb = if band == Band::Out { "exec-oob" } else { "execute" };
        request.insert(verb.to_owned(), command.into());
        match arguments {
            Value::Null => {}
            Value::Object(_) => drop(request.insert("arguments".to_owned(), arguments)),
            _ => return Err(refuse("its arguments are no object".to_owned())),
        }
        let request = Value::Object(request).to_string();
        if request.len() > MAX_REQUEST {
            return Err(refuse(format!("it is longer than {MAX_REQUEST} bytes")));
        }
        // The text is an object with at least the command in it: the id goes in front.
        let line = |id: u64| format!("{{\"id\":{id},{}\n", &request[1..]).into_bytes();
        let value = self.connection.call(command, band, self.timeout, line).await?;
        serde_json::from_value(value).map_err(|error| MonitorError::Answer {
            socket: self.socket().to_owned(),
            operation: command.to_owned(),
            source: Arc::new(error),
        })
    }
}

/// The answer `{}`; what a newer QEMU adds is not looked at.
#[derive(serde::Deserialize)]
struct Nothing {}
