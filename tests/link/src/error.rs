//! One error for the crate: a small kind to match on, the operation, and the cause.

use std::error::Error;
use std::fmt;

/// What went wrong, as far as a caller can act on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A value makes no sense (a probability above 1, an MTU below 68).
    Invalid,
    /// A network namespace could not be made, entered or removed.
    Namespace,
    /// The TUN device could not be opened or configured.
    Device,
    /// A process could not be started inside a namespace.
    Spawn,
    /// The thread that moves the packets has ended.
    Forwarder,
}

impl Kind {
    fn advice(self) -> &'static str {
        match self {
            Self::Invalid => "correct the value",
            Self::Namespace => "run as root and install iproute2 (the `ip` command)",
            Self::Device => {
                "run as root on a kernel with CONFIG_TUN and make sure that /dev/net/tun is there"
            }
            Self::Spawn => "make sure that the program exists and may be executed",
            Self::Forwarder => "bring the link up again",
        }
    }
}

/// The error of every link operation. `Display` says what failed and what to do; the cause is in `source()`.
#[derive(Debug)]
pub struct LinkError {
    kind: Kind,
    operation: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl LinkError {
    pub(crate) fn new(kind: Kind, operation: impl Into<String>) -> Self {
        Self { kind, operation: operation.into(), source: None }
    }

    pub(crate) fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What went wrong, to match on.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}; {}", self.operation, self.kind.advice())
    }
}

impl Error for LinkError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}
