//! Frames of one direction of a channel, until the other end has taken them.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::frame::invalid;

/// Frames in their order, numbered from 1. They stay until they are acknowledged, so that a channel after a broken one
/// can carry them again.
#[derive(Debug)]
pub(super) struct Outbox<T> {
    frames: Mutex<Frames<T>>,
    /// Something was added, or acknowledged.
    changed: Notify,
}

#[derive(Debug)]
struct Frames<T> {
    /// With their weights.
    waiting: VecDeque<(T, u64)>,
    /// Number of the last acknowledged one.
    acknowledged: u64,
    /// Number of the last one that was ever on its way.
    sent: u64,
    weight: u64,
}

impl<T> Default for Outbox<T> {
    fn default() -> Self {
        let frames = Frames { waiting: VecDeque::new(), acknowledged: 0, sent: 0, weight: 0 };
        Self { frames: Mutex::new(frames), changed: Notify::new() }
    }
}

impl<T: Clone> Outbox<T> {
    fn frames(&self) -> MutexGuard<'_, Frames<T>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a frame; its weight counts until it is acknowledged.
    pub(super) fn push(&self, frame: T, weight: u64) {
        let mut frames = self.frames();
        frames.waiting.push_back((frame, weight));
        frames.weight += weight;
        drop(frames);
        self.changed.notify_waiters();
    }

    /// The frame after this number, which counts as sent from now on. Waits until there is one. Cancel-safe.
    pub(super) async fn after(&self, number: u64) -> T {
        loop {
            let changed = self.changed.notified();
            {
                let mut frames = self.frames();
                let at = usize::try_from(number.saturating_sub(frames.acknowledged)).unwrap_or(usize::MAX);
                if let Some(frame) = frames.waiting.get(at).map(|(frame, _)| frame.clone()) {
                    frames.sent = frames.sent.max(number + 1);
                    return frame;
                }
            }
            changed.await;
        }
    }

    /// Number of the last frame that was ever on its way.
    pub(super) fn sent(&self) -> u64 {
        self.frames().sent
    }

    /// What the frames that wait weigh.
    pub(super) fn weight(&self) -> u64 {
        self.frames().weight
    }

    /// Waits until the frames weigh no more than this.
    pub(super) async fn lighter_than(&self, most: u64) {
        loop {
            let changed = self.changed.notified();
            if self.frames().weight <= most {
                return;
            }
            changed.await;
        }
    }

    /// The other end has taken every frame up to this number: gives those that were not acknowledged before.
    ///
    /// # Errors
    /// When it was never sent, or less was acknowledged than before.
    pub(super) fn acknowledge(&self, number: u64) -> io::Result<Vec<T>> {
        let mut frames = self.frames();
        if number > frames.sent || number < frames.acknowledged {
            return Err(invalid("an acknowledgement of what was not sent"));
        }
        let count = usize::try_from(number - frames.acknowledged).unwrap_or(usize::MAX);
        frames.acknowledged = number;
        let (taken, weights): (Vec<T>, Vec<u64>) = frames.waiting.drain(..count).unzip();
        frames.weight -= weights.iter().sum::<u64>();
        drop(frames);
        self.changed.notify_waiters();
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_stay_until_they_are_acknowledged() {
        let outbox = Outbox::default();
        for (frame, weight) in [("a", 1), ("b", 2), ("c", 4)] {
            outbox.push(frame, weight);
        }
        assert!(outbox.acknowledge(1).is_err(), "nothing was sent");
        assert_eq!([outbox.after(0).await, outbox.after(1).await], ["a", "b"]);
        assert!(outbox.acknowledge(3).is_err());
        assert_eq!(outbox.acknowledge(1).unwrap(), ["a"]);
        assert!(outbox.acknowledge(0).is_err());
        // Another channel begins after what came.
        assert_eq!([outbox.after(1).await, outbox.after(2).await], ["b", "c"]);
        assert_eq!((outbox.sent(), outbox.weight()), (3, 6));
        assert_eq!(outbox.acknowledge(3).unwrap(), ["b", "c"]);
        assert_eq!(outbox.acknowledge(3).unwrap(), <[&str; 0]>::default());
        outbox.lighter_than(0).await;
    }

    #[tokio::test]
    async fn who_waits_for_a_frame_or_for_room_is_woken() {
        let outbox = Outbox::default();
        let frame = async {
            let frame = outbox.after(0).await;
            outbox.acknowledge(1).map(|_| frame)
        };
        let other = async {
            outbox.push(7, 9);
            outbox.lighter_than(8).await;
        };
        let (frame, ()) = tokio::join!(frame, other);
        assert_eq!(frame.unwrap(), 7);
    }
}
