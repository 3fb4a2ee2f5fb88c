//! `/migration/jobs` and `/migration/initiate`: a job is a plan, or a migration without one.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use model::access::Action;
use model::host::Host;
use model::migration::{Migration, Options};
use model::plan::{Plan, State as Stands, StepState, Wanted};
use model::{Name, Timestamp};
use serde::{Deserialize, Serialize};
use store::Page;

use super::body::Lenient;
use super::words::{Status, fitting, mode, progress, strategy};
use crate::api::caller::Caller;
use crate::api::problem::Problem;
use crate::fleet::Fleet;
use crate::plans::draft;
use crate::{find, moves};

/// Jobs that are listed, newest first: the list has no pages.
const MOST: u32 = 200;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Initiate {
    source_cluster: Option<String>,
    #[serde(default)]
    target_cluster: String,
    #[serde(default)]
    vm_ids: Vec<String>,
    migration_strategy: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Initiated {
    job_id: String,
    status: &'static str,
    source_cluster: String,
    target_cluster: String,
    vm_count: usize,
    migration_strategy: &'static str,
    created_at: Timestamp,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Job {
    /// NovaCron's interface reads either; so for the two times.
    id: String,
    job_id: String,
    source_cluster: String,
    target_cluster: String,
    status: &'static str,
    progress: u64,
    vm_count: usize,
    migration_strategy: &'static str,
    start_time: Timestamp,
    created_at: Timestamp,
}

/// Sites of hosts.
type Sites = BTreeMap<Name, Name>;

fn sites(hosts: Vec<Host>) -> Sites {
    hosts.into_iter().map(|host| (host.name, host.site)).collect()
}

/// The clusters of some hosts, each once.
fn clusters<'a>(sites: &Sites, hosts: impl Iterator<Item = &'a Name>) -> String {
    let mut names: Vec<&str> = hosts.filter_map(|host| sites.get(host)).map(Name::as_str).collect();
    names.sort_unstable();
    names.dedup();
    names.join(", ")
}

pub(super) async fn initiate(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Lenient(wanted): Lenient<Initiate>,
) -> Result<(StatusCode, Json<Initiated>), Problem> {
    let Initiate { source_cluster, target_cluster, vm_ids, migration_strategy } = wanted;
    let subject = vm_ids.first().cloned().unwrap_or_default();
    caller.may(&fleet, Action::Migrate, &subject).await?;
    if target_cluster.is_empty() || vm_ids.is_empty() {
        return Err(Problem::invalid("targetCluster and vmIds are required"));
    }
    let to: Name = name(&target_cluster)?;
    let from = source_cluster.filter(|from| !from.is_empty()).map(|from| name(&from)).transpose()?;
    let hosts = fleet.store.hosts().await?;
    // A cluster is a site, or one host.
    let own = |host: &&Host| from.as_ref().is_none_or(|from| host.site == *from || host.name == *from);
    let there: Vec<&Host> = hosts.iter().filter(own).collect();
    let found = vm_ids.iter().map(|vm| find::vm(&there, vm, None)).collect::<Result<Vec<_>, _>>()?;
    let asked = mode(migration_strategy.as_deref().unwrap_or("cold"))?;
    let mut modes: Vec<_> = found.iter().map(|(_, vm)| fitting(asked, vm.state == "running")).collect();
    modes.dedup();
    let [mode] = modes[..] else {
        let why = "some of these VMs run and some do not; ask for them in jobs of their own, or live";
        return Err(Problem::conflict(why));
    };
    let host = found[0].0;
    let wanted = Wanted {
        vms: found.iter().map(|(_, vm)| vm.id.clone()).collect(),
        to: Some(to),
        from: found.iter().all(|(other, _)| *other == host).then(|| host.clone()),
        options: Options { mode, ..Options::default() },
        ..Wanted::default()
    };
    let plan = draft(&fleet, wanted, caller.actor()).await?;
    if !plan.blocked.is_empty() {
        return Err(Problem::conflict(plan.blocked.join("; ")));
    }
    let (plan, ()) = moves::keep(&fleet, &caller, plan, true, &subject, |_| Ok(())).await?;
    let source_cluster = match from {
        Some(from) => from.to_string(),
        None => clusters(&sites(hosts), plan.steps.iter().map(|step| &step.source)),
    };
    let initiated = Initiated {
        job_id: plan.id,
        status: Status::Pending.job(),
        source_cluster,
        target_cluster,
        vm_count: plan.steps.len(),
        migration_strategy: strategy(mode),
        created_at: plan.created,
    };
    Ok((StatusCode::ACCEPTED, Json(initiated)))
}

/// A name of NovaCron's that must be one of ours.
pub(super) fn name(text: &str) -> Result<Name, Problem> {
    text.parse().map_err(|error: model::name::InvalidName| Problem::invalid(error.to_string()))
}

fn status(plan: &Plan) -> Status {
    match plan.state {
        Stands::Running if plan.steps.iter().all(|step| step.state == StepState::Waiting) => Status::Pending,
        Stands::Draft => Status::Pending,
        Stands::Running | Stands::Stopping => Status::InProgress,
        Stands::Completed => Status::Completed,
        Stands::Blocked | Stands::Failed => Status::Failed,
        Stands::Cancelled => Status::Cancelled,
    }
}

fn of_plan(plan: &Plan, open: &BTreeMap<&str, &Migration>, sites: &Sites) -> Job {
    let steps = plan.steps.iter().map(|step| match step.state {
        StepState::Done => 100,
        _ => open.get(step.migration.as_str()).map_or(0, |migration| progress(migration)),
    });
    let count = plan.steps.len();
    let target = plan.wanted.to.as_ref().map(ToString::to_string);
    Job {
        id: plan.id.clone(),
        job_id: plan.id.clone(),
        source_cluster: clusters(sites, plan.steps.iter().map(|step| &step.source)),
        target_cluster: target.unwrap_or_else(|| {
            clusters(sites, plan.steps.iter().filter_map(|step| step.destination.as_ref()))
        }),
        status: status(plan).job(),
        progress: steps.sum::<u64>().checked_div(u64::try_from(count).unwrap_or(u64::MAX)).unwrap_or(100),
        vm_count: count,
        migration_strategy: strategy(plan.wanted.options.mode),
        start_time: plan.created,
        created_at: plan.created,
    }
}

fn of_migration(migration: &Migration, sites: &Sites) -> Job {
    Job {
        id: migration.id.clone(),
        job_id: migration.id.clone(),
        source_cluster: clusters(sites, std::iter::once(&migration.source)),
        target_cluster: clusters(sites, std::iter::once(&migration.destination)),
        status: Status::of(migration).job(),
        progress: progress(migration),
        vm_count: 1,
        migration_strategy: strategy(migration.options.mode),
        start_time: migration.created,
        created_at: migration.created,
    }
}

pub(super) async fn list(State(fleet): State<Arc<Fleet>>, caller: Caller) -> Result<Json<Vec<Job>>, Problem> {
    caller.may(&fleet, Action::Look, "").await?;
    let newest = Page { before: None, most: MOST };
    let plans = fleet.store.plans(&newest).await?;
    let migrations = fleet.store.migrations(&newest).await?;
    let open = fleet.store.open_migrations().await?;
    let open: BTreeMap<&str, &Migration> = open.iter().map(|one| (one.id.as_str(), one)).collect();
    let sites = sites(fleet.store.hosts().await?);
    // What was only drafted is no job: nobody started it.
    let plans = plans.iter().filter(|plan| plan.state != Stands::Draft && !plan.wanted.options.dry_run);
    let alone = migrations.iter().filter(|one| one.plan.is_none() && !one.options.dry_run);
    let mut jobs: Vec<Job> = plans.map(|plan| of_plan(plan, &open, &sites)).collect();
    jobs.extend(alone.map(|migration| of_migration(migration, &sites)));
    jobs.sort_by(|one, other| (other.created_at, &other.id).cmp(&(one.created_at, &one.id)));
    jobs.truncate(usize::try_from(MOST).unwrap_or(usize::MAX));
    Ok(Json(jobs))
}
