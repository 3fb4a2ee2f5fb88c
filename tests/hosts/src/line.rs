//! Joining and dialling, as an agent does.

use std::time::SystemTime;

use control_api::v1::from_agent::What as Said;
use control_api::v1::to_agent::What as Told;
use control_api::v1::{self, FromAgent, Hello, ToAgent, Welcome};
use control_api::{JoinToken, PROTOCOL, PROTOCOL_LEAST, dial, mutual, pinned};
use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::DecodePrivateKey as _;
use pki::NewKey;
use receipt::ReceiptSigner;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::VERSION;

/// Messages that wait for the coordinator.
const WAITING: usize = 16;

/// What a host shows and trusts.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    chain: CertificateDer<'static>,
    key: Vec<u8>,
    authority: CertificateDer<'static>,
}

/// An open line.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) said: mpsc::Sender<FromAgent>,
    pub(crate) told: Streaming<ToAgent>,
    pub(crate) welcome: Welcome,
}

fn why(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

fn certificate(pem: &str) -> Result<CertificateDer<'static>, String> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| why(&error))
}

pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Uses a join token up.
pub(crate) async fn join(agents: &str, token: &str, name: &str) -> Result<Identity, String> {
    let parsed: JoinToken = token.trim().parse().map_err(|error| why(&error))?;
    let key = NewKey::generate().map_err(|error| why(&error))?;
    let tls = pinned(parsed.pin()).map_err(|error| why(&error))?;
    let mut client = dial(agents, tls).await.map_err(|error| why(&error))?;
    let request = v1::JoinRequest {
        protocol: PROTOCOL,
        token: token.trim().to_owned(),
        host: name.to_owned(),
        request: key.request().map_err(|error| why(&error))?,
        version: VERSION.to_owned(),
    };
    let reply = client.join(request).await.map_err(|error| why(&error))?.into_inner();
    let given = reply.certificate.ok_or("the coordinator gives no certificate")?;
    Ok(Identity {
        chain: certificate(&given.chain)?,
        key: key.der().map_err(|error| why(&error))?.to_vec(),
        authority: certificate(&given.authorities)?,
    })
}

impl Identity {
    /// Signs receipts as this host.
    pub(crate) fn signer(&self, name: &str) -> ReceiptSigner {
        let key = SigningKey::from_pkcs8_der(&self.key).expect("a key of our own");
        ReceiptSigner::new(key, pki::to_pem(&self.chain), name.to_owned())
    }
}

/// What a simulated agent says first.
#[allow(clippy::needless_update, reason = "a newer message has more fields")]
pub(crate) fn hello(name: &str, intent_generation: u64) -> Hello {
    Hello {
        protocol: PROTOCOL,
        protocol_least: PROTOCOL_LEAST,
        version: VERSION.to_owned(),
        intent_generation,
        addresses: vec![format!("{name}:7440")],
        now_ms: now_ms(),
        ..Hello::default()
    }
}

/// Dials, and is welcomed. A new TLS configuration each time, as with agents: no session of an earlier line is resumed.
pub(crate) async fn open(agents: &str, identity: &Identity, hello: Hello) -> Result<Line, String> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key.clone()));
    let tls = mutual(vec![identity.chain.clone()], key, std::slice::from_ref(&identity.authority))
        .map_err(|error| why(&error))?;
    let mut client = dial(agents, tls).await.map_err(|error| why(&error))?;
    let (said, outbound) = mpsc::channel(WAITING);
    let closed = |_| "the line is closed".to_owned();
    said.send(FromAgent { what: Some(Said::Hello(hello)) }).await.map_err(closed)?;
    let answer = client.connect(ReceiverStream::new(outbound)).await.map_err(|error| why(&error))?;
    let mut told = answer.into_inner();
    match told.message().await.map_err(|error| why(&error))? {
        Some(ToAgent { what: Some(Told::Welcome(welcome)) }) => Ok(Line { said, told, welcome }),
        other => Err(format!("no welcome: {other:?}")),
    }
}
