//! A look at everything that is told about, and what differs from an earlier one.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use store::Page;

use crate::api::{shown_host, shown_link, shown_vm};
use crate::error::ServiceError;
use crate::fleet::Fleet;

/// Migrations and plans that are looked at besides those that are open: the newest.
const NEWEST: u32 = 100;

/// What an event is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Kind {
    Host,
    Vm,
    Migration,
    Plan,
    Link,
}

impl Kind {
    /// Its name.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Vm => "vm",
            Self::Migration => "migration",
            Self::Plan => "plan",
            Self::Link => "link",
        }
    }

    /// Whether one that is not seen any more is gone: old migrations and plans are only not looked at.
    fn goes(self) -> bool {
        !matches!(self, Self::Migration | Self::Plan)
    }
}

/// What was seen: by kind and id, the hash of what counts as a change, and what is told.
#[derive(Debug, Default)]
pub(super) struct Seen(BTreeMap<(Kind, String), ([u8; 16], String)>);

impl Seen {
    fn add(&mut self, kind: Kind, id: String, shown: &impl Serialize) -> Result<(), ServiceError> {
        let mut value = serde_json::to_value(shown).map_err(ServiceError::internal)?;
        let told = value.to_string();
        // That a host was heard of again is no news, and its VMs are told of by themselves.
        if let (Kind::Host, Value::Object(fields)) = (kind, &mut value) {
            fields.remove("seen");
            fields.remove("clock_ahead_ms");
            fields
                .get_mut("observed")
                .and_then(Value::as_object_mut)
                .and_then(|observed| observed.remove("vms"));
        }
        let digest = Sha256::digest(value.to_string());
        let mut hash = [0; 16];
        hash.copy_from_slice(&digest[..16]);
        self.0.insert((kind, id), (hash, told));
        Ok(())
    }

    /// What is told, coming from an earlier look.
    pub(super) fn since(&self, before: &Self) -> Vec<(Kind, String)> {
        let gone = before.0.keys().filter(|key| key.0.goes() && !self.0.contains_key(key));
        let gone = gone.map(|(kind, id)| match (kind, id.split_once('/')) {
            (Kind::Vm, Some((host, id))) => (*kind, json!({ "host": host, "id": id, "gone": true })),
            (Kind::Vm | Kind::Migration | Kind::Plan, _) => (*kind, json!({ "id": id, "gone": true })),
            (Kind::Host | Kind::Link, _) => (*kind, json!({ "name": id, "gone": true })),
        });
        let mut changes: Vec<_> = gone.map(|(kind, data)| (kind, data.to_string())).collect();
        let differs = |key: &(Kind, String), hash: &[u8; 16]| {
            before.0.get(key).is_none_or(|(earlier, _)| earlier != hash)
        };
        let changed = self.0.iter().filter(|(key, (hash, _))| differs(key, hash));
        changes.extend(changed.map(|((kind, _), (_, told))| (*kind, told.clone())));
        changes
    }
}

/// Looks.
pub(super) async fn look(fleet: &Fleet) -> Result<Seen, ServiceError> {
    let mut seen = Seen::default();
    let connections = fleet.connections();
    for host in fleet.store.roster().await?.iter() {
        for vm in host.observed.iter().flat_map(|observed| &observed.vms) {
            seen.add(Kind::Vm, format!("{}/{}", host.name, vm.id), &shown_vm(&host.name, vm))?;
        }
        seen.add(
            Kind::Host,
            host.name.to_string(),
            &shown_host(model::host::Host::clone(host), fleet, &connections),
        )?;
    }
    let newest = Page { before: None, most: NEWEST };
    let mut migrations = fleet.store.migrations(&newest).await?;
    migrations.extend(fleet.store.open_migrations().await?);
    for migration in migrations {
        seen.add(Kind::Migration, migration.id.clone(), &migration)?;
    }
    let mut plans = fleet.store.plans(&newest).await?;
    plans.extend(fleet.store.plans_that_run().await?);
    for plan in plans {
        seen.add(Kind::Plan, plan.id.clone(), &plan)?;
    }
    for link in fleet.store.links().await? {
        seen.add(Kind::Link, link.link.name.to_string(), &shown_link(link))?;
    }
    Ok(seen)
}
