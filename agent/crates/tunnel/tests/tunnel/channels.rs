//! Migrations: channels and messages between good peers, and how they end.

use std::time::Duration;

use bytes::Bytes;
use novaferry_tunnel::{
    Channel, ChannelReader, ChannelTunnel, ChannelWriter, CloseCode, DialOptions, ListenOptions, Listener,
    MAX_CHANNELS, Request, Transport, TransportChoice, TunnelError, TunnelErrorKind, dial, dial_channels,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use volume::{Generation, SessionId};
use wire::{ChannelHello, ChannelKind, FailCode};

use crate::authority::Authority;
use crate::pool::buffers;
use crate::relay::DeadlyLink;
use crate::support::{GENERATION, SESSION, content, listen, localhost, open, options, soon};

pub(crate) const BOTH: [Transport; 2] = [Transport::Quic, Transport::Tcp];

pub(crate) fn choice(transport: Transport) -> TransportChoice {
    if transport == Transport::Tcp { TransportChoice::Tcp } else { TransportChoice::Quic }
}

pub(crate) fn hello(channel: u16) -> ChannelHello {
    let kind = if channel.is_multiple_of(2) { ChannelKind::Ram } else { ChannelKind::Disk };
    ChannelHello { migration: SESSION, generation: GENERATION, channel, kind }
}

/// A migration whose generation is registered.
pub(crate) struct Migration {
    pub(crate) dialler: ChannelTunnel,
    pub(crate) acceptor: ChannelTunnel,
    pub(crate) listener: Listener,
    pub(crate) authority: Authority,
}

impl Migration {
    pub(crate) async fn new(transport: Transport) -> Self {
        Self::tuned(transport, |_, _| {}).await
    }

    async fn tuned(transport: Transport, tune: impl FnOnce(&mut DialOptions, &mut ListenOptions)) -> Self {
        let authority = Authority::new("test");
        let mut dial_options = options(0, choice(transport));
        let mut listen_options = ListenOptions::default();
        tune(&mut dial_options, &mut listen_options);
        let listener = Listener::bind(localhost(), &authority.host("receiver"), listen_options).unwrap();
        if dial_options.port == 0 {
            dial_options.port = listener.local_addr().port();
        }
        let (dialler, acceptor) = connect(&authority, "sender", &listener, &dial_options).await;
        acceptor.register(GENERATION);
        Self { dialler, acceptor, listener, authority }
    }

    /// Both ends of a new channel.
    pub(crate) async fn channel(&self, number: u16) -> (Channel, Channel) {
        let near = soon("a channel", self.dialler.open_channel(hello(number))).await.unwrap();
        let (told, far) = soon("its other end", self.acceptor.accept_channel()).await.unwrap();
        assert_eq!(told, hello(number));
        (near, far)
    }
}

pub(crate) async fn connect(
    authority: &Authority,
    name: &str,
    listener: &Listener,
    options: &DialOptions,
) -> (ChannelTunnel, ChannelTunnel) {
    let credentials = authority.host(name);
    let dialler = soon("dial", dial_channels(options, &credentials, SESSION)).await.unwrap();
    let incoming = soon("the migration", listener.accept()).await.unwrap();
    let Request::Migrate(migrate) = incoming.request() else { panic!("no migration") };
    assert_eq!(migrate.migration, SESSION);
    let acceptor = incoming.accept_channels().unwrap();
    assert_eq!((acceptor.peer().as_str(), dialler.peer().as_str()), (name, "receiver"));
    assert_eq!(acceptor.transport(), dialler.transport());
    (dialler, acceptor)
}

async fn send_all(mut write: ChannelWriter, seed: u64, len: usize) -> ChannelWriter {
    let bytes = Bytes::from(content(seed, len));
    let pieces: Vec<_> = (0..len).step_by(100_001).map(|at| bytes.slice(at..len.min(at + 100_001))).collect();
    for pieces in pieces.chunks(7) {
        let mut pieces = pieces.to_vec();
        pieces.insert(0, Bytes::new()); // an empty piece is no end
        write.write_all_chunks(&mut pieces).await.unwrap();
        assert!(pieces.iter().all(Bytes::is_empty));
    }
    write.finish().await.unwrap();
    write
}

async fn expect_all(mut read: ChannelReader, seed: u64, len: usize) -> ChannelReader {
    let expected = content(seed, len);
    let mut at = 0;
    while let Some(chunk) = soon("a chunk", read.read_chunk(48 << 10)).await.unwrap() {
        assert!(!chunk.is_empty() && chunk.len() <= 48 << 10);
        assert!(expected[at..].starts_with(&chunk), "channel {seed} differs behind byte {at}");
        at += chunk.len();
    }
    assert_eq!(at, len, "channel {seed}");
    assert!(read.read_chunk(1).await.unwrap().is_none(), "the end stays the end");
    read
}

const MIB: usize = 1 << 20;

/// Nobody reads one direction of one channel: the other nine, and the messages, do not mind.
async fn a_stalled_reader(transport: Transport) {
    let migration = Migration::new(transport).await;
    let mut readers = Vec::new();
    let mut writers = Vec::new();
    let mut stalled = None;
    // More than sockets and windows hold.
    let long = 48 * MIB;
    for number in 0..5_u16 {
        let (near, far) = migration.channel(number).await;
        let seed = u64::from(number);
        readers.push(tokio::spawn(expect_all(near.read, 100 + seed, 8 * MIB)));
        writers.push(tokio::spawn(send_all(far.write, 100 + seed, 8 * MIB)));
        if number == 4 {
            stalled = Some((far.read, tokio::spawn(send_all(near.write, seed, long))));
        } else {
            readers.push(tokio::spawn(expect_all(far.read, seed, 8 * MIB)));
            writers.push(tokio::spawn(send_all(near.write, seed, 8 * MIB)));
        }
    }
    let mut held = Vec::new();
    for reader in readers {
        held.push(soon("a channel that is read", reader).await.unwrap());
    }
    let mut ends = Vec::new();
    for writer in writers {
        ends.push(soon("the writer of a channel that is read", writer).await.unwrap());
    }
    let (reader, writer) = stalled.unwrap();
    assert!(!writer.is_finished(), "48 MiB are more than anybody holds");
    migration.dialler.send_message(b"there".to_vec()).await.unwrap();
    assert_eq!(soon("a message", migration.acceptor.recv_message()).await.unwrap(), b"there");
    migration.acceptor.send_message(b"back".to_vec()).await.unwrap();
    assert_eq!(soon("a message", migration.dialler.recv_message()).await.unwrap(), b"back");
    // And whoever comes later does not mind either.
    let (near, far) = migration.channel(77).await;
    let late = tokio::spawn(send_all(near.write, 77, 3 * MIB));
    expect_all(far.read, 77, 3 * MIB).await;
    soon("the late writer", late).await.unwrap();

    expect_all(reader, 4, long).await;
    soon("the writer that was stalled", writer).await.unwrap();
    let (sent, received) = (migration.dialler.stats(), migration.acceptor.stats());
    let there = (4 * 8 * MIB + long + 3 * MIB) as u64;
    assert_eq!((sent.payload_sent, received.payload_received), (there, there));
    assert_eq!((sent.payload_received, received.payload_sent), (5 * 8 * MIB as u64, 5 * 8 * MIB as u64));
    assert!(sent.wire_sent > there && received.wire_received > there);
    assert!(sent.rtt.is_some() || transport == Transport::Tcp);
}

#[tokio::test]
async fn a_stalled_reader_stops_no_other_channel_over_quic() {
    a_stalled_reader(Transport::Quic).await;
}

#[tokio::test]
async fn a_stalled_reader_stops_no_other_channel_over_tcp() {
    a_stalled_reader(Transport::Tcp).await;
}

/// One direction ends, the other goes on; and a channel can be used as any stream of bytes.
#[tokio::test]
async fn a_channel_ends_each_way_by_itself() {
    for transport in BOTH {
        let migration = Migration::new(transport).await;
        let (near, mut far) = migration.channel(1).await;
        let Channel { mut read, mut write } = near;
        write.write_all(b"question").await.unwrap();
        write.shutdown().await.unwrap();
        let mut question = Vec::new();
        soon("the question", far.read.read_to_end(&mut question)).await.unwrap();
        assert_eq!(question, b"question", "{transport:?}");
        let error = write.write_all_chunks(&mut [Bytes::from_static(b"more")]).await.unwrap_err();
        assert_eq!(error.kind(), TunnelErrorKind::Config, "{transport:?}");
        assert!(write.write(b"more").await.is_err());
        // Both halves of our end are held, so that nothing but the end of the other direction was told.
        let answer = tokio::spawn(async move {
            far.write.write_all(&content(9, 2 * MIB)).await.unwrap();
            ChannelWriter::flush(&mut far.write).await.unwrap();
            far.write.finish().await.unwrap();
            far.write.finish().await.unwrap(); // twice is once
            far
        });
        let mut got = Vec::new();
        soon("the answer", read.read_to_end(&mut got)).await.unwrap();
        assert!(got == content(9, 2 * MIB), "{transport:?}");
        let far = soon("the writer", answer).await.unwrap();
        drop((read, write, far));
        // Its number is free again, on both sides.
        let again = soon("the number", reopen(&migration, 1)).await;
        drop(again);
    }
}

/// Opens a channel whose number the peer is about to free.
async fn reopen(migration: &Migration, number: u16) -> (Channel, Channel) {
    loop {
        match migration.dialler.open_channel(hello(number)).await {
            Ok(near) => return (near, migration.acceptor.accept_channel().await.unwrap().1),
            Err(error) if error.kind() == TunnelErrorKind::PeerClosed(CloseCode::Failed(FailCode::Busy)) => {}
            Err(error) => panic!("{error:?}"),
        }
        tokio::task::yield_now().await;
    }
}

/// Messages keep their order and their borders, at any length, both ways at once.
#[tokio::test]
async fn messages_arrive_whole_and_in_order() {
    for transport in BOTH {
        let migration = Migration::new(transport).await;
        let len = |nth: u64| [0, 1, 300, 65_536][usize::try_from(nth % 4).unwrap()];
        let send = |tunnel: ChannelTunnel, seed: u64| async move {
            for nth in 0..300 {
                tunnel.send_message(content(seed + nth, len(nth))).await.unwrap();
            }
        };
        let receive = |tunnel: ChannelTunnel, seed: u64| async move {
            for nth in 0..300 {
                let body = soon("a message", tunnel.recv_message()).await.unwrap();
                assert!(body == content(seed + nth, len(nth)), "message {nth} over {transport:?}");
            }
        };
        let (dialler, acceptor) = (&migration.dialler, &migration.acceptor);
        tokio::join!(
            send(dialler.clone(), 1000),
            send(acceptor.clone(), 2000),
            receive(dialler.clone(), 2000),
            receive(acceptor.clone(), 1000),
        );
        // One that is too long is refused here, and does no harm.
        let error = dialler.send_message(vec![0; 65_537]).await.unwrap_err();
        assert_eq!(error.kind(), TunnelErrorKind::Config);
        dialler.send_message(b"fine".to_vec()).await.unwrap();
        assert_eq!(soon("a message", acceptor.recv_message()).await.unwrap(), b"fine");
    }
}

/// A direction that its owner drops half-way is an error for the peer, never an end; the tunnel goes on.
#[tokio::test]
async fn a_channel_that_is_dropped_is_broken_off() {
    for transport in BOTH {
        let migration = Migration::new(transport).await;
        let (mut near, mut far) = migration.channel(2).await;
        near.write.write_all_chunks(&mut [Bytes::from_static(b"half a ")]).await.unwrap();
        assert_eq!(soon("a chunk", far.read.read_chunk(100)).await.unwrap().unwrap(), b"half a "[..]);
        drop(near.write);
        let error = soon("the break", far.read.read_chunk(100)).await.unwrap_err();
        assert_eq!(error.kind(), TunnelErrorKind::ChannelLost, "{transport:?}: {error:?}");
        drop(near.read);
        let error = soon("the writer's error", async {
            loop {
                if let Err(error) = far.write.write_all_chunks(&mut [Bytes::from(vec![0; MIB])]).await {
                    return error;
                }
            }
        })
        .await;
        assert_eq!(error.kind(), TunnelErrorKind::ChannelLost, "{transport:?}: {error:?}");
        drop(far);
        let (near, far) = migration.channel(3).await;
        let writer = tokio::spawn(send_all(near.write, 5, MIB));
        expect_all(far.read, 5, MIB).await;
        soon("the writer", writer).await.unwrap();
    }
}

/// 32 channels have filled their windows while the link let nothing pass. Of what passes then, the message is among
/// the first.
#[tokio::test]
async fn a_message_overtakes_the_channels_over_quic() {
    let authority = Authority::new("test");
    let listener = listen(&authority, "receiver");
    let link = DeadlyLink::to(listener.local_addr(), Transport::Quic).await;
    let options = options(link.address.port(), TransportChoice::Quic);
    let (dialler, acceptor) = connect(&authority, "sender", &listener, &options).await;
    acceptor.register(GENERATION);
    let mut channels = Vec::new();
    for number in 0..32 {
        channels.push(soon("a channel", dialler.open_channel(hello(number))).await.unwrap());
    }
    link.cut();
    for channel in &mut channels {
        let mut pieces = [Bytes::from(vec![7; MIB - 4096])];
        soon("room", channel.write.write_all_chunks(&mut pieces)).await.unwrap();
    }
    dialler.send_message(b"first".to_vec()).await.unwrap();
    // At most 3.6 MB, with the largest packets that loopback takes.
    link.allow(400);
    assert_eq!(soon("the message", acceptor.recv_message()).await.unwrap(), b"first");
}

async fn refusal(tunnel: &ChannelTunnel, hello: ChannelHello) -> TunnelErrorKind {
    soon("a refusal", tunnel.open_channel(hello)).await.expect_err("it is refused").kind()
}

/// A channel needs the migration, its generation and its peer; what is refused does no harm to the tunnel.
#[tokio::test]
async fn a_channel_needs_migration_generation_and_peer() {
    let code = |code| TunnelErrorKind::PeerClosed(CloseCode::Failed(code));
    for transport in BOTH {
        let authority = Authority::new("test");
        let listener = listen(&authority, "receiver");
        let options = options(listener.local_addr().port(), choice(transport));
        let (dialler, acceptor) = connect(&authority, "owner", &listener, &options).await;
        // A stranger says the same migration's name; its own tunnel has no generation.
        let (stranger, strange) = connect(&authority, "stranger", &listener, &options).await;
        assert_eq!(
            refusal(&dialler, hello(0)).await,
            code(FailCode::NotFound),
            "{transport:?}: no generation yet"
        );
        acceptor.register(GENERATION);
        assert_eq!(refusal(&stranger, hello(0)).await, code(FailCode::NotFound), "{transport:?}: a stranger");
        for other in [GENERATION.0 - 1, GENERATION.0 + 1] {
            let wrong = ChannelHello { generation: Generation(other), ..hello(0) };
            assert_eq!(refusal(&dialler, wrong).await, code(FailCode::StaleGeneration), "{transport:?}");
        }
        let elsewhere = ChannelHello { migration: SessionId([9; 16]), ..hello(0) };
        assert_eq!(refusal(&dialler, elsewhere).await, TunnelErrorKind::Config);

        let channel = soon("a channel", dialler.open_channel(hello(0))).await.unwrap();
        let (_, far) = soon("its end", acceptor.accept_channel()).await.unwrap();
        assert_eq!(refusal(&dialler, hello(0)).await, TunnelErrorKind::Config, "its number is taken");
        // A newer generation shuts the old one out, for good; what is open stays open.
        let newer = Generation(GENERATION.0 + 1);
        acceptor.register(newer);
        acceptor.register(GENERATION);
        assert_eq!(refusal(&dialler, hello(1)).await, code(FailCode::StaleGeneration), "{transport:?}");
        let fresh = ChannelHello { generation: newer, ..hello(1) };
        let fresh = soon("a newer channel", dialler.open_channel(fresh)).await.unwrap();
        let writer = tokio::spawn(send_all(channel.write, 3, MIB));
        expect_all(far.read, 3, MIB).await;
        soon("the writer", writer).await.unwrap();
        // Each side has its part.
        assert_eq!(acceptor.open_channel(hello(9)).await.unwrap_err().kind(), TunnelErrorKind::Config);
        assert_eq!(dialler.accept_channel().await.unwrap_err().kind(), TunnelErrorKind::Config);
        drop((fresh, strange));
    }
}

/// 64 channels may be open; one more is refused, until one ends.
#[tokio::test]
async fn channels_are_counted() {
    for transport in BOTH {
        let migration = Migration::new(transport).await;
        let mut open = Vec::new();
        for number in 0..u16::from(MAX_CHANNELS) {
            open.push(migration.channel(number).await);
        }
        assert_eq!(refusal(&migration.dialler, hello(1000)).await, TunnelErrorKind::Config, "{transport:?}");
        drop(open.pop());
        let again = soon("a free place", async {
            loop {
                // The peer's side may still count the channel that ended.
                match migration.dialler.open_channel(hello(1000)).await {
                    Ok(channel) => return channel,
                    Err(error) => assert!(
                        matches!(error.kind(), TunnelErrorKind::Config | TunnelErrorKind::PeerClosed(_)),
                        "{transport:?}: {error:?}"
                    ),
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
        drop((again, open));
    }
}

/// The link goes dead in the middle of everything: both sides notice, and everybody is told.
#[tokio::test]
async fn a_dead_link_is_noticed_by_both_sides() {
    for transport in BOTH {
        let authority = Authority::new("test");
        let idle = Duration::from_secs(2);
        let listen_options = ListenOptions { channel_idle: idle, ..ListenOptions::default() };
        let listener = Listener::bind(localhost(), &authority.host("receiver"), listen_options).unwrap();
        let link = DeadlyLink::to(listener.local_addr(), transport).await;
        let mut options = options(link.address.port(), choice(transport));
        options.channel_idle = idle;
        let (dialler, acceptor) = connect(&authority, "sender", &listener, &options).await;
        acceptor.register(GENERATION);
        let near = soon("a channel", dialler.open_channel(hello(0))).await.unwrap();
        let (_, far) = soon("its end", acceptor.accept_channel()).await.unwrap();
        let idle_channel = soon("a channel", dialler.open_channel(hello(1))).await.unwrap();
        let idle_end = soon("its end", acceptor.accept_channel()).await.unwrap();
        let mut read = far.read;
        let mut write = near.write;
        let writer = tokio::spawn(async move {
            loop {
                if let Err(error) = write.write_all_chunks(&mut [Bytes::from(vec![1; MIB])]).await {
                    return error;
                }
            }
        });
        for _ in 0..8 {
            assert!(soon("a chunk", read.read_chunk(MIB)).await.unwrap().is_some());
        }
        link.cut();
        let lost = |what: &str, error: &TunnelError| {
            assert_eq!(error.kind(), TunnelErrorKind::TimedOut, "{what} over {transport:?}: {error:?}");
        };
        lost("the dialler", &soon("the dialler's end", dialler.closed()).await);
        lost("the acceptor", &soon("the acceptor's end", acceptor.closed()).await);
        lost("messages", &soon("a message", acceptor.recv_message()).await.unwrap_err());
        lost("the writer", &soon("the writer's end", writer).await.unwrap());
        let mut idle_read = idle_channel.read;
        lost("an idle reader", &soon("its end", idle_read.read_chunk(1)).await.unwrap_err());
        let error = soon("what had come", async {
            loop {
                if let Err(error) = read.read_chunk(MIB).await {
                    return error;
                }
            }
        })
        .await;
        lost("the reader", &error);
        soon("the dialler's thread", dialler.ended()).await;
        soon("the acceptor's tasks", acceptor.ended()).await;
        drop((near.read, far.write, idle_channel.write, idle_end));
    }
}

/// What was said before a close arrives, then the code and the reason; channels end with the tunnel.
#[tokio::test]
async fn a_close_tells_messages_then_the_reason() {
    for transport in BOTH {
        let migration = Migration::new(transport).await;
        let (mut near, mut far) = migration.channel(0).await;
        let reader = tokio::spawn(async move { near.read.read_chunk(1).await.unwrap_err() });
        for nth in 0..50 {
            migration.dialler.send_message(vec![nth; 10]).await.unwrap();
        }
        migration.dialler.close(CloseCode::Failed(FailCode::Cancelled), "no more");
        let kind = TunnelErrorKind::Closed(CloseCode::Failed(FailCode::Cancelled));
        let error = migration.dialler.send_message(Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{transport:?}");
        assert_eq!(migration.dialler.open_channel(hello(1)).await.unwrap_err().kind(), kind);
        for nth in 0..50 {
            let body = soon("a message", migration.acceptor.recv_message()).await.unwrap();
            assert_eq!(body, vec![nth; 10], "{transport:?}");
        }
        let error = soon("the end", migration.acceptor.recv_message()).await.unwrap_err();
        let told = TunnelErrorKind::PeerClosed(CloseCode::Failed(FailCode::Cancelled));
        assert_eq!(error.kind(), told, "{transport:?}: {error:?}");
        assert!(error.to_string().contains("no more"), "{error}");
        assert_eq!(soon("no channel", migration.acceptor.accept_channel()).await.unwrap_err().kind(), told);
        assert_eq!(soon("our reader", reader).await.unwrap().kind(), kind, "{transport:?}");
        let error = soon("their writer", far.write.write_all_chunks(&mut [Bytes::from_static(b"x")])).await;
        assert_eq!(error.unwrap_err().kind(), told, "{transport:?}");
        soon("the dialler's thread", migration.dialler.ended()).await;
        soon("the acceptor's tasks", migration.acceptor.ended()).await;
        drop((migration.dialler, migration.acceptor, near.write, far));
        migration.listener.close();
        soon("the listener's threads", migration.listener.ended()).await;
    }
}

/// A tunnel lives as long as one of its handles, not as long as its channels.
#[tokio::test]
async fn dropping_the_last_handle_closes_the_tunnel() {
    for transport in BOTH {
        let migration = Migration::new(transport).await;
        let (near, far) = migration.channel(0).await;
        // Nobody takes this one: it goes with the tunnel.
        let untaken = soon("a channel", migration.dialler.open_channel(hello(1))).await.unwrap();
        let clone = migration.dialler.clone();
        drop(migration.dialler);
        clone.send_message(b"still".to_vec()).await.unwrap();
        assert_eq!(soon("a message", migration.acceptor.recv_message()).await.unwrap(), b"still");
        drop(clone);
        let error = soon("the end", migration.acceptor.recv_message()).await.unwrap_err();
        let told = TunnelErrorKind::PeerClosed(CloseCode::Failed(FailCode::Internal));
        assert_eq!(error.kind(), told, "{transport:?}: {error:?}");
        drop((near, far, untaken));
    }
}

#[tokio::test]
async fn copies_and_migrations_are_told_apart() {
    for transport in BOTH {
        let authority = Authority::new("test");
        let listener = listen(&authority, "receiver");
        let options = options(listener.local_addr().port(), choice(transport));
        let credentials = authority.host("sender");
        let unsupported = TunnelErrorKind::PeerClosed(CloseCode::Failed(FailCode::Unsupported));

        let tunnel = soon("dial", dial_channels(&options, &credentials, SESSION)).await.unwrap();
        let incoming = soon("the migration", listener.accept()).await.unwrap();
        assert_eq!(incoming.accept(buffers()).unwrap_err().kind(), TunnelErrorKind::Config);
        let error = soon("the refusal", tunnel.recv_message()).await.unwrap_err();
        assert_eq!(error.kind(), unsupported, "{transport:?}: {error:?}");

        let tunnel = soon("dial", dial_channels(&options, &credentials, SESSION)).await.unwrap();
        soon("the migration", listener.accept()).await.unwrap().refuse(FailCode::NotAuthorised, "not you");
        let error = soon("the refusal", tunnel.closed()).await;
        let refused = TunnelErrorKind::PeerClosed(CloseCode::Failed(FailCode::NotAuthorised));
        assert_eq!(error.kind(), refused, "{transport:?}");

        let end: crate::support::End =
            soon("dial", dial(&options, &credentials, buffers())).await.unwrap().into();
        end.handle.send(open(1)).await.unwrap();
        let incoming = soon("the session", listener.accept()).await.unwrap();
        assert!(matches!(incoming.request(), Request::Copy(open) if open.name == "disk"));
        assert_eq!(incoming.accept_channels().unwrap_err().kind(), TunnelErrorKind::Config);
        assert_eq!(end.closed().await.kind(), unsupported, "{transport:?}");
    }
    let authority = Authority::new("test");
    for idle in [Duration::from_millis(1999), Duration::from_secs(61)] {
        let mut options = options(1, TransportChoice::Tcp);
        options.channel_idle = idle;
        let error = dial_channels(&options, &authority.host("sender"), SESSION).await.unwrap_err();
        assert_eq!(error.kind(), TunnelErrorKind::Config);
    }
}

/// A limit holds for channels too, and loses nothing; the bucket's own test looks at the arithmetic.
#[tokio::test]
async fn a_limited_migration_still_delivers() {
    for transport in BOTH {
        let migration = Migration::tuned(transport, |dial, _| dial.limit = Some(16 << 20)).await;
        let (near, mut far) = migration.channel(0).await;
        near.write.set_priority(-1);
        let writer = tokio::spawn(send_all(near.write, 8, 3 * MIB));
        let mut got = vec![0; 3 * MIB];
        soon("all", far.read.read_exact(&mut got)).await.unwrap();
        assert!(got == content(8, 3 * MIB), "{transport:?}");
        soon("the writer", writer).await.unwrap();
        let answer = tokio::spawn(async move {
            far.write.write_all(&content(9, 2 * MIB)).await.unwrap();
            far.write.shutdown().await.unwrap();
            far
        });
        expect_all(near.read, 9, 2 * MIB).await;
        soon("the answer", answer).await.unwrap();
    }
}
