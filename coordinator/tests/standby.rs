//! Several coordinators on one PostgreSQL database, as processes: one leads, and another takes over.

use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

use postgres::Server;
use serde_json::Value;

/// A coordinator that ends with the test.
struct Coordinator {
    child: Child,
    lines: Option<Lines<BufReader<ChildStderr>>>,
}

impl Coordinator {
    fn start(state: &Path, database: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_novaferry"))
            .args(["serve", "--agents", "127.0.0.1:0", "--api", "127.0.0.1:0", "--state"])
            .arg(state)
            .env("NOVAFERRY_DATABASE", database)
            .env_remove("NOVAFERRY_LOG")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, lines: Some(lines) }
    }

    /// Reads its log up to such a line.
    fn says(&mut self, words: &str) -> String {
        let lines = self.lines.as_mut().unwrap();
        let mut log = String::new();
        for line in lines.by_ref() {
            let line = line.unwrap();
            if line.contains(words) {
                return line;
            }
            log.push_str(&format!("{line}\n"));
        }
        panic!("it ended without {words:?}: {log}")
    }

    /// Waits until it leads; gives its API.
    fn leads(&mut self) -> String {
        let ready = self.says(" ready ");
        let lines = self.lines.take().unwrap();
        // Whoever does not read a pipe stops who writes into it.
        std::thread::spawn(move || lines.for_each(drop));
        format!("https://{}", ready.split_once("api=\"").unwrap().1.split('"').next().unwrap())
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn ask(state: &Path, url: &str, words: &[&str]) -> Option<Vec<Value>> {
    let output = Command::new(env!("CARGO_BIN_EXE_novaferry"))
        .args(words)
        .args(["--output", "json", "--url", url])
        .arg("--ca")
        .arg(state.join("ca.pem"))
        .arg("--token-file")
        .arg(state.join("admin-token"))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    output.status.success().then(|| text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

#[test]
fn killing_the_leader_loses_nothing() {
    let Some(server) = Server::start("killing_the_leader_loses_nothing") else { return };
    server.make("novaferry");
    let database = server.url("novaferry");
    let [first, second] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut leader = Coordinator::start(first.path(), &database);
    let mut url = leader.leads();
    for file in ["ca.key", "wrapping.key"] {
        std::fs::copy(first.path().join(file), second.path().join(file)).unwrap();
    }

    let mut confirmed = Vec::new();
    for round in 0..4 {
        let state = if round % 2 == 0 { second.path() } else { first.path() };
        let mut next = Coordinator::start(state, &database);
        next.says("stands by");
        for number in 0..3 {
            let name = format!("{round}-{number}");
            let made = ask(first.path(), &url, &["token", "make", "--name", &name, "--role", "viewer"]);
            assert!(made.is_some(), "{name}");
            confirmed.push(name);
        }
        leader.child.kill().unwrap();
        url = next.leads();
        leader = next;
        let tokens = ask(first.path(), &url, &["token", "list"]).unwrap();
        let names: Vec<_> = tokens.iter().map(|token| token["name"].as_str().unwrap()).collect();
        assert_eq!(names[1..], confirmed, "round {round}");
        ask(first.path(), &url, &["audit", "check"]).unwrap();
    }
}

#[test]
fn one_that_stands_by_ends_when_it_is_told() {
    let Some(server) = Server::start("one_that_stands_by_ends_when_it_is_told") else { return };
    server.make("novaferry");
    let database = server.url("novaferry");
    let [first, second] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut leader = Coordinator::start(first.path(), &database);
    leader.leads();
    let mut waiting = Coordinator::start(second.path(), &database);
    waiting.says("stands by");
    let pid = rustix::process::Pid::from_child(&waiting.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(waiting.child.wait().unwrap().success());
}

#[test]
fn a_password_is_not_taken_from_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_novaferry"))
        .args(["serve", "--database", "postgres://me:secret@localhost/novaferry", "--state"])
        .arg(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(said.contains("--database-file") && !said.contains("secret"), "{said}");
}
