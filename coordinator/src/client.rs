//! The coordinator's API, asked by the command line.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::failure::Failure;
use crate::traces;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a long answer may take to begin.
const MOST_WAIT: Duration = Duration::from_secs(600);
/// Largest answer that is read, bytes: a fleet of 10,000 VMs takes about 4 MiB.
const MOST_ANSWER: u64 = 64 << 20;

/// Whom to ask, and as whom.
#[derive(Clone, Debug, Args)]
pub(crate) struct Access {
    /// The coordinator's API.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "NOVAFERRY_URL",
        hide_env_values = true,
        default_value = "https://localhost:7443",
        help_heading = "Access"
    )]
    url: String,
    /// File with the API token.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "NOVAFERRY_TOKEN_FILE",
        hide_env_values = true,
        default_value = "/var/lib/novaferry-coordinator/admin-token",
        help_heading = "Access"
    )]
    token_file: PathBuf,
    /// The coordinator's CA certificate.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "NOVAFERRY_CA",
        hide_env_values = true,
        default_value = "/var/lib/novaferry-coordinator/ca.pem",
        help_heading = "Access"
    )]
    ca: PathBuf,
}

/// Items that are asked for at a time.
const PAGE: usize = 1000;

/// A part of a list.
#[derive(Debug, Deserialize)]
struct Page {
    items: Vec<Value>,
    next: Option<String>,
}

/// A text as a value in a query.
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// An open way to the API.
#[derive(Debug)]
pub(crate) struct Client {
    agent: ureq::Agent,
    url: String,
    token: String,
}

impl Access {
    pub(crate) fn open(&self) -> Result<Client, Failure> {
        let read = |path: &PathBuf, what: &str, flag: &str| {
            std::fs::read_to_string(path).map_err(|error| {
                let advice = format!("name it with {flag}, or run this as a user who may read it");
                Failure::new("access", format!("cannot read {what} {}: {error}", path.display()), advice)
                    .usage()
            })
        };
        let token =
            read(&self.token_file, "the token", "--token-file or NOVAFERRY_TOKEN_FILE")?.trim().to_owned();
        let ca = read(&self.ca, "the CA certificate", "--ca or NOVAFERRY_CA")?;
        let root = Certificate::from_pem(ca.as_bytes()).map_err(|error| {
            let what = format!("{} is no certificate: {error}", self.ca.display());
            Failure::new("access", what, "copy ca.pem from the coordinator's state folder").usage()
        })?;
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&[root]))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .user_agent(concat!("novaferry/", env!("CARGO_PKG_VERSION")));
        let agent = ureq::Agent::new_with_config(config.build());
        Ok(Client { agent, url: self.url.trim_end_matches('/').to_owned(), token })
    }
}

impl Client {
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let request = self.agent.get(format!("{}{path}", self.url));
        self.read(request.header("authorization", format!("Bearer {}", self.token)).call())
    }

    /// An answer that is no JSON.
    pub(crate) fn text(&self, path: &str) -> Result<String, Failure> {
        let request = self.agent.get(format!("{}{path}", self.url));
        self.body(request.header("authorization", format!("Bearer {}", self.token)).call())
    }

    /// A list, page by page, up to so many items.
    pub(crate) fn list(&self, path: &str, most: Option<usize>) -> Result<Vec<Value>, Failure> {
        self.list_after(path, None, most)
    }

    /// The same from a position on.
    pub(crate) fn list_after(
        &self,
        path: &str,
        mut after: Option<String>,
        most: Option<usize>,
    ) -> Result<Vec<Value>, Failure> {
        let mut items = Vec::new();
        loop {
            let left = most.map_or(PAGE, |most| most.saturating_sub(items.len()).min(PAGE));
            let sign = if path.contains('?') { '&' } else { '?' };
            let from = after.as_deref().map(|after| format!("&after={}", escape(after))).unwrap_or_default();
            let page: Page = self.get(&format!("{path}{sign}limit={left}{from}"))?;
            items.extend(page.items);
            after = page.next;
            if after.is_none() || most.is_some_and(|most| items.len() >= most) {
                return Ok(items);
            }
        }
    }

    /// Asks for something to be done, once: it is sent again when the connection breaks, with the same key.
    pub(crate) fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        let mut key = [0; 16];
        getrandom::fill(&mut key).map_err(|error| {
            Failure::new("random", format!("no random bytes: {error}"), "check this machine's kernel")
        })?;
        let key = u128::from_le_bytes(key);
        let send = || {
            let request = self.agent.post(format!("{}{path}", self.url));
            let mut request = request.header("authorization", format!("Bearer {}", self.token));
            if let Some(context) = traces::context() {
                request = request.header(trace::HEADER, context);
            }
            self.read(request.header("idempotency-key", format!("{key:032x}")).send_json(body))
        };
        match send() {
            Err(failure) if failure.code == "unreachable" => send(),
            answer => answer,
        }
    }

    pub(crate) fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        let request = self.agent.put(format!("{}{path}", self.url));
        self.read(request.header("authorization", format!("Bearer {}", self.token)).send_json(body))
    }

    pub(crate) fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let request = self.agent.delete(format!("{}{path}", self.url));
        self.read(request.header("authorization", format!("Bearer {}", self.token)).call())
    }

    /// Asks for something of any length, and writes it. It may take as long as it goes on.
    pub(crate) fn download(&self, path: &str, to: &mut impl std::io::Write) -> Result<(), Failure> {
        let request = self.agent.post(format!("{}{path}", self.url)).config();
        let request = request.timeout_global(None).timeout_recv_response(Some(MOST_WAIT)).build();
        let answer = request.header("authorization", format!("Bearer {}", self.token)).send_empty();
        let mut answer = match answer {
            Ok(answer) if answer.status().is_success() => answer,
            other => return self.body(other).map(drop),
        };
        let mut from = answer.body_mut().with_config().limit(u64::MAX).reader();
        std::io::copy(&mut from, to).map(drop).map_err(|error| {
            let what = format!("the answer broke off, or cannot be written: {error}");
            Failure::new("broken-off", what, "check the coordinator's log and the free space, and try again")
        })
    }

    fn read<T: DeserializeOwned>(
        &self,
        answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<T, Failure> {
        let text = self.body(answer)?;
        let text = if text.is_empty() { "null" } else { &text };
        serde_json::from_str(text).map_err(|error| {
            let what = format!("the answer is not one to what was asked: {error}");
            Failure::new("answer", what, "use the same release of the coordinator and the command")
        })
    }

    fn body(&self, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<String, Failure> {
        let unreachable = |error: ureq::Error| {
            let advice = "check --url and that the coordinator runs; --ca must be of this very coordinator";
            Failure::new("unreachable", format!("cannot ask {}: {error}", self.url), advice)
        };
        let mut answer = answer.map_err(unreachable)?;
        let text =
            answer.body_mut().with_config().limit(MOST_ANSWER).read_to_string().map_err(unreachable)?;
        if answer.status().is_success() {
            return Ok(text);
        }
        let problem: Value = serde_json::from_str(&text).unwrap_or_default();
        match (problem["code"].as_str(), problem["detail"].as_str()) {
            (Some(code), Some(detail)) => Err(Failure::told(code, detail)),
            _ => Err(Failure::new(
                "answer",
                format!("{} answers {} without a reason", self.url, answer.status()),
                "check --url: is this the coordinator?",
            )),
        }
    }
}
