//! One copy from beginning to end: both machines, the drivers that a model plays, and whatever goes wrong.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::time::Duration;

use novaferry_session::{ExtentSet, Receiver, Sender, SessionError};
use volume::conformance::Dice;
use volume::{Generation, KeyId, Sequence, SessionId};
use wire::{Control, Grant, HashKeyBytes};

use super::link::{Agenda, Event, Frame, Lane};
use super::model::{Content, SenderJournal, Source, Target, ZERO, place};

/// Steps after which a copy that should be done by then has hung.
const STEPS: u64 = 60_000;
/// Steps after which nothing goes wrong any more.
const TROUBLE_STEPS: u64 = 3000;

/// How the target begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Begin {
    Empty,
    /// Unknown content that nobody asks for.
    Garbage,
    /// An old copy; its leaves are sent.
    OldCopy,
}

/// What a run came to.
#[derive(PartialEq, Eq, Debug, Default, Clone)]
pub(crate) struct Outcome {
    pub(crate) trace: u64,
    pub(crate) steps: u64,
    pub(crate) attempts: u64,
    pub(crate) crashes: u64,
    pub(crate) lane_deaths: u64,
    pub(crate) refusals: u64,
    pub(crate) late: u64,
    pub(crate) drains: u64,
    pub(crate) resent_extents: u64,
    pub(crate) declared_attempts: u64,
    pub(crate) resumed_attempts: u64,
    pub(crate) pages: u64,
}

/// What the sender has sent and not heard of.
pub(crate) struct Sent {
    pub(crate) first: u64,
    pub(crate) count: u64,
    /// Payload; `None` for a range.
    pub(crate) bytes: Option<u64>,
    /// Incarnation of the lane that took it.
    pub(crate) lane: Option<u32>,
}

pub(crate) struct World {
    pub(crate) dice: Dice,
    pub(crate) now: Duration,
    pub(crate) agenda: Agenda,
    pub(crate) source: Source,
    pub(crate) target: Target,
    pub(crate) sender_journal: SenderJournal,
    pub(crate) outcome: Outcome,
    pub(crate) session: SessionId,
    print: bool,
    begin: Begin,
    trouble: u64,
    pub(crate) slowness: u64,
    pub(crate) refusing: u64,
    duplicating: u64,
    /// Longest time on a lane, milliseconds.
    transit: u64,
    generation: u64,
    // This attempt.
    pub(crate) grant: Grant,
    pub(crate) sender: Sender,
    pub(crate) receiver: Receiver,
    /// What the leaves of this attempt say, per extent; outer `None` is unknown.
    pub(crate) leaves: Vec<Option<Content>>,
    pub(crate) sent: BTreeMap<u64, Sent>,
    /// First extent and length of everything that was sent in this attempt.
    pub(crate) names: BTreeMap<u64, (u64, u64)>,
    pub(crate) prepared: BTreeMap<u64, (u64, Frame)>,
    pub(crate) bases: BTreeMap<u64, novaferry_session::OldExtent>,
    pub(crate) queue: VecDeque<std::rc::Rc<Frame>>,
    pub(crate) lanes: Vec<Lane>,
    next_lane: u32,
    pub(crate) kept: BTreeMap<u64, std::rc::Rc<Frame>>,
    pub(crate) applying: BTreeMap<u64, std::rc::Rc<Frame>>,
    pub(crate) applying_ranges: BTreeMap<u64, (wire::RangeKind, Vec<wire::Run>)>,
    pub(crate) committing: Option<(bool, Vec<novaferry_session::Change>)>,
    sender_settled: ExtentSet,
    receiver_settled: ExtentSet,
    draining: (bool, bool),
    /// Acknowledged before this attempt, and not lost by the sender: must not be sent again.
    acknowledged: BTreeSet<u64>,
    /// In flight when the attempt before ended.
    lost: BTreeSet<u64>,
    pub(crate) done: bool,
}

fn grant() -> Grant {
    Grant {
        generation: Generation(0),
        key_id: KeyId([1; 16]),
        key: HashKeyBytes([2; 32]),
        page_seed: 7,
        first_sequence: Sequence(0),
        window_bytes: 1,
        window_frames: 1,
        resumed: false,
        leaves: false,
        known: false,
        zeroed: false,
    }
}

impl World {
    pub(crate) fn new(seed: u64, print: bool) -> Self {
        let mut dice = Dice::new(seed);
        let source = Source::new(&mut dice);
        let (size, extents) = (source.size, source.extents());
        let (begin, content) = match dice.below(4) {
            0 => (Begin::Empty, vec![ZERO; place(extents)]),
            1 => {
                let mut content = vec![ZERO; place(extents)];
                for extent in 0..extents {
                    let chunks = super::model::chunks(size, extent);
                    content[place(extent)][..chunks].fill(9999);
                }
                (Begin::Garbage, content)
            }
            _ => (Begin::OldCopy, source.old_copy(&mut dice)),
        };
        let mut session = [0; 16];
        dice.fill(&mut session);
        let (sender, receiver) =
            Self::machines(size, grant(), ExtentSet::new(extents), ExtentSet::new(extents));
        let mut world = Self {
            trouble: dice.below(30),
            slowness: [1, 10, 300, 3000][place(dice.below(4))],
            refusing: dice.below(4),
            duplicating: dice.below(20),
            transit: [20, 100, 2000][place(dice.below(3))],
            dice,
            now: Duration::ZERO,
            agenda: Agenda::default(),
            target: Target::new(size, content),
            source,
            sender_journal: SenderJournal::default(),
            outcome: Outcome { trace: 0xcbf2_9ce4_8422_2325, ..Outcome::default() },
            session: SessionId(session),
            print,
            begin,
            generation: 0,
            grant: grant(),
            sender,
            receiver,
            leaves: Vec::new(),
            sent: BTreeMap::new(),
            names: BTreeMap::new(),
            prepared: BTreeMap::new(),
            bases: BTreeMap::new(),
            queue: VecDeque::new(),
            lanes: Vec::new(),
            next_lane: 0,
            kept: BTreeMap::new(),
            applying: BTreeMap::new(),
            applying_ranges: BTreeMap::new(),
            committing: None,
            sender_settled: ExtentSet::new(extents),
            receiver_settled: ExtentSet::new(extents),
            draining: (false, false),
            acknowledged: BTreeSet::new(),
            lost: BTreeSet::new(),
            done: false,
        };
        world.connect();
        world
    }

    fn machines(
        size: volume::ByteLen,
        grant: Grant,
        remembered: ExtentSet,
        durable: ExtentSet,
    ) -> (Sender, Receiver) {
        let terms = novaferry_session::SenderTerms { size, grant, remembered, max_work: 4 };
        let sender = Sender::new(Duration::ZERO, terms).expect("the model's grants are sound");
        (sender, Receiver::new(novaferry_session::ReceiverTerms { size, grant, durable }))
    }

    #[expect(clippy::print_stdout, reason = "only when one seed is replayed, for the person who does")]
    pub(crate) fn trace(&mut self, what: std::fmt::Arguments<'_>) {
        let mut line = String::new();
        write!(line, "{:?} {what}", self.now).unwrap();
        for byte in line.bytes() {
            self.outcome.trace = (self.outcome.trace ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.print {
            println!("{line}");
        }
    }

    /// Adds an event after a random delay of up to `slow` milliseconds.
    pub(crate) fn later(&mut self, slow: u64, event: Event) {
        let delay = Duration::from_micros(self.dice.below(slow * 1000 + 1));
        self.agenda.add(self.now + delay, event);
    }

    /// One in `n`; never for 0.
    pub(crate) fn chance(&mut self, n: u64) -> bool {
        n > 0 && self.dice.below(n) == 0
    }

    // === attempts ===

    /// New machines from the journals, under the next generation.
    fn connect(&mut self) {
        let (size, extents) = (self.source.size, self.source.extents());
        self.generation += 1;
        self.outcome.attempts += 1;
        let journal: BTreeSet<u64> = self.target.journal.keys().copied().collect();
        let remembered = self.sender_journal.remembered();
        let first = self.generation == 1;
        let resumed = !first && self.dice.below(3) > 0;
        let leaves = if first { self.begin == Begin::OldCopy } else { !resumed || self.dice.below(3) == 0 };
        // Reading what is there works at any time; what an earlier attempt left is trusted only by the journal.
        let reading = leaves && (first || self.dice.below(2) == 0);
        self.leaves = (0..extents)
            .map(|extent| {
                if reading {
                    Some(self.target.current[place(extent)])
                } else {
                    self.target.journal.get(&extent).copied()
                }
            })
            .collect();
        let most = [2, 8, 40][place(self.dice.below(3))];
        self.grant = Grant {
            generation: Generation(self.generation),
            first_sequence: Sequence(self.dice.below(1000)),
            window_bytes: [1, 1 << 20, 3 << 20, 8 << 20][place(self.dice.below(4))],
            window_frames: u32::try_from(1 + self.dice.below(most)).unwrap(),
            resumed,
            leaves,
            zeroed: first && self.begin == Begin::Empty,
            ..grant()
        };
        self.outcome.declared_attempts += u64::from(leaves);
        self.outcome.resumed_attempts += u64::from(resumed);
        let set = |of: &BTreeSet<u64>| {
            let mut set = ExtentSet::new(extents);
            of.iter().for_each(|extent| assert!(set.insert(*extent)));
            set
        };
        let terms = novaferry_session::SenderTerms {
            size,
            grant: self.grant,
            remembered: set(&remembered),
            max_work: place(1 + self.dice.below(8)),
        };
        self.sender = Sender::new(self.now, terms).expect("the model's grants are sound");
        self.receiver = Receiver::new(novaferry_session::ReceiverTerms {
            size,
            grant: self.grant,
            durable: set(&journal),
        });
        self.sender.start();
        self.acknowledged = if resumed { &journal & &remembered } else { journal };
        self.sender_settled = ExtentSet::new(extents);
        self.receiver_settled = ExtentSet::new(extents);
        self.draining = (false, false);
        self.agenda.clear();
        self.sent.clear();
        self.names.clear();
        self.prepared.clear();
        self.bases.clear();
        self.queue.clear();
        self.kept.clear();
        self.applying.clear();
        self.applying_ranges.clear();
        self.committing = None;
        self.lanes.clear();
        for _ in 0..=self.dice.below(3) {
            self.lane_up();
        }
        self.later(50, Event::SenderFlush);
        let (session, grant) = (self.session, self.grant);
        self.trace(format_args!("attempt {session} {grant:?}"));
    }

    fn lane_up(&mut self) {
        let number = (1..).find(|number| self.lanes.iter().all(|lane| lane.number != *number)).unwrap();
        let incarnation = self.next_lane;
        self.next_lane += 1;
        self.lanes.push(Lane { number, incarnation, alive: true, asking: false });
    }

    /// The attempt is over. Whoever crashes loses what it did not flush; the other keeps what it has.
    fn end(&mut self, sender_crashes: bool, receiver_crashes: bool) {
        self.trace(format_args!("end, crash {sender_crashes} {receiver_crashes}"));
        self.outcome.crashes += u64::from(sender_crashes) + u64::from(receiver_crashes);
        self.lost = self
            .sent
            .values()
            .filter(|sent| sent.bytes.is_some())
            .flat_map(|sent| sent.first..sent.first + sent.count)
            .collect();
        if sender_crashes {
            self.sender_journal.crash(&mut self.dice);
        }
        if let Some((flushed, changes)) = self.committing.take() {
            // A commit that was under way got anywhere.
            let upto = place(self.dice.below(changes.len() as u64 + 1));
            if flushed {
                self.target.journal(&changes[..upto], &self.leaves);
            }
        }
        let power = receiver_crashes && self.dice.below(2) == 0;
        self.target.crash(&mut self.dice, power);
        // Whatever was acknowledged has survived all this.
        for run in self.sender_settled.runs() {
            for extent in run.first..run.first + run.count {
                self.assert_durable(extent);
            }
        }
        self.connect();
    }

    /// The extent is on the medium, and the journal knows it.
    pub(crate) fn assert_durable(&self, extent: u64) {
        let truth = &self.source.content[place(extent)];
        assert_eq!(
            &self.target.durable[place(extent)],
            truth,
            "extent {extent} is acknowledged and not durable"
        );
        assert_eq!(self.target.journal.get(&extent), Some(truth), "extent {extent} is not in the journal");
    }

    // === running ===

    /// Runs until the volume is sealed.
    pub(crate) fn run(mut self) -> Outcome {
        while !self.done {
            self.outcome.steps += 1;
            assert!(self.outcome.steps < STEPS, "not done after {STEPS} steps");
            self.drive_sender();
            self.drive_receiver();
            self.check();
            self.say_drained();
            if !self.done && !self.misfortune() {
                self.step();
            }
        }
        assert!(self.sender.is_done() && self.receiver.is_sealed());
        assert_eq!(self.target.durable, self.source.content, "the copy differs");
        self.outcome
    }

    /// The next event, or the next timeout.
    fn step(&mut self) {
        let due = self.agenda.due();
        let timeout = self.sender.poll_timeout().into_iter().chain(self.receiver.poll_timeout()).min();
        match (due, timeout) {
            (None, None) => panic!("nothing is due, and it is not done"),
            (Some(due), timeout) if timeout.is_none_or(|timeout| due < timeout) => {
                let (due, event) = self.agenda.pop().expect("there is one");
                self.now = self.now.max(due);
                self.trace(format_args!("{event:?}"));
                self.handle(event);
            }
            (_, timeout) => {
                self.now = self.now.max(timeout.expect("one of them is due"));
                self.trace(format_args!("timeout"));
                self.sender.handle_timeout(self.now).expect("nothing is slow enough to stall");
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::ToReceiver(frame) => match self.receiver.handle_control(self.now, frame) {
                Ok(()) => {}
                Err(SessionError::Drained) => self.end(false, false),
                Err(error) => panic!("the receiver refuses a sound frame: {error:?}"),
            },
            Event::ToSender(frame) => {
                self.note_answer(&frame);
                match self.sender.handle_control(self.now, frame) {
                    Ok(()) => {}
                    Err(SessionError::Drained) => self.end(false, false),
                    Err(error) => panic!("the sender refuses a sound frame: {error:?}"),
                }
            }
            Event::Frame(lane, frame) => {
                if self.lanes.iter().all(|of| of.incarnation != lane) {
                    self.outcome.late += 1;
                }
                self.receive_frame(frame);
            }
            Event::Take(lane) => self.take(lane),
            Event::LaneDown(lane) => self.lane_down(lane),
            Event::LaneUp => self.lane_up(),
            Event::SenderFlush => {
                self.sender_journal.flush();
                self.later(200, Event::SenderFlush);
            }
            Event::FoundData(_) | Event::Scanned(..) | Event::Encoded(_) | Event::Rooted => {
                self.sender_event(event);
            }
            Event::Applied(..)
            | Event::RangeApplied(_)
            | Event::Declared(..)
            | Event::Summed(_)
            | Event::Flushed
            | Event::Committed
            | Event::Finished(_) => self.receiver_event(event),
        }
    }

    // === lanes ===

    fn take(&mut self, incarnation: u32) {
        let Some(lane) = self.lanes.iter_mut().find(|lane| lane.incarnation == incarnation) else { return };
        lane.asking = false;
        let (number, alive) = (lane.number, lane.alive);
        let Some(frame) = self.queue.pop_front() else { return };
        self.sender.handle_lane_took(number, frame.head.sequence);
        if let Some(sent) = self.sent.get_mut(&frame.head.sequence.0) {
            sent.lane = Some(incarnation);
        }
        if !alive {
            return;
        }
        if self.chance(self.duplicating) {
            self.later(4 * self.transit, Event::Frame(incarnation, frame.clone()));
        }
        self.later(self.transit, Event::Frame(incarnation, frame));
    }

    fn lane_down(&mut self, incarnation: u32) {
        let Some(at) = self.lanes.iter().position(|lane| lane.incarnation == incarnation) else { return };
        let lane = self.lanes.remove(at);
        self.sender.handle_lane_down(lane.number);
        self.sent.retain(|_, sent| sent.lane != Some(incarnation));
        self.later(500, Event::LaneUp);
    }

    // === trouble ===

    fn misfortune(&mut self) -> bool {
        if self.trouble == 0 || self.outcome.steps > TROUBLE_STEPS || self.dice.below(60) > 0 {
            return false;
        }
        self.trouble -= 1;
        match self.dice.below(12) {
            0 => self.end(true, false),
            1 => self.end(false, true),
            2 => self.end(true, true),
            3 => self.end(false, false),
            4 => {
                self.outcome.drains += 1;
                self.sender.drain();
                self.draining.0 = true;
            }
            5 => {
                self.outcome.drains += 1;
                self.receiver.drain();
                self.draining.1 = true;
            }
            _ => {
                let nth = self.dice.below(self.lanes.len().max(1) as u64);
                let Some(lane) = self.lanes.get_mut(place(nth)) else { return false };
                if !lane.alive {
                    return false;
                }
                lane.alive = false;
                let incarnation = lane.incarnation;
                self.outcome.lane_deaths += 1;
                self.trace(format_args!("lane {incarnation} dies"));
                self.agenda.kill_lane(incarnation, &mut self.dice);
                self.later(200, Event::LaneDown(incarnation));
            }
        }
        true
    }

    /// A side that is drained says so and goes.
    fn say_drained(&mut self) {
        if self.draining.0 && self.sender.is_idle() {
            self.draining.0 = false;
            self.later(50, Event::ToReceiver(Control::Drain));
        }
        if self.draining.1 && self.receiver.is_idle() {
            self.draining.1 = false;
            self.later(50, Event::ToSender(Control::Drain));
        }
    }

    // === invariants ===

    /// What an answer means for what is outstanding.
    fn note_answer(&mut self, frame: &Control) {
        match frame {
            Control::Ack(ack) => {
                for run in &ack.runs {
                    for sequence in run.first..run.first + run.count {
                        self.sent.remove(&sequence);
                    }
                }
            }
            Control::Need(need) => {
                self.sent.remove(&need.sequence.0);
            }
            _ => {}
        }
    }

    fn check(&mut self) {
        let bytes: u64 = self.sent.values().filter_map(|sent| sent.bytes).sum();
        assert_eq!(bytes, self.sender.in_flight_bytes());
        assert_eq!(self.sent.is_empty(), self.sender.is_idle());
        // A single frame may be larger than the window: it would never go out otherwise.
        let frames = self.sent.values().filter(|sent| sent.bytes.is_some()).count();
        assert!(bytes <= self.grant.window_bytes || frames == 1, "more than the window is outstanding");
        assert!(self.sent.len() <= self.grant.window_frames as usize, "too many frames are outstanding");
        let span = self.grant.window_frames as usize * 4;
        assert!(self.kept.len() <= span, "the receiver keeps too much");
        for (now, before) in [
            (self.sender.settled(), &mut self.sender_settled),
            (self.receiver.settled(), &mut self.receiver_settled),
        ] {
            if now == before {
                continue;
            }
            let mut both = now.clone();
            both.intersect(before);
            assert_eq!(both, *before, "what was settled is not settled any more");
            *before = now.clone();
        }
        if self.sender_settled.count() > self.receiver_settled.count() {
            panic!("the sender believes more than the receiver has done");
        }
    }

    /// An extent goes out: it must not be one that was acknowledged before and remembered.
    pub(crate) fn note_sending(&mut self, extent: u64) {
        assert!(
            !self.acknowledged.contains(&extent),
            "extent {extent} is sent again although it was settled"
        );
        if self.lost.remove(&extent) {
            self.outcome.resent_extents += 1;
        }
    }
}
