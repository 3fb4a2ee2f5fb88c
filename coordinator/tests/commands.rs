//! `novaferry` as a process: the service, and commands that ask it.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

#[path = "commands/comfort.rs"]
mod comfort;
#[path = "commands/contexts.rs"]
mod contexts;
#[path = "commands/generated.rs"]
mod generated;

/// A coordinator that ends with the test.
struct Coordinator {
    child: Child,
    folder: tempfile::TempDir,
    url: String,
    /// Where agents dial.
    agents: String,
    /// SHA-256 of its CA.
    fingerprint: String,
}

impl Coordinator {
    fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap())
    }

    fn start_in(folder: tempfile::TempDir) -> Self {
        Self::start_with(folder, &[])
    }

    fn start_with(folder: tempfile::TempDir, environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_novaferry"))
            .args(["serve", "--agents", "127.0.0.1:0", "--api", "127.0.0.1:0", "--state"])
            .arg(folder.path())
            .env_remove("NOVAFERRY_LOG")
            .env_remove("AUTH_SECRET")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut field = |names: &[&str]| -> Vec<String> {
            let line = lines.find_map(|line| Some(line.unwrap()).filter(|line| line.contains(names[0])));
            let line = line.expect("it gets ready");
            let value = |name| line.split_once(name).unwrap().1.split('"').next().unwrap().to_owned();
            names.iter().map(|name| value(*name)).collect()
        };
        let [agents, api] = field(&["agents=\"", "api=\""]).try_into().unwrap();
        let [fingerprint] = field(&["fingerprint=\""]).try_into().unwrap();
        let url = format!("https://{api}");
        // Whoever does not read a pipe stops who writes into it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, folder, url, agents, fingerprint }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn ask(&self, words: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_novaferry"))
            .args(words)
            .env("NOVAFERRY_URL", &self.url)
            .env("NOVAFERRY_CA", self.file("ca.pem"))
            .env("NOVAFERRY_TOKEN_FILE", self.file("admin-token"))
            .env("XDG_CONFIG_HOME", self.file("no-config"))
            .output()
            .unwrap()
    }

    #[track_caller]
    fn done(&self, words: &[&str]) -> String {
        let output = self.ask(words);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn fails(&self, words: &[&str], code: i32) -> String {
        let output = self.ask(words);
        assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stderr).unwrap()
    }

    /// As a service manager stops it.
    fn stop(mut self) -> tempfile::TempDir {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
        std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap())
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn an_empty_fleet_can_be_asked() {
    let coordinator = Coordinator::start();
    assert!(coordinator.done(&["host", "list"]).starts_with(" HOST"));
    assert!(coordinator.done(&["vm", "list"]).contains("MOVES"));
    assert_eq!(coordinator.done(&["vm", "list", "--output", "json"]), "");
    assert!(coordinator.done(&["host", "token", "--site", "berlin"]).starts_with("nfj1_"));
    let token: Value =
        serde_json::from_str(&coordinator.done(&["host", "token", "--site", "berlin", "--output", "json"]))
            .unwrap();
    assert_eq!(token["site"], "berlin");
    assert!(coordinator.done(&["audit", "list"]).contains("invite-host"));
    assert!(coordinator.done(&["audit", "check"]).starts_with("3 entries"));
    assert!(coordinator.done(&["migration", "list"]).contains("STATE"));
    let said = coordinator.fails(&["migrate", "web-1", "--to", "host-b"], 1);
    assert!(said.contains("no host has a VM") && said.contains("hint: `novaferry vm list`"), "{said}");
    assert!(coordinator.fails(&["migration", "show", "ab"], 1).contains("ab"));
    assert!(coordinator.fails(&["migration", "show", "xy"], 64).contains("digits"));
    assert!(coordinator.fails(&["host", "revoke", "host-a"], 1).contains("no host host-a"));
}

#[test]
fn tokens_are_of_roles_and_outlive_a_restart() {
    let coordinator = Coordinator::start();
    let viewer = coordinator.done(&["token", "make", "--name", "eyes", "--role", "viewer"]);
    let file = coordinator.file("viewer");
    std::fs::write(&file, viewer).unwrap();
    let file = file.to_str().unwrap().to_owned();
    let folder = coordinator.stop();
    let coordinator = Coordinator::start_in(folder);
    coordinator.done(&["--token-file", &file, "host", "list"]);
    let said = coordinator.fails(&["--token-file", &file, "host", "token", "--site", "berlin"], 1);
    assert!(said.contains("needs the role admin"), "{said}");
    let tokens = coordinator.done(&["token", "list", "--output", "json"]);
    let tokens: Vec<Value> = tokens.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((tokens.len(), &tokens[1]["name"], &tokens[1]["token"]), (2, &"eyes".into(), &Value::Null));
    coordinator.done(&["token", "revoke", tokens[1]["id"].as_str().unwrap()]);
    coordinator.fails(&["--token-file", &file, "host", "list"], 1);
    let json = coordinator.ask(&["--output", "json", "host", "revoke", "nobody"]);
    let problem: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(problem["error"]["code"], "not-found");
}

#[test]
fn whom_to_ask_must_be_known() {
    let coordinator = Coordinator::start();
    let other = Coordinator::start();
    let said = coordinator.fails(&["--ca", "/no/where", "host", "list"], 64);
    assert!(said.contains("/no/where") && said.contains("NOVAFERRY_CA"), "{said}");
    let ca = other.file("ca.pem");
    let said = coordinator.fails(&["--ca", ca.to_str().unwrap(), "host", "list"], 1);
    assert!(said.contains("--ca must be of this very coordinator"), "{said}");
    coordinator.fails(&["--url", "https://127.0.0.1:1", "host", "list"], 1);
    let token = other.file("admin-token");
    coordinator.fails(&["--token-file", token.to_str().unwrap(), "host", "list"], 1);
    // Two on one folder: the second says why it does not start.
    let second = Command::new(env!("CARGO_BIN_EXE_novaferry"))
        .args(["serve", "--agents", "127.0.0.1:0", "--api", "127.0.0.1:0", "--state"])
        .arg(coordinator.folder.path())
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another coordinator uses this state folder"));
}

/// A collector of traces: gives the bodies of what it is sent.
fn collector() -> (String, std::sync::mpsc::Receiver<Vec<u8>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, bodies) = std::sync::mpsc::sync_channel(64);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let mut length = 0;
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                let Some((name, value)) = line.trim_end().split_once(": ") else {
                    if line.trim_end().is_empty() {
                        break;
                    }
                    continue;
                };
                if name.eq_ignore_ascii_case("content-length") {
                    length = value.parse().unwrap();
                }
            }
            assert!(length < 1 << 20, "a body of {length} bytes");
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            reader.into_inner().write_all(answer).unwrap();
            if sender.send(body).is_err() {
                return;
            }
        }
    });
    (format!("http://{address}"), bodies)
}

#[test]
fn a_command_and_the_coordinator_are_one_trace() {
    // Ids are plain bytes in what is exported, names plain text.
    let trace =
        [0x0a, 0xf7, 0x65, 0x19, 0x16, 0xcd, 0x43, 0xdd, 0x84, 0x48, 0xeb, 0x21, 0x1c, 0x80, 0x31, 0x9c];
    let has = |body: &[u8], what: &[u8]| body.windows(what.len()).any(|window| window == what);
    let (endpoint, bodies) = collector();
    let coordinator =
        Coordinator::start_with(tempfile::tempdir().unwrap(), &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)]);
    let command = Command::new(env!("CARGO_BIN_EXE_novaferry"))
        .args(["host", "token", "--site", "berlin"])
        .env("NOVAFERRY_URL", &coordinator.url)
        .env("NOVAFERRY_CA", coordinator.file("ca.pem"))
        .env("NOVAFERRY_TOKEN_FILE", coordinator.file("admin-token"))
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
        .env("TRACEPARENT", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .output()
        .unwrap();
    assert!(command.status.success(), "{}", String::from_utf8_lossy(&command.stderr));
    // The coordinator exports what it holds when it ends.
    drop(coordinator.stop());
    let bodies: Vec<_> = bodies.try_iter().collect();
    let of = |service: &[u8], span: &[u8]| {
        bodies.iter().any(|body| has(body, service) && has(body, span) && has(body, &trace))
    };
    assert!(of(b"novaferry-coordinator", b"/v1/host-tokens"), "the coordinator's span is of another trace");
    assert!(of(b"novaferry", b"command"), "the command's span is of another trace");
}

#[test]
fn a_secret_that_can_be_guessed_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    std::fs::write(&file, format!("{}\n", "x".repeat(31))).unwrap();
    let serve = |by: for<'a> fn(&'a mut Command, &PathBuf) -> &'a mut Command| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_novaferry"));
        command
            .args(["serve", "--agents", "127.0.0.1:0", "--api", "127.0.0.1:0", "--state"])
            .arg(folder.path());
        command.env_remove("AUTH_SECRET").env_remove("CREDENTIALS_DIRECTORY");
        let output = by(&mut command, &file).output().unwrap();
        assert_eq!(output.status.code(), Some(64));
        String::from_utf8(output.stderr).unwrap()
    };
    for said in [
        serve(|command, file| command.arg("--auth-secret-file").arg(file)),
        serve(|command, _| command.env("AUTH_SECRET", "short")),
    ] {
        assert!(said.contains("32 or more") && !said.contains("xxx") && !said.contains("short\""), "{said}");
    }
    let said = serve(|command, _| command.args(["--auth-secret-file", "/no/where"]));
    assert!(said.contains("/no/where"), "{said}");
}

#[test]
fn links_are_declared_and_changed() {
    let coordinator = Coordinator::start();
    let add = [
        "link",
        "add",
        "ber-par",
        "--between",
        "berlin,paris",
        "--kind",
        "vpn",
        "--network",
        "mpls",
        "--capacity",
        "1Gbit",
        "--cap",
        "500Mbit",
        "--cost-per-gb",
        "0.09",
        "--currency",
        "USD",
        "--schedule",
        "Mon-Fri 20:00-06:00",
        "--most-migrations",
        "2",
    ];
    assert!(coordinator.done(&add).contains("ber-par joins berlin and paris"));
    assert!(coordinator.fails(&add, 1).contains("already"));
    let listed: Value =
        serde_json::from_str(&coordinator.done(&["link", "list", "--output", "json"])).unwrap();
    assert_eq!((&listed["price"]["per_gb_micros"], &listed["cap"]), (&90_000.into(), &62_500_000.into()));
    assert_eq!((listed["schedule"].as_array().unwrap().len(), &listed["state"]), (5, &"unknown".into()));
    assert!(coordinator.done(&["link", "list"]).contains("0.09 USD"));
    coordinator.done(&[
        "link",
        "set",
        "ber-par",
        "--cap",
        "none",
        "--schedule",
        "always",
        "--currency",
        "EUR",
    ]);
    let shown = coordinator.done(&["link", "show", "ber-par", "--output", "json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&shown["cap"], &shown["price"]["currency"]), (&Value::Null, &"EUR".into()));
    assert_eq!((&shown["network"], &shown["until"]), (&"mpls".into(), &Value::Null));
    assert!(coordinator.done(&["link", "show", "ber-par"]).contains("most_migrations"));
    assert!(coordinator.done(&["site", "list"]).contains("paris"));
    let said = coordinator.fails(&["link", "probe", "ber-par"], 1);
    assert!(said.contains("no two hosts can probe"), "{said}");
    coordinator.fails(&["link", "set", "ber-par", "--cost-per-gb", "0.00000001"], 64);
    coordinator.fails(&["link", "set", "ber-par", "--currency", "euros"], 1);
    coordinator.done(&["link", "remove", "ber-par"]);
    assert!(coordinator.fails(&["link", "show", "ber-par"], 1).contains("no link ber-par"));
}
