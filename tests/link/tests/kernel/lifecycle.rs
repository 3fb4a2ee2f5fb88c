//! Does a link leave nothing behind?

use std::fs;
use std::io::{BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, Command, Stdio};

use novaferry_link::{LinkSpec, Side, remove_stale};

use crate::support::{can_run, link, numbered, receive_numbered, udp_pair};

/// Kills its process when a test fails.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // It may have ended as it should.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn exists(namespace: &str) -> bool {
    fs::exists(format!("/run/netns/{namespace}")).unwrap()
}

#[test]
fn dropping_a_link_ends_what_runs_inside() {
    let Some(link) = link("dropping_a_link_ends_what_runs_inside", &LinkSpec::default()) else { return };
    let names = [Side::A, Side::B].map(|side| link.namespace(side).to_owned());
    assert!(names.iter().all(|name| exists(name)));
    let mut command = Command::new("sleep");
    command.arg("1000");
    let mut inside = Guard(link.exec(Side::B, command).unwrap());
    drop(link);
    assert!(!names.iter().any(|name| exists(name)));
    // `wait` returns because the process was killed; `success` would mean a sleep of 1000 s.
    assert!(!inside.0.wait().unwrap().success());
}

#[test]
fn a_panic_takes_the_link_down() {
    let Some(link) = link("a_panic_takes_the_link_down", &LinkSpec::default()) else { return };
    let name = link.namespace(Side::A).to_owned();
    let panicked = catch_unwind(AssertUnwindSafe(move || {
        let _owned = link;
        panic!("as intended");
    }));
    assert!(panicked.is_err());
    assert!(!exists(&name));
}

#[test]
fn links_do_not_see_each_other() {
    let Some(first) = link("links_do_not_see_each_other", &LinkSpec::default()) else { return };
    let second = link("links_do_not_see_each_other", &LinkSpec::default()).unwrap();
    let ([a1, b1], [a2, b2]) = (udp_pair(&first), udp_pair(&second));
    a1.send(&numbered(1, 8)).unwrap();
    a2.send(&numbered(2, 8)).unwrap();
    assert_eq!(receive_numbered(&b1, 8).unwrap(), 1);
    assert_eq!(receive_numbered(&b2, 8).unwrap(), 2);
    drop(first);
    a2.send(&numbered(3, 8)).unwrap();
    assert_eq!(receive_numbered(&b2, 8).unwrap(), 3);
}

#[test]
fn what_a_killed_process_left_is_removed() {
    if !can_run("what_a_killed_process_left_is_removed") {
        return;
    }
    let mut owner =
        Guard(Command::new(env!("CARGO_BIN_EXE_novaferry-link")).stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(owner.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let description: serde_json::Value = serde_json::from_str(&line).unwrap();
    let names = ["a", "b"].map(|side| description[side]["namespace"].as_str().unwrap().to_owned());
    remove_stale().unwrap();
    assert!(names.iter().all(|name| exists(name)), "the living keep theirs");
    owner.0.kill().unwrap();
    owner.0.wait().unwrap();
    // Another test's link may have removed them first, which is just as well.
    remove_stale().unwrap();
    assert!(!names.iter().any(|name| exists(name)));
}
