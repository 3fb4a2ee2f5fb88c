//! What operators see of the coordinator: every metric, and the endpoint that Prometheus asks.
//!
//! The endpoint is a listener of its own: plain HTTP, no token, on this host only unless the operator writes otherwise,
//! and off without `--metrics`. What can be counted in the database is counted when somebody asks; the rest is recorded
//! when it happens. Labels are few and known: states, our own routes, methods, status codes. No names from outside.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use ::metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use model::migration::State;
use model::webhook::Reach;
use store::{KeptWebhook, StoreError};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::error::ServiceError;
use crate::fleet::Fleet;

const BUILD: &str = "novaferry_coordinator_build_info";
const LEADER: &str = "novaferry_coordinator_leader";
const HOSTS: &str = "novaferry_coordinator_hosts";
const LINES: &str = "novaferry_coordinator_lines";
const MIGRATIONS: &str = "novaferry_coordinator_migrations";
const MIGRATIONS_ENDED: &str = "novaferry_coordinator_migrations_ended_total";
const UNDECIDED: &str = "novaferry_coordinator_migrations_undecided";
const UNDECIDED_SINCE: &str = "novaferry_coordinator_migrations_undecided_since_timestamp_seconds";
const AUDIT: &str = "novaferry_coordinator_audit_entries";
const CA_EXPIRY: &str = "novaferry_coordinator_ca_expiry_timestamp_seconds";
const OWN_EXPIRY: &str = "novaferry_coordinator_certificate_expiry_timestamp_seconds";
const WEBHOOK_ATTEMPTS: &str = "novaferry_coordinator_webhook_attempts_total";
const WEBHOOKS_FAILING: &str = "novaferry_coordinator_webhooks_failing";
const REQUESTS: &str = "novaferry_coordinator_api_requests_total";
const REQUEST_SECONDS: &str = "novaferry_coordinator_api_request_seconds";

/// Upper bounds of both histograms in seconds: from a read that is in memory to a database that stands still.
const BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Connections at once: a few Prometheus servers. More wait in the kernel's queue.
const CONNECTIONS: usize = 16;
/// Longest life of one connection, so that an idle or slow client cannot hold its place.
const CONNECTION_TIME: Duration = Duration::from_secs(10);
/// How often histograms' samples are folded into buckets when nobody asks; bounds their memory.
const UPKEEP: Duration = Duration::from_secs(5);
/// Pause after the kernel refused a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// The recorder of this process, made when the first endpoint is.
static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

/// The endpoint, which answers from its start to its end; nobody leads yet at its start.
#[derive(Debug)]
pub(crate) struct Endpoint {
    address: SocketAddr,
    fleet: Arc<OnceLock<Arc<Fleet>>>,
    stop: DropGuard,
    serving: JoinHandle<()>,
}

fn recorder() -> Result<PrometheusHandle, ServiceError> {
    if let Some(handle) = RECORDER.get() {
        return Ok(handle.clone());
    }
    let mut builder = PrometheusBuilder::new();
    for name in [REQUEST_SECONDS, store::TRANSACTION_SECONDS] {
        builder = builder
            .set_buckets_for_metric(Matcher::Full(name.to_owned()), BUCKETS)
            .map_err(ServiceError::internal)?;
    }
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    ::metrics::set_global_recorder(recorder).map_err(ServiceError::internal)?;
    describe();
    Ok(RECORDER.get_or_init(|| handle).clone())
}

/// Help texts, and the series that exist from the start, so that "nothing happened" can be told from "not measured".
fn describe() {
    describe_gauge!(BUILD, "Always 1; the release is in its label.");
    describe_gauge!(LEADER, "1 while this coordinator leads: it has its state for itself, and serves.");
    describe_gauge!(HOSTS, "Hosts of the fleet: connected, away, or revoked.");
    describe_gauge!(LINES, "Lines to agents that are open.");
    describe_gauge!(MIGRATIONS, "Migrations that have not ended, by state.");
    describe_counter!(WEBHOOK_ATTEMPTS, "Attempts to deliver an event to a webhook, by outcome.");
    describe_gauge!(WEBHOOKS_FAILING, "Webhooks whose receivers take nothing.");
    describe_counter!(MIGRATIONS_ENDED, "Migrations that ended since this coordinator started, by state.");
    describe_gauge!(
        UNDECIDED,
        "Migrations that need an operator's word: in doubt, or lost at the destination."
    );
    describe_gauge!(
        UNDECIDED_SINCE,
        "Since when the oldest of them is so, seconds since 1970; 0 if there is none."
    );
    describe_gauge!(AUDIT, "Entries of the audit log.");
    describe_gauge!(CA_EXPIRY, "End of the CA, seconds since 1970.");
    describe_gauge!(OWN_EXPIRY, "End of the certificate that this coordinator shows, seconds since 1970.");
    describe_counter!(REQUESTS, "Answers of the API, by route, method and status.");
    describe_histogram!(REQUEST_SECONDS, "Time to an answer of the API, by route.");
    describe_histogram!(
        store::TRANSACTION_SECONDS,
        "Time from asking for a turn to write to a durable change."
    );
    gauge!(BUILD, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    for outcome in ["delivered", "failed"] {
        counter!(WEBHOOK_ATTEMPTS, "outcome" => outcome).absolute(0);
    }
    for state in State::ALL.into_iter().filter(|state| state.is_final()) {
        counter!(MIGRATIONS_ENDED, "state" => state.as_str()).absolute(0);
    }
}

/// An attempt to deliver an event ended: `delivered` or `failed`.
pub(crate) fn webhook(outcome: &'static str) {
    counter!(WEBHOOK_ATTEMPTS, "outcome" => outcome).increment(1);
}

/// A migration ended in a state.
pub(crate) fn ended(state: State) {
    counter!(MIGRATIONS_ENDED, "state" => state.as_str()).increment(1);
}

/// Counts the API's answers by the route that fits, not by the path that was asked for.
pub(crate) async fn count(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map_or_else(|| "none".to_owned(), |route| route.as_str().to_owned());
    let method = method(request.method());
    let begun = Instant::now();
    let response = next.run(request).await;
    let status = response.status().as_str().to_owned();
    histogram!(REQUEST_SECONDS, "route" => route.clone()).record(begun.elapsed());
    counter!(REQUESTS, "route" => route, "method" => method, "status" => status).increment(1);
    response
}

/// Methods are whatever the caller writes.
fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

#[expect(clippy::cast_precision_loss, reason = "numbers of hosts and the like are far below 2^53")]
fn number(count: u64) -> f64 {
    count as f64
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Brings what is counted in the database up to date.
async fn look(fleet: &Fleet) -> Result<(), StoreError> {
    let counts = fleet.store.counts().await?;
    let lines = fleet.connections();
    let connected = counts.hosts.iter().filter(|host| lines.contains_key(*host)).count();
    let hosts = |state: &'static str, count: u64| gauge!(HOSTS, "state" => state).set(number(count));
    hosts("connected", connected as u64);
    hosts("away", (counts.hosts.len() - connected) as u64);
    hosts("revoked", counts.revoked_hosts);
    gauge!(LINES).set(number(lines.len() as u64));
    let of = |state: State| counts.open.get(state.as_str()).copied().unwrap_or(0);
    // Series of all that are not final exist from the start.
    for state in State::ALL.into_iter().filter(|state| !state.is_final()) {
        gauge!(MIGRATIONS, "state" => state.as_str()).set(number(of(state)));
    }
    gauge!(UNDECIDED).set(number(of(State::InDoubt) + of(State::DestinationLost)));
    let since = counts.undecided_since.map_or(0, |since| since.as_second());
    gauge!(UNDECIDED_SINCE).set(number(u64::try_from(since).unwrap_or(0)));
    gauge!(AUDIT).set(number(counts.audit_entries));
    let webhooks = fleet.store.webhooks().await?;
    let newest = fleet.store.newest_webhook_event().await?;
    let is_owed =
        |kept: &&KeptWebhook| fleet.webhooks != Reach::Off && !kept.webhook.paused && kept.passed < newest;
    let failing = webhooks.iter().filter(is_owed).filter(|kept| kept.standing.failing.is_some());
    gauge!(WEBHOOKS_FAILING).set(number(failing.count() as u64));
    let (ca, own) = fleet.authority.ends();
    gauge!(CA_EXPIRY).set(seconds(ca));
    gauge!(OWN_EXPIRY).set(seconds(own));
    Ok(())
}

impl Endpoint {
    /// Binds an address, and records and answers from now on.
    pub(crate) async fn start(address: SocketAddr) -> Result<Self, ServiceError> {
        let error = |error| ServiceError::listen("metrics", address, error);
        let listener = TcpListener::bind(address).await.map_err(error)?;
        let address = listener.local_addr().map_err(error)?;
        let (recorder, fleet, stop) = (recorder()?, Arc::new(OnceLock::new()), CancellationToken::new());
        gauge!(LEADER).set(0.0);
        let serving = tokio::spawn(serve(listener, recorder, Arc::clone(&fleet), stop.clone()));
        Ok(Self { address, fleet, stop: stop.drop_guard(), serving })
    }

    /// What was bound.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// This coordinator leads, and has a fleet to count.
    pub(crate) fn lead(&self, fleet: &Arc<Fleet>) {
        // A service runs once.
        self.fleet.get_or_init(|| Arc::clone(fleet));
        gauge!(LEADER).set(1.0);
    }

    /// It leads no more, and ends.
    pub(crate) async fn end(self) {
        gauge!(LEADER).set(0.0);
        drop(self.stop);
        if let Err(error) = self.serving.await {
            tracing::error!(%error, "the metrics endpoint failed; this is a bug");
        }
    }
}

/// Answers until it is to stop.
async fn serve(
    listener: TcpListener,
    recorder: PrometheusHandle,
    fleet: Arc<OnceLock<Arc<Fleet>>>,
    stop: CancellationToken,
) {
    let upkeep = recorder.clone();
    let router = Router::new()
        .route("/metrics", get(move || scrape(fleet.get().cloned(), recorder.clone())))
        .fallback(async || (StatusCode::NOT_FOUND, "try /metrics\n"));
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut tick = tokio::time::interval(UPKEEP);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            _ = tick.tick() => {
                upkeep.run_upkeep();
                continue;
            }
            Some(_) = connections.join_next() => continue,
            accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (place, listener.accept().await)
            } => accepted,
        };
        let (Ok(place), Ok((stream, address))) = accepted else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        connections.spawn(async move {
            let builder = Builder::new(TokioExecutor::new());
            let conversation = builder.serve_connection(TokioIo::new(stream), service);
            match timeout(CONNECTION_TIME, conversation).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%address, %error, "a metrics client broke off"),
                Err(_) => tracing::debug!(%address, "a metrics client took too long"),
            }
            drop(place);
        });
    }
}

/// All metrics in Prometheus' text format; an error when the database cannot be asked, so that the scrape counts as
/// failed and no old number is taken for a new one.
async fn scrape(fleet: Option<Arc<Fleet>>, recorder: PrometheusHandle) -> Response {
    let looked = match fleet {
        Some(fleet) => look(&fleet).await,
        // It stands by: the fleet is counted by whoever leads.
        None => Ok(()),
    };
    match looked {
        Ok(()) => {
            let text = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
            (text, recorder.render()).into_response()
        }
        Err(error) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the database cannot be asked for metrics"
            );
            (StatusCode::INTERNAL_SERVER_ERROR, "the database cannot be asked; the log says why\n")
                .into_response()
        }
    }
}
