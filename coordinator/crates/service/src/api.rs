//! The API for people and programs: JSON over HTTPS, errors as problems (RFC 9457), callers by bearer tokens.
//! Its description is `/v1/openapi.json`, made from the handlers; for people, `/v1/docs`. What every request passes is in
//! [`gate`]: who asks, how much, whether it was asked before (`Idempotency-Key`), and what of the answer is known (`ETag`).

mod audit;
mod backup;
pub(crate) mod caller;
mod document;
mod etag;
mod events;
pub(crate) mod gate;
mod hosts;
pub(crate) mod jwt;
pub(crate) mod limit;
mod links;
mod migrations;
mod once;
mod page;
mod plans;
pub(crate) mod problem;
mod reports;
pub(crate) mod tokens;
mod traces;
mod webhooks;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::{Json, Router};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::fleet::Fleet;
use crate::{metrics, novacron};
use gate::Gate;
pub(crate) use hosts::{shown as shown_host, shown_vm};
pub(crate) use links::shown as shown_link;
use problem::Problem;

/// Largest request body, bytes: options of a migration, many times over.
const MOST_BODY: usize = 64 << 10;

/// All routes, each with its description.
fn routes() -> OpenApiRouter<Arc<Fleet>> {
    OpenApiRouter::with_openapi(document::head())
        .routes(routes!(health))
        .routes(routes!(hosts::list))
        .routes(routes!(hosts::show))
        .routes(routes!(hosts::revoke))
        .routes(routes!(hosts::invite))
        .routes(routes!(hosts::vms))
        .routes(routes!(migrations::list, migrations::begin))
        .routes(routes!(migrations::show))
        .routes(routes!(migrations::waits))
        .routes(routes!(migrations::wish))
        .routes(routes!(migrations::cutover))
        .routes(routes!(plans::list, plans::make))
        .routes(routes!(plans::show))
        .routes(routes!(plans::start))
        .routes(routes!(plans::cancel))
        .routes(routes!(plans::cordon))
        .routes(routes!(links::list, links::add))
        .routes(routes!(links::show, links::change, links::remove))
        .routes(routes!(links::measurements))
        .routes(routes!(links::probe))
        .routes(routes!(links::sites))
        .routes(routes!(reports::accuracy_of))
        .routes(routes!(reports::cost))
        .routes(routes!(events::listen))
        .routes(routes!(tokens::list, tokens::make))
        .routes(routes!(tokens::show))
        .routes(routes!(tokens::revoke))
        .routes(routes!(webhooks::list, webhooks::add))
        .routes(routes!(webhooks::show, webhooks::change, webhooks::remove))
        .routes(routes!(webhooks::rotate))
        .routes(routes!(webhooks::test))
        .routes(routes!(audit::list))
        .routes(routes!(audit::check))
        .routes(routes!(backup::make))
        .routes(routes!(document::json))
        .routes(routes!(document::page))
}

pub(crate) fn router(fleet: Arc<Fleet>, gate: Arc<Gate>) -> Router {
    let (router, openapi) = routes().split_for_parts();
    router
        .layer(document::layer(openapi))
        .fallback(async || Problem::not_found("there is nothing at this path; /v1/docs lists what there is"))
        .method_not_allowed_fallback(async || Problem::method_not_allowed())
        .merge(novacron::router())
        .merge(crate::page::router())
        .layer(from_fn_with_state(gate, gate::pass))
        .layer(DefaultBodyLimit::max(MOST_BODY))
        .layer(from_fn(traces::follow))
        .layer(from_fn(metrics::count))
        // The outermost: what the gate refuses is told in the caller's shape, too.
        .layer(from_fn(novacron::errors))
        .with_state(fleet)
}

/// That it runs.
#[derive(Debug, Serialize, ToSchema)]
struct Health {
    /// `ok`.
    status: &'static str,
    /// Its release.
    version: &'static str,
}

/// Says that it runs, and which release. For anybody.
#[utoipa::path(get, path = "/v1/health", tag = "service", security(()), responses((status = OK, body = Health)))]
async fn health() -> Json<Health> {
    Json(Health { status: "ok", version: env!("CARGO_PKG_VERSION") })
}
