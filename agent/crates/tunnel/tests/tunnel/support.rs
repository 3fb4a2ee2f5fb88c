//! What the tests share: hosts, extents, a pair of tunnels over any transport.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use novaferry_tunnel::{
    DataReceiver, DataSender, DialOptions, Event, Inbox, ListenOptions, Listener, OutgoingExtent,
    ReceiveBuffers, Transport, TransportChoice, Tunnel, TunnelError, TunnelHandle, dial, memory_pair,
};
use tokio::time::timeout;
use volume::conformance::Dice;
use volume::{ChunkId, ExtentIndex, Generation, Sequence, SessionId};
use wire::{ChunkEntry, Control, Direction, Encoding, ExtentHead, Mode, Open, VolumeFormat};

use crate::authority::Authority;

pub(crate) const SESSION: SessionId = SessionId(*b"0123456789abcdef");
pub(crate) const GENERATION: Generation = Generation(7);

/// A test that hangs fails instead; nothing is measured by it.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(Duration::from_secs(90), future).await {
        Ok(value) => value,
        Err(_late) => panic!("{what} did not happen"),
    }
}

pub(crate) fn open(lanes: u8) -> Control {
    Control::Open(Open {
        session: SESSION,
        direction: Direction::Push,
        mode: Mode::Create,
        format: VolumeFormat::Raw,
        readback: false,
        lanes,
        pool: "pool".into(),
        name: "disk".into(),
    })
}

pub(crate) fn localhost() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

pub(crate) fn listen(authority: &Authority, name: &str) -> Listener {
    Listener::bind(localhost(), &authority.host(name), ListenOptions::default()).unwrap()
}

pub(crate) fn options(port: u16, transport: TransportChoice) -> DialOptions {
    DialOptions { transport, ..DialOptions::new("127.0.0.1", port) }
}

pub(crate) fn content(sequence: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Dice::new(sequence ^ 0x5eed).fill(&mut bytes);
    bytes
}

pub(crate) fn head(sequence: u64, len: usize) -> ExtentHead {
    let len = u32::try_from(len).unwrap();
    ExtentHead {
        sequence: Sequence(sequence),
        floor: Sequence(0),
        extent: ExtentIndex(sequence),
        encoding: Encoding::Raw,
        wire_len: len,
        plain_len: len,
        chunks: if len == 0 {
            vec![ChunkEntry::Zero; 16]
        } else {
            vec![ChunkEntry::Data(ChunkId([7; 32])); usize::try_from(len).unwrap().div_ceil(64 << 10)]
        },
    }
}

/// An extent whose content follows from its sequence, in pieces as the engine would cut it.
pub(crate) fn extent(sequence: u64, len: usize) -> OutgoingExtent {
    let bytes = Bytes::from(content(sequence, len));
    let payload = (0..len).step_by(256 << 10).map(|at| bytes.slice(at..len.min(at + (256 << 10)))).collect();
    OutgoingExtent { sequence: Sequence(sequence), head: head(sequence, len).encode(), payload }
}

/// A tunnel in its parts, with the inbox drained by a task of its own into a list on demand.
pub(crate) struct End {
    pub(crate) handle: TunnelHandle,
    pub(crate) data: DataSender,
    pub(crate) inbox: Inbox,
    pub(crate) receiver: DataReceiver,
}

impl From<Tunnel> for End {
    fn from(tunnel: Tunnel) -> Self {
        let (handle, data, inbox, receiver) = tunnel.split();
        Self { handle, data, inbox, receiver }
    }
}

impl End {
    pub(crate) async fn event(&self) -> Event {
        soon("an event", self.inbox.recv()).await.expect("the tunnel is open")
    }

    /// The reason of the end; everything before it is dropped.
    pub(crate) async fn closed(&self) -> TunnelError {
        loop {
            if let Event::Closed(error) = self.event().await {
                assert!(soon("the end", self.inbox.recv()).await.is_none(), "Closed is the last event");
                return error;
            }
        }
    }
}

/// A pair of tunnels whose dialler has its lanes open.
pub(crate) struct Pair {
    pub(crate) dialler: End,
    pub(crate) accepter: End,
    pub(crate) listener: Option<Listener>,
}

pub(crate) async fn pair(
    transport: Transport,
    connections: u8,
    tune: impl FnOnce(&mut DialOptions, &mut ListenOptions),
    receive: [ReceiveBuffers; 2],
) -> Pair {
    let [dial_buffers, accept_buffers] = receive;
    let choice = match transport {
        Transport::Quic => TransportChoice::Quic,
        Transport::Tcp => TransportChoice::Tcp,
        Transport::Memory => {
            let (left, right) = memory_pair(dial_buffers, accept_buffers).unwrap();
            let pair = Pair { dialler: left.into(), accepter: right.into(), listener: None };
            pair.dialler.handle.send(open(1)).await.unwrap();
            assert!(matches!(pair.accepter.event().await, Event::Control(Control::Open(_))));
            return pair;
        }
    };
    let authority = Authority::new("test");
    let mut dial_options = options(0, choice);
    let mut listen_options = ListenOptions::default();
    dial_options.connections = connections;
    tune(&mut dial_options, &mut listen_options);
    let listener = Listener::bind(localhost(), &authority.host("receiver"), listen_options).unwrap();
    dial_options.port = listener.local_addr().port();
    let dialler: End = soon("the dialling", dial(&dial_options, &authority.host("sender"), dial_buffers))
        .await
        .unwrap()
        .into();
    dialler.handle.send(open(connections)).await.unwrap();
    let incoming = soon("the session", listener.accept()).await.unwrap();
    assert_eq!((incoming.peer().as_str(), incoming.transport()), ("sender", transport));
    let accepter: End = incoming.accept(accept_buffers).unwrap().into();
    assert_eq!(dialler.handle.peer().as_str(), "receiver");
    let Event::Control(first) = accepter.event().await else { panic!("Open comes first") };
    assert_eq!(first, open(connections));
    accepter.handle.register(SESSION, GENERATION);
    let up = soon("the lanes", dialler.handle.open_lanes(SESSION, GENERATION)).await.unwrap();
    assert_eq!(up, if transport == Transport::Tcp { connections } else { connections - 1 });
    Pair { dialler, accepter, listener: Some(listener) }
}
