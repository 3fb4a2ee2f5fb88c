//! The compression level, from what was measured: never assumed.
//!
//! Compression pays while the link is the bottleneck and the CPU has time left. Which of the two it is shows at the
//! queue between them:
//!
//! ```text
//!  CPU queue ─► compress ─► send queue ─► link
//!    full                     full          the link is the bottleneck: try one rung up
//!    full                     empty         the CPU is the bottleneck:  try one rung down
//!    empty                    empty         the source is:              stay
//! ```
//!
//! The ladder is raw, -5, -1, 1, 3, and on very slow links with an idle CPU 6 and 9. Between the two watermarks
//! nothing changes. Each change is a *trial*: after settling for half a second, one second of throughput is compared
//! with that before; if it did not help, the change is undone. A trial that failed, or that undid an earlier step,
//! doubles the pause before the next one (2 s to 64 s); when throughput on the same rung changes by half, the world
//! has changed and the pause ends. A step up whose CPU time is not there is not even tried.
//!
//! Stated bound (tested): in T seconds of unchanged conditions at most `18 + T / 32` changes.
//!
//! Pure: time comes in with the samples. The caller takes one about every 100 ms.

mod estimate;

use std::time::Duration;

use estimate::Estimates;

/// How the level is chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// By measurement.
    #[default]
    Auto,
    /// Nothing is compressed.
    Off,
    /// Always this level, which must be in [`crate::codec::LEVELS`].
    Fixed(i32),
}

/// What to do with the next batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// Send it as it is.
    Raw,
    /// Compress it with this zstd level.
    Level(i32),
}

/// How much of a bounded queue is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fill {
    /// In use, in any unit.
    pub used: u64,
    /// Most that fits, in the same unit.
    pub capacity: u64,
}

impl Fill {
    fn fraction(self) -> f64 {
        if self.capacity == 0 { 0.0 } else { (self.used as f64 / self.capacity as f64).min(1.0) }
    }
}

/// What was measured since the previous sample.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Time since the previous sample.
    pub elapsed: Duration,
    /// Bytes waiting to be sent, now.
    pub send_queue: Fill,
    /// Batches waiting for a CPU thread, now.
    pub cpu_queue: Fill,
    /// Bytes that the transport took.
    pub sent_bytes: u64,
    /// Plain bytes that passed the codec stage, compressed or raw (not what was zero, known or unchanged).
    pub plain_bytes: u64,
    /// Plain bytes that were given to the compressor.
    pub compress_in: u64,
    /// What became of them, in bytes; batches that did not pay count with their plain size.
    pub compress_out: u64,
    /// CPU time that the compressor took, over all threads.
    pub compress_time: Duration,
    /// CPU time that the process used, over all threads.
    pub cpu_time: Duration,
}

/// Send queue above this: the link is the bottleneck.
const HIGH: f64 = 0.75;
/// Send queue below this: it is not.
const LOW: f64 = 0.25;
/// CPU queue above this: work is waiting for the CPU rather than the CPU for work.
const CPU_QUEUE_HIGH: f64 = 0.5;
/// CPU queue below this, with an empty send queue: the source is the bottleneck.
const CPU_QUEUE_LOW: f64 = 0.1;
/// Weight of a new sample in the smoothed queue fills: half of the old value is gone after 2 samples.
const SMOOTHING: f64 = 0.3;
/// Ignored after a change: the queues still hold batches of the old level.
const SETTLE: Duration = Duration::from_millis(500);
/// Throughput is judged over at least this.
const JUDGE: Duration = Duration::from_secs(1);
/// A step up must bring this much, or its CPU time is wasted.
const GAIN_UP: f64 = 1.01;
/// A step down may cost this much: it frees CPU time.
const GAIN_DOWN: f64 = 0.99;
/// Pause after the first failed trial.
const PAUSE_MIN: Duration = Duration::from_secs(2);
/// Longest pause. The price of probing is one bad trial of 1.5 s in this time.
const PAUSE_MAX: Duration = Duration::from_secs(64);
/// Throughput on one rung that changed by this factor means other conditions.
const REGIME: f64 = 1.5;
/// Rungs 6 and 9 need a CPU that is busy less than this.
const IDLE: f64 = 0.5;
/// Links below this (100 Mbit/s) are slow enough for level 6.
const SLOW_FOR_6: f64 = 12.5e6;
/// Links below this (50 Mbit/s) are slow enough for level 9.
const SLOW_FOR_9: f64 = 6.25e6;
/// Where a session starts: helps on slow links, costs little on fast ones.
const START: usize = 2;

/// The rungs. `Raw` is the lowest.
const LADDER: [Choice; 7] = [
    Choice::Raw,
    Choice::Level(-5),
    Choice::Level(-1),
    Choice::Level(1),
    Choice::Level(3),
    Choice::Level(6),
    Choice::Level(9),
];
const RUNG_6: usize = 5;
const RUNG_9: usize = 6;

/// A change that has not proved itself.
#[derive(Clone, Copy, Debug)]
struct Trial {
    from: usize,
    /// Plain bytes a second before it.
    before: f64,
}

/// Sums since the rung settled.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    elapsed: Duration,
    plain: u64,
    sent: u64,
    cpu: Duration,
}

impl Window {
    fn add(&mut self, sample: &Sample) {
        // Old measurements fade, so that a long stay does not hide a change.
        if self.elapsed > 4 * JUDGE {
            *self = Self {
                elapsed: self.elapsed / 2,
                plain: self.plain / 2,
                sent: self.sent / 2,
                cpu: self.cpu / 2,
            };
        }
        self.elapsed += sample.elapsed;
        self.plain = self.plain.saturating_add(sample.plain_bytes);
        self.sent = self.sent.saturating_add(sample.sent_bytes);
        self.cpu += sample.cpu_time;
    }

    fn per_second(&self, amount: u64) -> f64 {
        amount as f64 / self.elapsed.as_secs_f64()
    }
}

/// Chooses the level for one session. Feed it with [`Self::observe`]; ask it with [`Self::choice`] for each batch.
#[derive(Debug)]
pub struct Controller {
    mode: Mode,
    cores: f64,
    rung: usize,
    send_fill: f64,
    cpu_fill: f64,
    now: Duration,
    settled_at: Duration,
    window: Window,
    trial: Option<Trial>,
    /// Throughput of this rung when it was first judged; what a change of conditions is measured against.
    reference: Option<f64>,
    pause: Duration,
    paused_until: Duration,
    /// Direction of the last change that stayed.
    last_up: Option<bool>,
    changes: u64,
    estimates: Estimates,
}

impl Controller {
    /// A controller for a process that may use `cores` CPU threads.
    #[must_use]
    pub fn new(mode: Mode, cores: u32) -> Self {
        Self {
            mode,
            cores: f64::from(cores.max(1)),
            rung: START,
            send_fill: 0.5,
            cpu_fill: 0.5,
            now: Duration::ZERO,
            settled_at: SETTLE,
            window: Window::default(),
            trial: None,
            reference: None,
            pause: PAUSE_MIN,
            paused_until: Duration::ZERO,
            last_up: None,
            changes: 0,
            estimates: Estimates::default(),
        }
    }

    /// What to do with the next batch.
    #[must_use]
    pub fn choice(&self) -> Choice {
        match self.mode {
            Mode::Auto => LADDER[self.rung],
            Mode::Off => Choice::Raw,
            Mode::Fixed(level) => Choice::Level(level),
        }
    }

    /// How often the choice changed.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Takes a measurement and returns the choice from now on.
    pub fn observe(&mut self, sample: &Sample) -> Choice {
        if self.mode == Mode::Auto && !sample.elapsed.is_zero() {
            self.now += sample.elapsed;
            self.send_fill += SMOOTHING * (sample.send_queue.fraction() - self.send_fill);
            self.cpu_fill += SMOOTHING * (sample.cpu_queue.fraction() - self.cpu_fill);
            if self.now > self.settled_at {
                self.window.add(sample);
                self.estimates.record(self.rung, self.now, sample);
                if self.window.elapsed >= JUDGE {
                    self.decide();
                }
            }
        }
        self.choice()
    }

    fn decide(&mut self) {
        if self.send_fill < LOW && self.cpu_fill < CPU_QUEUE_LOW {
            // The source is the bottleneck: this window says nothing about the rung.
            self.window = Window::default();
            return;
        }
        let speed = self.window.per_second(self.window.plain);
        if let Some(trial) = self.trial.take() {
            self.judge(trial, speed);
            return;
        }
        let reference = *self.reference.get_or_insert(speed);
        if speed > reference * REGIME || speed * REGIME < reference {
            self.reference = Some(speed);
            self.end_pause();
        }
        if self.now < self.paused_until {
            return;
        }
        let next = if self.send_fill > HIGH && self.may_rise(speed) {
            self.rung + 1
        } else if self.send_fill < LOW && self.cpu_fill > CPU_QUEUE_HIGH && self.rung > 0 {
            self.rung - 1
        } else {
            return;
        };
        self.trial = Some(Trial { from: self.rung, before: speed });
        self.go_to(next);
    }

    /// Keeps or undoes the change that was tried.
    fn judge(&mut self, trial: Trial, speed: f64) {
        let up = self.rung > trial.from;
        if speed < trial.before * if up { GAIN_UP } else { GAIN_DOWN } {
            self.longer_pause();
            self.go_to(trial.from);
            return;
        }
        self.reference = Some(speed);
        match self.last_up.replace(up) {
            Some(last) if last != up => self.longer_pause(),
            _ => self.end_pause(),
        }
    }

    fn longer_pause(&mut self) {
        self.paused_until = self.now + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    fn end_pause(&mut self) {
        self.paused_until = self.now;
        self.pause = PAUSE_MIN;
    }

    fn go_to(&mut self, rung: usize) {
        self.rung = rung;
        self.changes += 1;
        self.settled_at = self.now + SETTLE;
        self.window = Window::default();
        self.reference = None;
    }

    /// Whether one rung up exists, is meant for such a link, and has the CPU time it needs at the present speed.
    fn may_rise(&self, speed: f64) -> bool {
        let next = self.rung + 1;
        if next >= LADDER.len() {
            return false;
        }
        let used = self.window.cpu.as_secs_f64() / self.window.elapsed.as_secs_f64();
        let link = self.window.per_second(self.window.sent);
        if (next == RUNG_6 && link > SLOW_FOR_6) || (next == RUNG_9 && link > SLOW_FOR_9) {
            return false;
        }
        if next >= RUNG_6 && used > IDLE * self.cores {
            return false;
        }
        let more = self.estimates.seconds_per_byte(next, self.rung, self.now)
            - self.estimates.seconds_per_byte(self.rung, self.rung, self.now);
        used + speed * more <= self.cores
    }
}

#[cfg(test)]
mod tests;
