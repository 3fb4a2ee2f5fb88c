//! The command line: what can be written, and what it does.

mod host;
pub(crate) mod keep;
mod link;
mod migration;
mod plan;
mod report;
mod show;
#[cfg(test)]
mod tests;
mod token;
mod units;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::client::{Access, Client};
use crate::failure::{Exit, Failure};
use crate::output::{self, Format};
use crate::serve::{self, ServeArgs};
use crate::traces;
use host::{HostCommand, VmCommand};
use keep::{AuthorityCommand, BackupArgs, RestoreArgs};
use link::{LinkCommand, SiteCommand};
use migration::MigrationCommand;
use plan::{MigrateArgs, PlanCommand};
use report::ReportCommand;
use token::{AuditCommand, TokenCommand};

/// Moves virtual machines between the hosts of a fleet.
#[derive(Debug, Parser)]
#[command(
    name = "novaferry",
    version,
    max_term_width = 100,
    after_help = "\
Exit codes: 0 done; 1 failed; 64 wrong usage.

Examples:
  novaferry serve
  novaferry host token --site berlin
  novaferry vm list
  novaferry migrate web-1 --to host-b"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    access: Access,
    /// What to print.
    #[arg(long, global = true, value_enum, default_value_t)]
    output: Format,
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
}

/// Runs the program.
pub(crate) fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A closed stdout or stderr: nobody reads.
            drop(error.print());
            return if error.use_stderr() { Exit::Usage.into() } else { ExitCode::SUCCESS };
        }
    };
    let format = cli.output;
    let result = match cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Authority(command) => keep::authority(command, format),
        Command::Restore(args) => keep::restore(args, format),
        command => cli.access.open().and_then(|client| traces::command(|| ask(&client, command, format))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::failure(format, &failure);
            failure.exit.into()
        }
    }
}

fn ask(client: &Client, command: Command, format: Format) -> Result<(), Failure> {
    match command {
        // Run without a client.
        Command::Serve(_) | Command::Authority(_) | Command::Restore(_) => Ok(()),
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
        Command::Audit(command) => token::audit(client, command, format),
    }
}
