//! What happens when: one ordered list of events under a virtual clock, and the lanes that carry frames.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use novaferry_session::OldExtent;
use volume::ChunkId;
use volume::conformance::Dice;
use wire::{Control, ExtentHead, PageQuery, PageSums, Seal};

/// An extent frame with the little that the model needs beside its head.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) head: ExtentHead,
    /// For each chunk that travels as pages: the content that they go over.
    pub(crate) bases: Vec<u16>,
    pub(crate) ids: Vec<ChunkId>,
}

#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A control frame reaches the receiver.
    ToReceiver(Control),
    /// A control frame reaches the sender.
    ToSender(Control),
    /// A frame reaches the receiver over the lane of this incarnation.
    Frame(u32, Rc<Frame>),
    /// A lane takes a frame from the data queue.
    Take(u32),
    /// The sender notices that a lane is dead.
    LaneDown(u32),
    LaneUp,
    FoundData(u64),
    Scanned(u64, OldExtent, bool),
    Encoded(PageSums),
    Rooted,
    SenderFlush,
    Applied(u64, bool),
    RangeApplied(u64),
    Declared(u64, u64),
    Summed(PageQuery),
    Flushed,
    Committed,
    Finished(Seal),
}

/// Events by the time they are due; of those due together, in the order in which they were added.
#[derive(Default)]
pub(crate) struct Agenda {
    events: BTreeMap<(Duration, u64), Event>,
    next: u64,
    to_receiver: Duration,
    to_sender: Duration,
}

impl Agenda {
    pub(crate) fn add(&mut self, due: Duration, event: Event) {
        // The control stream is ordered: nothing overtakes.
        let due = match &event {
            Event::ToReceiver(_) => {
                self.to_receiver = self.to_receiver.max(due);
                self.to_receiver
            }
            Event::ToSender(_) => {
                self.to_sender = self.to_sender.max(due);
                self.to_sender
            }
            _ => due,
        };
        self.events.insert((due, self.next), event);
        self.next += 1;
    }

    pub(crate) fn due(&self) -> Option<Duration> {
        self.events.first_key_value().map(|((due, _), _)| *due)
    }

    pub(crate) fn pop(&mut self) -> Option<(Duration, Event)> {
        self.events.pop_first().map(|((due, _), event)| (due, event))
    }

    /// The connection is gone, and both drivers with it.
    pub(crate) fn clear(&mut self) {
        self.events.clear();
    }

    /// What is on a lane that died is lost, or comes late.
    pub(crate) fn kill_lane(&mut self, lane: u32, dice: &mut Dice) {
        let on_lane: Vec<(Duration, u64)> = self
            .events
            .iter()
            .filter(|(_, event)| matches!(event, Event::Frame(of, _) if *of == lane))
            .map(|(key, _)| *key)
            .collect();
        for key in on_lane {
            let frame = self.events.remove(&key);
            if let (Some(frame), true) = (frame, dice.below(2) == 0) {
                self.add(key.0 + Duration::from_millis(dice.below(3000)), frame);
            }
        }
    }
}

/// A connection that carries frames.
pub(crate) struct Lane {
    /// As the machine knows it; a later lane may get it again.
    pub(crate) number: u8,
    /// Never used twice.
    pub(crate) incarnation: u32,
    pub(crate) alive: bool,
    /// It has asked for a frame.
    pub(crate) asking: bool,
}
