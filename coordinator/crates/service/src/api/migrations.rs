//! Migrations.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use model::Name;
use model::access::Action;
use model::migration::{Migration, Options, Wish};
use serde::{Deserialize, Serialize};
use store::Page;

use super::caller::Caller;
use super::problem::{Body, Problem};
use crate::fleet::Fleet;
use crate::moves;

/// Migrations on a page, unless asked otherwise, and at most.
const PAGE: u32 = 50;
const MOST_PAGE: u32 = 500;

#[derive(Debug, Deserialize)]
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

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wished {
    wish: Wish,
    /// An operator's word, without which doubt is not ended.
    #[serde(default)]
    other_side_is_off: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Which {
    /// As an earlier page gave it.
    before: Option<String>,
    limit: Option<u32>,
}

#[derive(Debug, Serialize)]
pub(super) struct Pages {
    migrations: Vec<Migration>,
    /// For the next page; none on the last.
    next: Option<String>,
}

pub(super) async fn begin(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Body(wanted): Body<Wanted>,
) -> Result<(StatusCode, Json<Migration>), Problem> {
    let Wanted { vm, to, from, options } = wanted;
    let migration = moves::begin(&fleet, &caller, moves::Wanted { vm, to, from, options }).await?;
    Ok((StatusCode::ACCEPTED, Json(migration)))
}

pub(super) async fn list(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    which: Result<Query<Which>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Pages>, Problem> {
    caller.may(&fleet, Action::Look, "").await?;
    let Query(which) = which?;
    let page = page_of(which)?;
    let migrations = fleet.store.migrations(&page).await?;
    let full = migrations.len() == usize::try_from(page.most).unwrap_or(usize::MAX);
    let next = migrations.last().filter(|_| full);
    let next = next.map(|last| format!("{}-{}", last.created.as_millisecond(), last.id));
    Ok(Json(Pages { migrations, next }))
}

/// The page that is meant.
pub(super) fn page_of(Which { before, limit }: Which) -> Result<Page, Problem> {
    let most = limit.unwrap_or(PAGE);
    if !(1..=MOST_PAGE).contains(&most) {
        return Err(Problem::invalid(format!("limit must be 1 to {MOST_PAGE}")));
    }
    Ok(Page { before: before.map(|text| position(&text)).transpose()?, most })
}

fn position(text: &str) -> Result<(i64, String), Problem> {
    let parsed = text.split_once('-').and_then(|(time, id)| Some((time.parse().ok()?, id.to_owned())));
    parsed.ok_or_else(|| Problem::invalid("`before` is what an earlier page gave as `next`"))
}

pub(super) async fn show(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Migration>, Problem> {
    caller.may(&fleet, Action::Look, &id).await?;
    Ok(Json(fleet.store.migration(&id).await?))
}

pub(super) async fn wish(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(Wished { wish, other_side_is_off }): Body<Wished>,
) -> Result<Json<Migration>, Problem> {
    let ends_doubt = matches!(wish, Wish::KeepSource | Wish::KeepDestination);
    let action = if ends_doubt { Action::Resolve } else { Action::Migrate };
    caller.may(&fleet, action, &id).await?;
    if ends_doubt && !other_side_is_off {
        return Err(Problem::invalid(
            "make sure that the other side is off, and say so with `other_side_is_off`: else the VM may run twice",
        ));
    }
    let deed = caller.does(action, &id, format!("{wish:?}"));
    let change = |migration: &mut Migration| migration.wish(wish).map_err(|error| error.to_string());
    let migration = fleet.store.change_migration(&id, deed, change).await?;
    fleet.tell();
    Ok(Json(migration))
}
