//! Listeners: TLS 1.3 for agents, who show certificates, and for people, who show tokens.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rustls::crypto::ring;
use rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::authority::{Authority, ForPeople};
use crate::error::ServiceError;

/// How long a peer may take for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections at once on one listener: what is beyond waits in the kernel's queue.
const CONNECTIONS: usize = 4096;
/// How long connections may take to end when the coordinator stops.
const GOODBYE: Duration = Duration::from_secs(5);
/// After an error of accept(2), such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// Who dials a listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Clients {
    /// Agents: they show a certificate, unless they come to ask for their first.
    Hosts,
    /// People and programs: no certificates.
    People,
}

/// Who dialled.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// The certificate that it showed, checked against the CA but not against revocation.
    pub(crate) certificate: Option<CertificateDer<'static>>,
    /// From where.
    pub(crate) address: SocketAddr,
}

pub(crate) fn tls(authority: &Arc<Authority>, clients: Clients) -> Result<Arc<ServerConfig>, ServiceError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?;
    let builder = match clients {
        Clients::Hosts => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.certificate().clone())?;
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()
                .map_err(ServiceError::internal)?;
            builder.with_client_cert_verifier(verifier)
        }
        Clients::People => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(match clients {
        Clients::Hosts => Arc::clone(authority) as Arc<dyn ResolvesServerCert>,
        Clients::People => Arc::new(ForPeople(Arc::clone(authority))),
    });
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Serves connections until it is to stop, and waits a moment for them to end.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    router: Router,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (place, listener.accept().await)
            } => accepted,
        };
        let (Ok(place), Ok((stream, address))) = accepted else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let (acceptor, router, stop) = (acceptor.clone(), router.clone(), stop.clone());
        tasks.spawn(async move {
            connection(stream, address, acceptor, router, stop).await;
            drop(place);
        });
    }
    drop(listener);
    tasks.close();
    if timeout(GOODBYE, tasks.wait()).await.is_err() {
        tracing::debug!("connections did not end in time");
    }
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    router: Router,
    stop: CancellationToken,
) {
    // Small messages at once; a socket that refuses that works all the same.
    drop(stream.set_nodelay(true));
    let stream = match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "a handshake failed");
            return;
        }
        Err(_) => {
            tracing::debug!(%address, "a handshake took too long");
            return;
        }
    };
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = Peer { certificate: shown.map(|certificate| certificate.clone().into_owned()), address };
    let service = TowerToHyperService::new(router.layer(Extension(peer)));
    let builder = Builder::new(TokioExecutor::new());
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%address, error = %error, "a connection ended");
    }
}
