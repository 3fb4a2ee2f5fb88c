//! The line's messages as the coordinator's values, and the other way round. What hosts say is bounded here.

use std::collections::BTreeMap;

use control_api::v1;
use model::host::{Needs, Observed, Pool, Vm};
use model::migration::{Migration, Mode, Progress, State, Wish};
use model::route::{Route, Share};

use crate::proof::MOST_DISKS;

/// Longest name, version, state.
const SHORT: usize = 256;
/// Longest explanation.
const LONG: usize = 4096;
/// Longest report of a migration, bytes.
const REPORT: usize = 64 << 10;
/// Addresses of a host.
pub(super) const MOST_ADDRESSES: usize = 8;
/// Migrations in one message: as many as an agent keeps.
pub(super) const MOST_MIGRATIONS: usize = 1024;
/// Addresses beside the first that an agent is told.
const MOST_ALTERNATES: usize = 7;
const MOST_POOLS: usize = 256;
const MOST_VMS: usize = 16_384;
/// Labels of a VM: as many as an agent reads.
const MOST_LABELS: usize = 64;

pub(super) fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

pub(super) fn short(text: &str) -> String {
    text.chars().take(SHORT).collect()
}

pub(super) fn long(text: &str) -> String {
    text.chars().take(LONG).collect()
}

/// What is wanted of a migration's source.
pub(super) fn migration(migration: &Migration, share: &Share) -> v1::Migration {
    let mut addresses = share.routes.iter().filter(|route| !route.called).map(address);
    let options = &migration.options;
    let mode = match options.mode {
        Mode::Live => v1::Mode::Live,
        Mode::Warm => v1::Mode::Warm,
        Mode::Cold => v1::Mode::Cold,
    };
    let wish = match migration.wish {
        Wish::Arrive => v1::Wish::Arrive,
        Wish::Cancel => v1::Wish::Cancel,
        Wish::Finalise => v1::Wish::Finalise,
        Wish::TakeBack => v1::Wish::TakeBack,
        Wish::KeepSource => v1::Wish::KeepSource,
        Wish::KeepDestination => v1::Wish::KeepDestination,
    };
    // The first time alone: what is told again begins nothing.
    let traceparent = match migration.state {
        State::Queued => {
            let span = tracing::info_span!("intent", migration = migration.id, host = %migration.source);
            trace::hand_on(&span, options.traceparent.as_deref())
        }
        _ => options.traceparent.clone(),
    };
    v1::Migration {
        id: migration.id.clone(),
        vm: migration.vm.clone(),
        peer: migration.destination.to_string(),
        to: addresses.next().unwrap_or_default(),
        alternates: addresses.take(MOST_ALTERNATES).collect(),
        mode: mode.into(),
        max_downtime_ms: options.max_downtime_ms.unwrap_or(0),
        limit: options.limit.into_iter().chain(share.limit).min().unwrap_or(0),
        hold: options.hold,
        dry_run: options.dry_run,
        wish: wish.into(),
        cutover_at_ms: options
            .cutover_at
            .map_or(0, |at| u64::try_from(at.as_millisecond()).unwrap_or(1).max(1)),
        seed: options.seed,
        called: share.routes.iter().any(|route| route.called),
        traceparent: traceparent.unwrap_or_default(),
    }
}

fn address(route: &Route) -> String {
    format!("novaferry://{}", route.address)
}

/// What comes to a host.
pub(super) fn expected(migration: &Migration, share: &Share) -> v1::Expected {
    v1::Expected {
        migration: migration.id.clone(),
        vm: migration.vm.clone(),
        from: migration.source.to_string(),
        dial: share.routes.iter().filter(|route| route.called).map(address).take(MOST_ADDRESSES).collect(),
    }
}

/// What a host says of itself, over what it said before.
pub(super) fn take_in(observed: &mut Observed, news: v1::Observed) {
    let host = news.host.unwrap_or_default();
    observed.processors = host.processors;
    observed.memory_bytes = host.memory_bytes;
    observed.memory_available_bytes = host.memory_available_bytes;
    observed.processor = short(&host.processor);
    observed.kvm = host.kvm;
    observed.qemu = short(&host.qemu);
    let pools = host.pools.into_iter().take(MOST_POOLS);
    observed.pools =
        pools.map(|pool| Pool { name: short(&pool.name), free_bytes: pool.free_bytes }).collect();
    let vms = news.vms.into_iter().take(MOST_VMS).map(|vm| Vm {
        id: short(&vm.id),
        name: short(&vm.name),
        state: short(&vm.state),
        access: short(&vm.access),
        reason: long(&vm.reason),
        needs: needs(vm),
    });
    observed.vms = vms.collect();
}

/// What a VM needs. A label that is too long is left out: a part of it would be another label.
fn needs(vm: v1::Vm) -> Needs {
    let fits = |text: &str| text.chars().nth(SHORT).is_none();
    // In their order, so that the same ones stay.
    let labels: BTreeMap<_, _> = vm.labels.into_iter().collect();
    let labels = labels.into_iter().filter(|(name, value)| !name.is_empty() && fits(name) && fits(value));
    Needs {
        memory_bytes: vm.memory_bytes,
        processors: vm.processors,
        disk_bytes: vm.disk_bytes,
        cpu: short(&vm.cpu),
        machine: short(&vm.machine),
        kvm: vm.kvm,
        tenant: short(&vm.tenant),
        labels: labels.take(MOST_LABELS).collect(),
    }
}

/// `signs`: its agent says receipts and roots.
pub(super) fn progress(said: v1::Progress, signs: bool) -> Progress {
    let report = if said.report.len() > REPORT { "" } else { &said.report };
    Progress {
        state: short(&said.state),
        over: said.over,
        generation: said.generation,
        disk_done: said.disk_done,
        disk_total: said.disk_total,
        ram_remaining: said.ram_remaining,
        ram_total: said.ram_total,
        rate: said.rate,
        expected_downtime_ms: said.expected_downtime_ms,
        waits: said.waits,
        // It is for people; what is no JSON is left out.
        report: serde_json::from_str(report).unwrap_or_default(),
        signs,
        receipts: said
            .receipts
            .map(|receipts| receipts.json.iter().take(MOST_DISKS).map(|r| receipt(r)).collect()),
        roots: said
            .roots
            .iter()
            .take(MOST_DISKS)
            .map(|root| (short(&root.disk), short(&root.root)))
            .collect(),
    }
}

/// What is none is kept as nothing, which nobody has signed.
fn receipt(text: &str) -> serde_json::Value {
    let text = if text.len() > receipt::MAX_BYTES { "" } else { text };
    serde_json::from_str(text).unwrap_or_default()
}
