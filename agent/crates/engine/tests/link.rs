//! The measurement of a link, over real tunnels on loopback.

#[path = "support/authority.rs"]
mod authority;

use std::time::Duration;

use authority::Authority;
use novaferry_engine::migrate::link::{Link, NotMeasured, measure};
use novaferry_engine::migrate::message::{FromDestination, FromSource, Probe, VERSION, decode, encode};
use novaferry_engine::migrate::preflight::Finding;
use tunnel::{ChannelTunnel, DialOptions, ListenOptions, Listener, Request, TransportChoice, dial_channels};
use volume::SessionId;

/// Both ends of a migration's tunnel.
struct Pair {
    source: ChannelTunnel,
    destination: ChannelTunnel,
    _listener: Listener,
}

impl Pair {
    async fn new(transport: TransportChoice) -> Self {
        let authority = Authority::new();
        let any = "127.0.0.1:0".parse().unwrap();
        let listener = Listener::bind(any, &authority.credentials("b"), ListenOptions::default()).unwrap();
        let options =
            DialOptions { transport, ..DialOptions::new("127.0.0.1", listener.local_addr().port()) };
        let source = dial_channels(&options, &authority.credentials("a"), SessionId([7; 16])).await.unwrap();
        let incoming = listener.accept().await.unwrap();
        assert!(matches!(incoming.request(), Request::Migrate(_)));
        let destination = incoming.accept_channels().unwrap();
        Self { source, destination, _listener: listener }
    }

    /// Measures, while the destination answers what it is asked; with the bytes that came there.
    async fn measure(
        &self,
        limit: Option<u64>,
        answer: impl Fn(&Probe) -> Option<FromDestination>,
    ) -> (Result<Link, NotMeasured>, u64) {
        let mut came = 0;
        let answers = async {
            loop {
                let bytes = self.destination.recv_message().await.unwrap();
                let FromSource::Probe(probe) = decode(&bytes).unwrap() else { panic!("no probe") };
                assert_eq!(probe.version, VERSION);
                came += probe.padding.len() as u64;
                if let Some(answer) = answer(&probe) {
                    self.destination.send_message(encode(&answer).unwrap()).await.unwrap();
                }
            }
        };
        let measured = tokio::select! {
            measured = measure(&self.source, limit) => measured,
            () = answers => unreachable!("it answers until the end"),
        };
        (measured, came)
    }
}

fn honest(probe: &Probe) -> Option<FromDestination> {
    probe.answer.then_some(FromDestination::Probed { nth: probe.nth })
}

#[tokio::test]
async fn both_transports_are_measured_and_the_limit_is_kept() {
    for transport in [TransportChoice::Quic, TransportChoice::Tcp] {
        let pair = Pair::new(transport).await;
        let (link, came) = pair.measure(None, honest).await;
        let link = link.unwrap();
        println!("{transport:?}: {link:?}");
        assert!(link.rate > 0 && link.round_trip > Duration::ZERO, "{link:?}");
        assert!(link.bytes == came && came <= 4 << 20, "{came}");
        // At once a twentieth of a second's bytes may travel, and loopback carries more than the limit.
        let (limited, came) = pair.measure(Some(200_000), honest).await;
        assert!(limited.unwrap().bytes == came && came <= 100_000, "{came}");
    }
}

#[tokio::test]
async fn a_refusal_and_a_stranger_are_told_apart_and_late_answers_do_no_harm() {
    let pair = Pair::new(TransportChoice::Tcp).await;
    let finding = Finding::blocking("rule", "evidence", "fix");
    let refused = |_: &Probe| {
        Some(FromDestination::Refused { reason: "no".to_owned(), findings: vec![finding.clone()] })
    };
    let (result, _) = pair.measure(None, refused).await;
    assert!(
        matches!(result, Err(NotMeasured::Refused(reason, findings)) if reason == "no" && findings.len() == 1)
    );
    let (result, _) = pair.measure(None, |_| Some(FromDestination::Runs {})).await;
    assert!(matches!(result, Err(NotMeasured::Lost(_))));
    // The answer to a burst of long ago, and then the right one.
    let twice = |probe: &Probe| {
        let nth = if probe.answer { probe.nth } else { probe.nth + 1000 };
        Some(FromDestination::Probed { nth })
    };
    let (result, _) = pair.measure(None, twice).await;
    assert!(result.is_ok(), "{result:?}");
    pair.destination.close(tunnel::CloseCode::Done, "enough");
    let result = measure(&pair.source, None).await;
    assert!(matches!(result, Err(NotMeasured::Lost(_))), "{result:?}");
}
