//! The regions of memory: one that changes all the time, two that never do.

use std::thread;
use std::time::{Duration, Instant};

use novaferry_guest_init::Options;
use novaferry_guest_init::memory::{
    BLOCK, Page, checksum, constant_page, duplicate_page, hot_page, hot_word, rewrite,
};

use crate::state::State;

/// How long the thread of the hot region sleeps when it is ahead: a few ticks of the kernel's clock, so that the pages
/// are spread over the time and not written in bursts.
const NAP: Duration = Duration::from_millis(5);

/// How many heartbeats one look at all of the constant memory takes.
const LOOK: usize = 10;

/// All regions, filled.
pub(crate) struct Regions {
    pub(crate) hot: Option<Hot>,
    pub(crate) fixed: Fixed,
}

/// Fills the regions.
pub(crate) fn fill(options: Options) -> Regions {
    let hot: Vec<Page> = (0..pages(options.hot)).map(hot_page).collect();
    let count = pages(options.duplicate);
    let fixed = (0..pages(options.constant)).map(constant_page);
    let fixed: Vec<Page> = fixed.chain((0..count).map(|index| duplicate_page(index, count))).collect();
    let sums = fixed.chunks(BLOCK).map(checksum).collect();
    Regions { hot: (!hot.is_empty()).then_some(Hot { pages: hot }), fixed: Fixed { pages: fixed, sums } }
}

fn pages(mebibytes: u64) -> u64 {
    mebibytes * BLOCK as u64
}

/// Gives way to the threads that keep time. In Linux this is of the thread, not of the process.
fn give_way(state: &State) {
    if let Err(error) = rustix::process::nice(10) {
        state.corrupt(&format!("nice: {error}"));
    }
}

/// The region that is rewritten pass after pass.
pub(crate) struct Hot {
    pages: Vec<Page>,
}

impl Hot {
    /// Rewrites pages at the rate of the options, for ever.
    pub(crate) fn run(mut self, options: Options, state: &State) {
        give_way(state);
        let edited = options.edit / 8;
        let mut pace = Pace::new(pages(options.rate));
        for pass in 1.. {
            for (index, page) in (0..).zip(&mut self.pages) {
                pace.wait();
                if let Err(mismatch) = rewrite(page, index, pass, edited) {
                    let first = hot_word(index, mismatch.at, 0, 0);
                    state.corrupt(&format!(
                        "hot page {index} in pass {pass}: {mismatch:x?}, unstamped {first:x}"
                    ));
                }
            }
            state.set_passes(pass);
        }
    }
}

/// So many pages a second; 0 is no limit.
struct Pace {
    rate: u64,
    since: Instant,
    done: u64,
}

impl Pace {
    fn new(rate: u64) -> Self {
        Self { rate, since: Instant::now(), done: 0 }
    }

    /// Waits until the next page is due. What was missed in a pause longer than a second is not made up for.
    fn wait(&mut self) {
        if self.rate == 0 {
            return;
        }
        loop {
            let elapsed = self.since.elapsed();
            let due = elapsed.as_micros() * u128::from(self.rate) / 1_000_000;
            if u128::from(self.done) < due {
                break;
            }
            thread::sleep(NAP);
        }
        self.done += 1;
        if self.done == self.rate {
            *self = Self::new(self.rate);
        }
    }
}

/// The regions that never change.
pub(crate) struct Fixed {
    pages: Vec<Page>,
    sums: Vec<u64>,
}

impl Fixed {
    /// Looks at a tenth of the pages in each interval of the heartbeat, for ever.
    pub(crate) fn run(self, options: Options, state: &State) {
        give_way(state);
        let interval = Duration::from_millis(options.heartbeat);
        let share = self.sums.len().div_ceil(LOOK).max(1);
        loop {
            for (first, sums) in self.sums.chunks(share).enumerate() {
                for (at, sum) in sums.iter().enumerate() {
                    let block = first * share + at;
                    let pages = self.pages.chunks(BLOCK).nth(block).unwrap_or_default();
                    if checksum(pages) != *sum {
                        state.corrupt(&format!("constant memory in its MiB {block}"));
                    }
                }
                thread::sleep(interval);
            }
            if self.sums.is_empty() {
                return;
            }
        }
    }
}
