//! Changes, their fates in a crash, and the record of a run from which crash states are made.

use std::sync::Arc;

use volume::ByteRange;
use volume::conformance::Dice;

use super::{SimDisk, usize_of};

/// One write or zeroing.
#[derive(Clone, Debug)]
pub(super) struct Change {
    start: usize,
    len: usize,
    /// `None`: zeros.
    data: Option<Arc<[u8]>>,
}

/// One entry of the record.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Change(Change),
    Flush,
}

/// What became of one unflushed change in a crash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It never reached the medium.
    Absent,
    /// It did.
    Complete,
    /// Some sectors did: sector *i* of the change when bit *i* mod 64 is set.
    Torn(u64),
}

impl Fate {
    /// One of the three, each as likely.
    pub fn any(dice: &mut Dice) -> Self {
        match dice.below(3) {
            0 => Self::Absent,
            1 => Self::Complete,
            _ => Self::Torn(dice.roll()),
        }
    }
}

/// What crashes may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CrashModel {
    /// Writes tear between sectors of this many bytes: 512 or 4096, counted from the start of the disk.
    pub sector: usize,
    /// Overlapping unflushed writes may reach the medium in any order, as on a disk that has them in flight together.
    pub reorder: bool,
}

impl Default for CrashModel {
    fn default() -> Self {
        Self { sector: 512, reorder: false }
    }
}

impl Change {
    pub(super) fn new(range: ByteRange, data: Option<&[u8]>) -> Self {
        Self { start: usize_of(range.start), len: usize_of(range.len()), data: data.map(Arc::from) }
    }

    pub(super) fn apply(&self, medium: &mut [u8]) {
        let place = &mut medium[self.start..self.start + self.len];
        match &self.data {
            Some(data) => place.copy_from_slice(data),
            None => place.fill(0),
        }
    }

    pub(super) fn apply_with(&self, medium: &mut [u8], fate: Fate, sector: usize) {
        match fate {
            Fate::Absent => {}
            Fate::Complete => self.apply(medium),
            Fate::Torn(_) => self.pieces(fate, sector).for_each(|piece| piece.apply(medium)),
        }
    }

    /// The parts of the change that `fate` lets through.
    pub(super) fn pieces(&self, fate: Fate, sector: usize) -> impl Iterator<Item = Self> {
        let mask = match fate {
            Fate::Absent => 0,
            Fate::Complete => u64::MAX,
            Fate::Torn(mask) => mask,
        };
        let (start, end) = (self.start, self.start + self.len);
        let first = start / sector;
        (first..end.div_ceil(sector)).filter(move |number| mask >> ((number - first) % 64) & 1 == 1).map(
            move |number| {
                let from = start.max(number * sector);
                self.part(from, end.min((number + 1) * sector))
            },
        )
    }

    fn part(&self, from: usize, to: usize) -> Self {
        let data = self.data.as_ref().map(|data| Arc::from(&data[from - self.start..to - self.start]));
        Self { start: from, len: to - from, data }
    }

    pub(super) fn len_if_any(&self) -> Option<usize> {
        (self.len > 0).then_some(self.len)
    }

    pub(super) fn split(&self, at: usize) -> (Self, Self) {
        let middle = self.start + at;
        (self.part(self.start, middle), self.part(middle, self.start + self.len))
    }

    /// Moves the change to another place of the disk that is a multiple of `block` away, if there is room for one.
    pub(super) fn misdirect(&mut self, size: u64, block: u64, dice: &mut Dice) {
        let offset = self.start as u64 % block;
        let room = (size - offset).saturating_sub(self.len as u64) / block + 1;
        if room > 1 {
            let here = self.start as u64 / block;
            let there = (here + 1 + dice.below(room - 1)) % room;
            self.start = usize_of(there * block + offset);
        }
    }
}

/// The medium after a crash that let `model` loose on the pending changes.
pub(super) fn crash(mut medium: Vec<u8>, pending: &[&Change], model: CrashModel, dice: &mut Dice) -> Vec<u8> {
    let mut order: Vec<usize> = (0..pending.len()).collect();
    if model.reorder {
        for last in (1..order.len()).rev() {
            order.swap(last, usize_of(dice.below(last as u64 + 1)));
        }
    }
    for index in order {
        pending[index].apply_with(&mut medium, Fate::any(dice), model.sector);
    }
    medium
}

/// All changes and flushes of a run, in the order in which the disk took them: what the log-writes target of Linux'
/// device mapper keeps. From it comes the state of the disk after a crash at any moment of the run.
#[derive(Clone, Debug)]
pub struct History {
    base: Vec<u8>,
    events: Vec<Event>,
}

impl History {
    pub(super) fn new(base: Vec<u8>, events: Vec<Event>) -> Self {
        Self { base, events }
    }

    /// Moments to crash at: before the first event, and after each.
    #[must_use]
    pub fn moments(&self) -> usize {
        self.events.len() + 1
    }

    /// Flushes that had succeeded by `moment`: everything answered before the last of them is durable.
    #[must_use]
    pub fn flushes(&self, moment: usize) -> usize {
        self.events[..moment].iter().filter(|event| matches!(event, Event::Flush)).count()
    }

    /// The pending changes at `moment`, beside the medium with all that was durable by then.
    fn at(&self, moment: usize) -> (Vec<u8>, Vec<&Change>) {
        let mut medium = self.base.clone();
        let mut pending: Vec<&Change> = Vec::new();
        for event in &self.events[..moment] {
            match event {
                Event::Change(change) => pending.push(change),
                Event::Flush => pending.drain(..).for_each(|change| change.apply(&mut medium)),
            }
        }
        (medium, pending)
    }

    /// A disk that could be found after a crash at `moment` of the run.
    ///
    /// # Panics
    /// When `moment` is not below [`History::moments`].
    #[must_use]
    pub fn crash_at(&self, moment: usize, model: CrashModel, dice: &mut Dice) -> SimDisk {
        let (medium, pending) = self.at(moment);
        SimDisk::holding(crash(medium, &pending, model, dice), dice.roll())
    }

    /// All disks of a crash at `moment` in which every change is absent or complete; `None` when there are more than
    /// `limit`.
    #[must_use]
    pub fn crash_states(&self, moment: usize, limit: usize) -> Option<Vec<SimDisk>> {
        let (medium, pending) = self.at(moment);
        let count =
            1_usize.checked_shl(u32::try_from(pending.len()).ok()?).filter(|count| *count <= limit)?;
        let state = |set: usize| {
            let mut medium = medium.clone();
            for (_, change) in pending.iter().enumerate().filter(|(index, _)| set >> index & 1 == 1) {
                change.apply(&mut medium);
            }
            SimDisk::holding(medium, set as u64)
        };
        Some((0..count).map(state).collect())
    }
}
