//! Following a migration until nothing happens any more without a word.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use model::migration::{Migration, State};
use model::plan::{Plan, State as PlanState, Step, StepState};
use serde_json::Value;

use crate::cli::units::{bytes, span, speed};
use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::output::{self, Format, plain};

/// How often the coordinator is asked.
const LOOK: Duration = Duration::from_millis(300);
/// How long one that does not answer is waited for: it may be restarting.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long it may be queued before it is asked why.
const SOON: Duration = Duration::from_secs(2);

/// What a migration that is queued waits for, for people.
pub(crate) fn waits_for(client: &Client, migration: &Migration) -> Result<Option<String>, Failure> {
    if migration.state != State::Queued {
        return Ok(None);
    }
    match client.get::<Value>(&format!("/v1/migrations/{}/waits", migration.id)) {
        Ok(waits) => Ok(waits["for"].as_str().map(plain)),
        // An older coordinator does not say.
        Err(failure) if failure.code == "not-found" => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Follows it, and says how it went.
pub(crate) fn follow(client: &Client, id: &str, format: Format) -> Result<(), Failure> {
    let path = format!("/v1/migrations/{id}");
    let terminal = format == Format::Text && std::io::stderr().is_terminal();
    let (mut heard, mut last) = (Instant::now(), None);
    let (began, mut waited) = (Instant::now(), None);
    loop {
        match client.get::<Migration>(&path) {
            Ok(migration) => {
                heard = Instant::now();
                let stands = (migration.state, migration.is_parked());
                // Most begin in a moment.
                if migration.state == State::Queued && format == Format::Text && began.elapsed() > SOON {
                    // That it cannot be asked is what the next look says.
                    let waits = waits_for(client, &migration).unwrap_or_default();
                    if let Some(what) = waits.as_ref().filter(|_| waits != waited) {
                        if terminal {
                            drop(write!(std::io::stderr(), "\r\x1b[K"));
                        }
                        output::line(&format!("{}  waits for {what}", short(id)));
                    }
                    waited = waits;
                }
                if terminal {
                    drop(write!(std::io::stderr(), "\r\x1b[K{}", progress(&migration)));
                } else if last != Some(stands) {
                    match format {
                        Format::Text => output::line(&progress(&migration)),
                        _ => output::value(format, &migration),
                    }
                }
                last = Some(stands);
                if let Some(end) = verdict(&migration) {
                    if terminal {
                        drop(writeln!(std::io::stderr()));
                    }
                    return end.map(|said| {
                        if format == Format::Text {
                            output::line(&said);
                        }
                    });
                }
            }
            Err(failure) if heard.elapsed() > PATIENCE || failure.code != "unreachable" => {
                return Err(failure);
            }
            Err(_) => {}
        }
        std::thread::sleep(LOOK);
    }
}

/// Follows a plan to its end, or until its steps have begun; gives whether they have.
pub(crate) fn follow_plan(
    client: &Client,
    id: &str,
    format: Format,
    until_begun: bool,
) -> Result<bool, Failure> {
    let path = format!("/v1/plans/{id}");
    let (mut heard, mut last) = (Instant::now(), None);
    loop {
        match client.get::<Plan>(&path) {
            Ok(plan) => {
                heard = Instant::now();
                let begun = |step: &Step| !matches!(step.state, StepState::Waiting | StepState::Blocked);
                if until_begun && plan.steps.iter().all(begun) {
                    return Ok(plan.steps.iter().any(|step| step.state != StepState::Skipped));
                }
                let states: Vec<_> = plan.steps.iter().map(|step| step.state).collect();
                if !until_begun && last.as_ref() != Some(&states) {
                    match format {
                        Format::Text => output::line(&steps(&plan)),
                        _ => output::value(format, &plan),
                    }
                    last = Some(states);
                }
                if plan.state.is_final() {
                    return end(&plan, format).map(|()| false);
                }
            }
            Err(failure) if heard.elapsed() > PATIENCE || failure.code != "unreachable" => {
                return Err(failure);
            }
            Err(_) => {}
        }
        std::thread::sleep(LOOK);
    }
}

/// How many steps stand where.
fn steps(plan: &Plan) -> String {
    let count = |state| plan.steps.iter().filter(|step| step.state == state).count();
    format!(
        "{}  {}  {} wait, {} move, {} done, {} failed, {} skipped",
        short(&plan.id),
        plan.state.as_str(),
        count(StepState::Waiting),
        count(StepState::Begun),
        count(StepState::Done),
        count(StepState::Failed),
        count(StepState::Skipped)
    )
}

fn end(plan: &Plan, format: Format) -> Result<(), Failure> {
    let arrived = plan.steps.iter().filter(|step| step.state == StepState::Done).count();
    let all = plan.steps.len();
    if plan.state == PlanState::Completed {
        if format == Format::Text {
            let words =
                if plan.wanted.options.dry_run { "can move; nothing was changed" } else { "have arrived" };
            output::line(&format!("done: {arrived} of {all} VMs {words}"));
        }
        return Ok(());
    }
    let why = plan.steps.iter().filter_map(|step| Some(format!("{}: {}", step.name, step.why.as_ref()?)));
    let message = format!("{arrived} of {all} VMs have arrived; {}", why.collect::<Vec<_>>().join("; "));
    let advice = "`novaferry migration list` shows each; correct the cause and migrate the others again";
    Err(Failure::new("plan-failed", plain(&message), advice))
}

/// Whole percents of a part; none of nothing.
pub(crate) fn percent(done: u64, all: u64) -> Option<u64> {
    Some(
        u64::try_from(u128::from(done) * 100 / u128::from(std::num::NonZeroU64::new(all)?.get()))
            .unwrap_or(100),
    )
}

/// Where it stands, as one line.
fn progress(migration: &Migration) -> String {
    let mut text = format!("{}  {}", short(&migration.id), migration.state.as_str());
    let Some(end) = &migration.at_source else { return text };
    text.push_str(&format!(": {}", plain(&end.state)));
    if let Some(percent) = percent(end.disk_done, end.disk_total) {
        text.push_str(&format!("  disks {percent} %"));
    }
    if let Some(percent) = percent(end.ram_total.saturating_sub(end.ram_remaining), end.ram_total) {
        text.push_str(&format!("  memory {percent} %"));
    }
    if migration.is_parked() {
        let until = migration
            .options
            .cutover_at
            .map_or_else(|| "it is told to leave".to_owned(), |at| at.to_string());
        text.push_str(&format!("  in step, waits until {until}"));
        return text;
    }
    if !matches!(migration.state, State::Moving | State::CuttingOver) || end.over {
        return text;
    }
    let left = end.disk_total.saturating_sub(end.disk_done).saturating_add(end.ram_remaining);
    if left > 0 {
        text.push_str(&format!("  {} left", bytes(left)));
    }
    if end.rate > 0 {
        text.push_str(&format!("  {}", speed(end.rate)));
    }
    if end.expected_downtime_ms > 0 {
        text.push_str(&format!("  pause {} expected", span(end.expected_downtime_ms)));
    }
    // What the guest writes meanwhile comes on top.
    if let Some(left) = left.saturating_mul(1000).checked_div(end.rate).filter(|left| *left > 0) {
        text.push_str(&format!("  at least {} to go", span(left)));
    }
    text
}

/// The first digits, by which people name it.
pub(crate) fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

/// What it came to, or none while there is something to wait for.
fn verdict(migration: &Migration) -> Option<Result<String, Failure>> {
    let Migration { vm, destination, id, .. } = migration;
    let text = |of: &Value| plain(of.as_str().unwrap_or_default());
    let report = migration.at_source.as_ref().map_or(&Value::Null, |progress| &progress.report);
    let why = text(&report["text"]);
    let figures = &report["report"];
    let failed = |code: &str, message: String, advice: &str| Some(Err(Failure::new(code, message, advice)));
    // An operator must decide: a program that waits must not take it for undone.
    let doubt = |message: String, advice: &str| {
        Some(Err(Failure::new("migration-in-doubt", message, advice).exits(Exit::Doubt)))
    };
    match migration.state {
        State::Completed | State::Held => {
            let mut said = format!("done: {vm} runs at {destination}");
            if let Some(total) = figures["total_ms"].as_u64() {
                said.push_str(&format!(", after {:.1} s", Duration::from_millis(total).as_secs_f32()));
            }
            if let Some(pause) = figures["downtime_ms"].as_u64() {
                said.push_str(&format!(", with a pause of {pause} ms"));
            }
            if migration.state == State::Held {
                said.push_str(&format!("\nthe old copy is kept until: novaferry migration finalise {id}"));
            }
            Some(Ok(said))
        }
        State::Rehearsed => match blocking(report) {
            None => {
                Some(Ok(format!("nothing stands against moving {vm} to {destination}; nothing was changed")))
            }
            Some(finding) => failed(
                "migration-blocked",
                format!("{vm} cannot be moved so: {finding}"),
                "correct the cause; nothing was changed",
            ),
        },
        State::Refused => {
            let why = migration.refusal.as_deref().unwrap_or_default();
            Some(Err(Failure::told("migration-refused", &format!("{}: {why}", migration.source))))
        }
        State::Undone => failed(
            "migration-undone",
            format!("{vm} stays at {}: {why}", migration.source),
            "correct the cause and migrate again",
        ),
        State::Stopped => failed(
            "migration-stopped",
            format!("{vm} runs nowhere: {why}"),
            "its disks at the source are the truth: look at the log of its QEMU, and start it there again",
        ),
        State::Lost => failed(
            "migration-lost",
            format!("{vm} is lost at {destination}: {why}"),
            "its disks there are what is left",
        ),
        State::InDoubt | State::DestinationLost => doubt(
            format!("{vm}: {}", if why.is_empty() { migration.state.as_str() } else { &why }),
            &format!(
                "see the runbook; then: novaferry migration resolve {id} --keep source|destination --other-side-is-off"
            ),
        ),
        State::Proving if let Some(why) = &migration.unproven => doubt(
            format!("{vm} runs at {destination}, but it is not proven that it arrived whole: {}", plain(why)),
            &format!("see the logs of both hosts; `novaferry migration receipts {id}` shows what was signed"),
        ),
        State::Moving if migration.is_parked() && migration.options.seed => Some(Ok(format!(
            "the disks of {vm} are in step at {destination} and stay so; let it leave: novaferry migration cutover {id}"
        ))),
        State::Queued | State::Moving | State::CuttingOver | State::Proving | State::Undoing => None,
    }
}

/// The first finding that blocks.
fn blocking(report: &Value) -> Option<String> {
    let findings = report["findings"].as_array()?;
    let finding = findings.iter().find(|finding| finding["blocking"] == true)?;
    Some(plain(finding["evidence"].as_str().unwrap_or("a finding blocks")))
}

#[cfg(test)]
mod tests;
