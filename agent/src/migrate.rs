//! `migrate`: asks the daemon to move a VM, and follows until it is over.
//!
//! The daemon does the work: whoever follows may go away at any time, and the migration goes on.

mod outcome;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::migrate::status::Live;
use serde::Serialize;
use tokio::signal::unix::SignalKind;
use tokio::time::{Instant, MissedTickBehavior};

use crate::control::client::ask;
use crate::control::migration::{Migrate, Shown};
use crate::control::{Answer, ControlError, Request};
use crate::failure::Failure;
use crate::output::migration::{self as text, short};
use crate::output::{self, Format, progress};
use crate::signals;
use outcome::{Followed, Verdict};

/// How often the daemon is asked.
const LOOK: Duration = Duration::from_millis(250);
/// Looks between two signs of progress.
const SHOW_EVERY: u32 = 4;
/// Looks between two lines in a log, unless the state changes.
const LOG_EVERY: u32 = 40;
/// How long a daemon that does not answer is waited for: it may be restarting.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The migration.
    pub migrate: Migrate,
    /// Come back as soon as it has begun.
    pub detach: bool,
    /// The daemon's control socket.
    pub socket: PathBuf,
    /// For whom to print.
    pub output: Format,
}

/// Moves a VM.
///
/// # Errors
/// When the daemon refuses, the guest does not run at the destination in the end, or somebody interrupts.
pub async fn run(settings: Settings) -> Result<(), Failure> {
    let Settings { migrate, detach, socket, output } = settings;
    // Before anything begins: a signal must not leave it unsaid that a migration goes on.
    let mut terminate = signals::listen(SignalKind::terminate())?;
    let mut interrupt = signals::listen(SignalKind::interrupt())?;
    let (dry_run, hold) = (migrate.dry_run, migrate.hold);
    let answer = ask(&socket, &Request::Migrate(Box::new(migrate))).await?;
    let id = match &answer {
        Answer::Migrating(id) => id.clone(),
        Answer::Error(what) => return Err(ControlError::Refused(what.clone()).into()),
        _ => return Err(misunderstood()),
    };
    match output {
        Format::Json => output::json(&answer),
        Format::Text if detach => output::line(&format!(
            "{id} has begun; `novaferry-agent migration status {}` shows it",
            short(&id)
        )),
        Format::Text => {}
    }
    if detach {
        return Ok(());
    }
    let shown = tokio::select! {
        shown = follow(&socket, &id, Followed { dry_run, hold }, output) => shown?,
        _ = terminate.recv() => return Err(left(&id)),
        _ = interrupt.recv() => return Err(left(&id)),
    };
    let (shown, verdict) = shown;
    if output == Format::Json {
        output::json(&Answer::Migration(Box::new(shown.clone())));
    }
    if output == Format::Text {
        for finding in &shown.status.findings {
            output::line(&text::finding(finding));
        }
    }
    let said = verdict?;
    if output == Format::Text {
        output::line(&said);
    }
    Ok(())
}

/// Somebody does not want to watch any more.
fn left(id: &str) -> Failure {
    let short = short(id);
    Failure::new(
        "detached",
        format!("not watched any more: migration {id} goes on"),
        format!(
            "`novaferry-agent migration status {short}` shows it, `novaferry-agent migration cancel {short}` ends it"
        ),
    )
    .detached()
}

fn misunderstood() -> Failure {
    Failure::new(
        "control",
        "the daemon's answer is not one to what was asked",
        "use the same release of the daemon and the command",
    )
}

/// A sign of progress for programs.
#[derive(Debug, Serialize)]
struct Step<'a> {
    migration: &'a str,
    state: &'a str,
    seconds: u64,
    #[serde(flatten)]
    live: &'a Live,
}

#[derive(Debug, Serialize)]
struct Object<'a> {
    progress: Step<'a>,
}

/// Shows how a migration goes until it is over; gives its last look and what it came to.
async fn follow(
    socket: &Path,
    id: &str,
    followed: Followed,
    format: Format,
) -> Result<(Shown, Verdict), Failure> {
    let request = Request::Migration { id: id.to_owned() };
    let terminal = format == Format::Text && std::io::stderr().is_terminal();
    let (start, mut heard) = (Instant::now(), Instant::now());
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut looks, mut last, mut settled) = (0_u32, String::new(), 0_u32);
    loop {
        ticks.tick().await;
        let shown = match ask(socket, &request).await {
            Ok(Answer::Migration(shown)) => *shown,
            // A daemon that is stopping, or starts again and has not read its records.
            Ok(Answer::Error(what)) if heard.elapsed() > PATIENCE => {
                return Err(ControlError::Refused(what).into());
            }
            Ok(Answer::Error(_)) => continue,
            Ok(_) => return Err(misunderstood()),
            Err(error) if heard.elapsed() > PATIENCE => return Err(error.into()),
            Err(_) => continue,
        };
        heard = Instant::now();
        let record = &shown.status.record;
        let state = record.state_name().to_owned();
        if let Some(verdict) = outcome::of(&shown, followed, settled) {
            if terminal {
                progress::rewrite("");
            }
            return Ok((shown, verdict));
        }
        settled = if outcome::is_settled(record) { settled.saturating_add(1) } else { 0 };
        let line = || {
            let line = format!("{}  {}", text::state(&record.role), text::progress(&shown.status.live));
            line.trim_end().to_owned()
        };
        let seconds = start.elapsed().as_secs();
        match format {
            Format::Json if state != last || looks.is_multiple_of(SHOW_EVERY) => {
                let step = Step { migration: id, state: &state, seconds, live: &shown.status.live };
                output::json(&Object { progress: step });
            }
            Format::Text if terminal => progress::rewrite(&line()),
            Format::Text if state != last || looks.is_multiple_of(LOG_EVERY) => tracing::info!("{}", line()),
            _ => {}
        }
        last = state;
        looks = looks.wrapping_add(1);
    }
}
