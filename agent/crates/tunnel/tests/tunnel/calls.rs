//! Destinations that dial: the source takes the connection, and opens the channels on it.

use std::time::Duration;

use novaferry_tunnel::{
    ChannelTunnel, CloseCode, Incoming, ListenOptions, Listener, Request, Transport, TransportChoice,
    TunnelError, TunnelErrorKind, call_source,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use wire::{Call, Control, FRAME_HEADER, FailCode, FrameHeader, PRELUDE, Prelude};

use crate::authority::{Authority, host};
use crate::channels::hello;
use crate::raw::{self, TLS13};
use crate::support::{GENERATION, SESSION, content, listen, localhost, options, soon};

/// A destination that has dialled, and its call as it waits at the source.
struct Called {
    call: JoinHandle<Result<ChannelTunnel, TunnelError>>,
    incoming: Incoming,
    listener: Listener,
}

async fn called(transport: TransportChoice) -> Called {
    let authority = Authority::new("test");
    let listener = Listener::bind(localhost(), &authority.host("source"), ListenOptions::default()).unwrap();
    let options = options(listener.local_addr().port(), transport);
    let credentials = authority.host("destination");
    let call = tokio::spawn(async move { call_source(&options, &credentials, SESSION).await });
    let incoming = soon("the call", listener.accept()).await.unwrap();
    let Request::Call(told) = incoming.request() else { panic!("no call") };
    assert_eq!((told.migration, incoming.peer().as_str()), (SESSION, "destination"));
    Called { call, incoming, listener }
}

#[tokio::test]
async fn the_source_opens_channels_on_a_connection_that_its_destination_dialled() {
    // It goes over QUIC, whatever the options say.
    let Called { call, incoming, listener } = called(TransportChoice::Tcp).await;
    assert!(!incoming.is_gone() && !call.is_finished(), "it waits until it is taken");
    let source = incoming.accept_call().unwrap();
    let destination = soon("the answer", call).await.unwrap().unwrap();
    assert_eq!((source.transport(), destination.transport()), (Transport::Quic, Transport::Quic));
    assert_eq!((source.peer().as_str(), destination.peer().as_str()), ("destination", "source"));

    source.send_message(b"prepare".to_vec()).await.unwrap();
    assert_eq!(soon("a message", destination.recv_message()).await.unwrap(), b"prepare");
    destination.send_message(b"ready".to_vec()).await.unwrap();
    assert_eq!(soon("an answer", source.recv_message()).await.unwrap(), b"ready");

    let early = source.open_channel(hello(1)).await.unwrap_err();
    assert_eq!(early.kind(), TunnelErrorKind::PeerClosed(CloseCode::Failed(FailCode::NotFound)));
    destination.register(GENERATION);
    for number in 0..70_u16 {
        let near = soon("a channel", source.open_channel(hello(number % 8))).await.unwrap();
        let (told, far) = soon("its other end", destination.accept_channel()).await.unwrap();
        assert_eq!(told, hello(number % 8));
        let (mut near_read, mut near_write) = (near.read, near.write);
        let (mut far_read, mut far_write) = (far.read, far.write);
        let bytes = content(u64::from(number), 3 << 20);
        let back = bytes.clone();
        let sent = bytes.clone();
        let send = tokio::spawn(async move {
            near_write.write_all(&sent).await.unwrap();
            near_write.shutdown().await.unwrap();
            near_write
        });
        let answer = tokio::spawn(async move {
            far_write.write_all(&back).await.unwrap();
            far_write.shutdown().await.unwrap();
            far_write
        });
        let mut got = Vec::new();
        soon("all bytes", far_read.read_to_end(&mut got)).await.unwrap();
        assert!(got == bytes, "channel {number}");
        got.clear();
        soon("all bytes back", near_read.read_to_end(&mut got)).await.unwrap();
        assert!(got == bytes, "channel {number}, back");
        drop((send.await.unwrap(), answer.await.unwrap()));
    }
    assert!(destination.open_channel(hello(9)).await.is_err(), "its peer opens them");

    source.close(CloseCode::Done, "that was it");
    let why = soon("the end", destination.closed()).await;
    assert_eq!(why.kind(), TunnelErrorKind::PeerClosed(CloseCode::Done));
    soon("everything ended", async { tokio::join!(source.ended(), destination.ended()) }).await;
    listener.close();
    soon("the listener", listener.ended()).await;
}

#[tokio::test]
async fn a_call_that_nothing_waits_for_is_refused_with_the_reason() {
    let Called { call, incoming, listener: _listener } = called(TransportChoice::Quic).await;
    incoming.refuse(FailCode::NotFound, "no such migration leaves here");
    let error = soon("the refusal", call).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), TunnelErrorKind::PeerClosed(CloseCode::Failed(FailCode::NotFound)));
    assert!(error.chain().contains("no such migration leaves here"), "{}", error.chain());
}

#[tokio::test]
async fn a_call_is_taken_as_nothing_else() {
    let Called { call, incoming, listener: _listener } = called(TransportChoice::Quic).await;
    assert!(incoming.accept_channels().is_err());
    let error = soon("the refusal", call).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), TunnelErrorKind::PeerClosed(CloseCode::Failed(FailCode::Unsupported)));
}

#[tokio::test]
async fn a_destination_that_gives_up_hangs_up() {
    let Called { call, incoming, listener: _listener } = called(TransportChoice::Quic).await;
    call.abort();
    soon("it hangs up", async {
        while !incoming.is_gone() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let source = incoming.accept_call().unwrap();
    soon("the end", source.ended()).await;
}

/// Channels over TCP are connections that the side dials which opens them: here the one that cannot.
#[tokio::test]
async fn a_call_over_tcp_is_refused() {
    let authority = Authority::new("test");
    let listener = listen(&authority, "source");
    let tls = raw::client(Some(&authority.issue(&host("destination"))), &[wire::ALPN], TLS13);
    let mut stream = soon("TLS", raw::tcp_connect(tls, listener.local_addr())).await.unwrap();
    stream.write_all(&Prelude::ours().encode()).await.unwrap();
    stream.write_all(&Control::Call(Call { migration: SESSION }).encode()).await.unwrap();
    let mut answer = Vec::new();
    soon("the refusal", stream.read_to_end(&mut answer)).await.unwrap();
    let (head, body) = answer[PRELUDE..].split_first_chunk::<FRAME_HEADER>().unwrap();
    let head = FrameHeader::decode(head).unwrap();
    let Control::Fail(fail) = Control::decode(head.tag, body).unwrap() else { panic!("no Fail") };
    assert_eq!(fail.code, FailCode::Unsupported);
}
