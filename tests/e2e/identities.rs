//! Who may do what: certificates of every wrong kind, a revocation list that changes under a running daemon, owners.

use crate::harness::Harness;
use crate::harness::disks::{MIB, random_file, same};

#[test]
fn only_hosts_of_this_ca_are_let_in() {
    let harness = Harness::new();
    let host = harness.host("host-b");
    let daemon = host.start();
    let source = harness.path("source");
    random_file(&source, 2 * MIB, 1);

    // The same name under another CA.
    harness.agent(&["pki", "init", &harness.text("other-ca")]).done();
    harness
        .agent(&[
            "pki",
            "issue",
            "stranger",
            "--ca",
            &harness.text("other-ca"),
            "--out",
            &harness.text("hosts"),
        ])
        .done();
    harness.allow_log("refused");
    let copy = |name: &str| harness.copy(&source, host.url("disk")).sent_by(name);
    let failure = copy("stranger").fails("refused");
    assert!(failure.advice.contains("same CA"), "{}", failure.advice);

    // Of this CA, but in nobody's list.
    harness.issue("host-z", "ca");
    harness.allow_log("session ended");
    let failure = copy("host-z").fails("not-authorised");
    assert!(failure.advice.contains("agent.toml"), "{}", failure.advice);
    // The host that answers is not the one that was meant.
    copy("host-a").with(["--peer", "host-q"]).fails("refused");
    host.shows_nothing("disk");
    copy("host-a").done();
    same(&source, &host.volume("disk"));
    daemon.stop();
}

#[test]
fn a_revocation_bites_without_a_restart() {
    let harness = Harness::new();
    let host = harness.host("host-b");
    let daemon = host.start();
    let source = harness.path("source");
    random_file(&source, 2 * MIB, 2);
    let copy = |volume: &str| harness.copy(&source, host.url(volume));
    copy("before").done();
    let publish = harness.identity("host-b");
    harness
        .agent(&[
            "pki",
            "revoke",
            "host-a",
            "--ca",
            &harness.text("ca"),
            "--publish",
            publish.to_str().unwrap(),
        ])
        .done();
    daemon.await_message("were read again");
    harness.allow_log("refused");
    let failure = copy("after").fails("refused");
    assert!(
        failure.message.contains("revoked") || failure.advice.contains("shut out"),
        "{}",
        failure.message
    );
    host.shows_nothing("after");
    // A new certificate lets it in again.
    std::fs::remove_dir_all(harness.identity("host-a")).unwrap();
    harness.issue("host-a", "ca");
    copy("after").done();
    daemon.stop();
}

#[test]
fn volumes_have_owners() {
    let harness = Harness::new();
    let host = harness.host("host-b");
    let daemon = host.start();
    harness.issue("host-c", "ca");
    let source = harness.path("source");
    random_file(&source, 2 * MIB, 3);
    harness.copy(&source, host.url("disk")).done();
    harness.allow_log("session ended");
    for mode in ["trusted", "full"] {
        let other = harness.copy(&source, host.url("disk")).sent_by("host-c").with(["--resync", mode]);
        let failure = other.fails("not-owner");
        assert!(failure.message.contains("host-a"), "{}", failure.message);
    }
    // What the operator put there has no owner at all.
    std::fs::write(host.volume("precious"), "by hand").unwrap();
    harness.copy(&source, host.url("precious")).with(["--resync", "full"]).fails("not-owner");
    assert_eq!(std::fs::read(host.volume("precious")).unwrap(), b"by hand");
    // Pulling is its own permission.
    harness.copy(host.url("disk"), harness.path("pulled")).sent_by("host-c").fails("not-authorised");
    daemon.stop();
}
