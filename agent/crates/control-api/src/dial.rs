//! How an agent dials its coordinator.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::token::fingerprint;
use crate::v1::coordinator_client::CoordinatorClient;
use crate::{MAX_MESSAGE, SERVER_NAME};

/// How long a connection may take to be made, TLS included.
const CONNECT: Duration = Duration::from_secs(10);
/// Sent on a silent connection, and how long it is waited for: a peer that is gone without a word is noticed.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(10));

/// The line, open.
pub type Client = CoordinatorClient<Channel>;

/// Why a coordinator cannot be reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// Keys or certificates do not fit.
    #[error("set up TLS")]
    Tls(#[from] rustls::Error),
    /// Nobody answers there, or it is somebody else.
    #[error("connect to the coordinator at {authority}")]
    Connect {
        /// `HOST:PORT`.
        authority: String,
        /// Why not.
        source: tonic::transport::Error,
    },
}

/// TLS for [`Join`](crate::v1::JoinRequest): whoever shows a chain to the CA with this fingerprint.
///
/// # Errors
/// None in practice.
pub fn pinned(pin: [u8; 32]) -> Result<Arc<ClientConfig>, DialError> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(Pinned { pin, provider: Arc::clone(&provider) });
    let config =
        builder(provider)?.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    Ok(Arc::new(with_http2(config)))
}

/// TLS for [`Connect`](crate::v1::Hello): both ends show certificates of these CAs.
///
/// # Errors
/// When key and chain do not belong together, or a CA's certificate is none.
pub fn mutual(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: &[CertificateDer<'static>],
) -> Result<Arc<ClientConfig>, DialError> {
    let mut trusted = RootCertStore::empty();
    for root in roots {
        trusted.add(root.clone())?;
    }
    let config = builder(Arc::new(ring::default_provider()))?.with_root_certificates(trusted);
    Ok(Arc::new(with_http2(config.with_client_auth_cert(chain, key)?)))
}

fn builder(
    provider: Arc<CryptoProvider>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, rustls::Error> {
    ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13])
}

fn with_http2(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Connects to a coordinator at `HOST:PORT`.
///
/// # Errors
/// When nobody answers in time, or TLS refuses whoever does.
pub async fn dial(authority: &str, tls: Arc<ClientConfig>) -> Result<Client, DialError> {
    let connect = |source| DialError::Connect { authority: authority.to_owned(), source };
    // The scheme says that tonic adds no TLS of its own.
    let endpoint = Endpoint::from_shared(format!("http://{authority}")).map_err(connect)?;
    let endpoint = endpoint
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1)
        .keep_alive_while_idle(true);
    let address = authority.to_owned();
    let connector = tower::service_fn(move |_uri| {
        let (address, tls) = (address.clone(), Arc::clone(&tls));
        async move {
            let stream = TcpStream::connect(&address).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
            let stream = TlsConnector::from(tls).connect(name, stream).await?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    let channel = endpoint.connect_with_connector(connector).await.map_err(connect)?;
    Ok(Client::new(channel).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE))
}

/// Trusts the one CA whose fingerprint is known, if the server shows it. All else is checked as always.
#[derive(Debug)]
struct Pinned {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let root = intermediates.iter().find(|certificate| fingerprint(certificate) == self.pin);
        let root = root.ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider));
        let verifier = verifier.build().map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let schemes = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, schemes)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let schemes = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, schemes)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
