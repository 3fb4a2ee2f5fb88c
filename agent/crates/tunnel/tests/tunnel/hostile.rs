//! Peers with a good certificate and bad manners, and strangers without either.

use bytes::Bytes;
use novaferry_tunnel::{CloseCode, Event, Listener, ReceiveBuffers, TransportChoice, TunnelErrorKind, dial};
use quinn::{ConnectionError, VarInt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use volume::Sequence;
use volume::conformance::Dice;
use wire::{
    Control, DecodeError, FRAME_HEADER, FailCode, FrameHeader, LaneClass, LaneHello, MAX_EXTENT_HEAD,
    MAX_PAYLOAD, PRELUDE, Prelude, Tag,
};

use crate::authority::{Authority, Identity, host};
use crate::pool::{Pool, buffers};
use crate::raw::{self, TLS13};
use crate::support::{End, GENERATION, SESSION, extent, head, listen, localhost, open, options, soon};

/// A hand-written client that said hello in good order, and the accepted tunnel.
struct Victim {
    authority: Authority,
    identity: Identity,
    listener: Listener,
}

impl Victim {
    fn new() -> Self {
        let authority = Authority::new("test");
        let identity = authority.issue(&host("rude"));
        let listener = listen(&authority, "victim");
        Self { authority, identity, listener }
    }

    fn tls(&self) -> rustls::ClientConfig {
        raw::client(Some(&self.identity), &[wire::ALPN], TLS13)
    }

    async fn tcp(&self) -> raw::Stream {
        soon("TCP", raw::tcp_connect(self.tls(), self.listener.local_addr())).await.unwrap()
    }

    async fn quic(&self) -> (quinn::Endpoint, quinn::Connection) {
        soon("QUIC", raw::quic_connect(self.tls(), self.listener.local_addr())).await.unwrap()
    }

    /// A session over QUIC with its control stream.
    async fn quic_session(&self, pool: &std::sync::Arc<Pool>) -> QuicSession {
        let (endpoint, connection) = self.quic().await;
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        send.write_all(&Prelude::ours().encode()).await.unwrap();
        receive.read_exact(&mut [0; PRELUDE]).await.unwrap();
        send.write_all(&open(1).encode()).await.unwrap();
        let incoming = soon("the session", self.listener.accept()).await.unwrap();
        let receive_buffers = ReceiveBuffers { pool: pool.clone(), permits: 16 };
        let end: End = incoming.accept(receive_buffers).unwrap().into();
        assert!(matches!(end.event().await, Event::Control(Control::Open(_))));
        QuicSession { _endpoint: endpoint, connection, send, end }
    }

    /// Somebody well-behaved still gets through.
    async fn still_serves(&self) {
        for transport in [TransportChoice::Quic, TransportChoice::Tcp] {
            let options = options(self.listener.local_addr().port(), transport);
            let end: End =
                soon("dial", dial(&options, &self.authority.host("good"), buffers())).await.unwrap().into();
            end.handle.send(open(1)).await.unwrap();
            let incoming = soon("the session", self.listener.accept()).await.unwrap();
            assert_eq!(incoming.peer().as_str(), "good");
        }
    }
}

struct QuicSession {
    _endpoint: quinn::Endpoint,
    connection: quinn::Connection,
    send: quinn::SendStream,
    end: End,
}

fn close_code(error: &ConnectionError) -> Option<VarInt> {
    match error {
        ConnectionError::ApplicationClosed(close) => Some(close.error_code),
        _ => None,
    }
}

fn header(tag: u8, reserved: u8, len: u32) -> Vec<u8> {
    let mut bytes = vec![tag, reserved, 0, 0];
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes
}

/// Greetings that are wrong, and the code that says so.
fn bad_greetings() -> Vec<(&'static str, Vec<u8>, FailCode)> {
    let prelude = |at: usize, value: u8| {
        let mut bytes = Prelude::ours().encode();
        bytes[at] = value;
        bytes.to_vec()
    };
    let after = |frame: Vec<u8>| [Prelude::ours().encode().to_vec(), frame].concat();
    let versions = Prelude { min: 7, max: 9, features: 0 }.encode().to_vec();
    let mut torn_open = open(1).encode().to_vec();
    torn_open.truncate(torn_open.len() - 3);
    let mut long_open = open(1).encode().to_vec();
    long_open.push(0);
    long_open[4] += 1;
    vec![
        ("wrong magic", prelude(0, b'X'), FailCode::Protocol),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: example\r\n\r\n".to_vec(), FailCode::Protocol),
        ("unknown prelude version", prelude(8, 2), FailCode::Version),
        ("reserved bytes", prelude(9, 1), FailCode::Protocol),
        ("no common version", versions, FailCode::Version),
        ("a frame that does not come first", after(Control::Drain.encode().to_vec()), FailCode::Protocol),
        ("tag 0", after(header(0, 0, 0)), FailCode::Protocol),
        ("unknown tag", after(header(200, 0, 0)), FailCode::Protocol),
        ("reserved bits", after(header(Tag::Open as u8, 1, 0)), FailCode::Protocol),
        ("over the cap", after(header(Tag::Open as u8, 0, u32::MAX)), FailCode::Protocol),
        ("an extent", after(head(1, 0).encode().to_vec()), FailCode::Protocol),
        ("an Open that is torn", after(torn_open), FailCode::Protocol),
        ("an Open with more behind it", after(long_open), FailCode::Protocol),
    ]
}

#[tokio::test]
async fn a_bad_greeting_ends_the_connection_with_a_code() {
    let victim = Victim::new();
    for (what, bytes, code) in bad_greetings() {
        let (_endpoint, connection) = victim.quic().await;
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        let _gone = send.write_all(&bytes).await;
        let _gone = send.finish();
        let error = soon(what, connection.closed()).await;
        assert_eq!(close_code(&error), Some(VarInt::from_u32(code as u32)), "{what}: {error}");

        let mut stream = victim.tcp().await;
        let _gone = stream.write_all(&bytes).await;
        let _gone = stream.shutdown().await;
        let mut answer = Vec::new();
        soon(what, stream.read_to_end(&mut answer)).await.unwrap();
        // The prelude may come first; then a Fail frame.
        let tail = if answer.starts_with(b"NOVAFRRY") { &answer[PRELUDE..] } else { &answer[..] };
        let (head, body) = tail.split_first_chunk::<FRAME_HEADER>().expect(what);
        let head = FrameHeader::decode(head).unwrap();
        let Control::Fail(fail) = Control::decode(head.tag, body).unwrap() else { panic!("{what}: no Fail") };
        assert_eq!(fail.code, code, "{what}: {}", fail.detail);
    }
    victim.still_serves().await;
}

/// Streams that break the rules, and what is said about them.
fn bad_extents() -> Vec<(&'static str, Vec<u8>)> {
    let good = extent(1, 300_000);
    let whole = [good.head.to_vec(), good.payload.concat()].concat();
    let with = |at: usize, bytes: &[u8]| {
        let mut frame = whole.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let over = u32::try_from(MAX_PAYLOAD + 1).unwrap().to_le_bytes();
    vec![
        ("control frame", Control::Drain.encode().to_vec()),
        ("unknown tag", header(99, 0, 0)),
        ("head over the cap", header(Tag::Extent as u8, 0, u32::try_from(MAX_EXTENT_HEAD + 1).unwrap())),
        ("head of 4 GiB", header(Tag::Extent as u8, 0, u32::MAX)),
        ("torn header", whole[..5].to_vec()),
        ("torn head", whole[..30].to_vec()),
        ("no payload", good.head.to_vec()),
        ("torn payload", whole[..whole.len() - 1].to_vec()),
        ("payload over the cap", with(FRAME_HEADER + 24, &over)),
        ("4 GiB of payload", with(FRAME_HEADER + 24, &[0xff; 8])),
        ("raw lengths that differ", with(FRAME_HEADER + 28, &[1, 2, 3, 0])),
        ("unknown encoding", with(FRAME_HEADER + 32, &[9])),
        ("no chunks", with(FRAME_HEADER + 33, &[0])),
        ("17 chunks", with(FRAME_HEADER + 33, &[17])),
        ("floor above the sequence", with(FRAME_HEADER + 8, &[0xff; 8])),
        ("unknown kind of chunk", with(FRAME_HEADER + 40, &[77])),
        ("garbage behind the frame", [whole.clone(), vec![0xee; 100]].concat()),
    ]
}

#[tokio::test]
async fn a_bad_extent_over_quic_ends_the_tunnel() {
    let victim = Victim::new();
    for (what, bytes) in bad_extents() {
        let pool = Pool::new(16);
        let session = victim.quic_session(&pool).await;
        let mut stream = session.connection.open_uni().await.unwrap();
        let _gone = stream.write_all(&bytes).await;
        let _gone = stream.finish();
        let error = session.end.closed().await;
        assert!(matches!(error.kind(), TunnelErrorKind::Protocol(_)), "{what}: {error:?}");
        let code = close_code(&soon(what, session.connection.closed()).await);
        assert_eq!(code, Some(VarInt::from_u32(FailCode::Protocol as u32)), "{what}");
        while session.end.receiver.recv().await.is_some() {} // the good frame in front of the garbage
        assert_eq!(pool.out(), 0, "{what}: all buffers are back");
    }
    victim.still_serves().await;
}

#[tokio::test]
async fn a_reset_stream_and_bad_control_frames_end_the_tunnel() {
    let victim = Victim::new();
    let pool = Pool::new(16);
    let good = extent(1, 300_000);
    let session = victim.quic_session(&pool).await;
    let mut stream = session.connection.open_uni().await.unwrap();
    stream.write_all(&good.head).await.unwrap();
    stream.reset(VarInt::from_u32(5)).unwrap();
    // A reset may overtake the head: then nothing was begun, and the stream is as good as torn.
    let error = session.end.closed().await;
    assert_eq!(error.kind(), TunnelErrorKind::Protocol(DecodeError::Truncated("reset stream")));

    let hello = LaneHello { session: SESSION, generation: GENERATION, lane: 1, class: LaneClass::Data };
    let bad: [(&str, Bytes); 6] = [
        ("LaneHello on lane 0", Control::LaneHello(hello).encode()),
        ("a message of migrations", Control::Message(vec![1]).encode()),
        ("Migrate in a copy", Control::Migrate(wire::Migrate { migration: SESSION }).encode()),
        ("an extent on the control stream", good.head.clone()),
        ("unknown tag", header(77, 0, 0).into()),
        ("a frame over the cap", header(Tag::Ack as u8, 0, 1 << 20).into()),
    ];
    for (what, bytes) in bad {
        let mut session = victim.quic_session(&pool).await;
        let _gone = session.send.write_all(&bytes).await;
        let error = session.end.closed().await;
        assert!(matches!(error.kind(), TunnelErrorKind::Protocol(_)), "{what}: {error:?}");
    }
    assert_eq!(pool.out(), 0);
}

/// One bit of a good frame is wrong: an error, or a frame that is good too; never a panic, never a lost buffer.
#[tokio::test]
async fn flipped_bits_do_no_harm() {
    const SEED: u64 = 0x0bad_b175;
    println!("seed {SEED:#x}");
    let victim = Victim::new();
    let mut dice = Dice::new(SEED);
    let good = extent(1, 4096);
    let whole = [good.head.to_vec(), good.payload.concat()].concat();
    for round in 0..60 {
        let pool = Pool::new(16);
        let session = victim.quic_session(&pool).await;
        let mut bytes = whole.clone();
        let bit = usize::try_from(dice.below(good.head.len() as u64 * 8)).unwrap();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let mut stream = session.connection.open_uni().await.unwrap();
        let _gone = stream.write_all(&bytes).await;
        let _gone = stream.finish();
        tokio::select! {
            got = session.end.receiver.recv() => {
                if let Some(got) = got {
                    assert_eq!(got.payload.iter().map(|b| b.len()).sum::<usize>(), 4096, "round {round}");
                }
            }
            error = session.end.closed() => {
                assert!(matches!(error.kind(), TunnelErrorKind::Protocol(_)), "round {round}: {error:?}");
            }
        }
        drop(session);
        drop(pool);
    }
    victim.still_serves().await;
}

/// The data connection of a TCP session breaks the rules.
#[tokio::test]
async fn a_bad_extent_over_tcp_ends_the_tunnel() {
    let victim = Victim::new();
    for (what, bytes) in bad_extents() {
        if what == "control frame" {
            continue; // Drain is refused too, but has the connection's own tags beside it; see below
        }
        let pool = Pool::new(16);
        let mut first = victim.tcp().await;
        first.write_all(&Prelude::ours().encode()).await.unwrap();
        first.write_all(&open(1).encode()).await.unwrap();
        let incoming = soon("the session", victim.listener.accept()).await.unwrap();
        let end: End = incoming.accept(ReceiveBuffers { pool: pool.clone(), permits: 16 }).unwrap().into();
        end.handle.register(SESSION, GENERATION);
        let hello = LaneHello { session: SESSION, generation: GENERATION, lane: 1, class: LaneClass::Data };
        let mut second = victim.tcp().await;
        second.write_all(&Prelude::ours().encode()).await.unwrap();
        second.write_all(&Control::LaneHello(hello).encode()).await.unwrap();
        loop {
            if let Event::LaneUp { lane: 1 } = end.event().await {
                break;
            }
        }
        // The victim may hang up as soon as it has seen enough, before all is written.
        if second.write_all(&bytes).await.is_ok() {
            drop(second.shutdown().await);
        }
        // Hangs up when the victim does, which would wait for it otherwise.
        let hang_up = tokio::spawn(async move { first.read_to_end(&mut Vec::new()).await });
        let error = end.closed().await;
        assert!(matches!(error.kind(), TunnelErrorKind::Protocol(_)), "{what}: {error:?}");
        while end.receiver.recv().await.is_some() {}
        assert_eq!(pool.out(), 0, "{what}: all buffers are back");
        let _end = soon(what, hang_up).await.unwrap();
    }
    victim.still_serves().await;
}

/// A peer that opens as many streams as it may and leaves each frame half sent gets no more than its permits.
#[tokio::test]
async fn half_frames_hold_no_more_than_their_permits() {
    let victim = Victim::new();
    let pool = Pool::new(16);
    let session = victim.quic_session(&pool).await;
    let mut held = Vec::new();
    for sequence in 0..48 {
        let mut stream = soon("a stream", session.connection.open_uni()).await.unwrap();
        stream.write_all(&extent(sequence, 1 << 20).head).await.unwrap();
        stream.write_all(&[0; 100]).await.unwrap();
        held.push(stream);
    }
    // The limit on streams holds: 48 MiB of window are 48 streams.
    tokio::select! {
        biased;
        stream = session.connection.open_uni() => panic!("stream 49 was opened: {stream:?}"),
        () = tokio::task::yield_now() => {}
    }
    // The four frames that have permits can be finished, and then the next four.
    let rest = vec![0_u8; (1 << 20) - 100];
    for stream in &mut held {
        stream.write_all(&rest).await.unwrap();
        stream.finish().unwrap();
        let got = soon("an extent", session.end.receiver.recv()).await.unwrap();
        assert_eq!(got.payload.len(), 4);
        assert!(pool.out() <= 16);
    }
}

/// What does not even speak TLS or QUIC.
#[tokio::test]
async fn junk_at_the_port_does_no_harm() {
    const SEED: u64 = 0x0ddb_a115;
    println!("seed {SEED:#x}");
    let victim = Victim::new();
    let address = victim.listener.local_addr();
    let mut dice = Dice::new(SEED);
    let socket = tokio::net::UdpSocket::bind(localhost()).await.unwrap();
    for _ in 0..500 {
        let mut bytes = vec![0; usize::try_from(dice.below(1500)).unwrap()];
        dice.fill(&mut bytes);
        if dice.below(2) == 0 && bytes.len() > 8 {
            // A long header of QUIC version 1.
            bytes[0] |= 0xc0;
            bytes[1..5].copy_from_slice(&[0, 0, 0, 1]);
        }
        socket.send_to(&bytes, address).await.unwrap();
    }
    for _ in 0..20 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut bytes = vec![0; usize::try_from(dice.below(3000)).unwrap()];
        dice.fill(&mut bytes);
        // The listener may hang up in the middle.
        let _end = stream.write_all(&bytes).await;
    }
    let idle: Vec<_> = futures_util::future::join_all((0..30).map(|_| TcpStream::connect(address))).await;
    victim.still_serves().await;
    drop(idle);
}

/// A server with a good certificate that answers nonsense.
#[tokio::test]
async fn a_dialler_gives_a_typed_error_for_a_bad_answer() {
    let authority = Authority::new("test");
    let identity = authority.issue(&host("server"));
    let credentials = authority.host("dialler");
    let chosen = |min, max, features| Prelude { min, max, features }.encode().to_vec();
    type Expected = fn(TunnelErrorKind) -> bool;
    let cases: [(&str, Vec<u8>, Expected); 5] = [
        ("nothing", vec![], |kind| matches!(kind, TunnelErrorKind::Protocol(DecodeError::Truncated(_)))),
        ("garbage", vec![0x55; PRELUDE], |kind| kind == TunnelErrorKind::Protocol(DecodeError::BadMagic)),
        ("a version of the future", chosen(5, 6, 0), |kind| kind == TunnelErrorKind::Version),
        ("a choice that is none", chosen(1, 2, 0), |kind| matches!(kind, TunnelErrorKind::Protocol(_))),
        ("features that were not offered", chosen(1, 1, 4), |kind| {
            matches!(kind, TunnelErrorKind::Protocol(_))
        }),
    ];
    for (what, answer, expected) in cases {
        let listener = TcpListener::bind(localhost()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let tls = TlsAcceptor::from(std::sync::Arc::new(raw::server(&identity, &[wire::ALPN], TLS13)));
        let bytes = answer.clone();
        let server = tokio::spawn(async move {
            let mut stream = tls.accept(listener.accept().await.unwrap().0).await.unwrap();
            let _gone = stream.write_all(&bytes).await;
            let _gone = stream.shutdown().await;
            let mut seen = Vec::new();
            let _end = stream.read_to_end(&mut seen).await;
        });
        let dialled = dial(&options(port, TransportChoice::Tcp), &credentials, buffers()).await;
        let error = dialled.expect_err(what);
        assert!(expected(error.kind()), "{what} over TCP: {error:?}");
        soon(what, server).await.unwrap();

        let endpoint = raw::quic_server(raw::server(&identity, &[wire::ALPN], TLS13));
        let port = endpoint.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let connection = endpoint.accept().await.unwrap().await.unwrap();
            let (mut send, _receive) = connection.accept_bi().await.unwrap();
            send.write_all(&answer).await.unwrap();
            send.finish().unwrap();
            connection.closed().await
        });
        let error = soon(what, dial(&options(port, TransportChoice::Quic), &credentials, buffers()))
            .await
            .expect_err(what);
        assert!(expected(error.kind()), "{what} over QUIC: {error:?}");
        let closed = soon(what, server).await.unwrap();
        assert!(close_code(&closed).is_some_and(|code| code != VarInt::from_u32(0)), "{what}: {closed}");
    }
}

/// A QUIC lane whose peer vanishes in the middle: all that it took is reported, then its death.
#[tokio::test]
async fn a_quic_lane_reports_what_it_took_before_it_dies() {
    let authority = Authority::new("test");
    let identity = authority.issue(&host("server"));
    let endpoint = raw::quic_server(raw::server(&identity, &[wire::ALPN], TLS13));
    let mut options = options(endpoint.local_addr().unwrap().port(), TransportChoice::Quic);
    options.connections = 2;
    let server = tokio::spawn(async move {
        let mut lanes = Vec::new();
        for lane in 0..2_u64 {
            let connection = endpoint.accept().await.unwrap().await.unwrap();
            let (mut send, mut receive) = connection.accept_bi().await.unwrap();
            receive.read_exact(&mut [0; PRELUDE]).await.unwrap();
            send.write_all(&Prelude::ours().encode()).await.unwrap();
            if lane == 1 {
                let hello =
                    LaneHello { session: SESSION, generation: GENERATION, lane: 1, class: LaneClass::Data };
                let expected = [Control::LaneHello(hello).encode(), Control::Ping(1).encode()].concat();
                let mut seen = vec![0; expected.len()];
                receive.read_exact(&mut seen).await.unwrap();
                assert_eq!(seen, expected);
                send.write_all(&Control::Pong(1).encode()).await.unwrap();
            }
            lanes.push((connection, send, receive));
        }
        // An extent must have come by lane 1 before it dies.
        let mut stream = lanes[1].0.accept_uni().await.unwrap();
        stream.read_exact(&mut [0; 100]).await.unwrap();
        lanes[1].0.close(VarInt::from_u32(FailCode::Storage as u32), b"disk on fire");
        (endpoint, lanes)
    });
    let credentials = authority.host("dialler");
    let end: End = soon("dial", dial(&options, &credentials, buffers())).await.unwrap().into();
    assert_eq!(soon("lane", end.handle.open_lanes(SESSION, GENERATION)).await.unwrap(), 1);
    let data = end.data.clone();
    let producer = tokio::spawn(async move {
        for sequence in 0.. {
            if data.send(extent(sequence, 1 << 20)).await.is_err() {
                break;
            }
        }
    });
    let mut taken: Vec<Sequence> = Vec::new();
    loop {
        match end.event().await {
            Event::LaneTook { lane: 1, sequence } => taken.push(sequence),
            Event::LaneDown { lane: 1, error } => {
                let expected = TunnelErrorKind::PeerClosed(CloseCode::Failed(FailCode::Storage));
                assert_eq!(error.kind(), expected, "{error:?}");
                break;
            }
            Event::LaneUp { lane: 1 } | Event::LaneTook { lane: 0, .. } => {}
            other => panic!("unexpected {other:?}"),
        }
    }
    assert!(!taken.is_empty());
    end.handle.close(CloseCode::Done, "");
    while let Some(event) = end.inbox.recv().await {
        assert!(!matches!(event, Event::LaneTook { lane: 1, .. }), "nothing comes after the death");
    }
    producer.await.unwrap();
    drop(soon("the server", server).await.unwrap());
}
