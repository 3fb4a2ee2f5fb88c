//! Migrations.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use model::access::Action;
use model::audit::Deed;
use model::migration::{Migration, Options, Unfitting, Wish};
use model::{Name, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::caller::Caller;
use super::page::{Page, most, position};
use super::problem::{Asked, Body, Problem, Segment};
use super::traces::Traced;
use super::{etag, once};
use crate::fleet::Fleet;
use crate::moves;

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = MigrationWanted)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// The VM's id or name.
    vm: String,
    /// The destination.
    to: Name,
    /// Where the VM is, if its name alone does not say.
    from: Option<Name>,
    #[serde(default)]
    options: Options,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Wished {
    wish: Wish,
    /// An operator's word, without which doubt is not ended.
    #[serde(default)]
    other_side_is_off: bool,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CutoverWanted)]
pub(super) struct Leaving {
    /// From when on; at once if not given.
    #[serde(default)]
    at: Option<Timestamp>,
}

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Which {
    /// What an earlier page gave as `next`.
    pub(super) after: Option<String>,
    /// At most so many: 1 to 1000.
    #[param(minimum = 1, maximum = 1000)]
    pub(super) limit: Option<u32>,
}

/// Moves a VM to another host.
///
/// The hosts carry it out: look at the migration to see how it goes.
#[utoipa::path(post, path = "/v1/migrations", tag = "migrations", request_body = Wanted, responses((status = ACCEPTED, body = Migration)))]
pub(super) async fn begin(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    traced: Traced,
    Body(mut wanted): Body<Wanted>,
) -> Result<Response, Problem> {
    traced.mark(&mut wanted.options);
    let Wanted { vm, to, from, options } = wanted;
    let answer = |migration: &Migration| once::answer(StatusCode::ACCEPTED, migration);
    let (_, begun) = moves::begin(&fleet, &caller, moves::Wanted { vm, to, from, options }, answer).await?;
    Ok(begun)
}

/// Lists migrations, newest first.
#[utoipa::path(get, path = "/v1/migrations", tag = "migrations", params(Which), responses((status = OK, body = Page<Migration>)))]
pub(super) async fn list(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Asked(Which { after, limit }): Asked<Which>,
) -> Result<Json<Page<Migration>>, Problem> {
    caller.may(&fleet, Action::Look, "").await?;
    let (most, before) = (most(limit)?, after.as_deref().map(position).transpose()?);
    let migrations = fleet.store.migrations(&store::Page { before, most: most + 1 }).await?;
    let cursor = |last: &Migration| format!("{}-{}", last.created.as_millisecond(), last.id);
    Ok(Json(Page::of(migrations, most, cursor)))
}

/// Shows all that is known of a migration.
#[utoipa::path(get, path = "/v1/migrations/{id}", tag = "migrations", params(("id" = String, Path)), responses((status = OK, body = Migration)))]
pub(super) async fn show(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Segment(id): Segment<String>,
) -> Result<Json<Migration>, Problem> {
    caller.may(&fleet, Action::Look, &id).await?;
    Ok(Json(fleet.store.migration(&id).await?))
}

/// What a migration waits for.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MigrationWaits)]
pub(super) struct Waits {
    /// For people, with what may be done about it; nothing once its source works on it.
    r#for: Option<String>,
}

/// Tells what a migration waits for that its source has not begun.
#[utoipa::path(get, path = "/v1/migrations/{id}/waits", tag = "migrations", params(("id" = String, Path)), responses((status = OK, body = Waits)))]
pub(super) async fn waits(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Segment(id): Segment<String>,
) -> Result<Json<Waits>, Problem> {
    caller.may(&fleet, Action::Look, &id).await?;
    let migration = fleet.store.migration(&id).await?;
    Ok(Json(Waits { r#for: moves::waits_for(&fleet, &migration).await? }))
}

/// Says what is to become of a migration.
#[utoipa::path(
    post, path = "/v1/migrations/{id}/wish", tag = "migrations",
    params(("id" = String, Path), ("If-Match" = Option<String>, Header, description = "The ETag of GET /v1/migrations/{id}.")),
    request_body = Wished, responses((status = OK, body = Migration))
)]
pub(super) async fn wish(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Segment(id): Segment<String>,
    headers: HeaderMap,
    Body(Wished { wish, other_side_is_off }): Body<Wished>,
) -> Result<Response, Problem> {
    let ends_doubt = matches!(wish, Wish::KeepSource | Wish::KeepDestination);
    let action = if ends_doubt { Action::Resolve } else { Action::Migrate };
    caller.may(&fleet, action, &id).await?;
    if ends_doubt && !other_side_is_off {
        return Err(Problem::invalid(
            "make sure that the other side is off, and say so with `other_side_is_off`: else the VM may run twice",
        ));
    }
    let deed = caller.does(action, &id, format!("{wish:?}"));
    changed(&fleet, &id, &headers, deed, |migration| migration.wish(wish)).await
}

/// Lets a guest leave whose disks are kept in step, or changes when it may.
#[utoipa::path(
    post, path = "/v1/migrations/{id}/cutover", tag = "migrations",
    params(("id" = String, Path), ("If-Match" = Option<String>, Header, description = "The ETag of GET /v1/migrations/{id}.")),
    request_body = Leaving, responses((status = OK, body = Migration))
)]
pub(super) async fn cutover(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Segment(id): Segment<String>,
    headers: HeaderMap,
    Body(Leaving { at }): Body<Leaving>,
) -> Result<Response, Problem> {
    caller.may(&fleet, Action::Migrate, &id).await?;
    let when = at.map_or_else(|| "now".to_owned(), |at| at.to_string());
    let deed = caller.does(Action::Migrate, &id, format!("cut-over {when}"));
    changed(&fleet, &id, &headers, deed, |migration| migration.let_leave(at)).await
}

/// Changes a migration, if it is what the caller has seen.
async fn changed(
    fleet: &Fleet,
    id: &str,
    headers: &HeaderMap,
    deed: Deed,
    change: impl FnOnce(&mut Migration) -> Result<(), Unfitting> + Send,
) -> Result<Response, Problem> {
    // Both are found out in the transaction.
    let (mut refused, mut answer) = (None, None);
    let change = |migration: &mut Migration| {
        let told = match etag::differs(headers, migration) {
            Ok(false) => {
                change(migration).map_err(|error| error.to_string())?;
                once::answer(StatusCode::OK, migration)
            }
            Ok(true) => Err(etag::stale()),
            Err(problem) => Err(problem),
        };
        match told {
            Ok(response) => {
                answer = Some(response);
                Ok(())
            }
            Err(problem) => {
                refused = Some(problem);
                Err("refused".to_owned())
            }
        }
    };
    let changed = fleet.store.change_migration(id, deed, change).await;
    if let Some(problem) = refused {
        return Err(problem);
    }
    let migration = changed?;
    fleet.tell();
    Ok(answer.unwrap_or_else(|| Json(migration).into_response()))
}
