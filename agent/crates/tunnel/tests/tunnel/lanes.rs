//! Further connections: who may join, what their death looks like, and how everything ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use novaferry_tunnel::{
    CloseCode, Event, Listener, Profile, Transport, TransportChoice, TunnelErrorKind, dial,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use volume::{Generation, Sequence, SessionId};
use wire::{Control, FailCode};

use crate::authority::Authority;
use crate::pool::buffers;
use crate::support::{End, GENERATION, Pair, SESSION, extent, listen, localhost, open, options, pair, soon};

/// Forwards TCP connections and cuts the second one, lane 1, when told to.
async fn relay(target: SocketAddr, cut: Arc<Notify>) -> SocketAddr {
    let listener = TcpListener::bind(localhost()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let number = AtomicUsize::new(0);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let second = number.fetch_add(1, Ordering::SeqCst) == 1;
            let cut = cut.clone();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(target).await.unwrap();
                tokio::select! {
                    _end = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    () = cut.notified(), if second => {}
                }
            });
        }
    });
    address
}

/// A lane that dies reports all that it took before it reports its death, and the other lane carries on.
#[tokio::test]
async fn the_death_of_a_lane_comes_after_what_it_took() {
    let authority = Authority::new("test");
    let listener = listen(&authority, "receiver");
    let cut = Arc::new(Notify::new());
    let through = relay(listener.local_addr(), cut.clone()).await;
    let mut options = options(through.port(), TransportChoice::Tcp);
    options.connections = 1;
    let dialler: End =
        soon("dial", dial(&options, &authority.host("sender"), buffers())).await.unwrap().into();
    dialler.handle.send(open(1)).await.unwrap();
    let accepter: End = soon("accept", listener.accept()).await.unwrap().accept(buffers()).unwrap().into();
    accepter.handle.register(SESSION, GENERATION);
    soon("lanes", dialler.handle.open_lanes(SESSION, GENERATION)).await.unwrap();
    assert!(matches!(dialler.event().await, Event::LaneUp { lane: 1 }));
    for sequence in 0..8 {
        dialler.data.send(extent(sequence, 1000)).await.unwrap();
    }
    for _ in 0..8 {
        assert!(soon("an extent", accepter.receiver.recv()).await.is_some());
    }
    cut.notify_one();
    let mut taken = Vec::new();
    loop {
        match dialler.event().await {
            Event::LaneTook { lane: 1, sequence } => taken.push(sequence),
            Event::LaneDown { lane: 1, error } => {
                assert_eq!(error.kind(), TunnelErrorKind::Lost);
                break;
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!(taken, (0..8).map(Sequence).collect::<Vec<_>>());
    // The tunnel itself lives, and a new lane of the same number carries the rest.
    loop {
        if let Event::LaneDown { lane: 1, .. } = accepter.event().await {
            break;
        }
    }
    dialler.data.send(extent(8, 1000)).await.unwrap();
    soon("new lanes", dialler.handle.open_lanes(SESSION, GENERATION)).await.unwrap();
    let got = soon("the rest", accepter.receiver.recv()).await.unwrap();
    assert_eq!(got.head.sequence, Sequence(8));
}

/// Strangers, old generations and unknown sessions do not get a lane, and do no harm to the tunnel that has one.
#[tokio::test]
async fn a_lane_needs_session_generation_and_peer() {
    for transport in [TransportChoice::Quic, TransportChoice::Tcp] {
        let authority = Authority::new("test");
        let listener = listen(&authority, "receiver");
        let mut options = options(listener.local_addr().port(), transport);
        options.connections = 2;
        let (owner, stranger) = (authority.host("owner"), authority.host("stranger"));
        let dialler: End = soon("dial", dial(&options, &owner, buffers())).await.unwrap().into();
        dialler.handle.send(open(2)).await.unwrap();
        let accepter: End =
            soon("accept", listener.accept()).await.unwrap().accept(buffers()).unwrap().into();
        let other: End = soon("dial", dial(&options, &stranger, buffers())).await.unwrap().into();
        other.handle.send(open(2)).await.unwrap();
        let kept = soon("accept", listener.accept()).await.unwrap().accept(buffers()).unwrap();

        let stale = Generation(GENERATION.0 - 1);
        let unknown = SessionId([9; 16]);
        let attempts = [
            ("before it is registered", &dialler, SESSION, GENERATION, FailCode::NotFound, false),
            ("of a stranger", &other, SESSION, GENERATION, FailCode::NotFound, true),
            ("of an old generation", &dialler, SESSION, stale, FailCode::StaleGeneration, true),
            ("of an unknown session", &dialler, unknown, GENERATION, FailCode::NotFound, true),
        ];
        for (what, end, session, generation, code, registered) in attempts {
            if registered {
                accepter.handle.register(SESSION, GENERATION);
            }
            // Over QUIC lane 0 is enough to go on with; over TCP there is nothing that could carry data.
            let result = soon(what, end.handle.open_lanes(session, generation)).await;
            assert_eq!(result.is_err(), transport == TransportChoice::Tcp, "{what}");
            let Event::LaneDown { lane: 1, error } = end.event().await else { panic!("{what}: not refused") };
            let expected = TunnelErrorKind::PeerClosed(CloseCode::Failed(code));
            assert_eq!(error.kind(), expected, "{what} over {transport:?}: {error:?}");
            if transport == TransportChoice::Tcp {
                assert!(matches!(end.event().await, Event::LaneDown { lane: 2, .. }), "{what}");
            }
        }
        // The owner still can, and again cannot once there is a newer generation.
        assert!(soon("lanes", dialler.handle.open_lanes(SESSION, GENERATION)).await.unwrap() >= 1);
        accepter.handle.register(SESSION, Generation(GENERATION.0 + 1));
        accepter.handle.register(SESSION, GENERATION); // an old one does not come back
        dialler.data.send(extent(1, 10)).await.unwrap();
        assert!(soon("an extent", accepter.receiver.recv()).await.is_some());
        drop(kept);
    }
}

/// Threads and tasks end when the ends are dropped, without a word from the other side.
#[tokio::test]
async fn everything_ends_when_it_is_dropped() {
    for transport in [Transport::Quic, Transport::Tcp, Transport::Memory] {
        let Pair { dialler, accepter, listener } =
            pair(transport, 3, |_, listen| listen.workers = 2, [buffers(), buffers()]).await;
        // `ended` needs a handle, so the others are dropped first and the reason is seen by the accepter.
        let End { handle, data, inbox, receiver } = dialler;
        drop((data, inbox, receiver));
        handle.close(CloseCode::Done, "");
        soon("the dialler's threads", handle.ended()).await;
        drop(handle);
        accepter.closed().await;
        soon("the accepter's tasks", accepter.handle.ended()).await;
        drop(accepter);
        if let Some(listener) = listener {
            listener.close();
            assert!(listener.accept().await.is_none());
            soon("the listener's threads", listener.ended()).await;
        }
    }
}

#[tokio::test]
async fn dropping_all_ends_tells_the_peer() {
    for transport in [Transport::Quic, Transport::Tcp, Transport::Memory] {
        let Pair { dialler, accepter, listener: _listener } =
            pair(transport, 2, |_, _| {}, [buffers(), buffers()]).await;
        drop(dialler);
        let error = accepter.closed().await;
        let expected = TunnelErrorKind::PeerClosed(CloseCode::Failed(FailCode::Internal));
        assert_eq!(error.kind(), expected, "{transport:?}");
    }
}

/// A listener that is closed lets its tunnels finish.
#[tokio::test]
async fn a_closed_listener_keeps_its_tunnels() {
    let Pair { dialler, accepter, listener } =
        pair(Transport::Quic, 1, |_, _| {}, [buffers(), buffers()]).await;
    drop(listener);
    dialler.data.send(extent(1, 1 << 20)).await.unwrap();
    assert!(soon("an extent", accepter.receiver.recv()).await.is_some());
}

#[tokio::test]
async fn a_session_that_nobody_takes_is_refused() {
    let authority = Authority::new("test");
    let listener = listen(&authority, "receiver");
    for transport in [TransportChoice::Quic, TransportChoice::Tcp] {
        let options = options(listener.local_addr().port(), transport);
        let credentials = authority.host("sender");
        for (refuse, code) in [(true, FailCode::NotAuthorised), (false, FailCode::Overloaded)] {
            let end: End = soon("dial", dial(&options, &credentials, buffers())).await.unwrap().into();
            end.handle.send(open(1)).await.unwrap();
            let incoming = soon("accept", listener.accept()).await.unwrap();
            if refuse {
                incoming.refuse(FailCode::NotAuthorised, "not you");
            } else {
                drop(incoming);
            }
            let error = end.closed().await;
            assert_eq!(error.kind(), TunnelErrorKind::PeerClosed(CloseCode::Failed(code)), "{transport:?}");
        }
    }
}

/// `auto` takes TCP when nobody listens on UDP, and says both reasons when nobody listens at all.
#[tokio::test]
async fn auto_falls_back_to_tcp() {
    let authority = Authority::new("test");
    let listener = listen(&authority, "receiver");
    let credentials = authority.host("sender");
    // The relay's port is free on UDP.
    let through = relay(listener.local_addr(), Arc::new(Notify::new())).await;
    let tunnel = soon("dial", dial(&options(through.port(), TransportChoice::Auto), &credentials, buffers()))
        .await
        .unwrap();
    assert_eq!(tunnel.transport(), Transport::Tcp);
    let direct = options(listener.local_addr().port(), TransportChoice::Auto);
    assert_eq!(
        soon("dial", dial(&direct, &credentials, buffers())).await.unwrap().transport(),
        Transport::Quic
    );
    let unused = std::net::TcpListener::bind(localhost()).unwrap();
    let port = unused.local_addr().unwrap().port();
    drop(unused);
    let error =
        soon("dial", dial(&options(port, TransportChoice::Auto), &credentials, buffers())).await.unwrap_err();
    assert_eq!(error.kind(), TunnelErrorKind::Unreachable);
    let text = error.to_string();
    assert!(
        text.contains("QUIC failed") && text.contains("so did TCP") && text.contains("port is open"),
        "{text}"
    );
}

#[tokio::test]
async fn senseless_options_are_refused() {
    let authority = Authority::new("test");
    let credentials = authority.host("sender");
    let good = options(1, TransportChoice::Tcp);
    let mut cases = vec![good.clone(); 6];
    cases[0].connections = 0;
    cases[1].connections = 9;
    cases[2].limit = Some(0);
    cases[3].host = String::new();
    cases[4].via = vec!["::1".parse().unwrap()];
    cases[4].profile = Profile::Wan;
    cases[5].port = 0;
    for (nth, case) in cases.iter().enumerate() {
        let error = soon("dial", dial(case, &credentials, buffers())).await.unwrap_err();
        let expected = if nth == 4 { TunnelErrorKind::Unreachable } else { TunnelErrorKind::Config };
        assert_eq!(error.kind(), expected, "case {nth}: {error}");
    }
    let mut few = buffers();
    few.permits = 3;
    let error = soon("dial", dial(&good, &credentials, few)).await.unwrap_err();
    assert!(error.to_string().contains("would never fit"), "{error}");
    // A port that is taken, for TCP or for UDP, is said so.
    let taken = TcpListener::bind(localhost()).await.unwrap().local_addr().unwrap();
    let _holder = std::net::UdpSocket::bind(taken).unwrap();
    let error = Listener::bind(taken, &credentials, Default::default()).unwrap_err();
    assert_eq!(error.kind(), TunnelErrorKind::Config);
}

/// Lanes can be bound to addresses of this host.
#[tokio::test]
async fn connections_go_by_the_addresses_that_were_asked_for() {
    let via = ["127.0.0.2".parse().unwrap(), "127.0.0.3".parse().unwrap()];
    for transport in [Transport::Quic, Transport::Tcp] {
        let Pair { dialler, accepter, listener: _listener } =
            pair(transport, 2, |dial, _| dial.via = via.to_vec(), [buffers(), buffers()]).await;
        assert_eq!(accepter.handle.remote().unwrap().ip(), via[0]);
        dialler.data.send(extent(1, 1 << 20)).await.unwrap();
        assert!(soon("an extent", accepter.receiver.recv()).await.is_some());
        dialler.handle.send(Control::Drain).await.unwrap();
    }
}
