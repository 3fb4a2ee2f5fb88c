//! The memory: QEMU's migration streams go through our channels, and somebody watches whether it converges.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hypervisor::qmp::words::{MigrationCapability, MigrationStatus};
use hypervisor::qmp::{CapabilityState, MigrationAddress, MigrationParameters, Qmp};
use session::cutover::{SourceAction, SourceEvent, SourceState};
use tokio::time::Instant;
use volume::Generation;
use wire::{ChannelHello, ChannelKind};

use super::{OnNoConverge, Options, Owner, StepResult, chain, converge, mirror};
use crate::migrate::message::FromSource;
use crate::migrate::mode::Mode;
use crate::migrate::ram::{RamSender, resumed};
use crate::migrate::record::Role;
use crate::migrate::status::Live;

/// QEMU's own limit; ours are the link's and the flight's.
const UNLIMITED: u64 = 1 << 40;
/// Least downtime that QEMU is allowed: below this it would never stop the guest.
pub(super) const MIN_DOWNTIME_LIMIT: Duration = Duration::from_millis(10);
/// What is kept of the budget for answers: a round trip each for the roots, the permit and the word that it runs.
pub(super) const ROUND_TRIPS: u32 = 3;
/// And for what both hosts do meanwhile.
pub(super) const OVERHEAD: Duration = Duration::from_millis(15);
/// Share of the budget that bytes in flight may take to travel (design, "Live migration").
const FLIGHT_SHARE: u32 = 4;
/// What keeps the path busy besides what is on the link: packing and unpacking at both ends. More only waits in queues,
/// and the disks' last writes behind it.
const WORK: Duration = Duration::from_millis(25);

/// What was measured while the memory travels.
#[derive(Debug, Default)]
pub(in super::super) struct Rates {
    last: Option<(Instant, u64)>,
    /// Bytes that the destination's QEMU takes, a second, smoothed.
    pub(super) taken: u64,
    /// The best of late: each look takes a little off.
    best: u64,
    since: Option<Instant>,
    /// Passes that do not count.
    before: u64,
    /// The pause that QEMU was told, milliseconds.
    allowed: u64,
    /// The bandwidth that QEMU was told.
    told: u64,
    /// When a proof was asked for.
    asked: Option<Instant>,
    /// QEMU was told to switch to post-copy.
    postcopy: bool,
}

impl Rates {
    /// The link was gone so long: that says nothing about the guest.
    pub(super) fn forgive(&mut self, lost: Duration) {
        self.since = self.since.map(|since| since + lost);
    }

    /// Only what follows counts for its convergence; `rounds` were made so far.
    pub(super) fn begin_again(&mut self, rounds: u64) {
        self.since = Some(Instant::now());
        self.before = rounds;
    }

    /// Notes how many bytes the destination's QEMU has taken in all.
    fn note(&mut self, taken: u64) {
        let now = Instant::now();
        if let Some((then, before)) = self.last {
            let millis = u64::try_from(now.duration_since(then).as_millis()).unwrap_or(u64::MAX).max(1);
            let rate = taken.saturating_sub(before).saturating_mul(1000) / millis;
            // Idle instants say nothing about the link.
            if rate > 0 {
                self.taken = if self.taken == 0 { rate } else { (self.taken * 3 + rate) / 4 };
                self.best = rate.max(self.best - self.best / 32);
            }
        }
        self.last = Some((now, taken));
    }
}

pub(super) fn capability(capability: MigrationCapability, state: bool) -> CapabilityState {
    CapabilityState { capability, state }
}

/// What both ends must agree on.
pub(in super::super) fn capabilities(multifd: u8, postcopy: bool) -> Vec<CapabilityState> {
    vec![
        capability(MigrationCapability::PostcopyRam, postcopy),
        // Pages that the guest waits for have a connection of their own: they do not queue behind the others.
        capability(MigrationCapability::PostcopyPreempt, postcopy),
        capability(MigrationCapability::ReturnPath, true),
        capability(MigrationCapability::PauseBeforeSwitchover, true),
        capability(MigrationCapability::Events, true),
        capability(MigrationCapability::Multifd, multifd > 0),
    ]
}

/// How often the allowed pause is halved, after so many passes over the memory and so much of the time.
pub(super) fn patience(rounds: u64, elapsed: Duration, timeout: Duration) -> u32 {
    const MOST: u32 = 4;
    /// Passes at the smallest pause; then it doubles with each.
    const FREE_ROUNDS: u64 = 5;
    let by_rounds = u32::try_from(rounds.saturating_sub(FREE_ROUNDS)).unwrap_or(u32::MAX);
    let parts = elapsed.as_millis().saturating_mul(u128::from(MOST) + 1) / timeout.as_millis().max(1);
    let by_time = u32::try_from(parts).unwrap_or(u32::MAX);
    MOST.saturating_sub(by_rounds.max(by_time))
}

impl Owner {
    /// What QEMU is allowed of the pause. It begins with a sixteenth: a guest that converges well is paused for no longer
    /// than it must be, and only one that does not gets all that was allowed.
    fn downtime_limit(&self) -> u64 {
        let round_trip = self.tunnel.as_ref().and_then(|tunnel| tunnel.stats().rtt).unwrap_or_default();
        let left = self
            .job
            .options
            .max_downtime
            .saturating_sub(round_trip * ROUND_TRIPS + OVERHEAD)
            .max(MIN_DOWNTIME_LIMIT);
        let elapsed = self.rates.since.map_or(Duration::ZERO, |since| since.elapsed());
        let shift = patience(
            self.record.report.rounds.saturating_sub(self.rates.before),
            elapsed,
            self.job.options.timeout,
        );
        u64::try_from((left / (1 << shift)).max(MIN_DOWNTIME_LIMIT).as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) async fn start_ram(&mut self) -> StepResult {
        let qmp = self.monitor().await?;
        let Options { multifd, postcopy, .. } = self.job.options;
        let mut states = capabilities(multifd, postcopy);
        let throttle = self.job.options.on_no_converge == OnNoConverge::Throttle;
        states.push(capability(MigrationCapability::AutoConverge, throttle));
        states.extend(converge::capability(&qmp));
        qmp.migrate_set_capabilities(&states).await.map_err(|error| chain(&error))?;
        let parameters = MigrationParameters {
            max_bandwidth: Some(UNLIMITED),
            downtime_limit: Some(self.downtime_limit()),
            multifd_channels: (multifd > 0).then_some(multifd),
            ..MigrationParameters::default()
        };
        qmp.migrate_set_parameters(&parameters).await.map_err(|error| chain(&error))?;
        // The fence needs it, and the guest stands still then.
        let generation = Generation(self.record.generation);
        self.context.records.raise_generation(&self.job.vm, generation).map_err(|error| error.chain())?;
        let ram = RamSender::new(self.job.options.slots, self.job.options.level, self.context.cpu.clone());
        self.ram = Some(Arc::clone(&ram));
        self.rates.since = Some(Instant::now());
        let socket = self.socket("ram");
        let (listener, file) = mirror::listen_at(&socket)?;
        let contact = self.contact.clone();
        let migration = self.job.migration;
        let most = u16::from(multifd) + 1 + u16::from(postcopy);
        self.carry("the memory's channels", async move {
            let _file = file;
            let mut work = tokio::task::JoinSet::new();
            let mut number = 0;
            // QEMU makes its further connections when it needs them: until the last one ends, another may come.
            loop {
                tokio::select! {
                    accepted = listener.accept(), if number < most => {
                        let (stream, _) = accepted.map_err(|error| error.to_string())?;
                        number += 1;
                        let hello =
                            ChannelHello { migration, generation, channel: number, kind: ChannelKind::Ram };
                        // Behind the pages that the guest waits for.
                        let priority = if postcopy && number == 1 { resumed::BACKGROUND } else { 0 };
                        let channels = contact.channels(hello, priority);
                        let ram = Arc::clone(&ram);
                        let short = u8::try_from(number).unwrap_or(u8::MAX);
                        work.spawn(async move { ram.carry(short, stream, channels).await });
                    }
                    Some(done) = work.join_next() => {
                        done.map_err(|panic| panic.to_string())?.map_err(|error| chain(&error))?;
                        if work.is_empty() {
                            return Ok(());
                        }
                    }
                }
            }
        });
        qmp.migrate(&MigrationAddress::Uri(format!("unix:{}", socket.display())), false)
            .await
            .map_err(|error| chain(&error))?;
        // A guest that does not run is not stopped, and post-copy stops it at its begin.
        let paused = matches!(self.record.role, Role::Source { was_paused: true, .. });
        self.hold_until_due();
        if converge::can_wait(&qmp) && !paused && !postcopy {
            self.watch_convergence(&qmp);
        }
        Ok(None)
    }

    /// Looks at what moves: progress, the bytes in flight, whether it converges.
    pub(super) async fn tick(&mut self, todo: &mut VecDeque<SourceAction>) {
        if *self.state() == SourceState::Running {
            self.prove_again().await;
            self.tend_postcopy().await;
            return;
        }
        self.check_contact(todo);
        self.begin_when_due(todo);
        let qmp = match (self.state(), &self.qmp) {
            (SourceState::Mirroring, None) => return self.show_copied(),
            (SourceState::Mirroring | SourceState::PreCopy, Some(qmp)) => qmp.clone(),
            _ => return,
        };
        let mut live = Live { lost_ms: self.lost_millis(), waits: self.waits(), ..Live::default() };
        for disk in &self.disks {
            let counters = disk.target.counters();
            live.disk_total += disk.size;
            live.disk_done += counters.plain.load(Ordering::Relaxed).min(disk.size);
        }
        if *self.state() == SourceState::PreCopy {
            match qmp.query_migrate().await {
                Ok(info) => {
                    if let Some(ram) = &info.ram {
                        live.ram_remaining = ram.remaining;
                        live.ram_total = ram.total;
                        live.round = ram.dirty_sync_count;
                        live.dirty_rate = ram.dirty_pages_rate.saturating_mul(ram.page_size);
                        self.note_rounds(ram.dirty_sync_count);
                    }
                    live.expected_downtime_ms = info.expected_downtime.unwrap_or(0);
                    let throttled = info.cpu_throttle_percentage.unwrap_or(0);
                    self.note_throttle(throttled);
                    if info.status == Some(MigrationStatus::Failed) {
                        let why = info.error_desc.unwrap_or_else(|| "QEMU does not say why".to_owned());
                        self.apply(SourceEvent::Failed(format!("QEMU's migration failed: {why}")), todo);
                        return;
                    }
                }
                Err(error) => tracing::debug!(error = %chain(&error), "QEMU does not tell its progress"),
            }
            self.steer(&qmp).await;
            self.start_postcopy(&qmp, live.round).await;
            self.check_convergence(todo);
        }
        if let Some(ram) = &self.ram {
            live.rate = self.rates.taken;
            live.in_flight = ram.flight.bytes();
            live.in_flight_limit = ram.flight.limit();
        }
        self.note_bytes();
        self.publish(Some(live));
    }

    /// Asks again for a proof that did not come yet: a guest in post-copy is not whole at once.
    async fn prove_again(&mut self) {
        const EVERY: Duration = Duration::from_secs(1);
        let now = Instant::now();
        if self.rates.asked.is_some_and(|asked| now.duration_since(asked) < EVERY) {
            return;
        }
        // The first question is asked when the guest runs; this is the time to wait for its answer.
        let first = self.rates.asked.is_none();
        self.rates.asked = Some(now);
        if !first && let Err(why) = self.tell(&FromSource::Prove {}).await {
            tracing::debug!(%why, "the destination cannot be asked for its proof now");
        }
    }

    /// Keeps the bytes between the two QEMUs below what travels in a share of the allowed pause, and tells QEMU what
    /// the path carries.
    async fn steer(&mut self, qmp: &Qmp) {
        let Some(ram) = self.ram.clone() else { return };
        self.rates.note(ram.counters.taken.load(Ordering::Relaxed));
        let rate = self.rates.taken;
        if rate == 0 {
            return;
        }
        let round_trip = self.tunnel.as_ref().and_then(|tunnel| tunnel.stats().rtt).unwrap_or_default();
        let busy = round_trip * 2 + WORK;
        let most = (self.job.options.max_downtime / FLIGHT_SHARE).min(busy).as_millis();
        let most = u64::try_from(most).unwrap_or(u64::MAX);
        // By the best that was seen lately: what the limit itself holds up must not make it smaller.
        ram.flight.set_limit(self.rates.best.saturating_mul(most) / 1000);
        // QEMU 8.2 and later can be told; an older one goes by what its sockets take, which the flight's limit keeps
        // honest.
        let knows = (qmp.version().major, qmp.version().minor) >= (8, 2);
        let faster = rate.abs_diff(self.rates.told) * 4 > self.rates.told;
        let allowed = self.downtime_limit();
        self.convergence.set(rate, allowed);
        if (knows && faster) || allowed != self.rates.allowed {
            (self.rates.told, self.rates.allowed) = (rate, allowed);
            let parameters = MigrationParameters {
                avail_switchover_bandwidth: knows.then_some(rate),
                downtime_limit: Some(allowed),
                ..MigrationParameters::default()
            };
            if let Err(error) = qmp.migrate_set_parameters(&parameters).await {
                tracing::debug!(error = %chain(&error), "QEMU is not told what the path carries");
            }
        }
    }

    /// Lets QEMU switch over to post-copy, once all of the memory has been sent once.
    async fn start_postcopy(&mut self, qmp: &Qmp, round: u64) {
        const FIRST_PASS_DONE: u64 = 2;
        if !self.job.options.postcopy || self.rates.postcopy || round < FIRST_PASS_DONE {
            return;
        }
        // QEMU runs the guest again, by itself, when a migration fails at its very end, also in post-copy, where it runs at
        // the destination already. A guest that was stopped before stays stopped.
        if let Err(error) = qmp.stop().await {
            tracing::debug!(error = %chain(&error), "QEMU does not stop the guest for post-copy now");
            return;
        }
        match qmp.migrate_start_postcopy().await {
            Ok(()) => self.rates.postcopy = true,
            // It may be at its end already; then it needs none.
            Err(error) => {
                tracing::debug!(error = %chain(&error), "QEMU does not switch to post-copy now");
                if let Err(error) = qmp.cont().await {
                    tracing::debug!(error = %chain(&error), "the migration is at its end");
                }
            }
        }
    }

    fn check_convergence(&mut self, todo: &mut VecDeque<SourceAction>) {
        let Some(since) = self.rates.since else { return };
        if self.lost_millis() > 0 || self.is_held() {
            return;
        }
        if since.elapsed() < self.job.options.timeout {
            return;
        }
        let why = format!(
            "the memory did not converge within {} s: the guest dirties it faster than {} MB/s carry; allow a longer \
             --max-downtime or --timeout, or --on-no-converge throttle",
            self.job.options.timeout.as_secs(),
            self.rates.taken / 1_000_000
        );
        self.apply(SourceEvent::Failed(why), todo);
    }

    pub(super) fn note_bytes(&mut self) {
        let mut report = std::mem::take(&mut self.record.report);
        if let Some(ram) = &self.ram {
            report.ram_plain = ram.counters.plain.load(Ordering::Relaxed);
            report.ram_wire = ram.counters.wire.load(Ordering::Relaxed);
            report.ram_again_plain = ram.counters.again.load(Ordering::Relaxed);
            report.ram_again_wire = ram.counters.again_wire.load(Ordering::Relaxed);
        }
        let sum = |value: fn(&crate::migrate::disk::sender::DiskCounters) -> u64| {
            self.disks.iter().map(|disk| value(disk.target.counters())).sum()
        };
        if !self.disks.is_empty() {
            report.disk_plain = sum(|counters| counters.plain.load(Ordering::Relaxed));
            report.disk_wire = sum(|counters| counters.wire.load(Ordering::Relaxed));
        }
        self.record.report = report;
    }

    fn note_rounds(&mut self, rounds: u64) {
        self.record.report.rounds = rounds;
    }

    fn note_throttle(&mut self, percent: u64) {
        let report = &mut self.record.report;
        report.throttled_percent = report.throttled_percent.max(percent);
    }

    /// The permit, and QEMU's last part behind it.
    pub(super) async fn permit(&mut self) -> StepResult {
        let generation = self.record.generation;
        self.tell(&FromSource::Permit { generation, roots: self.record.roots.clone() }).await?;
        if self.record.mode != Mode::Live {
            return Ok(None);
        }
        let qmp = self.monitor().await?;
        let info = qmp.query_migrate().await.map_err(|error| chain(&error))?;
        // Otherwise the rest of the memory is still on its way, and QEMU's event comes; or the permit is told again after
        // doubt, and QEMU has sent its last part already.
        if info.status == Some(MigrationStatus::PreSwitchover) {
            self.send_last_part().await;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::patience;

    #[test]
    fn the_pause_grows_with_passes_or_with_time() {
        let minute = Duration::from_secs(60);
        let after = |rounds, seconds| patience(rounds, Duration::from_secs(seconds), minute);
        assert_eq!([after(0, 0), after(5, 1), after(6, 1), after(7, 1), after(9, 1)], [4, 4, 3, 2, 0]);
        assert_eq!([after(1, 11), after(1, 13), after(1, 25), after(1, 49), after(99, 600)], [4, 3, 2, 0, 0]);
    }
}
