//! SIGTERM on either side: what is in flight becomes durable, and the same command goes on without sending anything
//! twice.

use rustix::process::Signal;

use crate::harness::Harness;
use crate::harness::copy::Outcome;
use crate::harness::disks::{MIB, random_file, same};

/// A daemon makes durable what has arrived; what is still on its way is sent again.
const WINDOW: u64 = 64 * MIB;

#[test]
fn a_sender_that_is_asked_to_stop_drains() {
    let harness = Harness::new();
    let host = harness.host("host-b");
    let daemon = host.start();
    let source = harness.path("source");
    random_file(&source, 96 * MIB, 1);
    let copy = harness.copy(&source, host.url("disk"));
    let running = copy.clone().with(["--limit", "400Mbit/s"]).start();
    daemon.await_settled(8 * MIB);
    running.signal(Signal::TERM);
    Outcome::of(running.finish()).fails(2, "interrupted");
    host.shows_nothing("disk");
    harness.allow_log("session ended");
    let summary = copy.done();
    assert!(summary.resumed());
    assert_eq!(summary.count("resent_bytes"), 0);
    same(&source, &host.volume("disk"));
    daemon.stop();
}

#[test]
fn a_daemon_that_is_asked_to_stop_drains() {
    let harness = Harness::new();
    let host = harness.host("host-b");
    let daemon = host.start();
    let source = harness.path("source");
    random_file(&source, 96 * MIB, 2);
    let copy = harness.copy(&source, host.url("disk"));
    let running = copy.clone().with(["--limit", "400Mbit/s", "--patience", "0"]).start();
    daemon.await_settled(8 * MIB);
    daemon.stop();
    let ended = Outcome::of(running.finish());
    ended.finished.exits(2);
    host.shows_nothing("disk");
    let daemon = host.start();
    let summary = copy.done();
    assert!(summary.resumed());
    let resent = summary.count("resent_bytes");
    println!("{resent} bytes sent again after the daemon's SIGTERM");
    assert!(resent <= WINDOW);
    same(&source, &host.volume("disk"));
    daemon.stop();
}

#[test]
fn a_sender_waits_for_a_daemon_that_restarts() {
    let harness = Harness::new();
    let host = harness.host("host-b");
    let daemon = host.start();
    let source = harness.path("source");
    random_file(&source, 64 * MIB, 3);
    let running = harness.copy(&source, host.url("disk")).with(["--limit", "400Mbit/s"]).start();
    daemon.await_settled(8 * MIB);
    harness.allow_log("the tunnel was lost; dialling again");
    daemon.stop();
    let daemon = host.start();
    let summary = Outcome::of(running.finish()).done();
    assert!(summary.count("resent_bytes") <= WINDOW);
    assert!(summary.count("attempts") > 1);
    same(&source, &host.volume("disk"));
    daemon.stop();
}
