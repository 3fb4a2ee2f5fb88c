//! `token` and `audit`: who may do what, and who did it.

use clap::Subcommand;
use model::access::Role;
use serde_json::{Value, json};

use super::show::{list, said, text};
use super::units::seconds;
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
    List,
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
    },
    /// Checks that no entry was changed or left out.
    Check,
}

pub(super) fn token(client: &Client, command: TokenCommand, format: Format) -> Result<(), Failure> {
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

pub(super) fn audit(client: &Client, command: AuditCommand, format: Format) -> Result<(), Failure> {
    match command {
        AuditCommand::List { after, limit } => {
            let most = usize::try_from(limit).ok();
            let entries = client.list_after("/v1/audit", Some(after.to_string()), most)?;
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
