//! The coordinator as a whole, over real sockets and real TLS: agents by their own client, people by an HTTP client.

use std::collections::VecDeque;
use std::time::Duration;

use control_api::v1::from_agent::What as Said;
use control_api::v1::to_agent::What as Told;
use control_api::v1::{self, FromAgent, ToAgent};
use control_api::{Client, PROTOCOL, PROTOCOL_LEAST, dial, mutual, pinned};
use pki::NewKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use super::*;

mod api;
mod arrivals;
mod backup;
mod cutover;
mod events;
mod links;
mod metrics;
mod novacron;
mod plans;
mod traces;
mod webhooks;

/// Far beyond what anything takes here.
const PATIENCE: Duration = Duration::from_secs(30);

/// A coordinator, and an administrator.
struct World {
    folder: tempfile::TempDir,
    agents: String,
    api: String,
    metrics: SocketAddr,
    admin: String,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<Result<(), ServiceError>>,
}

impl World {
    async fn new() -> Self {
        Self::within(tempfile::tempdir().unwrap()).await
    }

    async fn within(folder: tempfile::TempDir) -> Self {
        Self::open_to(folder, Access::default()).await
    }

    async fn open_to(folder: tempfile::TempDir, access: Access) -> Self {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let settings = Settings {
            state: folder.path().to_owned(),
            database: None,
            ca_key: KeySource::default(),
            agents: any,
            api: any,
            metrics: Some(any),
            names: Vec::new(),
            access,
            webhooks: Reach::Private,
        };
        let service = Service::open(settings).await.unwrap();
        let metrics = service.metrics().unwrap();
        let (agents, api) = (service.agents().unwrap().to_string(), service.api().unwrap().to_string());
        let stop = CancellationToken::new();
        let running = tokio::spawn(service.run(stop.clone()));
        let admin = std::fs::read_to_string(folder.path().join("admin-token")).unwrap().trim().to_owned();
        Self { folder, agents, api, metrics, admin, stop, running }
    }

    async fn again(self) -> Self {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
        Self::within(self.folder).await
    }

    /// Sends a request as it is; headers of the answer by their names in lower case.
    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
        let ca = std::fs::read(self.folder.path().join("ca.pem")).unwrap();
        let mut request =
            ureq::http::Request::builder().method(method).uri(format!("https://{}{path}", self.api));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).unwrap();
        let asked = tokio::task::spawn_blocking(move || {
            let root = ureq::tls::Certificate::from_pem(&ca).unwrap();
            let tls = ureq::tls::TlsConfig::builder()
                .root_certs(ureq::tls::RootCerts::new_with_certs(&[root]))
                .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .build();
            let agent = ureq::Agent::config_builder()
                .tls_config(tls)
                .http_status_as_error(false)
                .allow_non_standard_methods(true)
                .build();
            let mut response = ureq::Agent::new_with_config(agent).run(request).unwrap();
            let bytes = response.body_mut().read_to_vec().unwrap();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            Answer { status: response.status().as_u16(), headers: response.headers().clone(), text, bytes }
        });
        asked.await.unwrap()
    }

    async fn ask_as(&self, token: &str, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let answer = self.send(method, path, &headers, body.into_bytes()).await;
        (answer.status, answer.json())
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask_as(&self.admin, "GET", path, None).await;
        assert_eq!(status, 200, "{body}");
        body
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.ask_as(&self.admin, "POST", path, Some(body)).await
    }

    async fn post_in(&self, context: &str, path: &str, body: Value) -> (u16, Value) {
        let bearer = format!("Bearer {}", self.admin);
        let headers = [
            ("authorization", bearer.as_str()),
            ("content-type", "application/json"),
            ("traceparent", context),
        ];
        let answer = self.send("POST", path, &headers, body.to_string().into_bytes()).await;
        (answer.status, answer.json())
    }

    async fn token(&self) -> String {
        let (status, invited) = self.post("/v1/host-tokens", json!({ "site": "berlin" })).await;
        assert_eq!(status, 201, "{invited}");
        invited["token"].as_str().unwrap().to_owned()
    }

    async fn join_with(&self, token: &str, name: &str) -> Result<Host, Status> {
        let parsed: control_api::JoinToken = token.parse().unwrap();
        let mut client = dial(&self.agents, pinned(parsed.pin()).unwrap()).await.unwrap();
        let key = NewKey::generate().unwrap();
        let request = v1::JoinRequest {
            protocol: PROTOCOL,
            token: token.to_owned(),
            host: name.to_owned(),
            request: key.request().unwrap(),
            version: "0.1.0".to_owned(),
        };
        let reply = client.join(request).await?.into_inner();
        assert_eq!((reply.host.as_str(), reply.site.as_str()), (name, "berlin"));
        let certificate = reply.certificate.unwrap();
        Ok(Host { name: name.to_owned(), expects: false, waits: true, hidden: false, key, certificate })
    }

    async fn host(&self, name: &str) -> Host {
        self.join_with(&self.token().await, name).await.unwrap()
    }

    /// Looks until it is so.
    async fn until(&self, path: &str, so: impl Fn(&Value) -> bool) -> Value {
        let looked = timeout(PATIENCE, async {
            loop {
                let value = self.get(path).await;
                if so(&value) {
                    return value;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        looked.await.unwrap_or_else(|_| panic!("{path} never became so"))
    }
}

/// What the API answers.
struct Answer {
    status: u16,
    headers: ureq::http::HeaderMap,
    text: String,
    bytes: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| Value::String(self.text.clone()))
    }
}

fn addresses(name: &str) -> Vec<String> {
    vec![format!("{name}:7440"), format!("mpls={name}.mpls:7440")]
}

/// A host that has joined.
struct Host {
    name: String,
    /// Its agent lets in what is expected.
    expects: bool,
    /// Its agent waits for cut-overs.
    waits: bool,
    /// Nobody can dial it.
    hidden: bool,
    key: NewKey,
    certificate: v1::Certificate,
}

/// Its line.
struct Line {
    said: mpsc::Sender<FromAgent>,
    told: Streaming<ToAgent>,
    /// What it was told while it waited to be heard.
    held: VecDeque<Told>,
}

impl Host {
    async fn client(&self, world: &World) -> Client {
        let pem = |text: &str| CertificateDer::from_pem_slice(text.as_bytes()).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.der().unwrap().to_vec()));
        let tls =
            mutual(vec![pem(&self.certificate.chain)], key, &[pem(&self.certificate.authorities)]).unwrap();
        dial(&world.agents, tls).await.unwrap()
    }

    async fn line(&self, world: &World, seen: u64) -> Result<Line, Status> {
        self.line_at(world, seen, 0).await
    }

    /// The same with a clock that is so far ahead.
    async fn line_at(&self, world: &World, seen: u64, ahead_ms: i64) -> Result<Line, Status> {
        let mut client = self.client(world).await;
        let (said, outbound) = mpsc::channel(16);
        let told = client.connect(ReceiverStream::new(outbound)).await?.into_inner();
        let mut line = Line { said, told, held: VecDeque::new() };
        let hello = v1::Hello {
            protocol: PROTOCOL,
            protocol_least: PROTOCOL_LEAST,
            version: "0.1.0".to_owned(),
            intent_generation: seen,
            addresses: if self.hidden { Vec::new() } else { addresses(&self.name) },
            now_ms: fleet::now().as_millisecond() + ahead_ms,
            probes: true,
            expects: self.expects,
            waits: self.waits,
            calls: true,
        };
        line.say(Said::Hello(hello)).await;
        match line.next().await? {
            Told::Welcome(welcome) => {
                assert_eq!((welcome.protocol, welcome.site.as_str()), (PROTOCOL, "berlin"))
            }
            other => panic!("no welcome: {other:?}"),
        }
        Ok(line)
    }
}

impl Line {
    async fn say(&self, what: Said) {
        self.said.send(FromAgent { what: Some(what) }).await.unwrap();
    }

    async fn next(&mut self) -> Result<Told, Status> {
        match self.held.pop_front() {
            Some(told) => Ok(told),
            None => self.come().await,
        }
    }

    async fn come(&mut self) -> Result<Told, Status> {
        let message = timeout(PATIENCE, self.told.message()).await.expect("nothing came")?;
        Ok(message.ok_or_else(|| Status::aborted("the line ended"))?.what.unwrap())
    }

    /// Waits until all that it said was heard: a beat is answered in its turn.
    async fn heard(&mut self) {
        self.say(Said::Beat(v1::Beat { now_ms: 0 })).await;
        loop {
            match self.come().await.unwrap() {
                Told::Beat(_) => return,
                told => self.held.push_back(told),
            }
        }
    }

    async fn intent(&mut self) -> v1::Intent {
        loop {
            match self.next().await.unwrap() {
                Told::Intent(intent) => return intent,
                // Who is not asked about links in a test lets it be.
                Told::Certificate(_) | Told::Beat(_) | Told::Probe(_) | Told::Meet(_) => {}
                other @ Told::Welcome(_) => panic!("no intent: {other:?}"),
            }
        }
    }

    async fn has(&mut self, vms: &[&str]) {
        let vms = vms.iter().map(|id| v1::Vm {
            id: (*id).to_owned(),
            name: format!("{id}'; DROP TABLE hosts; --<b>"),
            state: "running".to_owned(),
            access: "live".to_owned(),
            ..v1::Vm::default()
        });
        self.observed(v1::Host::default(), vms.collect()).await;
    }

    async fn observed(&mut self, host: v1::Host, vms: Vec<v1::Vm>) {
        self.say(Said::Observed(v1::Observed { host: Some(host), vms })).await;
        self.heard().await;
    }

    async fn moved(&mut self, id: &str, role: &str, state: &str, over: bool) {
        let progress = v1::Progress {
            id: id.to_owned(),
            role: role.to_owned(),
            state: state.to_owned(),
            over,
            report: r#"{"total_ms":7}"#.to_owned(),
            ..v1::Progress::default()
        };
        self.say(Said::Moves(v1::Moves { migrations: vec![progress] })).await;
        self.heard().await;
    }
}

#[tokio::test]
async fn a_token_lets_one_host_in_and_no_second() {
    let world = World::new().await;
    let token = world.token().await;
    let host = world.join_with(&token, "host-a").await.unwrap();
    let again = world.join_with(&token, "host-b").await.err().unwrap();
    assert_eq!(again.code(), Code::PermissionDenied);
    let mut line = host.line(&world, 0).await.unwrap();
    assert_eq!(line.intent().await.migrations, []);
    let hosts = world.until("/v1/hosts", |hosts| hosts["items"][0]["connected"].is_string()).await;
    assert_eq!(
        (&hosts["items"][0]["name"], &hosts["items"][0]["site"]),
        (&json!("host-a"), &json!("berlin"))
    );
    drop(line);
    world.until("/v1/hosts", |hosts| hosts["items"][0]["connected"].is_null()).await;
    let log = world.get("/v1/audit").await;
    let deeds: Vec<_> =
        log["items"].as_array().unwrap().iter().map(|entry| entry["action"].as_str().unwrap()).collect();
    assert_eq!(deeds, ["manage-tokens", "invite-host", "join"]);
    assert_eq!(world.get("/v1/audit/check").await["entries"], 3);
}

#[tokio::test]
async fn strangers_get_no_line() {
    let (world, other) = (World::new().await, World::new().await);
    let token: control_api::JoinToken = world.token().await.parse().unwrap();
    // Without a certificate.
    let mut client = dial(&world.agents, pinned(token.pin()).unwrap()).await.unwrap();
    let (_said, outbound) = mpsc::channel(1);
    let refused = client.connect(ReceiverStream::new(outbound)).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    // A host of another coordinator, and one that trusts another coordinator.
    let stranger = other.host("host-a").await;
    assert!(dial(&other.agents, pinned(token.pin()).unwrap()).await.is_err(), "another's pin");
    let pem = |text: &str| CertificateDer::from_pem_slice(text.as_bytes()).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(stranger.key.der().unwrap().to_vec()));
    let ca = pem(&std::fs::read_to_string(world.folder.path().join("ca.pem")).unwrap());
    let tls = mutual(vec![pem(&stranger.certificate.chain)], key, &[ca]).unwrap();
    let refused = match dial(&world.agents, tls).await {
        Err(_) => true,
        // TLS 1.3: the server's word about a client's certificate comes with the first answer.
        Ok(mut client) => {
            let (_said, outbound) = mpsc::channel(1);
            client.connect(ReceiverStream::new(outbound)).await.is_err()
        }
    };
    assert!(refused);
}

#[tokio::test]
async fn a_host_gets_its_next_certificate_over_its_line() {
    let world = World::new().await;
    let mut host = world.host("host-a").await;
    let mut line = host.line(&world, 0).await.unwrap();
    line.intent().await;
    let key = NewKey::generate().unwrap();
    line.say(Said::Renew(v1::Renew { request: key.request().unwrap() })).await;
    let Told::Certificate(certificate) = line.next().await.unwrap() else { panic!("no certificate") };
    assert!(!certificate.chain.is_empty() && certificate.chain != host.certificate.chain);
    (host.key, host.certificate) = (key, certificate);
    let mut newer = host.line(&world, 0).await.unwrap();
    newer.intent().await;
    assert_eq!(line.next().await.unwrap_err().code(), Code::Aborted, "the newer line replaces it");
}

#[tokio::test]
async fn a_revoked_host_loses_its_line_and_the_others_learn_of_it() {
    let world = World::new().await;
    let (a, b) = (world.host("host-a").await, world.host("host-b").await);
    let (mut line_a, mut line_b) = (a.line(&world, 0).await.unwrap(), b.line(&world, 0).await.unwrap());
    line_a.intent().await;
    line_b.intent().await;
    assert_eq!(world.post("/v1/hosts/host-a/revoke", json!({})).await.0, 204);
    assert_eq!(line_a.next().await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(a.line(&world, 0).await.err().unwrap().code(), Code::Unauthenticated);
    let Told::Certificate(news) = line_b.next().await.unwrap() else { panic!("no list") };
    assert!(news.chain.is_empty() && news.revocations != b.certificate.revocations);
    assert!(world.join_with(&world.token().await, "host-a").await.is_err(), "it stays out");
    assert_eq!(world.post("/v1/hosts/host-c/revoke", json!({})).await.0, 404);
}

#[tokio::test]
async fn a_vm_moves_as_its_hosts_say() {
    let world = World::new().await;
    let (a, b) = (world.host("host-a").await, world.host("host-b").await);
    let (mut line_a, mut line_b) = (a.line(&world, 0).await.unwrap(), b.line(&world, 0).await.unwrap());
    line_a.intent().await;
    line_b.intent().await;
    line_a.has(&["web-1", "web-2"]).await;
    line_b.has(&["db-1"]).await;
    world.until("/v1/vms", |vms| vms["items"].as_array().unwrap().len() == 3).await;
    let (status, begun) = world.post("/v1/migrations", json!({ "vm": "web-1", "to": "host-b" })).await;
    assert_eq!((status, &begun["state"]), (202, &json!("queued")), "{begun}");
    let id = begun["id"].as_str().unwrap().to_owned();
    let wanted = line_a.intent().await;
    let [migration] = &wanted.migrations[..] else { panic!("{wanted:?}") };
    assert_eq!(
        (migration.id.as_str(), migration.vm.as_str(), migration.peer.as_str()),
        (id.as_str(), "web-1", "host-b")
    );
    assert_eq!((migration.to.as_str(), migration.wish()), ("novaferry://host-b:7440", v1::Wish::Arrive));
    // A second operator, and a VM that is nowhere.
    assert_eq!(world.post("/v1/migrations", json!({ "vm": "web-1", "to": "host-b" })).await.0, 409);
    assert_eq!(world.post("/v1/migrations", json!({ "vm": "nobody", "to": "host-b" })).await.0, 404);
    assert_eq!(world.post("/v1/migrations", json!({ "vm": "web-2", "to": "host-a" })).await.0, 409);
    let path = format!("/v1/migrations/{id}");
    line_a.moved(&id, "source", "pre-copy", false).await;
    world.until(&path, |migration| migration["state"] == "moving").await;
    // Another host's words about it count for nothing; nor do the source's alone.
    line_b.moved(&id, "source", "finalised", true).await;
    line_a.moved(&id, "source", "finalised", true).await;
    world.until(&path, |migration| migration["state"] == "proving").await;
    line_b.moved(&id, "destination", "running", false).await;
    let done = world.until(&path, |migration| migration["state"] == "completed").await;
    assert_eq!(done["at_source"]["report"]["total_ms"], 7);
    assert_eq!(line_a.intent().await.migrations, []);
    assert_eq!(world.post(&format!("{path}/wish"), json!({ "wish": "cancel" })).await.0, 409);
    let page = world.get("/v1/migrations?limit=1").await;
    assert_eq!((page["items"].as_array().unwrap().len(), &page["next"]), (1, &Value::Null));
    let after = format!("{}-{id}", "0");
    assert_eq!(world.get(&format!("/v1/migrations?after={after}")).await["items"], json!([]));
}

#[tokio::test]
async fn wishes_reach_the_source() {
    let world = World::new().await;
    let (a, b) = (world.host("host-a").await, world.host("host-b").await);
    let (mut line_a, mut line_b) = (a.line(&world, 0).await.unwrap(), b.line(&world, 0).await.unwrap());
    line_a.intent().await;
    line_a.has(&["web-1"]).await;
    line_b.has(&[]).await;
    world.until("/v1/hosts", |hosts| hosts["items"][1]["observed"].is_object()).await;
    world.until("/v1/vms", |vms| vms["items"].as_array().unwrap().len() == 1).await;
    let id = world.post("/v1/migrations", json!({ "vm": "web-1", "to": "host-b" })).await.1["id"].clone();
    let path = format!("/v1/migrations/{}", id.as_str().unwrap());
    line_a.intent().await;
    let wish = |wish: Value| {
        let (world, path) = (&world, format!("{path}/wish"));
        async move { world.post(&path, wish).await.0 }
    };
    assert_eq!(wish(json!({ "wish": "finalise" })).await, 409);
    assert_eq!(wish(json!({ "wish": "keep-source" })).await, 422, "without the operator's word");
    assert_eq!(
        wish(json!({ "wish": "keep-source", "other_side_is_off": true })).await,
        409,
        "there is no doubt"
    );
    assert_eq!(wish(json!({ "wish": "cancel" })).await, 200);
    assert_eq!(line_a.intent().await.migrations[0].wish(), v1::Wish::Cancel);
    let why = "there is no VM \"web-1\" here";
    let refused = v1::Refused { migration: id.as_str().unwrap().to_owned(), why: why.to_owned() };
    line_a.say(Said::Refused(refused)).await;
    let over = world.until(&path, |migration| migration["state"] == "undone").await;
    assert_eq!(over["refusal"], why);
}

#[tokio::test]
async fn clocks_that_are_apart_are_told_of_and_count_for_nothing() {
    let world = World::new().await;
    let (a, b) = (world.host("host-a").await, world.host("host-b").await);
    let off = 600_000;
    let mut line_a = a.line_at(&world, 0, off).await.unwrap();
    let mut line_b = b.line_at(&world, 0, -off).await.unwrap();
    let hosts = world.get("/v1/hosts").await;
    // Between the words of the host and their reading passes less than the whole test may take.
    let patience = i64::try_from(PATIENCE.as_millis()).unwrap();
    for (host, off) in [("host-a", off), ("host-b", -off)] {
        let host = hosts["items"].as_array().unwrap().iter().find(|one| one["name"] == host).unwrap();
        let ahead = host["clock_ahead_ms"].as_i64().unwrap();
        assert!((off - patience..=off).contains(&ahead), "{ahead} for {off}");
    }
    // Certificates are valid from an hour before they are made, so a host that is behind takes its own.
    let chain = CertificateDer::from_pem_slice(b.certificate.chain.as_bytes()).unwrap();
    let (issued, ends) = pki::issued_and_ends(&chain).unwrap();
    let begins = issued - pki::BACKDATE;
    let behind = std::time::SystemTime::now() - Duration::from_millis(off.unsigned_abs());
    assert!(begins < behind && behind + Duration::from_millis(2 * off.unsigned_abs()) < ends);
    // All times that are kept are the coordinator's.
    let began = fleet::now();
    line_a.has(&["web-1"]).await;
    line_b.has(&[]).await;
    world.until("/v1/vms", |vms| vms["items"].as_array().unwrap().len() == 1).await;
    let (status, begun) = world.post("/v1/migrations", json!({ "vm": "web-1", "to": "host-b" })).await;
    assert_eq!(status, 202, "{begun}");
    let id = begun["id"].as_str().unwrap();
    line_a.moved(id, "source", "finalised", true).await;
    line_b.moved(id, "destination", "running", false).await;
    let path = format!("/v1/migrations/{id}");
    let done = world.until(&path, |migration| migration["state"] == "completed").await;
    for field in ["created", "changed"] {
        let at: model::Timestamp = done[field].as_str().unwrap().parse().unwrap();
        assert!(began <= at && at <= fleet::now(), "{field} {at}");
    }
    // A join token is good until the coordinator says that it is not.
    assert!(world.join_with(&world.token().await, "host-c").await.is_ok());
}

#[tokio::test]
async fn of_operators_who_move_one_vm_at_once_one_does() {
    let world = World::new().await;
    let (a, b) = (world.host("host-a").await, world.host("host-b").await);
    let (mut line_a, mut line_b) = (a.line(&world, 0).await.unwrap(), b.line(&world, 0).await.unwrap());
    line_a.has(&["web-1"]).await;
    line_b.has(&[]).await;
    world.until("/v1/hosts", |hosts| hosts["items"][1]["observed"].is_object()).await;
    world.until("/v1/vms", |vms| vms["items"].as_array().unwrap().len() == 1).await;
    // Names are data, in whatever they are shown: here and in every answer below.
    let nasty = "'; DROP TABLE migrations; --<script>alert(1)</script>";
    let mut tokens = Vec::new();
    for number in 0..4 {
        let wanted = json!({ "name": format!("{number}{nasty}"), "role": "operator" });
        let (status, made) = world.post("/v1/tokens", wanted).await;
        assert_eq!(status, 201, "{made}");
        tokens.push(made["token"].as_str().unwrap().to_owned());
    }
    let wanted = json!({ "vm": "web-1", "to": "host-b" });
    let ask = |token: &String| {
        let (token, wanted) = (token.clone(), wanted.clone());
        let world = &world;
        async move { world.ask_as(&token, "POST", "/v1/migrations", Some(wanted)).await }
    };
    let [one, two, three, four] = &tokens[..] else { unreachable!() };
    let (one, two, three, four) = tokio::join!(ask(one), ask(two), ask(three), ask(four));
    let answers = [one, two, three, four];
    let (begun, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|(status, _)| *status == 202);
    assert_eq!((begun.len(), refused.len()), (1, 3), "{answers:?}");
    for (status, problem) in refused {
        assert_eq!(*status, 409);
        let why = problem["detail"].as_str().unwrap();
        assert!(why.contains("being moved already") && why.contains("cancel it"), "{why}");
    }
    assert_eq!(world.get("/v1/migrations").await["items"].as_array().unwrap().len(), 1);
    let shown = world.get("/v1/tokens").await;
    let names: Vec<_> =
        shown["items"].as_array().unwrap().iter().map(|token| token["name"].as_str().unwrap()).collect();
    assert_eq!(names[1], format!("0{nasty}"));
    world.get("/v1/audit/check").await;
}

#[tokio::test]
async fn a_restart_forgets_nothing_and_an_old_database_goes_beyond_what_hosts_saw() {
    let world = World::new().await;
    let (a, b) = (world.host("host-a").await, world.host("host-b").await);
    let (mut line_a, mut line_b) = (a.line(&world, 0).await.unwrap(), b.line(&world, 0).await.unwrap());
    line_a.has(&["web-1"]).await;
    line_b.has(&[]).await;
    world.until("/v1/hosts", |hosts| hosts["items"][1]["observed"].is_object()).await;
    world.until("/v1/vms", |vms| vms["items"].as_array().unwrap().len() == 1).await;
    let (status, begun) = world.post("/v1/migrations", json!({ "vm": "web-1", "to": "host-b" })).await;
    assert_eq!(status, 202, "{begun}");
    let world = world.again().await;
    let mut line_a = a.line(&world, 40).await.unwrap();
    let wanted = line_a.intent().await;
    assert!(wanted.generation > 40, "{}", wanted.generation);
    assert_eq!(begun["id"], json!(wanted.migrations[0].id));
}

#[tokio::test]
async fn roles_and_hostile_requests() {
    let world = World::new().await;
    let (status, made) = world.post("/v1/tokens", json!({ "name": "eyes", "role": "viewer" })).await;
    assert_eq!(status, 201, "{made}");
    let viewer = made["token"].as_str().unwrap();
    assert_eq!(world.ask_as(viewer, "GET", "/v1/hosts", None).await.0, 200);
    for (method, path, body) in [
        ("POST", "/v1/host-tokens", json!({ "site": "berlin" })),
        ("POST", "/v1/migrations", json!({ "vm": "a", "to": "b" })),
        ("POST", "/v1/tokens", json!({ "name": "me", "role": "admin" })),
        ("GET", "/v1/audit", json!({})),
    ] {
        let (status, problem) = world.ask_as(viewer, method, path, Some(body)).await;
        assert_eq!((status, &problem["code"]), (403, &json!("forbidden")), "{path}");
    }
    for token in ["", "nfa1_x", "x", &"n".repeat(5000)] {
        assert_eq!(world.ask_as(token, "GET", "/v1/hosts", None).await.0, 401);
    }
    for (path, body, expected) in [
        ("/v1/migrations", json!({ "vm": "a" }), 422),
        ("/v1/migrations", json!({ "vm": "a", "to": "b", "x": 1 }), 422),
        ("/v1/migrations", json!({ "vm": "a", "to": "../b" }), 422),
        ("/v1/migrations", json!({ "vm": "x".repeat(100_000), "to": "b" }), 413),
        ("/v1/host-tokens", json!({ "site": "Berlin!" }), 422),
        ("/v1/host-tokens", json!({ "site": "berlin", "expires_seconds": 0 }), 422),
        ("/v1/tokens", json!({ "name": "", "role": "viewer" }), 422),
        ("/v1/nothing", json!({}), 404),
    ] {
        let (status, problem) = world.post(path, body).await;
        assert_eq!(status, expected, "{path}: {problem}");
        assert_eq!(problem["status"], expected, "{problem}");
    }
    let deep = "[".repeat(50_000);
    let (status, problem) = world.post("/v1/migrations", Value::String(deep)).await;
    assert_eq!(status, 422, "{problem}");
    let id = made["id"].as_str().unwrap();
    assert_eq!(world.post(&format!("/v1/tokens/{id}/revoke"), json!({})).await.0, 204);
    assert_eq!(world.ask_as(viewer, "GET", "/v1/hosts", None).await.0, 401);
    let refused = world.get("/v1/audit").await;
    let refused =
        refused["items"].as_array().unwrap().iter().filter(|entry| entry["outcome"] == "refused").count();
    assert_eq!(refused, 4);
    assert_eq!(world.get("/v1/health").await["status"], "ok");
}
