//! Plans: several VMs that move, or all of a host.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use model::Name;
use model::access::Action;
use model::plan::{Plan, State as Stands, Wanted};
use serde::{Deserialize, Serialize};
use store::Page;

use super::caller::Caller;
use super::migrations::{Which, page_of};
use super::problem::{Body, Problem};
use crate::fleet::{Fleet, now};
use crate::moves;
use crate::plans::draft;

#[derive(Debug, Serialize)]
pub(super) struct Pages {
    plans: Vec<Plan>,
    /// For the next page; none on the last.
    next: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cordon {
    /// It is to take no VMs; or it is to take them again.
    cordoned: bool,
}

pub(super) async fn make(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Body(wanted): Body<Wanted>,
) -> Result<(StatusCode, Json<Plan>), Problem> {
    let subject =
        wanted.vms.first().map_or_else(|| wanted.drain.as_ref().map_or("", Name::as_str), String::as_str);
    let subject: String = subject.chars().take(256).collect();
    caller.may(&fleet, Action::Migrate, &subject).await?;
    let start = wanted.start;
    let drain = wanted.drain.clone().filter(|_| start && !wanted.options.dry_run);
    let plan = draft(&fleet, wanted, caller.actor()).await?;
    if start && plan.state == Stands::Draft {
        // A host that is drained must not fill again meanwhile.
        if let Some(host) = drain {
            let deed = caller.does(Action::Migrate, host.as_str(), "cordoned, to be drained".to_owned());
            fleet.store.cordon(&host, true, deed).await?;
        }
    }
    let plan = moves::keep(&fleet, &caller, plan, start, &subject).await?;
    Ok((StatusCode::CREATED, Json(plan)))
}

pub(super) async fn list(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    which: Result<Query<Which>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Pages>, Problem> {
    caller.may(&fleet, Action::Look, "").await?;
    let Query(which) = which?;
    let page: Page = page_of(which)?;
    let plans = fleet.store.plans(&page).await?;
    let full = plans.len() == usize::try_from(page.most).unwrap_or(usize::MAX);
    let next = plans.last().filter(|_| full);
    let next = next.map(|last| format!("{}-{}", last.created.as_millisecond(), last.id));
    Ok(Json(Pages { plans, next }))
}

pub(super) async fn show(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Plan>, Problem> {
    caller.may(&fleet, Action::Look, &id).await?;
    Ok(Json(fleet.store.plan(&id).await?))
}

pub(super) async fn start(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Plan>, Problem> {
    caller.may(&fleet, Action::Migrate, &id).await?;
    let deed = caller.does(Action::Migrate, &id, "started the plan".to_owned());
    let changed = fleet.store.change_plan(&id, deed, |plan| match plan.state {
        Stands::Draft => {
            plan.state = Stands::Running;
            plan.settle();
            Ok(())
        }
        Stands::Running => Ok(()),
        other => Err(format!("the plan is {}; make another one", other.as_str())),
    });
    let plan = changed.await?;
    fleet.tell();
    Ok(Json(plan))
}

pub(super) async fn cancel(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Plan>, Problem> {
    caller.may(&fleet, Action::Migrate, &id).await?;
    let deed = caller.does(Action::Migrate, &id, "cancelled the plan".to_owned());
    let changed = fleet.store.change_plan(&id, deed, |plan| match plan.state {
        Stands::Draft | Stands::Running | Stands::Stopping => {
            plan.state = Stands::Stopping;
            plan.settle();
            Ok(())
        }
        Stands::Cancelled => Ok(()),
        other => Err(format!("the plan is {}; nothing is left to cancel", other.as_str())),
    });
    let plan = changed.await?;
    fleet.tell();
    Ok(Json(plan))
}

pub(super) async fn cordon(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Path(name): Path<String>,
    Body(Cordon { cordoned }): Body<Cordon>,
) -> Result<StatusCode, Problem> {
    caller.may(&fleet, Action::Migrate, &name).await?;
    let host: Name =
        name.parse().map_err(|error: model::name::InvalidName| Problem::invalid(error.to_string()))?;
    let what = if cordoned { "cordoned" } else { "takes VMs again" };
    let deed = caller.does(Action::Migrate, &name, format!("{what}, {}", now()));
    fleet.store.cordon(&host, cordoned, deed).await?;
    Ok(StatusCode::NO_CONTENT)
}
