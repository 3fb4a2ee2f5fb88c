//! What ends a session from the inside.

use volume::{ExtentIndex, Sequence};
use wire::{DecodeError, FailCode, Tag};

/// Why a machine stopped.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// A frame contradicts the volume's shape.
    #[error("the peer sent a frame that does not fit the volume")]
    Frame(#[from] DecodeError),
    /// A frame that has no place in this state.
    #[error("the peer sent {0:?} out of turn")]
    Unexpected(Tag),
    /// A sequence beyond the window, or one that was never sent.
    #[error("the peer named sequence {} which is outside the window", .0.0)]
    Sequence(Sequence),
    /// One sequence for two different writes.
    #[error("the peer used sequence {} for two writes", .0.0)]
    Reused(Sequence),
    /// More is outstanding than was granted.
    #[error("the peer has more outstanding than the {0} it was granted")]
    Window(&'static str),
    /// A grant under which nothing can be sent.
    #[error("the peer granted a session in which nothing can be sent ({0})")]
    Grant(&'static str),
    /// Leaves that leave a gap, overlap or run past the end.
    #[error("the peer's leaves do not continue at extent {0}")]
    Leaves(ExtentIndex),
    /// A run of extents past the end of the volume.
    #[error("the peer named extents past the end of the volume")]
    PastEnd,
    /// The seal came while extents were missing, or for another size.
    #[error("the peer sealed a volume of which {missing} extents are missing")]
    EarlySeal {
        /// How many.
        missing: u64,
    },
    /// The peer gave up.
    #[error("the peer ended the session ({code:?}): {detail}")]
    Peer {
        /// Why.
        code: FailCode,
        /// In its words.
        detail: String,
    },
    /// The peer goes away on purpose.
    #[error("the peer is shutting down; the session can be resumed")]
    Drained,
}

impl SessionError {
    /// What the peer is told.
    #[must_use]
    pub fn code(&self) -> FailCode {
        match self {
            Self::Peer { code, .. } => *code,
            Self::Drained => FailCode::Cancelled,
            _ => FailCode::Protocol,
        }
    }
}
