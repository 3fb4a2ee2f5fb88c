//! NovaCron's own API, as its web interface and its clients ask it: the same paths, names, words and errors.
//!
//! ```text
//! GET  /api/v1/migration/jobs            POST /api/v1/migration/initiate
//! GET  /api/v1/migration/live/status     POST /api/v1/migration/live/VM
//! GET  /api/multicloud/providers[/ID[/health]]
//! GET  /api/multicloud/vms[/ID]          GET  /api/multicloud/migrations[/ID[/status]]
//!                                        POST /api/multicloud/migrations
//! ```
//!
//! All under `/api` and under `/api/v1`. A site is a provider (and a cluster) of kind `on-premise`, a host is an
//! availability zone (and a node), a plan is a job. What NovaCron has and this coordinator has not is refused with 501.

mod body;
mod duration;
mod jobs;
mod live;
mod multicloud;
mod words;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use serde_json::json;

use crate::api::problem::Problem;
use crate::fleet::{Fleet, now};

/// Both prefixes under which NovaCron mounts every route.
const PREFIXES: [&str; 2] = ["/api", "/api/v1"];

/// The routes.
pub(crate) fn router() -> Router<Arc<Fleet>> {
    PREFIXES.into_iter().fold(Router::new(), |router, prefix| router.nest(prefix, surface()))
}

fn surface() -> Router<Arc<Fleet>> {
    Router::new()
        .route("/migration/jobs", get(jobs::list))
        .route("/migration/initiate", post(jobs::initiate))
        .route("/migration/live/status", get(live::status))
        .route("/migration/live/{vm}", post(live::begin))
        .route("/multicloud/providers", get(multicloud::providers).post(multicloud::register))
        .route("/multicloud/providers/{id}", get(multicloud::provider))
        .route("/multicloud/providers/{id}/health", get(multicloud::health))
        .route("/multicloud/vms", get(multicloud::vms::list))
        .route("/multicloud/vms/{id}", get(multicloud::vms::show))
        .route(
            "/multicloud/migrations",
            get(multicloud::migrations::list).post(multicloud::migrations::begin),
        )
        .route("/multicloud/migrations/{id}", get(multicloud::migrations::show))
        .route("/multicloud/migrations/{id}/status", get(multicloud::migrations::show))
        .route("/multicloud/policies", get(multicloud::policies))
        .route("/multicloud/compliance/policies", get(multicloud::policies))
        .route("/multicloud/{*rest}", any(multicloud::not_here))
        .method_not_allowed_fallback(multicloud::not_here)
}

/// Tells errors under `/api` in NovaCron's shapes; all else passes.
pub(crate) async fn errors(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let response = next.run(request).await;
    let status = response.status();
    if !path.starts_with("/api/") || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let problem = response.extensions().get::<Problem>();
    let (status, message) = match problem {
        // NovaCron knows no 422.
        Some(problem) if problem.status() == StatusCode::UNPROCESSABLE_ENTITY => {
            (StatusCode::BAD_REQUEST, problem.detail())
        }
        Some(problem) => (problem.status(), problem.detail()),
        None => (status, status.canonical_reason().unwrap_or("error")),
    };
    let multicloud = PREFIXES.iter().any(|prefix| {
        path.strip_prefix(prefix)
            .is_some_and(|rest| rest == "/multicloud" || rest.starts_with("/multicloud/"))
    });
    let body = if multicloud {
        json!({ "error": message, "status": status.as_u16(), "timestamp": words::time(Some(now())) })
    } else if status == StatusCode::NOT_IMPLEMENTED {
        json!({ "error": "not_implemented", "message": message, "path": path })
    } else {
        json!({ "error": message })
    };
    let mut told = (status, body.to_string()).into_response();
    let kept = [header::WWW_AUTHENTICATE, header::RETRY_AFTER, header::ALLOW];
    for name in kept {
        if let Some(value) = response.headers().get(&name) {
            told.headers_mut().insert(name, value.clone());
        }
    }
    told.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    told
}
