//! Webhooks, with a receiver of HTTP behind a real socket.

use std::sync::Mutex;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::post;
use data_encoding::BASE64;
use ring::hmac;

use super::*;

/// What came.
#[derive(Clone, Debug)]
struct Came {
    id: String,
    timestamp: String,
    signatures: Vec<String>,
    body: String,
}

impl Came {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    fn topic(&self) -> String {
        self.json()["type"].as_str().unwrap().to_owned()
    }

    /// As a receiver checks it.
    #[track_caller]
    fn is_signed(&self, secret: &str) {
        let secret = BASE64.decode(secret.strip_prefix("whsec_").unwrap().as_bytes()).unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        let text = format!("{}.{}.{}", self.id, self.timestamp, self.body);
        let good = self.signatures.iter().any(|signature| {
            let signature = BASE64.decode(signature.strip_prefix("v1,").unwrap().as_bytes()).unwrap();
            hmac::verify(&key, text.as_bytes(), &signature).is_ok()
        });
        assert!(good, "{self:?}");
        let age = fleet::now().as_second() - self.timestamp.parse::<i64>().unwrap();
        assert!((0..300).contains(&age), "{age}");
    }
}

/// A receiver, and what it answers.
struct Receiver {
    url: String,
    came: Arc<Mutex<Vec<Came>>>,
    answers: watch::Sender<u16>,
}

type Shared = (Arc<Mutex<Vec<Came>>>, watch::Receiver<u16>);

async fn take(State((came, answers)): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    let text = |name: &str| headers[name].to_str().unwrap().to_owned();
    came.lock().unwrap().push(Came {
        id: text("webhook-id"),
        timestamp: text("webhook-timestamp"),
        signatures: text("webhook-signature").split(' ').map(ToOwned::to_owned).collect(),
        body: String::from_utf8(body.to_vec()).unwrap(),
    });
    match *answers.borrow() {
        302 => Redirect::temporary("/elsewhere").into_response(),
        status => StatusCode::from_u16(status).unwrap().into_response(),
    }
}

impl Receiver {
    async fn start() -> Self {
        let (came, answers) = (Arc::default(), watch::Sender::new(204));
        let elsewhere = async || -> StatusCode { panic!("a redirect was followed") };
        let shared: Shared = (Arc::clone(&came), answers.subscribe());
        let router =
            Router::new().route("/hook", post(take)).route("/elsewhere", post(elsewhere)).with_state(shared);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, came, answers }
    }

    fn came(&self) -> Vec<Came> {
        self.came.lock().unwrap().clone()
    }

    async fn until(&self, so: impl Fn(&[Came]) -> bool) -> Vec<Came> {
        let looked = timeout(PATIENCE, async {
            loop {
                let came = self.came();
                if so(&came) {
                    return came;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        looked.await.unwrap_or_else(|_| panic!("it never came: {:?}", self.came()))
    }
}

async fn add(world: &World, name: &str, url: &str, on: &[&str]) -> String {
    let (status, added) = world.post("/v1/webhooks", json!({ "name": name, "url": url, "on": on })).await;
    assert_eq!(status, 201, "{added}");
    added["secret"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn what_happens_is_told_in_order_and_signed() {
    let (world, receiver) = (World::new().await, Receiver::start().await);
    let early = world.host("host-a").await;
    let secret = add(&world, "all", &receiver.url, &[]).await;
    let hosts_alone = Receiver::start().await;
    add(&world, "hosts", &hosts_alone.url, &["host"]).await;
    let late = world.host("host-b").await;
    let (mut line_a, mut line_b) =
        (early.line(&world, 0).await.unwrap(), late.line(&world, 0).await.unwrap());
    line_a.has(&["web-1"]).await;
    line_b.has(&[]).await;
    let (status, begun) = world.post("/v1/migrations", json!({ "vm": "web-1", "to": "host-b" })).await;
    assert_eq!(status, 202, "{begun}");
    let id = begun["id"].as_str().unwrap();
    line_a.moved(id, "source", "pre-copy", false).await;
    line_a.moved(id, "source", "finalised", true).await;
    line_b.moved(id, "destination", "running", false).await;
    let came = receiver.until(|came| came.len() >= 5).await;
    let topics: Vec<_> = came.iter().map(Came::topic).collect();
    assert_eq!(
        topics,
        ["host.joined", "migration.queued", "migration.moving", "migration.proving", "migration.completed"]
    );
    came.iter().for_each(|one| one.is_signed(&secret));
    let last = came[4].json();
    assert_eq!(
        (&last["data"]["id"], &last["data"]["vm"], &last["data"]["before"], &last["data"]["destination"]),
        (&json!(id), &json!("web-1"), &json!("proving"), &json!("host-b"))
    );
    let alone = hosts_alone.until(|came| !came.is_empty()).await;
    assert_eq!(alone.iter().map(Came::topic).collect::<Vec<_>>(), ["host.joined"]);
    let shown = world.until("/v1/webhooks/hosts", |shown| shown["waiting"] == 0).await;
    assert!(shown["delivered"].is_string() && shown["failing"].is_null(), "{shown}");
}

#[tokio::test]
async fn what_is_not_taken_is_sent_again_also_by_the_next_coordinator() {
    let (world, receiver) = (World::new().await, Receiver::start().await);
    let secret = add(&world, "all", &receiver.url, &[]).await;
    receiver.answers.send_replace(500);
    world.host("host-a").await;
    let first = receiver.until(|came| came.len() == 1).await.remove(0);
    let failing = world.until("/v1/webhooks/all", |shown| shown["failing"].is_string()).await;
    assert!(failing["error"].as_str().unwrap().contains("500"), "{failing}");
    assert!(failing["retry"].is_string() && failing["waiting"] == 1, "{failing}");
    world.host("host-b").await;
    let world = world.again().await;
    receiver.answers.send_replace(204);
    let came = receiver.until(|came| came.last().is_some_and(|one| one.body.contains("host-b"))).await;
    // The first until it was taken, always under its id, and only then the second.
    let (again, second) = came.split_at(came.len() - 1);
    assert!(again.len() >= 2 && again.iter().all(|one| one.id == first.id), "{again:?}");
    assert!(again.iter().all(|one| one.body == first.body), "{again:?}");
    assert_ne!(second[0].id, first.id);
    came.iter().for_each(|one| one.is_signed(&secret));
    let shown = world.until("/v1/webhooks/all", |shown| shown["waiting"] == 0).await;
    assert!(shown["failing"].is_null() && shown["failures"] == 0, "{shown}");
}

#[tokio::test]
async fn a_receiver_gets_another_secret_without_losing_an_event() {
    let (world, receiver) = (World::new().await, Receiver::start().await);
    let old = add(&world, "all", &receiver.url, &[]).await;
    let (status, rotated) = world.post("/v1/webhooks/all/rotate", json!({})).await;
    assert_eq!(status, 200, "{rotated}");
    let new = rotated["secret"].as_str().unwrap();
    assert_ne!(new, old);
    let (status, tested) = world.post("/v1/webhooks/all/test", json!({})).await;
    assert_eq!((status, &tested["taken"]), (200, &json!(true)), "{tested}");
    let came = receiver.came();
    assert_eq!((came.len(), came[0].topic().as_str()), (1, "webhook.test"));
    came[0].is_signed(&old);
    came[0].is_signed(new);
    // Neither lies in the database, nor is it shown again.
    let shown = world.get("/v1/webhooks/all").await;
    assert!(shown["secret"].is_null(), "{shown}");
    for file in ["coordinator.db", "coordinator.db-wal"] {
        let bytes = std::fs::read(world.folder.path().join(file)).unwrap_or_default();
        for secret in [old.as_str(), new] {
            let secret = secret.strip_prefix("whsec_").unwrap().as_bytes();
            assert!(!bytes.windows(secret.len()).any(|window| window == secret), "a secret is in {file}");
        }
    }
    let audit = world.get("/v1/audit").await.to_string();
    assert!(audit.contains("manage-webhooks") && !audit.contains("/hook"), "{audit}");
}

#[tokio::test]
async fn webhooks_lead_nobody_where_they_must_not() {
    let (world, receiver) = (World::new().await, Receiver::start().await);
    add(&world, "all", &receiver.url, &[]).await;
    receiver.answers.send_replace(302);
    let (_, tested) = world.post("/v1/webhooks/all/test", json!({})).await;
    assert!(tested["taken"] == false && tested["error"].as_str().unwrap().contains("elsewhere"), "{tested}");
    // Clouds' metadata, whatever is allowed.
    add(&world, "cloud", "http://169.254.169.254/latest/meta-data", &[]).await;
    let (_, tested) = world.post("/v1/webhooks/cloud/test", json!({})).await;
    assert!(tested["error"].as_str().unwrap().contains("may be dialled"), "{tested}");
    for (url, on) in [
        ("file:///etc/passwd", "host"),
        ("http://user:word@127.0.0.1/", "host"),
        ("http://127.0.0.1/\r\nx: y", "host"),
        ("https://example.org", "hosts"),
    ] {
        let (status, problem) =
            world.post("/v1/webhooks", json!({ "name": "bad", "url": url, "on": [on] })).await;
        assert_eq!(status, 422, "{url}: {problem}");
    }
    let (status, problem) = world.post("/v1/webhooks", json!({ "name": "all", "url": receiver.url })).await;
    assert_eq!(status, 409, "{problem}");
    let (_, made) = world.post("/v1/tokens", json!({ "name": "o", "role": "operator" })).await;
    let operator = made["token"].as_str().unwrap();
    for (method, path) in
        [("GET", "/v1/webhooks"), ("GET", "/v1/webhooks/all"), ("POST", "/v1/webhooks/all/rotate")]
    {
        assert_eq!(world.ask_as(operator, method, path, None).await.0, 403, "{method} {path}");
    }
    // One that is paused is left alone, and hears of it later.
    receiver.answers.send_replace(204);
    let paused = json!({ "name": "all", "url": receiver.url, "paused": true });
    let (status, shown) = world.ask_as(&world.admin, "PUT", "/v1/webhooks/all", Some(paused.clone())).await;
    assert_eq!(status, 200, "{shown}");
    let before = receiver.came().len();
    world.host("host-a").await;
    world.until("/v1/webhooks/all", |shown| shown["waiting"] == 1).await;
    assert_eq!(receiver.came().len(), before);
    let resumed = json!({ "name": "all", "url": receiver.url });
    world.ask_as(&world.admin, "PUT", "/v1/webhooks/all", Some(resumed)).await;
    receiver.until(|came| came.len() == before + 1).await;
    let (status, _) = world.ask_as(&world.admin, "DELETE", "/v1/webhooks/all", None).await;
    assert_eq!(status, 204);
    assert_eq!(world.ask_as(&world.admin, "GET", "/v1/webhooks/all", None).await.0, 404);
}
