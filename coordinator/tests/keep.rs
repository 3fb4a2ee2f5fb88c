//! What must outlive the coordinator's machine, by its commands: its CA's key, and backups.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use hosts::Host;
use postgres::Server;
use serde_json::Value;

/// A coordinator that ends with the test.
struct Coordinator {
    child: Child,
    url: String,
    agents: String,
    log: String,
}

fn novaferry() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_novaferry"));
    command.env_remove("NOVAFERRY_LOG").env_remove("AUTH_SECRET").env_remove("CREDENTIALS_DIRECTORY");
    command.env_remove("NOVAFERRY_DATABASE").stdin(Stdio::null());
    command
}

fn serve(folder: &Path) -> Command {
    let mut command = novaferry();
    command.args(["serve", "--agents", "127.0.0.1:0", "--api", "127.0.0.1:0", "--state"]).arg(folder);
    command
}

impl Coordinator {
    fn start(folder: &Path) -> Self {
        Self::of(serve(folder))
    }

    fn of(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut log = String::new();
        let ready = loop {
            let line = lines.next().unwrap_or_else(|| panic!("it ended: {log}")).unwrap();
            log.push_str(&line);
            log.push('\n');
            if line.contains(" ready ") {
                break line;
            }
        };
        let of = |what: &str| ready.split_once(what).unwrap().1.split('"').next().unwrap().to_owned();
        let (url, agents) = (format!("https://{}", of("api=\"")), of("agents=\""));
        // Whoever does not read a pipe stops who writes into it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, url, agents, log }
    }

    fn ask(&self, folder: &Path, words: &[&str]) -> Output {
        novaferry()
            .args(words)
            .args(["--url", &self.url])
            .arg("--ca")
            .arg(folder.join("ca.pem"))
            .arg("--token-file")
            .arg(folder.join("admin-token"))
            .output()
            .unwrap()
    }

    /// As a service manager stops it.
    fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[track_caller]
fn done(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn fails(output: Output, code: i32) -> String {
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{said}");
    said
}

fn secret(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn the_key_of_the_ca_is_sealed_and_its_wrapping_key_changes_places() {
    let (folder, away) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (state, credentials) = (folder.path(), away.path());
    let key = || std::fs::read_to_string(state.join("ca.key")).unwrap();
    let coordinator = Coordinator::start(state);
    done(coordinator.ask(state, &["host", "list"]));
    assert!(key().contains("SEALED KEY"), "{}", key());
    let wrapping = std::fs::read_to_string(state.join("wrapping.key")).unwrap();
    assert!(!coordinator.log.contains(wrapping.trim()) && !coordinator.log.contains("PRIVATE KEY"));
    let ca = std::fs::read_to_string(state.join("ca.pem")).unwrap();
    let rekey = |more: &[&str]| {
        novaferry().args(["authority", "rekey", "--state"]).arg(state).args(more).output().unwrap()
    };
    assert!(fails(rekey(&[]), 1).contains("stop it first"));
    coordinator.stop();
    // The second start says once that the key lies beside what it opens.
    let coordinator = Coordinator::start(state);
    assert_eq!(coordinator.log.matches("lies beside it").count(), 1, "{}", coordinator.log);
    coordinator.stop();
    // Into a credential, as systemd gives it.
    let credential = credentials.join("novaferry-ca-key");
    secret(&credential, &format!("{}\n", "c".repeat(64)));
    let said = done(rekey(&["--to", credential.to_str().unwrap()]));
    assert!(said.contains("remove it once no backup needs it") && !said.contains("ccc"), "{said}");
    assert!(!state.join("wrapping.key").exists());
    let said = fails(serve(state).output().unwrap(), 1);
    assert!(said.contains("novaferry-ca-key") && said.contains("--ca-key-from"), "{said}");
    let wrong = credentials.join("wrong");
    secret(&wrong, &"w".repeat(64));
    let said = fails(serve(state).arg("--ca-key-from").arg(&wrong).output().unwrap(), 1);
    assert!(said.contains("the one given is") && !said.contains("www"), "{said}");
    let mut command = serve(state);
    command.env("CREDENTIALS_DIRECTORY", credentials);
    let coordinator = Coordinator::of(command);
    assert!(!coordinator.log.contains("lies beside it"), "{}", coordinator.log);
    done(coordinator.ask(state, &["host", "list"]));
    coordinator.stop();
    let mut both = serve(state);
    both.env("CREDENTIALS_DIRECTORY", credentials).arg("--ca-key-from").arg(&wrong);
    assert!(fails(both.output().unwrap(), 64).contains("leave one of them out"));
    // It is the same CA all the time.
    assert_eq!(std::fs::read_to_string(state.join("ca.pem")).unwrap(), ca);
}

#[test]
fn a_backup_is_taken_while_it_serves_and_restored_elsewhere() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (state, files) = (folder.path(), other.path());
    let coordinator = Coordinator::start(state);
    let token = done(coordinator.ask(state, &["host", "token", "--site", "berlin"]));
    let host = Host::join(&coordinator.agents, &token, "host-a");
    let file = files.join("backup.tar");
    let said = done(coordinator.ask(state, &["backup", file.to_str().unwrap()]));
    assert!(said.contains("coordinator.db") && said.contains("NOT in it"), "{said}");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode, std::fs::read_dir(files).unwrap().count()), (0o600, 1));
    let said = fails(coordinator.ask(state, &["backup", file.to_str().unwrap()]), 1);
    assert!(said.contains("there already"), "{said}");
    fails(coordinator.ask(state, &["backup", "/no/where/backup"]), 1);
    // tar can look into it.
    let listed = Command::new("tar").arg("-tf").arg(&file).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(listed, "manifest.json\nmanifest.sha256\nca.key\nca.pem\ncoordinator.db\n");
    drop(host);
    coordinator.stop();

    let restored = files.join("state");
    let restore = |more: &[&str]| {
        novaferry().arg("restore").arg(&file).arg("--state").arg(&restored).args(more).output().unwrap()
    };
    let said = done(restore(&["--dry-run"]));
    assert!(said.contains("would be restored") && said.contains("host-a"), "{said}");
    assert!(!restored.exists());
    let said = done(restore(&[]));
    assert!(said.contains("nothing in the folder opens the CA's key"), "{said}");
    assert!(fails(restore(&[]), 1).contains("--force"));
    // Without what opens its CA's key it does not begin another CA.
    let said = fails(serve(&restored).output().unwrap(), 1);
    assert!(said.contains("wrapping.key"), "{said}");
    std::fs::copy(state.join("wrapping.key"), restored.join("wrapping.key")).unwrap();
    let coordinator = Coordinator::start(&restored);
    let hosts = done(coordinator.ask(&restored, &["host", "list", "--output", "json"]));
    let host: Value = serde_json::from_str(&hosts).unwrap();
    assert_eq!(host["name"], "host-a");
    let audit = done(coordinator.ask(&restored, &["audit", "list"]));
    assert!(audit.contains("restore") && audit.contains("backup"), "{audit}");
    done(coordinator.ask(&restored, &["audit", "check"]));
    coordinator.stop();
    // In the same folder again, with what is there put aside.
    let json = done(restore(&["--force", "--revoke-host", "host-a", "--output", "json"]));
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["ca_key_opens"], &json["hosts"]), (&true.into(), &Value::Array(Vec::new())));
    assert!(Path::new(json["aside"].as_str().unwrap()).join("coordinator.db").exists());
    Coordinator::start(&restored).stop();
    // What was cut short is found out before anything is touched.
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    assert!(fails(restore(&["--force"]), 1).contains("no whole backup"));
    Coordinator::start(&restored).stop();
}

#[test]
fn of_a_postgresql_database_the_ca_alone_is_backed_up() {
    let Some(server) = Server::start("of_a_postgresql_database_the_ca_alone_is_backed_up") else { return };
    server.make("novaferry");
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let state = folder.path();
    let shared = |state: &Path| {
        let mut command = serve(state);
        command.env("NOVAFERRY_DATABASE", server.url("novaferry"));
        command
    };
    let coordinator = Coordinator::of(shared(state));
    let token = done(coordinator.ask(state, &["host", "token", "--site", "berlin"]));
    drop(Host::join(&coordinator.agents, &token, "host-a"));
    let file = other.path().join("backup");
    let said = done(coordinator.ask(state, &["backup", file.to_str().unwrap()]));
    assert!(said.contains("pg_dump") && !said.contains("coordinator.db"), "{said}");
    let admin = std::fs::read(state.join("admin-token")).unwrap();
    coordinator.stop();
    let restored = other.path().join("state");
    let said = done(novaferry().arg("restore").arg(&file).arg("--state").arg(&restored).output().unwrap());
    assert!(said.contains("pg_dump"), "{said}");
    std::fs::copy(state.join("wrapping.key"), restored.join("wrapping.key")).unwrap();
    std::fs::write(restored.join("admin-token"), admin).unwrap();
    // What a database that was put back by its own tools must be told.
    let address = other.path().join("address");
    std::fs::write(&address, server.url("novaferry")).unwrap();
    let told = |made: &str, more: &[&str]| {
        let mut command = novaferry();
        command.args(["authority", "restored", "--made", made, "--database-file"]).arg(&address);
        command.arg("--state").arg(&restored).args(more).output().unwrap()
    };
    assert!(fails(told("2126-11-22T03:00:00Z", &[]), 1).contains("is to come"));
    assert!(fails(told("2026-01-01T03:00:00Z", &["--revoke-host", "nobody"]), 1).contains("no host nobody"));
    let said = done(told("2026-01-01T03:00:00Z", &[]));
    assert!(said.contains("let in again: 1 hosts (host-a), 1 API tokens"), "{said}");
    let coordinator = Coordinator::of(shared(&restored));
    done(coordinator.ask(&restored, &["host", "list"]));
    assert!(
        done(coordinator.ask(&restored, &["audit", "list"])).contains("told to be of 2026-01-01T03:00:00Z")
    );
    let other_state = tempfile::tempdir().unwrap();
    let mut busy = novaferry();
    busy.args(["authority", "restored", "--made", "2026-01-01T03:00:00Z", "--database-file"]).arg(&address);
    let said = fails(busy.arg("--state").arg(other_state.path()).output().unwrap(), 1);
    assert!(said.contains("stop all of them"), "{said}");
    let two = fails(shared(&restored).output().unwrap(), 1);
    assert!(two.contains("another coordinator uses this state folder"), "{two}");
}
