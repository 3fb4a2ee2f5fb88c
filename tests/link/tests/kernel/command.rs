//! Does `novaferry-link` keep what its help says?

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::can_run;

fn novaferry_link(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_novaferry-link"));
    command.args(arguments);
    command
}

fn lines(output: &Output) -> Vec<String> {
    String::from_utf8(output.stdout.clone()).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn the_command_learns_the_link_and_its_exit_code_is_passed_on() {
    if !can_run("the_command_learns_the_link_and_its_exit_code_is_passed_on") {
        return;
    }
    let script =
        "echo $NOVAFERRY_LINK_A $NOVAFERRY_LINK_B $NOVAFERRY_LINK_A_ADDR $NOVAFERRY_LINK_B_ADDR; exit 7";
    let output = novaferry_link(&["--stats", "--seed", "5", "--", "sh", "-c", script]).output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    let lines = lines(&output);
    let [description, echoed, stats] = &lines[..] else { panic!("{lines:?}") };
    let description: Value = serde_json::from_str(description).unwrap();
    let stats: Value = serde_json::from_str(stats).unwrap();
    let names = ["a", "b"].map(|side| description[side]["namespace"].as_str().unwrap());
    assert_eq!(*echoed, format!("{} {} 10.83.0.1 10.83.0.2", names[0], names[1]));
    assert_eq!(description["seed"], 5);
    assert_eq!(stats["a_to_b"]["lost"], 0);
    assert!(names.iter().all(|name| !fs::exists(format!("/run/netns/{name}")).unwrap()));
}

#[test]
fn a_command_runs_inside_a_side() {
    if !can_run("a_command_runs_inside_a_side") {
        return;
    }
    let output = novaferry_link(&["--inside", "b", "--", "ip", "-o", "address"]).output().unwrap();
    assert!(output.status.success());
    assert!(lines(&output).iter().any(|line| line.contains("10.83.0.2/30")), "{output:?}");
    let output = novaferry_link(&["--", "sh", "-c", "kill -9 $$"]).output().unwrap();
    assert_eq!(output.status.code(), Some(128 + 9));
    let output = novaferry_link(&["--", "/nonexistent/program"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent/program"), "{output:?}");
}

#[test]
fn a_signal_takes_the_link_down() {
    if !can_run("a_signal_takes_the_link_down") {
        return;
    }
    for signal in [Signal::INT, Signal::TERM] {
        let mut child = novaferry_link(&[]).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let description: Value = serde_json::from_str(&line).unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        stdout.read_to_string(&mut line).unwrap();
        assert!(child.wait().unwrap().success());
        let name = description["a"]["namespace"].as_str().unwrap();
        assert!(!fs::exists(format!("/run/netns/{name}")).unwrap());
    }
}

#[test]
fn the_help_has_examples_and_wrong_values_exit_with_64() {
    let output = novaferry_link(&["--help"]).output().unwrap();
    assert!(output.status.success());
    let help = lines(&output).join("\n");
    assert!(help.contains("Examples:") && help.contains("--loss"), "{help}");
    let output = novaferry_link(&["--loss", "much"]).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
}
