//! A simulated disk: memory with a volatile write cache, faults on demand and crashes from a seed.
//!
//! It is a real [`Sink`]: it passes the conformance suite, short I/O is continued, a failed flush poisons. Nothing in
//! it waits, except for what a [`Fault::Stall`] holds until [`SimDisk::release`]; it needs no runtime.
//!
//! ```text
//!  write ─► log (volatile, read back at once) ──flush──► medium
//!                    │
//!                  crash: each logged write is absent, complete or torn between sectors; the medium stays
//! ```
//!
//! [`SimDisk::crash`] makes one disk that may be found after a power cut now; [`SimDisk::crash_with`] one of the
//! caller's choice; [`History`] (of [`SimDisk::recording`]) goes back to any earlier operation, so that one run of a
//! workload yields as many crash states as wanted. The lying faults ([`Fault::is_lie`]) break promises that real
//! disks make: they exist to prove that verification above finds them, and no crash state without them breaks one.

mod faults;
mod history;

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use volume::conformance::Dice;
use volume::{
    BufResult, Buffer, ByteLen, ByteOffset, ByteRange, Content, Fingerprint, Geometry, Io, Op, Sink, Source,
    VolumeError, ZeroMode,
};

use crate::failure;
pub use faults::{Call, Fault, Rule, When};
use history::{Change, Event};
pub use history::{CrashModel, Fate, History};

/// A disk in memory.
pub struct SimDisk {
    name: String,
    size: u64,
    logical_block: u32,
    content: Content,
    state: Mutex<State>,
}

struct State {
    /// What survives a crash for sure.
    medium: Vec<u8>,
    /// What reads see: the medium with the log applied.
    view: Vec<u8>,
    /// Changes since the last flush, in order.
    log: Vec<Change>,
    /// Writes that a stall held when their caller went away: they may still reach the medium.
    limbo: Vec<(u64, Change)>,
    stalled: Vec<(u64, oneshot::Sender<()>)>,
    rules: Vec<Rule>,
    dice: Dice,
    calls: u64,
    fired: u64,
    stalls: u64,
    poisoned: bool,
    /// The medium when recording began, and everything since.
    record: Option<(Vec<u8>, Vec<Event>)>,
}

impl SimDisk {
    /// A disk of `size` zero bytes with 1-byte blocks. `seed` decides whatever faults leave to chance.
    #[must_use]
    pub fn new(size: ByteLen, seed: u64) -> Self {
        let medium = vec![0; usize_of(size.0)];
        Self::with(medium, Content::Zero, seed)
    }

    /// A disk that holds `medium` and promises nothing about it.
    #[must_use]
    pub fn holding(medium: Vec<u8>, seed: u64) -> Self {
        Self::with(medium, Content::Unknown, seed)
    }

    fn with(medium: Vec<u8>, content: Content, seed: u64) -> Self {
        let size = medium.len() as u64;
        let state = State {
            view: medium.clone(),
            medium,
            log: Vec::new(),
            limbo: Vec::new(),
            stalled: Vec::new(),
            rules: Vec::new(),
            dice: Dice::new(seed),
            calls: 0,
            fired: 0,
            stalls: 0,
            poisoned: false,
            record: None,
        };
        Self {
            name: format!("simulated disk {seed}"),
            size,
            logical_block: 1,
            content,
            state: Mutex::new(state),
        }
    }

    /// Claims sectors of `block` bytes in its geometry.
    #[must_use]
    pub fn with_logical_block(mut self, block: u32) -> Self {
        self.logical_block = block;
        self
    }

    /// Adds faults. The first rule that matches a call applies.
    #[must_use]
    pub fn with_faults(self, rules: impl IntoIterator<Item = Rule>) -> Self {
        self.state().rules.extend(rules);
        self
    }

    /// Keeps a [`History`] of every change from here on. Lies are not in it: it holds what the disk truly took.
    #[must_use]
    pub fn recording(self) -> Self {
        {
            let mut state = self.state();
            let base = state.medium.clone();
            let pending = state.log.iter().cloned().map(Event::Change).collect();
            state.record = Some((base, pending));
        }
        self
    }

    /// Adds one fault to a disk in use.
    pub fn inject(&self, rule: Rule) {
        self.state().rules.push(rule);
    }

    /// Calls so far: reads, writes, zeros and flushes each count one.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// Faults that have struck so far.
    #[must_use]
    pub fn faults_fired(&self) -> u64 {
        self.state().fired
    }

    /// What reads would see, without faults.
    #[must_use]
    pub fn view(&self) -> Vec<u8> {
        self.state().view.clone()
    }

    /// What survives any crash.
    #[must_use]
    pub fn durable(&self) -> Vec<u8> {
        self.state().medium.clone()
    }

    /// Calls that a [`Fault::Stall`] holds.
    #[must_use]
    pub fn stalled(&self) -> usize {
        let mut state = self.state();
        state.stalled.retain(|(_, held)| !held.is_closed());
        state.stalled.len()
    }

    /// Lets all stalled calls go on; says how many.
    pub fn release(&self) -> usize {
        let held = std::mem::take(&mut self.state().stalled);
        held.into_iter().filter_map(|(_, held)| held.send(()).ok()).count()
    }

    /// Changes that a crash now could lose.
    #[must_use]
    pub fn unflushed(&self) -> usize {
        let state = self.state();
        state.log.len() + state.limbo.len()
    }

    /// A disk that could be found after a crash at this moment, by `model`.
    pub fn crash(&self, model: CrashModel, dice: &mut Dice) -> Self {
        let state = self.state();
        let pending: Vec<&Change> = state.log.iter().chain(state.limbo.iter().map(|(_, c)| c)).collect();
        let medium = history::crash(state.medium.clone(), &pending, model, dice);
        Self::holding(medium, dice.roll())
    }

    /// A disk after a crash in which change `i` of [`SimDisk::unflushed`] met the fate `fate(i)`.
    pub fn crash_with(&self, sector: usize, mut fate: impl FnMut(usize) -> Fate) -> Self {
        let state = self.state();
        let mut medium = state.medium.clone();
        for (index, change) in state.log.iter().chain(state.limbo.iter().map(|(_, c)| c)).enumerate() {
            change.apply_with(&mut medium, fate(index), sector);
        }
        Self::holding(medium, 0)
    }

    /// What happened since [`SimDisk::recording`]. `None` when it was not asked for.
    #[must_use]
    pub fn history(&self) -> Option<History> {
        let state = self.state();
        let (base, events) = state.record.clone()?;
        Some(History::new(base, events))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, op: Op, range: Option<ByteRange>, errno: rustix::io::Errno) -> VolumeError {
        failure::of(op, &self.name, range, errno.into())
    }

    /// Checks, counts the call, and finds the fault that strikes it.
    fn begin(
        &self,
        op: Op,
        call: Call,
        at: u64,
        len: u64,
    ) -> Result<(ByteRange, Option<Fault>), VolumeError> {
        let mut state = self.state();
        if state.poisoned {
            return Err(failure::poisoned(op, &self.name));
        }
        let range = ByteRange::new(ByteOffset(at), ByteLen(len)).filter(|range| range.end <= self.size);
        let range = range.ok_or_else(|| failure::out_of_range(op, &self.name, at, len, self.size))?;
        let index = state.calls;
        state.calls += 1;
        let State { rules, dice, .. } = &mut *state;
        let fault = faults::strike(rules, dice, call, index);
        state.fired += u64::from(fault.is_some());
        Ok((range, fault))
    }

    /// Waits for [`SimDisk::release`]. A change that never gets past it stays in limbo.
    async fn stall(&self, change: Option<Change>) {
        let (id, wait) = {
            let mut state = self.state();
            let (release, wait) = oneshot::channel();
            let id = state.stalls;
            state.stalls += 1;
            state.stalled.push((id, release));
            if let Some(change) = change {
                state.limbo.push((id, change));
            }
            (id, wait)
        };
        // A dropped sender means that the disk is going away: nothing to wait for either.
        drop(wait.await);
        self.state().limbo.retain(|(held, _)| *held != id);
    }

    async fn read(&self, at: u64, mut buffer: Buffer) -> BufResult {
        let (range, fault) = match self.begin(Op::Read, Call::Read, at, buffer.len() as u64) {
            Ok(begun) => begun,
            Err(error) => return (Err(error), buffer),
        };
        match fault {
            Some(Fault::Io) => return (Err(self.fail(Op::Read, Some(range), rustix::io::Errno::IO)), buffer),
            Some(Fault::Stall) => self.stall(None).await,
            _ => {}
        }
        let mut state = self.state();
        let mut done = 0;
        while done < buffer.len() {
            let place = usize_of(range.start) + done;
            let count = state.portion(fault, buffer.len() - done);
            buffer[done..done + count].copy_from_slice(&state.view[place..place + count]);
            done += count;
        }
        if fault == Some(Fault::BitFlip) && !buffer.is_empty() {
            let bit = usize_of(state.dice.below(buffer.len() as u64 * 8));
            buffer[bit / 8] ^= 1 << (bit % 8);
        }
        (Ok(()), buffer)
    }

    async fn change(
        &self,
        op: Op,
        call: Call,
        range: ByteRange,
        data: Option<&[u8]>,
    ) -> Result<(), VolumeError> {
        let len = range.end.checked_sub(range.start).unwrap_or(u64::MAX);
        let (range, fault) = self.begin(op, call, range.start, len)?;
        let mut change = Change::new(range, data);
        match fault {
            Some(Fault::Io) => return Err(self.fail(op, Some(range), rustix::io::Errno::IO)),
            Some(Fault::NoSpace) => return Err(self.fail(op, Some(range), rustix::io::Errno::NOSPC)),
            Some(Fault::Stall) => self.stall(Some(change.clone())).await,
            Some(Fault::Torn { sector }) => {
                let mut state = self.state();
                let fate = Fate::Torn(state.dice.roll());
                for piece in change.pieces(fate, sector) {
                    state.take(piece);
                }
                return Err(self.fail(op, Some(range), rustix::io::Errno::IO));
            }
            Some(Fault::Lost) => return Ok(()),
            Some(Fault::Misdirected { block }) => {
                let mut state = self.state();
                change.misdirect(self.size, block, &mut state.dice);
            }
            Some(Fault::Volatile) => {
                // Seen by reads, never to reach the medium.
                change.apply(&mut self.state().view);
                return Ok(());
            }
            _ => {}
        }
        let mut state = self.state();
        if fault == Some(Fault::Short) {
            let mut rest = change;
            while let Some(len) = rest.len_if_any() {
                let count = state.portion(fault, len);
                let (piece, tail) = rest.split(count);
                state.take(piece);
                rest = tail;
            }
        } else {
            state.take(change);
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), VolumeError> {
        let (_, fault) = self.begin(Op::Flush, Call::Flush, 0, 0)?;
        if fault == Some(Fault::Stall) {
            self.stall(None).await;
        }
        let mut state = self.state();
        match fault {
            Some(Fault::Io) | Some(Fault::NoSpace) => {
                state.poisoned = true;
                let errno =
                    if fault == Some(Fault::Io) { rustix::io::Errno::IO } else { rustix::io::Errno::NOSPC };
                return Err(self.fail(Op::Flush, None, errno));
            }
            // Answers without doing anything.
            Some(Fault::Lost | Fault::Volatile) => return Ok(()),
            _ => {}
        }
        let State { log, medium, .. } = &mut *state;
        for change in log.drain(..) {
            change.apply(medium);
        }
        state.record(Event::Flush);
        Ok(())
    }
}

impl State {
    /// How many of `left` bytes one step moves.
    fn portion(&mut self, fault: Option<Fault>, left: usize) -> usize {
        if fault == Some(Fault::Short) { usize_of(self.dice.below(left as u64)) + 1 } else { left }
    }

    fn take(&mut self, change: Change) {
        change.apply(&mut self.view);
        if self.record.is_some() {
            self.record(Event::Change(change.clone()));
        }
        self.log.push(change);
    }

    fn record(&mut self, event: Event) {
        if let Some((_, events)) = &mut self.record {
            events.push(event);
        }
    }
}

pub(crate) fn usize_of(n: u64) -> usize {
    usize::try_from(n).expect("simulated disks fit the address space")
}

impl Source for SimDisk {
    fn geometry(&self) -> Geometry {
        Geometry { size: ByteLen(self.size), logical_block: self.logical_block }
    }

    fn describe(&self) -> String {
        self.name.clone()
    }

    fn read_at(&self, at: ByteOffset, buf: Buffer) -> Io<'_, BufResult> {
        Box::pin(self.read(at.0, buf))
    }

    fn next_data(&self, at: ByteOffset) -> Io<'_, Result<Option<ByteRange>, VolumeError>> {
        Box::pin(async move {
            let state = self.state();
            if state.poisoned {
                return Err(failure::poisoned(Op::FindData, &self.name));
            }
            // Page by page, as a file system would tell it.
            let page = volume::PAGE;
            let data = |at: &u64| {
                let end = self.size.min(at + page);
                state.view[usize_of(*at)..usize_of(end)].iter().any(|b| *b != 0)
            };
            let mut pages =
                (0..self.size).step_by(usize_of(page)).skip(usize_of((at.0 / page).min(self.size)));
            let Some(start) = pages.by_ref().find(data) else { return Ok(None) };
            let end = pages.find(|at| !data(at)).unwrap_or(self.size);
            Ok(Some(ByteRange { start: start.max(at.0), end }).filter(|range| !range.is_empty()))
        })
    }

    fn fingerprint(&self) -> Io<'_, Result<Option<Fingerprint>, VolumeError>> {
        Box::pin(async move {
            let poisoned = self.state().poisoned;
            if poisoned { Err(failure::poisoned(Op::Check, &self.name)) } else { Ok(None) }
        })
    }
}

impl Sink for SimDisk {
    fn content(&self) -> Content {
        self.content
    }

    fn write_at(&self, at: ByteOffset, buf: Buffer) -> Io<'_, BufResult> {
        Box::pin(async move {
            let range = ByteRange::new(at, ByteLen(buf.len() as u64));
            let Some(range) = range else {
                let error = failure::out_of_range(Op::Write, &self.name, at.0, buf.len() as u64, self.size);
                return (Err(error), buf);
            };
            let result = self.change(Op::Write, Call::Write, range, Some(&buf)).await;
            (result, buf)
        })
    }

    fn zero(&self, range: ByteRange, _: ZeroMode) -> Io<'_, Result<(), VolumeError>> {
        Box::pin(self.change(Op::Zero, Call::Zero, range, None))
    }

    fn flush(&self) -> Io<'_, Result<(), VolumeError>> {
        Box::pin(self.flush())
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimDisk({}, {} bytes)", self.name, self.size)
    }
}
