//! Why the coordinator cannot do something.

use std::net::SocketAddr;

use pki::PkiError;
use store::StoreError;

/// An error of the coordinator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Keys and certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// TLS.
    #[error("set up TLS")]
    Tls(#[from] rustls::Error),
    /// An address cannot be used.
    #[error("listen for {what} on {address}; choose another address, or stop who listens there")]
    Listen {
        /// For whom.
        what: String,
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// Another coordinator may lead now.
    #[error(
        "the database was lost, and another coordinator may lead now; start this one again, and it stands by"
    )]
    Replaced,
    /// The CA's key, or what opens it.
    #[error("{0}")]
    Key(String),
    /// A backup, or the folder that it is to go to.
    #[error("{0}")]
    Backup(String),
    /// What cannot be.
    #[error("{0}; this is a bug")]
    Internal(String),
}

impl ServiceError {
    pub(crate) fn internal(what: impl ToString) -> Self {
        Self::Internal(what.to_string())
    }

    pub(crate) fn listen(what: &str, address: SocketAddr, source: std::io::Error) -> Self {
        Self::Listen { what: what.to_owned(), address, source }
    }
}
