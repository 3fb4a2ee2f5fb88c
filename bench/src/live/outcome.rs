//! What moves came to, and whether the goals are met. `README.md` beside this crate is the schema of the JSON.

use serde::Serialize;

use super::case::{LiveCase, Plan};
use crate::report::Goal;
use crate::size::mebibytes;

/// Wire bytes by QEMU's at most.
const WIRE: f64 = 0.36;
/// Downtime beyond QEMU's and a round trip at most, milliseconds.
const DOWNTIME: f64 = 20.0;
/// Cost of pages that are sent again, percent of their size at most.
const AGAIN: f64 = 2.0;
/// Times as fast as QEMU at least, over a slow and long link.
const FASTER: f64 = 2.0;
/// Rate by QEMU's at least, where nothing can be reduced.
const RATE: f64 = 0.9;

/// Something that happened on the way.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct Step {
    /// `source` or `destination`.
    pub(super) host: &'static str,
    /// The state that was entered.
    pub(super) name: String,
    /// Milliseconds: since the move began (QEMU), since the agent's first step (novaferry).
    pub(super) ms: f64,
}

/// One move of one guest.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct Moved {
    /// From the start until the guest was heard at the destination.
    pub(super) seconds: f64,
    /// Of those, from the memory's first byte until the guest ran.
    pub(super) stream_seconds: f64,
    /// The guest's pause, by this host's clock at its heartbeat.
    pub(super) downtime_ms: f64,
    /// What QEMU says of it.
    pub(super) qemu_downtime_ms: Option<u64>,
    /// Bytes of memory that QEMU sent.
    pub(super) ram_plain: u64,
    /// Bytes of memory, devices included, as they travelled.
    pub(super) ram_wire: u64,
    /// The same of the disk.
    pub(super) disk_wire: u64,
    /// Bytes of packets on the emulated link, both directions.
    pub(super) link_bytes: Option<u64>,
    /// Pages that were sent again: their bytes, and what they cost.
    pub(super) again: Option<(u64, u64)>,
    /// Passes over the memory.
    pub(super) rounds: u64,
    /// CPU seconds of agents and vmd.
    pub(super) cpu_agents: f64,
    /// CPU seconds of both QEMUs, the guest's own work included.
    pub(super) cpu_qemu: f64,
    /// CPU seconds of this program: what it relayed, and the emulated link.
    pub(super) cpu_bench: f64,
    /// Heartbeats at each host.
    pub(super) heartbeats: Vec<u64>,
    /// What happened when.
    pub(super) steps: Vec<Step>,
}

impl Moved {
    /// Bytes that travelled: what the link counted, or else what the streams had.
    fn wire(&self) -> u64 {
        self.link_bytes.unwrap_or(self.ram_wire + self.disk_wire)
    }
}

/// Which side.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mover {
    Novaferry,
    Qemu,
}

/// A move, as it is printed.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Record {
    /// Always `move`.
    pub(super) kind: &'static str,
    pub(super) case: &'static str,
    /// Which repetition, from 1.
    pub(super) repeat: u32,
    /// Which pair in it, from 1.
    pub(super) pair: u32,
    pub(super) mover: Mover,
    #[serde(flatten)]
    pub(super) moved: Moved,
    /// Load averages when it was done.
    pub(super) load: [f64; 3],
    /// The guest was checked and whole; otherwise there is an error instead.
    pub(super) verified: bool,
}

/// Half and nineteen twentieths of the pairs were not above these.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(super) struct Spread {
    p50: f64,
    p95: f64,
}

/// One side of all pairs.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct Side {
    seconds: Spread,
    stream_seconds: Spread,
    downtime_ms: Spread,
    wire_bytes: Spread,
    ram_wire: Spread,
    disk_wire: Spread,
    /// Bytes of memory that QEMU sent, a second of the stream, in 10^6.
    stream_mb_per_s: Spread,
    cpu_agents: Spread,
    cpu_qemu: Spread,
}

/// All pairs of a case.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Summary {
    /// Always `live`.
    kind: &'static str,
    case: &'static str,
    repeat: u32,
    pairs: usize,
    novaferry: Side,
    qemu: Side,
    /// What pages that novaferry sent again cost, percent of their size; none when there were none.
    again_percent: Option<f64>,
    goals: Vec<Goal>,
}

/// The value that `part` of the values are not above: the nearest one of them.
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let nth = (sorted.len() as f64 * part).ceil();
    // The count of some pairs: small and not negative.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a whole number from 0 to the length"
    )]
    let nth = nth as usize;
    sorted.get(nth.saturating_sub(1)).copied().unwrap_or(0.0)
}

fn spread(moves: &[Moved], value: impl Fn(&Moved) -> f64) -> Spread {
    let mut values: Vec<f64> = moves.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    Spread { p50: quantile(&values, 0.5), p95: quantile(&values, 0.95) }
}

impl Side {
    fn of(moves: &[Moved]) -> Self {
        Self {
            seconds: spread(moves, |moved| moved.seconds),
            stream_seconds: spread(moves, |moved| moved.stream_seconds),
            downtime_ms: spread(moves, |moved| moved.downtime_ms),
            wire_bytes: spread(moves, |moved| moved.wire() as f64),
            ram_wire: spread(moves, |moved| moved.ram_wire as f64),
            disk_wire: spread(moves, |moved| moved.disk_wire as f64),
            stream_mb_per_s: spread(moves, |moved| moved.ram_plain as f64 / 1e6 / moved.stream_seconds),
            cpu_agents: spread(moves, |moved| moved.cpu_agents),
            cpu_qemu: spread(moves, |moved| moved.cpu_qemu),
        }
    }
}

impl Summary {
    /// Sums up the pairs of a case: `pairs` holds novaferry's and QEMU's moves.
    pub(super) fn of(case: LiveCase, plan: &Plan, repeat: u32, pairs: &[(Moved, Moved)]) -> Self {
        let (ours, theirs): (Vec<Moved>, Vec<Moved>) = pairs.iter().cloned().unzip();
        let (novaferry, qemu) = (Side::of(&ours), Side::of(&theirs));
        let again = ours.iter().filter_map(|moved| moved.again);
        let (plain, wire) = again.fold((0, 0), |sum, (plain, wire)| (sum.0 + plain, sum.1 + wire));
        let again_percent = (plain > 0).then(|| wire as f64 / plain as f64 * 100.0);
        let mut goals = Vec::new();
        match case {
            LiveCase::SameHost => {
                let ratio = novaferry.wire_bytes.p50 / qemu.wire_bytes.p50;
                goals.push(Goal::at_most("bytes by QEMU's", "x", ratio, WIRE));
                let bound = |theirs: f64| theirs + plan.round_trip + DOWNTIME;
                let (a, b) = (novaferry.downtime_ms, qemu.downtime_ms);
                goals.push(Goal::at_most("downtime p50", "ms", a.p50, bound(b.p50)));
                goals.push(Goal::at_most("downtime p95", "ms", a.p95, bound(b.p95)));
            }
            LiveCase::Heavy => {
                let name = "cost of pages sent again";
                // Without any, nothing was shown.
                goals.extend(again_percent.map(|percent| Goal::at_most(name, "%", percent, AGAIN)));
            }
            LiveCase::Wan => {
                let ratio = qemu.seconds.p50 / novaferry.seconds.p50;
                goals.push(Goal::at_least("times as fast as QEMU", "x", ratio, FASTER));
            }
            LiveCase::Gigabit => {
                let ratio = novaferry.stream_mb_per_s.p50 / qemu.stream_mb_per_s.p50;
                goals.push(Goal::at_least("rate of the memory by QEMU's", "x", ratio, RATE));
            }
        }
        Self {
            kind: "live",
            case: case.name(),
            repeat,
            pairs: pairs.len(),
            novaferry,
            qemu,
            again_percent,
            goals,
        }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("{} #{}: {} pairs, p50 (p95)\n", self.case, self.repeat, self.pairs);
        text.push_str("             seconds        stream s       downtime ms    wire MiB       MB/s stream    CPU-s agents  CPU-s QEMU");
        for (name, side) in [("novaferry", &self.novaferry), ("qemu", &self.qemu)] {
            let cell = |spread: Spread| format!("{:.2} ({:.2})", spread.p50, spread.p95);
            let mib = |spread: Spread| format!("{:.1} ({:.1})", spread.p50 / MIB, spread.p95 / MIB);
            text.push_str(&format!(
                "\n  {name:10} {:14} {:14} {:14} {:14} {:14} {:13} {}",
                cell(side.seconds),
                cell(side.stream_seconds),
                cell(side.downtime_ms),
                mib(side.wire_bytes),
                cell(side.stream_mb_per_s),
                cell(side.cpu_agents),
                cell(side.cpu_qemu),
            ));
        }
        if let Some(percent) = self.again_percent {
            text.push_str(&format!("\n  pages sent again cost {percent:.2} % of their size"));
        }
        for goal in &self.goals {
            text.push_str("\n  ");
            text.push_str(&goal.text());
        }
        text
    }
}

/// Bytes in a MiB.
const MIB: f64 = (1 << 20) as f64;

impl Record {
    /// For people.
    pub(crate) fn text(&self) -> String {
        let Moved {
            seconds,
            stream_seconds,
            downtime_ms,
            qemu_downtime_ms,
            ram_plain,
            ram_wire,
            disk_wire,
            link_bytes,
            again,
            rounds,
            cpu_agents,
            cpu_qemu,
            cpu_bench,
            heartbeats: _,
            steps,
        } = &self.moved;
        let mover = match self.mover {
            Mover::Novaferry => "novaferry",
            Mover::Qemu => "qemu",
        };
        let said = qemu_downtime_ms.map_or_else(String::new, |ms| format!(", QEMU says {ms}"));
        let link = link_bytes.map_or_else(String::new, |bytes| format!(", link {:.1} MiB", mebibytes(bytes)));
        let again = again.map_or_else(String::new, |(plain, wire)| {
            format!(", sent again {:.1} MiB as {:.2}", mebibytes(plain), mebibytes(wire))
        });
        let mut text = format!(
            "{} #{}.{} {mover}: {seconds:.2} s (stream {stream_seconds:.2}), downtime {downtime_ms:.0} ms{said}, memory \
             {:.1} MiB as {:.1}, disk as {:.1}{link}{again}, {rounds} rounds, CPU-s {cpu_agents:.2} agents {cpu_qemu:.2} QEMU \
             {cpu_bench:.2} bench; verified; load {}\n  ",
            self.case,
            self.repeat,
            self.pair,
            mebibytes(*ram_plain),
            mebibytes(*ram_wire),
            mebibytes(*disk_wire),
            self.load[0],
        );
        let steps: Vec<String> = steps
            .iter()
            .map(|Step { host, name, ms }| {
                let host = if *host == "destination" { "→" } else { "" };
                format!("{host}{name} {ms:.1}")
            })
            .collect();
        text.push_str(&steps.join(", "));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_there() {
        let values: Vec<f64> = (1..=30).map(f64::from).collect();
        assert_eq!((quantile(&values, 0.5), quantile(&values, 0.95)), (15.0, 29.0));
        assert_eq!((quantile(&[7.0], 0.5), quantile(&[7.0], 0.95)), (7.0, 7.0));
        assert_eq!(quantile(&[], 0.5), 0.0);
    }

    fn moved(seconds: f64, wire: u64, downtime_ms: f64) -> Moved {
        Moved {
            seconds,
            stream_seconds: seconds,
            downtime_ms,
            qemu_downtime_ms: None,
            ram_plain: 100,
            ram_wire: wire,
            disk_wire: 0,
            link_bytes: None,
            again: Some((1000, 15)),
            rounds: 3,
            cpu_agents: 0.0,
            cpu_qemu: 0.0,
            cpu_bench: 0.0,
            heartbeats: vec![25, 25],
            steps: Vec::new(),
        }
    }

    #[test]
    fn goals_compare_the_two_sides() {
        let pairs =
            [(moved(1.0, 36, 30.0), moved(2.0, 100, 10.0)), (moved(1.1, 36, 31.0), moved(2.2, 100, 11.0))];
        let summary = |case: LiveCase| Summary::of(case, &case.plan(None, 1).unwrap(), 1, &pairs);
        for case in [LiveCase::SameHost, LiveCase::Heavy, LiveCase::Wan] {
            let summary = summary(case);
            assert!(
                !summary.goals.is_empty() && summary.goals.iter().all(|goal| goal.met),
                "{}",
                summary.text()
            );
        }
        let gigabit = summary(LiveCase::Gigabit);
        assert!(gigabit.text().contains("goal pass: rate of the memory by QEMU's 2.000 x (wanted >= 0.9 x)"));
        let worse = [(pairs[0].1.clone(), pairs[0].0.clone())];
        let worse = Summary::of(LiveCase::Wan, &LiveCase::Wan.plan(None, 1).unwrap(), 1, &worse);
        assert!(!worse.goals[0].met);
    }
}
