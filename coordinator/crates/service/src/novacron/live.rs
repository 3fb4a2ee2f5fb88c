//! `/migration/live`: one VM that moves live.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use model::access::Action;
use model::migration::{Mode, Options};
use model::{Name, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::body::Lenient;
use super::duration::{Bare, milliseconds};
use super::jobs::name;
use super::words::{Status, phase, priority, progress};
use crate::api::caller::Caller;
use crate::api::problem::Problem;
use crate::fleet::Fleet;
use crate::moves;

/// Bytes a second in a megabit a second, which NovaCron's interface counts in.
const MEGABIT: u64 = 125_000;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Begin {
    #[serde(default)]
    target_node: String,
    #[serde(default)]
    max_downtime: Value,
    bandwidth: Option<u64>,
    priority: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Begun {
    migration_id: String,
    status: &'static str,
    vm_id: String,
    target_node: Name,
    priority: &'static str,
    created_at: Timestamp,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Live {
    id: String,
    vm_id: String,
    source_node: Name,
    target_node: Name,
    progress: u64,
    phase: &'static str,
    /// Megabits a second.
    bandwidth: u64,
}

pub(super) async fn begin(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    vm: Result<Path<String>, PathRejection>,
    Lenient(wanted): Lenient<Begin>,
) -> Result<(StatusCode, Json<Begun>), Problem> {
    let Path(vm) = vm?;
    let Begin { target_node, max_downtime, bandwidth, priority: asked } = wanted;
    if target_node.is_empty() {
        return Err(Problem::invalid("targetNode is required"));
    }
    let to = name(&target_node)?;
    let priority = priority(asked.as_deref())?;
    let limit = bandwidth.filter(|megabits| *megabits > 0).map(|megabits| megabits.saturating_mul(MEGABIT));
    let max_downtime_ms = milliseconds(&max_downtime, Bare::Milliseconds, "maxDowntime")?;
    let options = Options { mode: Mode::Live, max_downtime_ms, limit, ..Options::default() };
    let wanted = moves::Wanted { vm, to, from: None, options };
    let (begun, ()) = moves::begin(&fleet, &caller, wanted, |_| Ok(())).await?;
    let begun = Begun {
        migration_id: begun.id,
        status: Status::Pending.job(),
        vm_id: begun.vm,
        target_node: begun.destination,
        priority,
        created_at: begun.created,
    };
    Ok((StatusCode::ACCEPTED, Json(begun)))
}

pub(super) async fn status(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
) -> Result<Json<Vec<Live>>, Problem> {
    caller.may(&fleet, Action::Look, "").await?;
    let open = fleet.store.open_migrations().await?;
    let live = open.into_iter().filter(|one| one.options.mode == Mode::Live && !one.options.dry_run);
    let live = live.map(|one| Live {
        progress: progress(&one),
        phase: phase(&one),
        bandwidth: one.at_source.as_ref().map_or(0, |progress| progress.rate / MEGABIT),
        id: one.id,
        vm_id: one.vm,
        source_node: one.source,
        target_node: one.destination,
    });
    Ok(Json(live.collect()))
}
