//! The crate's error, and how it becomes a [`VolumeError`].

use std::path::PathBuf;
use std::sync::Arc;

use volume::{ByteRange, Kind, Op, VolumeError};

use crate::nbd::wire::{Command, ErrorCode, OptionRefusal, ProtocolError};
use crate::qmp::{MonitorError, MonitorErrorKind};

/// Why a hypervisor-side operation failed. `Display` says what failed and what to do, never repeating the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server could not be reached.
    #[error("cannot connect to {target}; check that the NBD server runs and listens there")]
    Connect {
        /// The address or socket path.
        target: String,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The server did not finish the handshake in time.
    #[error("{target} did not finish the NBD handshake within {seconds} s; check that it is an NBD server")]
    HandshakeTimeout {
        /// The address or socket path.
        target: String,
        /// The limit in seconds.
        seconds: u64,
    },
    /// The connection ended. Requests that were outstanding are neither done nor undone; there is no reconnect,
    /// because it could hide the loss of unflushed writes.
    #[error("lost the NBD connection to {target}; find out why the server ended, then start the copy again")]
    Lost {
        /// The address or socket path.
        target: String,
        /// What ended it. Shared by all the requests that it failed.
        source: Arc<ConnectionLoss>,
    },
    /// The server sent something that the protocol forbids, or more than is accepted.
    #[error("{target} broke the NBD protocol")]
    Protocol {
        /// The address or socket path.
        target: String,
        /// What was wrong.
        source: ProtocolError,
    },
    /// The client of an export that this program serves is gone, or was cut off because it broke the protocol.
    /// Requests that were not answered are neither done nor undone.
    #[error("lost the NBD client of export \"{export}\"; look into the log of the QEMU that used it")]
    Client {
        /// The export.
        export: String,
        /// What ended it.
        source: ConnectionLoss,
    },
    /// The server refused an option of the handshake.
    #[error("{target} refuses {what}: {refusal}")]
    Refused {
        /// The address or socket path.
        target: String,
        /// What was asked for.
        what: String,
        /// The server's answer.
        refusal: OptionRefusal,
    },
    /// The server answered a request with an error.
    #[error("the NBD server failed {command}: {code}{}", detail(*.offset, .message))]
    Server {
        /// The request.
        command: Command,
        /// The server's error number.
        code: ErrorCode,
        /// Where in the export, if the server said.
        offset: Option<u64>,
        /// The server's text; may be empty.
        message: String,
    },
    /// The export cannot do what was asked.
    #[error("{target} cannot {what}; {advice}")]
    Unsupported {
        /// The export or image.
        target: String,
        /// What it cannot do.
        what: String,
        /// What to do instead.
        advice: &'static str,
    },
    /// The export or image forbids writing.
    #[error("{target} is read-only; export it writable, or choose another destination")]
    ReadOnly {
        /// The export.
        target: String,
    },
    /// The request lies outside the export.
    #[error("bytes {offset}+{length} lie outside the export of {size} bytes")]
    OutOfRange {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        length: u64,
        /// Size of the export.
        size: u64,
    },
    /// The export's size is not one that this program handles.
    #[error("{target} is {size} bytes long; volumes are 1 byte to 64 TiB")]
    Size {
        /// The export.
        target: String,
        /// Its size.
        size: u64,
    },
    /// Something with that name is not there.
    #[error("{what} is not there; check the name")]
    NotFound {
        /// What was looked for.
        what: String,
    },
    /// A QEMU program is missing.
    #[error(
        "{program} is not in PATH; install QEMU's disk tools (Debian and Ubuntu: qemu-utils; Fedora: qemu-img)"
    )]
    ToolMissing {
        /// The program.
        program: &'static str,
    },
    /// A QEMU program could not be run, or its files could not be handled.
    #[error("cannot {what}")]
    System {
        /// The step that failed.
        what: String,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A QEMU program took too long.
    #[error(
        "{program} did not finish within {seconds} s and was ended; check the storage that holds the image"
    )]
    ToolTimeout {
        /// The program.
        program: &'static str,
        /// The limit in seconds.
        seconds: u64,
    },
    /// A QEMU program failed.
    #[error("{program} failed ({status}): {stderr}")]
    ToolFailed {
        /// The program.
        program: &'static str,
        /// Its exit status.
        status: String,
        /// The end of what it said.
        stderr: String,
    },
    /// A QEMU program printed something that was not understood.
    #[error("the output of {program} was not understood ({why}); check the installed QEMU version")]
    ToolOutput {
        /// The program.
        program: &'static str,
        /// What was wrong with it.
        why: String,
    },
    /// The image is locked by another process.
    #[error("{} is in use; stop the virtual machine or program that has it open", .path.display())]
    InUse {
        /// The image.
        path: PathBuf,
        /// What QEMU said.
        stderr: String,
    },
    /// There is a file already.
    #[error("{} exists already; remove it or choose another name", .path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A command to QEMU or to the guest's agent failed.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// What was asked for makes no sense.
    #[error("{what}")]
    Invalid {
        /// What is wrong and what to do.
        what: String,
    },
}

/// What ended a connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionLoss {
    /// The socket failed, or the other side closed it.
    #[error("the socket failed")]
    Socket(#[source] std::io::Error),
    /// The other side broke the protocol, so nothing further that it says can be trusted.
    #[error("the other side broke the protocol")]
    Protocol(#[source] ProtocolError),
    /// The other side did not finish the handshake in time.
    #[error("no whole handshake came within {seconds} s")]
    Silent {
        /// The limit in seconds.
        seconds: u64,
    },
    /// The tasks of the connection were ended: the client was closed, or its runtime shut down.
    #[error("the connection was closed on this side")]
    Closed,
}

impl From<std::io::Error> for ConnectionLoss {
    fn from(error: std::io::Error) -> Self {
        Self::Socket(error)
    }
}

impl From<ProtocolError> for ConnectionLoss {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}

fn detail(offset: Option<u64>, message: &str) -> String {
    let place = offset.map(|offset| format!(" at byte {offset}")).unwrap_or_default();
    let text = if message.is_empty() { String::new() } else { format!(" ({message})") };
    place + &text
}

impl Error {
    /// The kind of failure, as volumes tell them apart.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Connect { source, .. } | Self::System { source, .. } => io_kind(source),
            Self::HandshakeTimeout { .. }
            | Self::Lost { .. }
            | Self::Client { .. }
            | Self::Protocol { .. } => Kind::Protocol,
            Self::Refused { refusal, .. } => refusal.kind(),
            Self::Server { code, .. } => code.kind(),
            Self::Unsupported { .. } | Self::ToolMissing { .. } | Self::Size { .. } => Kind::Unsupported,
            Self::ReadOnly { .. } => Kind::Permission,
            Self::OutOfRange { .. } => Kind::OutOfRange,
            Self::NotFound { .. } => Kind::NotFound,
            Self::ToolTimeout { .. } | Self::ToolFailed { .. } => Kind::Io,
            Self::ToolOutput { .. } => Kind::Protocol,
            Self::InUse { .. } => Kind::InUse,
            Self::Exists { .. } => Kind::Exists,
            Self::Monitor(error) => match error.kind() {
                MonitorErrorKind::Connect => Kind::NotFound,
                MonitorErrorKind::Refused(_) => Kind::Unsupported,
                MonitorErrorKind::Request => Kind::Invalid,
                MonitorErrorKind::Lost
                | MonitorErrorKind::Timeout
                | MonitorErrorKind::Answer
                | MonitorErrorKind::EventsMissed => Kind::Protocol,
            },
            Self::Invalid { .. } => Kind::Invalid,
        }
    }

    /// This error as that of a volume operation, with itself as the cause.
    #[must_use]
    pub fn in_volume(self, op: Op, what: impl Into<String>, range: Option<ByteRange>) -> VolumeError {
        let error = VolumeError::new(self.kind(), op, what);
        let error = match range {
            Some(range) => error.at(range),
            None => error,
        };
        let error = match &self {
            Self::Lost { .. } => error.advise("the connection to it was lost: find out why its server ended"),
            _ => error,
        };
        error.caused_by(self)
    }
}

/// Same classification as [`VolumeError::io`], so that one cause has one kind.
fn io_kind(error: &std::io::Error) -> Kind {
    VolumeError::io(Op::Open, "", error.kind().into()).kind()
}
