//! The plan: how the VM moves, how long that takes and how long it is paused, by what was measured.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use hypervisor::qmp::words::DirtyRateStatus;
use hypervisor::qmp::{BlockDevice, DirtyRateRequest, Image, Qmp};
use hypervisor::specification::{Derived, SourceDisk};
use tokio::task::{JoinError, JoinHandle};
use tunnel::ChannelTunnel;

use super::forecast::{HOSTS, Known, WHOLE, part};
use super::sample::{Census, From, Ram, Written, look};
use super::{Options, Owner, chain, content};
use crate::migrate::link::{Link, NotMeasured, measure};
use crate::migrate::mode::Mode;
use crate::migrate::preflight::{Finding, slow_answers};
use crate::migrate::record::Records;
use crate::migrate::report::{Prediction, Report};

/// How long QEMU measures the dirty rate where its memory cannot be read, seconds.
const DIRTY_RATE_SECONDS: u64 = 1;
/// Link rate that is assumed when it could not be measured, bytes a second.
const ASSUMED_RATE: u64 = 10 << 20;
/// What a mirror copies when the guest has written to any part of it, bytes (QEMU's default for `granularity`).
const MIRROR_PIECE: u64 = 64 << 10;
/// Bytes of a file's blocks in `stat`.
const STAT_BLOCK: u64 = 512;

/// Moves that a host learns from, at least and at most.
const ENOUGH: usize = 3;
const LEARNED: usize = 9;
/// What can be learned of the hosts' own part of a pause, milliseconds: what is beyond has another cause.
const LEAST_LEARNED: u64 = 5;
const MOST_LEARNED: u64 = 1000;

/// What was measured of the VM.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    /// Live: its memory, and what the guest writes to it.
    ram: Option<(Ram, Written)>,
    disks: Disks,
}

/// What was measured of a VM's disks.
#[derive(Clone, Copy, Debug)]
struct Disks {
    /// Bytes that have content.
    content: u64,
    /// Their length together, bytes.
    size: u64,
    /// What reduction leaves of them, in thousandths; none where they cannot be read.
    permille: Option<u64>,
    /// What the guest writes.
    written: Counts,
}

/// Bytes and requests, in all or a second.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    bytes: u64,
    requests: u64,
}

/// Looks at a VM from before the destination is reached until all is known of the link.
#[derive(Debug)]
pub(super) struct Watch {
    content: u64,
    size: u64,
    permille: JoinHandle<Option<u64>>,
    running: Option<Running>,
}

/// Of a guest that runs.
#[derive(Debug)]
struct Running {
    qmp: Qmp,
    memory: Option<JoinHandle<Census>>,
    /// What had been written to its disks, and when.
    written: (Instant, Counts),
}

impl Watch {
    /// Begins to look at a VM that runs.
    pub(super) async fn running(
        qmp: &Qmp,
        pid: u32,
        derived: &Derived,
        live: bool,
        options: &Options,
    ) -> Result<Self, String> {
        let (bytes, slots, level) = (derived.specification.memory.bytes, options.slots, options.level);
        let memory = live.then(|| tokio::task::spawn_blocking(move || look(pid, bytes, slots, level)));
        let blocks = qmp.query_block().await.map_err(|error| chain(&error))?;
        let disks: Vec<&SourceDisk> = derived.disks.iter().filter(|disk| !disk.read_only).collect();
        let images: Vec<(PathBuf, u64)> = disks.iter().flat_map(|disk| images_of(&blocks, disk)).collect();
        let content = disks.iter().map(|disk| allocated_in(&blocks, disk)).sum();
        let size = disks.iter().map(|disk| disk.size).fold(0, u64::saturating_add);
        let written = (Instant::now(), written(qmp).await?);
        let running = Some(Running { qmp: qmp.clone(), memory, written });
        Ok(Self { content, size, permille: tokio::task::spawn_blocking(move || sample(&images)), running })
    }

    /// Looks at one that is off.
    pub(super) fn stopped(derived: &Derived) -> Self {
        let images: Vec<_> = derived.disks.iter().map(|disk| (disk.path.clone(), allocated(disk))).collect();
        let content = images.iter().map(|(_, bytes)| bytes).sum();
        let size = derived.disks.iter().map(|disk| disk.size).fold(0, u64::saturating_add);
        Self { content, size, permille: tokio::task::spawn_blocking(move || sample(&images)), running: None }
    }

    /// Ends, with a second look.
    async fn end(self) -> Result<Load, String> {
        let failed = |error: JoinError| format!("looking at the VM failed: {error}");
        let permille = self.permille.await.map_err(failed)?;
        let disks = Disks { content: self.content, size: self.size, permille, written: Counts::default() };
        let Some(Running { qmp, memory, written: (since, before) }) = self.running else {
            return Ok(Load { ram: None, disks });
        };
        let ram = match memory {
            Some(memory) => {
                let census = memory.await.map_err(failed)?;
                let ram = census.ram;
                let written = tokio::task::spawn_blocking(move || census.again()).await.map_err(failed)?;
                Some((
                    ram,
                    match written {
                        Some(written) => written,
                        None => by_qemu(&qmp, ram.permille).await?,
                    },
                ))
            }
            None => None,
        };
        let (now, millis) = (written(&qmp).await?, since.elapsed().as_millis().max(1));
        let rate = |now: u64, before: u64| {
            u64::try_from(u128::from(now.saturating_sub(before)) * 1000 / millis).unwrap_or(u64::MAX)
        };
        let written =
            Counts { bytes: rate(now.bytes, before.bytes), requests: rate(now.requests, before.requests) };
        Ok(Load { ram, disks: Disks { written, ..disks } })
    }
}

/// What the guest has written to its disks since it began.
async fn written(qmp: &Qmp) -> Result<Counts, String> {
    let devices = qmp.query_block_stats().await.map_err(|error| chain(&error))?;
    Ok(devices.iter().map(|device| device.stats).fold(Counts::default(), |sum, one| Counts {
        bytes: sum.bytes.saturating_add(one.wr_bytes),
        requests: sum.requests.saturating_add(one.wr_operations),
    }))
}

impl Disks {
    /// What travels of the content, bytes.
    fn wire(&self) -> u64 {
        part(self.content, self.permille.unwrap_or(WHOLE))
    }

    /// What travels of the guest's writes, bytes a second: what it writes as it is, and what is around it in a piece of
    /// the mirror as that is on average.
    fn writes(&self) -> u64 {
        let Counts { bytes, requests } = self.written;
        let around = requests.saturating_mul(MIRROR_PIECE).saturating_sub(bytes);
        let average = u128::from(self.wire()) * u128::from(WHOLE) / u128::from(self.size.max(1));
        bytes.saturating_add(part(around, u64::try_from(average).unwrap_or(WHOLE).min(WHOLE)))
    }
}

/// Bytes that the guest writes to its RAM, by QEMU's own measurement.
async fn by_qemu(qmp: &Qmp, permille: u64) -> Result<Written, String> {
    let over = Duration::from_secs(DIRTY_RATE_SECONDS);
    let request = DirtyRateRequest { calc_time: DIRTY_RATE_SECONDS, sample_pages: None, mode: None };
    qmp.calc_dirty_rate(&request).await.map_err(|error| chain(&error))?;
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let rate = qmp.query_dirty_rate().await.map_err(|error| chain(&error))?;
        if rate.status == DirtyRateStatus::Measured {
            // QEMU counts in MiB a second.
            let rate = rate.dirty_rate.unwrap_or(0).saturating_mul(1 << 20);
            return Ok(Written { rate, permille, over });
        }
    }
}

/// What reduction leaves of images, each with the bytes of its content: by their samples together.
fn sample(images: &[(PathBuf, u64)]) -> Option<u64> {
    let found = images.iter().filter_map(|(image, bytes)| Some((content::look(image)?, *bytes)));
    let (left, all) = found.fold((0_u128, 0_u128), |(left, all), (permille, bytes)| {
        (left + u128::from(permille) * u128::from(bytes), all + u128::from(bytes))
    });
    (all > 0).then(|| u64::try_from(left / all).unwrap_or(1000))
}

/// A disk's image and those below it, as far as they are files, each with what it takes.
fn images_of(blocks: &[BlockDevice], disk: &SourceDisk) -> Vec<(PathBuf, u64)> {
    let nodes = blocks.iter().filter_map(|device| device.inserted.as_ref());
    let mut image =
        nodes.into_iter().find(|node| node.node_name.as_ref() == Some(&disk.node)).map(|node| &node.image);
    let mut images = Vec::new();
    while let Some(one) = image {
        let path = PathBuf::from(&one.filename);
        if path.is_absolute() {
            images.push((path, one.actual_size.unwrap_or(disk.size)));
        }
        image = one.backing_image.as_deref();
    }
    images
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
    hosts: Duration,
    elapsed: Duration,
) -> Prediction {
    let measured = link.map_or(ASSUMED_RATE, |link| link.rate);
    let link_rate = limit.map_or(measured, |limit| limit.min(measured)).max(1);
    let round_trip = link.map_or(Duration::ZERO, |link| link.round_trip);
    let ram = load.ram.map(|(ram, _)| ram);
    let written = load.ram.map(|(_, written)| written);
    let known = Known {
        ram: ram.map_or(0, |ram| ram.used),
        permille: ram.map_or(0, |ram| ram.permille),
        dirty_rate: written.map_or(0, |written| written.rate),
        again: written.map_or(0, |written| written.permille),
        disks: load.disks.wire(),
        disk_writes: load.disks.writes(),
        speed: ram.and_then(|ram| ram.speed),
        link_rate,
        round_trip,
        budget: options.max_downtime,
        timeout: options.timeout,
        postcopy: options.postcopy,
        hosts,
        elapsed,
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
        memory_ms: millis(expected.memory),
        hosts_ms: if mode == Mode::Live { millis(hosts) } else { 0 },
        downtime_ms: millis(expected.downtime),
        wire_bytes: expected.wire,
        dirty_rate: known.dirty_rate,
        link_rate,
        link_measured: link.is_some(),
        round_trip_us: link.map(|link| u64::try_from(link.round_trip.as_micros()).unwrap_or(u64::MAX)),
        converges: expected.converges,
        basis: basis(mode, load, link, limit, measured, hosts),
    }
}

/// The hosts' own part of a pause, by what live moves to the same host took: the median of the newest. None before the
/// third.
async fn learned(records: &Records, peer: &str) -> Option<Duration> {
    let (records, peer) = (records.clone(), peer.to_owned());
    let all = tokio::task::spawn_blocking(move || records.all()).await.ok()?.ok()?;
    let live = all.iter().filter(|record| record.mode == Mode::Live && record.peer == peer);
    median(live.filter_map(|record| own_part(&record.report)).take(LEARNED).collect())
}

/// What a pause took that was not expected of the memory's rest and the link.
fn own_part(report: &Report) -> Option<u64> {
    let predicted = report.predicted.as_ref().filter(|predicted| predicted.hosts_ms > 0)?;
    let rest = predicted.downtime_ms.checked_sub(predicted.hosts_ms)?;
    Some(report.downtime_ms?.saturating_sub(rest).clamp(LEAST_LEARNED, MOST_LEARNED))
}

fn median(mut parts: Vec<u64>) -> Option<Duration> {
    parts.sort_unstable();
    (parts.len() >= ENOUGH).then(|| Duration::from_millis(parts[parts.len() / 2]))
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
fn basis(
    mode: Mode,
    load: &Load,
    link: Option<&Link>,
    limit: Option<u64>,
    measured: u64,
    hosts: Duration,
) -> String {
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
    if let Some((ram, written)) = load.ram {
        let mib = ram.used >> 20;
        parts.push(match ram.from {
            From::Sample(pages) => {
                format!("{mib} MiB of RAM in use, reduced to {} %, by {pages} pages", ram.permille / 10)
            }
            From::Resident => format!(
                "at most {mib} MiB of RAM in use by what QEMU has in memory, nothing taken off for what reduction saves"
            ),
            From::Nothing => "all RAM taken to be in use, nothing taken off for what reduction saves".to_owned(),
        });
        parts.push(format!(
            "{} MiB of it written a second, reduced to {} %, over {} ms",
            written.rate >> 20,
            written.permille / 10,
            written.over.as_millis()
        ));
    }
    let Disks { content, permille, written, .. } = load.disks;
    parts.push(match permille {
        Some(permille) => format!(
            "{} MiB of disks have content, reduced to {} %, by a sample",
            content >> 20,
            permille / 10
        ),
        None => {
            format!("{} MiB of disks have content, nothing taken off for what reduction saves", content >> 20)
        }
    });
    if written.bytes > 0 {
        let Counts { bytes, requests } = written;
        parts.push(format!("{} KiB written to them a second, in {requests} requests", bytes >> 10));
    }
    if mode == Mode::Live && hosts != HOSTS {
        parts.push(format!("{} ms of the pause as in the hosts' earlier moves", hosts.as_millis()));
    }
    parts.push(
        match mode {
            Mode::Live => "each host alone with this move",
            Mode::Warm => "the guest's boot is not counted",
            Mode::Cold => "a boot is not counted",
        }
        .to_owned(),
    );
    parts.join("; ")
}

impl Owner {
    /// Measures the link and says what is to be expected.
    pub(super) async fn plan(&mut self, tunnel: &ChannelTunnel, watch: Watch) -> Result<(), String> {
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
        let load = watch.end().await?;
        let options = &self.job.options;
        let hosts = learned(&self.context.records, &self.record.peer).await.unwrap_or(HOSTS);
        let elapsed = self.began.elapsed();
        let predicted = predict(self.record.mode, &load, link.as_ref(), options, limit, hosts, elapsed);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_learns_its_part_of_a_pause_from_what_it_took() {
        let moved = |took: u64, expected: u64, hosts_ms: u64| {
            let predicted = Prediction { downtime_ms: expected, hosts_ms, ..Prediction::default() };
            let report = Report { downtime_ms: Some(took), predicted: Some(predicted), ..Report::default() };
            own_part(&report)
        };
        // 15 ms of the 100 were expected of the memory and the link.
        assert_eq!(moved(60, 100, 85), Some(45));
        assert_eq!((moved(3, 100, 85), moved(60_000, 100, 85)), (Some(LEAST_LEARNED), Some(MOST_LEARNED)));
        assert_eq!((moved(60, 100, 0), moved(60, 80, 85)), (None, None), "an older release, or no pause");
        assert_eq!(own_part(&Report::default()), None);
        assert_eq!(median(vec![40, 900, 45, 44]), Some(Duration::from_millis(45)));
        assert_eq!(median(vec![40, 45]), None, "too few");
    }
}
