//! What ends a transfer, as its driver sees it.

use std::error::Error;
use std::path::Path;

use reduce::ReduceError;
use session::SessionError;
use tunnel::TunnelError;
use volume::{Kind, Op, VolumeError};
use wire::FailCode;

/// Why a transfer, or an operation on a volume's sidecar, failed. `Display` says what and what to do; causes are in
/// `source()`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// Reading or writing a volume failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The tunnel failed.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// The peer broke the protocol, gave up, or went away.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A frame could not be reduced or restored.
    #[error(transparent)]
    Reduce(#[from] ReduceError),
    /// Reading or writing our own bookkeeping failed.
    #[error("cannot {op} {path}; make room or mend the file system there, then run the same command again")]
    Sidecar {
        /// Verb.
        op: &'static str,
        /// Where.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Our own bookkeeping makes no sense.
    #[error("{0}; remove that folder to start the volume again from nothing")]
    Corrupt(String),
    /// What was asked for is refused.
    #[error("{detail}")]
    Refused {
        /// What the peer is told.
        code: FailCode,
        /// For people, with what to do.
        detail: String,
    },
    /// Somebody cancelled the session.
    #[error("the session was cancelled; run the same command again to go on where it stopped")]
    Cancelled,
    /// The process was asked to stop; everything acknowledged is durable.
    #[error("stopped on request; run the same command again to continue")]
    Interrupted,
}

impl From<receipt::ReceiptError> for EngineError {
    fn from(error: receipt::ReceiptError) -> Self {
        Self::Corrupt(error.to_string())
    }
}

impl EngineError {
    /// A failed operation on a sidecar file.
    pub(crate) fn sidecar(op: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Sidecar { op, path: path.display().to_string(), source }
    }

    /// A refusal.
    pub(crate) fn refused(code: FailCode, detail: impl Into<String>) -> Self {
        Self::Refused { code, detail: detail.into() }
    }

    /// What the peer is told: a code, and text without our paths.
    #[must_use]
    pub fn fail_code(&self) -> FailCode {
        match self {
            Self::Volume(error) => match (error.kind(), error.op()) {
                (Kind::NoSpace, _) => FailCode::NoSpace,
                (Kind::Quota, _) => FailCode::Quota,
                (Kind::NotFound, _) => FailCode::NotFound,
                (Kind::Exists, _) => FailCode::Exists,
                (Kind::InUse, _) => FailCode::Busy,
                (Kind::TooSmall, _) => FailCode::TooSmall,
                (Kind::Changed, _) => FailCode::SourceChanged,
                (Kind::Unsupported, _) => FailCode::Unsupported,
                (Kind::Poisoned, _) | (_, Op::Flush) => FailCode::FlushFailed,
                _ => FailCode::Storage,
            },
            Self::Session(error) => error.code(),
            Self::Reduce(_) => FailCode::Protocol,
            Self::Sidecar { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                FailCode::NoSpace
            }
            Self::Sidecar { .. } | Self::Corrupt(_) => FailCode::Storage,
            Self::Refused { code, .. } => *code,
            Self::Cancelled | Self::Interrupted => FailCode::Cancelled,
            Self::Tunnel(_) => FailCode::Internal,
        }
    }

    /// What the peer is told: no paths of this host.
    #[must_use]
    pub fn told(&self) -> String {
        match self {
            Self::Sidecar { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                "no space left beside the volume; free some space there, then run the same command again"
                    .to_owned()
            }
            Self::Sidecar { .. } | Self::Corrupt(_) => {
                "the peer's own bookkeeping failed; see its log".to_owned()
            }
            other => other.to_string(),
        }
    }

    /// The code that ended the session, when the peer sent one.
    #[must_use]
    pub fn peer_code(&self) -> Option<FailCode> {
        match self {
            Self::Session(SessionError::Peer { code, .. }) => Some(*code),
            _ => None,
        }
    }

    /// Whether running the same command again, without a change by anybody, can get further: the session stays
    /// resumable.
    #[must_use]
    pub fn is_resumable(&self) -> bool {
        match self {
            Self::Tunnel(error) => error.is_transient(),
            Self::Session(SessionError::Drained) | Self::Interrupted => true,
            Self::Session(SessionError::Peer { code, .. }) => {
                matches!(code, FailCode::TimedOut | FailCode::Overloaded | FailCode::FlushFailed)
            }
            _ => false,
        }
    }

    /// The message with its causes in one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let part = error.to_string();
            if !text.contains(&part) {
                text.push_str(": ");
                text.push_str(&part);
            }
            cause = error.source();
        }
        text
    }
}
