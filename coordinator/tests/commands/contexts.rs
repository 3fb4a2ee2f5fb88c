//! Which coordinator is asked: `login`, `config`, flags and the environment.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::Coordinator;

/// A person's home, and nothing else that says whom to ask.
fn at_home(home: &Path, words: &[&str], typed: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_novaferry"))
        .args(words)
        .env("HOME", home)
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("NOVAFERRY_URL")
        .env_remove("NOVAFERRY_CA")
        .env_remove("NOVAFERRY_TOKEN_FILE")
        .env_remove("NOVAFERRY_CONTEXT")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that does not read it may be gone already.
    drop(child.stdin.take().unwrap().write_all(typed.as_bytes()));
    child.wait_with_output().unwrap()
}

#[track_caller]
fn done(home: &Path, words: &[&str], typed: &str) -> String {
    let output = at_home(home, words, typed);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn fails(home: &Path, words: &[&str], typed: &str, code: i32) -> String {
    let output = at_home(home, words, typed);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
    said
}

#[test]
fn whoever_logs_in_needs_no_flags_any_more() {
    let (one, other) = (Coordinator::start(), Coordinator::start());
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let token = std::fs::read_to_string(one.file("admin-token")).unwrap();
    let colons: Vec<_> = one.fingerprint.as_bytes().chunks(2).map(String::from_utf8_lossy).collect();
    let colons = colons.join(":").to_uppercase();
    let login = ["login", &one.url, "--ca-fingerprint", &colons, "--name", "one"];
    assert!(done(home, &login, &token).contains("context one is https://"));
    assert!(done(home, &["host", "list"], "").contains("HOST"));
    let folder = home.join(".config/novaferry");
    for file in ["config.toml", "one.token", "one.ca.pem"] {
        let mode = std::fs::metadata(folder.join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{file} is for this user alone");
    }
    let config = std::fs::read_to_string(folder.join("config.toml")).unwrap();
    assert!(!config.contains(token.trim()), "{config}");

    // Of a file its path is kept, and the CA may come as a file, too.
    let (ca, file) = (other.file("ca.pem"), other.file("admin-token"));
    let (ca, file) = (ca.to_str().unwrap(), file.to_str().unwrap());
    let json = done(
        home,
        &["login", &other.url, "--ca", ca, "--token-file", file, "--name", "other", "--output", "json"],
        "",
    );
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["token_file"], file);
    let url = |words: &[&str]| {
        let mut words = words.to_vec();
        words.extend(["config", "show", "--output", "json"]);
        let shown: Value = serde_json::from_str(&done(home, &words, "")).unwrap();
        shown["url"].clone()
    };
    assert_eq!(url(&[])["value"], other.url.as_str());
    assert_eq!(url(&["--context", "one"])["value"], one.url.as_str());
    assert_eq!(url(&["--url", "https://x"])["from"], "flag");
    done(home, &["config", "use", "one"], "");
    // Of another context than the one in use.
    done(home, &["config", "set", "other", "url", &other.url, "--context", "one"], "");
    assert_eq!((&url(&[])["value"], &url(&[])["from"]), (&one.url.as_str().into(), &"context".into()));
    assert!(done(home, &["config", "list"], "").contains("other"));
    let sorted =
        done(home, &["config", "list", "--columns", "context", "--no-headers", "--sort", "-context"], "");
    assert_eq!(sorted, " other\n one\n");

    let said = fails(home, &["--context", "othr", "host", "list"], "", 64);
    assert!(said.contains("there is no context othr") && said.contains("did you mean other?"), "{said}");
    done(home, &["config", "unset", "one", "token_file"], "");
    let said = fails(home, &["host", "list"], "", 64);
    assert!(said.contains("token_file is missing in context one"), "{said}");
    assert!(said.contains("hint: novaferry config set one token_file"), "{said}");
    // What needs no token works.
    assert!(done(home, &["health"], "").contains("ok, release"));
    let token_file = folder.join("one.token");
    done(home, &["config", "set", "one", "token_file", token_file.to_str().unwrap()], "");
    done(home, &["host", "list"], "");
    done(home, &["config", "unset", "one"], "");
    assert!(fails(home, &["config", "use", "one"], "", 64).contains("no context one"));
}

#[test]
fn nothing_is_kept_of_a_login_that_fails() {
    let (one, other) = (Coordinator::start(), Coordinator::start());
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let token = std::fs::read_to_string(one.file("admin-token")).unwrap();
    let login = |pin: &str, typed: &str, code| {
        fails(home, &["login", &one.url, "--ca-fingerprint", pin, "--name", "one"], typed, code)
    };
    let said = login(&other.fingerprint, &token, 1);
    assert!(said.contains("does not show the CA") && said.contains("no token was sent"), "{said}");
    assert!(login(&one.fingerprint, "nfa1_wrong\n", 1).contains("unknown, revoked or expired"));
    assert!(login(&one.fingerprint, "\n", 64).contains("it is empty"));
    assert!(login(&one.fingerprint, &"x".repeat(20_000), 64).contains("too long"));
    assert!(login("12:34", &token, 64).contains("64 hexadecimal digits"));
    let said = fails(home, &["login", &one.url], &token, 64);
    assert!(said.contains("--ca-fingerprint, or by --ca"), "{said}");
    let said =
        fails(home, &["login", "http://127.0.0.1:1", "--ca-fingerprint", &one.fingerprint], &token, 64);
    assert!(said.contains("https://coordinator.example:7443"), "{said}");
    let said =
        fails(home, &["login", "https://127.0.0.1:1", "--ca-fingerprint", &one.fingerprint], &token, 1);
    assert!(said.contains("cannot reach 127.0.0.1:1"), "{said}");
    assert!(!home.join(".config").exists());
}

#[test]
fn a_configuration_that_makes_no_sense_says_where() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let path = home.join(".config/novaferry/config.toml");
    assert_eq!(done(home, &["config", "path"], "").trim(), path.to_str().unwrap());
    assert!(done(home, &["config", "show"], "").contains("(not there)"));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, "[context.a]\nurl = \"https://a\"\ntoken = \"nfa1_secret\"\n").unwrap();
    let said = fails(home, &["host", "list"], "", 64);
    assert!(said.contains("line 3: unknown field `token`"), "{said}");
    assert!(!said.contains("nfa1_secret"), "{said}");
    // What asks nobody does not care.
    assert!(done(home, &["completions", "bash"], "").contains("novaferry"));
}
