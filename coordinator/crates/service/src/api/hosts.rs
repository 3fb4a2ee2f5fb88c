//! Hosts and their VMs.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use control_api::{JoinToken, fingerprint};
use model::access::Action;
use model::host::{Host, Vm};
use model::{Name, Timestamp};
use serde::{Deserialize, Serialize};
use store::JoinGrant;

use super::caller::Caller;
use super::problem::{Body, Problem};
use super::tokens::{random, until};
use crate::fleet::Fleet;

/// How long a join token is good unless asked otherwise.
const JOIN_SECONDS: u64 = 3600;

/// A host as it is listed.
#[derive(Debug, Serialize)]
pub(super) struct Listed {
    #[serde(flatten)]
    host: Host,
    /// Since when it has been connected.
    connected: Option<Timestamp>,
}

/// A VM as it is listed.
#[derive(Debug, Serialize)]
pub(super) struct ListedVm {
    host: Name,
    #[serde(flatten)]
    vm: Vm,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Invitation {
    site: Name,
    host: Option<Name>,
    expires_seconds: Option<u64>,
}

#[derive(Debug, Serialize)]
pub(super) struct Invited {
    token: String,
    site: Name,
    host: Option<Name>,
    expires: Timestamp,
}

pub(super) async fn list(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
) -> Result<Json<Vec<Listed>>, Problem> {
    caller.may(&fleet, Action::Look, "").await?;
    let connections = fleet.connections();
    let hosts = fleet.store.hosts().await?.into_iter().map(|mut host| {
        let connected = connections.get(&host.name).map(|(since, seen)| {
            host.seen = Some(*seen);
            *since
        });
        Listed { host, connected }
    });
    Ok(Json(hosts.collect()))
}

pub(super) async fn vms(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
) -> Result<Json<Vec<ListedVm>>, Problem> {
    caller.may(&fleet, Action::Look, "").await?;
    let vms = fleet.store.hosts().await?.into_iter().flat_map(|host| {
        let name = host.name;
        let vms = host.observed.unwrap_or_default().vms.into_iter();
        vms.map(move |vm| ListedVm { host: name.clone(), vm })
    });
    Ok(Json(vms.collect()))
}

pub(super) async fn invite(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Body(wanted): Body<Invitation>,
) -> Result<(StatusCode, Json<Invited>), Problem> {
    let Invitation { site, host, expires_seconds } = wanted;
    caller.may(&fleet, Action::InviteHost, site.as_str()).await?;
    let expires = until(expires_seconds.unwrap_or(JOIN_SECONDS))?;
    let token = JoinToken::new(random::<32>()?, fingerprint(fleet.authority.certificate()));
    let whom = host.as_ref().map_or("any host", Name::as_str);
    let deed = caller.does(Action::InviteHost, site.as_str(), format!("{whom}, until {expires}"));
    let grant = JoinGrant { site, host, expires };
    fleet.store.invite(&data_encoding::HEXLOWER.encode(&token.digest()), &grant, deed).await?;
    let JoinGrant { site, host, expires } = grant;
    Ok((StatusCode::CREATED, Json(Invited { token: token.to_string(), site, host, expires })))
}

pub(super) async fn revoke(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    caller.may(&fleet, Action::RevokeHost, &name).await?;
    let host: Name =
        name.parse().map_err(|error: model::name::InvalidName| Problem::invalid(error.to_string()))?;
    let deed = caller.does(Action::RevokeHost, &name, String::new());
    fleet.revoke(&host, deed).await?;
    Ok(StatusCode::NO_CONTENT)
}
