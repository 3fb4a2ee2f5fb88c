//! Two hosts, a link, and every interleaving of their steps with up to three faults: the guest never runs twice, what
//! ran at the destination is never followed by the source's older memory unless an operator took it back and the
//! destination has recorded that its own is ended, and when the faults stop the guest runs in one place or the state
//! says why not. Operators, at both ends, may say their word at any moment; each word counts as a fault.
//!
//! The world is a simulator of the hosts around the real machines. Breadth first over all reachable worlds.

use std::collections::{HashSet, VecDeque};

use novaferry_session::cutover::{
    Choice, Destination, DestinationAction, DestinationEvent, DestinationState, Source, SourceAction,
    SourceEvent, SourceState, Verdict,
};

const FAULTS: u8 = 3;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Guest {
    Absent,
    Receiving,
    /// All of it is there, and it has not run.
    Whole,
    Running,
    Paused,
    Dead,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum ToDestination {
    Prepare,
    Permit,
    LastPart,
    Abort,
    Ask,
    Revoke,
    Finalise,
    Lost,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum ToSource {
    Prepared,
    Runs,
    NotRun,
    Verdict(Verdict),
}

/// One host: the machine while its process is up, its record, what it has still to do, and its guest.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Host<Machine, Record, Action> {
    machine: Option<Machine>,
    record: Option<Record>,
    todo: VecDeque<Action>,
    guest: Guest,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    source: Host<Source, SourceState, SourceAction>,
    destination: Host<Destination, DestinationState, DestinationAction>,
    fenced: bool,
    linked: bool,
    to_destination: VecDeque<ToDestination>,
    to_source: VecDeque<ToSource>,
    ran_there: bool,
    /// Post-copy: some of the memory is at the source alone while the guest runs at the destination.
    owed: bool,
    faults: u8,
}

impl World {
    fn new(postcopy: bool) -> Self {
        Self {
            owed: postcopy,
            source: Host {
                machine: Some(Source::default()),
                record: Some(SourceState::Preparing),
                todo: Source::first_actions().into(),
                guest: Guest::Running,
            },
            destination: Host { machine: None, record: None, todo: VecDeque::new(), guest: Guest::Absent },
            fenced: false,
            linked: true,
            to_destination: VecDeque::new(),
            to_source: VecDeque::new(),
            ran_there: false,
            faults: FAULTS,
        }
    }

    fn tell_source(&mut self, event: SourceEvent) {
        let Some(machine) = &mut self.source.machine else { return };
        if let Some(actions) = machine.handle(event) {
            if machine.state().is_durable() {
                self.source.record = Some(machine.state().clone());
            }
            self.source.todo.extend(actions);
        }
    }

    fn tell_destination(&mut self, event: DestinationEvent) {
        let Some(machine) = &mut self.destination.machine else { return };
        if let Some(actions) = machine.handle(event) {
            if machine.state().is_durable() {
                self.destination.record = Some(machine.state().clone());
            }
            self.destination.todo.extend(actions);
        }
    }

    fn send(&mut self, message: ToDestination) {
        if self.linked && self.destination_up() {
            self.to_destination.push_back(message);
        }
    }

    fn answer(&mut self, message: ToSource) {
        if self.linked && self.source.machine.is_some() {
            self.to_source.push_back(message);
        }
    }

    /// The destination's process is there, or has not been asked yet.
    fn destination_up(&self) -> bool {
        self.destination.machine.is_some() || self.destination.record.is_none()
    }

    fn act_source(&mut self) {
        let Some(action) = self.source.todo.pop_front() else { return };
        match action {
            SourceAction::Prepare => self.send(ToDestination::Prepare),
            SourceAction::StartMirror => self.tell_source(SourceEvent::MirrorReady),
            SourceAction::StartRam => {
                if self.source.guest == Guest::Running {
                    self.source.guest = Guest::Paused;
                    self.tell_source(SourceEvent::SwitchoverReached);
                }
            }
            SourceAction::CompareRoots => self.tell_source(SourceEvent::RootsEqual),
            SourceAction::MakeFence => {
                self.fenced = true;
                self.tell_source(SourceEvent::FenceDurable);
            }
            SourceAction::Permit => {
                assert!(self.fenced, "a permit leaves only behind a fence");
                self.send(ToDestination::Permit);
                if self.source.guest == Guest::Paused {
                    self.send(ToDestination::LastPart);
                }
            }
            SourceAction::Ask => self.send(ToDestination::Ask),
            SourceAction::Prove => self.prove(),
            SourceAction::SayLost => self.send(ToDestination::Lost),
            SourceAction::Abort => self.send(ToDestination::Abort),
            SourceAction::Revoke => self.send(ToDestination::Revoke),
            SourceAction::Resume => {
                self.fenced = false;
                if self.source.guest == Guest::Dead {
                    self.tell_source(SourceEvent::QemuDied);
                } else {
                    assert!(
                        self.source.machine.as_ref().is_some_and(|machine| machine.state().may_run_here()),
                        "resumed in {:?}",
                        self.source.machine
                    );
                    self.source.guest = Guest::Running;
                    self.tell_source(SourceEvent::Resumed);
                }
            }
            SourceAction::GiveUp => {
                assert!(!self.owed, "memory that the guest needs is given up: {self:?}");
                self.source.guest = Guest::Dead;
                self.send(ToDestination::Finalise);
            }
        }
    }

    /// What the destination answers when it is asked for a proof.
    fn prove(&mut self) {
        if !self.linked || self.destination.machine.is_none() || self.destination.guest != Guest::Running {
            return;
        }
        if !self.owed {
            self.tell_source(SourceEvent::Proved);
        } else if self.source.guest == Guest::Dead {
            self.tell_source(SourceEvent::MemoryLost("the source's process died".to_owned()));
        }
    }

    /// The rest of the memory comes, over this connection or a later one.
    fn memory_comes(&mut self) {
        self.owed = false;
    }

    fn act_destination(&mut self) {
        let Some(action) = self.destination.todo.pop_front() else { return };
        match action {
            DestinationAction::Run => {
                let Some(machine) = &mut self.destination.machine else { return };
                if matches!(self.destination.guest, Guest::Dead | Guest::Absent) {
                    self.tell_destination(DestinationEvent::QemuDied);
                } else if machine.starting() {
                    self.destination.record = Some(machine.state().clone());
                    self.destination.guest = Guest::Running;
                    self.ran_there = true;
                    self.tell_destination(DestinationEvent::Started);
                }
            }
            DestinationAction::Discard => {
                self.destination.guest = Guest::Absent;
                self.tell_destination(DestinationEvent::Discarded);
            }
            DestinationAction::SayRuns => self.answer(ToSource::Runs),
            DestinationAction::SayNotRun => self.answer(ToSource::NotRun),
            DestinationAction::Say(verdict) => self.answer(ToSource::Verdict(verdict)),
        }
    }

    fn deliver_to_destination(&mut self) {
        match self.to_destination.pop_front() {
            Some(ToDestination::Prepare) if self.destination.record.is_none() => {
                self.destination.machine = Some(Destination::default());
                self.destination.record = Some(DestinationState::Waiting { complete: false });
                self.destination.guest = Guest::Receiving;
                self.answer(ToSource::Prepared);
            }
            Some(ToDestination::Permit) => self.tell_destination(DestinationEvent::Permit),
            Some(ToDestination::LastPart) if self.destination.guest == Guest::Receiving => {
                self.destination.guest = Guest::Whole;
                self.tell_destination(DestinationEvent::Complete);
            }
            Some(ToDestination::Abort) => {
                self.tell_destination(DestinationEvent::Abort("aborted".to_owned()));
            }
            Some(ToDestination::Ask) => {
                if self.destination.record.is_none() {
                    self.answer(ToSource::Verdict(Verdict::Unknown));
                }
                self.tell_destination(DestinationEvent::Ask);
            }
            Some(ToDestination::Revoke) => self.tell_destination(DestinationEvent::Revoke),
            Some(ToDestination::Finalise) => self.tell_destination(DestinationEvent::Finalise),
            Some(ToDestination::Lost) => {
                self.tell_destination(DestinationEvent::MemoryLost("the source says so".to_owned()));
            }
            Some(ToDestination::Prepare | ToDestination::LastPart) | None => {}
        }
    }

    fn deliver_to_source(&mut self) {
        match self.to_source.pop_front() {
            Some(ToSource::Prepared) => self.tell_source(SourceEvent::Prepared),
            Some(ToSource::Runs) => self.tell_source(SourceEvent::Runs),
            Some(ToSource::NotRun) => self.tell_source(SourceEvent::NotRun),
            Some(ToSource::Verdict(verdict)) => self.tell_source(SourceEvent::Verdict(verdict)),
            None => {}
        }
    }

    fn cut(&mut self) {
        self.linked = false;
        self.to_destination.clear();
        self.to_source.clear();
        self.tell_source(SourceEvent::ContactLost);
        self.tell_destination(DestinationEvent::ContactLost);
        // The hypervisor notices that its stream ended.
        if self.destination.guest == Guest::Receiving {
            self.tell_destination(DestinationEvent::Failed("the stream ended".to_owned()));
        }
    }

    fn mend(&mut self) {
        self.linked = true;
        self.tell_source(SourceEvent::ContactBack);
    }

    fn crash_source(&mut self) {
        self.source.machine = None;
        self.source.todo.clear();
        self.to_destination.clear();
        self.to_source.clear();
        self.tell_destination(DestinationEvent::ContactLost);
        if self.destination.guest == Guest::Receiving {
            self.tell_destination(DestinationEvent::Failed("the stream ended".to_owned()));
        }
    }

    fn restart_source(&mut self) {
        let record = self.source.record.clone().expect("a source has a record from its first step");
        self.source.machine = Some(Source::from_record(record));
        self.tell_source(SourceEvent::Restarted);
    }

    fn crash_destination(&mut self) {
        self.destination.machine = None;
        self.destination.todo.clear();
        self.to_destination.clear();
        self.to_source.clear();
        if self.destination.guest == Guest::Receiving {
            // Its stream came through the process that died.
            self.destination.guest = Guest::Dead;
        }
        self.tell_source(SourceEvent::ContactLost);
    }

    fn restart_destination(&mut self) {
        let record = self.destination.record.clone().expect("only one that was asked restarts");
        self.destination.machine = Some(Destination::from_record(record));
        let alive = !matches!(self.destination.guest, Guest::Dead | Guest::Absent);
        self.tell_destination(DestinationEvent::Restarted { alive });
        self.tell_source(SourceEvent::ContactBack);
    }

    /// All that can happen next without a fault.
    fn steps(&self) -> Vec<Self> {
        let mut next = Vec::new();
        let mut with = |possible: bool, change: fn(&mut Self)| {
            if possible {
                let mut world = self.clone();
                change(&mut world);
                next.push(world);
            }
        };
        with(self.source.machine.is_some() && !self.source.todo.is_empty(), Self::act_source);
        with(self.destination.machine.is_some() && !self.destination.todo.is_empty(), Self::act_destination);
        with(!self.to_destination.is_empty(), Self::deliver_to_destination);
        with(!self.to_source.is_empty(), Self::deliver_to_source);
        let both = self.source.machine.is_some() && self.destination.machine.is_some();
        let runs = self.destination.guest == Guest::Running;
        let comes = both && self.linked && runs && self.source.guest == Guest::Paused;
        with(self.owed && comes, Self::memory_comes);
        // The source asks again and again while the guest is not proved.
        let asks = self.source.machine.as_ref().is_some_and(|source| *source.state() == SourceState::Running);
        let answers = !self.owed || self.source.guest == Guest::Dead;
        with(both && asks && answers && self.linked && runs, Self::prove);
        if asks && !self.owed {
            // An operator, or the source by itself.
            with(true, |world| world.tell_source(SourceEvent::Finalise));
        }
        next
    }

    fn repairs(&self) -> Vec<Self> {
        let mut next = Vec::new();
        let mut with = |possible: bool, change: fn(&mut Self)| {
            if possible {
                let mut world = self.clone();
                change(&mut world);
                next.push(world);
            }
        };
        with(self.source.machine.is_none(), Self::restart_source);
        with(
            self.destination.machine.is_none() && self.destination.record.is_some(),
            Self::restart_destination,
        );
        with(!self.linked, Self::mend);
        next
    }

    fn faults(&self) -> Vec<Self> {
        if self.faults == 0 {
            return Vec::new();
        }
        let mut next = Vec::new();
        let mut with = |possible: bool, change: fn(&mut Self)| {
            if possible {
                let mut world = self.clone();
                world.faults -= 1;
                change(&mut world);
                next.push(world);
            }
        };
        with(self.linked, Self::cut);
        with(self.source.machine.is_some(), Self::crash_source);
        with(self.destination.machine.is_some(), Self::crash_destination);
        with(matches!(self.source.guest, Guest::Running | Guest::Paused), |world| {
            world.source.guest = Guest::Dead;
            world.tell_source(SourceEvent::QemuDied);
        });
        with(matches!(self.destination.guest, Guest::Receiving | Guest::Whole | Guest::Running), |world| {
            world.destination.guest = Guest::Dead;
            world.tell_destination(DestinationEvent::QemuDied);
        });
        with(true, |world| world.tell_source(SourceEvent::Cancel));
        with(true, |world| world.tell_source(SourceEvent::TakeBack));
        with(self.operator_speaks_there(), |world| world.tell_destination(DestinationEvent::Finalise));
        with(self.operator_speaks_there(), |world| {
            world.tell_destination(DestinationEvent::Resolve(Choice::Source));
        });
        next
    }

    /// There is a guest at the destination that its operator can decide about.
    fn operator_speaks_there(&self) -> bool {
        let state = self.destination.machine.as_ref().map(Destination::state);
        matches!(state, Some(DestinationState::Running | DestinationState::Died))
    }

    fn check(&self) {
        let here = self.source.guest == Guest::Running;
        let there = self.destination.guest == Guest::Running;
        assert!(!(here && there), "the guest runs twice: {self:?}");
        let revoked = matches!(self.destination.record, Some(DestinationState::Revoked(_)));
        assert!(!(here && self.ran_there && !revoked), "older memory runs again: {self:?}");
        assert!(!(there && revoked), "what was taken back runs again: {self:?}");
        if self.fenced {
            assert!(!here, "a fenced guest runs: {self:?}");
        }
        // The mirror writes to the destination's disk only while the guest has not run there.
        if there {
            let state = self.source.record.as_ref();
            assert!(state.is_some_and(|state| !state.may_run_here()), "both disks may be written: {self:?}");
        }
    }

    /// After everything was repaired and nothing more happens: what an operator finds.
    fn check_settled(&self) {
        let here = self.source.guest == Guest::Running;
        let there = self.destination.guest == Guest::Running;
        let source = self.source.machine.as_ref().map(Source::state);
        assert!(
            !matches!(source, Some(SourceState::TakingBack)),
            "not taken back with all repaired: {self:?}"
        );
        if there && self.owed {
            let said = matches!(source, Some(SourceState::Lost(_)));
            assert!(said, "the guest's memory is gone and the source says {source:?}: {self:?}");
        }
        if here ^ there {
            return;
        }
        let said = matches!(
            source,
            Some(
                SourceState::Stopped(_)
                    | SourceState::InDoubt
                    | SourceState::DestinationLost
                    | SourceState::Lost(_)
                    | SourceState::Running
                    | SourceState::Proven
                    | SourceState::Finalised
            )
        );
        // It died again after it had been given back: that is no longer this migration's.
        let said =
            said || matches!(source, Some(SourceState::RolledBack(_))) && self.source.guest == Guest::Dead;
        assert!(said, "the guest runs nowhere and the source says {source:?}: {self:?}");
        assert!(!matches!(source, Some(SourceState::InDoubt)), "in doubt with everything repaired: {self:?}");
        if matches!(source, Some(SourceState::Running | SourceState::Proven | SourceState::Finalised)) {
            // The guest there died after it had run: only a fault does that.
            let ended = matches!(self.destination.record, Some(DestinationState::Revoked(_)));
            assert!(ended || self.destination.guest == Guest::Dead, "{self:?}");
        }
    }

    /// Repairs everything and runs to the end.
    fn settle(mut self) {
        for _ in 0..200 {
            self.check();
            if let Some(next) = self.steps().into_iter().next() {
                self = next;
            } else if let Some(next) = self.repairs().into_iter().next() {
                self = next;
            } else {
                self.check_settled();
                return;
            }
        }
        panic!("does not come to rest: {self:?}");
    }
}

#[test]
fn no_interleaving_with_three_faults_runs_the_guest_twice() {
    println!("{} worlds", search(false));
}

#[test]
fn in_post_copy_nothing_is_given_up_that_the_guest_needs() {
    println!("{} worlds", search(true));
}

/// Visits every world that can be reached, and counts them.
fn search(postcopy: bool) -> usize {
    let first = World::new(postcopy);
    let mut seen = HashSet::from([first.clone()]);
    let mut queue = VecDeque::from([first]);
    let (mut finished, mut taken_back) = (false, false);
    while let Some(world) = queue.pop_front() {
        world.check();
        world.clone().settle();
        finished |= world.source.machine.as_ref().is_some_and(|s| *s.state() == SourceState::Proven);
        taken_back |= world.ran_there && world.source.guest == Guest::Running;
        for next in world.steps().into_iter().chain(world.repairs()).chain(world.faults()) {
            if seen.insert(next.clone()) {
                queue.push_back(next);
            }
        }
    }
    assert!(finished, "no run got to the end");
    assert!(taken_back, "no guest that had run there was taken back");
    assert!(seen.len() > 5_000, "only {} worlds were visited", seen.len());
    seen.len()
}

#[test]
fn an_operator_ends_doubt() {
    let mut source = Source::from_record(SourceState::InDoubt);
    let actions = source.handle(SourceEvent::Resolve(Choice::Source)).unwrap();
    assert_eq!(actions, [SourceAction::Resume, SourceAction::Abort]);
    let mut source = Source::from_record(SourceState::InDoubt);
    assert_eq!(source.handle(SourceEvent::Resolve(Choice::Destination)).unwrap(), []);
    assert_eq!(*source.state(), SourceState::Proven);
    assert!(!source.state().may_run_here());
}

#[test]
fn the_answer_to_a_taken_back_guest_is_lost_and_asked_for_again() {
    let mut source = Source::from_record(SourceState::Proven);
    assert_eq!(source.handle(SourceEvent::TakeBack).unwrap(), [SourceAction::Revoke]);
    let mut destination = Destination::from_record(DestinationState::Running);
    assert_eq!(destination.handle(DestinationEvent::Revoke).unwrap(), [DestinationAction::Discard]);
    assert!(!destination.starting(), "it may not run again");
    let said = [DestinationAction::Say(Verdict::Revoked)];
    assert_eq!(destination.handle(DestinationEvent::Discarded).unwrap(), said);
    // The source dies before it hears.
    let mut source = Source::from_record(source.state().clone());
    assert!(!source.state().may_run_here());
    assert_eq!(source.handle(SourceEvent::Restarted).unwrap(), [SourceAction::Revoke]);
    assert_eq!(destination.handle(DestinationEvent::Revoke).unwrap(), said);
    let actions = source.handle(SourceEvent::Verdict(Verdict::Revoked)).unwrap();
    assert_eq!(actions, [SourceAction::Resume, SourceAction::Abort]);
    // A permit that was under way all the time starts nothing.
    assert_eq!(destination.handle(DestinationEvent::Permit).unwrap(), said);
    assert!(!destination.starting());
}

#[test]
fn an_operator_takes_back_what_the_destination_cannot_give() {
    let mut source = Source::from_record(SourceState::TakingBack);
    // Whose host is off, by the operator's word.
    let actions = source.handle(SourceEvent::Resolve(Choice::Source)).unwrap();
    assert_eq!(actions, [SourceAction::Resume, SourceAction::Abort]);
    // What was given to that host for good stays there.
    let mut source = Source::from_record(SourceState::TakingBack);
    assert_eq!(source.handle(SourceEvent::Verdict(Verdict::Kept)).unwrap(), [SourceAction::Prove]);
    assert_eq!(*source.state(), SourceState::Running);
    let mut destination = Destination::from_record(DestinationState::Finalised);
    let said = [DestinationAction::Say(Verdict::Kept)];
    assert_eq!(destination.handle(DestinationEvent::Revoke).unwrap(), said);
}
