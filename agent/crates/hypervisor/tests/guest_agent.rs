//! A scripted guest agent: stale lines, silence, and nonsense from the guest. And a real one (capability
//! `guest-agent`), which runs on this host: so it is told to refuse what would freeze it.

#[path = "support/capability.rs"]
mod capability;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use capability::have;
use novaferry_hypervisor::guest_agent::{GuestAgent, MAX_ANSWER};
use novaferry_hypervisor::qmp::words::{ErrorClass, FreezeStatus};
use novaferry_hypervisor::qmp::{MonitorErrorKind, MonitorLoss};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(50);

struct Guest(BufStream<UnixStream>);

impl Guest {
    async fn send(&mut self, bytes: &[u8]) {
        // The client may have left by then.
        if self.0.write_all(bytes).await.is_ok() {
            drop(self.0.flush().await);
        }
    }

    async fn say(&mut self, message: Value) {
        self.send(format!("{message}\n").as_bytes()).await;
    }

    async fn hear(&mut self) -> Option<(bool, Value)> {
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line).await.ok().filter(|n| *n > 0)?;
        let delimited = line[0] == 0xff;
        Some((delimited, serde_json::from_slice(&line[usize::from(delimited)..]).unwrap()))
    }

    /// Answers one synchronisation.
    async fn synchronise(&mut self) -> Option<()> {
        let (delimited, command) = self.hear().await?;
        assert!(delimited, "{command}");
        assert_eq!(command["execute"], "guest-sync-delimited");
        let answer = json!({ "return": command["arguments"]["id"] });
        self.send(&[&[0xff], format!("{answer}\n").as_bytes()].concat()).await;
        Some(())
    }

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

fn serve<F: Future<Output = ()> + Send>(script: impl FnOnce(Guest) -> F + Send + 'static) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("qga");
    let listener = UnixListener::bind(&socket).unwrap();
    let task = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        script(Guest(BufStream::new(stream))).await;
    });
    Server { socket, task, _folder: folder }
}

#[tokio::test]
async fn file_systems_are_frozen_and_thawed_after_one_synchronisation() {
    let server = serve(|mut guest| async move {
        guest.say(json!({"return": {"left": "by an earlier client"}})).await;
        guest.send(b"{\"half\": ").await;
        guest.synchronise().await.unwrap();
        for (expected, result) in [
            ("guest-fsfreeze-status", json!("thawed")),
            ("guest-fsfreeze-freeze", json!(3)),
            ("guest-fsfreeze-status", json!("frozen")),
            ("guest-fsfreeze-thaw", json!(3)),
        ] {
            let (_, command) = guest.hear().await.unwrap();
            assert_eq!(command["execute"], expected);
            guest.say(json!({ "return": result })).await;
        }
        guest.rest().await;
    });
    let mut agent = GuestAgent::connect(&server.socket, LONG).await.unwrap();
    assert_eq!(agent.freeze_status().await.unwrap(), FreezeStatus::Thawed);
    assert_eq!(agent.freeze().await.unwrap(), 3);
    assert_eq!(agent.freeze_status().await.unwrap(), FreezeStatus::Frozen);
    assert_eq!(agent.thaw().await.unwrap(), 3);
}

#[tokio::test]
async fn refusals_are_typed_and_leave_the_line_in_step() {
    let server = serve(|mut guest| async move {
        guest.synchronise().await.unwrap();
        guest.hear().await.unwrap();
        let error =
            json!({"class": "CommandNotFound", "desc": "The command guest-fsfreeze-freeze is disabled"});
        guest.say(json!({ "error": error })).await;
        guest.hear().await.unwrap();
        guest.say(json!({"return": "three"})).await;
        guest.rest().await;
    });
    let mut agent = GuestAgent::connect(&server.socket, LONG).await.unwrap();
    let error = agent.freeze().await.unwrap_err();
    assert_eq!(error.kind(), MonitorErrorKind::Refused(ErrorClass::CommandNotFound));
    assert_eq!(agent.thaw().await.unwrap_err().kind(), MonitorErrorKind::Answer);
}

#[tokio::test]
async fn a_late_answer_is_not_the_next_ones() {
    let server = serve(|mut guest| async move {
        guest.synchronise().await.unwrap();
        guest.hear().await.unwrap();
        // The client has given up when it synchronises again; only then comes the answer to its first command.
        let (_, again) = guest.hear().await.unwrap();
        guest.say(json!({"return": 99})).await;
        let answer = json!({ "return": again["arguments"]["id"] });
        guest.send(&[&[0xff], format!("{answer}\n").as_bytes()].concat()).await;
        guest.hear().await.unwrap();
        guest.say(json!({"return": 0})).await;
        guest.rest().await;
    });
    let mut agent = GuestAgent::connect(&server.socket, LONG).await.unwrap();
    agent.synchronise().await.unwrap();
    // Dropped once it waits for the answer, as by a caller's own deadline.
    assert!(tokio::time::timeout(SHORT, agent.freeze()).await.is_err());
    assert_eq!(agent.thaw().await.unwrap(), 0);
}

#[tokio::test]
async fn a_guest_without_an_agent_times_out() {
    let server = serve(|mut guest| async move { guest.rest().await });
    let mut agent = GuestAgent::connect(&server.socket, SHORT).await.unwrap();
    assert_eq!(agent.synchronise().await.unwrap_err().kind(), MonitorErrorKind::Timeout);
    assert_eq!(agent.freeze().await.unwrap_err().kind(), MonitorErrorKind::Timeout);
    let error = GuestAgent::connect("/nowhere/qga".as_ref(), LONG).await.unwrap_err();
    assert_eq!(error.kind(), MonitorErrorKind::Connect);
}

#[tokio::test]
async fn a_talkative_guest_is_left() {
    let endless = vec![b'x'; MAX_ANSWER + 1];
    let lines = b"{\"return\": 1}\n".repeat(1000);
    for (bytes, too_long) in [(endless, true), (lines, false)] {
        let server = serve(move |mut guest| async move {
            guest.send(&bytes).await;
            guest.rest().await;
        });
        let mut agent = GuestAgent::connect(&server.socket, LONG).await.unwrap();
        let error = agent.synchronise().await.unwrap_err();
        let novaferry_hypervisor::qmp::MonitorError::Lost { source, .. } = error else { panic!("{error:?}") };
        assert_eq!(matches!(*source, MonitorLoss::TooLong { .. }), too_long, "{source:?}");
    }
}

/// Ended, and waited for, when it is dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Fails when it has ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[tokio::test]
async fn a_real_agent_synchronises_and_tells_its_status() {
    if !have("guest-agent", "qemu-ga", "a_real_agent_synchronises_and_tells_its_status") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("qga");
    let agent = Command::new("qemu-ga")
        .args(["--method", "unix-listen", "-b", "guest-fsfreeze-freeze,guest-fsfreeze-thaw", "--path"])
        .arg(&socket)
        .arg("--statedir")
        .arg(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _agent = Ended(agent);
    let mut tries = 0;
    let mut agent = loop {
        match GuestAgent::connect(&socket, LONG).await {
            Err(error) if error.kind() == MonitorErrorKind::Connect && tries < 3000 => tries += 1,
            connected => break connected.unwrap(),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    agent.synchronise().await.unwrap();
    assert_eq!(agent.freeze_status().await.unwrap(), FreezeStatus::Thawed);
    assert_eq!(
        agent.freeze().await.unwrap_err().kind(),
        MonitorErrorKind::Refused(ErrorClass::CommandNotFound)
    );
    agent.synchronise().await.unwrap();
    assert_eq!(agent.freeze_status().await.unwrap(), FreezeStatus::Thawed);
}
