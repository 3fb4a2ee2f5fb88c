//! The coordinator's API, asked by the command line.

use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::config::{Key, Resolved, Source, checked_url};
use crate::failure::Failure;
use crate::traces;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a long answer may take to begin.
const MOST_WAIT: Duration = Duration::from_secs(600);
/// Largest answer that is read, bytes: a fleet of 10,000 VMs takes about 4 MiB.
const MOST_ANSWER: u64 = 64 << 20;

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
    /// With where it is from, for people; none for what anybody may ask.
    token: Option<(String, String)>,
}

/// Reads a file that a setting names.
fn read(settings: &Resolved, key: Key, what: &str) -> Result<String, Failure> {
    let path = settings.need(key)?;
    std::fs::read_to_string(path).map_err(|error| {
        let from = match &settings.setting(key).from {
            Source::Flag(_) => String::new(),
            from => format!(" ({from})"),
        };
        let advice = format!(
            "name it with {} or {}, run this as a user who may read it, or use `novaferry login`",
            key.flag(),
            key.variable()
        );
        Failure::new("access", format!("cannot read {what} {path}{from}: {error}"), advice).usage()
    })
}

impl Client {
    pub(crate) fn open(settings: &Resolved) -> Result<Self, Failure> {
        let token = read(settings, Key::TokenFile, "the token")?;
        let from = settings.need(Key::TokenFile)?.to_owned();
        let client = Self::without_token(settings)?;
        Ok(Self { token: Some((token.trim().to_owned(), from)), ..client })
    }

    /// For what anybody may ask.
    pub(crate) fn without_token(settings: &Resolved) -> Result<Self, Failure> {
        let ca = read(settings, Key::Ca, "the CA certificate")?;
        Self::new(settings.need(Key::Url)?, &ca, settings.need(Key::Ca)?)
    }

    /// To the coordinator at this address, which shows a certificate of this CA (PEM).
    pub(crate) fn new(url: &str, ca: &str, ca_name: &str) -> Result<Self, Failure> {
        let url = checked_url(url)?.to_owned();
        let root = Certificate::from_pem(ca.as_bytes()).map_err(|error| {
            let what = format!("{ca_name} is no certificate: {error}");
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
        Ok(Self { agent, url, token: None })
    }

    /// The same with this token, which is from there.
    pub(crate) fn with_token(self, token: &str, from: &str) -> Self {
        Self { token: Some((token.to_owned(), from.to_owned())), ..self }
    }

    /// Whom it asks.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    fn with<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.token {
            Some((token, _)) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    /// Why nobody answered, and what to do.
    fn unreachable(&self, error: &ureq::Error) -> Failure {
        let what = format!("cannot ask {}: {error}", self.url);
        let source = match error {
            ureq::Error::Rustls(error) => Some(error),
            ureq::Error::Io(error) => error.get_ref().and_then(|inner| inner.downcast_ref()),
            _ => None,
        };
        if let Some(rustls::Error::InvalidCertificate(why)) = source {
            use rustls::CertificateError as E;
            let advice = match why {
                E::UnknownIssuer | E::BadSignature => {
                    "--ca must be of this very coordinator: copy its ca.pem again, or use `novaferry login`"
                }
                E::NotValidForName | E::NotValidForNameContext { .. } => {
                    "ask by a name that the coordinator has, or start it with `serve --name` of this one"
                }
                E::Expired | E::ExpiredContext { .. } | E::NotValidYet | E::NotValidYetContext { .. } => {
                    "compare the clocks of this machine and the coordinator's"
                }
                _ => "is this the coordinator? Check --url",
            };
            return Failure::new("untrusted", what, advice);
        }
        let advice = match error {
            ureq::Error::HostNotFound => "check the name in --url",
            ureq::Error::Timeout(_) => "check --url, the network between, and the load of the coordinator",
            ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                "nobody listens there: check --url, and that the coordinator runs \
                 (systemctl status novaferry-coordinator)"
            }
            _ => "check --url and that the coordinator runs",
        };
        Failure::new("unreachable", what, advice)
    }

    /// An answer that says no.
    fn refused(&self, status: u16, text: &str) -> Failure {
        let problem: Value = serde_json::from_str(text).unwrap_or_default();
        let (Some(code), Some(detail)) = (problem["code"].as_str(), problem["detail"].as_str()) else {
            let what = format!("{} answers {status} without a reason", self.url);
            return Failure::new("answer", what, "check --url: is this the coordinator?");
        };
        let failure = Failure::told(code, detail);
        let from = self.token.as_ref().map_or("-", |(_, from)| from);
        match code {
            "unauthorized" => Failure::new(
                code,
                format!(
                    "the coordinator does not take the token in {from}: it is unknown, revoked or expired"
                ),
                "ask an administrator for another (`novaferry token make`), and name it with --token-file",
            ),
            "forbidden" => {
                let role = failure.advice.map(|advice| format!("; {advice}")).unwrap_or_default();
                let message = format!("{}{role} (in {from})", failure.message);
                let advice = "use a token of that role with --token-file; administrators make them: `novaferry token make`";
                Failure::new(code, message, advice)
            }
            "too-many-requests" if failure.advice.is_none() => {
                failure.advising("wait a moment, or ask for more at a time")
            }
            "internal" if failure.advice.is_none() => {
                failure.advising("look into the coordinator's log: journalctl -u novaferry-coordinator")
            }
            _ => failure,
        }
    }
}

impl Client {
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.read(self.with(self.agent.get(format!("{}{path}", self.url))).call())
    }

    /// An answer that is no JSON.
    pub(crate) fn text(&self, path: &str) -> Result<String, Failure> {
        self.body(self.with(self.agent.get(format!("{}{path}", self.url))).call())
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
            let mut request = self.with(request);
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
        self.read(self.with(request).send_json(body))
    }

    pub(crate) fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let request = self.agent.delete(format!("{}{path}", self.url));
        self.read(self.with(request).call())
    }

    /// Asks for something of any length, and writes it. It may take as long as it goes on.
    pub(crate) fn download(&self, path: &str, to: &mut impl std::io::Write) -> Result<(), Failure> {
        let request = self.agent.post(format!("{}{path}", self.url)).config();
        let request = request.timeout_global(None).timeout_recv_response(Some(MOST_WAIT)).build();
        let answer = self.with(request).send_empty();
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
        let mut answer = answer.map_err(|error| self.unreachable(&error))?;
        let text = answer.body_mut().with_config().limit(MOST_ANSWER).read_to_string();
        let text = text.map_err(|error| self.unreachable(&error))?;
        if answer.status().is_success() {
            Ok(text)
        } else {
            Err(self.refused(answer.status().as_u16(), &text))
        }
    }
}
