//! Migrations whose peer has a good certificate and bad manners.

use novaferry_tunnel::{MAX_CHANNELS, Transport, TunnelErrorKind};
use quinn::{ConnectionError, VarInt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use volume::{Generation, SessionId};
use wire::{
    ChannelHello, Control, FRAME_HEADER, FailCode, FrameHeader, MAX_CONTROL_BODY, Migrate, PRELUDE, Prelude,
    Tag,
};

use crate::authority::host;
use crate::channels::{Migration, hello};
use crate::raw::{self, TLS13};
use crate::support::{GENERATION, SESSION, open, soon};

/// The first frames of a channel.
fn greeting(hello: ChannelHello) -> Vec<u8> {
    [Control::ChannelHello(hello).encode(), Control::Ping(1).encode()].concat()
}

fn unknown_kind() -> Vec<u8> {
    let mut bytes = greeting(hello(1));
    bytes[FRAME_HEADER + 26] = 9;
    bytes
}

fn header(tag: Tag, len: usize) -> Vec<u8> {
    let len = u32::try_from(len).unwrap().to_le_bytes();
    [tag as u8, 0, 0, 0, len[0], len[1], len[2], len[3]].to_vec()
}

/// Greetings of channels that break the protocol.
fn bad_greetings() -> Vec<(&'static str, Vec<u8>)> {
    let hello = Control::ChannelHello(hello(1)).encode();
    vec![
        ("an unknown kind", unknown_kind()),
        ("another frame", Control::Drain.encode().to_vec()),
        ("no Ping behind the hello", [hello.clone(), Control::Drain.encode()].concat()),
        ("raw bytes behind the hello", [&hello[..], &[0xee; 64]].concat()),
        ("a torn hello", hello[..20].to_vec()),
        ("a hello of another length", header(Tag::ChannelHello, 31)),
        ("a frame over the cap", header(Tag::Message, MAX_CONTROL_BODY + 1)),
    ]
}

/// A migration that a hand-written client began over QUIC.
struct Guest {
    migration: Migration,
    tunnel: novaferry_tunnel::ChannelTunnel,
    _endpoint: quinn::Endpoint,
    connection: quinn::Connection,
    send: quinn::SendStream,
}

impl Guest {
    async fn new() -> Self {
        Self::beside(Migration::new(Transport::Quic).await).await
    }

    async fn beside(migration: Migration) -> Self {
        let identity = migration.authority.issue(&host("rude"));
        let tls = raw::client(Some(&identity), &[wire::ALPN], TLS13);
        let (endpoint, connection) =
            soon("QUIC", raw::quic_connect(tls, migration.listener.local_addr())).await.unwrap();
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        send.write_all(&Prelude::ours().encode()).await.unwrap();
        receive.read_exact(&mut [0; PRELUDE]).await.unwrap();
        send.write_all(&Control::Migrate(Migrate { migration: SESSION }).encode()).await.unwrap();
        let incoming = soon("the migration", migration.listener.accept()).await.unwrap();
        // Until it is accepted, there is no stream but the first.
        tokio::select! {
            biased;
            stream = connection.open_bi() => panic!("a second stream was opened: {stream:?}"),
            () = tokio::task::yield_now() => {}
        }
        let tunnel = incoming.accept_channels().unwrap();
        tunnel.register(GENERATION);
        Self { migration, tunnel, _endpoint: endpoint, connection, send }
    }

    /// Opens a stream with these bytes.
    async fn stream(&self, bytes: &[u8]) -> (quinn::SendStream, quinn::RecvStream) {
        let (mut send, receive) = soon("a stream", self.connection.open_bi()).await.unwrap();
        send.write_all(bytes).await.unwrap();
        (send, receive)
    }

    /// The tunnel ended because of what was sent, and the peer is told.
    async fn expect_protocol(&self, what: &str) {
        let error = soon(what, self.tunnel.closed()).await;
        assert!(matches!(error.kind(), TunnelErrorKind::Protocol(_)), "{what}: {error:?}");
        match soon(what, self.connection.closed()).await {
            ConnectionError::ApplicationClosed(close) => {
                assert_eq!(close.error_code, VarInt::from_u32(FailCode::Protocol as u32), "{what}");
            }
            other => panic!("{what}: {other}"),
        }
    }
}

/// Reads a Fail frame.
fn fail(bytes: &[u8]) -> FailCode {
    let (head, body) = bytes.split_first_chunk::<FRAME_HEADER>().expect("a frame");
    let head = FrameHeader::decode(head).unwrap();
    let Control::Fail(fail) = Control::decode(head.tag, body).unwrap() else { panic!("no Fail") };
    fail.code
}

#[tokio::test]
async fn a_bad_channel_over_quic_ends_its_tunnel_alone() {
    for (what, bytes) in bad_greetings() {
        let guest = Guest::new().await;
        let (mut send, _receive) = guest.stream(&bytes).await;
        let _gone = send.finish();
        guest.expect_protocol(what).await;
        guest.migration.channel(5).await;
    }
}

#[tokio::test]
async fn bad_frames_on_the_control_stream_end_the_tunnel() {
    let bad = [
        ("a message over the cap", header(Tag::Message, MAX_CONTROL_BODY + 1)),
        ("a hello", Control::ChannelHello(hello(1)).encode().to_vec()),
        ("a second Migrate", Control::Migrate(Migrate { migration: SESSION }).encode().to_vec()),
        ("an Open", open(1).encode().to_vec()),
        ("a frame of copies", Control::Drain.encode().to_vec()),
    ];
    for (what, bytes) in bad {
        let mut guest = Guest::new().await;
        guest.send.write_all(&bytes).await.unwrap();
        guest.expect_protocol(what).await;
        guest.migration.channel(5).await;
    }
}

/// What is well-formed and not wanted is refused on its own stream; what was given up half-way is forgotten.
#[tokio::test]
async fn a_refused_channel_over_quic_leaves_the_tunnel_alone() {
    let guest = Guest::new().await;
    let (_held, mut pong) = guest.stream(&greeting(hello(1))).await;
    let mut answer = [0; FRAME_HEADER + 8];
    soon("the Pong", pong.read_exact(&mut answer)).await.unwrap();
    assert_eq!(answer[..], Control::Pong(1).encode()[..]);
    let other = |hello: ChannelHello| greeting(hello);
    let refused = [
        (other(ChannelHello { migration: SessionId([9; 16]), ..hello(2) }), FailCode::NotFound),
        (other(ChannelHello { generation: Generation(1), ..hello(2) }), FailCode::StaleGeneration),
        (other(hello(1)), FailCode::Busy),
    ];
    for (bytes, code) in refused {
        let (_send, mut receive) = guest.stream(&bytes).await;
        let answer = soon("the refusal", receive.read_to_end(1000)).await.unwrap();
        assert_eq!(fail(&answer), code);
    }
    let (mut send, _receive) = guest.stream(&greeting(hello(3))[..10]).await;
    send.reset(VarInt::from_u32(1)).unwrap();
    guest.tunnel.send_message(b"well".to_vec()).await.unwrap();
    let (_, channel) = soon("the first", guest.tunnel.accept_channel()).await.unwrap();
    drop(channel);
    // Streams that are half open take nothing from anybody, and there are no more than a few above the channels.
    let mut held = Vec::new();
    while held.len() < 1000 {
        tokio::select! {
            biased;
            stream = guest.connection.open_bi() => {
                let (mut send, receive) = stream.unwrap();
                send.write_all(&greeting(hello(9))[..3]).await.unwrap();
                held.push((send, receive));
            }
            () = tokio::task::yield_now() => break,
        }
    }
    assert!(
        (usize::from(MAX_CHANNELS)..=usize::from(MAX_CHANNELS) + 16).contains(&held.len()),
        "{}",
        held.len()
    );
    guest.migration.channel(5).await;
}

/// One peer opens as many channels as it can.
#[tokio::test]
async fn a_flood_of_channels_over_quic_is_refused() {
    let guest = Guest::new().await;
    let mut held = Vec::new();
    for number in 0..u16::from(MAX_CHANNELS) {
        let (send, mut receive) = guest.stream(&greeting(hello(number))).await;
        let mut answer = [0; FRAME_HEADER + 8];
        soon("the Pong", receive.read_exact(&mut answer)).await.unwrap();
        held.push((send, receive));
    }
    let (_send, mut receive) = guest.stream(&greeting(hello(1000))).await;
    assert_eq!(fail(&soon("the refusal", receive.read_to_end(1000)).await.unwrap()), FailCode::Overloaded);
    guest.tunnel.send_message(b"well".to_vec()).await.unwrap();
    guest.migration.channel(5).await;
}

/// A channel of a migration over TCP, by hand.
async fn dial(migration: &Migration, name: &str) -> raw::Stream {
    let identity = migration.authority.issue(&host(name));
    let tls = raw::client(Some(&identity), &[wire::ALPN], TLS13);
    let mut stream = soon("TCP", raw::tcp_connect(tls, migration.listener.local_addr())).await.unwrap();
    stream.write_all(&Prelude::ours().encode()).await.unwrap();
    stream.read_exact(&mut [0; PRELUDE]).await.unwrap();
    stream
}

/// Over TCP a bad channel is only a bad connection: nobody can say yet whose it would have been.
#[tokio::test]
async fn a_bad_channel_over_tcp_harms_nobody() {
    let migration = Migration::new(Transport::Tcp).await;
    let stale = ChannelHello { generation: Generation(1), ..hello(2) };
    let unknown = ChannelHello { migration: SessionId([9; 16]), ..hello(2) };
    let refused = [
        ("an unknown kind", "sender", unknown_kind(), FailCode::Protocol),
        ("a stranger", "stranger", greeting(hello(2)), FailCode::NotFound),
        ("an unknown migration", "sender", greeting(unknown), FailCode::NotFound),
        ("an old generation", "sender", greeting(stale), FailCode::StaleGeneration),
    ];
    for (what, name, bytes, code) in refused {
        let mut stream = dial(&migration, name).await;
        stream.write_all(&bytes).await.unwrap();
        let mut answer = Vec::new();
        soon(what, stream.read_to_end(&mut answer)).await.unwrap();
        assert_eq!(fail(&answer), code, "{what}");
    }
    for (what, bytes) in bad_greetings() {
        let mut stream = dial(&migration, "sender").await;
        let _gone = stream.write_all(&bytes).await;
        let _gone = stream.shutdown().await;
        // With or without a reason: it ends, and is no channel.
        let _end = soon(what, stream.read_to_end(&mut Vec::new())).await;
    }
    migration.channel(5).await;
}

/// One peer opens as many connections as it can.
#[tokio::test]
async fn a_flood_of_channels_over_tcp_is_refused() {
    let migration = Migration::new(Transport::Tcp).await;
    let mut held = Vec::new();
    for number in 0..u16::from(MAX_CHANNELS) {
        let mut stream = dial(&migration, "sender").await;
        stream.write_all(&greeting(hello(number))).await.unwrap();
        let mut answer = [0; FRAME_HEADER + 8];
        soon("the Pong", stream.read_exact(&mut answer)).await.unwrap();
        held.push(stream);
    }
    for (number, code) in [(1000, FailCode::Overloaded), (1, FailCode::Busy)] {
        let mut stream = dial(&migration, "sender").await;
        stream.write_all(&greeting(hello(number))).await.unwrap();
        let mut answer = Vec::new();
        soon("the refusal", stream.read_to_end(&mut answer)).await.unwrap();
        assert_eq!(fail(&answer), code);
    }
    migration.dialler.send_message(b"well".to_vec()).await.unwrap();
    assert_eq!(soon("a message", migration.acceptor.recv_message()).await.unwrap(), b"well");
}

/// A channel of a migration over QUIC is a stream of its connection, and never a connection.
#[tokio::test]
async fn a_quic_migration_has_no_channel_over_tcp() {
    let migration = Migration::new(Transport::Quic).await;
    let mut stream = dial(&migration, "sender").await;
    stream.write_all(&greeting(hello(0))).await.unwrap();
    let mut answer = Vec::new();
    soon("the refusal", stream.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(fail(&answer), FailCode::NotFound);
    migration.channel(5).await;
}
