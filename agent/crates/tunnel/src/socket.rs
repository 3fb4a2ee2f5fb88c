//! UDP sockets: large buffers, and the two corrections that quinn needs around its own socket.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Once;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::Notify;

/// What is asked for: 8 MiB hold 20 ms of 3 Gbit/s, longer than any pause of the receiving thread.
const BUFFER_WANTED: usize = 8 << 20;
/// Below this a warning is due: measured, the default of 208 KiB costs 1.5 to 2 times the CPU.
const BUFFER_ENOUGH: usize = 4 << 20;
/// Largest payload of one UDP message over IPv4, GSO included.
const MAX_MESSAGE: usize = 65_507;

/// Binds a UDP socket. `remote` connects it, so that the kernel reports refusals by ICMP.
pub(crate) fn udp(local: SocketAddr, remote: Option<SocketAddr>, shared: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))?;
    if local.is_ipv6() && local.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    if shared {
        socket.set_reuse_port(true)?;
    }
    enlarge(&socket)?;
    socket.set_nonblocking(true)?;
    socket.bind(&local.into())?;
    if let Some(remote) = remote {
        socket.connect(&remote.into())?;
    }
    Ok(socket.into())
}

fn enlarge(socket: &Socket) -> io::Result<()> {
    static WARNED: Once = Once::new();
    socket.set_recv_buffer_size(BUFFER_WANTED)?;
    socket.set_send_buffer_size(BUFFER_WANTED)?;
    // Linux doubles what it was given for its bookkeeping and reports that (socket(7)).
    let got = socket.recv_buffer_size()?.min(socket.send_buffer_size()?) / 2;
    if got < BUFFER_ENOUGH {
        WARNED.call_once(|| {
            tracing::warn!(
                got_bytes = got,
                wanted_bytes = BUFFER_WANTED,
                "UDP socket buffers are small and QUIC will be slower; raise them with \
                 `sysctl -w net.core.rmem_max={BUFFER_WANTED} net.core.wmem_max={BUFFER_WANTED}`"
            );
        });
    }
    Ok(())
}

/// The wildcard address of the family of `remote`.
pub(crate) fn wildcard(remote: &SocketAddr) -> IpAddr {
    match remote {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Segments that may go into one GSO message: quinn would send ten, which at an MTU above 6,550 is more than a UDP
/// message holds. The kernel refuses that, quinn-udp ignores the refusal, and the connection crawls.
pub(crate) fn segment_cap(inner: usize, mtu: u16) -> usize {
    inner.min(MAX_MESSAGE / usize::from(mtu.max(1))).max(1)
}

/// Segments that a receive buffer is sized for: one GRO message holds 64 KiB at most, and quinn allocates 32 times
/// MTU x segments. Rounded up, because the segments of a message may be smaller than our MTU.
pub(crate) fn receive_cap(inner: usize, mtu: u16) -> usize {
    inner.min(usize::from(u16::MAX) / usize::from(mtu.max(1)) + 1).max(1)
}

/// Quinn's socket with capped segments, which notes ICMP refusals instead of failing the endpoint: during the
/// handshake they say at once that nobody listens; later anyone could forge them.
#[derive(Debug)]
pub(crate) struct TunnelSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    mtu: u16,
    refused: Arc<Notify>,
}

impl TunnelSocket {
    /// Wraps a socket; must be called inside a tokio runtime.
    pub(crate) fn new(socket: UdpSocket, mtu: u16) -> io::Result<(Arc<Self>, Arc<Notify>)> {
        let inner = TokioRuntime.wrap_udp_socket(socket)?;
        let refused = Arc::new(Notify::new());
        Ok((Arc::new(Self { inner, mtu, refused: refused.clone() }), refused))
    }
}

impl AsyncUdpSocket for TunnelSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.inner.poll_recv(cx, buffers, meta) {
                // The error is taken off the socket by being reported: the next poll goes on.
                Poll::Ready(Err(error)) if is_icmp(&error) => self.refused.notify_one(),
                other => return other,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        segment_cap(self.inner.max_transmit_segments(), self.mtu)
    }

    fn max_receive_segments(&self) -> usize {
        receive_cap(self.inner.max_receive_segments(), self.mtu)
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

fn is_icmp(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_capped_segments_fits_and_no_smaller_cap_would_do() {
        for mtu in 1200..=u16::MAX {
            let segments = segment_cap(64, mtu);
            assert!(segments == 1 || segments * usize::from(mtu) <= MAX_MESSAGE, "mtu {mtu}: {segments}");
            assert!(
                segments == 64 || (segments + 1) * usize::from(mtu) > MAX_MESSAGE,
                "mtu {mtu}: {segments}"
            );
        }
        assert_eq!(segment_cap(64, 8952), 7);
        assert_eq!(segment_cap(1, 8952), 1, "without GSO there is one");
        assert_eq!(segment_cap(10, 0), 10);
    }

    #[test]
    fn a_receive_buffer_holds_the_largest_gro_message() {
        for mtu in 1200..=u16::MAX {
            assert!(receive_cap(64, mtu) * usize::from(mtu) >= 65_535, "mtu {mtu}");
        }
        assert_eq!(receive_cap(64, 8952), 8);
        assert_eq!(receive_cap(1, 8952), 1);
    }
}
