//! Carries plans out: begins each step when its turn comes, and follows its migration to the end.
//!
//! What it does next follows from the database alone, so a coordinator that was killed at any moment goes on where it
//! was: a step and its migration are begun in one transaction, under an id that the plan chose.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use model::access::Action;
use model::audit::Deed;
use model::migration::Wish;
use model::plan::{Plan, State, StepState};
use planner::order::{AT_ONCE, Move, Running};
use store::{StoreError, StoreErrorKind};
use tokio_util::sync::CancellationToken;

use super::migration;
use crate::fleet::{Fleet, now};

/// It looks again after so long even when nobody called: links open and hosts come back.
const LOOK: Duration = Duration::from_secs(2);

/// Carries plans out until it is to stop.
pub(crate) async fn run(fleet: Arc<Fleet>, stop: CancellationToken) {
    let mut wanted = fleet.wanted();
    while !stop.is_cancelled() {
        // What is told from here on wakes it up again.
        wanted.mark_unchanged();
        if let Err(error) = round(&fleet).await {
            tracing::error!(%error, "plans cannot be carried out now");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            _ = wanted.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// One look at all plans that run.
async fn round(fleet: &Fleet) -> Result<(), StoreError> {
    let plans = fleet.store.plans_that_run().await?;
    if plans.is_empty() {
        return Ok(());
    }
    let mut followed = Vec::with_capacity(plans.len());
    for plan in plans {
        followed.push(follow(fleet, plan).await?);
    }
    // All plans together stay within the limits of hosts and links.
    let mut running = Running::default();
    let open = fleet.store.open_migrations().await?;
    // What waits for its cut-over with its disks in step keeps nobody from copying.
    let parked: BTreeSet<_> = open.iter().filter(|one| one.is_parked()).map(|one| one.id.as_str()).collect();
    for step in open.iter().filter(|one| !one.options.dry_run && !parked.contains(one.id.as_str())) {
        running.begin(&Move {
            source: step.source.clone(),
            destination: step.destination.clone(),
            link: step.link.clone(),
            link_most: None,
            duration_ms: 0,
        });
    }
    for plan in followed.iter().filter(|plan| plan.state == State::Running) {
        begin(fleet, plan, &parked, &mut running).await?;
    }
    Ok(())
}

/// Takes in how a plan's migrations stand.
async fn follow(fleet: &Fleet, plan: Plan) -> Result<Plan, StoreError> {
    let mut stands = Vec::new();
    for step in plan.steps.iter().filter(|step| step.state == StepState::Begun) {
        let migration = fleet.store.migration(&step.migration).await?;
        if plan.state == State::Stopping && !migration.state.is_final() && migration.wish == Wish::Arrive {
            undo(fleet, &plan, &migration.id).await?;
        }
        stands.push((migration.id, migration.state, migration.refusal));
    }
    let updated = fleet.store.update_plan(&plan.id, now(), |plan| {
        for step in &mut plan.steps {
            if let Some((_, state, refusal)) = stands.iter().find(|(id, ..)| *id == step.migration) {
                step.follow(*state, refusal.as_deref());
            }
        }
        plan.settle();
    });
    let updated = updated.await?;
    if let Some(plan) = updated.as_ref().filter(|plan| plan.state.is_final()) {
        tracing::info!(plan = plan.id, state = plan.state.as_str(), "a plan has ended");
    }
    Ok(updated.unwrap_or(plan))
}

/// A cancelled plan takes back what it began, as far as that is possible.
async fn undo(fleet: &Fleet, plan: &Plan, migration: &str) -> Result<(), StoreError> {
    let deed = deed(plan, migration, format!("of cancelled plan {}", plan.id));
    let change = |migration: &mut model::migration::Migration| {
        migration.wish(Wish::Cancel).map_err(|error| error.to_string())
    };
    match fleet.store.change_migration(migration, deed, change).await {
        Ok(_) => fleet.tell(),
        // Too late: it arrives.
        Err(error) if error.kind() == StoreErrorKind::Conflict => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

async fn begin(
    fleet: &Fleet,
    plan: &Plan,
    parked: &BTreeSet<&str>,
    running: &mut Running,
) -> Result<(), StoreError> {
    let at_once = plan.wanted.at_once.map_or(AT_ONCE, |most| usize::try_from(most).unwrap_or(AT_ONCE));
    let begun = plan.steps.iter().filter(|step| step.state == StepState::Begun);
    let mut own = begun.filter(|step| !parked.contains(step.migration.as_str())).count();
    let hosts = fleet.store.roster().await?;
    let links = fleet.store.links().await?;
    for (nth, step) in plan.steps.iter().enumerate().filter(|(_, step)| step.state == StepState::Waiting) {
        let Some(destination) = step.destination.clone() else { continue };
        let link = step.link.as_ref().and_then(|link| links.iter().find(|one| one.link.name == *link));
        let one = Move {
            source: step.source.clone(),
            destination,
            link: step.link.clone(),
            link_most: link.and_then(|one| one.link.most_migrations),
            duration_ms: 0,
        };
        // A rehearsal takes nobody's place.
        let rehearsal = plan.wanted.options.dry_run;
        if own >= at_once || !(rehearsal || running.admits(&one, usize::MAX)) {
            continue;
        }
        let source = hosts.iter().find(|host| host.name == step.source);
        let vms = source.and_then(|host| host.observed.as_ref()).map(|observed| &observed.vms);
        let vm = vms.and_then(|vms| vms.iter().find(|vm| vm.id == step.vm));
        let price = link.map(|one| one.link.price.clone()).unwrap_or_default();
        let Some(migration) = migration(plan, step, vm, price, now()) else { continue };
        let what = format!(
            "{} from {} to {}, plan {}",
            migration.id, migration.source, migration.destination, plan.id
        );
        match fleet.store.begin_step(&plan.id, nth, &migration, deed(plan, &step.vm, what)).await {
            Ok(true) => {
                own += 1;
                if !rehearsal {
                    running.begin(&one);
                }
                tracing::info!(
                    plan = plan.id,
                    vm = step.vm,
                    migration = migration.id,
                    "a step of a plan begins"
                );
                fleet.tell();
            }
            Ok(false) => return Ok(()),
            Err(error) if error.kind() == StoreErrorKind::Conflict => fail(fleet, plan, nth, &error).await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A step that cannot begin.
async fn fail(fleet: &Fleet, plan: &Plan, nth: usize, error: &StoreError) -> Result<(), StoreError> {
    let why = error.to_string();
    tracing::warn!(plan = plan.id, nth, why, "a step of a plan cannot begin");
    let failed = fleet.store.update_plan(&plan.id, now(), |plan| {
        if let Some(step) = plan.steps.get_mut(nth).filter(|step| step.state == StepState::Waiting) {
            step.state = StepState::Failed;
            step.why = Some(why);
        }
        plan.settle();
    });
    failed.await.map(drop)
}

fn deed(plan: &Plan, subject: &str, detail: String) -> Deed {
    Deed {
        at: now(),
        actor: plan.by.clone(),
        action: Action::Migrate.as_str().to_owned(),
        subject: subject.chars().take(256).collect(),
        outcome: "done".to_owned(),
        detail,
    }
}
