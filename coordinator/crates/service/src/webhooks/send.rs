//! One POST to a receiver. It is dialled only where webhooks reach: each address that its name leads to is asked when it
//! is dialled. It is not followed elsewhere, and what it answers is not told to anybody.

use std::sync::Arc;
use std::time::Duration;

use model::webhook::Reach;
use tokio::sync::{Semaphore, oneshot};
use ureq::config::Config;
use ureq::http::Uri;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use crate::error::ServiceError;

/// Time for one attempt, and for its connection.
const PATIENCE: Duration = Duration::from_secs(15);
const CONNECTING: Duration = Duration::from_secs(5);
/// Attempts at once, each with a thread: one of each webhook, so that nobody waits for another's receiver.
static AT_ONCE: Semaphore = Semaphore::const_new(store::MOST_WEBHOOKS);
/// Longest reason that is kept.
const MOST_WHY: usize = 300;

/// What is sent, and where.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) reach: Reach,
    pub(super) url: String,
    pub(super) ca: Option<String>,
    /// Of the event.
    pub(super) id: String,
    /// Seconds since 1970 UTC.
    pub(super) timestamp: i64,
    pub(super) signature: String,
    pub(super) body: String,
}

/// Why it was not taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Refusal {
    /// For people: what, and what to do.
    pub(crate) why: String,
    /// How long the receiver asks to be left alone.
    pub(crate) after: Option<Duration>,
}

impl Refusal {
    fn new(why: impl Into<String>) -> Self {
        Self { why: why.into().chars().take(MOST_WHY).collect(), after: None }
    }
}

/// Finds addresses, and gives those that may be dialled.
#[derive(Debug)]
struct Guarded(Reach);

impl Resolver for Guarded {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = DefaultResolver::default().resolve(uri, config, timeout)?;
        let mut good = self.empty();
        for address in found.iter().filter(|address| self.0.may_dial(address.ip())) {
            good.push(*address);
        }
        if good.is_empty() {
            let why = "its name leads to no address that may be dialled; `novaferry serve --webhooks private` allows \
                       private ones";
            return Err(ureq::Error::Other(why.into()));
        }
        Ok(good)
    }
}

fn agent(delivery: &Delivery) -> Result<ureq::Agent, Refusal> {
    let roots = match &delivery.ca {
        None => RootCerts::WebPki,
        Some(pem) => {
            let parsed = ureq::tls::parse_pem(pem.as_bytes()).filter_map(|item| match item {
                Ok(ureq::tls::PemItem::Certificate(certificate)) => Some(Ok(certificate)),
                Ok(_) => None,
                Err(error) => Some(Err(error)),
            });
            let all: Vec<Certificate<'static>> = parsed
                .collect::<Result<_, _>>()
                .map_err(|error| Refusal::new(format!("its CA is no certificate: {error}")))?;
            RootCerts::Specific(Arc::new(all))
        }
    };
    let tls = TlsConfig::builder()
        .root_certs(roots)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    let config = ureq::Agent::config_builder()
        .tls_config(tls)
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .save_redirect_history(false)
        .timeout_global(Some(PATIENCE))
        .timeout_connect(Some(CONNECTING))
        .user_agent(concat!("novaferry/", env!("CARGO_PKG_VERSION")))
        .build();
    Ok(ureq::Agent::with_parts(config, DefaultConnector::default(), Guarded(delivery.reach)))
}

fn post(delivery: &Delivery) -> Result<(), Refusal> {
    // It may have been added when more was allowed.
    delivery.reach.allows(&delivery.url).map_err(|error| Refusal::new(error.to_string()))?;
    let answered = agent(delivery)?
        .post(&delivery.url)
        .header("content-type", "application/json")
        .header("webhook-id", &delivery.id)
        .header("webhook-timestamp", delivery.timestamp.to_string())
        .header("webhook-signature", &delivery.signature)
        .send(delivery.body.as_bytes());
    let response = answered.map_err(|error| Refusal::new(error.to_string()))?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let hint = match status.as_u16() {
        300..=399 => "; it sends elsewhere: set the URL to where that is",
        401 | 403 => "; check the secret that it was given",
        404 | 410 => "; check the URL, or remove the webhook",
        _ => "",
    };
    let after = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
    let after = after.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
    Err(Refusal { after, ..Refusal::new(format!("it answers {status}{hint}")) })
}

/// Sends it.
pub(super) async fn send(delivery: Delivery) -> Result<Result<(), Refusal>, ServiceError> {
    let permit = AT_ONCE.acquire().await.map_err(ServiceError::internal)?;
    let (done, sent) = oneshot::channel();
    // A thread of its own: nobody who stops waits for a receiver that does not answer.
    let thread = std::thread::Builder::new().name("webhook".to_owned()).spawn(move || {
        // Who asked may be gone.
        drop(done.send(post(&delivery)));
        drop(permit);
    });
    thread.map_err(ServiceError::internal)?;
    sent.await.map_err(ServiceError::internal)
}
