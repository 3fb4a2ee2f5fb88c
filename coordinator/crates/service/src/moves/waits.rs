//! What a migration waits for that its source has not begun.

use model::Name;
use model::migration::{Migration, State, Wish};
use store::StoreError;

use crate::fleet::Fleet;
use crate::links;

/// For people: what it waits for, and what may be done about it; nothing once its source works on it.
///
/// # Errors
/// When the database cannot be read.
pub(crate) async fn waits_for(fleet: &Fleet, migration: &Migration) -> Result<Option<String>, StoreError> {
    if migration.state != State::Queued || migration.wish != Wish::Arrive || migration.refusal.is_some() {
        return Ok(None);
    }
    let (source, destination) = (&migration.source, &migration.destination);
    let connected = fleet.connections();
    let is_away = |host: &Name| !connected.contains_key(host);
    let hosts = fleet.store.roster().await?;
    let site = |name: &Name| {
        let host = hosts.iter().find(|host| host.name == *name);
        host.map_or_else(|| name.to_string(), |host| host.site.to_string())
    };
    let open = fleet.store.open_migrations().await?;
    let given = links::given(fleet, &open).await?.remove(&migration.id).unwrap_or_default();
    let advice = "`novaferry host show` tells when it was seen last; check that its agent runs and reaches the coordinator";
    Ok(Some(if is_away(source) {
        format!("host {source}, where it is, to connect; {advice}")
    } else if is_away(destination) {
        format!("host {destination}, where it goes, to connect; {advice}")
    } else if given.waits {
        format!(
            "a link between {} and {} that is up, open at this hour, and has room; `novaferry link list` shows them",
            site(source),
            site(destination)
        )
    } else if !fleet.arrivals.may_begin(migration, given.expects) {
        format!("host {destination} to let it in")
    } else {
        format!("host {source} to begin")
    }))
}
