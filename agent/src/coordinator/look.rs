//! What this host says of itself.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use control_api::v1::{Host, Moves, Observed, Pool, Progress, Receipts, Root, Vm};
use engine::migrate::destination::receipts_of;
use engine::receipt::ReceiptSigner;
use serde_json::json;

use super::qemu::Qemu;
use crate::control::migration::{ListedAccess, ListedNeeds, ListedVm, Shown, role_name};
use crate::daemon::Desk;
use crate::output::migration as text;

/// Bytes of labels of all VMs: a quarter of the longest message. Whoever writes NovaCron's tags must not be able to make
/// one that is too long to be said.
const MOST_LABELS: usize = control_api::MAX_MESSAGE / 4;

/// Most that one message says of migrations, bytes: a quarter of the longest message.
const PORTION: usize = control_api::MAX_MESSAGE / 4;
/// What is said of each besides what may be long, bytes at most.
const SMALL: usize = 16 << 10;

/// Looks at this host, and remembers what it said.
#[derive(Debug)]
pub(super) struct Looks {
    desk: Desk,
    pools: Vec<(String, PathBuf)>,
    qemu: Qemu,
    observed: Option<Observed>,
    /// Without receipts, which follow from the record and the signer.
    moves: HashMap<String, Progress>,
    signer: Option<Arc<ReceiptSigner>>,
}

impl Looks {
    /// `vmd` is where vmd listens.
    pub(super) fn new(desk: Desk, pools: Vec<(String, PathBuf)>, vmd: PathBuf) -> Self {
        Self { desk, pools, qemu: Qemu::new(vmd), observed: None, moves: HashMap::new(), signer: None }
    }

    /// A new line: everything is to be said again.
    pub(super) fn forget(&mut self) {
        self.observed = None;
        self.moves.clear();
    }

    /// The host and its VMs, if that is news. What cannot be found out is left as it was.
    pub(super) async fn observed(&mut self) -> Option<Observed> {
        let vms = match self.desk.list_vms().await {
            Ok(vms) => vms,
            Err(why) => {
                tracing::warn!(why, "the coordinator is not told of VMs");
                return None;
            }
        };
        let pools = self.pools.clone();
        let host = tokio::task::spawn_blocking(move || host(&pools)).await;
        let host = host.inspect_err(|error| tracing::error!(%error, "looking at this host failed")).ok()?;
        let host = Host { qemu: self.qemu.version().await, ..host };
        let observed = Observed { host: Some(host), vms: bounded(vms.into_iter().map(vm).collect()) };
        if self.observed.as_ref().is_some_and(|known| is_same(known, &observed)) {
            return None;
        }
        self.observed = Some(observed.clone());
        Some(observed)
    }

    /// Migrations that moved on since, in messages that are not too long.
    pub(super) async fn moves(&mut self) -> Vec<Moves> {
        let all = match self.desk.shown().await {
            Ok(all) => all,
            Err(why) => {
                tracing::warn!(why, "the coordinator is not told of migrations");
                return Vec::new();
            }
        };
        let signer = self.desk.signer();
        if self.signer.as_ref().map(Arc::as_ptr) != signer.as_ref().map(Arc::as_ptr) {
            // What was signed with the certificate before is said again.
            self.moves.retain(|_, told| !(told.over && told.role == "destination"));
            self.signer.clone_from(&signer);
        }
        let mut news = Vec::new();
        for shown in &all {
            let mut progress = progress(shown);
            if self.moves.get(&progress.id) == Some(&progress) {
                continue;
            }
            self.moves.insert(progress.id.clone(), progress.clone());
            // Signed for the telling alone: there may be many that ended long ago.
            let json = signer.as_ref().and_then(|signer| receipts_of(&shown.status.record, signer));
            progress.receipts = json.map(|json| Receipts { json });
            news.push(progress);
        }
        self.moves.retain(|id, _| all.iter().any(|shown| shown.status.record.migration == *id));
        portions(news)
    }
}

/// As few messages as hold these, each with about [`PORTION`] bytes at most.
fn portions(news: Vec<Progress>) -> Vec<Moves> {
    let mut portions: Vec<Moves> = Vec::new();
    let mut room = 0;
    for progress in news {
        let receipts = progress.receipts.iter().flat_map(|receipts| &receipts.json).map(String::len);
        let size = SMALL + progress.report.len() + receipts.sum::<usize>();
        match portions.last_mut().filter(|_| size <= room) {
            Some(last) => {
                room -= size;
                last.migrations.push(progress);
            }
            None => {
                room = PORTION.saturating_sub(size);
                portions.push(Moves { migrations: vec![progress] });
            }
        }
    }
    portions
}

/// Free memory and disks change all the time; only a change of a sixteenth is worth a word.
fn is_same(known: &Observed, now: &Observed) -> bool {
    let near = |a: u64, b: u64| a.abs_diff(b) <= a / 16;
    let [a, b] = [known, now].map(|one| one.host.clone().unwrap_or_default());
    let pools_near = a.pools.len() == b.pools.len()
        && a.pools.iter().zip(&b.pools).all(|(a, b)| a.name == b.name && near(a.free_bytes, b.free_bytes));
    let rest = |host: &Host| Host { memory_available_bytes: 0, pools: Vec::new(), ..host.clone() };
    known.vms == now.vms
        && rest(&a) == rest(&b)
        && near(a.memory_available_bytes, b.memory_available_bytes)
        && pools_near
}

fn host(pools: &[(String, PathBuf)]) -> Host {
    let read = |path: &str| {
        std::fs::read_to_string(path)
            .inspect_err(|error| tracing::debug!(path, %error, "cannot look at this host"))
            .unwrap_or_default()
    };
    let memory = read("/proc/meminfo");
    let field = |name: &str| -> u64 {
        let line = memory.lines().find_map(|line| line.strip_prefix(name));
        let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kibibytes.unwrap_or(0).saturating_mul(1024)
    };
    // Where /proc shows processes alone (ProcSubset=pid of the unit), what is free counts without the page cache.
    let system = rustix::system::sysinfo();
    let bytes = |units: u64| units.saturating_mul(u64::from(system.mem_unit));
    let known = |bytes: u64, otherwise: u64| if bytes > 0 { bytes } else { otherwise };
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let model = read("/proc/cpuinfo");
    let model = model.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let pools = pools.iter().map(|(name, path)| {
        // A pool that cannot be looked at has no room.
        let free = rustix::fs::statvfs(path).map_or(0, |fs| fs.f_bavail.saturating_mul(fs.f_frsize));
        Pool { name: name.clone(), free_bytes: free }
    });
    Host {
        processors: u32::try_from(processors).unwrap_or(u32::MAX),
        memory_bytes: known(field("MemTotal:"), bytes(system.totalram)),
        memory_available_bytes: known(field("MemAvailable:"), bytes(system.freeram)),
        processor: model.map(|(_, model)| model.trim().to_owned()).unwrap_or_default(),
        kvm: std::path::Path::new("/dev/kvm").exists(),
        pools: pools.collect(),
        qemu: String::new(),
    }
}

fn vm(vm: ListedVm) -> Vm {
    let (access, reason) = match vm.access {
        ListedAccess::Live { .. } => ("live", String::new()),
        ListedAccess::ColdOrWarmOnly { reason, fix } => ("cold-or-warm", format!("{reason}; {fix}")),
        ListedAccess::NotYet { reason } => ("not-yet", reason),
        ListedAccess::Stopped => ("stopped", String::new()),
    };
    let ListedNeeds { memory_bytes, processors, disk_bytes, cpu, machine, kvm, tenant, labels } = vm.needs;
    Vm {
        id: vm.id,
        name: vm.name,
        state: vm.state,
        access: access.to_owned(),
        reason,
        memory_bytes,
        processors,
        disk_bytes,
        cpu,
        machine,
        kvm,
        tenant,
        labels: labels.into_iter().collect(),
    }
}

/// Without the labels of those VMs for which there is no room.
fn bounded(mut vms: Vec<Vm>) -> Vec<Vm> {
    let (mut left, mut without) = (MOST_LABELS, 0_u32);
    for vm in &mut vms {
        let length = vm.labels.iter().map(|(name, value)| name.len() + value.len()).sum();
        match left.checked_sub(length) {
            Some(rest) => left = rest,
            None => {
                vm.labels.clear();
                without += 1;
            }
        }
    }
    if without > 0 {
        tracing::warn!(
            vms = without,
            "the coordinator is not told of labels: all VMs together have too many"
        );
    }
    vms
}

fn progress(shown: &Shown) -> Progress {
    let (record, live) = (&shown.status.record, &shown.status.live);
    let report = json!({ "text": text::state(&record.role), "report": record.report, "findings": shown.status.findings });
    Progress {
        id: record.migration.clone(),
        vm: record.vm.clone(),
        peer: record.peer.clone(),
        role: role_name(&record.role).to_owned(),
        state: record.state_name().to_owned(),
        over: shown.over,
        generation: record.generation,
        disk_done: live.disk_done,
        disk_total: live.disk_total,
        ram_remaining: live.ram_remaining,
        ram_total: live.ram_total,
        rate: live.rate,
        expected_downtime_ms: live.expected_downtime_ms,
        report: report.to_string(),
        receipts: None,
        roots: record
            .roots
            .iter()
            .map(|root| Root { disk: root.disk.clone(), root: root.root.clone() })
            .collect(),
        waits: live.waits.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_can_be_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let host =
            host(&[("fast".to_owned(), folder.path().to_owned()), ("gone".to_owned(), "/no/where".into())]);
        assert!(host.processors > 0 && host.memory_bytes > host.memory_available_bytes, "{host:?}");
        assert!(host.pools[0].free_bytes > 0 && host.pools[1].free_bytes == 0, "{host:?}");
    }

    #[test]
    fn labels_that_fit_no_message_are_left_out() {
        let with =
            |length: usize| Vm { labels: [("l".to_owned(), "x".repeat(length))].into(), ..Vm::default() };
        let vms = bounded(vec![with(MOST_LABELS - 3), with(2), with(1), with(1)]);
        assert_eq!(vms.iter().map(|vm| vm.labels.len()).collect::<Vec<_>>(), [1, 0, 1, 0]);
    }

    #[test]
    fn what_is_long_is_said_in_portions() {
        let of = |size: usize| Progress { report: "x".repeat(size), ..Progress::default() };
        let receipts = Receipts { json: vec!["x".repeat(PORTION / 10 * 3); 3] };
        let large = Progress { receipts: Some(receipts), ..Progress::default() };
        let portions = portions(vec![of(10), of(10), large.clone(), large, of(PORTION * 2), of(10)]);
        let counts: Vec<_> = portions.iter().map(|moves| moves.migrations.len()).collect();
        assert_eq!(counts, [3, 1, 1, 1]);
        assert!(super::portions(Vec::new()).is_empty());
    }

    #[test]
    fn small_changes_of_what_is_free_are_no_news() {
        let with = |free: u64, name: &str| {
            let pools = vec![Pool { name: name.to_owned(), free_bytes: free }];
            let host = Host { memory_available_bytes: free, pools, ..Host::default() };
            Observed { host: Some(host), vms: Vec::new() }
        };
        assert!(is_same(&with(1600, "a"), &with(1501, "a")));
        assert!(!is_same(&with(1600, "a"), &with(1400, "a")));
        assert!(!is_same(&with(1600, "a"), &with(1600, "b")));
    }
}
