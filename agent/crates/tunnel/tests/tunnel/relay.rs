//! A link between two hosts that can go dead without a word: nothing is refused, nothing is closed, nothing passes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use novaferry_tunnel::Transport;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::support::localhost;

/// Packets, or reads of a TCP socket, that still pass towards the target. Nothing comes back when there are none.
#[derive(Clone)]
struct Allowance(Arc<AtomicU64>);

impl Allowance {
    fn is_spent(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 0
    }

    /// Whether one more may pass.
    fn take(&self) -> bool {
        self.0.try_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
    }
}

/// Forwards to a target until it is cut.
pub(crate) struct DeadlyLink {
    pub(crate) address: SocketAddr,
    allowance: Allowance,
}

impl DeadlyLink {
    pub(crate) async fn to(target: SocketAddr, transport: Transport) -> Self {
        let allowance = Allowance(Arc::new(AtomicU64::new(u64::MAX)));
        let address = match transport {
            Transport::Quic => udp(target, allowance.clone()).await,
            Transport::Tcp => tcp(target, allowance.clone()).await,
            Transport::Memory => panic!("there is no link in memory"),
        };
        Self { address, allowance }
    }

    pub(crate) fn cut(&self) {
        self.allow(0);
    }

    /// Lets no more than so many packets pass from now on.
    pub(crate) fn allow(&self, packets: u64) {
        self.allowance.0.store(packets, Ordering::SeqCst);
    }
}

/// One caller, whose packets come from one socket.
async fn udp(target: SocketAddr, allowance: Allowance) -> SocketAddr {
    let near = UdpSocket::bind(localhost()).await.unwrap();
    let far = UdpSocket::bind(localhost()).await.unwrap();
    far.connect(target).await.unwrap();
    let address = near.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut there, mut back) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        let mut caller = None;
        loop {
            tokio::select! {
                got = near.recv_from(&mut there) => {
                    let (len, from) = got.unwrap();
                    caller = Some(from);
                    if allowance.take() {
                        // What cannot be sent is lost, as packets are.
                        let _lost = far.send(&there[..len]).await;
                    }
                }
                got = far.recv(&mut back) => {
                    if let (Ok(len), Some(caller), false) = (got, caller, allowance.is_spent()) {
                        let _lost = near.send_to(&back[..len], caller).await;
                    }
                }
            }
        }
    });
    address
}

async fn tcp(target: SocketAddr, allowance: Allowance) -> SocketAddr {
    let listener = TcpListener::bind(localhost()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let (near_read, near_write) = near.into_split();
            let (far_read, far_write) = TcpStream::connect(target).await.unwrap().into_split();
            tokio::spawn(carry(near_read, far_write, allowance.clone()));
            tokio::spawn(carry(far_read, near_write, allowance.clone()));
        }
    });
    address
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, allowance: Allowance) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let len = from.read(&mut buffer).await.unwrap_or(0);
        if !allowance.take() {
            // Holds the sockets open; the test's runtime ends it.
            std::future::pending::<()>().await;
        }
        if len == 0 || to.write_all(&buffer[..len]).await.is_err() {
            break;
        }
    }
    let _gone = to.shutdown().await;
}
