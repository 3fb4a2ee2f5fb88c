//! API tokens: shown once, kept as digests.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use data_encoding::BASE32_NOPAD;
use model::Timestamp;
use model::access::{Action, Role};
use model::audit::Deed;
use serde::{Deserialize, Serialize};
use store::{ApiToken, Store};
use utoipa::ToSchema;

use super::caller::{Caller, PREFIX, digest};
use super::page::{Page, most, position};
use super::problem::{Asked, Body, Problem, Segment};
use super::{etag, once};
use crate::error::ServiceError;
use crate::fleet::{Fleet, now};

/// Where the first administrator finds a token.
pub(crate) const FIRST: &str = "admin-token";
/// Longest name of a token.
const MOST_NAME: usize = 64;
/// Longest life of anything that expires: ten years.
pub(super) const MOST_SECONDS: u64 = 3650 * 86_400;

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = TokenWanted)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// What people call it.
    #[schema(min_length = 1, max_length = 64)]
    name: String,
    role: Role,
    /// How long it is good; for ever if not given.
    #[schema(minimum = 1, maximum = 315_360_000)]
    expires_seconds: Option<u64>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Token)]
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

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Which {
    /// What an earlier page gave as `next`.
    after: Option<String>,
    /// At most so many: 1 to 1000.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
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
    let path = another(&fleet.store, folder, "first administrator", "coordinator").await?;
    tracing::info!(path = %path.display(), "the first administrator's token");
    Ok(())
}

/// Makes an administrator's token, and writes it into the folder in the place of the one there.
pub(crate) async fn another(
    store: &Store,
    folder: &Path,
    name: &str,
    actor: &str,
) -> Result<PathBuf, ServiceError> {
    let (token, secret) = new(name.to_owned(), Role::Admin, None)?;
    let path = folder.join(FIRST);
    // One that was not noted is worth nothing, and is written anew.
    pki::replace_secret(&path, format!("{secret}\n").as_bytes())?;
    let deed = Deed {
        at: now(),
        actor: actor.to_owned(),
        action: Action::ManageTokens.as_str().to_owned(),
        subject: token.id.clone(),
        outcome: "done".to_owned(),
        detail: format!("made {name:?}"),
    };
    store.add_api_token(&digest(&secret), &token, deed).await?;
    Ok(path)
}

/// Makes a token. Its secret is shown this once.
///
/// The same Idempotency-Key again is answered with 409: the secret is not kept.
#[utoipa::path(post, path = "/v1/tokens", tag = "tokens", request_body = Wanted, responses((status = CREATED, body = Shown)))]
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

/// Lists tokens without their secrets, oldest first.
#[utoipa::path(get, path = "/v1/tokens", tag = "tokens", params(Which), responses((status = OK, body = Page<Shown>)))]
pub(super) async fn list(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Asked(Which { after, limit }): Asked<Which>,
) -> Result<Json<Page<Shown>>, Problem> {
    caller.may(&fleet, Action::ManageTokens, "").await?;
    let (most, after) = (most(limit)?, after.as_deref().map(position).transpose()?);
    let tokens = fleet.store.api_tokens_after(after, most + 1).await?;
    let shown = tokens.into_iter().map(|token| Shown::of(token, None)).collect();
    Ok(Json(Page::of(shown, most, |last: &Shown| format!("{}-{}", last.made.as_millisecond(), last.id))))
}

/// Shows one token without its secret.
#[utoipa::path(get, path = "/v1/tokens/{id}", tag = "tokens", params(("id" = String, Path)), responses((status = OK, body = Shown)))]
pub(super) async fn show(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Segment(id): Segment<String>,
) -> Result<Json<Shown>, Problem> {
    caller.may(&fleet, Action::ManageTokens, &id).await?;
    Ok(Json(Shown::of(fleet.store.api_token_named(&id).await?, None)))
}

/// Makes a token no good.
#[utoipa::path(
    post, path = "/v1/tokens/{id}/revoke", tag = "tokens",
    params(("id" = String, Path), ("If-Match" = Option<String>, Header, description = "The ETag of GET /v1/tokens/{id}.")),
    responses((status = NO_CONTENT))
)]
pub(super) async fn revoke(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Segment(id): Segment<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    caller.may(&fleet, Action::ManageTokens, &id).await?;
    if etag::differs(&headers, &Shown::of(fleet.store.api_token_named(&id).await?, None))? {
        return Err(etag::stale());
    }
    let deed = caller.does(Action::ManageTokens, &id, "revoked".to_owned());
    let done = once::done();
    fleet.store.revoke_api_token(&id, deed).await?;
    Ok(done)
}
