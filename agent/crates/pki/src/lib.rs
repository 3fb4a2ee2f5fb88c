//! Certificates for hosts that have no coordinator: a local CA, the hosts' identities, and checks of peers.
//!
//! One Ed25519 key per host serves TLS (client and server) and signs receipts. A host's name is the one URI SAN
//! `spiffe://novaferry/host/NAME` of its certificate. Only Ed25519 is accepted: receipts name their signer by that
//! key, and one algorithm leaves nothing to negotiate.
//!
//! ```text
//! CA folder (0700)      ca.key 0600 · ca.pem · crl.pem · ledger.jsonl     never leaves the operator's machine
//! host folder (0700)    key.pem 0600 · cert.pem · ca.pem · crl.pem        what `Identity::load` reads
//! ```
//!
//! Nothing here prints; every function returns values that implement `serde::Serialize`, and `Display` where people
//! read them. Functions take the time as `now`, so that tests need no clock.

mod authority;
mod ca;
mod error;
mod files;
mod host_folder;
mod identity;
mod keys;
mod ledger;
mod name;
mod report;
mod request;
mod verify;
mod watch;

#[cfg(test)]
mod tests;

pub use authority::{Authority, CrlReport, IssueOptions, Issued, RevokeReport, RevokeTarget};
pub use ca::{COORDINATOR_URI, Ca, Revoked, Subject, WebKey};
pub use error::{PkiError, PkiErrorKind};
pub use files::{read_credential, read_secret, replace as write_public, replace_secret, write_secret};
pub use host_folder::{IdentityParts, put as put_identity, put_revocations};
pub use identity::{Identity, IdentityPaths, KeyOrigin};
pub use keys::PublicKey;
pub use ledger::{Entry, Serial};
pub use name::{HOST_URI_PREFIX, InvalidPeerName, PeerName, peer_name};
pub use report::{CertificateReport, CertificateState, issued_and_ends, serial_of, show, to_pem};
pub use request::{MAX_REQUEST, NewKey, requested_key};
pub use verify::{TrustStore, Usage, VerifiedPeer};
pub use watch::IdentityWatcher;

/// Days a CA certificate is valid unless asked otherwise: ten years, because replacing it touches every host.
pub const CA_DAYS: u32 = 3650;
/// Days a host certificate is valid unless asked otherwise.
pub const LEAF_DAYS: u32 = 90;
/// Days until the next revocation list is due.
pub const CRL_DAYS: u32 = 30;
/// How long before its making a certificate or list becomes valid. Hosts whose clock runs behind would refuse a
/// fresh certificate; one hour also covers a hardware clock that is an hour off because of daylight saving time.
pub const BACKDATE: std::time::Duration = std::time::Duration::from_secs(3600);

/// File names inside a CA folder.
pub mod ca_files {
    /// The CA's private key, PKCS#8 PEM, mode 0600.
    pub const KEY: &str = "ca.key";
    /// The CA's certificate.
    pub const CERTIFICATE: &str = "ca.pem";
    /// The newest revocation list.
    pub const CRL: &str = "crl.pem";
    /// What was issued, revoked and signed, one JSON object a line.
    pub const LEDGER: &str = "ledger.jsonl";
}

/// File names inside a host's folder.
pub mod host_files {
    /// The host's private key, PKCS#8 PEM, mode 0600.
    pub const KEY: &str = "key.pem";
    /// The host's certificate, followed by intermediates if there are any.
    pub const CERTIFICATE: &str = "cert.pem";
    /// The CA certificates that peers are checked against.
    pub const CA: &str = "ca.pem";
    /// The revocation lists that peers are checked against.
    pub const CRL: &str = "crl.pem";
}
