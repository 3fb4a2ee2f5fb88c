//! What the receiver has certainly decoded.
//!
//! Every packet gets a **stamp** that counts over all channels. Slots remember stamps; whether a stamp is settled is
//! answered from the oldest packet of each channel that is not acknowledged.

use std::collections::VecDeque;

use crate::error::{Kind, Op, ReduceError};

/// Packets of one channel that may be unacknowledged and still use slots. Further ones use none. At 512 KiB a packet
/// this is 8 GiB in flight; the table of a channel stays below 512 KiB.
const MAX_UNACKNOWLEDGED: usize = 16_384;

/// Stands for "no packet is unacknowledged".
const NEVER: u64 = u64::MAX;

/// A packet in the order of planning.
pub(super) type Stamp = u64;

/// A packet that is not acknowledged.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    number: u64,
    stamp: Stamp,
}

#[derive(Default, Debug)]
struct Channel {
    /// Number of the last packet that was planned.
    last: Option<u64>,
    /// Only packets that used slots: others do not matter here.
    in_flight: VecDeque<InFlight>,
}

impl Channel {
    fn oldest(&self) -> Stamp {
        self.in_flight.front().map_or(NEVER, |packet| packet.stamp)
    }
}

/// The channels of one epoch.
#[derive(Default, Debug)]
pub(super) struct Channels {
    channels: Vec<Channel>,
    next_stamp: Stamp,
    /// The oldest unacknowledged packet of all channels.
    oldest: Stamp,
}

impl Channels {
    /// Starts packet `number` of `channel`: its stamp, or `None` when it must not use slots.
    ///
    /// # Errors
    /// [`Kind::Refused`] when the number is not above the channel's last one.
    pub(super) fn begin(&mut self, channel: u8, number: u64) -> Result<Option<Stamp>, ReduceError> {
        let index = usize::from(channel);
        if self.channels.len() <= index {
            self.channels.resize_with(index + 1, Channel::default);
        }
        let place = &mut self.channels[index];
        if let Some(last) = place.last
            && number <= last
        {
            let what = format!("packet {number} of channel {channel} is planned after packet {last}");
            return Err(ReduceError::new(Kind::Refused, Op::EncodePages, what));
        }
        place.last = Some(number);
        if place.in_flight.len() == MAX_UNACKNOWLEDGED {
            return Ok(None);
        }
        let stamp = self.next_stamp;
        self.next_stamp += 1;
        place.in_flight.push_back(InFlight { number, stamp });
        self.update_oldest();
        Ok(Some(stamp))
    }

    /// Forgets the packet that was just begun: it used no slot.
    pub(super) fn withdraw(&mut self, channel: u8) {
        if let Some(place) = self.channels.get_mut(usize::from(channel)) {
            place.in_flight.pop_back();
            self.update_oldest();
        }
    }

    /// All packets of `channel` up to `number` are decoded.
    ///
    /// # Errors
    /// [`Kind::Refused`] when no such packet was planned.
    pub(super) fn acknowledge(&mut self, channel: u8, number: u64) -> Result<(), ReduceError> {
        let known = self.channels.get_mut(usize::from(channel)).filter(|place| place.last >= Some(number));
        let Some(place) = known else {
            let what = format!("packet {number} of channel {channel} is acknowledged, but was never sent");
            return Err(ReduceError::new(Kind::Refused, Op::AcknowledgePages, what));
        };
        while place.in_flight.front().is_some_and(|packet| packet.number <= number) {
            place.in_flight.pop_front();
        }
        self.update_oldest();
        Ok(())
    }

    /// Whether the packet of `channel` with this stamp is decoded.
    pub(super) fn is_settled(&self, channel: u8, stamp: Stamp) -> bool {
        self.channels.get(usize::from(channel)).is_none_or(|place| stamp < place.oldest())
    }

    /// Whether all packets of all channels up to this stamp are decoded.
    pub(super) fn is_settled_everywhere(&self, stamp: Stamp) -> bool {
        stamp < self.oldest
    }

    /// Bytes allocated.
    pub(super) fn memory(&self) -> usize {
        let packets: usize = self.channels.iter().map(|channel| channel.in_flight.capacity()).sum();
        packets * size_of::<InFlight>() + self.channels.capacity() * size_of::<Channel>()
    }

    fn update_oldest(&mut self) {
        self.oldest = self.channels.iter().map(Channel::oldest).min().unwrap_or(NEVER);
    }
}
