//! The plan: how the VM moves, how long that takes and how long it is paused, by what was measured.

use std::time::Duration;

use hypervisor::qmp::words::DirtyRateStatus;
use hypervisor::qmp::{BlockDevice, DirtyRateRequest, Image, Qmp};
use hypervisor::specification::{Derived, SourceDisk};
use tunnel::ChannelTunnel;

use super::forecast::Known;
use super::sample::{From, Ram, look};
use super::{Options, Owner, chain};
use crate::migrate::link::{Link, NotMeasured, measure};
use crate::migrate::mode::Mode;
use crate::migrate::preflight::{Finding, slow_answers};
use crate::migrate::report::Prediction;

/// How long the dirty rate is measured, seconds.
const DIRTY_RATE_SECONDS: u64 = 1;
/// Link rate that is assumed when it could not be measured, bytes a second.
const ASSUMED_RATE: u64 = 10 << 20;
/// Bytes of a file's blocks in `stat`.
const STAT_BLOCK: u64 = 512;

/// What was measured of the VM.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    /// Live: its memory, and how fast the guest writes to it.
    ram: Option<(Ram, u64)>,
    /// Bytes of its disks that have content.
    disks: u64,
}

impl Load {
    /// Of a VM that runs.
    pub(super) async fn of_running(
        qmp: &Qmp,
        pid: u32,
        derived: &Derived,
        live: bool,
        options: &Options,
    ) -> Result<Self, String> {
        let blocks = qmp.query_block().await.map_err(|error| chain(&error))?;
        let disks = derived.disks.iter().filter(|disk| !disk.read_only);
        let disks = disks.map(|disk| allocated_in(&blocks, disk)).sum();
        if !live {
            return Ok(Self { ram: None, disks });
        }
        let rate = dirty_rate(qmp).await?;
        let (bytes, slots, level) = (derived.specification.memory.bytes, options.slots, options.level);
        let ram = tokio::task::spawn_blocking(move || look(pid, bytes, slots, level)).await;
        let ram = ram.map_err(|error| format!("looking at the guest's memory failed: {error}"))?;
        Ok(Self { ram: Some((ram, rate)), disks })
    }

    /// Of one that is off.
    pub(super) fn of_stopped(derived: &Derived) -> Self {
        Self { ram: None, disks: derived.disks.iter().map(allocated).sum() }
    }
}

/// Bytes that the guest writes to its RAM, a second.
async fn dirty_rate(qmp: &Qmp) -> Result<u64, String> {
    let request = DirtyRateRequest { calc_time: DIRTY_RATE_SECONDS, sample_pages: None, mode: None };
    qmp.calc_dirty_rate(&request).await.map_err(|error| chain(&error))?;
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let rate = qmp.query_dirty_rate().await.map_err(|error| chain(&error))?;
        if rate.status == DirtyRateStatus::Measured {
            // QEMU counts in MiB a second.
            return Ok(rate.dirty_rate.unwrap_or(0).saturating_mul(1 << 20));
        }
    }
}

/// What a disk's images take by QEMU's word; all of it where QEMU does not know. (It says 0 of block devices.)
fn allocated_in(blocks: &[BlockDevice], disk: &SourceDisk) -> u64 {
    let images = blocks.iter().filter_map(|device| device.inserted.as_ref());
    let found = images.into_iter().find(|node| node.node_name.as_ref() == Some(&disk.node));
    let Some(found) = found else { return disk.size };
    let (mut sum, mut image): (u64, Option<&Image>) = (0, Some(&found.image));
    while let Some(one) = image {
        match one.actual_size {
            None => return disk.size,
            Some(0) if !std::path::Path::new(&one.filename).is_file() => return disk.size,
            Some(bytes) => sum = sum.saturating_add(bytes),
        }
        image = one.backing_image.as_deref();
    }
    sum.min(disk.size)
}

/// What a disk's file takes; all of it where that is not a file.
fn allocated(disk: &SourceDisk) -> u64 {
    use std::os::unix::fs::MetadataExt;
    match std::fs::metadata(&disk.path) {
        Ok(data) if data.is_file() => data.blocks().saturating_mul(STAT_BLOCK).min(disk.size),
        Ok(_) | Err(_) => disk.size,
    }
}

/// What is expected of a move.
fn predict(
    mode: Mode,
    load: &Load,
    link: Option<&Link>,
    options: &Options,
    limit: Option<u64>,
) -> Prediction {
    let measured = link.map_or(ASSUMED_RATE, |link| link.rate);
    let link_rate = limit.map_or(measured, |limit| limit.min(measured)).max(1);
    let round_trip = link.map_or(Duration::ZERO, |link| link.round_trip);
    let (ram, dirty_rate) = load.ram.map_or((None, 0), |(ram, rate)| (Some(ram), rate));
    let known = Known {
        ram: ram.map_or(0, |ram| ram.used),
        permille: ram.map_or(0, |ram| ram.permille),
        dirty_rate,
        disks: load.disks,
        link_rate,
        round_trip,
        budget: options.max_downtime,
        timeout: options.timeout,
        postcopy: options.postcopy,
    };
    let expected = match mode {
        Mode::Live => known.live(),
        Mode::Warm => known.copy(true),
        Mode::Cold => known.copy(false),
    };
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Prediction {
        method: method(mode, options),
        total_ms: millis(expected.total),
        downtime_ms: millis(expected.downtime),
        wire_bytes: expected.wire,
        dirty_rate,
        link_rate,
        link_measured: link.is_some(),
        round_trip_us: link.map(|link| u64::try_from(link.round_trip.as_micros()).unwrap_or(u64::MAX)),
        converges: expected.converges,
        basis: basis(mode, load, link, limit, measured),
    }
}

fn method(mode: Mode, options: &Options) -> String {
    match mode {
        Mode::Live if options.postcopy => "live, post-copy after the first pass".to_owned(),
        Mode::Live if options.multifd > 0 => format!("live, {} channels for the memory", options.multifd),
        Mode::Live => "live, a single stream for the memory".to_owned(),
        Mode::Warm => "warm: the disks while it runs, then a shutdown and a boot there".to_owned(),
        Mode::Cold => "cold: it is off, and stays off".to_owned(),
    }
}

/// Where the figures come from, for people.
fn basis(mode: Mode, load: &Load, link: Option<&Link>, limit: Option<u64>, measured: u64) -> String {
    let mut parts = vec![match link {
        Some(_) if limit.is_some_and(|limit| limit < measured) => {
            "the link as limited, it carries more".to_owned()
        }
        Some(link) if link.at_least => format!(
            "the link carries at least this by {} KiB sent over it, too few to fill it",
            link.bytes >> 10
        ),
        Some(link) => format!("the link measured by {} KiB sent over it", link.bytes >> 10),
        None => "the link's rate assumed, not measured".to_owned(),
    }];
    if let Some((ram, _)) = load.ram {
        parts.push(format!("the dirty rate by QEMU over {DIRTY_RATE_SECONDS} s"));
        let mib = ram.used >> 20;
        parts.push(match ram.from {
            From::Sample(pages) => format!(
                "{mib} MiB of RAM in use, reduced to {} %, by a sample of {pages} pages",
                ram.permille / 10
            ),
            From::Resident => format!(
                "at most {mib} MiB of RAM in use by what QEMU has in memory, nothing taken off for what reduction saves"
            ),
            From::Nothing => "all RAM taken to be in use, nothing taken off for what reduction saves".to_owned(),
        });
    }
    parts.push(format!(
        "{} MiB of disks have content, nothing taken off for what reduction saves",
        load.disks >> 20
    ));
    parts.push(
        match mode {
            Mode::Live => "the hosts' own speed is not counted",
            Mode::Warm => "the guest's writes meanwhile and its boot are not counted",
            Mode::Cold => "the hosts' own speed is not counted, nor is a boot",
        }
        .to_owned(),
    );
    parts.join("; ")
}

impl Owner {
    /// Measures the link and says what is to be expected.
    pub(super) async fn plan(&mut self, tunnel: &ChannelTunnel, load: &Load) -> Result<(), String> {
        let limit = self.job.dial.limit;
        let link = match measure(tunnel, limit).await {
            Ok(link) => Some(link),
            Err(NotMeasured::Refused(reason, findings)) => {
                self.findings.extend(findings);
                return Err(format!("the destination refused: {reason}"));
            }
            Err(NotMeasured::Lost(why)) => return Err(why),
            Err(NotMeasured::Late) => {
                self.findings.push(Finding::warning(
                    "link",
                    "the destination did not answer the measurement of the link in time",
                    "look at the link and at the load of the destination: the memory may not converge",
                ));
                None
            }
        };
        let options = &self.job.options;
        let predicted = predict(self.record.mode, load, link.as_ref(), options, limit);
        if let Some(link) = &link
            && self.record.mode == Mode::Live
        {
            self.findings.extend(slow_answers(link.round_trip, options.max_downtime));
        }
        if !predicted.converges {
            self.findings.push(Finding::warning(
                "convergence",
                format!(
                    "the guest writes {} bytes a second to its RAM, and the link carries {}",
                    predicted.dirty_rate, predicted.link_rate
                ),
                "move it when it rests, allow a longer --max-downtime, or use --on-no-converge throttle or --postcopy",
            ));
        }
        tracing::info!(
            migration = %self.job.migration, method = predicted.method, total_ms = predicted.total_ms,
            downtime_ms = predicted.downtime_ms, wire_bytes = predicted.wire_bytes, link_rate = predicted.link_rate,
            dirty_rate = predicted.dirty_rate, basis = predicted.basis, "planned"
        );
        self.record.report.mode = self.record.mode.name().to_owned();
        self.record.report.predicted = Some(predicted);
        self.publish(None);
        Ok(())
    }
}
