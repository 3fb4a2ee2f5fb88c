//! One direction of the link, as a pure state machine: no I/O, no clock, no global randomness.
//!
//! ```text
//! handle_packet ─► MTU, UDP block ─► queue ─► rate ─► loss ─► corruption, duplication ─► delay ─► poll_deliver
//! ```
//!
//! Every packet draws the same number of random values whatever happens to it, so the fate of the n-th packet depends
//! on the seed, on n and on the probabilities only, never on time: a test can replay the packets through a second
//! channel and know exactly which ones the first has lost.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use crate::packet::is_udp;
use crate::random::Random;
use crate::spec::{DirectionSpec, Queue};
use crate::units::unit_interval;

mod pool;
#[cfg(test)]
mod tests;

pub use pool::MAX_HELD_BYTES;
use pool::{Pool, Slot};

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// What one direction has done so far, in packets unless said otherwise.
///
/// `offered + duplicated` equals `delivered` plus everything dropped plus what is under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Counters {
    /// Came in.
    pub offered: u64,
    /// Bytes that came in.
    pub offered_bytes: u64,
    /// Handed out, copies included.
    pub delivered: u64,
    /// Bytes handed out.
    pub delivered_bytes: u64,
    /// Lost on the wire.
    pub lost: u64,
    /// Dropped because the queue was full.
    pub dropped_queue: u64,
    /// Dropped because they were larger than the MTU.
    pub dropped_mtu: u64,
    /// Dropped because UDP is blocked.
    pub dropped_udp: u64,
    /// Dropped because the emulator's own memory limit ([`MAX_HELD_BYTES`]) was reached.
    pub dropped_memory: u64,
    /// Copies made.
    pub duplicated: u64,
    /// Held back so that later ones overtake.
    pub reordered: u64,
    /// Passed on with one bit flipped.
    pub corrupted: u64,
}

/// One direction of a link.
///
/// Inputs: [`handle_packet`](Self::handle_packet), [`handle_spec`](Self::handle_spec). Outputs, to be polled in this
/// order after every input and whenever [`poll_timeout`](Self::poll_timeout) has passed:
/// [`poll_deliver`](Self::poll_deliver) until it gives nothing, then `poll_timeout`.
#[derive(Debug)]
pub struct Channel {
    spec: DirectionSpec,
    mtu: u16,
    random: Random,
    /// When the last accepted packet has left the queue completely.
    busy_until: Option<Instant>,
    /// What `busy_until` is behind the exact time by, in `1 / rate` nanoseconds, so that rounding does not add up.
    remainder: u128,
    /// Latest arrival so far, for `keep_order`.
    last_due: Option<Instant>,
    line: BinaryHeap<Reverse<Flight>>,
    pool: Pool,
    /// The slot that `poll_deliver` has lent out last.
    lent: Option<Slot>,
    next_order: u64,
    counters: Counters,
}

/// A packet under way. The field order is the order of delivery.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Flight {
    due: Instant,
    order: u64,
    /// When it has left the queue.
    departs: Instant,
    slot: Slot,
    /// Copies do not take their turn at the rate.
    copy: bool,
}

/// The random decisions on one packet.
struct Fate {
    lost: bool,
    duplicated: bool,
    reordered: bool,
    corrupted: bool,
    /// In `[0, 1)`: where in the jitter interval.
    jitter: f64,
    /// Chooses the bit to flip.
    bit: u64,
}

impl Channel {
    /// A direction that does what `spec` says with packets of at most `mtu` bytes, random decisions fixed by `seed`.
    #[must_use]
    pub fn new(spec: DirectionSpec, mtu: u16, seed: u64) -> Self {
        Self {
            spec,
            mtu,
            random: Random::new(seed),
            busy_until: None,
            remainder: 0,
            last_due: None,
            line: BinaryHeap::new(),
            pool: Pool::new(mtu),
            lent: None,
            next_order: 0,
            counters: Counters::default(),
        }
    }

    /// What was done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Packets that were accepted and not handed out yet, in the queue and on the wire.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.line.len()
    }

    /// Takes in a packet that arrives at `now`. `now` must not go back.
    pub fn handle_packet(&mut self, now: Instant, packet: &[u8]) {
        self.counters.offered += 1;
        self.counters.offered_bytes += packet.len() as u64;
        let fate = self.draw();
        if packet.len() > usize::from(self.mtu) {
            self.counters.dropped_mtu += 1;
            return;
        }
        if self.spec.block_udp && is_udp(packet) {
            self.counters.dropped_udp += 1;
            return;
        }
        let Some(departs) = self.enqueue(now, packet.len()) else {
            self.counters.dropped_queue += 1;
            return;
        };
        if fate.lost {
            self.counters.lost += 1;
            return;
        }
        let Some(slot) = self.pool.put(packet) else {
            self.counters.dropped_memory += 1;
            return;
        };
        if fate.corrupted && flip_bit(self.pool.get_mut(slot), fate.bit) {
            self.counters.corrupted += 1;
        }
        let due = self.arrival(departs, &fate);
        self.send(due, departs, slot, false);
        if fate.duplicated
            && let Some(copy) = self.pool.copy(slot)
        {
            self.counters.duplicated += 1;
            self.send(due, departs, copy, true);
        }
    }

    /// Changes what the direction does from `now` on, e.g. a rate step or a blackhole; `mtu` may only shrink the path,
    /// larger packets vanish without a word as on a path with broken MTU discovery.
    ///
    /// Packets on the wire arrive as they would have. Those in the queue keep their fate and their delay but leave at
    /// the new rate. The random sequence goes on.
    pub fn handle_spec(&mut self, now: Instant, spec: DirectionSpec, mtu: u16) {
        self.spec = spec;
        self.mtu = mtu;
        let (mut queued, on_wire): (Vec<_>, Vec<_>) =
            self.line.drain().map(|Reverse(flight)| flight).partition(|flight| flight.departs > now);
        self.line = on_wire.into_iter().map(Reverse).collect();
        self.busy_until = None;
        self.last_due = self.line.iter().map(|Reverse(flight)| flight.due).max();
        queued.sort_unstable_by_key(|flight| (flight.departs, flight.order));
        let mut departs = now;
        for mut flight in queued {
            if !flight.copy {
                departs = self.depart(now, self.pool.get(flight.slot).len());
            }
            flight.due = departs + flight.due.saturating_duration_since(flight.departs);
            flight.departs = departs;
            self.last_due = self.last_due.max(Some(flight.due));
            self.line.push(Reverse(flight));
        }
    }

    /// The next packet that has arrived by `now`.
    pub fn poll_deliver(&mut self, now: Instant) -> Option<&[u8]> {
        if let Some(slot) = self.lent.take() {
            self.pool.free(slot);
        }
        if self.line.peek()?.0.due > now {
            return None;
        }
        let Reverse(flight) = self.line.pop()?;
        self.lent = Some(flight.slot);
        let packet = self.pool.get(flight.slot);
        self.counters.delivered += 1;
        self.counters.delivered_bytes += packet.len() as u64;
        Some(packet)
    }

    /// When the next packet arrives, if one is under way.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.line.peek().map(|Reverse(flight)| flight.due)
    }

    fn draw(&mut self) -> Fate {
        let Self { spec, random, .. } = self;
        Fate {
            lost: spec.loss.hit(random.next()),
            duplicated: spec.duplicate.hit(random.next()),
            reordered: spec.reorder.hit(random.next()),
            corrupted: spec.corrupt.hit(random.next()),
            jitter: unit_interval(random.next()),
            bit: random.next(),
        }
    }

    /// When a packet of `length` bytes has left the queue, or nothing if there is no room for it. An idle link takes
    /// any packet: the limit is on what waits.
    fn enqueue(&mut self, now: Instant, length: usize) -> Option<Instant> {
        let backlog = self.busy_until.map_or(Duration::ZERO, |busy| busy.saturating_duration_since(now));
        if let Some(rate) = self.spec.rate
            && !backlog.is_zero()
        {
            let bits = length as u128 * 8;
            let fits = match self.spec.queue {
                Queue::Time(limit) => {
                    backlog.as_nanos() + bits * NANOS_PER_SECOND / u128::from(rate.get()) <= limit.as_nanos()
                }
                Queue::Bytes(limit) => {
                    backlog.as_nanos() * u128::from(rate.get()) / NANOS_PER_SECOND + bits
                        <= u128::from(limit) * 8
                }
            };
            if !fits {
                return None;
            }
        }
        Some(self.depart(now, length))
    }

    /// Lets a packet of `length` bytes take its turn at the rate.
    fn depart(&mut self, now: Instant, length: usize) -> Instant {
        let Some(rate) = self.spec.rate else { return now };
        let rate = u128::from(rate.get());
        let start = match self.busy_until {
            Some(busy) if busy > now => busy,
            _ => {
                self.remainder = 0;
                now
            }
        };
        let total = length as u128 * 8 * NANOS_PER_SECOND + self.remainder;
        self.remainder = total % rate;
        let nanos = u64::try_from(total / rate).unwrap_or(u64::MAX);
        let departs = start + Duration::from_nanos(nanos);
        self.busy_until = Some(departs);
        departs
    }

    fn arrival(&mut self, departs: Instant, fate: &Fate) -> Instant {
        let spread = self.spec.jitter.mul_f64(2.0 * fate.jitter);
        let mut due = departs + (self.spec.delay + spread).saturating_sub(self.spec.jitter);
        if fate.reordered {
            // Does not move `last_due`: the packets behind it are to overtake it.
            self.counters.reordered += 1;
            return due + self.spec.reorder_delay;
        }
        if self.spec.keep_order {
            due = self.last_due.map_or(due, |last| due.max(last));
        }
        self.last_due = self.last_due.max(Some(due));
        due
    }

    fn send(&mut self, due: Instant, departs: Instant, slot: Slot, copy: bool) {
        self.line.push(Reverse(Flight { due, order: self.next_order, departs, slot, copy }));
        self.next_order += 1;
    }
}

/// Flips the bit that `choice` picks; an empty packet has none.
fn flip_bit(packet: &mut [u8], choice: u64) -> bool {
    let bits = packet.len() as u64 * 8;
    if bits == 0 {
        return false;
    }
    let bit = choice % bits;
    let Some(byte) = usize::try_from(bit / 8).ok().and_then(|at| packet.get_mut(at)) else { return false };
    *byte ^= 1 << (bit % 8);
    true
}
