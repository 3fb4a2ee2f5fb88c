//! The API for people and programs: JSON over HTTPS, errors as problems (RFC 9457), callers by bearer tokens.
//!
//! ```text
//! GET  /v1/health                        POST /v1/host-tokens            {site, host?, expires_seconds?}
//! GET  /v1/hosts                         POST /v1/hosts/NAME/revoke
//! GET  /v1/vms                           POST /v1/migrations             {vm, to, from?, options?}
//! GET  /v1/migrations?before=&limit=     POST /v1/migrations/ID/wish     {wish, other_side_is_off?}
//! GET  /v1/migrations/ID                 POST /v1/tokens                 {name, role, expires_seconds?}
//! GET  /v1/tokens                        POST /v1/tokens/ID/revoke
//! GET  /v1/links                         POST /v1/links                  a link
//! GET  /v1/links/NAME                    PUT, DELETE /v1/links/NAME      a link
//! GET  /v1/links/NAME/measurements       POST /v1/links/NAME/probe
//! GET  /v1/sites
//! GET  /v1/audit?after=&limit=           GET  /v1/audit/check
//! ```

mod audit;
mod caller;
mod hosts;
mod links;
mod migrations;
mod problem;
pub(crate) mod tokens;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;

use crate::fleet::Fleet;
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
        .route("/v1/links", get(links::list).post(links::add))
        .route("/v1/links/{name}", get(links::show).put(links::change).delete(links::remove))
        .route("/v1/links/{name}/measurements", get(links::measurements))
        .route("/v1/links/{name}/probe", post(links::probe))
        .route("/v1/sites", get(links::sites))
        .route("/v1/tokens", get(tokens::list).post(tokens::make))
        .route("/v1/tokens/{id}/revoke", post(tokens::revoke))
        .route("/v1/audit", get(audit::list))
        .route("/v1/audit/check", get(audit::check))
        .fallback(async || Problem::not_found("there is nothing at this path"))
        .layer(DefaultBodyLimit::max(MOST_BODY))
        .with_state(fleet)
}

/// That it runs, and which release. For anybody.
async fn health() -> Json<serde_json::Value> {
    Json(json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION") }))
}
