//! Server-sent events, as a program reads them.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::timeout;

use super::*;

/// An event: its name, its id, its data.
#[derive(Clone, Debug)]
struct Event {
    name: String,
    id: String,
    data: Value,
}

/// A stream that is read by a thread of its own, which ends with it.
struct Stream {
    events: Receiver<Event>,
}

impl Stream {
    async fn open(world: &World, token: &str, last: Option<&str>) -> Result<Self, u16> {
        let ca = std::fs::read(world.folder.path().join("ca.pem")).unwrap();
        let root = ureq::tls::Certificate::from_pem(&ca).unwrap();
        let tls = ureq::tls::TlsConfig::builder()
            .root_certs(ureq::tls::RootCerts::new_with_certs(&[root]))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let agent = ureq::Agent::config_builder().tls_config(tls).http_status_as_error(false).build();
        let request = ureq::Agent::new_with_config(agent)
            .get(format!("https://{}/v1/events", world.api))
            .header("authorization", format!("Bearer {token}"));
        let request = match last {
            Some(last) => request.header("last-event-id", last),
            None => request,
        };
        let response = tokio::task::spawn_blocking(|| request.call()).await.unwrap().unwrap();
        if response.status().as_u16() != 200 {
            return Err(response.status().as_u16());
        }
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let (send, events) = channel(4096);
        std::thread::spawn(move || {
            let (mut name, mut id, mut data) = (String::new(), String::new(), String::new());
            for line in BufReader::new(response.into_body().into_reader()).lines().map_while(Result::ok) {
                match line.split_once(": ") {
                    Some(("event", value)) => value.clone_into(&mut name),
                    Some(("id", value)) => value.clone_into(&mut id),
                    Some(("data", value)) => data.push_str(value),
                    _ if line.is_empty() && !name.is_empty() => {
                        let data = serde_json::from_str(&std::mem::take(&mut data)).unwrap();
                        let event = Event { name: std::mem::take(&mut name), id: id.clone(), data };
                        if send.blocking_send(event).is_err() {
                            return;
                        }
                    }
                    // Comments keep the line alive.
                    _ => {}
                }
            }
        });
        Ok(Self { events })
    }

    /// The next event; none when the stream has ended.
    async fn next(&mut self) -> Option<Event> {
        timeout(Duration::from_secs(60), self.events.recv()).await.expect("an event or the end")
    }

    async fn until(&mut self, so: impl Fn(&Event) -> bool) -> Event {
        loop {
            let event = self.next().await.expect("the stream goes on");
            if so(&event) {
                return event;
            }
        }
    }
}

#[tokio::test]
async fn what_changes_is_told_as_the_api_shows_it() {
    let world = World::new().await;
    let mut stream = Stream::open(&world, &world.admin, None).await.unwrap();
    let hello = stream.next().await.unwrap();
    assert_eq!((hello.name.as_str(), &hello.data["version"]), ("hello", &json!(env!("CARGO_PKG_VERSION"))));

    let host = world.host("host-a").await;
    let mut line = host.line(&world, 0).await.unwrap();
    let said = stream.until(|event| event.name == "host" && event.data["connected"].is_string()).await;
    assert_eq!(said.data["name"], "host-a");
    line.has(&["web-1", "<b>&'"]).await;
    let vm = stream.until(|event| event.name == "vm" && event.data["id"] == "web-1").await;
    let listed = world.get("/v1/vms").await;
    assert!(listed["items"].as_array().unwrap().contains(&vm.data), "{vm:?} is not in {listed}");
    line.has(&["<b>&'"]).await;
    let gone = stream.until(|event| event.name == "vm" && event.data["gone"] == true).await;
    assert_eq!(gone.data, json!({ "host": "host-a", "id": "web-1", "gone": true }));

    // Whoever comes back hears what it missed, and whoever was away too long is told so.
    let mut again = Stream::open(&world, &world.admin, Some(&said.id)).await.unwrap();
    assert_eq!(again.next().await.unwrap().name, "hello");
    let first = again.next().await.unwrap();
    let number = |event: &Event| event.id.rsplit_once('-').unwrap().1.parse::<u64>().unwrap();
    assert_eq!(number(&first), number(&said) + 1);
    again.until(|event| event.id == gone.id).await;
    for unknown in ["", "x", "00000000000000000000000000000000-1", &format!("{}9999", said.id)] {
        let mut stream = Stream::open(&world, &world.admin, Some(unknown)).await.unwrap();
        assert_eq!(stream.next().await.unwrap().name, "hello", "{unknown}");
        assert_eq!(stream.next().await.unwrap().name, "reset", "{unknown}");
    }
    // The end of the coordinator is the end of the stream.
    world.stop.cancel();
    while stream.next().await.is_some() {}
    world.running.await.unwrap().unwrap();
}

#[tokio::test]
async fn strangers_hear_nothing_and_one_caller_not_everything() {
    let world = World::new().await;
    assert_eq!(Stream::open(&world, "nfa1_x", None).await.map(|_| ()), Err(401));
    let mut streams = Vec::new();
    let refused = loop {
        match Stream::open(&world, &world.admin, None).await {
            Ok(stream) => streams.push(stream),
            Err(status) => break status,
        }
    };
    assert_eq!((refused, streams.len()), (429, 16));
}
