//! What people and programs read: tables, YAML, suggestions, hints, a support bundle, a migration watched.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use hosts::{Host, Progress, Vm};
use serde_json::{Value, json};

use super::Coordinator;

impl Coordinator {
    fn host(&self, name: &str, vms: &[[&str; 3]]) -> Host {
        let token = self.done(&["host", "token", "--site", "berlin", "--host", name]);
        let mut host = Host::join(&self.agents, &token, name);
        host.intent();
        host.has(vms);
        self.until(&["host", "show", name], |said| {
            !said["observed"]["pools"].as_array().is_none_or(Vec::is_empty)
        });
        host
    }

    fn json(&self, words: &[&str]) -> Vec<Value> {
        let mut words = words.to_vec();
        words.extend(["--output", "json"]);
        self.done(&words).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Asks until it is so: what a host says takes its way.
    fn until(&self, words: &[&str], so: impl Fn(&Value) -> bool) -> Value {
        let began = std::time::Instant::now();
        loop {
            let said = self.json(words).remove(0);
            if so(&said) {
                return said;
            }
            assert!(
                began.elapsed() < std::time::Duration::from_secs(60),
                "{words:?} never became so: {said}"
            );
        }
    }

    /// A migration that was begun, with its id, and its source and destination.
    fn moving(&self) -> (String, Host, Host) {
        let mut source = self.host("host-a", &[["web-1", "web", "running"]]);
        let destination = self.host("host-b", &[]);
        self.done(&["migrate", "web-1", "--to", "host-b", "--detach", "--max-downtime", "300ms"]);
        let id = loop {
            if let [wanted] = &source.intent().migrations[..] {
                break wanted.id.clone();
            }
        };
        (id, source, destination)
    }

    fn watch(&self, id: &str) -> std::process::Child {
        Command::new(env!("CARGO_BIN_EXE_novaferry"))
            .args(["migration", "watch", id])
            .env("NOVAFERRY_URL", &self.url)
            .env("NOVAFERRY_CA", self.file("ca.pem"))
            .env("NOVAFERRY_TOKEN_FILE", self.file("admin-token"))
            .env("XDG_CONFIG_HOME", self.file("no-config"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

fn at(id: &str, role: &str, state: &str) -> Progress {
    Progress {
        id: id.to_owned(),
        vm: "web-1".to_owned(),
        role: role.to_owned(),
        state: state.to_owned(),
        ..Progress::default()
    }
}

#[test]
fn names_that_there_are_not_bring_those_that_there_are() {
    let coordinator = Coordinator::start();
    let _host_a = coordinator.host("host-a", &[["web-1", "web", "running"], ["db-1", "twin", "running"]]);
    let _host_b = coordinator.host("host-b", &[["db-2", "twin", "running"]]);
    for (words, meant) in [
        (&["host", "show", "hots-a"][..], "did you mean host-a"),
        (&["host", "revoke", "host-aa"], "did you mean host-a"),
        (&["host", "cordon", "hosta"], "did you mean host-a"),
        (&["host", "drain", "hst-b", "--dry-run"], "did you mean host-b"),
        (&["vm", "show", "web1"], "did you mean web-1"),
        (&["migrate", "wbe-1", "--to", "host-b"], "did you mean web-1"),
        (&["migrate", "web-1", "--to", "host-c"], "did you mean host-a or host-b"),
        (&["migrate", "web-1", "--to", "berln"], "did you mean berlin"),
        (&["vm", "show", "zzz"], "`novaferry vm list`"),
    ] {
        let said = coordinator.fails(words, 1);
        assert!(said.contains(&format!("hint: {meant}")), "{words:?}: {said}");
    }
    let said = coordinator.fails(&["vm", "show", "twin"], 1);
    assert!(said.contains("db-1 on host-a, db-2 on host-b") && said.contains("--host"), "{said}");
    assert!(coordinator.done(&["vm", "show", "twin", "--host", "host-b"]).contains("db-2"));
    let said = coordinator.fails(&["host", "list", "--columns", "stat"], 64);
    assert!(said.contains("did you mean STATE?"), "{said}");
    let tokens = coordinator.json(&["token", "list"]);
    let id = tokens[0]["id"].as_str().unwrap();
    let said = coordinator.fails(&["token", "revoke", &id[..7]], 1);
    assert!(said.contains(&format!("did you mean {id}?")), "{said}");
}

#[test]
fn links_have_the_same_comforts() {
    let coordinator = Coordinator::start();
    for (name, ends, price) in [
        ("ber-par", "berlin,paris", "0.09"),
        ("ber-rom", "berlin,rome", "0.10"),
        ("par-rom", "paris,rome", "12"),
    ] {
        let add = ["link", "add", name, "--between", ends, "--cost-per-gb", price, "--currency", "EUR"];
        coordinator.done(&add);
    }
    for words in [&["show"][..], &["set", "--cap", "1Gbit"], &["remove"], &["probe"]] {
        let mut command = vec!["link"];
        command.extend(words);
        command.push("ber-pra");
        let said = coordinator.fails(&command, 1);
        assert!(said.contains("hint: did you mean ber-par"), "{words:?}: {said}");
    }
    assert!(coordinator.fails(&["link", "show", "zzz"], 1).contains("`novaferry link list`"));
    let by_price = ["link", "list", "--columns", "link,price/gb", "--sort", "-price/gb", "--no-headers"];
    let table = coordinator.done(&by_price);
    assert_eq!(table, " par-rom  12 EUR\n ber-rom  0.1 EUR\n ber-par  0.09 EUR\n");
    for words in [&["link", "list"][..], &["link", "show", "ber-par"], &["site", "list"]] {
        let yaml = coordinator.done(&[words, &["--output", "yaml"]].concat());
        assert_eq!(documents(&yaml), coordinator.json(words), "{words:?}");
    }
    let shown = coordinator.done(&["link", "show", "ber-par"]);
    assert!(!shown.contains("FIELD") && shown.contains("state  "), "{shown}");
    assert_eq!(
        coordinator.done(&["site", "list", "--columns", "site", "--no-headers"]),
        " berlin\n paris\n rome\n"
    );
}

/// The values of a text in YAML.
fn documents(yaml: &str) -> Vec<Value> {
    let texts = yaml.split("---\n").filter(|text| !text.is_empty());
    texts.map(|text| serde_saphyr::from_str(text).unwrap()).collect()
}

#[test]
fn tables_are_short_and_json_exact() {
    let coordinator = Coordinator::start();
    let _host_a = coordinator.host("host-a", &[["web-1", "web", "running"]]);
    let _host_b =
        coordinator.host("host-b", &[["\u{1b}[31mx", "y\nz", "stopped"], ["db-1", "db", "running"]]);
    let table = coordinator.done(&["host", "list"]);
    assert!(table.contains("64.0 GB") && !table.contains("64000000000"), "{table}");
    assert_eq!(coordinator.json(&["host", "list"])[0]["observed"]["memory_bytes"], 64_000_000_000_u64);
    let chosen = ["host", "list", "--columns", "vms,host", "--sort", "-vms", "--no-headers"];
    assert_eq!(coordinator.done(&chosen), " 2  host-b\n 1  host-a\n");
    let sorted = coordinator.json(&["host", "list", "--sort", "-vms"]);
    assert_eq!(sorted[0]["name"], "host-b", "also for programs");
    let vms = coordinator.done(&["vm", "list"]);
    assert!(!vms.contains('\u{1b}') && vms.contains("\u{fffd}[31mx"), "{vms:?}");
    let yaml = coordinator.done(&["vm", "list", "--output", "yaml"]);
    assert_eq!(documents(&yaml), coordinator.json(&["vm", "list"]));
    let shown = coordinator.done(&["host", "show", "host-b"]);
    for part in ["site        berlin", "memory      64.0 GB, 48.0 GB to be had", "fast  2000.0 GB", "db-1"] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
}

#[test]
fn what_a_vm_needs_is_shown() {
    let coordinator = Coordinator::start();
    let host = coordinator.host("host-a", &[["old-1", "old", "running"]]);
    let lines =
        |said: &str| said.lines().map(|line| line.split_whitespace().collect()).collect::<Vec<String>>();
    let columns = ["vm", "list", "--columns", "id,memory,processors,disks", "--no-headers"];
    assert_eq!(lines(&coordinator.done(&columns)), ["old-1---"], "an older agent does not say");
    let labels = [("tier", "web"), ("novaferry.affinity", "shop")];
    host.has_all(vec![Vm {
        id: "web-1".to_owned(),
        name: "web".to_owned(),
        state: "running".to_owned(),
        memory_bytes: 4 << 30,
        processors: 2,
        disk_bytes: 20_000_000_000,
        cpu: "host".to_owned(),
        machine: "pc-q35-10.0".to_owned(),
        kvm: true,
        tenant: "acme".to_owned(),
        labels: labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        ..Vm::default()
    }]);
    coordinator.until(&["host", "show", "host-a"], |said| said["observed"]["vms"][0]["id"] == "web-1");
    assert_eq!(lines(&coordinator.done(&columns)), ["web-14294.9MB220.0GB"]);
    let shown = coordinator.done(&["vm", "show", "web-1"]);
    for part in [
        "memory      4294.9 MB",
        "disks       20.0 GB",
        "processors  2",
        "cpu         host",
        "machine     pc-q35-10.0",
        "tenant      acme",
        "labels      novaferry.affinity=shop, tier=web",
    ] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    let table = coordinator.done(&["host", "show", "host-a"]);
    assert!(table.contains("PROCESSORS") && table.contains("4294.9 MB"), "{table}");
}

#[test]
fn failures_are_values_for_programs() {
    let coordinator = Coordinator::start();
    let failure = |words: &[&str], code| -> Value {
        let output = coordinator.ask(words);
        assert_eq!(output.status.code(), Some(code), "{words:?}");
        assert!(output.stderr.is_empty(), "{words:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let value: Value = match text.strip_prefix("---\n") {
            Some(yaml) => serde_saphyr::from_str(yaml).unwrap(),
            None => serde_json::from_str(&text).unwrap(),
        };
        value["error"].clone()
    };
    for format in ["json", "yaml"] {
        let not_found = failure(&["host", "show", "nobody", "--output", format], 1);
        assert_eq!(not_found["code"], "not-found");
        assert!(not_found["advice"].as_str().unwrap().contains("novaferry host list"));
        let usage = failure(&["host", "shw", &format!("--output={format}")], 64);
        assert_eq!(usage["code"], "usage");
        assert!(usage["message"].as_str().unwrap().contains("shw"));
        let unreachable = failure(&["--output", format, "--url", "https://127.0.0.1:1", "vm", "list"], 1);
        assert_eq!(unreachable["code"], "unreachable");
        assert!(unreachable["advice"].as_str().unwrap().contains("nobody listens there"));
    }
}

#[test]
fn whoever_may_not_is_told_what_to_do() {
    let (coordinator, other) = (Coordinator::start(), Coordinator::start());
    let made = coordinator.done(&["token", "make", "--name", "eyes", "--role", "viewer"]);
    let file = coordinator.file("viewer");
    std::fs::write(&file, made).unwrap();
    let file = file.to_str().unwrap();
    let said = coordinator.fails(&["--token-file", file, "audit", "list"], 1);
    assert!(said.contains("needs the role admin; the token has viewer") && said.contains(file), "{said}");
    assert!(said.contains("hint: use a token of that role"), "{said}");
    let short =
        coordinator.done(&["token", "make", "--name", "short", "--role", "viewer", "--expires", "1s"]);
    let expired = coordinator.file("expired");
    std::fs::write(&expired, short).unwrap();
    let expired = expired.to_str().unwrap();
    let began = std::time::Instant::now();
    let said = loop {
        let output = coordinator.ask(&["--token-file", expired, "host", "list"]);
        if !output.status.success() {
            break String::from_utf8(output.stderr).unwrap();
        }
        assert!(began.elapsed() < std::time::Duration::from_secs(60), "a token of a second never expires");
    };
    assert!(said.contains("unknown, revoked or expired") && said.contains(expired), "{said}");
    assert!(said.contains("hint: ask an administrator"), "{said}");
    let ca = other.file("ca.pem");
    let said = coordinator.fails(&["--ca", ca.to_str().unwrap(), "host", "list"], 1);
    assert!(said.contains("UnknownIssuer") && said.contains("novaferry login"), "{said}");
    let said = coordinator.fails(&["--ca", file, "host", "list"], 64);
    assert!(said.contains("is no certificate") && said.contains("copy ca.pem"), "{said}");
}

#[test]
fn a_migration_is_watched_and_shown() {
    let coordinator = Coordinator::start();
    let (id, source, destination) = coordinator.moving();
    let mut watch = coordinator.watch(&id[..6]);
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.next().unwrap().contains("queued"));
    let report = json!({
        "text": "pages travel",
        "report": { "mode": "live", "predicted": { "total_ms": 4000, "basis": "measured" }, "ram_wire": 5_000_000 },
        "findings": [{ "rule": "layer-2", "evidence": "not known", "fix": "say which", "blocking": false }],
    });
    source.moved(Progress {
        disk_done: 4_000_000_000,
        disk_total: 4_000_000_000,
        ram_remaining: 128_000_000,
        ram_total: 512_000_000,
        rate: 64_000_000,
        expected_downtime_ms: 80,
        report: report.to_string(),
        ..at(&id, "source", "pre-copy")
    });
    let line = lines.next().unwrap();
    assert!(
        line.ends_with(
            "moving: pre-copy  disks 100 %  memory 75 %  128.0 MB left  64.0 MB/s  pause 80 ms expected  at least 2.0 s to go"
        ),
        "{line}"
    );
    let shown = coordinator.done(&["migration", "show", &id]);
    for part in [
        "how        live, pause of at most 300 ms",
        "pre-copy",
        "384.0 MB of 512.0 MB (75 %)",
        "expected",
        "4.0 s",
        "warning: not known (layer-2)",
        "fix: say which",
        "has said nothing",
    ] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    assert_eq!(coordinator.json(&["migration", "show", &id[..6]])[0]["at_source"]["rate"], 64_000_000);
    destination.moved(Progress { over: true, ..at(&id, "destination", "finalised") });
    source.moved(Progress { over: true, ..at(&id, "source", "finalised") });
    assert!(lines.any(|line| line == "done: web-1 runs at host-b"));
    assert_eq!(watch.wait().unwrap().code(), Some(0));
    assert!(coordinator.done(&["migration", "list"]).contains("completed"));
}

#[test]
fn doubt_has_an_exit_code_of_its_own() {
    let coordinator = Coordinator::start();
    let (id, source, _destination) = coordinator.moving();
    let mut watch = coordinator.watch(&id);
    source.moved(at(&id, "source", "in-doubt"));
    let output = {
        let mut said = String::new();
        std::io::Read::read_to_string(&mut watch.stderr.take().unwrap(), &mut said).unwrap();
        said
    };
    assert_eq!(watch.wait().unwrap().code(), Some(2), "{output}");
    assert!(output.contains("novaferry migration resolve"), "{output}");
    // A plan of one VM ends as its migration does.
    source.moved(Progress { over: true, ..at(&id, "source", "rolled-back") });
    // Whoever looks before that has arrived sees the doubt once more.
    coordinator.until(&["migration", "show", &id], |shown| shown["state"] == "undone");
    assert_eq!(coordinator.watch(&id).wait().unwrap().code(), Some(1));
}

#[test]
fn a_support_bundle_holds_no_secrets() {
    let coordinator = Coordinator::start();
    let secret = std::fs::read_to_string(coordinator.file("admin-token")).unwrap().trim().to_owned();
    let _host = coordinator.host("host-a", &[["web-1", &format!("named {secret} by a fool"), "running"]]);
    let file = coordinator.file("bundle.tar.gz");
    let path = file.to_str().unwrap();
    coordinator.done(&["support", "bundle", path]);
    let said = coordinator.fails(&["support", "bundle", path], 1);
    assert!(said.contains("File exists") && said.contains("hint:"), "{said}");
    let read = |path: &std::path::Path| {
        let file = std::fs::File::open(path).unwrap();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
        let mut parts = std::collections::BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_str().unwrap().to_owned();
            let mut text = String::new();
            std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
            assert!(!text.contains(&secret), "{name} holds the token");
            parts.insert(name, serde_json::from_str::<Value>(&text).unwrap());
        }
        parts
    };
    let parts = read(&file);
    let part = |name: &str| &parts[&format!("novaferry-support/{name}.json")];
    assert_eq!(part("hosts")[0]["observed"]["vms"][0]["name"], "named [removed] by a fool");
    assert_eq!(part("health")["status"], "ok");
    let deeds = part("audit").as_array().unwrap().iter();
    assert!(deeds.clone().any(|entry| entry["action"] == "join"));
    assert_eq!(part("manifest")["url"], coordinator.url.as_str());
    // A viewer gets what a viewer may see, and is told what is left out.
    let viewer = coordinator.file("viewer");
    std::fs::write(&viewer, coordinator.done(&["token", "make", "--name", "eyes", "--role", "viewer"]))
        .unwrap();
    let file = coordinator.file("less.tar.gz");
    let output = coordinator.ask(&[
        "--token-file",
        viewer.to_str().unwrap(),
        "support",
        "bundle",
        file.to_str().unwrap(),
    ]);
    assert!(output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("left out: audit: this needs the role admin"), "{said}");
    let less = read(&file);
    assert!(
        less.contains_key("novaferry-support/hosts.json")
            && !less.contains_key("novaferry-support/audit.json")
    );
    // Without a coordinator there is none, and no part of one.
    let none = coordinator.file("none.tar.gz");
    coordinator.fails(&["--url", "https://127.0.0.1:1", "support", "bundle", none.to_str().unwrap()], 1);
    assert!(!none.exists());
}

#[test]
fn health_and_version_ask_without_a_token() {
    let coordinator = Coordinator::start();
    let health = coordinator.json(&["health", "--token-file", "/no/where"]).remove(0);
    assert_eq!((&health["status"], &health["url"]), (&"ok".into(), &coordinator.url.as_str().into()));
    coordinator.fails(&["health", "--url", "https://127.0.0.1:1"], 1);
    let version = coordinator.json(&["version"]).remove(0);
    assert_eq!((&version["client"], &version["error"]), (&version["coordinator"], &Value::Null));
    // Its own release it knows in any case.
    let output = coordinator.ask(&["version", "--url", "https://127.0.0.1:1"]);
    assert!(output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().contains(env!("CARGO_PKG_VERSION")));
    assert!(String::from_utf8(output.stderr).unwrap().contains("cannot ask"));
}
