//! Plans: several VMs that move, or all of a host.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use model::Name;
use model::access::Action;
use model::plan::{Plan, State as Stands, Wanted};
use serde::Deserialize;
use utoipa::ToSchema;

use super::caller::Caller;
use super::migrations::Which;
use super::once;
use super::page::{Page, most, position};
use super::problem::{Asked, Body, Problem, Segment};
use super::traces::Traced;
use crate::fleet::{Fleet, now};
use crate::moves;
use crate::plans::draft;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Cordon {
    /// It is to take no VMs; or it is to take them again.
    cordoned: bool,
}

/// Makes a plan, and begins it if that is asked for.
#[utoipa::path(post, path = "/v1/plans", tag = "plans", request_body = Wanted, responses((status = CREATED, body = Plan)))]
pub(super) async fn make(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    traced: Traced,
    Body(mut wanted): Body<Wanted>,
) -> Result<Response, Problem> {
    traced.mark(&mut wanted.options);
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
    let answer = |plan: &Plan| once::answer(StatusCode::CREATED, plan);
    let (_, made) = moves::keep(&fleet, &caller, plan, start, &subject, answer).await?;
    Ok(made)
}

/// Lists plans, newest first.
#[utoipa::path(get, path = "/v1/plans", tag = "plans", params(Which), responses((status = OK, body = Page<Plan>)))]
pub(super) async fn list(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Asked(Which { after, limit }): Asked<Which>,
) -> Result<Json<Page<Plan>>, Problem> {
    caller.may(&fleet, Action::Look, "").await?;
    let (most, before) = (most(limit)?, after.as_deref().map(position).transpose()?);
    let plans = fleet.store.plans(&store::Page { before, most: most + 1 }).await?;
    let cursor = |last: &Plan| format!("{}-{}", last.created.as_millisecond(), last.id);
    Ok(Json(Page::of(plans, most, cursor)))
}

/// Shows a plan.
#[utoipa::path(get, path = "/v1/plans/{id}", tag = "plans", params(("id" = String, Path)), responses((status = OK, body = Plan)))]
pub(super) async fn show(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Segment(id): Segment<String>,
) -> Result<Json<Plan>, Problem> {
    caller.may(&fleet, Action::Look, &id).await?;
    Ok(Json(fleet.store.plan(&id).await?))
}

/// Begins a draft.
#[utoipa::path(post, path = "/v1/plans/{id}/start", tag = "plans", params(("id" = String, Path)), responses((status = OK, body = Plan)))]
pub(super) async fn start(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Segment(id): Segment<String>,
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

/// Ends a plan: no other step begins, and those that were begun are undone, while that is possible.
#[utoipa::path(post, path = "/v1/plans/{id}/cancel", tag = "plans", params(("id" = String, Path)), responses((status = OK, body = Plan)))]
pub(super) async fn cancel(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Segment(id): Segment<String>,
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

/// Makes a host take no VMs, or take them again.
#[utoipa::path(post, path = "/v1/hosts/{name}/cordon", tag = "hosts", params(("name" = String, Path)), request_body = Cordon, responses((status = NO_CONTENT)))]
pub(super) async fn cordon(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Segment(name): Segment<String>,
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
