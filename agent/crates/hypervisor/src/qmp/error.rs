//! What can go wrong on a monitor's socket: QEMU's own, or the guest agent's.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::words::ErrorClass;

/// Why a command to QEMU or to the guest agent failed. `Display` says what failed and what to do, never repeating the
/// source. Clones share the source: one lost connection fails many commands.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MonitorError {
    /// The socket could not be reached.
    #[error("cannot connect to {}; check that the virtual machine runs and has this socket", .socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// The operating system's reason.
        source: Arc<io::Error>,
    },
    /// The connection ended, or was given up. A command that was outstanding is neither done nor undone: ask QEMU for
    /// its state over a new connection.
    #[error("{}: {operation}: the connection ended before the answer", .socket.display())]
    Lost {
        /// The socket.
        socket: PathBuf,
        /// The command, or what was waited for.
        operation: String,
        /// What ended the connection. Shared by all that it failed.
        source: Arc<MonitorLoss>,
    },
    /// No answer in time. The command may still be carried out; the connection stays usable and drops the late answer.
    #[error(
        "{}: {operation}: no answer within {milliseconds} ms; look whether the virtual machine hangs, or another \
         client holds this socket",
        .socket.display()
    )]
    Timeout {
        /// The socket.
        socket: PathBuf,
        /// The command, or what was waited for.
        operation: String,
        /// The limit.
        milliseconds: u128,
    },
    /// QEMU (or the guest agent) answered with an error.
    #[error("{operation}: {description} ({class})")]
    Refused {
        /// The command.
        operation: String,
        /// QEMU's class: [`ErrorClass::Generic`] for nearly everything.
        class: ErrorClass,
        /// QEMU's text, without control characters.
        description: String,
    },
    /// The answer is not of the shape that the command promises.
    #[error("{}: the answer to {operation} was not understood; check the version of QEMU", .socket.display())]
    Answer {
        /// The socket.
        socket: PathBuf,
        /// The command.
        operation: String,
        /// What does not fit.
        source: Arc<serde_json::Error>,
    },
    /// The request cannot be expressed, for example a path that is not UTF-8, or is longer than allowed. Nothing was
    /// sent.
    #[error("{operation}: the request cannot be sent: {reason}")]
    Request {
        /// The command.
        operation: String,
        /// Why not.
        reason: String,
    },
    /// This subscriber was too slow, and events are gone. Ask for the state that they would have told.
    #[error("{}: {missed} events were missed; ask for the state again", .socket.display())]
    EventsMissed {
        /// The socket.
        socket: PathBuf,
        /// How many.
        missed: u64,
    },
}

/// What to tell the kinds of [`MonitorError`] apart by.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum MonitorErrorKind {
    /// The socket could not be reached: QEMU is not there.
    Connect,
    /// The connection ended; whether the command was carried out is unknown.
    Lost,
    /// No answer in time; whether the command is carried out is unknown.
    Timeout,
    /// The other side refused: it did not do it.
    Refused(ErrorClass),
    /// The other side broke the protocol: an answer of the wrong shape.
    Answer,
    /// The request could not be sent: nothing was done.
    Request,
    /// Events are gone.
    EventsMissed,
}

/// What ended a connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MonitorLoss {
    /// The socket failed, or the other side closed it.
    #[error("the socket failed or was closed by the other side")]
    Socket(#[source] io::Error),
    /// A message was longer than the cap.
    #[error("a message of more than {limit} bytes arrived")]
    TooLong {
        /// The cap in bytes.
        limit: usize,
    },
    /// A message was no JSON, or of no known shape.
    #[error("a message was not understood")]
    Message(#[source] serde_json::Error),
    /// The other side broke the protocol, so nothing further that it says can be trusted.
    #[error("the other side broke the protocol: {0}")]
    Protocol(String),
    /// The client was closed on this side, or its runtime shut down.
    #[error("the connection was closed on this side")]
    Closed,
}

impl MonitorError {
    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> MonitorErrorKind {
        match self {
            Self::Connect { .. } => MonitorErrorKind::Connect,
            Self::Lost { .. } => MonitorErrorKind::Lost,
            Self::Timeout { .. } => MonitorErrorKind::Timeout,
            Self::Refused { class, .. } => MonitorErrorKind::Refused(class.clone()),
            Self::Answer { .. } => MonitorErrorKind::Answer,
            Self::Request { .. } => MonitorErrorKind::Request,
            Self::EventsMissed { .. } => MonitorErrorKind::EventsMissed,
        }
    }

    /// Whether the command may have been carried out although it failed here.
    #[must_use]
    pub fn may_have_happened(&self) -> bool {
        matches!(self.kind(), MonitorErrorKind::Lost | MonitorErrorKind::Timeout | MonitorErrorKind::Answer)
    }
}

/// Text from the other side as one line without control characters, so that it cannot forge log lines.
pub(crate) fn printable(text: &str) -> String {
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
