//! Backups.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use model::access::Action;
use tokio_stream::wrappers::ReceiverStream;

use super::caller::Caller;
use super::problem::Problem;
use crate::backup;
use crate::fleet::Fleet;

/// Makes a backup and gives it, while everything goes on: a tar archive for `novaferry restore`.
///
/// It holds the CA's key, sealed, but not what it is sealed under. Of a PostgreSQL database only the CA is in it. One is
/// made at a time: 409 meanwhile. Check what came: a connection can break.
#[utoipa::path(
    post, path = "/v1/backup", tag = "service",
    responses((status = OK, body = String, content_type = "application/x-tar"))
)]
pub(super) async fn make(State(fleet): State<Arc<Fleet>>, caller: Caller) -> Result<Response, Problem> {
    caller.may(&fleet, Action::Backup, "").await?;
    // Before the copy, so that it is in there, too.
    fleet.store.note(caller.does(Action::Backup, "", String::new())).await?;
    let Some(parts) = backup::make(&fleet).await? else {
        let why = "another backup is being made; try again when it is done";
        return Err(Problem::new(StatusCode::CONFLICT, "still-running", why));
    };
    let headers = [(header::CONTENT_TYPE, "application/x-tar"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(ReceiverStream::new(parts))).into_response())
}
