//! Idempotency-Key: a POST that is sent again is answered as it was, and not done again. See [`store::within`].

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use sha2::{Digest, Sha256};
use store::{Answer, Claim, Claimed};

use super::caller::Caller;
use super::problem::Problem;
use crate::error::ServiceError;
use crate::fleet::{Fleet, now};

/// The header.
pub(super) const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Says that an answer is an earlier one.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// How long answers are kept.
const KEPT: std::time::Duration = std::time::Duration::from_secs(86_400);
/// Longest key, characters.
const MOST_KEY: usize = 128;

/// An answer without secrets: it is kept with what the next transaction does, for whoever asks again.
pub(super) fn answer(status: StatusCode, value: &impl Serialize) -> Result<Response, Problem> {
    let body = serde_json::to_string(value).map_err(ServiceError::internal)?;
    store::answers(Answer { status: status.as_u16(), body: body.clone() });
    Ok(response(status, body))
}

/// The same without content.
pub(super) fn done() -> Response {
    store::answers(Answer { status: StatusCode::NO_CONTENT.as_u16(), body: String::new() });
    StatusCode::NO_CONTENT.into_response()
}

fn response(status: StatusCode, body: String) -> Response {
    if body.is_empty() {
        return status.into_response();
    }
    let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (status, json, body).into_response()
}

/// The key of a request, if it has one.
fn key(head: &Parts) -> Result<Option<String>, Problem> {
    let Some(value) = head.headers.get(KEY) else { return Ok(None) };
    let good = (1..=MOST_KEY).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic);
    let text = value.to_str().ok().filter(|_| good).ok_or_else(|| {
        Problem::invalid(format!("Idempotency-Key has 1 to {MOST_KEY} visible ASCII characters"))
    })?;
    Ok(Some(text.to_owned()))
}

/// Lets a POST through, once for each key of a caller.
pub(super) async fn once(
    fleet: Arc<Fleet>,
    run: &str,
    caller: &Caller,
    (head, body): (Parts, Bytes),
    next: Next,
) -> Response {
    let answer = match key(&head) {
        Ok(None) => return next.run(Request::from_parts(head, Body::from(body))).await,
        Ok(Some(key)) => claimed(fleet, run, caller, key, (head, body), next).await,
        Err(problem) => Err(problem),
    };
    answer.unwrap_or_else(Problem::into_response)
}

async fn claimed(
    fleet: Arc<Fleet>,
    run: &str,
    caller: &Caller,
    key: String,
    (head, body): (Parts, Bytes),
    next: Next,
) -> Result<Response, Problem> {
    let mut digest = Sha256::new();
    for part in [head.method.as_str().as_bytes(), head.uri.to_string().as_bytes(), &body] {
        digest.update(part.len().to_be_bytes());
        digest.update(part);
    }
    let digest = data_encoding::HEXLOWER.encode(&digest.finalize());
    let at = now();
    let claim = Claim { caller: caller.actor().to_owned(), key, digest, run: run.to_owned(), at };
    let oldest = at.checked_sub(KEPT).map_err(ServiceError::internal)?;
    match fleet.store.claim(&claim, oldest).await? {
        Claimed::New => {}
        Claimed::Running => {
            let why = "this very request is being done; wait, and send it again for its answer";
            return Err(Problem::new(StatusCode::CONFLICT, "still-running", why));
        }
        Claimed::Other => {
            let why = "this Idempotency-Key was used for another request; choose another";
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "key-reused", why));
        }
        Claimed::Done(Some(Answer { status, body })) => {
            let status = StatusCode::from_u16(status).map_err(ServiceError::internal)?;
            let mut response = response(status, body);
            response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
            return Ok(response);
        }
        Claimed::Done(None) => {
            let why = "this request was done, but secrets are not kept to be shown again; \
                       ask with a new key, and revoke what this one made (see the audit log)";
            return Err(Problem::new(StatusCode::CONFLICT, "answer-not-kept", why));
        }
    }
    // A task of its own: it goes on to its end when whoever asks hangs up.
    let request = Request::from_parts(head, Body::from(body));
    let (held, store_of) = (claim.clone(), Arc::clone(&fleet));
    let work = tokio::spawn(async move {
        let response = store::within(held.clone(), next.run(request)).await;
        (store_of.store.release(&held).await, response)
    });
    match work.await {
        Ok((Ok(()), response)) => Ok(response),
        // What was done is done; that nothing was could not be noted. The claim ends by itself.
        Ok((Err(error), response)) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "a claim was not given back");
            Ok(response)
        }
        Err(error) => {
            fleet.store.release(&claim).await?;
            Err(Problem::broken(&error))
        }
    }
}
