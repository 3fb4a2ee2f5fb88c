//! The commands as their users run them: what they do, print and exit with.

use serde_json::Value;

use crate::harness::Harness;
use crate::harness::disks::{MIB, change_pages, mixed_file, random_file, same};

/// What a session costs on the wire whatever its size: certificates, and above all the search for the path's MTU.
const GREETING: u64 = 256 << 10;

#[test]
fn a_volume_goes_out_and_comes_back() {
    let harness = Harness::new();
    let host = harness.host("host-b");
    let daemon = host.start();
    let (source, back) = (harness.path("source"), harness.path("back"));
    let size = 24 * MIB + 777;
    mixed_file(&source, size, 1);
    for (name, arguments) in [
        ("by-quic", vec!["--transport", "quic"]),
        ("by-tcp", vec!["--transport", "tcp"]),
        ("by-wan", vec!["--profile", "wan", "--compress", "3"]),
        ("by-three", vec!["--connections", "3", "--compress", "off", "--verify", "readback"]),
        ("by-three-tcp", vec!["--connections", "3", "--transport", "tcp", "--peer", "host-b"]),
    ] {
        let summary = harness.copy(&source, host.url(name)).with(&arguments).done();
        same(&source, &host.volume(name));
        assert_eq!(summary.count("logical_bytes"), size);
        let keys = [
            "logical_bytes",
            "wire_bytes",
            "zero_bytes",
            "dedup_bytes",
            "resent_bytes",
            "seconds",
            "cpu_seconds_tx",
            "cpu_seconds_rx",
            "root",
            "resumed",
        ];
        for key in keys {
            assert!(!summary.0[key].is_null(), "{name}: {key} is missing in {}", summary.0);
        }
        assert_eq!(summary.count("resent_bytes"), 0);
        assert!(!summary.resumed());
        assert_eq!(summary.text("peer"), "host-b");
        assert_eq!(summary.0["signed"], true);
        let transport = if name.ends_with("tcp") { "tcp" } else { "quic" };
        assert_eq!(summary.text("transport"), transport);
    }
    harness.copy(host.url("by-quic"), &back).done();
    same(&source, &back);
    daemon.stop();
}

#[test]
fn a_copy_within_a_host_needs_no_identity() {
    let harness = Harness::new();
    let (source, target) = (harness.path("source"), harness.path("target"));
    mixed_file(&source, 8 * MIB + 5, 2);
    let state = harness.text("state");
    let [from, to] = [&source, &target].map(|path| path.to_str().unwrap());
    let copied = harness.agent(&["copy", from, to, "--state", &state, "--output", "json"]).done();
    assert_eq!(copied.objects().last().unwrap()["signed"], false);
    same(&source, &target);
}

#[test]
fn an_old_copy_is_brought_up_to_date() {
    let harness = Harness::new();
    let host = harness.host("host-b");
    let daemon = host.start();
    let source = harness.path("source");
    let size = 64 * MIB;
    random_file(&source, size, 3);
    let copy = harness.copy(&source, host.url("disk"));
    copy.done();
    harness.allow_log("\"exists\"");
    let failure = copy.fails("exists");
    assert!(failure.advice.contains("--resync"), "{}", failure.advice);
    for (seed, mode) in [(4, "trusted"), (5, "full")] {
        let resync = copy.clone().with(["--resync", mode]);
        let unchanged = resync.done().count("wire_bytes");
        println!("{mode}: {unchanged} bytes on the wire, and nothing had changed");
        assert!(unchanged < GREETING + size / 1000, "{mode}: {unchanged} bytes on the wire");
        let pages = size / 4096 / 100;
        change_pages(&source, pages, seed);
        let changed = resync.done().count("wire_bytes");
        println!("{mode}: {changed} bytes on the wire for {pages} pages");
        assert!(
            changed <= GREETING + pages * 4096 * 3 / 2,
            "{mode}: {changed} bytes on the wire for {pages} pages"
        );
        same(&source, &host.volume("disk"));
    }
    // A guest wrote to the sealed volume: only reading both finds that.
    change_pages(&host.volume("disk"), 3, 6);
    harness.allow_log("changed after it was sealed");
    copy.clone().with(["--resync", "trusted"]).fails("not-trusted");
    copy.with(["--resync", "full"]).done();
    same(&source, &host.volume("disk"));
    daemon.stop();
}

#[test]
fn receipts_prove_what_they_state() {
    let harness = Harness::new();
    let host = harness.host("host-b");
    let daemon = host.start();
    let (source, receipt) = (harness.path("source"), harness.text("receipt"));
    mixed_file(&source, 12 * MIB + 1, 7);
    let summary = harness.copy(&source, host.url("disk")).with(["--receipt", &receipt]).done();
    let trust = harness.identity("host-a");
    let trust = trust.to_str().unwrap();
    let (state, volume) = (harness.text("state"), host.volume("disk"));
    let volume = volume.to_str().unwrap();
    let verify = |receipt: &str, volume: &str, trust: &str| {
        harness.agent(&["verify", receipt, volume, "--trust", trust, "--state", &state, "--output", "json"])
    };
    let code = |objects: Vec<Value>| objects.last().unwrap()["error"]["code"].as_str().unwrap().to_owned();

    for good in [volume, source.to_str().unwrap()] {
        let verdict = verify(&receipt, good, trust).done().objects().pop().unwrap();
        assert_eq!(verdict["root"], summary.text("root"));
        assert_eq!(verdict["signer"], "host-b");
    }
    // The receiver's operator has the key in the pool.
    let config = host.config();
    let config = config.to_str().unwrap();
    let elsewhere = harness.text("no-state");
    harness
        .agent(&["verify", &receipt, volume, "--trust", trust, "--config", config, "--state", &elsewhere])
        .done();

    let forged = harness.text("forged");
    let text = std::fs::read_to_string(&receipt).unwrap();
    let root = summary.text("root");
    let other = root.replace(char::is_numeric, "e");
    assert!(text.contains(root) && other != root);
    std::fs::write(&forged, text.replace(root, &other)).unwrap();
    assert_eq!(code(verify(&forged, volume, trust).exits(1).objects()), "receipt");
    std::fs::write(&forged, &text[..text.len() / 2]).unwrap();
    verify(&forged, volume, trust).exits(1);

    harness.agent(&["pki", "init", &harness.text("other-ca")]).done();
    harness
        .agent(&[
            "pki",
            "issue",
            "host-x",
            "--ca",
            &harness.text("other-ca"),
            "--out",
            &harness.text("others"),
        ])
        .done();
    let wrong = code(verify(&receipt, volume, &harness.text("others/host-x")).exits(1).objects());
    assert_eq!(wrong, "pki-untrusted");

    change_pages(&host.volume("disk"), 1, 8);
    assert_eq!(code(verify(&receipt, volume, trust).exits(1).objects()), "differs");
    daemon.stop();
}

fn list(harness: &Harness, socket: &str) -> Value {
    let listed = harness.agent(&["session", "list", "--socket", socket, "--output", "json"]).done();
    listed.objects().pop().unwrap()["sessions"].clone()
}

#[test]
fn sessions_are_listed_and_cancelled() {
    let harness = Harness::new();
    let host = harness.host("host-b");
    let daemon = host.start();
    let socket = host.socket();
    let socket = socket.to_str().unwrap();
    assert_eq!(list(&harness, socket), Value::Array(Vec::new()));
    let source = harness.path("source");
    random_file(&source, 64 * MIB, 9);
    let copy = harness.copy(&source, host.url("disk"));
    let running = copy.clone().with(["--limit", "80Mbit/s"]).start();
    let seen = daemon.await_settled(MIB);
    let listed = list(&harness, socket);
    assert_eq!(listed[0]["session"], seen.id);
    assert_eq!(listed[0]["peer"], "host-a");
    assert_eq!(listed[0]["volume"], "gold/disk");
    assert_eq!(listed[0]["direction"], "push");
    assert_eq!(listed[0]["logical_bytes"], 64 * MIB);
    harness.agent(&["session", "cancel", &seen.id, "--socket", socket]).done();
    let ended = crate::harness::copy::Outcome::of(running.finish());
    ended.fails(1, "cancelled");
    daemon.await_idle();
    host.shows_nothing("disk");
    harness.agent(&["session", "cancel", &seen.id, "--socket", socket]).exits(1);
    harness.agent(&["session", "cancel", "nonsense", "--socket", socket]).exits(64);
    let resumed = copy.done();
    assert!(resumed.resumed());
    same(&source, &host.volume("disk"));
    daemon.stop();
    // Nobody answers any more.
    harness.agent(&["session", "list", "--socket", socket]).exits(1);
}

#[test]
fn wrong_commands_and_configurations_are_told_apart() {
    let harness = Harness::new();
    let host = harness.host("host-b");
    let config = host.configure();
    let config = config.to_str().unwrap();
    let check = || harness.agent(&["serve", "--config", config, "--check-config"]);
    check().done();
    let text = std::fs::read_to_string(config).unwrap();
    std::fs::write(config, format!("{text}colour = \"red\"\n")).unwrap();
    assert!(check().exits(1).text().contains("colour"));
    std::fs::write(config, text.replace("name = \"gold\"", "name = \"GOLD\"")).unwrap();
    assert!(check().exits(1).text().contains("pool.0.name"));
    std::fs::remove_file(config).unwrap();
    check().exits(1);

    harness.agent(&["--help"]).done();
    harness.agent(&["copy", "--help"]).done();
    let (a, b) = (harness.text("a"), "novaferry://127.0.0.1:7440/gold/b");
    for wrong in [
        vec!["copy"],
        vec!["copy", &a, b, "--limit", "fast"],
        vec!["copy", b, b],
        // A remote volume without an identity.
        vec!["copy", &a, b],
        vec!["copy", &a, "novaferry://host"],
        vec!["frobnicate"],
    ] {
        harness.agent(&wrong).exits(64);
    }
    harness.copy(&a, b).fails("not-found");
}
