//! The line: dialled for as long as the daemon runs.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use control_api::v1::from_agent::What as Said;
use control_api::v1::to_agent::What as Told;
use control_api::v1::{Beat, Certificate, FromAgent, Hello, Meet, Renew, ToAgent, Took};
use control_api::{PROTOCOL, PROTOCOL_LEAST, dial, mutual};
use pki::{Identity, IdentityParts, IdentityPaths, NewKey};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::look::Looks;
use super::probe::Probes;
use super::wishes::Wishes;
use crate::config::Config;
use crate::config::coordinator::Coordinator;
use crate::daemon::Desk;
use crate::failure::with_causes;

/// Between two attempts, at first and at most; a third of it by chance, so that a fleet does not come all at once.
const LEAST_PAUSE: Duration = Duration::from_millis(500);
const MOST_PAUSE: Duration = Duration::from_secs(30);
/// A line that was open for so long was a good one: the next attempt is made soon.
const GOOD: Duration = Duration::from_secs(60);
/// How long the coordinator may take for its welcome, and may be silent after a beat.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often migrations are looked at, and how many of these looks lie between two at the host.
const LOOK: Duration = Duration::from_secs(1);
const LOOKS_A_HOST: u32 = 5;
/// Longest that another host is let look how this one is reached.
const MOST_MET: Duration = Duration::from_secs(60);
/// Messages that wait for the coordinator.
const WAITING: usize = 16;

/// The line to the coordinator.
#[derive(Debug)]
pub struct Line {
    coordinator: Coordinator,
    /// Where other agents reach this host.
    reached: Vec<String>,
    paths: IdentityPaths,
    /// The identity's folder, which is replaced as a whole.
    folder: Option<PathBuf>,
    looks: Looks,
    wishes: Wishes,
}

/// Why a line ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("use this host's identity")]
    Identity(#[from] pki::PkiError),
    #[error(transparent)]
    Dial(#[from] control_api::DialError),
    #[error("the coordinator says: {}", .0.message())]
    Status(#[from] tonic::Status),
    #[error("the coordinator {0}")]
    Coordinator(&'static str),
}

impl Line {
    /// A line that is not open yet. `listens` is where this host's agent listens.
    #[must_use]
    pub fn new(config: &Config, coordinator: Coordinator, listens: SocketAddr, desk: Desk) -> Self {
        let pools = config.pools.iter().map(|pool| (pool.name.as_str().to_owned(), pool.path.clone()));
        Self {
            reached: coordinator.reached(listens),
            coordinator,
            paths: config.identity.clone(),
            folder: config.identity.folder().map(ToOwned::to_owned),
            looks: Looks::new(desk.clone(), pools.collect(), config.vms.vmd.clone()),
            wishes: Wishes::open(desk, &config.state),
        }
    }

    /// Dials, and dials again, until it is to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut pause = LEAST_PAUSE;
        loop {
            let began = Instant::now();
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.once() => ended,
            };
            if began.elapsed() > GOOD {
                pause = LEAST_PAUSE;
            }
            let Err(why) = ended;
            let seconds = pause.as_secs_f32();
            tracing::warn!(
                why = with_causes(&why),
                seconds,
                "no line to the coordinator; this host goes on, and dials again"
            );
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(jittered(pause)) => {}
            }
            pause = (pause * 2).min(MOST_PAUSE);
        }
    }

    /// One line, to its end.
    async fn once(&mut self) -> Result<std::convert::Infallible, Ended> {
        let identity = Identity::load_from(&self.paths, SystemTime::now())?;
        let tls = mutual(identity.certificate_chain().to_vec(), identity.tls_key(), identity.roots())?;
        let mut client = dial(&self.coordinator.address, tls).await?;
        let (said, outbound) = mpsc::channel(WAITING);
        self.looks.forget();
        self.wishes.forget();
        let hello = Hello {
            protocol: PROTOCOL,
            protocol_least: PROTOCOL_LEAST,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            intent_generation: self.wishes.seen(),
            addresses: self.reached.clone(),
            now_ms: now_ms(),
            probes: true,
            expects: true,
            waits: true,
            calls: true,
        };
        say(&said, Said::Hello(hello)).await?;
        let mut told = client.connect(ReceiverStream::new(outbound)).await?.into_inner();
        let welcome = timeout(PATIENCE, told.message()).await;
        let welcome = welcome.map_err(|_late| Ended::Coordinator("gives no welcome"))??;
        let Some(ToAgent { what: Some(Told::Welcome(welcome)) }) = welcome else {
            return Err(Ended::Coordinator("gives no welcome"));
        };
        tracing::info!(
            address = self.coordinator.address,
            version = welcome.version,
            site = welcome.site,
            "connected to the coordinator"
        );
        let beat = Duration::from_millis(u64::from(welcome.beat_ms)).clamp(LOOK, PATIENCE);
        self.talk(&said, &mut told, beat, &identity).await
    }

    async fn talk(
        &mut self,
        said: &Sender,
        told: &mut Streaming<ToAgent>,
        beat: Duration,
        identity: &Identity,
    ) -> Result<std::convert::Infallible, Ended> {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut looks, mut spoke, mut heard) = (0_u32, Instant::now(), Instant::now());
        let mut beaten = Instant::now();
        let renew_at = renewal(identity, SystemTime::now());
        let mut asked: Option<NewKey> = None;
        // Those that run when the line ends are given up with it.
        let mut probes = Probes::default();
        loop {
            tokio::select! {
                message = told.message() => {
                    heard = Instant::now();
                    let Some(ToAgent { what }) = message? else { return Err(Ended::Coordinator("closed the line")) };
                    match what {
                        Some(Told::Intent(intent)) => {
                            // First: the other host's part waits for it.
                            if self.wishes.welcome(&intent) {
                                say(said, Said::Took(Took { number: intent.number })).await?;
                            }
                            for refused in self.wishes.take(intent).await {
                                say(said, Said::Refused(refused)).await?;
                            }
                        }
                        Some(Told::Meet(Meet { peer, for_ms })) => {
                            let time = Duration::from_millis(u64::from(for_ms)).min(MOST_MET);
                            self.wishes.meet(peer, time);
                        }
                        Some(Told::Probe(wanted)) => probes.begin(wanted, &self.paths),
                        Some(Told::Certificate(certificate)) => self.certificate(certificate, &mut asked)?,
                        // What a newer coordinator says beside is passed over.
                        Some(Told::Beat(_) | Told::Welcome(_)) | None => {}
                    }
                }
                probed = probes.next() => {
                    say(said, Said::Probed(probed)).await?;
                    spoke = Instant::now();
                }
                _ = ticks.tick() => {
                    let mut news = Vec::new();
                    news.extend(self.looks.moves().await.into_iter().map(Said::Moves));
                    if looks.is_multiple_of(LOOKS_A_HOST) {
                        news.extend(self.looks.observed().await.map(Said::Observed));
                    }
                    looks = looks.wrapping_add(1);
                    if asked.is_none() && self.folder.is_some() && SystemTime::now() >= renew_at {
                        let key = NewKey::generate()?;
                        news.push(Said::Renew(Renew { request: key.request()? }));
                        asked = Some(key);
                    }
                    // Only a beat is answered: who has news all the time must ask for a sign of life, too.
                    let silent = heard.elapsed() >= beat && beaten.elapsed() >= beat;
                    if silent || (news.is_empty() && spoke.elapsed() >= beat) {
                        beaten = Instant::now();
                        news.push(Said::Beat(Beat { now_ms: now_ms() }));
                    }
                    for what in news {
                        say(said, what).await?;
                        spoke = Instant::now();
                    }
                    if heard.elapsed() > beat + PATIENCE {
                        return Err(Ended::Coordinator("is silent"));
                    }
                }
            }
        }
    }

    /// A new certificate for the key that was asked for, or only a new list. The daemon reads the files by itself.
    fn certificate(&self, news: Certificate, asked: &mut Option<NewKey>) -> Result<(), Ended> {
        let Some(folder) = &self.folder else { return Ok(()) };
        if news.chain.is_empty() {
            pki::put_revocations(folder, &news.revocations)?;
            tracing::info!("the coordinator revoked a host");
            return Ok(());
        }
        let Some(key) = asked.take() else { return Err(Ended::Coordinator("sends a certificate unasked")) };
        let Certificate { chain, authorities, revocations } = news;
        pki::put_identity(folder, &IdentityParts { key: key.pem()?, chain, authorities, revocations }, true)?;
        tracing::info!("this host has its next certificate");
        // The line goes on with the old one, which is valid for as long again; the next is dialled with the new.
        Ok(())
    }
}

type Sender = mpsc::Sender<FromAgent>;

async fn say(said: &Sender, what: Said) -> Result<(), Ended> {
    let sent = timeout(PATIENCE, said.send(FromAgent { what: Some(what) })).await;
    match sent {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_closed)) => Err(Ended::Coordinator("closed the line")),
        Err(_late) => Err(Ended::Coordinator("does not read")),
    }
}

/// When half of what is left of a certificate is over.
fn renewal(identity: &Identity, now: SystemTime) -> SystemTime {
    now + identity.not_after().duration_since(now).unwrap_or_default() / 2
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Two thirds of a pause, and up to a third by chance.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [0; 1];
    // Without chance, the whole pause.
    let chance = getrandom::fill(&mut byte).map_or(u8::MAX, |()| byte[0]);
    pause * 2 / 3 + pause / 3 * u32::from(chance) / u32::from(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_spread_over_a_third() {
        let pauses: Vec<_> = (0..200).map(|_| jittered(Duration::from_secs(3))).collect();
        let (least, most) = (pauses.iter().min().unwrap(), pauses.iter().max().unwrap());
        assert!(*least >= Duration::from_secs(2) && *most <= Duration::from_secs(3), "{least:?} {most:?}");
        assert!(*most - *least > Duration::from_millis(100));
    }
}
