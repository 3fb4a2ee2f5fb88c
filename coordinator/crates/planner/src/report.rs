//! What migrations took beside what was expected, and what they cost.

use std::collections::BTreeMap;

use model::migration::{Migration, State};
use model::plan::cost;
use model::{Name, Timestamp};
use serde::Serialize;

/// What a migration that arrived took, by its source's report.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Took {
    /// From the start to the guest running at the destination, milliseconds.
    pub duration_ms: u64,
    /// The guest's pause, milliseconds; none of one that was off.
    pub downtime_ms: Option<u64>,
    /// On the wire.
    pub bytes: u64,
}

/// What was expected of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Expected {
    /// Milliseconds.
    pub duration_ms: u64,
    /// Milliseconds; 0 of one that was off.
    pub downtime_ms: u64,
    /// On the wire.
    pub bytes: u64,
}

/// A migration's expectations and what came of them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Graded {
    /// Its id.
    pub migration: String,
    /// The VM's id.
    pub vm: String,
    /// Over which link.
    pub link: Option<Name>,
    /// By the plan, from what was known beforehand.
    pub planned: Option<Expected>,
    /// By the source, from what it measured before anything moved.
    pub measured: Option<Expected>,
    /// What it took.
    pub took: Took,
}

/// Of how many expectations each figure held: time within 20 %, bytes within 10 %, pause within 25 % or 20 ms.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Held {
    /// Expectations.
    pub of: usize,
    /// The time held.
    pub duration: usize,
    /// The bytes held.
    pub bytes: usize,
    /// The pause held; one without a pause counts as held.
    pub downtime: usize,
}

/// How expectations fared.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Accuracy {
    /// Of plans.
    pub planned: Held,
    /// Of sources.
    pub measured: Held,
    /// Each migration, newest first.
    pub migrations: Vec<Graded>,
}

impl Took {
    /// None of one that did not arrive, or has no report.
    #[must_use]
    pub fn of(migration: &Migration) -> Option<Self> {
        if !matches!(migration.state, State::Completed | State::Held) {
            return None;
        }
        let report = &migration.at_source.as_ref()?.report["report"];
        let number = |name: &str| report[name].as_u64();
        Some(Self {
            // A wait that was asked for is no part of it.
            duration_ms: number("total_ms")?.saturating_sub(number("waited_ms").unwrap_or(0)),
            downtime_ms: number("downtime_ms"),
            bytes: number("ram_wire")?.saturating_add(number("disk_wire")?),
        })
    }
}

impl Held {
    fn take_in(&mut self, expected: Expected, took: Took) {
        let near = |expected: u64, took: u64, percent: u64, least: u64| {
            u128::from(expected.abs_diff(took))
                <= (u128::from(took) * u128::from(percent) / 100).max(u128::from(least))
        };
        self.of += 1;
        self.duration += usize::from(near(expected.duration_ms, took.duration_ms, 20, 0));
        self.bytes += usize::from(near(expected.bytes, took.bytes, 10, 0));
        let pause = took.downtime_ms.is_none_or(|pause| near(expected.downtime_ms, pause, 25, 20));
        self.downtime += usize::from(pause);
    }
}

/// Grades what was expected of migrations.
#[must_use]
pub fn accuracy<'a>(migrations: impl IntoIterator<Item = &'a Migration>) -> Accuracy {
    let mut accuracy = Accuracy::default();
    for migration in migrations {
        let Some(took) = Took::of(migration) else { continue };
        let planned = migration.estimate.as_ref().map(|estimate| Expected {
            duration_ms: estimate.duration_ms,
            downtime_ms: estimate.downtime_ms,
            bytes: estimate.bytes,
        });
        let measured = measured(migration);
        for (held, expected) in [(&mut accuracy.planned, planned), (&mut accuracy.measured, measured)] {
            if let Some(expected) = expected {
                held.take_in(expected, took);
            }
        }
        let (id, vm, link) = (migration.id.clone(), migration.vm.clone(), migration.link.clone());
        accuracy.migrations.push(Graded { migration: id, vm, link, planned, measured, took });
    }
    accuracy
}

fn measured(migration: &Migration) -> Option<Expected> {
    let predicted = &migration.at_source.as_ref()?.report["report"]["predicted"];
    let number = |name: &str| predicted[name].as_u64();
    Some(Expected {
        duration_ms: number("total_ms")?,
        downtime_ms: number("downtime_ms")?,
        bytes: number("wire_bytes")?,
    })
}

/// By what costs are summed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum By {
    /// Each migration by itself.
    #[default]
    Migration,
    /// Whose the VM is.
    Tenant,
    /// The link.
    Link,
}

/// What was spent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Charge {
    /// The VM's id, when a single migration is meant.
    pub vm: Option<String>,
    /// The migration's id, likewise.
    pub migration: Option<String>,
    /// Whose.
    pub tenant: Option<String>,
    /// The link.
    pub link: Option<Name>,
    /// First instant that it covers.
    pub from: Timestamp,
    /// The instant after.
    pub to: Timestamp,
    /// Migrations.
    pub migrations: u64,
    /// On the wire.
    pub bytes: u64,
    /// Millionths of the currency.
    pub cost_micros: u64,
    /// ISO 4217; empty when it costs nothing.
    pub currency: String,
}

/// What migrations that arrived have cost, by the prices at which they were begun. Sums are never over several
/// currencies.
#[must_use]
pub fn charges<'a>(migrations: impl IntoIterator<Item = &'a Migration>, by: By) -> Vec<Charge> {
    let mut sums: BTreeMap<(String, String), Charge> = BTreeMap::new();
    for migration in migrations {
        let Some(took) = Took::of(migration) else { continue };
        let tenant = migration.needs.tenant.clone();
        let link = migration.link.as_ref();
        let key = match by {
            By::Migration => migration.id.clone(),
            By::Tenant => tenant.clone(),
            By::Link => link.map(ToString::to_string).unwrap_or_default(),
        };
        let currency = migration.price.currency.clone();
        let cost_micros = cost(&migration.price, took.bytes, took.duration_ms);
        let sum = sums.entry((key, currency.clone())).or_insert_with(|| Charge {
            vm: (by == By::Migration).then(|| migration.vm.clone()),
            migration: (by == By::Migration).then(|| migration.id.clone()),
            tenant: (by != By::Link).then_some(tenant),
            link: link.filter(|_| by != By::Tenant).cloned(),
            from: migration.created,
            to: migration.changed,
            migrations: 0,
            bytes: 0,
            cost_micros: 0,
            currency,
        });
        sum.from = sum.from.min(migration.created);
        sum.to = sum.to.max(migration.changed);
        sum.migrations += 1;
        sum.bytes = sum.bytes.saturating_add(took.bytes);
        sum.cost_micros = sum.cost_micros.saturating_add(cost_micros);
    }
    sums.into_values().collect()
}
