//! One error for the crate: a small kind to match on, the operation, and the cause.

use std::fmt;

/// What went wrong, as far as a caller can act on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A file or folder of the machine could not be made, read or written.
    Files,
    /// QEMU could not be started, or ended before it was ready.
    Start,
    /// What was waited for did not come in time.
    Timeout,
}

/// The error of every operation. `Display` says what failed; the cause is in `source()`.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    operation: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: Kind, operation: impl Into<String>) -> Self {
        Self { kind, operation: operation.into(), source: None }
    }

    pub(crate) fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What went wrong, to match on.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.operation)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}
