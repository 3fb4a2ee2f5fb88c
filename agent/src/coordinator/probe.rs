//! Probes of links: the coordinator asks how a host is reached at an address, and this host finds out over a tunnel of its
//! own, as a migration's is, with an id of its own. Nothing is made at the other end for it.

use std::time::{Duration, SystemTime};

use control_api::v1::probed::Result as Found;
use control_api::v1::{Probe, Probed, Quality};
use engine::migrate::link::{self, Bounds, NotMeasured};
use pki::{Identity, IdentityPaths};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tunnel::{ChannelTunnel, CloseCode, DialOptions, TunnelErrorKind, dial_channels};
use volume::SessionId;

use crate::address::HostAddress;
use crate::credentials;
use crate::failure::with_causes;

/// Probes at once.
const MOST: usize = 4;
/// How long one may take in all.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a peer that hung up may take to say why.
const REASON: Duration = Duration::from_secs(1);

/// Probes that run.
#[derive(Debug, Default)]
pub(super) struct Probes {
    tasks: JoinSet<Probed>,
    /// Answers of those that were not begun.
    declined: Vec<Probed>,
}

impl Probes {
    /// Begins one.
    pub(super) fn begin(&mut self, wanted: Probe, identity: &IdentityPaths) {
        if self.tasks.len() >= MOST {
            let busy = Found::Unable("this host probes others already".to_owned());
            // A coordinator that asks on and on is not told each time.
            if self.declined.len() < MOST {
                self.declined.push(Probed { id: wanted.id, result: Some(busy) });
            }
            return;
        }
        let identity = identity.clone();
        self.tasks.spawn(async move {
            let id = wanted.id;
            let result = match timeout(PATIENCE, one(wanted, &identity)).await {
                Ok(result) => result,
                Err(_late) => Found::Failed(format!("no answer within {} s", PATIENCE.as_secs())),
            };
            Probed { id, result: Some(result) }
        });
    }

    /// The next answer; never while there is none. Cancel-safe.
    pub(super) async fn next(&mut self) -> Probed {
        if let Some(declined) = self.declined.pop() {
            return declined;
        }
        loop {
            match self.tasks.join_next().await {
                Some(Ok(probed)) => return probed,
                // The coordinator waits for its answer no longer than for a lost one.
                Some(Err(error)) => tracing::error!(%error, "a probe failed; this is a bug"),
                None => std::future::pending().await,
            }
        }
    }
}

async fn one(wanted: Probe, identity: &IdentityPaths) -> Found {
    let prepared = prepare(&wanted, identity);
    let (options, credentials, id) = match prepared {
        Ok(prepared) => prepared,
        Err(why) => return Found::Unable(why),
    };
    let tunnel = match dial_channels(&options, &credentials, id).await {
        Ok(tunnel) => tunnel,
        Err(error) => return Found::Failed(error.chain()),
    };
    let bounds = Bounds {
        pings: wanted.pings,
        bytes: wanted.most_bytes,
        time: Duration::from_millis(u64::from(wanted.most_ms)),
    };
    let found = match link::probe(&tunnel, bounds).await {
        Ok(quality) => Found::Quality(Quality {
            rtt_us: micros(quality.round_trip),
            jitter_us: micros(quality.jitter),
            loss_ppm: quality.loss_ppm,
            rate: quality.rate.unwrap_or(0),
        }),
        Err(why) => refused(&tunnel, why).await,
    };
    tunnel.close(CloseCode::Done, "the link is probed");
    found
}

fn prepare(
    wanted: &Probe,
    identity: &IdentityPaths,
) -> Result<(DialOptions, tunnel::Credentials, SessionId), String> {
    let to: HostAddress =
        wanted.to.parse().map_err(|error: crate::address::AddressError| error.to_string())?;
    let peer = wanted.peer.parse().map_err(|error: tunnel::InvalidPeerName| error.to_string())?;
    let options = DialOptions { expect_peer: Some(peer), ..DialOptions::new(to.host, to.port) };
    let identity = Identity::load_from(identity, SystemTime::now()).map_err(|error| with_causes(&error))?;
    let credentials = credentials::of(&identity).map_err(|error| error.chain())?;
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| format!("the kernel gives no random numbers: {error}"))?;
    Ok((options, credentials, SessionId(id)))
}

/// A peer that does not want to be probed was reached all the same: QUIC has its own round trip.
async fn refused(tunnel: &ChannelTunnel, why: NotMeasured) -> Found {
    let (refused, why) = match why {
        NotMeasured::Refused(why, _) => (true, why),
        NotMeasured::Late => (false, "the answers take too long".to_owned()),
        NotMeasured::Lost(why) => {
            let ended = timeout(REASON, tunnel.closed()).await;
            (ended.is_ok_and(|error| matches!(error.kind(), TunnelErrorKind::PeerClosed(_))), why)
        }
    };
    let round_trip = tunnel.stats().lanes.first().and_then(|lane| lane.rtt);
    match round_trip {
        Some(round_trip) if refused => {
            tracing::debug!(why, "a host was reached, but does not want to be probed");
            Found::Quality(Quality { rtt_us: micros(round_trip), ..Quality::default() })
        }
        _ => Found::Failed(why),
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_cannot_be_tried_is_said_so() {
        let folder = tempfile::tempdir().unwrap();
        let identity = IdentityPaths::in_folder(folder.path());
        let mut probes = Probes::default();
        let asked = |id, to: &str| Probe { id, to: to.to_owned(), peer: "b".to_owned(), ..Probe::default() };
        probes.begin(asked(1, "nowhere"), &identity);
        let Probed { id: 1, result: Some(Found::Unable(why)) } = probes.next().await else {
            panic!("no answer")
        };
        assert!(why.contains("nowhere"), "{why}");
        probes.begin(asked(2, "novaferry://127.0.0.1:1"), &identity);
        let probed = probes.next().await;
        assert!(matches!(probed, Probed { id: 2, result: Some(Found::Unable(_)) }), "there is no identity");
    }

    #[tokio::test]
    async fn a_flood_is_declined() {
        let folder = tempfile::tempdir().unwrap();
        let identity = IdentityPaths::in_folder(folder.path());
        let mut probes = Probes::default();
        for id in 0..100 {
            probes.begin(Probe { id, to: "nowhere".to_owned(), ..Probe::default() }, &identity);
        }
        assert_eq!((probes.tasks.len(), probes.declined.len()), (MOST, MOST));
        let busy = probes.next().await.result;
        assert!(matches!(&busy, Some(Found::Unable(why)) if why.contains("already")), "{busy:?}");
    }
}
