//! The one error of this module: a kind to match on, what failed, and what to do.

use std::error::Error;
use std::path::Path;

/// What went wrong, as far as a caller can act on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PkiErrorKind {
    /// The operating system refused a file operation.
    Io,
    /// Something is there that must not be overwritten.
    Exists,
    /// A file, name or serial is not there.
    NotFound,
    /// A key file can be read by others, or belongs to somebody else.
    Permission,
    /// An argument makes no sense (a name, a folder inside another, a validity).
    Invalid,
    /// A file's content is not what it should be.
    Malformed,
    /// Two files do not belong together (key and certificate).
    Mismatch,
    /// The certificate's validity has ended or not begun.
    Expired,
    /// The certificate is on the revocation list.
    Revoked,
    /// The certificate does not lead to a trusted CA, or its list cannot be checked.
    Untrusted,
    /// Another process holds the CA.
    Busy,
    /// A cryptographic operation failed.
    Crypto,
}

/// Every error of certificate handling. `Display` says what failed and what to do; the cause is in `source()`.
#[derive(Debug, thiserror::Error)]
#[error("{what}; {advice}")]
pub struct PkiError {
    kind: PkiErrorKind,
    what: String,
    advice: String,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl PkiError {
    /// What to match on.
    #[must_use]
    pub fn kind(&self) -> PkiErrorKind {
        self.kind
    }

    pub(super) fn new(kind: PkiErrorKind, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { kind, what: what.into(), advice: advice.into(), source: None }
    }

    pub(super) fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// An operating-system error in `operation` ("read", "create folder") on `path`.
    pub(super) fn io(operation: &str, path: &Path, source: std::io::Error) -> Self {
        let (kind, advice) = match source.kind() {
            std::io::ErrorKind::NotFound => (PkiErrorKind::NotFound, "check the path"),
            std::io::ErrorKind::AlreadyExists => {
                (PkiErrorKind::Exists, "choose another folder or move it away")
            }
            std::io::ErrorKind::PermissionDenied => {
                (PkiErrorKind::Permission, "run as the owner of the folder or correct its permissions")
            }
            _ => (PkiErrorKind::Io, "correct the cause and run the command again"),
        };
        Self::new(kind, format!("cannot {operation} {}", path.display()), advice).caused_by(source)
    }

    pub(super) fn malformed(path: &Path, expected: &str) -> Self {
        Self::new(
            PkiErrorKind::Malformed,
            format!("{} does not hold {expected}", path.display()),
            "restore the file or issue it again",
        )
    }
}
