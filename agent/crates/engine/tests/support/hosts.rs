//! Two hosts in one process: each with its own pools, state and certificates, joined by a real tunnel on loopback.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use novaferry_engine::ends::LocalVolume;
use novaferry_engine::pool::Pool;
use novaferry_engine::process::{Process, SessionLimits};
use novaferry_engine::progress::Progress;
use novaferry_engine::receive::receive_buffers;
use novaferry_engine::transfer::{Accepted, Context, CopyOptions, Dialler, Registry, RemoteVolume, accept};
use receipt::ReceiptSigner;
use tokio_util::sync::CancellationToken;
use tunnel::{DialOptions, ListenOptions, Listener, TransportChoice};
use wire::{Mode, VolumeFormat};

use crate::authority::Authority;

/// A host that listens. Dropping it ends its sessions.
pub(crate) struct Host {
    pub(crate) address: SocketAddr,
    pub(crate) registry: Registry,
    stop: CancellationToken,
    kill: CancellationToken,
    served: Option<tokio::task::JoinHandle<()>>,
}

pub(crate) fn process() -> Process {
    Process::start(SessionLimits::default(), disk::Backend::Auto).unwrap()
}

impl Host {
    /// Starts host `b` over a pool folder `POOL` that `a` may push to and pull from.
    pub(crate) fn start(
        authority: &Authority,
        folder: &std::path::Path,
        address: SocketAddr,
        quota: Option<u64>,
    ) -> Self {
        let pool_folder = folder.join("pool");
        std::fs::create_dir_all(&pool_folder).unwrap();
        let peers = || vec!["a".to_owned(), "c".to_owned()];
        let pool = Pool::open("fast", &pool_folder, quota, peers(), peers()).unwrap();
        let listener =
            Listener::bind(address, &authority.credentials("b"), ListenOptions::default()).unwrap();
        let address = listener.local_addr();
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        let registry = Registry::new(8);
        let with = Accepted {
            process: process(),
            pools: Arc::new(vec![pool]),
            state: folder.join("state-b"),
            signer: Arc::new(ReceiptSigner::new(
                ed25519_dalek::SigningKey::from_bytes(&[1; 32]),
                String::new(),
                "b".to_owned(),
            )),
            registry: registry.clone(),
            stop: stop.clone(),
        };
        let killed = kill.clone();
        let served = tokio::spawn(async move {
            let mut sessions = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    incoming = listener.accept() => {
                        let Some(incoming) = incoming else { break };
                        let disk = with.process.session_disk().unwrap();
                        let buffers = receive_buffers(&disk.pool, with.process.limits().buffers);
                        let Ok(tunnel) = incoming.accept(buffers) else { continue };
                        let with = with.clone();
                        sessions.spawn(async move { drop(accept(&with, tunnel, disk, Arc::default()).await) });
                    }
                    () = with.stop.cancelled() => break,
                    () = killed.cancelled() => {
                        sessions.abort_all();
                        break;
                    }
                }
            }
            if killed.is_cancelled() {
                listener.close();
            }
            while sessions.join_next().await.is_some() {}
            listener.close();
            listener.ended().await;
        });
        Self { address, registry, stop, kill, served: Some(served) }
    }

    /// Ends it orderly: what is in flight becomes durable.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        self.served.take().unwrap().await.unwrap();
    }

    /// Drops everything where it stands.
    pub(crate) async fn kill(mut self) {
        self.kill.cancel();
        self.served.take().unwrap().await.unwrap();
    }
}

/// What `a` needs to copy something.
pub(crate) fn context(folder: &std::path::Path, mode: Mode) -> Context {
    Context {
        process: process(),
        options: CopyOptions {
            mode,
            format: VolumeFormat::Raw,
            level: reduce::Mode::Auto,
            readback: false,
            drop_snapshots: false,
            state: folder.join("state-a"),
            patience: Duration::ZERO,
        },
        progress: Arc::new(Progress::default()),
        stop: CancellationToken::new(),
        cancel: CancellationToken::new(),
        signer: None,
    }
}

pub(crate) fn dialler(authority: &Authority, address: SocketAddr, transport: TransportChoice) -> Dialler {
    dialler_as(authority, "a", address, transport)
}

pub(crate) fn dialler_as(
    authority: &Authority,
    name: &str,
    address: SocketAddr,
    transport: TransportChoice,
) -> Dialler {
    let mut options = DialOptions::new(address.ip().to_string(), address.port());
    options.transport = transport;
    Dialler { options, credentials: authority.credentials(name) }
}

pub(crate) fn raw(path: PathBuf) -> LocalVolume {
    LocalVolume::Path { path, format: VolumeFormat::Raw }
}

pub(crate) fn remote(name: &str) -> RemoteVolume {
    RemoteVolume { pool: "fast".to_owned(), name: name.to_owned() }
}
