//! The agents' service: hosts join, and keep a line open over which they learn what is wanted and say what they see.

mod wants;
mod words;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use control_api::v1::coordinator_server::Coordinator;
use control_api::v1::from_agent::What as Said;
use control_api::v1::to_agent::What as Told;
use control_api::v1::{
    Beat, Certificate, FromAgent, Hello, Intent, JoinReply, JoinRequest, Renew, ToAgent, Took, Welcome,
};
use control_api::{JoinToken, PROTOCOL, PROTOCOL_LEAST};
use model::Name;
use model::audit::Deed;
use model::host::Observed;
use store::{StoreError, StoreErrorKind};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::arrivals::Told as Intents;
use crate::error::ServiceError;
use crate::fleet::{Fleet, now};
use crate::listen::Peer;
use wants::Wants;

/// How often an agent is to say something.
const BEAT: Duration = Duration::from_secs(5);
/// A line on which nothing was said for so long is dead.
const SILENCE: Duration = Duration::from_secs(20);
/// How long an agent may take to say hello.
const HELLO: Duration = Duration::from_secs(10);
/// Messages that wait for an agent that does not read.
const WAITING: usize = 16;
/// Clocks that are further apart are told of.
const SKEW_MS: u64 = 60_000;

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct Lines {
    fleet: Arc<Fleet>,
    wants: Arc<Wants>,
    stop: CancellationToken,
}

impl Lines {
    pub(crate) fn new(fleet: Arc<Fleet>, stop: CancellationToken) -> Self {
        Self { fleet, wants: Arc::default(), stop }
    }

    /// The host that dialled, if it is of the fleet.
    async fn host(&self, peer: Option<&Peer>) -> Result<Name, Status> {
        let refused = || Status::unauthenticated("show a certificate of this coordinator's; join first");
        let certificate = peer.and_then(|peer| peer.certificate.as_ref()).ok_or_else(refused)?;
        let name = pki::peer_name(certificate).map_err(|error| Status::unauthenticated(error.to_string()))?;
        let name: Name = name.as_str().parse().map_err(|_invalid| refused())?;
        let Fleet { store, authority, .. } = &*self.fleet;
        let adopted = || {
            tracing::warn!(host = %name, "its certificate is newer than the backup that this database came from: noted");
            deed(
                format!("host:{name}"),
                "adopt",
                &name,
                "a certificate that the restored database did not know".to_owned(),
            )
        };
        let good =
            authority.knows(store, &name, certificate, adopted).await.map_err(|error| failed(&error))?;
        if !good {
            return Err(Status::unauthenticated(
                "this certificate was revoked, or is of another coordinator",
            ));
        }
        Ok(name)
    }
}

fn status(error: &StoreError) -> Status {
    match error.kind() {
        StoreErrorKind::Denied => Status::permission_denied(error.to_string()),
        StoreErrorKind::Conflict => Status::failed_precondition(error.to_string()),
        StoreErrorKind::NotFound => Status::not_found(error.to_string()),
        _ => {
            tracing::error!(%error, "the store fails");
            Status::unavailable("the coordinator's database cannot be used; try again later")
        }
    }
}

fn failed(error: &ServiceError) -> Status {
    match error {
        ServiceError::Store(error) => status(error),
        error => {
            tracing::error!(%error, "a certificate cannot be signed");
            Status::internal("a certificate cannot be signed; see the coordinator's log")
        }
    }
}

fn deed(actor: String, action: &str, subject: &Name, detail: String) -> Deed {
    Deed {
        at: now(),
        actor,
        action: action.to_owned(),
        subject: subject.to_string(),
        outcome: "done".to_owned(),
        detail,
    }
}

#[tonic::async_trait]
impl Coordinator for Lines {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let from =
            request.extensions().get::<Peer>().map_or_else(String::new, |peer| peer.address.to_string());
        let JoinRequest { protocol, token, host, request, version } = request.into_inner();
        spoken(PROTOCOL_LEAST, protocol)?;
        let invalid = |error: &dyn std::fmt::Display| Status::invalid_argument(error.to_string());
        let token: JoinToken = token.parse().map_err(|error| invalid(&error))?;
        let host: Name = host.parse().map_err(|error| invalid(&error))?;
        let key = pki::requested_key(&request).map_err(|error| invalid(&error))?;
        let digest = words::hex(&token.digest());
        let note = format!("from {from}, agent {}", words::short(&version));
        let deed = deed(format!("host:{host}"), "join", &host, note);
        let joined = self.fleet.authority.join(&self.fleet.store, &digest, &host, &key, deed).await;
        let (grant, chain) = joined.map_err(|error| {
            tracing::warn!(%host, %from, %error, "a host was not let in");
            failed(&error)
        })?;
        tracing::info!(%host, site = %grant.site, %from, "a host joined");
        let certificate = self.certificate(chain).await?;
        let reply = JoinReply {
            certificate: Some(certificate),
            host: host.to_string(),
            site: grant.site.to_string(),
        };
        Ok(Response::new(reply))
    }

    type ConnectStream = Pin<Box<dyn Stream<Item = Result<ToAgent, Status>> + Send>>;

    async fn connect(
        &self,
        request: Request<Streaming<FromAgent>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let host = self.host(request.extensions().get::<Peer>()).await?;
        let mut inbound = request.into_inner();
        let (told, outbound) = mpsc::channel(WAITING);
        let lines = self.clone();
        // The answer's head goes out before the agent says hello.
        tokio::spawn(async move {
            let result = lines.serve(&host, &mut inbound, &told).await;
            if let Err(status) = result {
                tracing::info!(%host, status = status.message(), "a line is closed");
                // The agent may be gone.
                drop(told.send(Err(status)).await);
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outbound))))
    }
}

/// The version to speak, if there is one that both know.
fn spoken(least: u32, newest: u32) -> Result<u32, Status> {
    if newest < PROTOCOL_LEAST || least > PROTOCOL {
        return Err(Status::failed_precondition(format!(
            "the agent speaks versions {least} to {newest}, this coordinator {PROTOCOL_LEAST} to {PROTOCOL}; use \
             releases that follow one another"
        )));
    }
    Ok(newest.min(PROTOCOL))
}

/// What is asked beside of an agent that answers probes.
async fn next(asked: &mut Option<mpsc::Receiver<Told>>) -> Option<Told> {
    asked.as_mut()?.recv().await
}

type Sender = mpsc::Sender<Result<ToAgent, Status>>;

async fn tell(told: &Sender, what: Told) -> Result<(), Status> {
    let sent = timeout(SILENCE, told.send(Ok(ToAgent { what: Some(what) }))).await;
    match sent {
        Ok(Ok(())) => Ok(()),
        _ => Err(Status::deadline_exceeded("the agent does not read")),
    }
}

impl Lines {
    /// One line, from the hello to its end.
    async fn serve(
        &self,
        host: &Name,
        inbound: &mut Streaming<FromAgent>,
        told: &Sender,
    ) -> Result<(), Status> {
        let first = timeout(HELLO, inbound.message()).await;
        let first = first.map_err(|_late| Status::deadline_exceeded("no hello came"))??;
        let Some(FromAgent { what: Some(Said::Hello(hello)) }) = first else {
            return Err(Status::invalid_argument("the first message must be a hello"));
        };
        let protocol = spoken(hello.protocol_least, hello.protocol)?;
        let end = self.fleet.connected(host, hello.now_ms);
        tracing::info!(%host, version = words::short(&hello.version), "a host is connected");
        let served = self.line(host, protocol, hello, inbound, told, &end).await;
        if self.fleet.disconnected(host, &end) {
            tracing::info!(%host, "a host is not connected any more");
        }
        served
    }

    async fn line(
        &self,
        host: &Name,
        protocol: u32,
        hello: Hello,
        inbound: &mut Streaming<FromAgent>,
        told: &Sender,
        end: &CancellationToken,
    ) -> Result<(), Status> {
        // Subscribed before the first intent is read, so that no change falls in between.
        let (mut wanted, mut revoked) = (self.fleet.wanted(), self.fleet.revoked());
        self.welcome(host, protocol, &hello, told).await?;
        let mut observed = Observed {
            version: words::short(&hello.version),
            addresses: hello.addresses.iter().take(words::MOST_ADDRESSES).map(|a| words::short(a)).collect(),
            expects: hello.expects,
            waits: hello.waits,
            calls: hello.calls,
            ..Observed::default()
        };
        let mut intents = Intents::default();
        let mut known = self.intend(host, told, &mut intents, None).await?;
        // Held here, so that what is asked of an agent that does not answer probes waits for nothing.
        let mut asked = hello.probes.then(|| self.fleet.probes.open(host));
        loop {
            tokio::select! {
                () = end.cancelled() => return Err(Status::aborted("the host has another line")),
                () = self.stop.cancelled() => return Err(Status::unavailable("the coordinator stops")),
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    known = self.intend(host, told, &mut intents, Some(known)).await?;
                }
                changed = revoked.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.still_good(host).await?;
                    tell(told, Told::Certificate(self.certificate(String::new()).await?)).await?;
                }
                Some(what) = next(&mut asked) => tell(told, what).await?,
                message = timeout(SILENCE, inbound.message()) => {
                    let message = message.map_err(|_late| Status::deadline_exceeded("the agent is silent"))??;
                    let Some(FromAgent { what }) = message else { return Ok(()) };
                    self.fleet.saw(host);
                    // What a newer agent says beside is passed over.
                    if let Some(Said::Took(Took { number })) = what {
                        let held = intents.took(number).is_some_and(|ids| self.fleet.arrivals.hold(host, ids));
                        if held {
                            self.fleet.tell();
                        }
                    } else if let Some(said) = what {
                        self.said(host, said, &mut observed, told).await?;
                    }
                }
            }
        }
    }

    async fn welcome(&self, host: &Name, protocol: u32, hello: &Hello, told: &Sender) -> Result<(), Status> {
        let (store, now) = (&self.fleet.store, now());
        let site = store.host(host).await.map_err(|error| status(&error))?.site;
        if hello.now_ms.abs_diff(now.as_millisecond()) > SKEW_MS {
            let apart_ms = hello.now_ms.abs_diff(now.as_millisecond());
            tracing::warn!(
                %host, apart_ms,
                "the clocks of a host and the coordinator are apart: beyond an hour its certificates are not valid yet; \
                 set them by NTP"
            );
        }
        let ours = store.intent_generation().await.map_err(|error| status(&error))?;
        if hello.intent_generation > ours {
            tracing::warn!(
                %host, seen = hello.intent_generation, ours,
                "a host has seen more than this database knows: it was restored from a backup"
            );
            store.pass_generation(hello.intent_generation).await.map_err(|error| status(&error))?;
            self.wants.forget().await;
        }
        let beat_ms = u32::try_from(BEAT.as_millis()).unwrap_or(u32::MAX);
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let welcome =
            Welcome { protocol, version, beat_ms, now_ms: now.as_millisecond(), site: site.to_string() };
        tell(told, Told::Welcome(welcome)).await
    }

    /// Tells a host what is wanted of it, unless it knows.
    async fn intend(
        &self,
        host: &Name,
        told: &Sender,
        intents: &mut Intents,
        known: Option<Intent>,
    ) -> Result<Intent, Status> {
        let wanted = self.wants.now(&self.fleet).await.map_err(|error| status(&error))?;
        let mut intent = Intent {
            generation: wanted.generation,
            migrations: wanted.of(host).to_vec(),
            expected: wanted.expected(host).to_vec(),
            number: 0,
        };
        let is_known =
            |known: &Intent| known.migrations == intent.migrations && known.expected == intent.expected;
        if !known.as_ref().is_some_and(is_known) {
            intents.number(&mut intent);
            tell(told, Told::Intent(intent.clone())).await?;
        }
        Ok(intent)
    }

    async fn still_good(&self, host: &Name) -> Result<(), Status> {
        let known = self.fleet.store.host(host).await.map_err(|error| status(&error))?;
        if known.revoked.is_some() {
            return Err(Status::permission_denied("this host was revoked"));
        }
        Ok(())
    }

    async fn said(
        &self,
        host: &Name,
        said: Said,
        observed: &mut Observed,
        told: &Sender,
    ) -> Result<(), Status> {
        match said {
            Said::Hello(_) => return Err(Status::invalid_argument("one hello is enough")),
            Said::Beat(_) => tell(told, Told::Beat(Beat { now_ms: now().as_millisecond() })).await?,
            Said::Observed(news) => {
                words::take_in(observed, news);
                let kept = self.fleet.store.observe(host, observed, now()).await;
                kept.map_err(|error| status(&error))?;
                self.fleet.events.note();
            }
            Said::Moves(moves) => {
                for progress in moves.migrations.into_iter().take(words::MOST_MIGRATIONS) {
                    let (id, role) = (progress.id.clone(), progress.role.clone());
                    let moved =
                        self.fleet.moved(host, &id, &role, words::progress(progress, observed.expects)).await;
                    if let Some(moved) = moved.map_err(|error| status(&error))? {
                        tracing::debug!(id, state = moved.state.as_str(), "a migration moved on");
                    }
                }
            }
            Said::Refused(refused) => {
                let why = words::long(&refused.why);
                tracing::info!(%host, id = refused.migration, why, "a host does not begin a migration");
                let noted = self.fleet.refused(host, &refused.migration, why).await;
                noted.map_err(|error| status(&error))?;
            }
            // Its answer is to this line alone: see above.
            Said::Took(_) => {}
            Said::Probed(probed) => self.fleet.probes.answered(host, probed),
            Said::Renew(Renew { request }) => {
                let key = pki::requested_key(&request);
                let key = key.map_err(|error| Status::invalid_argument(error.to_string()))?;
                let deed = deed(format!("host:{host}"), "renew", host, String::new());
                let renewed = self.fleet.authority.renew(&self.fleet.store, host, &key, deed).await;
                let chain = renewed.map_err(|error| failed(&error))?;
                tell(told, Told::Certificate(self.certificate(chain).await?)).await?;
            }
        }
        Ok(())
    }

    /// What a host shows and trusts from now on; an empty chain when it keeps its own.
    async fn certificate(&self, chain: String) -> Result<Certificate, Status> {
        let authority = &self.fleet.authority;
        let revocations =
            authority.revocations(&self.fleet.store, now()).await.map_err(|error| failed(&error))?;
        Ok(Certificate { chain, authorities: authority.certificate_pem().to_owned(), revocations })
    }
}
