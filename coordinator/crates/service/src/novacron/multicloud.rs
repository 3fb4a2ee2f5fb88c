//! `/multicloud`: sites as providers.

pub(super) mod migrations;
pub(super) mod vms;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use model::Name;
use model::access::Action;
use model::host::Host;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::body::Lenient;
use super::words::time;
use crate::api::caller::Caller;
use crate::api::problem::Problem;
use crate::fleet::{Fleet, now};

/// Every provider's kind.
const KIND: &str = "on-premise";
/// What is below `/multicloud` in NovaCron and not here.
const NOT_HERE: [&str; 12] = [
    "providers",
    "vms",
    "migrations",
    "cost",
    "compliance",
    "policies",
    "resources",
    "dashboard",
    "placements",
    "burst",
    "dr",
    "statistics",
];

#[derive(Debug, Serialize)]
pub(super) struct Provider {
    #[serde(rename = "type")]
    kind: &'static str,
    name: Name,
    regions: Vec<Name>,
    capabilities: Vec<&'static str>,
}

impl Provider {
    fn of(site: &Name) -> Self {
        let capabilities = vec!["vm_live_migration"];
        Self { kind: KIND, name: site.clone(), regions: vec![site.clone()], capabilities }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Registration {
    #[serde(rename = "type", default)]
    kind: String,
}

/// Hosts that are of the fleet, by site.
async fn sites(fleet: &Fleet) -> Result<BTreeMap<Name, Vec<Host>>, Problem> {
    let mut sites: BTreeMap<Name, Vec<Host>> = BTreeMap::new();
    for host in fleet.store.hosts().await?.into_iter().filter(|host| host.revoked.is_none()) {
        sites.entry(host.site.clone()).or_default().push(host);
    }
    Ok(sites)
}

async fn hosts_of(fleet: &Fleet, id: &str) -> Result<(Name, Vec<Host>), Problem> {
    let found = sites(fleet).await?.into_iter().find(|(site, _)| site.as_str() == id);
    found.ok_or_else(|| Problem::not_found("Provider not found"))
}

pub(super) async fn providers(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
) -> Result<Json<BTreeMap<Name, Provider>>, Problem> {
    caller.may(&fleet, Action::Look, "").await?;
    let sites = sites(&fleet).await?.into_keys();
    Ok(Json(sites.map(|site| (site.clone(), Provider::of(&site))).collect()))
}

pub(super) async fn provider(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, Problem> {
    let Path(id) = id?;
    caller.may(&fleet, Action::Look, &id).await?;
    let (site, _) = hosts_of(&fleet, &id).await?;
    let Provider { kind, name, regions, capabilities } = Provider::of(&site);
    Ok(Json(json!({
        "provider_id": site, "type": kind, "name": name, "regions": regions, "capabilities": capabilities,
        // Sites have no configuration here: hosts bring themselves in.
        "config": null,
    })))
}

pub(super) async fn health(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, Problem> {
    let Path(id) = id?;
    caller.may(&fleet, Action::Look, &id).await?;
    let (site, hosts) = hosts_of(&fleet, &id).await?;
    let connections = fleet.connections();
    let away: Vec<&Host> = hosts.iter().filter(|host| !connections.contains_key(&host.name)).collect();
    let overall = match away.len() {
        0 => "healthy",
        all if all == hosts.len() => "unhealthy",
        _ => "degraded",
    };
    let issues = away.iter().map(|host| {
        json!({
            "id": format!("host-away-{}", host.name), "service": "agent", "region": site, "severity": "warning",
            "description": format!("host {} is not connected", host.name), "start_time": time(host.seen),
        })
    });
    let mut health = json!({
        "provider": KIND, "overall": overall, "services": { "agent": overall },
        "regions": { site.as_str(): overall }, "last_checked": time(Some(now())),
    });
    if !away.is_empty() {
        health["issues"] = issues.collect();
    }
    Ok(Json(health))
}

/// Clouds cannot be registered yet; sites come with their hosts.
pub(super) async fn register(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Lenient(Registration { kind }): Lenient<Registration>,
) -> Result<(), Problem> {
    caller.may(&fleet, Action::InviteHost, "").await?;
    let name = match kind.as_str() {
        "aws" => "AWS",
        "azure" => "Azure",
        "gcp" => "GCP",
        other => {
            let kind: String = other.chars().take(32).collect();
            return Err(Problem::invalid(format!("Unsupported provider type: {kind}")));
        }
    };
    Err(not_implemented(format!("{name} provider not implemented")))
}

/// There are none here yet, of either kind.
pub(super) async fn policies(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
) -> Result<Json<Value>, Problem> {
    caller.may(&fleet, Action::Look, "").await?;
    Ok(Json(json!({ "policies": [], "count": 0 })))
}

/// What NovaCron has and this coordinator has not, and what neither has.
pub(super) async fn not_here(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    path: Uri,
) -> Result<(), Problem> {
    caller.may(&fleet, Action::Look, "").await?;
    let mut parts = path.path().split('/').skip_while(|part| *part != "multicloud").skip(1);
    if parts.next().is_some_and(|first| NOT_HERE.contains(&first)) {
        return Err(not_implemented("this part of NovaCron's API is not implemented here"));
    }
    Err(Problem::not_found("there is nothing at this path"))
}

fn not_implemented(what: impl Into<String>) -> Problem {
    Problem::new(StatusCode::NOT_IMPLEMENTED, "not-implemented", what)
}
