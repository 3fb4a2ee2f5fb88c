//! What a migration takes: from what earlier ones took, and from what is known of the VM and the link.

use model::host::Needs;
use model::migration::{Migration, Mode, State};
use model::plan::{Estimate, cost};

use crate::fleet::Way;
use crate::report::Took;

/// Migrations that are looked at, newest first: what was long ago says little.
const MOST: usize = 200;
/// Without experience: the share of a VM's RAM and disks that crosses the wire, percent. Guests rarely use more than half
/// of their RAM, and what they use is reduced to less than half.
const SHARE: u64 = 40;
/// Without a link's rate, bytes a second: a tenth of gigabit Ethernet, which any link worth the name has.
const RATE: u64 = 12_500_000;
/// Share of a link's rate that a migration gets, percent.
const USED: u64 = 90;
/// What a move takes beside its bytes: connections, preflight, QEMU's start, cut-over and proof.
const OVERHEAD_MS: u64 = 2_500;
/// A guest's reboot, of a warm move.
const REBOOT_MS: u64 = 30_000;
/// Without experience: a live move's pause beside a round trip.
const PAUSE_MS: u64 = 60;

/// What earlier migrations took, of the ones that arrived.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Experience {
    past: Vec<Past>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Past {
    vm: String,
    link: Option<model::Name>,
    mode: Mode,
    downtime_ms: Option<u64>,
    wire: u64,
    /// RAM and disks of the VM, if they were known.
    size: u64,
}

impl Experience {
    /// Learns from migrations, given newest first. Those that did not arrive, or have no report, teach nothing.
    #[must_use]
    pub fn of<'a>(migrations: impl IntoIterator<Item = &'a Migration>) -> Self {
        Self { past: migrations.into_iter().filter_map(past).take(MOST).collect() }
    }

    /// The median of what is known best: of this VM, or else of this link, or else of all.
    fn median(
        &self,
        vm: &str,
        way: &Way,
        mode: Mode,
        of: impl Fn(&Past) -> Option<u64>,
    ) -> Option<(u64, String)> {
        let values = |keep: &dyn Fn(&Past) -> bool| -> Vec<u64> {
            let mut values: Vec<u64> =
                self.past.iter().filter(|past| past.mode == mode && keep(past)).filter_map(&of).collect();
            values.sort_unstable();
            values
        };
        let link = &way.link;
        let all = [
            (values(&|past| past.vm == vm), "earlier moves of this VM"),
            (values(&|past| link.is_some() && past.link == *link), "earlier moves over this link"),
            (values(&|_| true), "earlier moves of the fleet"),
        ];
        let (values, whose) = all.into_iter().find(|(values, _)| !values.is_empty())?;
        Some((values[values.len() / 2], format!("{} {whose}", values.len())))
    }
}

fn past(migration: &Migration) -> Option<Past> {
    if migration.state != State::Completed {
        return None;
    }
    let took = Took::of(migration)?;
    Some(Past {
        vm: migration.vm.clone(),
        link: migration.link.clone(),
        mode: migration.options.mode,
        downtime_ms: took.downtime_ms,
        wire: took.bytes,
        size: migration.needs.memory_bytes.saturating_add(migration.needs.disk_bytes),
    })
}

/// What a VM's move over a way takes.
#[must_use]
pub fn estimate(experience: &Experience, vm: &str, needs: &Needs, way: &Way, mode: Mode) -> Estimate {
    let mut basis = Vec::new();
    let size = needs.memory_bytes.saturating_add(needs.disk_bytes);
    let moved = match mode {
        Mode::Live => size,
        Mode::Warm | Mode::Cold => needs.disk_bytes,
    };
    // Of this VM itself the bytes; of others the share of their size.
    let itself = experience.past.iter().any(|past| past.vm == vm && past.mode == mode);
    let bytes = if itself {
        experience.median(vm, way, mode, |past| Some(past.wire))
    } else {
        let share = |past: &Past| (past.size > 0).then(|| permille(past.wire, past.size));
        let scaled = experience.median(vm, way, mode, share);
        scaled.map(|(share, whose)| (share.saturating_mul(size / 1000), whose))
    };
    let (bytes, whose) = bytes.unwrap_or_else(|| {
        (moved / 100 * SHARE, format!("{SHARE} % of the VM's {} MiB, as nothing is known", moved >> 20))
    });
    if size == 0 {
        basis.push("the VM's size is not known: its agent does not say".to_owned());
    }
    basis.push(format!("bytes: {whose}"));
    let rate = match way.rate {
        Some((rate, measured)) => {
            basis.push(format!(
                "rate: {USED} % of {} kB/s, {}",
                rate / 1000,
                if measured { "measured" } else { "declared" }
            ));
            rate
        }
        None => {
            basis.push(format!("rate: {} kB/s, as nothing is known of the way", RATE / 1000));
            RATE
        }
    };
    let rate = (rate / 100 * USED).max(1);
    let transfer = u64::try_from(u128::from(bytes) * 1000 / u128::from(rate)).unwrap_or(u64::MAX);
    let rtt = way.rtt_us.unwrap_or(0) / 1000;
    let measured = experience.median(vm, way, mode, |past| past.downtime_ms);
    let downtime = match (mode, measured) {
        (Mode::Cold, _) => 0,
        (_, Some((downtime, whose))) => {
            basis.push(format!("pause: {whose}"));
            downtime
        }
        (Mode::Live, None) => PAUSE_MS.saturating_add(rtt),
        (Mode::Warm, None) => REBOOT_MS,
    };
    let duration = transfer.saturating_add(OVERHEAD_MS).saturating_add(rtt.saturating_mul(20));
    let duration = duration.saturating_add(if mode == Mode::Warm { downtime } else { 0 });
    Estimate {
        duration_ms: duration,
        downtime_ms: downtime,
        bytes,
        cost_micros: cost(&way.price, bytes, duration),
        currency: way.price.currency.clone(),
        basis,
    }
}

fn permille(part: u64, whole: u64) -> u64 {
    u64::try_from(u128::from(part) * 1000 / u128::from(whole.max(1))).unwrap_or(u64::MAX)
}
