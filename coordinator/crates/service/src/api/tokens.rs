//! API tokens: shown once, kept as digests.

use std::path::Path;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path as Segment, State};
use axum::http::StatusCode;
use data_encoding::BASE32_NOPAD;
use model::Timestamp;
use model::access::{Action, Role};
use model::audit::Deed;
use serde::{Deserialize, Serialize};
use store::ApiToken;

use super::caller::{Caller, PREFIX, digest};
use super::problem::{Body, Problem};
use crate::error::ServiceError;
use crate::fleet::{Fleet, now};

/// Where the first administrator finds a token.
const FIRST: &str = "admin-token";
/// Longest name of a token.
const MOST_NAME: usize = 64;
/// Longest life of anything that expires: ten years.
pub(super) const MOST_SECONDS: u64 = 3650 * 86_400;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    name: String,
    role: Role,
    expires_seconds: Option<u64>,
}

#[derive(Debug, Serialize)]
pub(super) struct Shown {
    id: String,
    name: String,
    role: Role,
    made: Timestamp,
    expires: Option<Timestamp>,
    revoked: Option<Timestamp>,
    /// Only when it is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
}

impl Shown {
    fn of(token: ApiToken, secret: Option<String>) -> Self {
        let ApiToken { id, name, role, made, expires, revoked } = token;
        Self { id, name, role, made, expires, revoked, token: secret }
    }
}

/// Random bytes from the kernel.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], ServiceError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(ServiceError::internal)?;
    Ok(bytes)
}

/// When something that lives so long from now ends.
pub(super) fn until(seconds: u64) -> Result<Timestamp, Problem> {
    if !(1..=MOST_SECONDS).contains(&seconds) {
        return Err(Problem::invalid(format!("expires_seconds must be 1 to {MOST_SECONDS}")));
    }
    let later = now().checked_add(std::time::Duration::from_secs(seconds));
    later.map_err(|error| Problem::invalid(error.to_string()))
}

fn new(name: String, role: Role, expires: Option<Timestamp>) -> Result<(ApiToken, String), ServiceError> {
    let secret = format!("{PREFIX}{}", BASE32_NOPAD.encode(&random::<32>()?).to_lowercase());
    let id = data_encoding::HEXLOWER.encode(&random::<4>()?);
    Ok((ApiToken { id, name, role, made: now(), expires, revoked: None }, secret))
}

/// Makes the first token when there is none.
pub(crate) async fn first(fleet: &Fleet, folder: &Path) -> Result<(), ServiceError> {
    if !fleet.store.api_tokens().await?.is_empty() {
        return Ok(());
    }
    let (token, secret) = new("first administrator".to_owned(), Role::Admin, None)?;
    let path = folder.join(FIRST);
    // One that was not noted is worth nothing, and is written anew.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(ServiceError::internal(format!("cannot replace {}: {error}", path.display())));
        }
        Ok(()) | Err(_) => {}
    }
    pki::write_secret(&path, format!("{secret}\n").as_bytes())?;
    let deed = Deed {
        at: now(),
        actor: "coordinator".to_owned(),
        action: Action::ManageTokens.as_str().to_owned(),
        subject: token.id.clone(),
        outcome: "done".to_owned(),
        detail: "made the first administrator's".to_owned(),
    };
    fleet.store.add_api_token(&digest(&secret), &token, deed).await?;
    tracing::info!(path = %path.display(), "the first administrator's token");
    Ok(())
}

pub(super) async fn make(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Body(wanted): Body<Wanted>,
) -> Result<(StatusCode, Json<Shown>), Problem> {
    caller.may(&fleet, Action::ManageTokens, &wanted.name).await?;
    if wanted.name.is_empty() || wanted.name.chars().count() > MOST_NAME {
        return Err(Problem::invalid(format!("a token's name has 1 to {MOST_NAME} characters")));
    }
    let expires = wanted.expires_seconds.map(until).transpose()?;
    let (token, secret) = new(wanted.name, wanted.role, expires)?;
    let deed =
        caller.does(Action::ManageTokens, &token.id, format!("made {:?} as {}", token.name, token.role));
    fleet.store.add_api_token(&digest(&secret), &token, deed).await?;
    Ok((StatusCode::CREATED, Json(Shown::of(token, Some(secret)))))
}

pub(super) async fn list(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
) -> Result<Json<Vec<Shown>>, Problem> {
    caller.may(&fleet, Action::ManageTokens, "").await?;
    let tokens = fleet.store.api_tokens().await?;
    Ok(Json(tokens.into_iter().map(|token| Shown::of(token, None)).collect()))
}

pub(super) async fn revoke(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Segment(id): Segment<String>,
) -> Result<StatusCode, Problem> {
    caller.may(&fleet, Action::ManageTokens, &id).await?;
    let deed = caller.does(Action::ManageTokens, &id, "revoked".to_owned());
    fleet.store.revoke_api_token(&id, deed).await?;
    Ok(StatusCode::NO_CONTENT)
}
