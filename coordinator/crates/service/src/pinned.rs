//! How somebody who knows a coordinator's CA by its fingerprint alone gets its certificate.

use std::time::Duration;

use control_api::fingerprint;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// How long a coordinator may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a CA's certificate was not got.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// Nobody answers there.
    #[error("cannot reach {address}")]
    Unreachable {
        /// `HOST:PORT`.
        address: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Whoever answers is somebody else.
    #[error("{address} does not show the CA with this fingerprint")]
    Other {
        /// `HOST:PORT`.
        address: String,
        /// What TLS says.
        source: std::io::Error,
    },
    /// TLS cannot be set up.
    #[error("set up TLS")]
    Tls(#[from] control_api::DialError),
}

/// The certificate, as PEM, of the CA with this fingerprint (SHA-256 of its DER), if the coordinator at `HOST:PORT` proves
/// to be of it. Nothing is sent but a handshake.
///
/// # Errors
/// When nobody answers within 10 s, or somebody else.
pub async fn authority_at(address: &str, pin: [u8; 32]) -> Result<String, PinError> {
    let tls = TlsConnector::from(control_api::pinned(pin)?);
    let unreachable = |source| PinError::Unreachable { address: address.to_owned(), source };
    let other = |source| PinError::Other { address: address.to_owned(), source };
    let late = || std::io::Error::from(std::io::ErrorKind::TimedOut);
    let stream = timeout(PATIENCE, TcpStream::connect(address)).await;
    let stream = stream.map_err(|_elapsed| unreachable(late()))?.map_err(unreachable)?;
    let name =
        ServerName::try_from(control_api::SERVER_NAME).map_err(std::io::Error::other).map_err(unreachable)?;
    let shaken = timeout(PATIENCE, tls.connect(name, stream)).await;
    let stream = shaken.map_err(|_elapsed| unreachable(late()))?.map_err(other)?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let root = chain.iter().find(|certificate| fingerprint(certificate) == pin);
    root.map(pki::to_pem).ok_or_else(|| other(std::io::Error::other("it left its CA out")))
}
