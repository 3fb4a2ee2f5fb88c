//! `migration show`, `host show` and `vm show` for people.

use model::host::{Host, Observed, Vm};
use model::migration::{Migration, Mode, Progress, Proof, Wish};
use serde_json::Value;

use super::units::{bytes, span, speed, when};
use crate::follow::percent;
use crate::output::{self, plain};

/// Names beside values, as wide as the widest name.
pub(super) fn fields(fields: &[(&str, String)]) {
    lines(fields).iter().for_each(|text| output::line(text));
}

fn lines(fields: &[(&str, String)]) -> Vec<String> {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    fields.iter().map(|(name, value)| format!("{name:width$}  {}", plain(value))).collect()
}

fn shown(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().as_ref().map(super::show::text).unwrap_or_default()
}

fn time(time: Option<model::Timestamp>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| format!("{} ({time})", when(&shown(&time).into())))
}

pub(super) fn migration(migration: &Migration, waits: Option<&str>) {
    let mut summary = summary(migration);
    summary.extend(waits.map(|waits| ("waits for", waits.to_owned())));
    fields(&summary);
    let ends = ends(migration);
    if !ends.is_empty() {
        output::line("");
        let head = ["", "SOURCE", "DESTINATION"];
        output::table(&head, ends);
    }
    for (title, text) in reports(migration) {
        output::line(&format!("\n{title}"));
        text.iter().for_each(|text| output::line(&format!("  {text}")));
    }
}

fn summary(migration: &Migration) -> Vec<(&'static str, String)> {
    let options = &migration.options;
    let mode = match options.mode {
        Mode::Live => "live",
        Mode::Warm => "warm",
        Mode::Cold => "cold",
    };
    let mut how = vec![mode.to_owned()];
    how.extend(options.max_downtime_ms.map(|longest| format!("pause of at most {}", span(longest))));
    how.extend(options.limit.map(|limit| format!("at most {}", speed(limit))));
    how.extend(options.hold.then(|| "the source's copy is held".to_owned()));
    how.extend(options.seed.then(|| "leaves when it is told to".to_owned()));
    how.extend(options.cutover_at.map(|at| format!("leaves from {at} on")));
    how.extend(options.dry_run.then(|| "only a rehearsal".to_owned()));
    let mut fields = vec![
        ("migration", migration.id.clone()),
        ("vm", migration.vm.clone()),
        ("from", migration.source.to_string()),
        ("to", migration.destination.to_string()),
        (
            "state",
            format!("{}{}", migration.state.as_str(), if migration.is_parked() { ", in step" } else { "" }),
        ),
        ("how", how.join(", ")),
        ("asked", format!("{}, by {}", time(Some(migration.created)), migration.by)),
        ("changed", time(Some(migration.changed))),
    ];
    if migration.wish != Wish::Arrive {
        fields.push(("wish", shown(&migration.wish)));
    }
    if let Some(why) = &migration.refusal {
        fields.push(("refused", why.clone()));
    }
    if let Some(proof) = &migration.proof {
        fields.push(("proof", proven(proof)));
    }
    if let Some(why) = &migration.unproven {
        fields.push(("not proven", why.clone()));
    }
    fields
}

fn proven(proof: &Proof) -> String {
    let size = proof.disks.iter().fold(0_u64, |sum, disk| sum.saturating_add(disk.bytes));
    let same = if proof.both { "the same at both ends" } else { "the source does not say" };
    format!("{} disks of {}, {same}, signed by {}", proof.disks.len(), bytes(size), proof.by)
}

/// What both hosts said last, line by line.
fn ends(migration: &Migration) -> Vec<Vec<String>> {
    let ends = [&migration.at_source, &migration.at_destination];
    if ends.iter().all(|end| end.is_none()) {
        return Vec::new();
    }
    let row = |name: &str, of: &dyn Fn(&Progress) -> String| {
        let mut row = vec![name.to_owned()];
        row.extend(ends.map(|end| end.as_ref().map_or_else(|| "has said nothing".to_owned(), of)));
        row
    };
    let dash = || "-".to_owned();
    let part = |done: u64, all: u64| match percent(done, all) {
        Some(percent) => format!("{} of {} ({percent} %)", bytes(done), bytes(all)),
        None => "-".to_owned(),
    };
    vec![
        row("state", &|end| end.state.clone()),
        row("works on it", &|end| if end.over { "no more" } else { "yes" }.to_owned()),
        row("generation", &|end| end.generation.to_string()),
        row("disks", &|end| part(end.disk_done, end.disk_total)),
        row("memory", &|end| part(end.ram_total.saturating_sub(end.ram_remaining), end.ram_total)),
        row("rate", &|end| if end.rate > 0 { speed(end.rate) } else { dash() }),
        row("pause expected", &|end| match end.expected_downtime_ms {
            0 => dash(),
            pause => span(pause),
        }),
    ]
}

/// What was expected, what it came to, and what was found, each under its title.
fn reports(migration: &Migration) -> Vec<(String, Vec<String>)> {
    let mut all = Vec::new();
    let Some(report) = migration.at_source.as_ref().map(|end| &end.report) else { return all };
    let figures = &report["report"];
    let texts = |value: &Value| plain(value.as_str().unwrap_or_default());
    let measured = |of: &Value, name: &str, show: fn(u64) -> String| of[name].as_u64().map(show);
    let predicted = &figures["predicted"];
    if predicted.is_object() {
        let fields = [
            ("time", measured(predicted, "total_ms", span)),
            ("pause", measured(predicted, "downtime_ms", span)),
            ("data", measured(predicted, "wire_bytes", bytes)),
            ("guest writes", measured(predicted, "dirty_rate", speed)),
            ("link", measured(predicted, "link_rate", speed)),
            ("by", predicted["basis"].as_str().filter(|basis| !basis.is_empty()).map(ToOwned::to_owned)),
        ];
        all.push(("expected".to_owned(), present(fields)));
    }
    let wire = |name: &str| figures[name].as_u64().unwrap_or(0);
    let sent = wire("ram_wire").saturating_add(wire("disk_wire"));
    let plain_bytes = wire("ram_plain").saturating_add(wire("disk_plain"));
    if figures["total_ms"].is_u64() || sent > 0 {
        let fields = [
            ("time", measured(figures, "total_ms", span)),
            ("pause", measured(figures, "downtime_ms", span)),
            ("data", Some(format!("{} on the wire for {}", bytes(sent), bytes(plain_bytes)))),
            ("rounds", Some(wire("rounds").to_string())),
            ("reconnects", Some(wire("reconnects").to_string()).filter(|count| count != "0")),
            (
                "throttled",
                Some(wire("throttled_percent")).filter(|most| *most > 0).map(|most| format!("{most} %")),
            ),
            ("grade", figures["grade"].as_str().map(ToOwned::to_owned)),
            ("note", figures["note"].as_str().map(ToOwned::to_owned)),
        ];
        all.push(("came to".to_owned(), present(fields)));
    }
    if let Some(findings) = report["findings"].as_array().filter(|findings| !findings.is_empty()) {
        let lines = findings.iter().flat_map(|finding| {
            let kind = if finding["blocking"] == true { "blocks" } else { "warning" };
            let first = format!("{kind}: {} ({})", texts(&finding["evidence"]), texts(&finding["rule"]));
            let fix = texts(&finding["fix"]);
            std::iter::once(first).chain((!fix.is_empty()).then(|| format!("  fix: {fix}")))
        });
        all.push(("findings".to_owned(), lines.collect()));
    }
    let said = texts(&report["text"]);
    if !said.is_empty() {
        all.push(("the source says".to_owned(), vec![said]));
    }
    all
}

fn present(fields: impl IntoIterator<Item = (&'static str, Option<String>)>) -> Vec<String> {
    let fields: Vec<_> = fields.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    lines(&fields)
}

/// How a host stands, as lists have it.
pub(super) fn stands(host: &Value) -> &'static str {
    match (&host["revoked"], &host["connected"]) {
        (Value::String(_), _) => "revoked",
        (_, Value::String(_)) => "connected",
        _ => "away",
    }
}

fn addresses(observed: &Observed) -> String {
    match (observed.addresses.is_empty(), observed.calls) {
        (false, _) => observed.addresses.join(", "),
        (true, true) => "none: it dials the other host".to_owned(),
        (true, false) => "-".to_owned(),
    }
}

pub(super) fn host(host: &Host, said: &Value) {
    let observed = host.observed.clone().unwrap_or_default();
    let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let mut all = vec![
        ("host", host.name.to_string()),
        ("site", host.site.to_string()),
        ("state", stands(said).to_owned()),
        ("joined", time(Some(host.joined))),
        ("seen", time(host.seen)),
        ("agent", or_dash(observed.version.clone())),
        ("addresses", addresses(&observed)),
        ("processors", format!("{} of {}", observed.processors, or_dash(observed.processor.clone()))),
        (
            "memory",
            format!("{}, {} to be had", bytes(observed.memory_bytes), bytes(observed.memory_available_bytes)),
        ),
        ("qemu", or_dash(observed.qemu.clone())),
        ("kvm", if observed.kvm { "yes" } else { "no" }.to_owned()),
    ];
    if host.revoked.is_some() {
        all.push(("revoked", time(host.revoked)));
    }
    fields(&all);
    if !observed.pools.is_empty() {
        output::line("");
        let pools = observed.pools.iter().map(|pool| vec![pool.name.clone(), bytes(pool.free_bytes)]);
        output::table(&["POOL", "FREE"], pools);
    }
    if !observed.vms.is_empty() {
        output::line("");
        let or_dash = |known: bool, text: String| if known { text } else { "-".to_owned() };
        let rows = observed.vms.iter().map(|vm| {
            let needs = &vm.needs;
            vec![
                vm.id.clone(),
                vm.name.clone(),
                vm.state.clone(),
                or_dash(needs.memory_bytes > 0, bytes(needs.memory_bytes)),
                or_dash(needs.processors > 0, needs.processors.to_string()),
                or_dash(needs.disk_bytes > 0, bytes(needs.disk_bytes)),
                vm.access.clone(),
            ]
        });
        output::table(&["VM", "NAME", "STATE", "MEMORY", "PROCESSORS", "DISKS", "MOVES"], rows);
    }
}

pub(super) fn vm(vm: &Vm, on: &str) {
    let mut all = vec![
        ("vm", vm.id.clone()),
        ("name", vm.name.clone()),
        ("host", on.to_owned()),
        ("state", vm.state.clone()),
        ("moves", vm.access.clone()),
    ];
    let needs = &vm.needs;
    let known = |size: u64| Some(bytes(size)).filter(|_| size > 0);
    let word = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let labels =
        needs.labels.iter().map(|(name, label)| format!("{name}={label}")).collect::<Vec<_>>().join(", ");
    let more = [
        ("memory", known(needs.memory_bytes)),
        ("disks", known(needs.disk_bytes)),
        ("processors", Some(needs.processors.to_string()).filter(|_| needs.processors > 0)),
        ("cpu", word(&needs.cpu)),
        ("machine", word(&needs.machine)),
        ("tenant", word(&needs.tenant)),
        ("labels", word(&labels)),
    ];
    all.extend(more.into_iter().filter_map(|(name, value)| Some((name, value?))));
    if !vm.reason.is_empty() {
        all.push(("because", vm.reason.clone()));
    }
    fields(&all);
}

#[cfg(test)]
mod tests;
