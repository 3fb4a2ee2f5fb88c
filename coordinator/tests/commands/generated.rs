//! Completions and manual pages, as shells and groff take them.

use std::path::{Path, PathBuf};
use std::process::Command;

#[track_caller]
fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.is_empty(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn novaferry(words: &[&str]) -> String {
    output(Command::new(env!("CARGO_BIN_EXE_novaferry")).args(words))
}

fn script(folder: &Path, shell: &str) -> PathBuf {
    let file = folder.join(shell);
    std::fs::write(&file, novaferry(&["completions", shell])).unwrap();
    file
}

#[test]
fn every_shell_has_a_script() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = novaferry(&["completions", shell]);
        assert!(script.contains("cordon") && script.contains("most-migrations"), "{shell}");
    }
}

#[test]
fn bash_completes_commands_flags_and_values() {
    let folder = tempfile::tempdir().unwrap();
    let file = script(folder.path(), "bash");
    let completes = |words: &[&str]| -> Vec<String> {
        let (now, before) = words.split_last().unwrap();
        let ask = "source \"$1\"; shift; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); \
                   _novaferry novaferry \"${!#}\" \"${COMP_WORDS[COMP_CWORD - 1]}\"; printf '%s\\n' \"${COMPREPLY[@]}\"";
        let mut bash = Command::new("bash");
        bash.args(["--norc", "-c", ask, "bash"]).arg(&file).arg("novaferry").args(before).arg(now);
        output(&mut bash).lines().map(ToOwned::to_owned).collect()
    };
    assert_eq!(completes(&["lin"]), ["link"]);
    assert_eq!(completes(&["host", "dr"]), ["drain"]);
    assert_eq!(completes(&["link", "add", "--most"]), ["--most-migrations"]);
    assert_eq!(completes(&["vm", "list", "--output", "y"]), ["yaml"]);
    assert_eq!(completes(&["support", "b"]), ["bundle"]);
}

#[test]
fn zsh_takes_its_script() {
    if !hosts::have("shells", &["zsh"], "zsh_takes_its_script") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = script(folder.path(), "zsh");
    let ask = "autoload -U compinit && compinit -D -u && source \"$1\" && print $_comps[novaferry]";
    let said = output(Command::new("zsh").args(["-f", "-c", ask, "zsh"]).arg(&file));
    assert_eq!(said.trim(), "_novaferry");
}

#[test]
fn fish_completes_commands_and_flags() {
    if !hosts::have("shells", &["fish"], "fish_completes_commands_and_flags") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = script(folder.path(), "fish");
    let completes = |line: &str| -> Vec<String> {
        let ask = "source $argv[1]; complete -C $argv[2]";
        let mut fish = Command::new("fish");
        fish.args(["--no-config", "-c", ask]).arg(&file).arg(line).env("HOME", folder.path());
        let first = |line: &str| line.split('\t').next().unwrap_or_default().to_owned();
        output(&mut fish).lines().map(first).collect()
    };
    assert_eq!(completes("novaferry lin"), ["link"]);
    assert_eq!(completes("novaferry host dr"), ["drain"]);
    assert_eq!(completes("novaferry link add --most"), ["--most-migrations"]);
}

#[test]
fn every_command_has_a_manual_page() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("man");
    novaferry(&["man", folder.to_str().unwrap()]);
    let pages: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(pages.len() > 40, "{} pages", pages.len());
    for name in ["novaferry.1", "novaferry-host.1", "novaferry-migration-watch.1", "novaferry-link-add.1"] {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        assert!(text.contains(".SH NAME") && text.contains(".SH OPTIONS"), "{name}");
    }
    if !hosts::have("groff", &["groff"], "every_command_has_a_manual_page") {
        return;
    }
    output(Command::new("groff").args(["-man", "-ww", "-z", "-Kutf8", "-Tutf8"]).args(&pages));
}
