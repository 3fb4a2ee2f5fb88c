//! `token` and `audit`: who may do what, and who did it.

use clap::Subcommand;
use model::access::Role;
use serde_json::{Value, json};

use super::near;
use super::show::{Column, ListArgs, said, text};
use super::units::{seconds, when};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::Format;

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
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
    List(ListArgs),
    /// Makes one no good.
    Revoke {
        /// Its id.
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Lists entries, oldest first.
    List {
        /// Those after this number.
        #[arg(long, default_value_t = 0)]
        after: u64,
        /// At most so many.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
        #[command(flatten)]
        shape: ListArgs,
    },
    /// Checks that no entry was changed or left out.
    Check,
}

const TOKENS: &[Column] = &[
    Column::new("ID", |token| token["id"].clone()),
    Column::new("NAME", |token| token["name"].clone()),
    Column::new("ROLE", |token| token["role"].clone()),
    Column::new("MADE", |token| token["made"].clone()).shown(when),
    Column::new("EXPIRES", |token| token["expires"].clone()).shown(when),
    Column::new("REVOKED", |token| token["revoked"].clone()).shown(when),
];

const ENTRIES: &[Column] = &[
    Column::new("NUMBER", |entry| entry["number"].clone()),
    Column::new("TIME", |entry| entry["at"].clone()),
    Column::new("WHO", |entry| entry["actor"].clone()),
    Column::new("WHAT", |entry| entry["action"].clone()),
    Column::new("SUBJECT", |entry| entry["subject"].clone()),
    Column::new("OUTCOME", |entry| entry["outcome"].clone()),
    Column::new("DETAIL", |entry| entry["detail"].clone()),
];

pub(super) fn token(client: &Client, command: TokenCommand, format: Format) -> Result<(), Failure> {
    match command {
        TokenCommand::Make { name, role, expires } => {
            let wanted = json!({ "name": name, "role": role, "expires_seconds": expires });
            let made: Value = client.post("/v1/tokens", &wanted)?;
            said(format, &made, &text(&made["token"]));
        }
        TokenCommand::List(shape) => {
            shape.print(format, client.list("/v1/tokens", None)?, TOKENS)?;
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
            client
                .post::<Value>(&format!("/v1/tokens/{id}/revoke"), &json!({}))
                .map_err(|failure| near::suggest(client, failure, &[(near::Among::Tokens, &id)]))?;
            said(format, &json!({ "revoked": id }), &format!("token {id} is no good any more"));
        }
    }
    Ok(())
}

pub(super) fn audit(client: &Client, command: AuditCommand, format: Format) -> Result<(), Failure> {
    match command {
        AuditCommand::List { after, limit, shape } => {
            let most = usize::try_from(limit).ok();
            let entries = client.list_after("/v1/audit", Some(after.to_string()), most)?;
            shape.print(format, entries, ENTRIES)?;
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
