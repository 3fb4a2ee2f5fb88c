//! Webhooks. Their URLs may hold secrets of receivers, so only administrators see them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use model::Name;
use model::access::Action;
use model::name::InvalidName;
use model::webhook::{Reach, Standing, Webhook};
use serde::{Deserialize, Serialize};
use store::KeptWebhook;
use utoipa::ToSchema;

use super::caller::Caller;
use super::etag;
use super::page::{Page, most};
use super::problem::{Asked, Body, Problem, Segment};
use super::tokens::random;
use crate::error::ServiceError;
use crate::fleet::{Fleet, now};
use crate::webhooks;

/// A webhook as it is shown.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ListedWebhook)]
pub(super) struct Shown {
    #[serde(flatten)]
    webhook: Webhook,
    #[serde(flatten)]
    standing: Standing,
    /// Events that it is owed, or passes by.
    waiting: u64,
    /// What its receiver checks signatures with (Standard Webhooks); only when it is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
}

/// How a test went.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebhookTest)]
pub(super) struct Tested {
    /// The receiver took it.
    taken: bool,
    /// Why it did not.
    error: Option<String>,
}

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Which {
    /// What an earlier page gave as `next`.
    #[param(value_type = Option<String>)]
    after: Option<Name>,
    /// At most so many: 1 to 1000.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

async fn shown(fleet: &Fleet, kept: KeptWebhook) -> Result<Shown, Problem> {
    let waiting = fleet.store.webhook_events_behind(kept.passed).await?;
    Ok(Shown { webhook: kept.webhook, standing: kept.standing, waiting, secret: None })
}

fn parsed(name: &str) -> Result<Name, Problem> {
    name.parse().map_err(|error: InvalidName| Problem::invalid(error.to_string()))
}

fn salt() -> Result<String, ServiceError> {
    Ok(data_encoding::HEXLOWER.encode(&random::<16>()?))
}

/// What an operator said, for the audit log: of the URL only its host.
fn said(webhook: &Webhook) -> String {
    let host = webhook.url.split("://").nth(1).and_then(|rest| rest.split(['/', '?']).next());
    let topics = if webhook.on.is_empty() { "all".to_owned() } else { webhook.on.join(",") };
    let paused = if webhook.paused { ", paused" } else { "" };
    format!("to {} of {topics}{paused}", host.unwrap_or_default()).chars().take(1024).collect()
}

fn checked(reach: Reach, webhook: &Webhook) -> Result<(), Problem> {
    webhook.check(reach).map_err(|error| Problem::invalid(error.to_string()))
}

/// Lists webhooks.
#[utoipa::path(get, path = "/v1/webhooks", tag = "webhooks", params(Which), responses((status = OK, body = Page<Shown>)))]
pub(super) async fn list(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Asked(Which { after, limit }): Asked<Which>,
) -> Result<Json<Page<Shown>>, Problem> {
    caller.may(&fleet, Action::ManageWebhooks, "").await?;
    let most = most(limit)?;
    let mut all = Vec::new();
    for kept in fleet.store.webhooks().await? {
        let wanted = after.as_ref().is_none_or(|after| kept.webhook.name > *after);
        if wanted && all.len() <= usize::try_from(most).unwrap_or(usize::MAX) {
            all.push(shown(&fleet, kept).await?);
        }
    }
    Ok(Json(Page::of(all, most, |last: &Shown| last.webhook.name.to_string())))
}

/// Adds a webhook. Its secret is shown this once.
///
/// It is told of what happens from now on. The same Idempotency-Key again is answered with 409: the secret is not kept.
#[utoipa::path(post, path = "/v1/webhooks", tag = "webhooks", request_body = Webhook, responses((status = CREATED, body = Shown)))]
pub(super) async fn add(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Body(webhook): Body<Webhook>,
) -> Result<(StatusCode, Json<Shown>), Problem> {
    caller.may(&fleet, Action::ManageWebhooks, webhook.name.as_str()).await?;
    checked(fleet.webhooks, &webhook)?;
    let salt = salt()?;
    let secret = fleet.authority.webhooks().told(&salt)?;
    let deed = caller.does(Action::ManageWebhooks, webhook.name.as_str(), format!("add {}", said(&webhook)));
    let kept = fleet.store.add_webhook(&webhook, &salt, deed).await?;
    Ok((StatusCode::CREATED, Json(Shown { secret: Some(secret), ..shown(&fleet, kept).await? })))
}

/// Shows a webhook.
#[utoipa::path(get, path = "/v1/webhooks/{name}", tag = "webhooks", params(("name" = String, Path)), responses((status = OK, body = Shown)))]
pub(super) async fn show(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Segment(name): Segment<String>,
) -> Result<Json<Shown>, Problem> {
    caller.may(&fleet, Action::ManageWebhooks, &name).await?;
    let kept = fleet.store.webhook(&parsed(&name)?).await?;
    Ok(Json(shown(&fleet, kept).await?))
}

/// Says what a webhook is from now on. What waits is tried at once.
#[utoipa::path(
    put, path = "/v1/webhooks/{name}", tag = "webhooks",
    params(("name" = String, Path), ("If-Match" = Option<String>, Header, description = "The ETag of GET /v1/webhooks/{name}.")),
    request_body = Webhook, responses((status = OK, body = Shown))
)]
pub(super) async fn change(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Segment(name): Segment<String>,
    headers: HeaderMap,
    Body(webhook): Body<Webhook>,
) -> Result<Json<Shown>, Problem> {
    caller.may(&fleet, Action::ManageWebhooks, &name).await?;
    let name = parsed(&name)?;
    if webhook.name != name {
        return Err(Problem::invalid("a webhook keeps its name; remove it and add it under another"));
    }
    let before = fleet.store.webhook(&name).await?;
    // One that is out of reach now can still be paused.
    let reach =
        if webhook.paused && webhook.url == before.webhook.url { Reach::Private } else { fleet.webhooks };
    checked(reach, &webhook)?;
    if etag::differs(&headers, &shown(&fleet, before).await?)? {
        return Err(etag::stale());
    }
    let deed = caller.does(Action::ManageWebhooks, name.as_str(), format!("set {}", said(&webhook)));
    let change = |kept: &mut KeptWebhook| {
        kept.webhook = webhook;
        kept.standing.retry = None;
    };
    let kept = fleet.store.change_webhook(&name, deed, change).await?;
    Ok(Json(shown(&fleet, kept).await?))
}

/// Forgets a webhook, and what it is owed.
#[utoipa::path(delete, path = "/v1/webhooks/{name}", tag = "webhooks", params(("name" = String, Path)), responses((status = NO_CONTENT)))]
pub(super) async fn remove(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Segment(name): Segment<String>,
) -> Result<StatusCode, Problem> {
    caller.may(&fleet, Action::ManageWebhooks, &name).await?;
    let deed = caller.does(Action::ManageWebhooks, &name, "remove".to_owned());
    fleet.store.remove_webhook(&parsed(&name)?, deed).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Gives a webhook another secret, which is shown this once.
///
/// For a day events are signed under both, so that its receiver can change over meanwhile.
#[utoipa::path(post, path = "/v1/webhooks/{name}/rotate", tag = "webhooks", params(("name" = String, Path)), responses((status = OK, body = Shown)))]
pub(super) async fn rotate(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Segment(name): Segment<String>,
) -> Result<Json<Shown>, Problem> {
    caller.may(&fleet, Action::ManageWebhooks, &name).await?;
    let name = parsed(&name)?;
    let salt = salt()?;
    let secret = fleet.authority.webhooks().told(&salt)?;
    let until = now().checked_add(webhooks::OLDER_GOOD).map_err(ServiceError::internal)?;
    let deed = caller.does(Action::ManageWebhooks, name.as_str(), "rotate its secret".to_owned());
    let change = |kept: &mut KeptWebhook| {
        let older = std::mem::replace(&mut kept.salt, salt);
        kept.older = Some((older, until));
        kept.standing.retry = None;
    };
    let kept = fleet.store.change_webhook(&name, deed, change).await?;
    Ok(Json(Shown { secret: Some(secret), ..shown(&fleet, kept).await? }))
}

/// Sends an event of the type `webhook.test` at once, and says whether it was taken.
#[utoipa::path(post, path = "/v1/webhooks/{name}/test", tag = "webhooks", params(("name" = String, Path)), responses((status = OK, body = Tested)))]
pub(super) async fn test(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Segment(name): Segment<String>,
) -> Result<Json<Tested>, Problem> {
    caller.may(&fleet, Action::ManageWebhooks, &name).await?;
    let kept = fleet.store.webhook(&parsed(&name)?).await?;
    checked(fleet.webhooks, &kept.webhook)?;
    // Before it is sent: whoever hangs up meanwhile has asked all the same.
    fleet.store.note(caller.does(Action::ManageWebhooks, &name, "test".to_owned())).await?;
    let refusal = webhooks::test(&fleet, &kept).await?.err();
    Ok(Json(Tested { taken: refusal.is_none(), error: refusal.map(|refusal| refusal.why) }))
}
