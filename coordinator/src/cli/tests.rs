use clap::CommandFactory;

use super::units::{milliseconds, seconds};
use super::*;

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
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
}
