use clap::CommandFactory;

use super::*;

/// Help texts as they are shown at 100 columns. To accept a change, replace the file by what the test prints.
#[test]
fn help_is_as_reviewed() {
    let mut command = Cli::command().term_width(100);
    command.build();
    let mut text = String::new();
    collect(&mut command, "novaferry-agent", &mut text);
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
fn arguments_are_understood() {
    let parse = |text: &str| Cli::try_parse_from(text.split(' '));
    let copy = |text: &str| match parse(text).unwrap().command {
        Command::Copy(args) => args.settings(),
        other => panic!("{other:?}"),
    };
    let settings = copy(
        "x copy a novaferry://h/p/n.qcow2 --compress -5 --limit 200Mbit/s --via 127.0.0.1 --via ::1 --resync full \
         --patience 10m --connections 8 --verify readback --output json",
    )
    .unwrap();
    assert_eq!(settings.compress, reduce::Mode::Fixed(-5));
    assert_eq!(settings.limit, Some(25_000_000));
    assert_eq!(settings.via.len(), 2);
    assert_eq!(settings.mode, Mode::ResyncFull);
    assert_eq!(settings.patience, Duration::from_secs(600));
    assert_eq!(settings.target_format, VolumeFormat::Qcow2);
    assert!(settings.readback && settings.output == Format::Json);
    let both = copy("x copy novaferry://h/p/n novaferry://g/p/n").unwrap_err();
    assert_eq!(both.exit(), Exit::Usage);
    for bad in [
        "x copy a",
        "x copy a novaferry://h/p",
        "x copy a b --compress 10",
        "x copy a b --compress -6",
        "x copy a b --connections 0",
        "x copy a b --connections 9",
        "x copy a b --patience 2",
        "x copy a b --patience 2d",
        "x copy a b --limit fast",
        "x copy a b --via host",
        "x copy a b --peer Upper",
        "x session cancel 12",
        "x pki revoke --ca ca",
        "x migrate web",
        "x migrate web --to host-b",
        "x migrate web --to novaferry://host-b/gold",
        "x migrate web --to novaferry://b --multifd 9",
        "x migrate web --to novaferry://b --dry-run --detach",
        "x migrate web --to novaferry://b --max-downtime 300",
        "x migration status xyz",
        "x migration resolve ab --keep source",
        "x migration resolve ab --other-side-is-off",
        "x pki revoke a --serial 00 --ca ca",
    ] {
        let error = parse(bad).unwrap_err();
        assert!(error.use_stderr(), "{bad}");
    }
}

#[test]
fn migrations_are_understood() {
    use crate::control::Request;
    use crate::control::migration::{Migrate, Mode, Network, NoConverge, Transport};

    let parse = |text: &str| Cli::try_parse_from(text.split(' ')).unwrap().command;
    let migrate = |text: &str| match parse(text) {
        Command::Migrate(args) => args.settings(),
        other => panic!("{other:?}"),
    };
    let plain = migrate("x migrate web --to novaferry://host-b");
    assert_eq!(plain.migrate, Migrate::new("web", "novaferry://host-b:7440"));
    assert!(!plain.detach && plain.output == Format::Text);
    let all = migrate(
        "x migrate web --to novaferry://[::1]:99 --pool gold --mode warm --max-downtime 2s --timeout 1h \
         --reconnect 5s --on-no-converge throttle --multifd 0 --ram-cache 64MiB --limit 200Mbit/s --transport tcp --profile wan --via \
         127.0.0.1 --alternate novaferry://host-b --peer host-b --compress off --verify readback --hold --detach --socket /s --output json",
    );
    let expected = Migrate {
        alternates: vec!["novaferry://host-b:7440".to_owned()],
        pool: Some("gold".to_owned()),
        mode: Mode::Warm,
        max_downtime_ms: 2000,
        timeout_ms: 3_600_000,
        reconnect_ms: 5_000,
        on_no_converge: NoConverge::Throttle,
        multifd: 0,
        ram_cache: 64 << 20,
        limit: Some(25_000_000),
        transport: Transport::Tcp,
        profile: Network::Wan,
        via: vec!["127.0.0.1".parse().unwrap()],
        peer: Some("host-b".to_owned()),
        compress: None,
        readback: true,
        hold: true,
        ..Migrate::new("web", "novaferry://[::1]:99")
    };
    assert_eq!(all.migrate, expected);
    assert!(all.detach && all.output == Format::Json && all.socket == std::path::Path::new("/s"));

    let request = |text: &str| match parse(text) {
        Command::Migration(args) => args.request().1,
        Command::Vm(args) => args.request().1,
        other => panic!("{other:?}"),
    };
    let id = "ab".to_owned();
    assert_eq!(request("x vm list"), Request::Vms {});
    assert_eq!(request("x migration list"), Request::Migrations {});
    assert_eq!(request("x migration status AB"), Request::Migration { id: id.clone() });
    for undo in ["cancel", "rollback"] {
        let expected = Request::MigrationCancel { id: id.clone() };
        assert_eq!(request(&format!("x migration {undo} ab")), expected);
    }
    assert_eq!(
        request("x migration rollback ab --discard-destination"),
        Request::MigrationTakeBack { id: id.clone() }
    );
    assert_eq!(request("x migration finalise ab"), Request::MigrationFinalise { id: id.clone() });
    assert_eq!(
        request("x migration resolve ab --keep destination --other-side-is-off"),
        Request::MigrationResolve { id, keep: engine::migrate::status::Choice::Destination }
    );
}

#[test]
fn durations() {
    assert_eq!(duration("0"), Ok(Duration::ZERO));
    assert_eq!(duration("300ms"), Ok(Duration::from_millis(300)));
    assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
    assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
    for bad in ["", "s", "-1s", "1.5m", "99999999999999999999s", "9000h"] {
        assert!(duration(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}
