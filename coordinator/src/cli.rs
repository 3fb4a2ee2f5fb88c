//! The command line: what can be written, and what it does.

#[cfg(test)]
mod tests;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use model::access::Role;
use model::migration::{Migration, Mode, Options, Wish};
use serde_json::{Value, json};

use crate::client::{Access, Client};
use crate::failure::{Exit, Failure};
use crate::follow::{follow, short};
use crate::output::{self, Format, plain, table};
use crate::serve::{self, ServeArgs};

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
    /// Moves a VM to another host.
    Migrate(MigrateArgs),
    /// Migrations.
    #[command(subcommand)]
    Migration(MigrationCommand),
    /// Tokens of people and programs.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Who did what.
    #[command(subcommand)]
    Audit(AuditCommand),
}

#[derive(Debug, Subcommand)]
enum HostCommand {
    /// Makes a one-time token by which a host joins.
    #[command(after_help = "Example:\n  novaferry host token --site berlin --expires 15m")]
    Token {
        /// The host's site.
        #[arg(long)]
        site: model::Name,
        /// The only host that may use it.
        #[arg(long)]
        host: Option<model::Name>,
        /// How long it is good, such as 15m or 2h.
        #[arg(long, value_parser = seconds, default_value = "1h", value_name = "DURATION")]
        expires: u64,
    },
    /// Lists the hosts.
    List,
    /// Revokes a host's certificates: it loses its line, and no other host lets it in.
    #[command(after_help = "Example:\n  novaferry host revoke host-a")]
    Revoke {
        /// Which.
        host: model::Name,
    },
}

#[derive(Debug, Subcommand)]
enum VmCommand {
    /// Lists the virtual machines of all hosts.
    List,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum ModeArg {
    /// It runs on while its disks and its memory travel.
    #[default]
    Live,
    /// Its disks travel while it runs; then it is shut down and boots there.
    Warm,
    /// It is off, and stays off.
    Cold,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The hosts carry the move out: whoever follows may go away at any time, and so may the coordinator.

Examples:
  novaferry migrate web-1 --to host-b --dry-run
  novaferry migrate web-1 --to host-b --max-downtime 200ms
  novaferry migrate web-1 --to host-b --mode warm --limit 50000000 --detach")]
struct MigrateArgs {
    /// The VM's id or name.
    vm: String,
    /// The destination.
    #[arg(long, value_name = "HOST")]
    to: model::Name,
    /// Where the VM is, if its name does not say.
    #[arg(long, value_name = "HOST")]
    from: Option<model::Name>,
    /// How.
    #[arg(long, value_enum, default_value_t)]
    mode: ModeArg,
    /// Longest pause of the guest, such as 300ms or 2s.
    #[arg(long, value_parser = milliseconds, value_name = "DURATION")]
    max_downtime: Option<u64>,
    /// Highest rate, bytes a second.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Keep the source's copy until `migration finalise`.
    #[arg(long)]
    hold: bool,
    /// Find out what stands against it, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Come back as soon as it is asked for.
    #[arg(long)]
    detach: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Keep {
    /// The source's copy.
    Source,
    /// The destination's copy.
    Destination,
}

#[derive(Debug, Subcommand)]
enum MigrationCommand {
    /// Lists migrations, newest first.
    List {
        /// At most so many.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: u32,
    },
    /// Shows all that is known of one, as JSON.
    Show {
        /// Its id, or the first digits of it.
        id: String,
    },
    /// Follows one to its end.
    Watch {
        /// Its id, or the first digits of it.
        id: String,
    },
    /// Undoes one, while that is possible.
    Cancel {
        /// Its id, or the first digits of it.
        id: String,
    },
    /// Gives the source's copy up.
    Finalise {
        /// Its id, or the first digits of it.
        id: String,
    },
    /// Ends the guest at the destination and resumes the source's copy as it was at the cut-over.
    Rollback {
        /// Its id, or the first digits of it.
        id: String,
        /// What the guest did at the destination is lost.
        #[arg(long, required = true)]
        discard_destination: bool,
    },
    /// Ends doubt, when the hosts cannot reach each other.
    #[command(after_help = "Example:\n  novaferry migration resolve 4f2a --keep source --other-side-is-off")]
    Resolve {
        /// Its id, or the first digits of it.
        id: String,
        /// Whose copy is to live.
        #[arg(long, value_enum)]
        keep: Keep,
        /// You have made sure of it: else the VM may run twice.
        #[arg(long, required = true)]
        other_side_is_off: bool,
    },
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Makes one; it is shown this once.
    #[command(after_help = "Example:\n  novaferry token make --name nightly --role operator --expires 90d")]
    Make {
        /// What people call it.
        #[arg(long)]
        name: String,
        /// What its holder may do: viewer, operator or admin.
        #[arg(long)]
        role: Role,
        /// How long it is good, such as 12h or 90d; for ever if not given.
        #[arg(long, value_parser = seconds, value_name = "DURATION")]
        expires: Option<u64>,
    },
    /// Lists them, without their secrets.
    List,
    /// Makes one no good.
    Revoke {
        /// Its id.
        id: String,
    },
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Lists entries, oldest first.
    List {
        /// Those after this number.
        #[arg(long, default_value_t = 0)]
        after: u64,
        /// At most so many.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Checks that no entry was changed or left out.
    Check,
}

/// A number with its unit.
fn duration(text: &str, units: &[(&str, u64)]) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let names = || units.iter().map(|(name, _)| format!("10{name}")).collect::<Vec<_>>().join(", ");
    let factor = units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
    let value =
        number.parse::<u64>().ok().zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    value.filter(|value| *value > 0).ok_or_else(|| format!("write a number and a unit, such as {}", names()))
}

fn seconds(text: &str) -> Result<u64, String> {
    duration(text, &[("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)])
}

fn milliseconds(text: &str) -> Result<u64, String> {
    duration(text, &[("ms", 1), ("s", 1000)])
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
        command => cli.access.open().and_then(|client| ask(&client, command, format)),
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
        // Runs without a client.
        Command::Serve(_) => Ok(()),
        Command::Host(command) => host(client, command, format),
        Command::Vm(VmCommand::List) => {
            let vms = client.list("/v1/vms", None)?;
            list(format, &vms, &["HOST", "ID", "NAME", "STATE", "MOVES"], |vm| {
                let fields = ["host", "id", "name", "state", "access"];
                fields.map(|field| text(&vm[field])).to_vec()
            });
            Ok(())
        }
        Command::Migrate(args) => migrate(client, args, format),
        Command::Migration(command) => migration(client, command, format),
        Command::Token(command) => token(client, command, format),
        Command::Audit(command) => audit(client, command, format),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

fn list(format: Format, values: &[Value], head: &[&str], row: impl Fn(&Value) -> Vec<String>) {
    match format {
        Format::Json => values.iter().for_each(output::json),
        Format::Text => table(head, values.iter().map(row)),
    }
}

fn said(format: Format, value: &Value, words: &str) {
    match format {
        Format::Json => output::json(value),
        Format::Text => output::line(words),
    }
}

fn host(client: &Client, command: HostCommand, format: Format) -> Result<(), Failure> {
    match command {
        HostCommand::Token { site, host, expires } => {
            let wanted = json!({ "site": site, "host": host, "expires_seconds": expires });
            let invited: Value = client.post("/v1/host-tokens", &wanted)?;
            // The token alone, for a pipe.
            said(format, &invited, &text(&invited["token"]));
        }
        HostCommand::List => {
            let hosts = client.list("/v1/hosts", None)?;
            list(format, &hosts, &["HOST", "SITE", "STATE", "VERSION", "VMS", "SEEN"], |host| {
                let state = match (&host["revoked"], &host["connected"]) {
                    (Value::String(_), _) => "revoked",
                    (_, Value::String(_)) => "connected",
                    _ => "away",
                };
                let observed = &host["observed"];
                let vms = observed["vms"].as_array().map_or(Value::Null, |vms| vms.len().into());
                vec![
                    text(&host["name"]),
                    text(&host["site"]),
                    state.to_owned(),
                    text(&observed["version"]),
                    text(&vms),
                    text(&host["seen"]),
                ]
            });
        }
        HostCommand::Revoke { host } => {
            client.post::<Value>(&format!("/v1/hosts/{host}/revoke"), &json!({}))?;
            said(format, &json!({ "revoked": host }), &format!("{host} is revoked"));
        }
    }
    Ok(())
}

fn migrate(client: &Client, args: MigrateArgs, format: Format) -> Result<(), Failure> {
    let MigrateArgs { vm, to, from, mode, max_downtime, limit, hold, dry_run, detach } = args;
    let mode = match mode {
        ModeArg::Live => Mode::Live,
        ModeArg::Warm => Mode::Warm,
        ModeArg::Cold => Mode::Cold,
    };
    let options = Options { mode, max_downtime_ms: max_downtime, limit, hold, dry_run };
    let begun: Migration =
        client.post("/v1/migrations", &json!({ "vm": vm, "to": to, "from": from, "options": options }))?;
    if detach {
        match format {
            Format::Json => output::json(&begun),
            Format::Text => {
                let id = &begun.id;
                output::line(&format!(
                    "{id} is asked for; `novaferry migration watch {}` follows it",
                    short(id)
                ));
            }
        }
        return Ok(());
    }
    follow(client, &begun.id, format)
}

/// The one migration whose id begins so.
fn find(client: &Client, id: &str) -> Result<String, Failure> {
    let digits = !id.is_empty() && id.len() <= 32 && id.bytes().all(|c| c.is_ascii_hexdigit());
    if !digits {
        let advice = "`novaferry migration list` shows the ids";
        return Err(Failure::new(
            "usage",
            "a migration is named by its digits, or the first of them",
            advice,
        )
        .usage());
    }
    if id.len() == 32 {
        return Ok(id.to_owned());
    }
    let page = client.list("/v1/migrations", Some(500))?;
    let ids = page.iter().filter_map(|one| one["id"].as_str());
    let found: Vec<_> = ids.filter(|known| known.starts_with(id)).collect();
    match found[..] {
        [one] => Ok(one.to_owned()),
        [] => Err(Failure::new(
            "not-found",
            format!("none of the last 500 migrations begins with {id}"),
            "write all its digits",
        )),
        _ => {
            Err(Failure::new("conflict", format!("several migrations begin with {id}"), "write more digits"))
        }
    }
}

fn migration(client: &Client, command: MigrationCommand, format: Format) -> Result<(), Failure> {
    let wish = |id: &str, wish: Wish, sure: bool| -> Result<(), Failure> {
        let id = find(client, id)?;
        let body = json!({ "wish": wish, "other_side_is_off": sure });
        let migration: Value = client.post(&format!("/v1/migrations/{id}/wish"), &body)?;
        said(format, &migration, &format!("asked; `novaferry migration watch {}` follows it", short(&id)));
        Ok(())
    };
    match command {
        MigrationCommand::List { limit } => {
            let all = client.list("/v1/migrations", usize::try_from(limit).ok())?;
            list(format, &all, &["ID", "VM", "FROM", "TO", "STATE", "BEGUN"], |one| {
                let id = text(&one["id"]);
                let mut row = vec![short(&id).to_owned()];
                row.extend(
                    ["vm", "source", "destination", "state", "created"].map(|field| text(&one[field])),
                );
                row
            });
            Ok(())
        }
        MigrationCommand::Show { id } => {
            let migration: Value = client.get(&format!("/v1/migrations/{}", find(client, &id)?))?;
            match format {
                Format::Json => output::json(&migration),
                Format::Text => {
                    let pretty = serde_json::to_string_pretty(&migration).unwrap_or_default();
                    pretty.lines().for_each(|line| output::line(&plain(line)));
                }
            }
            Ok(())
        }
        MigrationCommand::Watch { id } => follow(client, &find(client, &id)?, format),
        MigrationCommand::Cancel { id } => wish(&id, Wish::Cancel, false),
        MigrationCommand::Finalise { id } => wish(&id, Wish::Finalise, false),
        MigrationCommand::Rollback { id, discard_destination: _ } => wish(&id, Wish::TakeBack, false),
        MigrationCommand::Resolve { id, keep, other_side_is_off } => {
            let keep = match keep {
                Keep::Source => Wish::KeepSource,
                Keep::Destination => Wish::KeepDestination,
            };
            wish(&id, keep, other_side_is_off)
        }
    }
}

fn token(client: &Client, command: TokenCommand, format: Format) -> Result<(), Failure> {
    match command {
        TokenCommand::Make { name, role, expires } => {
            let wanted = json!({ "name": name, "role": role, "expires_seconds": expires });
            let made: Value = client.post("/v1/tokens", &wanted)?;
            said(format, &made, &text(&made["token"]));
        }
        TokenCommand::List => {
            let tokens = client.list("/v1/tokens", None)?;
            list(format, &tokens, &["ID", "NAME", "ROLE", "MADE", "EXPIRES", "REVOKED"], |token| {
                ["id", "name", "role", "made", "expires", "revoked"].map(|field| text(&token[field])).to_vec()
            });
        }
        TokenCommand::Revoke { id } => {
            let plain_id = id.bytes().all(|c| c.is_ascii_alphanumeric());
            if !plain_id {
                return Err(Failure::new(
                    "usage",
                    "this is no token's id",
                    "`novaferry token list` shows them",
                )
                .usage());
            }
            client.post::<Value>(&format!("/v1/tokens/{id}/revoke"), &json!({}))?;
            said(format, &json!({ "revoked": id }), &format!("token {id} is no good any more"));
        }
    }
    Ok(())
}

fn audit(client: &Client, command: AuditCommand, format: Format) -> Result<(), Failure> {
    match command {
        AuditCommand::List { after, limit } => {
            let entries =
                client.list_after("/v1/audit", Some(after.to_string()), usize::try_from(limit).ok())?;
            let head = ["NUMBER", "TIME", "WHO", "WHAT", "TO WHAT", "OUTCOME", "DETAIL"];
            list(format, &entries, &head, |entry| {
                let fields = ["number", "at", "actor", "action", "subject", "outcome", "detail"];
                fields.map(|field| text(&entry[field])).to_vec()
            });
        }
        AuditCommand::Check => {
            let whole: Value = client.get("/v1/audit/check")?;
            let words = format!(
                "{} entries, none changed or left out; the last hash is {}",
                whole["entries"],
                text(&whole["hash"])
            );
            said(format, &whole, &words);
        }
    }
    Ok(())
}
