//! The coordinator's API, asked as a program would that does not give up.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How long something is asked for again and again while nobody answers.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(20);
/// Largest answer that is read, bytes.
const MOST_ANSWER: u64 = 64 << 20;

/// A way to one coordinator, or to several of which one leads.
#[derive(Debug)]
pub struct Api {
    agent: ureq::Agent,
    urls: Vec<String>,
    token: String,
    turn: AtomicUsize,
}

/// An answer: its status and its content, and whether it is one of earlier (Idempotency-Key).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// JSON; null if there is none.
    pub body: Value,
    /// It was given before.
    pub replayed: bool,
}

impl Api {
    /// As the administrator whose token is in a state folder.
    ///
    /// # Panics
    /// When the folder has no token or no CA.
    #[must_use]
    pub fn new(state: &Path, urls: &[String]) -> Self {
        let read = |name: &str| {
            let read = std::fs::read_to_string(state.join(name));
            read.unwrap_or_else(|error| panic!("cannot read {name} of {}: {error}", state.display()))
        };
        let root = Certificate::from_pem(read("ca.pem").as_bytes()).expect("ca.pem is a certificate");
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&[root]))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .timeout_global(Some(ANSWER));
        let agent = ureq::Agent::new_with_config(config.build());
        Self {
            agent,
            urls: urls.to_vec(),
            token: read("admin-token").trim().to_owned(),
            turn: AtomicUsize::new(0),
        }
    }

    /// Status, whether it was given before, and content.
    fn fetch(&self, path: &str, posted: Option<(&str, &Value)>) -> Result<(u16, bool, String), String> {
        let turn = self.turn.load(Ordering::Relaxed);
        let url = format!("{}{path}", self.urls[turn % self.urls.len()]);
        let bearer = format!("Bearer {}", self.token);
        let answer = match posted {
            Some((key, body)) => {
                let request = self.agent.post(&url).header("authorization", bearer);
                request.header("idempotency-key", key).send_json(body)
            }
            None => self.agent.get(&url).header("authorization", bearer).call(),
        };
        let read = answer.and_then(|mut answer| {
            let text = answer.body_mut().with_config().limit(MOST_ANSWER).read_to_string()?;
            Ok((answer.status().as_u16(), answer.headers().contains_key("idempotency-replayed"), text))
        });
        read.map_err(|error| {
            // Another one may lead.
            self.turn.store(turn.wrapping_add(1), Ordering::Relaxed);
            format!("{url}: {error}")
        })
    }

    fn once(&self, path: &str, posted: Option<(&str, &Value)>) -> Result<Answer, String> {
        let (status, replayed, text) = self.fetch(path, posted)?;
        let body = if text.is_empty() { Ok(Value::Null) } else { serde_json::from_str(&text) };
        let body = body.map_err(|error| format!("{path}: {error} in {text:?}"))?;
        Ok(Answer { status, body, replayed })
    }

    /// Asks until somebody answers who can: what is being done or cannot be done for now is asked again.
    fn again(&self, path: &str, posted: Option<(&str, &Value)>) -> Answer {
        let began = Instant::now();
        loop {
            let found = self.once(path, posted);
            let wait = match &found {
                Ok(answer) => {
                    answer.status == 429 || answer.status >= 500 || answer.body["code"] == "still-running"
                }
                Err(_) => true,
            };
            match found {
                Ok(answer) if !wait => return answer,
                found => assert!(began.elapsed() < PATIENCE, "{path} is not answered: {found:?}"),
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// What is there.
    ///
    /// # Panics
    /// When it is refused, or nobody answers for long.
    #[must_use]
    pub fn get(&self, path: &str) -> Value {
        let answer = self.again(path, None);
        assert!((200..300).contains(&answer.status), "{path}: {answer:?}");
        answer.body
    }

    /// Asks once, for the whole answer.
    ///
    /// # Panics
    /// When it is not answered with 200.
    pub fn read(&self, path: &str) {
        let answer = self.fetch(path, None);
        assert!(answer.as_ref().is_ok_and(|(status, ..)| *status == 200), "{path}: {answer:?}");
    }

    /// All items of a list, page by page.
    #[must_use]
    pub fn list(&self, path: &str) -> Vec<Value> {
        let (mut items, mut after) = (Vec::new(), String::new());
        loop {
            let sign = if path.contains('?') { '&' } else { '?' };
            let mut page = self.get(&format!("{path}{sign}limit=500{after}"));
            items.extend(page["items"].as_array_mut().map(std::mem::take).unwrap_or_default());
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => return items,
            }
        }
    }

    /// Asks for something to be done, again and again with the same key.
    ///
    /// # Panics
    /// When nobody answers for long.
    #[must_use]
    pub fn post(&self, path: &str, key: &str, body: &Value) -> Answer {
        self.again(path, Some((key, body)))
    }
}
