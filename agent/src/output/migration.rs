//! Virtual machines and migrations for people.

use std::fmt::Write as _;
use std::time::Duration;

use engine::migrate::preflight::Finding;
use engine::migrate::record::{Record, Role};
use engine::migrate::report::{Prediction, Report};
use engine::migrate::status::{DestinationState, Live, Postcopy, SourceState, Status};

use super::{bytes, duration, rate};
use crate::control::migration::{ListedAccess, ListedMigration, ListedVm, Shown};

/// Digits of an id in texts: a migration may be named by its first ones.
const SHORT: usize = 8;

/// An id's first digits.
#[must_use]
pub fn short(id: &str) -> &str {
    id.get(..SHORT).unwrap_or(id)
}

/// A VM, a line and its findings.
#[must_use]
pub fn vm(vm: &ListedVm) -> String {
    let mut text = vm.id.clone();
    if vm.name != vm.id {
        let _infallible = write!(text, " ({})", vm.name);
    }
    let _infallible = write!(text, "  {}", vm.state);
    match &vm.access {
        ListedAccess::Live { .. } => text.push_str("  live"),
        ListedAccess::ColdOrWarmOnly { reason, fix } => {
            let _infallible = write!(text, "  cold or warm only: {reason}; for live, start it with {fix}");
        }
        ListedAccess::NotYet { reason } => {
            let _infallible = write!(text, "  not yet: {reason}");
        }
        ListedAccess::Stopped => {}
    }
    let needs = &vm.needs;
    let mut parts = Vec::new();
    parts.extend((needs.memory_bytes > 0).then(|| format!("{} of memory", bytes(needs.memory_bytes))));
    parts.extend((needs.processors > 0).then(|| format!("{} processors", needs.processors)));
    parts.extend((needs.disk_bytes > 0).then(|| format!("{} of disks", bytes(needs.disk_bytes))));
    if !parts.is_empty() {
        let _infallible = write!(text, "\n    {}", parts.join(", "));
    }
    for finding in &vm.findings {
        let _infallible = write!(text, "\n    {finding}");
    }
    text
}

/// A migration in one line.
#[must_use]
pub fn listed(migration: &ListedMigration) -> String {
    let ListedMigration { migration: id, vm, role, state, peer, .. } = migration;
    let peer = if peer.is_empty() { "?" } else { peer };
    let way = if role == "source" { "to" } else { "from" };
    let vm = if vm.is_empty() { "?" } else { vm };
    format!("{id}  {vm} {way} {peer}  {state}")
}

/// A migration in several lines.
#[must_use]
pub fn shown(shown: &Shown) -> String {
    let Shown { status: Status { record, live, findings }, over } = shown;
    let mut lines = vec![head(record), format!("  state      {}", state(&record.role))];
    if !over && (live.ram_total + live.disk_total > 0 || live.postcopy.is_some()) {
        lines.push(format!("  now        {}", progress(live)));
    }
    if let Some(predicted) = &record.report.predicted {
        lines.push(plan(predicted));
    }
    if record.report.total_ms.is_some() {
        lines.push(format!("  measured   {}", measured(&record.report)));
    }
    if let Some(grade) = &record.report.grade {
        lines.push(format!("  grade      {grade}"));
    }
    if let Some(note) = &record.report.note {
        lines.push(format!("  note       {note}"));
    }
    lines.extend(findings.iter().map(|one| format!("  {}", finding(one))));
    if let Some(next) = next(record, live) {
        lines.push(format!("  next       {next}"));
    }
    lines.join("\n")
}

fn head(record: &Record) -> String {
    let Record { migration, vm, peer, generation, .. } = record;
    let way = match &record.role {
        Role::Source { address, .. } if peer.is_empty() => format!("to {address}"),
        Role::Source { .. } => format!("to {peer}"),
        Role::Destination { .. } => format!("from {peer}"),
    };
    format!("{migration}  {vm} {way}, generation {generation}")
}

/// Where a migration stands, with the reason where there is one.
#[must_use]
pub fn state(role: &Role) -> String {
    use DestinationState as D;
    use SourceState as S;
    match role {
        Role::Source {
            state: state @ (S::Undoing(why) | S::RolledBack(why) | S::Stopped(why) | S::Lost(why)),
            ..
        } => {
            format!("{}: {why}", state.name())
        }
        Role::Source { state, .. } => state.name().to_owned(),
        Role::Destination {
            state:
                state @ (D::Burning(why) | D::Burned(why) | D::Revoking(why) | D::Revoked(why) | D::Lost(why)),
            ..
        } => format!("{}: {why}", state.name()),
        Role::Destination { state, .. } => state.name().to_owned(),
    }
}

/// What somebody can do in this state, if it waits for somebody.
fn next(record: &Record, live: &Live) -> Option<String> {
    let (id, peer, vm) = (short(&record.migration), &record.peer, &record.vm);
    match &record.role {
        Role::Source { state: SourceState::Running, .. } if live.postcopy == Some(Postcopy::Paused) => {
            Some(format!("wait until {peer} can be reached again; part of the memory of {vm} is here alone"))
        }
        Role::Destination { state: DestinationState::Running, .. }
            if live.postcopy == Some(Postcopy::Paused) =>
        {
            Some(format!(
                "wait until {peer} dials again; it has part of the memory of {vm}. If it never will, the guest is lost: \
                 novaferry-agent migration resolve {id} --keep destination --other-side-is-off"
            ))
        }
        Role::Source { state: SourceState::Lost(_), .. } => Some(format!(
            "the guest is lost: end what is left of it at {peer}, and start {vm} there from its disks"
        )),
        Role::Destination { state: DestinationState::Lost(_), .. } => {
            Some(format!("the guest is lost: end what is left of it, and start {vm} here from its disks"))
        }
        Role::Source { state: SourceState::Proven, .. } => {
            Some(format!("novaferry-agent migration finalise {id}   (gives up the copy here)"))
        }
        Role::Source { state: SourceState::InDoubt, .. } => Some(format!(
            "wait for {peer}; or make sure that it is off, and: novaferry-agent migration resolve {id} --keep source \
             --other-side-is-off"
        )),
        Role::Source { state: SourceState::DestinationLost, .. } => Some(format!(
            "the guest died at {peer}; choose a copy: novaferry-agent migration resolve {id} --keep \
             source|destination --other-side-is-off"
        )),
        Role::Source { state: SourceState::TakingBack, .. } => Some(format!(
            "wait for {peer} to end the guest; or make sure that it is off, and: novaferry-agent migration resolve {id} \
             --keep source --other-side-is-off"
        )),
        _ => None,
    }
}

/// The figures of an instant in one line.
#[must_use]
pub fn progress(live: &Live) -> String {
    let mut parts = Vec::new();
    if live.disk_total > 0 {
        let percent = u128::from(live.disk_done) * 100 / u128::from(live.disk_total);
        parts.push(format!("disks {percent} % of {}", bytes(live.disk_total)));
    }
    if live.ram_total > 0 {
        let left = bytes(live.ram_remaining);
        parts.push(format!("RAM round {}, {left} of {} left", live.round, bytes(live.ram_total)));
    }
    if let Some(postcopy) = live.postcopy {
        let text = match postcopy {
            Postcopy::Active => "postcopy-active: the guest runs there, and its memory follows",
            Postcopy::Paused => "postcopy-paused: the connection is lost, and the guest waits for its memory",
            Postcopy::Recovering => "postcopy-recover: its memory is about to follow again",
        };
        parts.push(text.to_owned());
    }
    if live.rate > 0 {
        parts.push(rate(live.rate));
    }
    if live.lost_ms > 0 {
        parts.push(format!("the connection has been lost for {} s", live.lost_ms / 1000));
    }
    if live.dirty_rate > 0 {
        parts.push(format!("{} dirtied", rate(live.dirty_rate)));
    }
    if live.expected_downtime_ms > 0 {
        parts.push(format!("pause of {} ms expected", live.expected_downtime_ms));
    }
    parts.join("  ")
}

/// What is expected, in one line.
#[must_use]
pub fn prediction(predicted: &Prediction) -> String {
    let time = duration(Duration::from_millis(predicted.total_ms));
    if !predicted.converges {
        return format!(
            "does not converge: {} dirtied, {} travel",
            rate(predicted.dirty_rate),
            rate(predicted.link_rate)
        );
    }
    let pause = match predicted.downtime_ms {
        0 => String::new(),
        millis => format!("a pause of some {millis} ms, "),
    };
    format!("{time}, {pause}{} on the wire", bytes(predicted.wire_bytes))
}

/// The link as it was found, in one line.
#[must_use]
pub fn link(predicted: &Prediction) -> String {
    let mut text = rate(predicted.link_rate);
    text.push_str(if predicted.link_measured { ", measured" } else { ", assumed" });
    if let Some(micros) = predicted.round_trip_us {
        let _infallible = write!(text, "; round trip {}.{} ms", micros / 1000, micros % 1000 / 100);
    }
    if predicted.dirty_rate > 0 {
        let _infallible = write!(text, "; the guest dirties {}", rate(predicted.dirty_rate));
    }
    text
}

/// The plan, in several lines: how, how long, over what, and where the figures come from.
#[must_use]
pub fn plan(predicted: &Prediction) -> String {
    format!(
        "  method     {}\n  expected   {}\n  link       {}\n  basis      {}",
        predicted.method,
        prediction(predicted),
        link(predicted),
        predicted.basis
    )
}

/// What was measured, in one line.
#[must_use]
pub fn measured(report: &Report) -> String {
    let time = |millis: Option<u64>| {
        millis.map_or_else(|| "?".to_owned(), |millis| duration(Duration::from_millis(millis)))
    };
    let pause = report.downtime_ms.map_or_else(|| "?".to_owned(), |millis| format!("{millis} ms"));
    format!(
        "{}, a pause of {pause}, {} on the wire for {}, {} rounds",
        time(report.total_ms),
        bytes(report.ram_wire.saturating_add(report.disk_wire)),
        bytes(report.ram_plain.saturating_add(report.disk_plain)),
        report.rounds,
    )
}

/// A finding in one line.
#[must_use]
pub fn finding(finding: &Finding) -> String {
    let Finding { rule, evidence, fix, blocking } = finding;
    let weight = if *blocking { "BLOCKS" } else { "warning" };
    format!("{weight}  {rule}: {evidence}; {fix}")
}

#[cfg(test)]
mod tests {
    use volume::SessionId;

    use super::*;
    use crate::control::migration::ListedNeeds;

    #[test]
    fn vms_for_people() {
        let listed = |access| ListedVm {
            id: "7f".to_owned(),
            name: "web".to_owned(),
            state: "running".to_owned(),
            access,
            pid: Some(7),
            folder: None,
            needs: ListedNeeds { memory_bytes: 2 << 30, processors: 2, ..ListedNeeds::default() },
            findings: vec!["odd".to_owned()],
        };
        assert_eq!(
            vm(&listed(ListedAccess::Live { qmp: "/q".to_owned() })),
            "7f (web)  running  live\n    2.0 GiB of memory, 2 processors\n    odd"
        );
        let (reason, fix) = ("it has no monitor".to_owned(), "-qmp unix:/q".to_owned());
        assert_eq!(
            vm(&listed(ListedAccess::ColdOrWarmOnly { reason, fix })),
            "7f (web)  running  cold or warm only: it has no monitor; for live, start it with -qmp unix:/q\n    2.0 GiB of memory, 2 processors\n    odd"
        );
    }

    #[test]
    fn plans_for_people() {
        let predicted = Prediction {
            method: "live".to_owned(),
            total_ms: 61_000,
            memory_ms: 0,
            hosts_ms: 30,
            downtime_ms: 40,
            wire_bytes: 3 << 20,
            dirty_rate: 5_000_000,
            link_rate: 12_000_000,
            link_measured: true,
            round_trip_us: Some(1_250),
            converges: true,
            basis: "measured".to_owned(),
        };
        assert_eq!(
            plan(&predicted),
            "  method     live\n  expected   1:01, a pause of some 40 ms, 3.0 MiB on the wire\n  link       12.0 MB/s, \
             measured; round trip 1.2 ms; the guest dirties 5.0 MB/s\n  basis      measured"
        );
        let cold = Prediction {
            downtime_ms: 0,
            dirty_rate: 0,
            link_measured: false,
            round_trip_us: None,
            ..predicted
        };
        assert_eq!(prediction(&cold), "1:01, 3.0 MiB on the wire");
        assert_eq!(link(&cold), "12.0 MB/s, assumed");
        let never = Prediction { converges: false, ..cold };
        assert!(prediction(&never).starts_with("does not converge: 0"), "{}", prediction(&never));
    }

    #[test]
    fn migrations_for_people() {
        let role = Role::Source {
            state: SourceState::InDoubt,
            address: "host-b:7440".to_owned(),
            alternates: Vec::new(),
            qmp: "/q".to_owned(),
            folder: None,
            process: None,
            fenced: true,
            was_paused: false,
        };
        let mut record = Record::new(SessionId([0xab; 16]), "web", "host-b", role);
        record.generation = 3;
        record.report.total_ms = Some(61_500);
        record.report.downtime_ms = Some(120);
        record.report.ram_plain = 3 << 20;
        record.report.ram_wire = 1 << 20;
        record.report.rounds = 2;
        let live = Live {
            disk_done: 1 << 29,
            disk_total: 1 << 30,
            ram_remaining: 1 << 20,
            ram_total: 1 << 28,
            round: 2,
            rate: 45_000_000,
            dirty_rate: 3_000_000,
            expected_downtime_ms: 80,
            ..Live::default()
        };
        let findings = vec![Finding::warning("clock-skew", "3 s", "use NTP")];
        let status = Status { record: record.clone(), live, findings };
        let id = "ab".repeat(16);
        assert_eq!(
            shown(&Shown { status, over: false }),
            format!(
                "{id}  web to host-b, generation 3\n  state      in-doubt\n  now        disks 50 % of 1.0 GiB  RAM round \
                 2, 1.0 MiB of 256.0 MiB left  45.0 MB/s  3.0 MB/s dirtied  pause of 80 ms expected\n  measured   1:01, \
                 a pause of 120 ms, 1.0 MiB on the wire for 3.0 MiB, 2 rounds\n  warning  clock-skew: 3 s; use NTP\n  \
                 next       wait for host-b; or make sure that it is off, and: novaferry-agent migration resolve abababab \
                 --keep source --other-side-is-off"
            )
        );
        assert_eq!(listed(&ListedMigration::new(&record, false)), format!("{id}  web to host-b  in-doubt"));
    }
}
