//! The audit log.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use model::access::Action;
use model::audit::Entry;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::caller::Caller;
use super::page::{Page, most};
use super::problem::{Asked, Problem};
use crate::fleet::Fleet;

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Which {
    /// The last number that is known; what an earlier page gave as `next`.
    after: u64,
    /// At most so many: 1 to 1000.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

/// What a check found.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AuditCheck)]
pub(super) struct Whole {
    entries: u64,
    /// Of the last entry. Keep it elsewhere: the log cannot lose its end unnoticed then.
    hash: String,
}

/// Lists who did what, oldest first.
#[utoipa::path(get, path = "/v1/audit", tag = "audit", params(Which), responses((status = OK, body = Page<Entry>)))]
pub(super) async fn list(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Asked(Which { after, limit }): Asked<Which>,
) -> Result<Json<Page<Entry>>, Problem> {
    caller.may(&fleet, Action::Audit, "").await?;
    let most = most(limit)?;
    let entries = fleet.store.audit_after(after, most + 1).await?;
    Ok(Json(Page::of(entries, most, |last| last.number.to_string())))
}

/// Checks that no entry was changed or left out.
#[utoipa::path(get, path = "/v1/audit/check", tag = "audit", responses((status = OK, body = Whole)))]
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
