//! The API for people and programs: JSON over HTTPS, errors as problems (RFC 9457), callers by bearer tokens.
//!
//! ```text
//! GET  /v1/health                        POST /v1/host-tokens            {site, host?, expires_seconds?}
//! GET  /v1/hosts                         POST /v1/hosts/NAME/revoke
//! GET  /v1/vms                           POST /v1/migrations             {vm, to, from?, options?}
//! GET  /v1/migrations?before=&limit=     POST /v1/migrations/ID/wish     {wish, other_side_is_off?}
//! GET  /v1/migrations/ID                 POST /v1/tokens                 {name, role, expires_seconds?}
//! GET  /v1/tokens                        POST /v1/tokens/ID/revoke
//! GET  /v1/plans?before=&limit=          POST /v1/plans                  {vms|drain, to?, options?, start?, …}
//! GET  /v1/plans/ID                      POST /v1/plans/ID/start, /v1/plans/ID/cancel
//! GET  /v1/reports/accuracy              GET  /v1/reports/cost?by=&as=
//!                                        POST /v1/hosts/NAME/cordon      {cordoned}
//! GET  /v1/audit?after=&limit=           GET  /v1/audit/check
//! ```

mod audit;
pub(crate) mod caller;
mod hosts;
mod migrations;
mod plans;
pub(crate) mod problem;
mod reports;
pub(crate) mod tokens;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;

use crate::fleet::Fleet;
use crate::novacron;
use problem::Problem;

/// Largest request body, bytes: options of a migration, many times over.
const MOST_BODY: usize = 64 << 10;

pub(crate) fn router(fleet: Arc<Fleet>) -> Router {
    Router::new()
        .route("/v1/health", get(health))
        .route("/v1/hosts", get(hosts::list))
        .route("/v1/hosts/{name}/revoke", post(hosts::revoke))
        .route("/v1/host-tokens", post(hosts::invite))
        .route("/v1/vms", get(hosts::vms))
        .route("/v1/migrations", get(migrations::list).post(migrations::begin))
        .route("/v1/migrations/{id}", get(migrations::show))
        .route("/v1/migrations/{id}/wish", post(migrations::wish))
        .route("/v1/plans", get(plans::list).post(plans::make))
        .route("/v1/plans/{id}", get(plans::show))
        .route("/v1/plans/{id}/start", post(plans::start))
        .route("/v1/plans/{id}/cancel", post(plans::cancel))
        .route("/v1/hosts/{name}/cordon", post(plans::cordon))
        .route("/v1/reports/accuracy", get(reports::accuracy_of))
        .route("/v1/reports/cost", get(reports::cost))
        .route("/v1/tokens", get(tokens::list).post(tokens::make))
        .route("/v1/tokens/{id}/revoke", post(tokens::revoke))
        .route("/v1/audit", get(audit::list))
        .route("/v1/audit/check", get(audit::check))
        .fallback(async || Problem::not_found("there is nothing at this path"))
        .merge(novacron::router())
        .layer(DefaultBodyLimit::max(MOST_BODY))
        .layer(from_fn(novacron::errors))
        .with_state(fleet)
}

/// That it runs, and which release. For anybody.
async fn health() -> Json<serde_json::Value> {
    Json(json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION") }))
}
