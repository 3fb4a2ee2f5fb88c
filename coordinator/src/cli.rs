//! The command line: what can be written, and what it does.

mod bundle;
mod config;
mod detail;
mod generate;
mod health;
mod host;
pub(crate) mod keep;
mod link;
mod login;
mod migration;
pub(crate) mod near;
mod pick;
mod plan;
mod report;
mod show;
#[cfg(test)]
mod tests;
mod token;
pub(crate) mod units;
mod webhook;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::client::Client;
use crate::config::{Access, Asked, File};
use crate::failure::{Exit, Failure};
use crate::output::{self, Format};
use crate::serve::{self, ServeArgs};
use crate::traces;
use bundle::SupportCommand;
use config::ConfigCommand;
use host::{HostCommand, VmCommand};
use keep::{AuthorityCommand, BackupArgs, RestoreArgs};
use link::{LinkCommand, SiteCommand};
use login::LoginArgs;
use migration::MigrationCommand;
use plan::{MigrateArgs, PlanCommand};
use report::ReportCommand;
use token::{AuditCommand, TokenCommand};
use webhook::WebhookCommand;

/// Moves virtual machines between the hosts of a fleet.
#[derive(Debug, Parser)]
#[command(
    name = "novaferry",
    version,
    max_term_width = 100,
    after_help = "\
Whom to ask is said by flags, or else by the environment, or else by the current context of the
configuration file, or else it is this machine's coordinator: `novaferry config show` tells.
`novaferry login` makes a context.

For programs, --output json prints one value a line and --output yaml one document a value: of a
list, each of its items. A failure is a value there, too, on stdout:
{\"error\": {\"code\", \"message\", \"advice\"}}. Times and sizes are exact for programs and short for people.
Colours are for terminals, unless NO_COLOR is set.

Exit codes: 0 done; 1 failed; 2 a migration is in doubt, and a person must decide; 64 wrong usage.

Examples:
  novaferry serve
  novaferry login https://coordinator.example:7443 --ca-fingerprint 3f:9a:…
  novaferry host token --site berlin
  novaferry vm list
  novaferry migrate web-1 --to host-b"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// What to print.
    #[arg(long, global = true, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    access: Access,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the coordinator.
    Serve(ServeArgs),
    /// The fleet's hosts.
    #[command(subcommand)]
    Host(HostCommand),
    /// The fleet's virtual machines.
    #[command(subcommand)]
    Vm(VmCommand),
    /// The links between the fleet's sites.
    #[command(subcommand)]
    Link(LinkCommand),
    /// The fleet's sites.
    #[command(subcommand)]
    Site(SiteCommand),
    /// Moves VMs to another host or site.
    Migrate(MigrateArgs),
    /// Plans: what `migrate` and `host drain` would do, or do.
    #[command(subcommand)]
    Plan(PlanCommand),
    /// Migrations.
    #[command(subcommand)]
    Migration(MigrationCommand),
    /// How expectations fared, and what was spent.
    #[command(subcommand)]
    Report(ReportCommand),
    /// Tokens of people and programs.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Whom to tell what happens, by HTTP.
    #[command(subcommand)]
    Webhook(WebhookCommand),
    /// Who did what.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// The hosts' CA.
    #[command(subcommand)]
    Authority(AuthorityCommand),
    /// Takes a backup while the coordinator serves.
    Backup(BackupArgs),
    /// Makes a state folder from a backup.
    Restore(RestoreArgs),
    /// Makes a coordinator known to this user, and tries a token.
    Login(LoginArgs),
    /// The coordinators that this user knows.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Says whether the coordinator answers.
    Health,
    /// Says the releases of this program and of the coordinator.
    Version,
    /// What somebody who helps needs to see.
    #[command(subcommand)]
    Support(SupportCommand),
    /// Prints a script that completes commands in a shell.
    #[command(
        after_help = "Example:\n  novaferry completions bash >~/.local/share/bash-completion/completions/novaferry"
    )]
    Completions {
        /// Which.
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Writes manual pages of all commands.
    #[command(after_help = "Example:\n  novaferry man ~/.local/share/man/man1")]
    Man {
        /// The folder that they are written into.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
}

/// The format that is asked for, of a command line that makes no sense.
fn format_of(words: impl Iterator<Item = OsString>) -> Format {
    let words: Vec<_> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    let next = words.windows(2).filter(|two| two[0] == "--output").map(|two| two[1].as_str());
    let joined = words.iter().filter_map(|word| word.strip_prefix("--output="));
    let format = next.chain(joined).last().and_then(|name| Format::from_str(name, false).ok());
    format.unwrap_or_default()
}

/// Runs the program.
pub(crate) fn run() -> ExitCode {
    let parsed = Cli::command()
        .try_get_matches()
        .and_then(|matches| Cli::from_arg_matches(&matches).map(|cli| (cli, matches)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return wrong(&error),
    };
    let format = cli.output;
    let asked = cli.access.asked(&matches);
    match command(cli.command, &asked, format) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::failure(format, &failure);
            failure.exit.into()
        }
    }
}

/// Help that is asked for, or words that make no sense.
fn wrong(error: &clap::Error) -> ExitCode {
    let format = format_of(std::env::args_os());
    if !error.use_stderr() || format == Format::Text {
        // A closed stdout or stderr: nobody reads.
        drop(error.print());
        return if error.use_stderr() { Exit::Usage.into() } else { ExitCode::SUCCESS };
    }
    let text = error.render().to_string();
    let words = text.trim().strip_prefix("error: ").unwrap_or_else(|| text.trim());
    let what = words.split("\n\n").next().unwrap_or_default().replace('\n', " ");
    output::failure(format, &Failure::new("usage", what, "see --help").usage());
    Exit::Usage.into()
}

fn command(command: Command, asked: &Asked, format: Format) -> Result<(), Failure> {
    match command {
        Command::Serve(args) => serve::run(args),
        Command::Authority(command) => keep::authority(command, format),
        Command::Restore(args) => keep::restore(args, format),
        Command::Login(args) => login::login(args, asked, format),
        Command::Config(command) => config::config(command, asked, format),
        Command::Completions { shell } => {
            // A reader that is gone is none.
            drop(std::io::stdout().write_all(&generate::completions(Cli::command(), shell)));
            Ok(())
        }
        Command::Man { folder } => generate::man(Cli::command(), &folder, format),
        Command::Health => health::health(&Client::without_token(&File::read()?.resolve(asked)?)?, format),
        Command::Version => {
            let settings = File::read().and_then(|file| file.resolve(asked));
            health::version(settings.and_then(|settings| Client::without_token(&settings)), format);
            Ok(())
        }
        command => {
            let client = Client::open(&File::read()?.resolve(asked)?)?;
            traces::command(|| ask(&client, command, format))
        }
    }
}

fn ask(client: &Client, command: Command, format: Format) -> Result<(), Failure> {
    match command {
        Command::Backup(args) => keep::backup(client, &args, format),
        Command::Host(command) => host::host(client, command, format),
        Command::Vm(command) => host::vm(client, command, format),
        Command::Link(command) => link::link(client, command, format),
        Command::Site(command) => link::site(client, command, format),
        Command::Migrate(args) => plan::migrate(client, args, format),
        Command::Plan(command) => plan::plan(client, command, format),
        Command::Migration(command) => migration::migration(client, command, format),
        Command::Report(command) => report::report(client, command, format),
        Command::Token(command) => token::token(client, command, format),
        Command::Webhook(command) => webhook::webhook(client, command, format),
        Command::Audit(command) => token::audit(client, command, format),
        Command::Support(SupportCommand::Bundle(args)) => bundle::bundle(client, args, format),
        // These ran without a client.
        Command::Serve(_)
        | Command::Authority(_)
        | Command::Restore(_)
        | Command::Login(_)
        | Command::Config(_)
        | Command::Health
        | Command::Version
        | Command::Completions { .. }
        | Command::Man { .. } => Ok(()),
    }
}
