//! `/multicloud/migrations`.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use model::Timestamp;
use model::access::Action;
use model::host::Host;
use model::migration::{Migration, Mode, Options, State as Stands};
use model::plan::{Plan, Step as PlanStep, StepState, Wanted};
use planner::report::Took;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{Page, StoreErrorKind};

use super::not_implemented;
use crate::api::caller::Caller;
use crate::api::problem::Problem;
use crate::fleet::{Fleet, now};
use crate::novacron::body::Lenient;
use crate::novacron::duration::{Bare, milliseconds};
use crate::novacron::jobs::name;
use crate::novacron::words::{Status, error, fitting, mode, progress, time};
use crate::plans::draft;
use crate::{find, moves};

/// Migrations that are listed, unless asked otherwise, and at most.
const PAGE: u32 = 50;
const MOST_PAGE: u32 = 500;
/// Plans in which a migration is looked for that never began.
const PLANS: u32 = 200;

#[derive(Debug, Deserialize)]
pub(in crate::novacron) struct Request {
    #[serde(default)]
    vm_id: String,
    source_provider_id: Option<String>,
    #[serde(default)]
    destination_provider_id: String,
    destination_region: Option<String>,
    #[serde(default)]
    destination_config: Value,
    #[serde(default)]
    delete_source: bool,
    #[serde(default)]
    options: Value,
    scheduled_time: Option<Timestamp>,
    #[serde(default)]
    max_downtime: Value,
}

#[derive(Debug, Serialize)]
pub(in crate::novacron) struct Shown {
    migration_id: String,
    vm_id: String,
    source_provider_id: String,
    destination_provider_id: String,
    status: &'static str,
    progress: u64,
    steps: Vec<Step>,
    start_time: String,
    end_time: String,
    estimated_completion: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination_vm_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completion_message: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<Metrics>,
}

/// A step. When it began is not kept here.
#[derive(Debug, Serialize)]
struct Step {
    name: &'static str,
    status: &'static str,
    start_time: String,
    end_time: String,
    progress: u64,
}

/// Durations in nanoseconds, as Go writes them; nought for what was not measured.
#[derive(Debug, Serialize)]
struct Metrics {
    data_transferred: u64,
    transfer_rate: f64,
    total_downtime: u64,
    network_latency: u64,
    compression_ratio: f64,
    verification_time: u64,
}

/// NovaCron's steps, by what this coordinator's states tell of them.
fn steps(migration: &Migration) -> Vec<Step> {
    let now = match migration.state {
        Stands::Queued => return Vec::new(),
        Stands::Moving => 1,
        Stands::CuttingOver | Stands::InDoubt => 2,
        Stands::Proving => 3,
        Stands::Held => 4,
        Stands::Completed | Stands::Rehearsed => 5,
        // How far it came is not known any more.
        _ => 0,
    };
    let names =
        ["Pre-migration Validation", "VM Export", "VM Import", "Post-migration Validation", "Source Cleanup"];
    let ended = Status::of(migration);
    let failed = matches!(ended, Status::Failed | Status::Cancelled | Status::RolledBack);
    let known = if failed { 1 } else { names.len().min(now + 1) };
    names
        .into_iter()
        .take(known)
        .enumerate()
        .map(move |(nth, name)| {
            let (status, progress) = match nth {
                _ if failed => ("failed", 0),
                done if done < now => ("completed", 100),
                4 if migration.options.hold => ("skipped", 0),
                _ => ("in_progress", 0),
            };
            Step { name, status, start_time: time(None), end_time: time(None), progress }
        })
        .collect()
}

fn site(hosts: &[Host], host: &model::Name) -> String {
    hosts.iter().find(|one| one.name == *host).map_or_else(|| host.to_string(), |one| one.site.to_string())
}

impl Shown {
    fn of(migration: &Migration, hosts: &[Host]) -> Self {
        let status = Status::of(migration);
        let arrived = status == Status::Completed && migration.state != Stands::Rehearsed;
        let ended = migration.state.is_final() || arrived;
        let expected = migration.estimate.as_ref().filter(|_| !ended).and_then(|estimate| {
            migration.created.checked_add(std::time::Duration::from_millis(estimate.duration_ms)).ok()
        });
        let metrics = Took::of(migration).map(|took| Metrics {
            data_transferred: took.bytes,
            transfer_rate: rate(took.bytes, took.duration_ms),
            total_downtime: took.downtime_ms.unwrap_or(0).saturating_mul(1_000_000),
            network_latency: 0,
            compression_ratio: 0.0,
            verification_time: 0,
        });
        Self {
            migration_id: migration.id.clone(),
            vm_id: migration.vm.clone(),
            source_provider_id: site(hosts, &migration.source),
            destination_provider_id: site(hosts, &migration.destination),
            status: status.multicloud(),
            progress: progress(migration),
            steps: steps(migration),
            start_time: time(Some(migration.created)),
            end_time: time(Some(migration.changed).filter(|_| ended)),
            estimated_completion: time(expected),
            destination_vm_id: arrived.then(|| migration.vm.clone()),
            error_message: error(migration),
            completion_message: arrived.then_some("Migration completed successfully"),
            metrics,
        }
    }

    /// Of a plan's step that has not begun, or never will.
    fn waiting(plan: &Plan, step: &PlanStep, hosts: &[Host]) -> Self {
        let status = match step.state {
            StepState::Failed | StepState::Blocked => Status::Failed,
            StepState::Skipped => Status::Cancelled,
            _ => Status::Pending,
        };
        let to = step.destination.as_ref().map_or_else(String::new, |host| site(hosts, host));
        Self {
            migration_id: step.migration.clone(),
            vm_id: step.vm.clone(),
            source_provider_id: site(hosts, &step.source),
            destination_provider_id: to,
            status: status.multicloud(),
            progress: 0,
            steps: Vec::new(),
            start_time: time(Some(plan.created)),
            end_time: time(Some(plan.changed).filter(|_| status != Status::Pending)),
            estimated_completion: time(None),
            destination_vm_id: None,
            error_message: step.why.clone(),
            completion_message: None,
            metrics: None,
        }
    }
}

/// Bytes a second.
#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn rate(bytes: u64, milliseconds: u64) -> f64 {
    if milliseconds == 0 { 0.0 } else { bytes as f64 * 1000.0 / milliseconds as f64 }
}

pub(in crate::novacron) async fn begin(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Lenient(request): Lenient<Request>,
) -> Result<(StatusCode, Json<Shown>), Problem> {
    caller.may(&fleet, Action::Migrate, &request.vm_id).await?;
    if request.vm_id.is_empty() || request.destination_provider_id.is_empty() {
        return Err(Problem::invalid("vm_id and destination_provider_id are required"));
    }
    if request.scheduled_time.is_some_and(|at| at > now()) {
        return Err(not_implemented("scheduled_time is not implemented here; ask when it is to begin"));
    }
    if request.destination_config.as_object().is_some_and(|config| !config.is_empty()) {
        return Err(not_implemented("destination_config is not implemented here: a VM arrives as it is"));
    }
    let hosts = fleet.store.hosts().await?;
    let from = request.source_provider_id.filter(|from| !from.is_empty());
    let there: Vec<&Host> =
        hosts.iter().filter(|host| from.as_ref().is_none_or(|from| host.site.as_str() == from)).collect();
    let (source, vm) = find::vm(&there, &request.vm_id, None)?;
    let provider = name(&request.destination_provider_id)?;
    let region = request.destination_region.filter(|region| !region.is_empty());
    let to = region.map(|region| name(&region)).transpose()?.unwrap_or_else(|| provider.clone());
    let inside = |host: &Host| host.site == provider && (host.name == to || host.site == to);
    if !hosts.iter().any(|host| host.revoked.is_none() && inside(host)) {
        return Err(Problem::not_found(format!("provider {provider} has no region and no host {to}")));
    }
    let words = ["migration_type", "type", "mode"].iter().find_map(|key| request.options[key].as_str());
    let mode = words.map(mode).transpose()?.unwrap_or(Mode::Live);
    let mut max_downtime_ms = milliseconds(&request.max_downtime, Bare::Nanoseconds, "max_downtime")?;
    if max_downtime_ms.is_none() {
        let seconds = request.options["max_downtime_seconds"].as_u64().filter(|seconds| *seconds > 0);
        max_downtime_ms = seconds.map(|seconds| seconds.saturating_mul(1000));
    }
    let options = Options {
        mode: fitting(mode, vm.state == "running"),
        max_downtime_ms,
        hold: !request.delete_source,
        ..Options::default()
    };
    let wanted = Wanted {
        vms: vec![vm.id.clone()],
        to: Some(to),
        from: Some(source.clone()),
        options,
        ..Wanted::default()
    };
    let plan = draft(&fleet, wanted, caller.actor()).await?;
    if !plan.blocked.is_empty() {
        return Err(Problem::conflict(plan.blocked.join("; ")));
    }
    let (plan, ()) = moves::keep(&fleet, &caller, plan, true, &vm.id, |_| Ok(())).await?;
    let step = plan.steps.first().ok_or_else(|| Problem::conflict("there is nothing to move"))?;
    Ok((StatusCode::CREATED, Json(Shown::waiting(&plan, step, &hosts))))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::novacron) struct Filter {
    status: String,
    vm_id: String,
    limit: Option<u32>,
}

pub(in crate::novacron) async fn list(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    filter: Result<Query<Filter>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    caller.may(&fleet, Action::Look, "").await?;
    let Query(Filter { status, vm_id, limit }) = filter?;
    let most = limit.unwrap_or(PAGE);
    if !(1..=MOST_PAGE).contains(&most) {
        return Err(Problem::invalid(format!("limit must be 1 to {MOST_PAGE}")));
    }
    let status = if status.is_empty() { None } else { Some(Status::parse(&status)?) };
    let hosts = fleet.store.hosts().await?;
    let mut shown = Vec::new();
    for plan in fleet.store.plans_that_run().await?.iter().filter(|plan| !plan.wanted.options.dry_run) {
        let waiting = plan.steps.iter().filter(|step| step.state == StepState::Waiting);
        shown.extend(waiting.map(|step| Shown::waiting(plan, step, &hosts)));
    }
    let migrations = fleet.store.migrations(&Page { before: None, most }).await?;
    let moves = migrations.iter().filter(|one| !one.options.dry_run);
    shown.extend(moves.map(|one| Shown::of(one, &hosts)));
    shown.retain(|one| {
        status.is_none_or(|status| one.status == status.multicloud())
            && (vm_id.is_empty() || one.vm_id == vm_id)
    });
    shown.truncate(usize::try_from(most).unwrap_or(usize::MAX));
    Ok(Json(json!({ "count": shown.len(), "migrations": shown })))
}

pub(in crate::novacron) async fn show(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Shown>, Problem> {
    let Path(id) = id?;
    caller.may(&fleet, Action::Look, &id).await?;
    let hosts = fleet.store.hosts().await?;
    match fleet.store.migration(&id).await {
        Ok(migration) => return Ok(Json(Shown::of(&migration, &hosts))),
        Err(error) if error.kind() == StoreErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    // Its turn has not come, or never came.
    let mut plans = fleet.store.plans_that_run().await?;
    plans.extend(fleet.store.plans(&Page { before: None, most: PLANS }).await?);
    let found = plans.iter().find_map(|plan| {
        let step = plan.steps.iter().find(|step| step.migration == id)?;
        Some(Shown::waiting(plan, step, &hosts))
    });
    found.map(Json).ok_or_else(|| Problem::not_found("Migration not found"))
}
