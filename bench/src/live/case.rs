//! The cases: which guest moves, over which path.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use guest::Options;
use link::{BitRate, DirectionSpec, LinkSpec, Queue};

/// MiB.
const MIB: u64 = 1 << 20;

/// A case of `live`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum LiveCase {
    /// 512 MiB guest, loopback without a limit: bytes and downtime.
    SameHost,
    /// The same, 64 MiB of it edited by 8 bytes a page as fast as the guest can: what sending again costs.
    Heavy,
    /// 100 Mbit/s, 40 ms round trip, a disk with real files, QEMU over TLS: time. Needs root.
    Wan,
    /// 1 Gbit/s, memory that nothing can reduce: rate. Needs root.
    Gigabit,
}

/// What moves, and over what.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// MiB of the guest.
    pub(super) memory: u64,
    pub(super) options: Options,
    /// Bytes.
    pub(super) disk: u64,
    /// The disk holds this machine's own files instead of a hole.
    pub(super) files: bool,
    /// Loopback when none.
    pub(super) link: Option<LinkSpec>,
    /// Round trip of the path, milliseconds.
    pub(super) round_trip: f64,
    /// QEMU alone encrypts, too.
    pub(super) tls: bool,
    /// `--profile` of the agents.
    pub(super) profile: &'static str,
    /// Slow the guest down if it does not converge, on both sides.
    pub(super) throttle: bool,
}

impl LiveCase {
    /// The name on the command line and in results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::SameHost => "same-host",
            Self::Heavy => "heavy",
            Self::Wan => "wan",
            Self::Gigabit => "gigabit",
        }
    }

    /// The plan; with `memory` bytes the guest is of that size, and what it keeps in memory in proportion.
    pub(super) fn plan(self, memory: Option<u64>, seed: u64) -> Result<Plan> {
        // A busy server: a part random, the rest duplicate, text, and rewritten all the time.
        let options = Options {
            constant: 64,
            duplicate: 32,
            hot: 32,
            rate: 100,
            disk: 32,
            // Often, so that a pause shows soon; with as many disk writes a second as the guest makes unless told.
            heartbeat: 50,
            disk_writes: 4,
            ..Options::default()
        };
        let plain = Plan {
            memory: 512,
            options,
            disk: 64 * MIB,
            files: false,
            link: None,
            round_trip: 0.0,
            tls: false,
            profile: "lan",
            throttle: false,
        };
        let plan = match self {
            Self::SameHost => plain,
            Self::Heavy => {
                let options = Options { constant: 16, duplicate: 16, hot: 64, rate: 0, edit: 8, ..options };
                Plan { options, throttle: true, ..plain }
            }
            Self::Wan => {
                let options = Options { hot: 8, rate: 2, ..options };
                let link = link(100, Duration::from_millis(20), seed)?;
                Plan {
                    options,
                    disk: 256 * MIB,
                    files: true,
                    link: Some(link),
                    round_trip: 40.0,
                    tls: true,
                    profile: "wan",
                    ..plain
                }
            }
            Self::Gigabit => {
                let options = Options { constant: 768, duplicate: 0, hot: 0, rate: 1, ..options };
                Plan { memory: 1024, options, link: Some(link(1000, Duration::ZERO, seed)?), ..plain }
            }
        };
        Ok(match memory {
            Some(bytes) => plan.scaled(bytes / MIB),
            None => plan,
        })
    }
}

fn link(megabits: u64, delay: Duration, seed: u64) -> Result<LinkSpec> {
    let direction = DirectionSpec {
        rate: Some(BitRate::megabits(megabits).context("choose a rate")?),
        delay,
        queue: Queue::Time(Duration::from_millis(50)),
        ..DirectionSpec::default()
    };
    Ok(LinkSpec { seed, ..LinkSpec::symmetric(direction) })
}

impl Plan {
    /// A smaller or larger guest of the same kind.
    fn scaled(self, memory: u64) -> Self {
        let part = |amount: u64| amount * memory / self.memory;
        let Options { constant, duplicate, hot, .. } = self.options;
        let options =
            Options { constant: part(constant), duplicate: part(duplicate), hot: part(hot), ..self.options };
        Self { memory, options, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_has_the_name_that_it_is_reported_under() {
        for case in LiveCase::value_variants() {
            assert_eq!(case.to_possible_value().unwrap().get_name(), case.name());
        }
    }

    #[test]
    fn a_smaller_guest_keeps_less() {
        let whole = LiveCase::SameHost.plan(None, 1).unwrap();
        let quarter = LiveCase::SameHost.plan(Some(128 * MIB), 1).unwrap();
        assert_eq!((quarter.memory, quarter.options.constant), (128, whole.options.constant / 4));
        assert_eq!(quarter.options.rate, whole.options.rate);
    }
}
