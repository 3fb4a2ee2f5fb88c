//! Links and sites.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State as Of;
use axum::http::StatusCode;
use axum::response::Response;
use model::access::Action;
use model::link::{Link, Measured, Standing, State};
use model::name::InvalidName;
use model::{Name, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::caller::Caller;
use super::once;
use super::page::{Page, most};
use super::problem::{Asked, Body, Problem, Segment};
use crate::fleet::{Fleet, now};
use crate::links;

/// A link as it is listed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ListedLink)]
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

/// A link as the API shows it.
pub(crate) fn shown(standing: Standing) -> impl Serialize + use<> {
    Listed::from(standing)
}

/// What a probe came to.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LinkProbe)]
pub(super) struct Probe {
    at: Timestamp,
    /// None when nothing came through.
    measured: Option<Measured>,
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

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Newest {
    /// At most so many, the newest: 1 to 1000.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

/// The part of a list in order of names that is asked for.
fn page<T>(
    all: Vec<T>,
    Which { after, limit }: Which,
    name: impl Fn(&T) -> &Name,
) -> Result<Page<T>, Problem> {
    let most = most(limit)?;
    let rest = all.into_iter().filter(|one| after.as_ref().is_none_or(|after| name(one) > after));
    let rest = rest.take(usize::try_from(most).unwrap_or(usize::MAX).saturating_add(1)).collect();
    Ok(Page::of(rest, most, |last| name(last).to_string()))
}

/// A site, as hosts and links name it.
#[derive(Debug, Serialize, ToSchema)]
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

/// Lists links, with what was measured of them.
#[utoipa::path(get, path = "/v1/links", tag = "links", params(Which), responses((status = OK, body = Page<Listed>)))]
pub(super) async fn list(
    Of(fleet): Of<Arc<Fleet>>,
    caller: Caller,
    Asked(which): Asked<Which>,
) -> Result<Json<Page<Listed>>, Problem> {
    caller.may(&fleet, Action::Look, "").await?;
    let links = fleet.store.links().await?.into_iter().map(Listed::from).collect();
    Ok(Json(page(links, which, |one: &Listed| &one.standing.link.name)?))
}

/// Says that there is a link.
#[utoipa::path(post, path = "/v1/links", tag = "links", request_body = Link, responses((status = CREATED, body = Listed)))]
pub(super) async fn add(
    Of(fleet): Of<Arc<Fleet>>,
    caller: Caller,
    Body(link): Body<Link>,
) -> Result<Response, Problem> {
    caller.may(&fleet, Action::ManageLinks, link.name.as_str()).await?;
    checked(&link)?;
    let deed = caller.does(Action::ManageLinks, link.name.as_str(), format!("add {}", said(&link)));
    let standing = Standing { link: link.clone(), state: State::Unknown, since: None, measured: None };
    let added = once::answer(StatusCode::CREATED, &Listed::from(standing))?;
    fleet.store.add_link(&link, deed).await?;
    fleet.tell();
    Ok(added)
}

/// Shows a link.
#[utoipa::path(get, path = "/v1/links/{name}", tag = "links", params(("name" = String, Path)), responses((status = OK, body = Listed)))]
pub(super) async fn show(
    Of(fleet): Of<Arc<Fleet>>,
    caller: Caller,
    Segment(name): Segment<String>,
) -> Result<Json<Listed>, Problem> {
    caller.may(&fleet, Action::Look, &name).await?;
    Ok(Json(fleet.store.link(&parsed(&name)?).await?.into()))
}

/// Says what a link is from now on.
#[utoipa::path(put, path = "/v1/links/{name}", tag = "links", params(("name" = String, Path)), request_body = Link, responses((status = OK, body = Listed)))]
pub(super) async fn change(
    Of(fleet): Of<Arc<Fleet>>,
    caller: Caller,
    Segment(name): Segment<String>,
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

/// Forgets a link. Migrations that use it go over another.
#[utoipa::path(delete, path = "/v1/links/{name}", tag = "links", params(("name" = String, Path)), responses((status = NO_CONTENT)))]
pub(super) async fn remove(
    Of(fleet): Of<Arc<Fleet>>,
    caller: Caller,
    Segment(name): Segment<String>,
) -> Result<StatusCode, Problem> {
    caller.may(&fleet, Action::ManageLinks, &name).await?;
    let deed = caller.does(Action::ManageLinks, &name, "remove".to_owned());
    fleet.store.remove_link(&parsed(&name)?, deed).await?;
    fleet.tell();
    Ok(StatusCode::NO_CONTENT)
}

/// Has a link probed at once, its rate, too.
#[utoipa::path(post, path = "/v1/links/{name}/probe", tag = "links", params(("name" = String, Path)), responses((status = OK, body = Listed)))]
pub(super) async fn probe(
    Of(fleet): Of<Arc<Fleet>>,
    caller: Caller,
    Segment(name): Segment<String>,
) -> Result<Response, Problem> {
    caller.may(&fleet, Action::ManageLinks, &name).await?;
    let link = fleet.store.link(&parsed(&name)?).await?.link;
    let probed = links::probe(&fleet, &link, true).await.map_err(Problem::conflict)?;
    let probed = once::answer(StatusCode::OK, &Listed::from(probed))?;
    fleet.store.note(caller.does(Action::ManageLinks, &name, "probe".to_owned())).await?;
    Ok(probed)
}

/// Lists the newest measurements of a link.
#[utoipa::path(get, path = "/v1/links/{name}/measurements", tag = "links", params(("name" = String, Path), Newest), responses((status = OK, body = Page<Probe>)))]
pub(super) async fn measurements(
    Of(fleet): Of<Arc<Fleet>>,
    caller: Caller,
    Segment(name): Segment<String>,
    Asked(Newest { limit }): Asked<Newest>,
) -> Result<Json<Page<Probe>>, Problem> {
    caller.may(&fleet, Action::Look, &name).await?;
    let most = most(limit)?;
    let name = parsed(&name)?;
    fleet.store.link(&name).await?;
    let probes = fleet.store.link_probes(&name, most).await?.into_iter();
    let probes = probes.map(|probe| Probe { at: probe.at, measured: probe.measured }).collect();
    // The oldest are forgotten anyway: there is no next page.
    Ok(Json(Page::of(probes, most, |last: &Probe| last.at.to_string())))
}

/// Lists the sites that hosts and links name.
#[utoipa::path(get, path = "/v1/sites", tag = "links", params(Which), responses((status = OK, body = Page<Site>)))]
pub(super) async fn sites(
    Of(fleet): Of<Arc<Fleet>>,
    caller: Caller,
    Asked(which): Asked<Which>,
) -> Result<Json<Page<Site>>, Problem> {
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
    let sites = sites.into_iter().map(|(name, (hosts, links))| Site { name, hosts, links }).collect();
    Ok(Json(page(sites, which, |site: &Site| &site.name)?))
}

/// What an operator said of a link, for the audit log.
fn said(link: &Link) -> String {
    serde_json::to_string(link).unwrap_or_default().chars().take(4096).collect()
}
