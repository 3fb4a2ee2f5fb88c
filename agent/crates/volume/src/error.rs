//! One error for all volumes: a small kind to match on, the operation, where it happened, and the cause.

use std::error::Error;
use std::fmt;

use crate::units::ByteRange;

/// What went wrong, as far as a caller can act on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// The device or file system reported an I/O error.
    Io,
    /// The file system or device is full.
    NoSpace,
    /// The pool's quota does not allow the volume.
    Quota,
    /// The volume is not there, or went away.
    NotFound,
    /// Access was refused.
    Permission,
    /// Somebody else has the volume open in a way that excludes us.
    InUse,
    /// The target holds something already.
    Exists,
    /// The target cannot hold the volume.
    TooSmall,
    /// The source changed while it was read.
    Changed,
    /// An offset or length lies outside the volume.
    OutOfRange,
    /// An earlier flush failed: nothing written since is trusted.
    Poisoned,
    /// What was asked for cannot be done on this volume.
    Unsupported,
    /// The peer or program that serves the volume broke its contract.
    Protocol,
    /// What was asked for makes no sense (bad name, bad URI).
    Invalid,
}

/// Whether trying again can help.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retry {
    /// No.
    Never,
    /// After somebody made room or freed the volume.
    AfterFix,
    /// After the connection to whatever serves the volume is made again.
    AfterReconnect,
}

/// The operation that failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[expect(missing_docs, reason = "each variant is the operation of its name")]
pub enum Op {
    Open,
    Create,
    Read,
    Write,
    Zero,
    Flush,
    FindData,
    Check,
    Close,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Create => "create",
            Self::Read => "read",
            Self::Write => "write",
            Self::Zero => "zero",
            Self::Flush => "flush",
            Self::FindData => "find data in",
            Self::Check => "check",
            Self::Close => "close",
        })
    }
}

/// The error of every volume operation. `Display` says what failed and what to do; the cause is in `source()`.
#[derive(Debug)]
pub struct VolumeError {
    kind: Kind,
    op: Op,
    what: String,
    range: Option<ByteRange>,
    advice: Option<String>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl VolumeError {
    /// An error of `kind` in `op` on the volume that `what` describes.
    #[must_use]
    pub fn new(kind: Kind, op: Op, what: impl Into<String>) -> Self {
        Self { kind, op, what: what.into(), range: None, advice: None, source: None }
    }

    /// Classifies an operating-system error.
    #[must_use]
    pub fn io(op: Op, what: impl Into<String>, error: std::io::Error) -> Self {
        use std::io::ErrorKind as E;
        let kind = match error.kind() {
            E::NotFound => Kind::NotFound,
            E::PermissionDenied | E::ReadOnlyFilesystem => Kind::Permission,
            E::AlreadyExists => Kind::Exists,
            E::StorageFull => Kind::NoSpace,
            E::QuotaExceeded | E::FileTooLarge => Kind::Quota,
            E::ResourceBusy | E::ExecutableFileBusy => Kind::InUse,
            E::Unsupported => Kind::Unsupported,
            E::InvalidInput => Kind::Invalid,
            _ => Kind::Io,
        };
        Self::new(kind, op, what).caused_by(error)
    }

    /// Adds where in the volume it happened.
    #[must_use]
    pub fn at(mut self, range: ByteRange) -> Self {
        self.range = Some(range);
        self
    }

    /// Adds what the reader of the message should do.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The kind, to match on.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The operation that failed.
    #[must_use]
    pub fn op(&self) -> Op {
        self.op
    }

    /// What the reader should do, if the place that failed knew.
    #[must_use]
    pub fn advice(&self) -> Option<&str> {
        self.advice.as_deref()
    }

    /// Whether trying again can help.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self.kind {
            Kind::NoSpace | Kind::Quota | Kind::InUse => Retry::AfterFix,
            Kind::Protocol => Retry::AfterReconnect,
            _ => Retry::Never,
        }
    }
}

impl fmt::Display for VolumeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {}", self.op, self.what)?;
        if let Some(range) = self.range {
            write!(f, " (bytes {range})")?;
        }
        let reason = match self.kind {
            Kind::Io => "I/O error",
            Kind::NoSpace => "no space left",
            Kind::Quota => "quota exceeded",
            Kind::NotFound => "not found",
            Kind::Permission => "permission denied",
            Kind::InUse => "in use",
            Kind::Exists => "it exists already",
            Kind::TooSmall => "target too small",
            Kind::Changed => "it changed while it was read",
            Kind::OutOfRange => "outside the volume",
            Kind::Poisoned => "an earlier flush failed, so nothing written since is trusted",
            Kind::Unsupported => "not supported here",
            Kind::Protocol => "the server broke its protocol",
            Kind::Invalid => "invalid",
        };
        write!(f, ": {reason}")?;
        if let Some(advice) = &self.advice {
            write!(f, "; {advice}")?;
        }
        Ok(())
    }
}

impl Error for VolumeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|e| &**e as &(dyn Error + 'static))
    }
}
