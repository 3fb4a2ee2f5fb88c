//! The endpoint that Prometheus and health checks ask: `GET /metrics` and `GET /healthz`, plain HTTP/1.1.
//!
//! It has no authentication; it listens on this host only unless the operator writes otherwise.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::{ObserveError, names};

/// Connections at once: a few Prometheus servers and a health check. More wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 16;
/// Longest life of one connection, so that an idle or slow client cannot hold its place.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How often histograms' samples are folded into buckets when nobody scrapes; bounds their memory.
const UPKEEP: Duration = Duration::from_secs(5);
/// Pause after the kernel refused a connection (no file descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whether the agent can take work, as `/healthz` tells it.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<AtomicU8>);

/// What `/healthz` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HealthState {
    /// Not yet: 503.
    Starting,
    /// Yes: 200.
    Ready,
    /// Not any more: 503.
    Draining,
}

impl Health {
    /// Starts as [`HealthState::Starting`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Changes what is told.
    pub fn set(&self, state: HealthState) {
        let number = match state {
            HealthState::Starting => 0,
            HealthState::Ready => 1,
            HealthState::Draining => 2,
        };
        self.0.store(number, Ordering::Relaxed);
    }

    /// What is told.
    #[must_use]
    pub fn get(&self) -> HealthState {
        match self.0.load(Ordering::Relaxed) {
            0 => HealthState::Starting,
            1 => HealthState::Ready,
            _ => HealthState::Draining,
        }
    }
}

/// Renders the current values.
#[derive(Clone)]
pub struct Scrape(PrometheusHandle);

impl std::fmt::Debug for Scrape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scrape")
    }
}

impl Scrape {
    /// All metrics in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.render()
    }
}

/// A recorder with our buckets, its help texts registered; for tests to use in their own scope
/// (`metrics::with_local_recorder`).
///
/// # Errors
/// [`ObserveError::Recorder`]; the buckets are constants, so this is a bug.
pub fn recorder() -> Result<(PrometheusRecorder, Scrape), ObserveError> {
    let mut builder = PrometheusBuilder::new();
    for metric in names::ALL.iter().filter(|metric| metric.kind == names::MetricKind::Histogram) {
        builder = builder
            .set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), names::SECONDS_BUCKETS)
            .map_err(|source| ObserveError::Recorder { source })?;
    }
    let recorder = builder.build_recorder();
    let scrape = Scrape(recorder.handle());
    metrics::with_local_recorder(&recorder, names::describe);
    Ok((recorder, scrape))
}

/// Makes the recorder of the whole process.
///
/// # Errors
/// [`ObserveError::Twice`] at the second call.
pub fn install() -> Result<Scrape, ObserveError> {
    let (recorder, scrape) = recorder()?;
    metrics::set_global_recorder(recorder).map_err(|_second| ObserveError::Twice { what: "metrics" })?;
    Ok(scrape)
}

/// The bound endpoint.
#[derive(Debug)]
pub struct Endpoint {
    listener: TcpListener,
    address: SocketAddr,
}

impl Endpoint {
    /// Binds `address`; port 0 picks a free one.
    ///
    /// # Errors
    /// [`ObserveError::Bind`].
    pub async fn bind(address: SocketAddr) -> Result<Self, ObserveError> {
        let error = |source| ObserveError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(error)?;
        let address = listener.local_addr().map_err(error)?;
        Ok(Self { listener, address })
    }

    /// The address that was bound.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop` completes; then open connections are closed.
    pub async fn serve(self, scrape: Scrape, health: Health, stop: impl Future<Output = ()>) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        let mut upkeep = tokio::time::interval(UPKEEP);
        upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(stop);
        loop {
            let accept = async {
                // The semaphore is never closed.
                let place = Arc::clone(&places).acquire_owned().await;
                (self.listener.accept().await, place)
            };
            tokio::select! {
                () = &mut stop => return,
                _ = upkeep.tick() => scrape.0.run_upkeep(),
                Some(_) = connections.join_next() => {}
                (accepted, place) = accept => match accepted {
                    Ok((stream, _)) => {
                        let answer = converse(stream, scrape.clone(), health.clone());
                        connections.spawn(async move {
                            let _place = place;
                            answer.await;
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection for metrics");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }
}

async fn converse(stream: TcpStream, scrape: Scrape, health: Health) {
    let service = service_fn(move |request| {
        let answer = answer(&request, &scrape, &health);
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(CONNECTION_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a metrics client broke off"),
        Err(_) => tracing::debug!("a metrics client took too long"),
    }
}

fn answer(request: &Request<Incoming>, scrape: &Scrape, health: &Health) -> Response<Full<Bytes>> {
    let text = |status, body: String| {
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        response
    };
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".into());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/metrics" => {
            let mut response = text(StatusCode::OK, scrape.render());
            let prometheus = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, prometheus);
            response
        }
        "/healthz" => match health.get() {
            HealthState::Starting => text(StatusCode::SERVICE_UNAVAILABLE, "starting\n".into()),
            HealthState::Ready => text(StatusCode::OK, "ok\n".into()),
            HealthState::Draining => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n".into()),
        },
        _ => text(StatusCode::NOT_FOUND, "try /metrics or /healthz\n".into()),
    }
}
