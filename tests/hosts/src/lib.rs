//! Hosts that are but a line to a coordinator, for tests that need a fleet and no VMs: they join by a token, say what they
//! are told to say, and do nothing. Every function waits until it is done, and panics when it cannot be, or takes half a
//! minute.

use std::time::Duration;

use control_api::v1::from_agent::What as Said;
use control_api::v1::to_agent::What as Told;
use control_api::v1::{self, FromAgent, ToAgent};
pub use control_api::v1::{Intent, Progress};
use control_api::{JoinToken, PROTOCOL, PROTOCOL_LEAST, dial, mutual, pinned};
use pki::NewKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Far beyond what anything takes here.
const PATIENCE: Duration = Duration::from_secs(30);
/// Release that it claims to be.
const VERSION: &str = "0.1.0";

/// A host with its line. Its line ends when it is dropped.
#[derive(Debug)]
pub struct Host {
    runtime: Runtime,
    said: mpsc::Sender<FromAgent>,
    told: Streaming<ToAgent>,
}

impl Host {
    /// Joins the coordinator whose agents dial this `HOST:PORT`, and connects.
    #[must_use]
    pub fn join(agents: &str, token: &str, name: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime starts");
        let (said, told) = runtime.block_on(async {
            timeout(PATIENCE, connect(agents, token, name)).await.expect("the coordinator answers")
        });
        Self { runtime, said, told }
    }

    /// Says that it has these VMs: id, name and state. All can be moved live.
    #[allow(clippy::needless_update, reason = "a newer message has more fields")]
    pub fn has(&self, vms: &[[&str; 3]]) {
        let vms = vms.iter().map(|[id, name, state]| v1::Vm {
            id: (*id).to_owned(),
            name: (*name).to_owned(),
            state: (*state).to_owned(),
            access: "live".to_owned(),
            ..v1::Vm::default()
        });
        let host = v1::Host {
            processors: 8,
            memory_bytes: 64_000_000_000,
            memory_available_bytes: 48_000_000_000,
            processor: "A processor".to_owned(),
            kvm: true,
            pools: vec![v1::Pool { name: "fast".to_owned(), free_bytes: 2_000_000_000_000 }],
            ..v1::Host::default()
        };
        self.say(Said::Observed(v1::Observed { host: Some(host), vms: vms.collect() }));
    }

    /// Waits for the next word of what is wanted of it.
    pub fn intent(&mut self) -> Intent {
        let Self { runtime, told, .. } = self;
        runtime.block_on(async {
            let intent = async {
                loop {
                    let message = told.message().await.expect("the line holds").expect("the line goes on");
                    if let Some(Told::Intent(intent)) = message.what {
                        return intent;
                    }
                }
            };
            timeout(PATIENCE, intent).await.expect("something is wanted")
        })
    }

    /// Says where a migration stands here.
    pub fn moved(&self, progress: Progress) {
        self.say(Said::Moves(v1::Moves { migrations: vec![progress] }));
    }

    fn say(&self, what: Said) {
        let message = FromAgent { what: Some(what) };
        self.runtime.block_on(self.said.send(message)).expect("the line holds");
    }
}

async fn connect(agents: &str, token: &str, name: &str) -> (mpsc::Sender<FromAgent>, Streaming<ToAgent>) {
    let parsed: JoinToken = token.trim().parse().expect("a join token");
    let key = NewKey::generate().expect("a key is made");
    let tls = pinned(parsed.pin()).expect("TLS is set up");
    let mut client = dial(agents, tls).await.expect("the coordinator answers");
    let request = v1::JoinRequest {
        protocol: PROTOCOL,
        token: token.trim().to_owned(),
        host: name.to_owned(),
        request: key.request().expect("a request is made"),
        version: VERSION.to_owned(),
    };
    let reply = client.join(request).await.expect("it is let in").into_inner();
    let certificate = reply.certificate.expect("a certificate");
    let pem = |text: &str| CertificateDer::from_pem_slice(text.as_bytes()).expect("PEM");
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.der().expect("the key has a form").to_vec()));
    let tls = mutual(vec![pem(&certificate.chain)], der, &[pem(&certificate.authorities)]).expect("TLS");
    let mut client = dial(agents, tls).await.expect("the coordinator answers a host");
    let (said, outbound) = mpsc::channel(16);
    let mut told =
        client.connect(ReceiverStream::new(outbound)).await.expect("a host has a line").into_inner();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let hello = v1::Hello {
        protocol: PROTOCOL,
        protocol_least: PROTOCOL_LEAST,
        version: VERSION.to_owned(),
        addresses: vec![format!("{name}:7440")],
        now_ms: i64::try_from(now.as_millis()).unwrap_or(i64::MAX),
        ..v1::Hello::default()
    };
    said.send(FromAgent { what: Some(Said::Hello(hello)) }).await.expect("the line holds");
    let welcome = told.message().await.expect("the line holds").expect("a welcome").what;
    assert!(matches!(welcome, Some(Told::Welcome(_))), "no welcome: {welcome:?}");
    (said, told)
}
