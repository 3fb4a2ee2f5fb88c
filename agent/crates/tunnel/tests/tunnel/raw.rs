//! Peers written by hand, which do what ours never would.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme, SupportedProtocolVersion};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use wire::Prelude;

use crate::authority::Identity;

pub(crate) const TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
pub(crate) const TLS12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];

/// Believes every server.
#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// A client's TLS with any identity, or none.
pub(crate) fn client(
    identity: Option<&Identity>,
    alpn: &[&[u8]],
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible));
    let mut config = match identity {
        Some(identity) => {
            // Not with_client_auth_cert: it would notice a key that does not belong to the certificate.
            let key = rustls::crypto::ring::sign::any_supported_type(&identity.key()).unwrap();
            let certified = rustls::sign::CertifiedKey::new(identity.chain.clone(), key);
            builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config
}

/// A server's TLS with any identity, which asks for no client certificate.
pub(crate) fn server(
    identity: &Identity,
    alpn: &[&[u8]],
    versions: &[&'static SupportedProtocolVersion],
) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls::crypto::ring::sign::any_supported_type(&identity.key()).unwrap();
    let certified = rustls::sign::CertifiedKey::new(identity.chain.clone(), key);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config
}

pub(crate) type Stream = tokio_rustls::client::TlsStream<TcpStream>;

pub(crate) async fn tcp_connect(config: ClientConfig, address: SocketAddr) -> std::io::Result<Stream> {
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect("anything.invalid".try_into().unwrap(), stream).await
}

pub(crate) async fn quic_connect(
    config: ClientConfig,
    address: SocketAddr,
) -> Result<(quinn::Endpoint, quinn::Connection), quinn::ConnectionError> {
    let endpoint = quinn::Endpoint::client(crate::support::localhost()).unwrap();
    let crypto = QuicClientConfig::try_from(config).unwrap();
    let client = quinn::ClientConfig::new(Arc::new(crypto));
    let connection = endpoint.connect_with(client, address, "anything.invalid").unwrap().await?;
    Ok((endpoint, connection))
}

pub(crate) fn quic_server(config: ServerConfig) -> quinn::Endpoint {
    let crypto = QuicServerConfig::try_from(config).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    quinn::Endpoint::server(config, crate::support::localhost()).unwrap()
}

/// Sends a prelude and whatever follows, and says how many bytes came back before the end.
pub(crate) async fn talk_tcp(mut stream: Stream, bytes: &[u8]) -> usize {
    let mut answer = Vec::new();
    if stream.write_all(&Prelude::ours().encode()).await.is_ok() && stream.write_all(bytes).await.is_ok() {
        // An error is as good an end as any.
        let _end = stream.flush().await;
    }
    let _end = stream.read_to_end(&mut answer).await;
    answer.len()
}

pub(crate) async fn talk_quic(connection: &quinn::Connection, bytes: &[u8]) -> usize {
    let Ok((mut send, mut receive)) = connection.open_bi().await else { return 0 };
    if send.write_all(&Prelude::ours().encode()).await.is_ok() {
        let _end = send.write_all(bytes).await;
    }
    let mut answer = 0;
    while let Ok(Some(chunk)) = receive.read_chunk(1 << 16, true).await {
        answer += chunk.bytes.len();
    }
    answer
}
