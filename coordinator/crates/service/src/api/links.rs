//! Links and sites.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use model::access::Action;
use model::link::{Link, Measured, Standing};
use model::name::InvalidName;
use model::{Name, Timestamp};
use serde::{Deserialize, Serialize};

use super::caller::Caller;
use super::problem::{Body, Problem};
use crate::fleet::{Fleet, now};
use crate::links;

/// Measurements on a page, unless asked otherwise.
const PAGE: u32 = 60;

/// A link as it is listed.
#[derive(Debug, Serialize)]
pub(super) struct Listed {
    #[serde(flatten)]
    standing: Standing,
    /// It may be used now.
    open: bool,
    /// When that changes; none if it never does.
    until: Option<Timestamp>,
}

impl From<Standing> for Listed {
    fn from(standing: Standing) -> Self {
        let at = now();
        let open = standing.link.is_open(at);
        let until = if open { standing.link.closes(at) } else { standing.link.opens(at) };
        Self { standing, open, until }
    }
}

/// What a probe came to.
#[derive(Debug, Serialize)]
pub(super) struct Probe {
    at: Timestamp,
    /// None when nothing came through.
    measured: Option<Measured>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Which {
    limit: Option<u32>,
}

/// A site, as hosts and links name it.
#[derive(Debug, Serialize)]
pub(super) struct Site {
    name: Name,
    /// Hosts that were not revoked.
    hosts: u64,
    /// Links that end there.
    links: Vec<Name>,
}

fn parsed(name: &str) -> Result<Name, Problem> {
    name.parse().map_err(|error: InvalidName| Problem::invalid(error.to_string()))
}

fn checked(link: &Link) -> Result<(), Problem> {
    link.check().map_err(|error| Problem::invalid(error.to_string()))
}

pub(super) async fn list(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
) -> Result<Json<Vec<Listed>>, Problem> {
    caller.may(&fleet, Action::Look, "").await?;
    Ok(Json(fleet.store.links().await?.into_iter().map(Listed::from).collect()))
}

pub(super) async fn add(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Body(link): Body<Link>,
) -> Result<(StatusCode, Json<Listed>), Problem> {
    caller.may(&fleet, Action::ManageLinks, link.name.as_str()).await?;
    checked(&link)?;
    let deed = caller.does(Action::ManageLinks, link.name.as_str(), format!("add {}", said(&link)));
    fleet.store.add_link(&link, deed).await?;
    fleet.tell();
    Ok((StatusCode::CREATED, Json(fleet.store.link(&link.name).await?.into())))
}

pub(super) async fn show(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<Listed>, Problem> {
    caller.may(&fleet, Action::Look, &name).await?;
    Ok(Json(fleet.store.link(&parsed(&name)?).await?.into()))
}

pub(super) async fn change(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Path(name): Path<String>,
    Body(link): Body<Link>,
) -> Result<Json<Listed>, Problem> {
    caller.may(&fleet, Action::ManageLinks, &name).await?;
    let name = parsed(&name)?;
    if link.name != name {
        return Err(Problem::invalid("a link keeps its name; remove it and add it under another"));
    }
    checked(&link)?;
    let deed = caller.does(Action::ManageLinks, name.as_str(), format!("set {}", said(&link)));
    let change = |kept: &mut Link| {
        *kept = link;
        Ok(())
    };
    let changed = fleet.store.change_link(&name, deed, change).await?;
    fleet.tell();
    Ok(Json(changed.into()))
}

pub(super) async fn remove(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    caller.may(&fleet, Action::ManageLinks, &name).await?;
    let deed = caller.does(Action::ManageLinks, &name, "remove".to_owned());
    fleet.store.remove_link(&parsed(&name)?, deed).await?;
    fleet.tell();
    Ok(StatusCode::NO_CONTENT)
}

/// Has a link probed at once, its rate, too.
pub(super) async fn probe(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<Listed>, Problem> {
    caller.may(&fleet, Action::ManageLinks, &name).await?;
    let link = fleet.store.link(&parsed(&name)?).await?.link;
    fleet.store.note(caller.does(Action::ManageLinks, &name, "probe".to_owned())).await?;
    let probed = links::probe(&fleet, &link, true).await.map_err(Problem::conflict)?;
    Ok(Json(probed.into()))
}

pub(super) async fn measurements(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Path(name): Path<String>,
    which: Result<Query<Which>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Vec<Probe>>, Problem> {
    caller.may(&fleet, Action::Look, &name).await?;
    let Query(Which { limit }) = which?;
    let most = limit.unwrap_or(PAGE);
    if !(1..=store::MOST_PROBES).contains(&most) {
        return Err(Problem::invalid(format!("limit must be 1 to {}", store::MOST_PROBES)));
    }
    let name = parsed(&name)?;
    fleet.store.link(&name).await?;
    let probes = fleet.store.link_probes(&name, most).await?.into_iter();
    Ok(Json(probes.map(|probe| Probe { at: probe.at, measured: probe.measured }).collect()))
}

pub(super) async fn sites(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
) -> Result<Json<Vec<Site>>, Problem> {
    caller.may(&fleet, Action::Look, "").await?;
    let mut sites: BTreeMap<Name, (u64, Vec<Name>)> = BTreeMap::new();
    for host in fleet.store.hosts().await? {
        sites.entry(host.site).or_default().0 += u64::from(host.revoked.is_none());
    }
    for Standing { link, .. } in fleet.store.links().await? {
        let [one, other] = link.sites;
        let ends = if one == other { vec![one] } else { vec![one, other] };
        for end in ends {
            sites.entry(end).or_default().1.push(link.name.clone());
        }
    }
    let sites = sites.into_iter().map(|(name, (hosts, links))| Site { name, hosts, links });
    Ok(Json(sites.collect()))
}

/// What an operator said of a link, for the audit log.
fn said(link: &Link) -> String {
    serde_json::to_string(link).unwrap_or_default().chars().take(4096).collect()
}
