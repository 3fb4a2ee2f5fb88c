//! Bodies as NovaCron's servers read them: JSON whatever the content type says, unknown names left alone.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde::de::DeserializeOwned;

use crate::api::problem::Problem;
use crate::fleet::Fleet;

/// A body.
#[derive(Debug)]
pub(super) struct Lenient<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Arc<Fleet>> for Lenient<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, fleet: &Arc<Fleet>) -> Result<Self, Problem> {
        let bytes = Bytes::from_request(request, fleet)
            .await
            .map_err(|rejection| Problem::new(rejection.status(), "invalid", rejection.body_text()))?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            Problem::new(StatusCode::BAD_REQUEST, "invalid", format!("Invalid request body: {error}"))
        })
    }
}
