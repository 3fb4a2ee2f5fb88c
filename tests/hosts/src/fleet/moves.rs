//! A migration between two simulated hosts: the agents' own machines decide, the work that they ask for takes a moment and
//! changes what is so in the [`World`].

use std::collections::VecDeque;
use std::sync::Arc;

use control_api::v1::{self, Progress};
use receipt::{Body, Receipt, ReceiptMode, Verified};
use session::cutover::{
    Choice, Destination, DestinationAction, DestinationEvent, DestinationState, Source, SourceAction,
    SourceEvent, SourceState,
};
use tokio::sync::mpsc;

use super::Shared;
use super::world::{Begun, Command, World};
use crate::Random;

const DISK: u64 = 20 << 30;
const RAM: u64 = 4 << 30;

/// What goes wrong with a migration by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trouble {
    Nothing,
    /// A step before the permit fails: the first, the second…
    Fails(usize),
    /// Contact is lost over the permit, which the destination got or did not.
    Doubt {
        arrived: bool,
    },
}

struct Carrier {
    shared: Arc<Shared>,
    wanted: v1::Migration,
    generation: u64,
    from: usize,
    /// The destination and its machine, once it has made room.
    there: Option<(usize, Destination)>,
    trouble: Trouble,
    steps: usize,
    done: [u64; 2],
}

/// Begins a migration that the source may begin; the world knows of it before this returns.
pub(super) fn begin(
    shared: &Arc<Shared>,
    world: &mut World,
    from: usize,
    wanted: v1::Migration,
    begun: Begun,
) {
    let Begun { generation, commands, mut random } = begun;
    let trouble = match random.percent(shared.pace.trouble) {
        false => Trouble::Nothing,
        true => match random.below(6) {
            0 => Trouble::Doubt { arrived: false },
            1 => Trouble::Doubt { arrived: true },
            step => Trouble::Fails(step - 2),
        },
    };
    let shared = Arc::clone(shared);
    let carrier = Carrier { shared, wanted, generation, from, there: None, trouble, steps: 0, done: [0; 2] };
    carrier.note_source(world, &SourceState::Preparing, false);
    tokio::spawn(carrier.run(commands, random));
}

impl Carrier {
    fn progress(&self, role: &str, state: &str, peer: &str, over: bool) -> Progress {
        let [disk_done, ram_done] = self.done;
        Progress {
            id: self.wanted.id.clone(),
            vm: self.wanted.vm.clone(),
            peer: peer.to_owned(),
            role: role.to_owned(),
            state: state.to_owned(),
            over,
            generation: self.generation,
            disk_done,
            disk_total: DISK,
            ram_remaining: RAM - ram_done,
            ram_total: RAM,
            rate: 100_000_000,
            expected_downtime_ms: 80,
            report: serde_json::json!({ "text": state, "report": {}, "findings": [] }).to_string(),
            ..Progress::default()
        }
    }

    fn note_source(&self, world: &mut World, state: &SourceState, over: bool) {
        let mut progress = self.progress("source", state.name(), &self.wanted.peer, over);
        if *state == SourceState::Finalised {
            progress.roots = vec![v1::Root { disk: "vda".to_owned(), root: self.root() }];
        }
        world.note(self.from, progress);
    }

    async fn run(mut self, mut commands: mpsc::Receiver<Command>, mut random: Random) {
        let mut machine = Source::default();
        let mut todo = VecDeque::from(Source::first_actions());
        loop {
            let step = random.within(self.shared.pace.step);
            let (event, is_command) = match todo.pop_front() {
                Some(action) => tokio::select! {
                    Some(command) = commands.recv() => {
                        todo.push_front(action);
                        (Some(event(command)), true)
                    }
                    () = tokio::time::sleep(step) => (self.act(&action), false),
                },
                None if machine.state().is_final() => break,
                None if *machine.state() == SourceState::Proven && !self.wanted.hold => {
                    (Some(SourceEvent::Finalise), false)
                }
                // Its place in the world holds the other end.
                None => (commands.recv().await.map(event), true),
            };
            let Some(actions) = event.and_then(|event| machine.handle(event)) else {
                if self.wanted.dry_run && todo.is_empty() {
                    break;
                }
                continue;
            };
            if is_command {
                todo.clear();
            }
            todo.extend(actions);
            self.note_source(&mut self.shared.world(), machine.state(), false);
        }
        self.note_source(&mut self.shared.world(), machine.state(), true);
    }

    fn act(&mut self, action: &SourceAction) -> Option<SourceEvent> {
        let shared = Arc::clone(&self.shared);
        let (from, vm) = (self.from, self.wanted.vm.clone());
        let before_permit = matches!(
            action,
            SourceAction::StartMirror
                | SourceAction::StartRam
                | SourceAction::CompareRoots
                | SourceAction::MakeFence
        );
        if before_permit {
            self.steps += 1;
            if self.trouble == Trouble::Fails(self.steps - 1) {
                return Some(SourceEvent::Failed("simulated: this step fails".to_owned()));
            }
        }
        match action {
            // A rehearsal only asks whether there would be room.
            SourceAction::Prepare if self.wanted.dry_run => None,
            SourceAction::Prepare => {
                let admitted = shared.world().admit(from, &self.wanted, self.generation);
                match admitted {
                    Ok(to) => {
                        self.there = Some((to, Destination::default()));
                        self.note_destination();
                        Some(SourceEvent::Prepared)
                    }
                    Err(why) => Some(SourceEvent::Failed(why)),
                }
            }
            SourceAction::StartMirror => {
                self.done[0] = DISK;
                Some(SourceEvent::MirrorReady)
            }
            SourceAction::StartRam => {
                self.done[1] = RAM;
                self.tell(DestinationEvent::Complete);
                Some(SourceEvent::SwitchoverReached)
            }
            SourceAction::CompareRoots => {
                shared.world().pause(from, &vm);
                Some(SourceEvent::RootsEqual)
            }
            SourceAction::MakeFence => {
                shared.world().fence(from, &vm);
                Some(SourceEvent::FenceDurable)
            }
            SourceAction::Permit => match std::mem::replace(&mut self.trouble, Trouble::Nothing) {
                Trouble::Doubt { arrived } => {
                    if arrived {
                        self.tell(DestinationEvent::Permit);
                    }
                    Some(SourceEvent::ContactLost)
                }
                _ => self.tell(DestinationEvent::Permit),
            },
            SourceAction::Ask => self.tell(DestinationEvent::Ask),
            SourceAction::Prove => Some(SourceEvent::Proved),
            SourceAction::Abort => {
                self.tell(DestinationEvent::Abort("simulated: the source gave up".to_owned()));
                None
            }
            SourceAction::Revoke => self.tell(DestinationEvent::Revoke),
            SourceAction::Resume => {
                shared.world().resume(from, &vm);
                Some(SourceEvent::Resumed)
            }
            SourceAction::GiveUp => {
                shared.world().remove(from, &vm);
                self.tell(DestinationEvent::Finalise);
                Some(SourceEvent::FinaliseDone)
            }
            SourceAction::SayLost => None,
        }
    }

    /// Of the one disk that every VM has, as if it were this move's own.
    fn root(&self) -> String {
        self.wanted.id.repeat(2)
    }

    fn receipts(&self, world: &World, to: usize, source: String) -> v1::Receipts {
        let body = Body {
            version: 1,
            volume: format!("fast/vms/{}/vda", self.wanted.vm),
            size: DISK,
            root: self.root(),
            key_id: self.wanted.id.clone(),
            generation: self.generation,
            session: self.wanted.id.clone(),
            mode: match self.wanted.mode() {
                v1::Mode::Warm => ReceiptMode::Warm,
                v1::Mode::Cold => ReceiptMode::Cold,
                v1::Mode::Live | v1::Mode::Unspecified => ReceiptMode::Live,
            },
            verified: Verified::Sink,
            owner: source,
            receiver: world.name(to).to_owned(),
            time: u64::try_from(crate::line::now_ms() / 1000).unwrap_or(0),
        };
        let receipt = Receipt::issue(body, world.signer(to).as_deref());
        v1::Receipts { json: vec![String::from_utf8(receipt.to_json()).expect("JSON is text")] }
    }

    fn note_destination(&self) {
        let Some((to, machine)) = &self.there else { return };
        let mut world = self.shared.world();
        let (state, source) = (machine.state(), world.name(self.from).to_owned());
        let mut progress = self.progress("destination", state.name(), &source, state.is_final());
        if *state == DestinationState::Finalised {
            progress.receipts = Some(self.receipts(&world, *to, source));
        }
        world.note(*to, progress);
    }

    /// Something reaches the destination; gives what it answers.
    fn tell(&mut self, event: DestinationEvent) -> Option<SourceEvent> {
        let (shared, vm) = (Arc::clone(&self.shared), self.wanted.vm.clone());
        let (mut events, mut answer) = (VecDeque::from([event]), None);
        while let Some(event) = events.pop_front() {
            let Some((to, machine)) = &mut self.there else { return None };
            let to = *to;
            for action in machine.handle(event).unwrap_or_default() {
                match action {
                    DestinationAction::Run => {
                        if machine.starting() {
                            shared.world().run_there(self.from, to, &vm);
                            events.push_back(DestinationEvent::Started);
                        }
                    }
                    DestinationAction::Discard => {
                        shared.world().remove(to, &vm);
                        events.push_back(DestinationEvent::Discarded);
                    }
                    DestinationAction::SayRuns => answer = Some(SourceEvent::Runs),
                    DestinationAction::SayNotRun => answer = Some(SourceEvent::NotRun),
                    DestinationAction::Say(verdict) => answer = Some(SourceEvent::Verdict(verdict)),
                }
            }
            self.note_destination();
        }
        answer
    }
}

fn event(command: Command) -> SourceEvent {
    match command {
        Command::Cancel => SourceEvent::Cancel,
        Command::Finalise => SourceEvent::Finalise,
        Command::TakeBack => SourceEvent::TakeBack,
        Command::KeepSource => SourceEvent::Resolve(Choice::Source),
        Command::KeepDestination => SourceEvent::Resolve(Choice::Destination),
    }
}
