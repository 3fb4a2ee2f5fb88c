//! The client's side of the control socket: asks, and prints the answer.

use std::path::Path;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{Answer, ControlError, Listed, MAX_ANSWER, Request, TIMEOUT};
use crate::failure::Failure;
use crate::output::{self, Format, bytes, duration, migration};

/// Asks and prints the answer.
///
/// # Errors
/// [`ControlError`] as a failure.
pub async fn run(socket: &Path, request: &Request, format: Format) -> Result<(), Failure> {
    let answer = ask(socket, request).await?;
    match (format, &answer) {
        (_, Answer::Error(what)) => return Err(ControlError::Refused(what.clone()).into()),
        (Format::Json, answer) => output::json(answer),
        (Format::Text, Answer::Sessions(sessions)) if sessions.is_empty() => output::line("no sessions"),
        (Format::Text, Answer::Sessions(sessions)) => {
            for session in sessions {
                output::line(&text(session));
            }
        }
        (Format::Text, Answer::Cancelled(session)) => output::line(&format!("{session} is being cancelled")),
        (Format::Text, Answer::Vms(vms)) if vms.is_empty() => output::line("no virtual machines"),
        (Format::Text, Answer::Vms(vms)) => {
            for vm in vms {
                output::line(&migration::vm(vm));
            }
        }
        (Format::Text, Answer::Migrations(migrations)) if migrations.is_empty() => {
            output::line("no migrations")
        }
        (Format::Text, Answer::Migrations(migrations)) => {
            for one in migrations {
                output::line(&migration::listed(one));
            }
        }
        (Format::Text, Answer::Migration(shown)) => output::line(&migration::shown(shown)),
        (Format::Text, Answer::Migrating(id)) => output::line(&format!("{id} has begun")),
        (Format::Text, Answer::Asked(id)) => output::line(&format!(
            "{id} was asked; `novaferry-agent migration status {}` shows what came of it",
            migration::short(id)
        )),
    }
    Ok(())
}

/// Sends one request and reads its answer.
///
/// # Errors
/// [`ControlError::Talk`].
pub async fn ask(socket: &Path, request: &Request) -> Result<Answer, ControlError> {
    let talk = |source: std::io::Error| ControlError::Talk { path: socket.to_owned(), source };
    let work = async {
        let (reader, mut writer) = UnixStream::connect(socket).await?.into_split();
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        writer.write_all(&line).await?;
        let mut answer = Vec::new();
        BufReader::new(reader.take(MAX_ANSWER)).read_until(b'\n', &mut answer).await?;
        Ok(serde_json::from_slice(&answer)?)
    };
    match timeout(TIMEOUT, work).await {
        Ok(answer) => answer.map_err(talk),
        Err(late) => Err(talk(late.into())),
    }
}

fn text(session: &Listed) -> String {
    let percent = u128::from(session.settled_bytes) * 100 / u128::from(session.logical_bytes.max(1));
    format!(
        "{}  {} {} with {}  {percent} % of {}  for {}",
        session.session,
        session.direction,
        session.volume,
        session.peer,
        bytes(session.logical_bytes),
        duration(std::time::Duration::from_secs(session.seconds)),
    )
}
