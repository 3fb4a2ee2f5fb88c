//! Hosts and their VMs.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use control_api::{JoinToken, fingerprint};
use model::access::Action;
use model::host::{Host, Vm};
use model::name::InvalidName;
use model::{Name, Timestamp};
use serde::{Deserialize, Serialize};
use store::JoinGrant;
use utoipa::ToSchema;

use super::caller::Caller;
use super::page::{Page, most, no_cursor};
use super::problem::{Asked, Body, Problem, Segment};
use super::tokens::{random, until};
use super::{etag, once};
use crate::fleet::Fleet;

/// How long a join token is good unless asked otherwise.
const JOIN_SECONDS: u64 = 3600;

/// A host as it is listed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ListedHost)]
pub(super) struct Listed {
    #[serde(flatten)]
    host: Host,
    /// Since when it has been connected.
    connected: Option<Timestamp>,
    /// How far its clock was ahead of the coordinator's when it connected, milliseconds; below 0 it was behind.
    clock_ahead_ms: Option<i64>,
}

/// A VM as it is listed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ListedVm {
    /// Where it is.
    host: Name,
    #[serde(flatten)]
    vm: Vm,
}

/// A host as the API shows it.
pub(crate) fn shown(
    host: Host,
    fleet: &Fleet,
    connections: &BTreeMap<Name, (Timestamp, Timestamp)>,
) -> impl Serialize + use<> {
    Listed::of(host, fleet, connections)
}

/// A VM as the API shows it.
pub(crate) fn shown_vm(host: &Name, vm: &Vm) -> impl Serialize + use<> {
    ListedVm { host: host.clone(), vm: vm.clone() }
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Invitation {
    /// The host's site.
    site: Name,
    /// The only host that may use it.
    host: Option<Name>,
    /// How long it is good; an hour if not given.
    #[schema(minimum = 1, maximum = 315_360_000)]
    expires_seconds: Option<u64>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Invited {
    /// Shown this once.
    token: String,
    site: Name,
    host: Option<Name>,
    expires: Timestamp,
}

/// How a host stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Stands {
    /// It has a line.
    Connected,
    /// It has none.
    Away,
    /// Its certificates are no good.
    Revoked,
}

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub(super) struct WhichHosts {
    /// What an earlier page gave as `next`.
    after: Option<String>,
    /// At most so many: 1 to 1000.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// Only those of this site.
    #[param(value_type = Option<String>)]
    site: Option<Name>,
    /// Only those that stand so.
    #[param(inline)]
    state: Option<Stands>,
    /// Only those whose names contain this.
    name: Option<String>,
}

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub(super) struct WhichVms {
    /// What an earlier page gave as `next`.
    after: Option<String>,
    /// At most so many: 1 to 1000.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// Only those of this site.
    #[param(value_type = Option<String>)]
    site: Option<Name>,
    /// Only those of this host.
    #[param(value_type = Option<String>)]
    host: Option<Name>,
    /// Only those in this state, such as `running`.
    state: Option<String>,
    /// Only those whose names contain this.
    name: Option<String>,
}

impl Listed {
    fn of(mut host: Host, fleet: &Fleet, connections: &BTreeMap<Name, (Timestamp, Timestamp)>) -> Self {
        let clock_ahead_ms = fleet.clock_ahead_ms(&host.name);
        let connected = connections.get(&host.name).map(|(since, seen)| {
            host.seen = Some(*seen);
            *since
        });
        Self { host, connected, clock_ahead_ms }
    }
}

fn stands(host: &Host, connected: bool) -> Stands {
    match (host.revoked, connected) {
        (Some(_), _) => Stands::Revoked,
        (None, true) => Stands::Connected,
        (None, false) => Stands::Away,
    }
}

fn enough(most: u32) -> usize {
    usize::try_from(most).unwrap_or(usize::MAX)
}

/// Lists hosts by name.
#[utoipa::path(get, path = "/v1/hosts", tag = "hosts", params(WhichHosts), responses((status = OK, body = Page<Listed>)))]
pub(super) async fn list(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Asked(WhichHosts { after, limit, site, state, name }): Asked<WhichHosts>,
) -> Result<Json<Page<Listed>>, Problem> {
    caller.may(&fleet, Action::Look, "").await?;
    let most = most(limit)?;
    let after: Option<Name> = after.map(|text| text.parse().ok().ok_or_else(no_cursor)).transpose()?;
    let connections = fleet.connections();
    let hosts = fleet.store.roster().await?;
    let fits = |host: &&Arc<Host>| {
        after.as_ref().is_none_or(|after| host.name > *after)
            && site.as_ref().is_none_or(|site| host.site == *site)
            && name.as_ref().is_none_or(|part| host.name.as_str().contains(part))
            && state.is_none_or(|state| stands(host, connections.contains_key(&host.name)) == state)
    };
    let found = hosts.iter().filter(fits).take(enough(most) + 1);
    let found = found.map(|host| Listed::of(Host::clone(host), &fleet, &connections)).collect();
    Ok(Json(Page::of(found, most, |last| last.host.name.to_string())))
}

/// Shows one host.
#[utoipa::path(get, path = "/v1/hosts/{name}", tag = "hosts", params(("name" = String, Path)), responses((status = OK, body = Listed)))]
pub(super) async fn show(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Segment(name): Segment<String>,
) -> Result<Json<Listed>, Problem> {
    caller.may(&fleet, Action::Look, &name).await?;
    let host = fleet.store.host(&named(&name)?).await?;
    Ok(Json(Listed::of(host, &fleet, &fleet.connections())))
}

fn named(name: &str) -> Result<Name, Problem> {
    name.parse().map_err(|error: InvalidName| Problem::invalid(error.to_string()))
}

/// Lists the virtual machines of all hosts, by host and id.
#[utoipa::path(get, path = "/v1/vms", tag = "vms", params(WhichVms), responses((status = OK, body = Page<ListedVm>)))]
pub(super) async fn vms(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Asked(WhichVms { after, limit, site, host, state, name }): Asked<WhichVms>,
) -> Result<Json<Page<ListedVm>>, Problem> {
    caller.may(&fleet, Action::Look, "").await?;
    let most = most(limit)?;
    let enough = enough(most);
    // HOST/ID: no host's name has a slash.
    let position = after.as_deref().map(|text| text.split_once('/').ok_or_else(no_cursor)).transpose()?;
    let position = position
        .map(|(host, id)| host.parse::<Name>().ok().map(|host| (host, id.to_owned())).ok_or_else(no_cursor));
    let position = position.transpose()?;
    let hosts = fleet.store.roster().await?;
    let has_some = |one: &&Arc<Host>| {
        position.as_ref().is_none_or(|(at, _)| one.name >= *at)
            && site.as_ref().is_none_or(|site| one.site == *site)
            && host.as_ref().is_none_or(|host| one.name == *host)
    };
    let mut found = Vec::new();
    for one in hosts.iter().filter(has_some) {
        let seen = |vm: &Vm| position.as_ref().is_some_and(|(at, id)| *at == one.name && vm.id <= *id);
        let fits = |vm: &&Vm| {
            !seen(vm)
                && state.as_ref().is_none_or(|state| vm.state == *state)
                && name.as_ref().is_none_or(|part| vm.name.contains(part))
        };
        let mut vms: Vec<_> = one.observed.iter().flat_map(|observed| &observed.vms).filter(fits).collect();
        vms.sort_by(|a, b| a.id.cmp(&b.id));
        found.extend(vms.into_iter().map(|vm| ListedVm { host: one.name.clone(), vm: vm.clone() }));
        if found.len() > enough {
            break;
        }
    }
    Ok(Json(Page::of(found, most, |last| format!("{}/{}", last.host, last.vm.id))))
}

/// Makes a one-time token by which a host joins.
///
/// The same Idempotency-Key again is answered with 409: the secret is not kept.
#[utoipa::path(post, path = "/v1/host-tokens", tag = "hosts", request_body = Invitation, responses((status = CREATED, body = Invited)))]
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

/// Revokes a host's certificates: it loses its line, and no other host lets it in.
#[utoipa::path(
    post, path = "/v1/hosts/{name}/revoke", tag = "hosts",
    params(("name" = String, Path), ("If-Match" = Option<String>, Header, description = "The ETag of GET /v1/hosts/{name}.")),
    responses((status = NO_CONTENT))
)]
pub(super) async fn revoke(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Segment(name): Segment<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    caller.may(&fleet, Action::RevokeHost, &name).await?;
    let host = named(&name)?;
    if etag::differs(&headers, &Listed::of(fleet.store.host(&host).await?, &fleet, &fleet.connections()))? {
        return Err(etag::stale());
    }
    let deed = caller.does(Action::RevokeHost, &name, String::new());
    let done = once::done();
    fleet.revoke(&host, deed).await?;
    Ok(done)
}
