//! A hostile NBD server: whatever it says, the client ends with a typed error, gives every buffer back, and never
//! hangs nor allocates what was announced.

#[expect(dead_code, reason = "only the tests of limited servers vary what is offered")]
#[path = "support/server.rs"]
mod server;

use std::sync::Arc;
use std::time::Duration;

use novaferry_hypervisor::Error;
use novaferry_hypervisor::error::ConnectionLoss;
use novaferry_hypervisor::nbd::client::{ALLOCATION, Options};
use novaferry_hypervisor::nbd::wire::{ErrorCode, ProtocolError};
use novaferry_hypervisor::nbd::{Access, Client, NbdVolume};
use server::{
    GREETING, Request, Script, chunk, chunk_head, greet, handshake, option, option_reply, request, simple,
    start,
};
use tokio::io::AsyncWriteExt;
use volume::{Buffer, Kind};

/// Makes the reply to a request.
type Reply = fn(Request) -> Vec<u8>;

const GO: u32 = 7;
/// Every whole reply of these tests is at least this long.
const WHOLE_REPLY: usize = 20;

/// Connects to a server that sends these bytes once the client has sent its first option.
async fn connect_to(greeting: &'static [u8], replies: Vec<u8>) -> Error {
    let server = start(move |mut stream| {
        let replies = replies.clone();
        async move {
            if greeting != GREETING {
                drop(stream.write_all(greeting).await);
                return;
            }
            greet(&mut stream).await;
            // Structured replies and contexts are refused, then GO is answered as told.
            while let Some((number, _)) = option(&mut stream).await {
                let reply =
                    if number == GO { replies.clone() } else { option_reply(number, 0x8000_0001, &[]) };
                if stream.write_all(&reply).await.is_err() {
                    return;
                }
            }
        }
    });
    Client::connect(&server.address, "x", &Options::default()).await.expect_err("the handshake fails")
}

#[tokio::test]
async fn handshakes_that_break_the_protocol_fail() {
    let greetings: [(&[u8], &str); 4] = [
        (b"SSH-2.0-OpenSSH_9.2p1 Debian", "greeting"),
        (b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\x00\x00", "oldstyle"),
        (b"NBDMAGICIHAVEOPT\x00\x00", "fixed newstyle"),
        (b"NBDMAGICIHAVE", "socket"),
    ];
    for (greeting, expected) in greetings {
        let error = connect_to(greeting, Vec::new()).await;
        let source = std::error::Error::source(&error).expect("a cause").to_string();
        assert!(source.contains(expected), "{source}");
        assert_eq!(error.kind(), Kind::Protocol);
    }

    let ack = option_reply(GO, 1, &[]);
    let export = |size: u64| {
        let mut payload = vec![0, 0];
        payload.extend(size.to_be_bytes());
        payload.extend([0, 1]);
        option_reply(GO, 3, &payload)
    };
    let mut oversized = option_reply(GO, 3, &[]);
    oversized[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
    let sizes = option_reply(GO, 3, b"\x00\x03\x00\x00\x00\x03\x00\x00\x10\x00\x00\x00\x10\x00");
    for (replies, expected) in [
        (oversized, "option reply of 4294967295 bytes"),
        (option_reply(8, 1, &[]), "reply to option 8"),
        (option_reply(GO, 3, &[0, 9]).repeat(100), "more than 64 replies"),
        (ack.clone(), "without describing"),
        ([export(1 << 20), sizes, ack.clone()].concat(), "make no sense"),
        (option_reply(GO, 77, &[]), "type 77"),
        (option_reply(GO, 4, b"\x00\x00\x00\x01base:allocation"), "type 4"),
    ] {
        let error = connect_to(GREETING, replies).await;
        let Error::Protocol { source, .. } = &error else { panic!("{error}") };
        assert!(source.to_string().contains(expected), "{source}");
    }

    let error = connect_to(GREETING, [export(u64::MAX), ack].concat()).await;
    assert!(matches!(error, Error::Size { size: u64::MAX, .. }), "{error}");
    for (code, kind) in [(2, Kind::Permission), (5, Kind::Unsupported), (6, Kind::NotFound)] {
        let error = connect_to(GREETING, option_reply(GO, 0x8000_0000 | code, b"text")).await;
        assert_eq!(error.kind(), kind, "{error}");
    }
}

#[tokio::test]
async fn a_silent_server_times_out() {
    let server = start(async |stream| {
        std::future::pending::<()>().await;
        drop(stream);
    });
    let options = Options { handshake_timeout: Duration::from_millis(20), ..Options::default() };
    let error = Client::connect(&server.address, "", &options).await.unwrap_err();
    assert!(matches!(error, Error::HandshakeTimeout { .. }), "{error}");
}

/// Two READs of 64 KiB are outstanding; the first is answered with `reply`, the second never. Both must fail the
/// same way.
async fn reads_answered_by(script: Script, reply: Reply) -> Arc<ConnectionLoss> {
    let server = start(move |mut stream| {
        let script = script.clone();
        async move {
            handshake(&mut stream, &script).await.unwrap();
            let first = request(&mut stream).await.unwrap();
            request(&mut stream).await.unwrap();
            let reply = reply(first);
            stream.write_all(&reply).await.unwrap();
            // Read on, so that only the client can end the connection, unless the reply was cut off.
            if reply.len() >= WHOLE_REPLY {
                while request(&mut stream).await.is_some() {}
            }
        }
    });
    let client = Client::connect(&server.address, "", &Options::default()).await.unwrap();
    let read = || client.read(65536, Buffer::heap(65536));
    let (first, second) = tokio::join!(read(), read());
    let (later, _) = client.read(0, Buffer::heap(512)).await;
    assert!(matches!(later, Err(Error::Lost { .. })), "there is no reconnect");
    let mut losses = Vec::new();
    for (result, buffer) in [first, second] {
        assert_eq!(buffer.len(), 65536, "the buffer comes back");
        match result {
            Err(Error::Lost { source, .. }) => losses.push(source),
            other => panic!("{other:?}"),
        }
    }
    assert!(Arc::ptr_eq(&losses[0], &losses[1]), "both know the one reason");
    losses.remove(0)
}

fn data(request: Request, done: bool, offset: u64, length: usize) -> Vec<u8> {
    let mut payload = offset.to_be_bytes().to_vec();
    payload.resize(8 + length, 0x5a);
    chunk(request.cookie, done, 1, &payload)
}

#[tokio::test]
async fn replies_that_break_the_protocol_fail_every_outstanding_request() {
    let cases: [(&str, Reply); 16] = [
        ("reply magic", |_| vec![0; 32]),
        ("chunk of 4294967295 bytes", |r| chunk_head(r.cookie, true, 1, u32::MAX)),
        ("not outstanding", |r| [simple(r.cookie + 1000, 0), vec![0; 8]].concat()),
        ("not outstanding", |r| chunk(r.cookie + 1000, true, 0, &[])),
        ("simple reply in answer to READ", |r| [simple(r.cookie, 0), vec![0; 65536]].concat()),
        ("65536 of its bytes missing", |r| chunk(r.cookie, true, 0, &[])),
        ("1 of its bytes missing", |r| data(r, true, r.offset, 65535)),
        ("not asked for", |r| data(r, true, r.offset - 1, 65536)),
        ("not asked for", |r| data(r, true, r.offset + 1, 65536)),
        ("not asked for", |r| data(r, true, u64::MAX, 16)),
        ("not asked for", |r| [data(r, false, r.offset, 512), data(r, false, r.offset + 511, 512)].concat()),
        ("not asked for", |r| {
            let hole = [&r.offset.to_be_bytes()[..], &u32::MAX.to_be_bytes()].concat();
            chunk(r.cookie, true, 2, &hole)
        }),
        ("block status chunk in answer", |r| chunk(r.cookie, true, 5, &[0, 0, 0, 7, 0, 0, 2, 0, 0, 0, 0, 0])),
        ("type 99", |r| chunk(r.cookie, true, 99, &[])),
        ("valid length", |r| chunk(r.cookie, true, 32769, &[0, 0, 0, 5, 0, 99])),
        ("bytes, at most", |r| chunk_head(r.cookie, true, 32769, 1 << 20)),
    ];
    for (expected, reply) in cases {
        let loss = reads_answered_by(Script::default(), reply).await;
        let ConnectionLoss::Protocol(error) = &*loss else { panic!("{expected}: {loss:?}") };
        assert!(error.to_string().contains(expected), "{expected}: {error}");
    }
    let plain = Script { structured: false, allocation: false, ..Script::default() };
    let loss = reads_answered_by(plain, |r| data(r, true, r.offset, 65536)).await;
    assert!(matches!(&*loss, ConnectionLoss::Protocol(ProtocolError::WrongReply { .. })), "{loss:?}");
}

#[tokio::test]
async fn a_reply_cut_off_fails_every_outstanding_request() {
    let cases: [Reply; 3] = [
        |_| Vec::new(),
        |r| chunk_head(r.cookie, true, 1, 65544)[..10].to_vec(),
        |r| data(r, true, r.offset, 65536)[..19].to_vec(),
    ];
    for reply in cases {
        let loss = reads_answered_by(Script::default(), reply).await;
        assert!(matches!(&*loss, ConnectionLoss::Socket(_)), "{loss:?}");
    }
}

#[tokio::test]
async fn error_replies_fail_one_request_and_the_connection_goes_on() {
    let server = start(async |mut stream| {
        handshake(&mut stream, &Script::default()).await.unwrap();
        while let Some(r) = request(&mut stream).await {
            let reply = match r.offset {
                0 => simple(r.cookie, 5),
                512 => {
                    // Some data, then the error with its place, then the rest: all legal.
                    let mut error = vec![0, 0, 0, 5, 0, 9];
                    error.extend(b"bad\nblock");
                    error.extend(600_u64.to_be_bytes());
                    [data(r, false, 512, 88), chunk(r.cookie, false, 32770, &error), data(r, true, 601, 100)]
                        .concat()
                }
                1024 => chunk(r.cookie, true, 40000, b"from the future"),
                // In two pieces, the later first, with a hole: success.
                _ => {
                    let mut hole = r.offset.to_be_bytes().to_vec();
                    hole.extend(256_u32.to_be_bytes());
                    [
                        data(r, false, r.offset + 256, 256),
                        chunk(r.cookie, false, 2, &hole),
                        chunk(r.cookie, true, 0, &[]),
                    ]
                    .concat()
                }
            };
            stream.write_all(&reply).await.unwrap();
        }
    });
    let client = Client::connect(&server.address, "", &Options::default()).await.unwrap();
    let error = async |offset| client.read(offset, Buffer::heap(512)).await.0.unwrap_err();
    assert!(matches!(error(0).await, Error::Server { code: ErrorCode::EIO, offset: None, .. }));
    match error(512).await {
        Error::Server { code: ErrorCode::EIO, offset: Some(600), message, .. } => {
            assert_eq!(message, "bad block")
        }
        other => panic!("{other}"),
    }
    assert!(matches!(error(1024).await, Error::Server { code: ErrorCode::EINVAL, .. }));
    let mut dirty = Buffer::heap(512);
    dirty.fill(0xff);
    let (result, buffer) = client.read(2048, dirty).await;
    result.unwrap();
    assert!(buffer[..256].iter().all(|b| *b == 0), "the hole is filled with zeros");
    assert!(buffer[256..].iter().all(|b| *b == 0x5a));
}

#[tokio::test]
async fn block_status_that_makes_no_sense_is_refused() {
    let extent = |length: u32| [length.to_be_bytes(), [0; 4]].concat();
    let cases: [(&str, Vec<u8>); 5] = [
        ("was not chosen", [&[0, 0, 0, 8][..], &extent(512)].concat()),
        ("empty extent", [&[0, 0, 0, 7][..], &extent(0)].concat()),
        ("past what was asked", [&[0, 0, 0, 7][..], &extent(1 << 20), &extent(512)].concat()),
        ("valid length", vec![0, 0, 0, 7]),
        ("leaves out a context", Vec::new()),
    ];
    for (expected, payload) in cases {
        let server = start(move |mut stream| {
            let payload = payload.clone();
            async move {
                handshake(&mut stream, &Script::default()).await.unwrap();
                while let Some(r) = request(&mut stream).await {
                    let kind = if payload.is_empty() { 0 } else { 5 };
                    if stream.write_all(&chunk(r.cookie, true, kind, &payload)).await.is_err() {
                        return;
                    }
                }
            }
        });
        let client = Client::connect(&server.address, "", &Options::default()).await.unwrap();
        let error = client.block_status(ALLOCATION, 0, 1 << 20).await.unwrap_err();
        let Error::Lost { source, .. } = &error else { panic!("{error}") };
        let ConnectionLoss::Protocol(cause) = &**source else { panic!("{source:?}") };
        assert!(cause.to_string().contains(expected), "{expected}: {cause}");
    }
}

#[tokio::test]
async fn an_endless_extent_ends_with_the_export() {
    let server = start(async |mut stream| {
        handshake(&mut stream, &Script::default()).await.unwrap();
        while let Some(r) = request(&mut stream).await {
            let payload = [0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
            stream.write_all(&chunk(r.cookie, true, 5, &payload)).await.unwrap();
        }
    });
    let client = Client::connect(&server.address, "", &Options::default()).await.unwrap();
    let volume = NbdVolume::new(client, Access::ReadOnly).unwrap();
    let range = volume::Source::next_data(&volume, volume::ByteOffset(4096)).await.unwrap().unwrap();
    assert_eq!((range.start, range.end), (4096, 1 << 20));
}

#[tokio::test]
async fn a_caller_that_stops_waiting_leaves_the_connection_usable() {
    let (release, released) = tokio::sync::watch::channel(false);
    let server = start(move |mut stream| {
        let mut released = released.clone();
        async move {
            handshake(&mut stream, &Script::default()).await.unwrap();
            let abandoned = request(&mut stream).await.unwrap();
            released.wait_for(|released| *released).await.unwrap();
            stream.write_all(&data(abandoned, true, abandoned.offset, 512)).await.unwrap();
            while let Some(r) = request(&mut stream).await {
                stream.write_all(&data(r, true, r.offset, 512)).await.unwrap();
            }
        }
    });
    let options = Options { in_flight: 1, ..Options::default() };
    let client = Client::connect(&server.address, "", &options).await.unwrap();
    {
        let mut read = Box::pin(client.read(0, Buffer::heap(512)));
        let polled = futures_poll_once(&mut read).await;
        assert!(polled.is_pending());
    }
    release.send_replace(true);
    let (result, _) = client.read(512, Buffer::heap(512)).await;
    result.unwrap();
    client.close().await;
}

async fn futures_poll_once<F: Future + Unpin>(future: &mut F) -> std::task::Poll<F::Output> {
    std::future::poll_fn(|context| std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(context)))
        .await
}
