//! Bad identities are refused on both sides and both transports before any byte of ours reaches anybody.

use std::net::SocketAddr;
use std::sync::Arc;

use novaferry_tunnel::{Credentials, Listener, Refusal, TransportChoice, TunnelErrorKind, dial};
use rcgen::{ExtendedKeyUsagePurpose, KeyPair, SanType};
use time::{Duration, OffsetDateTime};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::authority::{Authority, Identity, host, key, self_signed, uri};
use crate::pool::buffers;
use crate::raw::{self, TLS12, TLS13};
use crate::support::{End, localhost, open, options, soon};

struct World {
    good: Authority,
    trusting: Credentials,
}

/// A CA whose list revokes the host "revoked", and somebody who believes both.
fn world() -> World {
    let good = Authority::new("test");
    let trusting = good.credentials(&good.issue(&host("self")), vec![good.revocations(&["revoked"], 24)]);
    World { good, trusting }
}

fn with(name: &str, change: impl FnOnce(&mut rcgen::CertificateParams)) -> rcgen::CertificateParams {
    let mut parameters = host(name);
    change(&mut parameters);
    parameters
}

fn tampered(mut identity: Identity) -> Identity {
    let mut bytes = identity.chain[0].to_vec();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    identity.chain[0] = bytes.into();
    identity
}

/// What a peer must not come in with; `purpose` is the one that the other side does not want.
fn bad_identities(
    good: &Authority,
    purpose: ExtendedKeyUsagePurpose,
) -> Vec<(&'static str, Identity, Refusal)> {
    use Refusal as R;
    let now = OffsetDateTime::now_utc();
    let sans = |names: Vec<SanType>| good.issue(&with("bad", |p| p.subject_alt_names = names));
    let ours = "spiffe://novaferry/host/";
    let dns = || SanType::DnsName("bad".try_into().unwrap());
    vec![
        ("self-signed", self_signed(&host("bad")), R::UnknownAuthority),
        ("other CA", Authority::new("other").issue(&host("bad")), R::UnknownAuthority),
        ("other CA of the same name", Authority::new("test").issue(&host("bad")), R::UnknownAuthority),
        ("tampered signature", tampered(good.issue(&host("bad"))), R::UnknownAuthority),
        ("signed by a leaf", good.issue_below_leaf(&host("bad")), R::UnknownAuthority),
        ("expired", good.issue(&with("bad", |p| p.not_after = now - Duration::minutes(1))), R::Expired),
        (
            "not yet valid",
            good.issue(&with("bad", |p| p.not_before = now + Duration::hours(1))),
            R::NotYetValid,
        ),
        ("revoked", good.issue(&host("revoked")), R::Revoked),
        ("other purpose", good.issue(&with("bad", |p| p.extended_key_usages = vec![purpose])), R::Purpose),
        ("no purpose", good.issue(&with("bad", |p| p.extended_key_usages = vec![])), R::Purpose),
        ("a CA", good.self_as_leaf(), R::Purpose),
        ("no name", sans(vec![]), R::Identity),
        ("two names", sans(vec![uri(&format!("{ours}a")), uri(&format!("{ours}b"))]), R::Identity),
        ("a name and a web address", sans(vec![uri(&format!("{ours}a")), uri("https://a/")]), R::Identity),
        ("foreign trust domain", sans(vec![uri("spiffe://elsewhere/host/bad")]), R::Identity),
        ("not a host", sans(vec![uri("spiffe://novaferry/user/bad")]), R::Identity),
        ("DNS name only", sans(vec![dns()]), R::Identity),
        ("empty name", sans(vec![uri(ours)]), R::Identity),
        ("upper case", sans(vec![uri(&format!("{ours}Bad"))]), R::Identity),
        ("path below the name", sans(vec![uri(&format!("{ours}a/b"))]), R::Identity),
        ("upwards", sans(vec![uri(&format!("{ours}../a"))]), R::Identity),
        ("too long a name", sans(vec![uri(&format!("{ours}{}", "a".repeat(64)))]), R::Identity),
        ("ECDSA key", good.issue_for(&host("bad"), &KeyPair::generate().unwrap()), R::Handshake),
        (
            "somebody else's certificate",
            Identity { chain: good.issue(&host("bad")).chain, ..self_signed(&host("thief")) },
            R::Handshake,
        ),
    ]
}

async fn listener(world: &World) -> Listener {
    Listener::bind(localhost(), &world.trusting, Default::default()).unwrap()
}

/// The next session is the good one's: none of the bad ones got in.
async fn only_good_ones_come_in(world: &World, listener: &Listener) {
    for transport in [TransportChoice::Quic, TransportChoice::Tcp] {
        let options = options(listener.local_addr().port(), transport);
        let end: End =
            soon("the good dialler", dial(&options, &world.trusting, buffers())).await.unwrap().into();
        end.handle.send(open(1)).await.unwrap();
        let incoming = soon("the good session", listener.accept()).await.unwrap();
        assert_eq!(incoming.peer().as_str(), "self");
    }
}

async fn refused_by_listener(what: &str, config: rustls::ClientConfig, address: SocketAddr, quic: bool) {
    let frame = open(1).encode();
    if let Ok(stream) = soon(what, raw::tcp_connect(config.clone(), address)).await {
        assert_eq!(soon(what, raw::talk_tcp(stream, &frame)).await, 0, "{what} got an answer over TCP");
    }
    if !quic {
        return;
    }
    if let Ok((_endpoint, connection)) = soon(what, raw::quic_connect(config, address)).await {
        assert_eq!(
            soon(what, raw::talk_quic(&connection, &frame)).await,
            0,
            "{what} got an answer over QUIC"
        );
        assert!(connection.close_reason().is_some(), "{what} is still connected");
    }
}

#[tokio::test]
async fn a_listener_refuses_bad_clients() {
    let world = world();
    let listener = listener(&world).await;
    let address = listener.local_addr();
    for (what, identity, _) in bad_identities(&world.good, ExtendedKeyUsagePurpose::ServerAuth) {
        refused_by_listener(what, raw::client(Some(&identity), &[wire::ALPN], TLS13), address, true).await;
    }
    let good = world.good.issue(&host("fine"));
    refused_by_listener("no certificate", raw::client(None, &[wire::ALPN], TLS13), address, true).await;
    refused_by_listener("wrong ALPN", raw::client(Some(&good), &[b"h3"], TLS13), address, true).await;
    refused_by_listener(
        "other version's ALPN",
        raw::client(Some(&good), &[b"novaferry/9"], TLS13),
        address,
        true,
    )
    .await;
    refused_by_listener("no ALPN", raw::client(Some(&good), &[], TLS13), address, true).await;
    refused_by_listener("TLS 1.2", raw::client(Some(&good), &[wire::ALPN], TLS12), address, false).await;
    only_good_ones_come_in(&world, &listener).await;
}

/// Runs a server on both transports and dials it; answers both errors. The servers must not see a byte.
async fn dial_bad_server(
    world: &World,
    what: &str,
    config: rustls::ServerConfig,
    quic: bool,
) -> Vec<TunnelErrorKind> {
    let mut kinds = Vec::new();
    let listener = TcpListener::bind(localhost()).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let tls = TlsAcceptor::from(Arc::new(config.clone()));
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut seen = Vec::new();
        if let Ok(mut stream) = tls.accept(stream).await {
            let _end = stream.read_to_end(&mut seen).await;
        }
        seen.len()
    });
    let options_tcp = options(port, TransportChoice::Tcp);
    let dialled = dial(&options_tcp, &world.trusting, buffers());
    kinds.push(soon(what, dialled).await.expect_err(what).kind());
    assert_eq!(soon(what, server).await.unwrap(), 0, "{what} saw bytes over TCP");
    if quic {
        let endpoint = raw::quic_server(config);
        let port = endpoint.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let Ok(connection) = endpoint.accept().await.unwrap().await else { return 0 };
            let Ok((_, mut receive)) = connection.accept_bi().await else { return 0 };
            receive.read_to_end(1 << 20).await.map_or(0, |bytes| bytes.len())
        });
        let options_quic = options(port, TransportChoice::Quic);
        let dialled = dial(&options_quic, &world.trusting, buffers());
        kinds.push(soon(what, dialled).await.expect_err(what).kind());
        assert_eq!(soon(what, server).await.unwrap(), 0, "{what} saw bytes over QUIC");
    }
    kinds
}

#[tokio::test]
async fn a_dialler_refuses_bad_servers_and_says_why() {
    let world = world();
    for (what, identity, refusal) in bad_identities(&world.good, ExtendedKeyUsagePurpose::ClientAuth) {
        let kinds = dial_bad_server(&world, what, raw::server(&identity, &[wire::ALPN], TLS13), true).await;
        for kind in kinds {
            assert_eq!(kind, TunnelErrorKind::Refused(refusal), "{what}");
        }
    }
    let good = world.good.issue(&host("fine"));
    for (what, config, quic) in [
        ("wrong ALPN", raw::server(&good, &[b"h3"], TLS13), true),
        ("no ALPN", raw::server(&good, &[], TLS13), true),
        ("TLS 1.2", raw::server(&good, &[wire::ALPN], TLS12), false),
    ] {
        for kind in dial_bad_server(&world, what, config, quic).await {
            let expected = if what == "TLS 1.2" { Refusal::TlsVersion } else { Refusal::Alpn };
            assert_eq!(kind, TunnelErrorKind::Refused(expected), "{what}");
        }
    }
}

#[tokio::test]
async fn a_dialler_that_expects_another_peer_refuses() {
    let world = world();
    let listener = listener(&world).await;
    for transport in [TransportChoice::Quic, TransportChoice::Tcp, TransportChoice::Auto] {
        let mut options = options(listener.local_addr().port(), transport);
        options.expect_peer = Some("somebody-else".parse().unwrap());
        let error = soon("the refusal", dial(&options, &world.trusting, buffers())).await.unwrap_err();
        assert_eq!(error.kind(), TunnelErrorKind::Refused(Refusal::WrongPeer));
        assert!(error.to_string().contains("the host there is self, not somebody-else"), "{error}");
        options.expect_peer = Some("self".parse().unwrap());
        soon("the good dialler", dial(&options, &world.trusting, buffers())).await.unwrap();
    }
    only_good_ones_come_in(&world, &listener).await;
}

/// An expired list, and one of another CA, refuse everybody: safe, and the message says what to do.
#[tokio::test]
async fn without_a_valid_list_nobody_comes_in() {
    let good = Authority::new("test");
    let identity = good.issue(&host("self"));
    let fine = good.credentials(&identity, vec![]);
    for (what, list) in [
        ("expired", good.revocations(&[], -1)),
        ("another CA's", Authority::new("other").revocations(&[], 24)),
    ] {
        let strict = good.credentials(&identity, vec![list]);
        let open_listener = Listener::bind(localhost(), &fine, Default::default()).unwrap();
        let strict_listener = Listener::bind(localhost(), &strict, Default::default()).unwrap();
        for transport in [TransportChoice::Quic, TransportChoice::Tcp] {
            let to_open = options(open_listener.local_addr().port(), transport);
            let error = soon(what, dial(&to_open, &strict, buffers())).await.unwrap_err();
            assert_eq!(error.kind(), TunnelErrorKind::Refused(Refusal::RevocationUnknown), "{what}: {error}");
            assert!(error.to_string().contains("revocation list"), "{what}: {error}");
            let to_strict = options(strict_listener.local_addr().port(), transport);
            let error = soon(what, dial(&to_strict, &fine, buffers())).await.unwrap_err();
            assert!(matches!(error.kind(), TunnelErrorKind::Refused(_)), "{what}: {error:?}");
        }
    }
}

/// A reload that revokes a peer bites on its next connection, and one that un-revokes lets it in again.
#[tokio::test]
async fn a_reloaded_list_counts_from_the_next_connection_on() {
    let good = Authority::new("test");
    let identity = good.issue(&host("listener"));
    let with_list = |names: &[&str]| good.credentials(&identity, vec![good.revocations(names, 24)]);
    let peer = good.host("peer");
    let listener = Listener::bind(localhost(), &with_list(&[]), Default::default()).unwrap();
    for transport in [TransportChoice::Quic, TransportChoice::Tcp] {
        let options = options(listener.local_addr().port(), transport);
        let before: End = soon("before", dial(&options, &peer, buffers())).await.unwrap().into();
        listener.reload(&with_list(&["peer"])).unwrap();
        let error = soon("the refusal", dial(&options, &peer, buffers())).await.unwrap_err();
        assert_eq!(error.kind(), TunnelErrorKind::Refused(Refusal::Revoked), "{transport:?}: {error:?}");
        // What was up stays up.
        before.handle.send(open(1)).await.unwrap();
        soon("the old connection", listener.accept()).await.unwrap();
        listener.reload(&with_list(&[])).unwrap();
        soon("after", dial(&options, &peer, buffers())).await.unwrap();
    }
}

#[test]
fn credentials_are_checked_and_never_printed() {
    let good = Authority::new("test");
    let identity = good.issue(&host("self"));
    let roots = || vec![good.certificate.clone()];
    let chain = || identity.chain.clone();
    let new = Credentials::new;
    assert!(new(vec![], identity.key(), roots(), vec![]).is_err(), "no certificate");
    assert!(new(chain(), good.issue(&host("x")).key(), roots(), vec![]).is_err(), "another's key");
    assert!(new(chain(), identity.key(), vec![], vec![]).is_err(), "no CA");
    assert!(new(chain(), identity.key(), roots(), vec![vec![1, 2, 3].into()]).is_err(), "garbage list");
    assert!(new(vec![vec![1, 2, 3].into()], identity.key(), roots(), vec![]).is_err(), "garbage certificate");
    let printed = format!("{:?}", new(chain(), identity.key(), roots(), vec![]).unwrap());
    assert_eq!(printed, r#"Credentials { name: "self", roots: 1, revocations: 0, .. }"#);
    drop(key());
}
