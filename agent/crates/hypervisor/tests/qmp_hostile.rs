//! A scripted QMP server: whatever it says or keeps to itself, each command ends, with a kind that tells what happened.

use std::path::PathBuf;
use std::time::Duration;

use novaferry_hypervisor::qmp::words::{ErrorClass, RunState};
use novaferry_hypervisor::qmp::{
    Connector, EVENT_QUEUE, EventKind, MAX_REPLY, MAX_REQUEST, MonitorError, MonitorErrorKind, MonitorLoss,
    Qmp,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// Far above what any step takes; a test that runs into it has failed.
const LONG: Duration = Duration::from_secs(60);

/// For what must time out.
const SHORT: Duration = Duration::from_millis(50);

struct Peer(BufStream<UnixStream>);

impl Peer {
    async fn send(&mut self, bytes: &[u8]) {
        // The client may have left by then.
        if self.0.write_all(bytes).await.is_ok() {
            drop(self.0.flush().await);
        }
    }

    async fn say(&mut self, message: Value) {
        self.send(format!("{message}\r\n").as_bytes()).await;
    }

    async fn hear(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.0.read_line(&mut line).await.ok().filter(|n| *n > 0)?;
        Some(serde_json::from_str(&line).unwrap())
    }

    async fn greet(&mut self, capabilities: &[&str]) -> Option<Value> {
        let version = json!({"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": ""});
        self.say(json!({"QMP": {"version": version, "capabilities": capabilities}})).await;
        let negotiation = self.hear().await?;
        assert_eq!(negotiation["execute"], "qmp_capabilities");
        self.say(json!({"return": {}, "id": negotiation["id"]})).await;
        Some(negotiation)
    }

    /// Until the client leaves.
    async fn rest(&mut self) {
        while self.hear().await.is_some() {}
    }
}

struct Server {
    socket: PathBuf,
    task: JoinHandle<()>,
    _folder: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves one client.
fn serve<F: Future<Output = ()> + Send>(script: impl FnOnce(Peer) -> F + Send + 'static) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("qmp");
    let listener = UnixListener::bind(&socket).unwrap();
    let task = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        script(Peer(BufStream::new(stream))).await;
    });
    Server { socket, task, _folder: folder }
}

async fn connect(server: &Server) -> Qmp {
    Qmp::connect(&server.socket, LONG).await.unwrap()
}

fn loss(error: &MonitorError) -> &MonitorLoss {
    match error {
        MonitorError::Lost { source, .. } => source,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_no_qmp_server_is_refused() {
    let error = Qmp::connect("/nowhere/qmp".as_ref(), LONG).await.unwrap_err();
    assert_eq!(error.kind(), MonitorErrorKind::Connect);
    let silent = serve(|mut peer| async move { peer.rest().await });
    let error = Connector { socket: silent.socket.clone(), timeout: SHORT }.connect().await.unwrap_err();
    assert_eq!(error.kind(), MonitorErrorKind::Timeout, "another client holds the socket");
    for first in ["QEMU 10.0.2 monitor - type 'help' for more information\n", "{\"return\": {}, \"id\": 1}\n"]
    {
        let server = serve(async move |mut peer: Peer| {
            peer.send(first.as_bytes()).await;
            peer.rest().await;
        });
        let error = Qmp::connect(&server.socket, LONG).await.unwrap_err();
        assert_eq!(error.kind(), MonitorErrorKind::Lost, "{first}");
    }
    let gone = serve(|peer| async move { drop(peer) });
    let error = Qmp::connect(&gone.socket, LONG).await.unwrap_err();
    assert!(matches!(loss(&error), MonitorLoss::Socket(_)), "{error:?}");
}

#[tokio::test]
async fn out_of_band_goes_in_band_where_it_is_not_offered() {
    for (offered, verb) in [(&["oob", "new"][..], "exec-oob"), (&[], "execute")] {
        let server = serve(move |mut peer| async move {
            let negotiation = peer.greet(offered).await.unwrap();
            let enabled = if offered.is_empty() { json!([]) } else { json!(["oob"]) };
            assert_eq!(negotiation["arguments"]["enable"], enabled);
            let command = peer.hear().await.unwrap();
            assert_eq!(command[verb], "migrate-pause");
            peer.say(json!({"return": {}, "id": command["id"]})).await;
            peer.rest().await;
        });
        let qmp = connect(&server).await;
        assert_eq!(qmp.has_out_of_band(), !offered.is_empty());
        qmp.migrate_pause().await.unwrap();
    }
}

#[tokio::test]
async fn what_breaks_the_protocol_ends_the_connection() {
    let broken: [(&str, Vec<u8>); 6] = [
        ("too long", vec![b'x'; MAX_REPLY + 1]),
        ("garbage", b"garbage\n".to_vec()),
        ("wrong id", b"{\"return\": {}, \"id\": 9007199254740991}\n".to_vec()),
        ("no id", b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"?\"}}\n".to_vec()),
        (
            "greets again",
            b"{\"QMP\": {\"version\": {\"qemu\": {\"major\": 1, \"minor\": 1, \"micro\": 1}}}}\n".to_vec(),
        ),
        ("deep", [vec![b'['; 100_000], b"\n".to_vec()].concat()),
    ];
    for (what, bytes) in broken {
        let server = serve(move |mut peer| async move {
            peer.greet(&[]).await.unwrap();
            peer.hear().await.unwrap();
            peer.hear().await.unwrap();
            peer.send(&bytes).await;
            peer.rest().await;
        });
        let qmp = connect(&server).await;
        let mut events = qmp.subscribe();
        let (one, other) = tokio::join!(qmp.stop(), qmp.query_status());
        for error in [one.unwrap_err(), other.unwrap_err()] {
            assert_eq!(error.kind(), MonitorErrorKind::Lost, "{what}");
            assert!(error.may_have_happened());
            let typed = match what {
                "too long" => matches!(loss(&error), MonitorLoss::TooLong { .. }),
                "garbage" | "deep" => matches!(loss(&error), MonitorLoss::Message(_)),
                _ => matches!(loss(&error), MonitorLoss::Protocol(_)),
            };
            assert!(typed, "{what}: {error:?}");
        }
        assert_eq!(events.next().await.unwrap_err().kind(), MonitorErrorKind::Lost);
        assert_eq!(qmp.cont().await.unwrap_err().kind(), MonitorErrorKind::Lost, "it stays so");
        assert_eq!(qmp.subscribe().next().await.unwrap_err().kind(), MonitorErrorKind::Lost);
        assert!(qmp.ended().is_some());
    }
}

#[tokio::test]
async fn a_server_that_leaves_fails_what_waits() {
    let server = serve(|mut peer| async move {
        peer.greet(&[]).await.unwrap();
        peer.hear().await.unwrap();
    });
    let qmp = connect(&server).await;
    let error = qmp.quit().await.unwrap_err();
    assert!(matches!(loss(&error), MonitorLoss::Socket(_)), "{error:?}");
    let closed = qmp.subscribe();
    drop(qmp);
    drop(closed);
}

#[tokio::test]
async fn answers_find_their_commands_in_any_order() {
    let server = serve(|mut peer| async move {
        peer.greet(&[]).await.unwrap();
        let (first, second) = (peer.hear().await.unwrap(), peer.hear().await.unwrap());
        for command in [second, first] {
            let result = match command["execute"].as_str().unwrap() {
                "query-status" => json!({"running": true, "status": "a-new-state", "more": []}),
                _ => json!({"name": "web"}),
            };
            peer.say(json!({"return": result, "id": command["id"]})).await;
        }
        peer.rest().await;
    });
    let qmp = connect(&server).await;
    let (status, name) = tokio::join!(qmp.query_status(), qmp.query_name());
    assert_eq!(status.unwrap().status, RunState::Unknown("a-new-state".to_owned()));
    assert_eq!(name.unwrap().as_deref(), Some("web"));
}

#[tokio::test]
async fn errors_keep_their_class_and_wrong_shapes_are_told() {
    let server = serve(|mut peer| async move {
        peer.greet(&[]).await.unwrap();
        let command = peer.hear().await.unwrap();
        let error = json!({"class": "CommandNotFound", "desc": "The command\nis not there"});
        peer.say(json!({"error": error, "id": command["id"]})).await;
        let command = peer.hear().await.unwrap();
        peer.say(json!({"return": {"running": "yes"}, "id": command["id"]})).await;
        peer.rest().await;
    });
    let qmp = connect(&server).await;
    let error = qmp.stop().await.unwrap_err();
    assert_eq!(error.kind(), MonitorErrorKind::Refused(ErrorClass::CommandNotFound));
    assert_eq!(error.to_string(), "stop: The command is not there (CommandNotFound)");
    assert!(!error.may_have_happened());
    assert_eq!(qmp.query_status().await.unwrap_err().kind(), MonitorErrorKind::Answer);
    let long = "x".repeat(MAX_REQUEST);
    assert_eq!(qmp.migrate_recover(&long).await.unwrap_err().kind(), MonitorErrorKind::Request);
    let list = qmp.execute::<Value>("query-status", &[1]).await.unwrap_err();
    assert_eq!(list.kind(), MonitorErrorKind::Request, "arguments are objects");
}

#[tokio::test]
async fn late_answers_are_dropped_and_slots_come_back() {
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let server = serve(|mut peer| async move {
        peer.greet(&[]).await.unwrap();
        let mut commands = Vec::new();
        for _ in 0..7 {
            commands.push(peer.hear().await.unwrap());
        }
        released.await.unwrap();
        // As QEMU does with what an earlier client asked.
        peer.say(json!({"return": {}, "id": 7})).await;
        for command in commands {
            peer.say(json!({"return": {}, "id": command["id"]})).await;
        }
        while let Some(command) = peer.hear().await {
            peer.say(json!({"return": {}, "id": command["id"]})).await;
        }
    });
    let qmp = connect(&server).await;
    let impatient = qmp.within(SHORT);
    for _ in 0..8 {
        // The eighth is not even sent: QEMU would stop reading.
        assert_eq!(impatient.cont().await.unwrap_err().kind(), MonitorErrorKind::Timeout);
    }
    release.send(()).unwrap();
    for _ in 0..20 {
        qmp.stop().await.unwrap();
    }
    assert!(qmp.ended().is_none());
}

#[tokio::test]
async fn a_slow_subscriber_is_told_what_it_missed() {
    let server = serve(|mut peer| async move {
        peer.greet(&[]).await.unwrap();
        let command = peer.hear().await.unwrap();
        for pass in 0..EVENT_QUEUE + 10 {
            let at = json!({"seconds": 1, "microseconds": 0});
            peer.say(json!({"event": "MIGRATION_PASS", "data": {"pass": pass}, "timestamp": at})).await;
        }
        peer.say(json!({"return": {}, "id": command["id"]})).await;
        peer.rest().await;
    });
    let qmp = connect(&server).await;
    let mut events = qmp.subscribe();
    qmp.cont().await.unwrap();
    let error = events.next().await.unwrap_err();
    assert!(matches!(error, MonitorError::EventsMissed { missed: 10, .. }), "{error:?}");
    for pass in 10..EVENT_QUEUE + 10 {
        assert_eq!(events.next().await.unwrap().kind, EventKind::MigrationPass(pass as u64));
    }
    drop(qmp);
    let error = events.next().await.unwrap_err();
    assert!(matches!(loss(&error), MonitorLoss::Closed), "{error:?}");
}
