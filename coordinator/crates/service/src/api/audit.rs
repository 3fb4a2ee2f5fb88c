//! The audit log.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use model::access::Action;
use model::audit::Entry;
use serde::{Deserialize, Serialize};

use super::caller::Caller;
use super::problem::Problem;
use crate::fleet::Fleet;

/// Entries on a page, unless asked otherwise, and at most.
const PAGE: u32 = 100;
const MOST_PAGE: u32 = 1000;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Which {
    /// The last number that is known.
    after: u64,
    limit: Option<u32>,
}

/// What a check found.
#[derive(Debug, Serialize)]
pub(super) struct Whole {
    entries: u64,
    /// Of the last entry. Keep it elsewhere: the log cannot lose its end unnoticed then.
    hash: String,
}

pub(super) async fn list(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<Json<Vec<Entry>>, Problem> {
    caller.may(&fleet, Action::Audit, "").await?;
    let Query(Which { after, limit }) = which?;
    let most = limit.unwrap_or(PAGE);
    if !(1..=MOST_PAGE).contains(&most) {
        return Err(Problem::invalid(format!("limit must be 1 to {MOST_PAGE}")));
    }
    Ok(Json(fleet.store.audit_after(after, most).await?))
}

pub(super) async fn check(State(fleet): State<Arc<Fleet>>, caller: Caller) -> Result<Json<Whole>, Problem> {
    caller.may(&fleet, Action::Audit, "").await?;
    match fleet.store.verify_audit().await {
        Ok((entries, hash)) => Ok(Json(Whole { entries, hash })),
        Err(error) if error.kind() == store::StoreErrorKind::Corrupt => {
            Err(Problem::conflict(error.to_string()))
        }
        Err(error) => Err(error.into()),
    }
}
