//! What the link between the two hosts carries, measured before anything is planned: a few bursts of messages through the
//! migration's own tunnel, each answered when all of it was taken.
//!
//! The probe is short whatever the link is: it begins small, each burst is at most four times the one before, and no burst
//! begins that would take it beyond its time or its bytes. On a link with a long round trip that is too short for the
//! congestion window to grow to its size: what was measured then is a lower bound, and says so.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use tunnel::ChannelTunnel;

use super::message::{self, FromDestination, FromSource, Probe, VERSION};

/// Bytes of padding in a message: with its envelope it fits a frame.
const PIECE: u64 = 48 << 10;
/// The first burst, and the largest.
const BURST: (u64, u64) = (16 << 10, 1 << 20);
/// Bytes of the whole probe.
const MOST: u64 = 4 << 20;
/// Time of the whole probe, and what a long round trip adds: the congestion window grows once in each, and what is
/// measured before it has grown is the window and not the link.
const TIME: Duration = Duration::from_millis(300);
const ROUND_TRIPS: u32 = 20;
const MOST_ROUND_TRIPS: Duration = Duration::from_millis(700);
/// Empty messages that are timed: the fastest answer is the round trip.
const PINGS: u32 = 3;
/// The same for a probe, at most.
const MOST_PINGS: u32 = 64;
/// How long one answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Share of a second that a limit allows at once, as the tunnel's own limit does.
const AT_ONCE: u64 = 20;

/// What was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    /// Bytes a second.
    pub rate: u64,
    /// Whether more would have been found with more time.
    pub at_least: bool,
    /// Round trip.
    pub round_trip: Duration,
    /// Bytes that were sent for it.
    pub bytes: u64,
}

/// Why there is no measurement.
#[derive(Debug)]
pub enum NotMeasured {
    /// The destination does not want the migration.
    Refused(String, Vec<super::preflight::Finding>),
    /// The connection is lost, or the peer is no agent of this release.
    Lost(String),
    /// No answer came in time: the link is very slow, or the destination is very busy.
    Late,
}

/// How large the next burst is, and what the bursts say.
#[derive(Debug)]
struct Pace {
    limit: Option<u64>,
    /// Bytes and time of the whole probe.
    most: u64,
    time: Duration,
    round_trip: Duration,
    spent: Duration,
    sent: u64,
    next: u64,
    /// The best rate, and the best before the last burst.
    best: u64,
    before: u64,
}

impl Pace {
    fn new(limit: Option<u64>, round_trip: Duration) -> Self {
        Self {
            limit,
            most: MOST,
            time: TIME + (round_trip * ROUND_TRIPS).min(MOST_ROUND_TRIPS),
            round_trip,
            spent: Duration::ZERO,
            sent: 0,
            next: BURST.0,
            best: 0,
            before: 0,
        }
    }

    /// The next burst's size; none when the probe is over.
    fn burst(&self) -> Option<u64> {
        let most = self.limit.map_or(BURST.1, |limit| BURST.1.min((limit / AT_ONCE).max(1)));
        let size = self.next.min(most);
        let takes = if self.best == 0 { Duration::ZERO } else { time_of(size, self.best) };
        let reached = self.limit.is_some_and(|limit| self.best >= limit);
        let fits = self.sent + size <= self.most && self.spent + takes + self.round_trip <= self.time;
        (!reached && (self.sent == 0 || fits)).then_some(size)
    }

    /// Notes how long a burst took until its answer came.
    fn note(&mut self, size: u64, took: Duration) {
        // What is left without the answer's way; a burst that was as fast as an empty message says little.
        let net = took.saturating_sub(self.round_trip).max(took / 4).max(Duration::from_micros(1));
        let micros = u64::try_from(net.as_micros()).unwrap_or(u64::MAX).max(1);
        self.before = self.best;
        self.best = self.best.max(size.saturating_mul(1_000_000) / micros);
        self.spent += took;
        self.sent += size;
        self.next = self.next.saturating_mul(4).min(BURST.1);
    }

    /// The rate, and whether it still grew with the last burst.
    fn rate(&self) -> (u64, bool) {
        (self.best, self.best / 5 * 4 > self.before)
    }

    /// How long to wait so that no more than the limit is sent.
    fn pause(&self, size: u64, took: Duration) -> Duration {
        self.limit.map_or(Duration::ZERO, |limit| time_of(size, limit.max(1)).saturating_sub(took))
    }
}

fn time_of(bytes: u64, rate: u64) -> Duration {
    Duration::from_micros(bytes.saturating_mul(1_000_000) / rate.max(1))
}

/// Measures. Nobody else may read the tunnel's messages meanwhile.
///
/// # Errors
/// [`NotMeasured`].
pub async fn measure(tunnel: &ChannelTunnel, limit: Option<u64>) -> Result<Link, NotMeasured> {
    let mut probe = Exchange { tunnel, nth: 0 };
    let mut round_trip = PATIENCE;
    for _ in 0..PINGS {
        round_trip = round_trip.min(probe.burst(0).await?);
    }
    // QUIC's own is without what the two agents take for it.
    round_trip = tunnel.stats().rtt.map_or(round_trip, |own| own.min(round_trip));
    let mut pace = Pace::new(limit, round_trip);
    while let Some(size) = pace.burst() {
        let took = probe.burst(size).await?;
        tokio::time::sleep(pace.pause(size, took)).await;
        pace.note(size, took);
    }
    let (rate, at_least) = pace.rate();
    Ok(Link { rate, at_least, round_trip, bytes: pace.sent })
}

/// What a probe of a link may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Empty messages that are answered: 1 to 64.
    pub pings: u32,
    /// Bytes to find out the rate with, at most 4 MiB; none for not at all.
    pub bytes: u64,
    /// Time for that, at most a second.
    pub time: Duration,
}

/// What a probe found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quality {
    /// Median of the round trips.
    pub round_trip: Duration,
    /// Their mean deviation from it.
    pub jitter: Duration,
    /// Packets that QUIC declared lost, of a million that it sent, while the link was not filled. 0 over TCP, which does
    /// not tell.
    pub loss_ppm: u32,
    /// Bytes a second, if that was tried.
    pub rate: Option<u64>,
}

/// Probes a link. Nobody else may read the tunnel's messages meanwhile.
///
/// # Errors
/// [`NotMeasured`].
pub async fn probe(tunnel: &ChannelTunnel, bounds: Bounds) -> Result<Quality, NotMeasured> {
    let mut exchange = Exchange { tunnel, nth: 0 };
    let mut trips = Vec::new();
    for _ in 0..bounds.pings.clamp(1, MOST_PINGS) {
        trips.push(exchange.burst(0).await?);
    }
    trips.sort_unstable();
    let round_trip = trips[trips.len() / 2];
    let deviations: Duration = trips.iter().map(|trip| trip.abs_diff(round_trip)).sum();
    let jitter = deviations / u32::try_from(trips.len()).unwrap_or(u32::MAX);
    // Before the bursts, which may fill the link until it loses something.
    let lane = tunnel.stats().lanes.first().copied().unwrap_or_default();
    let lost = lane.lost_packets.saturating_mul(1_000_000).checked_div(lane.sent_packets).unwrap_or(0);
    let loss_ppm = u32::try_from(lost.min(1_000_000)).unwrap_or(1_000_000);
    let (most, time) = (bounds.bytes.min(MOST), bounds.time.min(Duration::from_secs(1)));
    let mut pace = Pace { most, time, ..Pace::new(None, trips[0]) };
    while let Some(size) = pace.burst().filter(|size| pace.sent + size <= most) {
        let took = exchange.burst(size).await?;
        pace.note(size, took);
    }
    let rate = (pace.sent > 0).then(|| pace.rate().0);
    Ok(Quality { round_trip, jitter, loss_ppm, rate })
}

struct Exchange<'a> {
    tunnel: &'a ChannelTunnel,
    nth: u32,
}

impl Exchange<'_> {
    /// Sends so many bytes and waits for the answer; says how long that took.
    async fn burst(&mut self, size: u64) -> Result<Duration, NotMeasured> {
        self.nth += 1;
        let began = Instant::now();
        timeout(PATIENCE, self.converse(size)).await.map_err(|_late| NotMeasured::Late)??;
        Ok(began.elapsed())
    }

    async fn converse(&self, size: u64) -> Result<(), NotMeasured> {
        let mut left = size;
        loop {
            let piece = left.min(PIECE);
            left -= piece;
            let padding = "x".repeat(usize::try_from(piece).unwrap_or(0)); // at most PIECE
            let probe = Probe { version: VERSION, nth: self.nth, answer: left == 0, padding };
            let bytes = message::encode(&FromSource::Probe(probe)).map_err(NotMeasured::Lost)?;
            self.tunnel.send_message(bytes).await.map_err(|error| NotMeasured::Lost(error.chain()))?;
            if left == 0 {
                break;
            }
        }
        loop {
            let bytes = self.tunnel.recv_message().await.map_err(|error| NotMeasured::Lost(error.chain()))?;
            match message::decode(&bytes).map_err(NotMeasured::Lost)? {
                FromDestination::Probed { nth } if nth == self.nth => return Ok(()),
                FromDestination::Refused { reason, findings } => {
                    return Err(NotMeasured::Refused(reason, findings));
                }
                // An answer that came too late for its burst.
                FromDestination::Probed { .. } => {}
                _ => return Err(NotMeasured::Lost("the destination answered what was not asked".to_owned())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bursts over a link of so many bytes a second: what was found, and how long it took.
    fn over(rate: u64, round_trip: Duration, limit: Option<u64>) -> (Pace, Duration) {
        let mut pace = Pace::new(limit, round_trip);
        let mut spent = Duration::ZERO;
        while let Some(size) = pace.burst() {
            let took = time_of(size, rate) + round_trip;
            spent += took + pace.pause(size, took);
            pace.note(size, took);
        }
        (pace, spent)
    }

    #[test]
    fn the_probe_finds_the_rate_and_is_short() {
        let millis = Duration::from_millis;
        for rate in [100 << 10, 1 << 20, 12_500_000, 125_000_000] {
            let (pace, spent) = over(rate, Duration::from_micros(200), None);
            let (found, at_least) = pace.rate();
            assert!(found.abs_diff(rate) < rate / 20, "{found} of {rate}");
            assert!(spent < millis(400) && pace.sent <= MOST, "{spent:?} and {} bytes at {rate}", pace.sent);
            assert!(!at_least || rate < 1 << 20, "two bursts of a fast link agree");
        }
        // Too slow for a second burst: what one burst says is all there is.
        let (pace, spent) = over(20 << 10, millis(1), None);
        assert_eq!((pace.sent, pace.rate().1), (BURST.0, true));
        assert!(spent < millis(900), "{spent:?}");
    }

    #[test]
    fn the_probe_honours_the_limit_and_ends_when_it_is_reached() {
        let (pace, spent) = over(125_000_000, Duration::from_micros(200), Some(1 << 20));
        assert!(pace.rate().0 >= 1 << 20 && pace.sent == BURST.0, "{pace:?}");
        assert!(spent >= time_of(pace.sent, 1 << 20), "no faster than allowed");
        // A link below its limit is still measured.
        let (pace, _) = over(1 << 20, Duration::from_micros(200), Some(10 << 20));
        assert!(pace.rate().0.abs_diff(1 << 20) < 60_000, "{pace:?}");
        // The smallest limit makes the smallest burst.
        assert_eq!(Pace::new(Some(1), Duration::ZERO).burst(), Some(1));
    }
}
