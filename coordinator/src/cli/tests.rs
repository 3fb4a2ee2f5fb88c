use clap::CommandFactory;

use super::units::{bytes, micros, milliseconds, money, seconds, span};
use super::*;

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn no_command_has_an_argument_that_is_taken_for_one_of_all() {
    let mut command = Cli::command();
    let all: Vec<_> = command.get_arguments().map(|arg| arg.get_id().clone()).collect();
    assert!(all.len() >= 5, "{all:?}");
    command.build();
    let mut commands: Vec<_> = command.get_subcommands().collect();
    while let Some(command) = commands.pop() {
        for id in &all {
            let mut same = command.get_arguments().filter(|arg| arg.get_id() == id);
            assert!(same.all(clap::Arg::is_global_set), "{}: {id}", command.get_name());
        }
        commands.extend(command.get_subcommands());
    }
}

#[test]
fn help_is_as_reviewed() {
    let mut command = Cli::command().term_width(100);
    command.build();
    let mut text = String::new();
    collect(&mut command, "novaferry", &mut text);
    let reviewed = include_str!("help.txt");
    assert!(text == reviewed, "help changed; if it is right, src/cli/help.txt becomes:\n{text}");
}

fn collect(command: &mut clap::Command, name: &str, text: &mut String) {
    text.push_str(&format!("$ {name} --help\n{}\n", command.render_long_help()));
    let names: Vec<_> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    for sub in names.iter().filter(|sub| *sub != "help") {
        if let Some(command) = command.find_subcommand_mut(sub) {
            collect(command, &format!("{name} {sub}"), text);
        }
    }
}

#[test]
fn durations_have_units() {
    assert_eq!(seconds("15m"), Ok(900));
    assert_eq!(seconds("90d"), Ok(90 * 86_400));
    assert_eq!(milliseconds("300ms"), Ok(300));
    assert_eq!(milliseconds("2s"), Ok(2000));
    for bad in ["", "5", "m", "0s", "-1s", "1.5h", "5 m", "99999999999999999999s", "99999999999999999d"] {
        assert!(seconds(bad).is_err() || bad == "0", "{bad}");
    }
    assert!(milliseconds("2m").unwrap_err().contains("10ms"));
}

#[test]
fn what_can_lose_data_must_be_said() {
    let parse = |text: &str| Cli::try_parse_from(text.split(' '));
    parse("x migration rollback ab").unwrap_err();
    parse("x migration rollback ab --discard-destination").unwrap();
    parse("x migration resolve ab --keep source").unwrap_err();
    parse("x migration resolve ab --keep source --other-side-is-off").unwrap();
    parse("x migrate web-1 --to Host!").unwrap_err();
    parse("x migrate web-1 --to host-b --limit 0").unwrap_err();
    parse("x migrate --to host-b").unwrap_err();
    parse("x migrate web-1 --to host-b --max-cost 1,5").unwrap_err();
    parse("x migrate web-1 web-2 --to berlin --max-cost 1.5 --deadline 2h --wave 4").unwrap();
}

#[test]
fn money_is_exact() {
    assert_eq!(micros("1.5"), Ok(1_500_000));
    assert_eq!(micros("0.000001"), Ok(1));
    for bad in ["", ".5", "1.", "-1", "1e3", "1.0000001", "99999999999999999999"] {
        assert!(micros(bad).is_err(), "{bad}");
    }
    assert_eq!(money(1_500_000, "USD"), "1.5000 USD");
}

#[test]
fn figures_are_short() {
    assert_eq!((span(80), span(2_500), span(600_000)), ("80 ms".into(), "2.5 s".into(), "10.0 min".into()));
    assert_eq!((bytes(900), bytes(12_300_000)), ("900 B".into(), "12.3 MB".into()));
}
