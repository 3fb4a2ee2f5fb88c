//! What a link does to the packets.

use std::str::FromStr;
use std::time::Duration;

use crate::error::{Kind, LinkError};
use crate::units::{BitRate, Probability, parse_bytes, parse_duration};

/// Longest delay, jitter, reordering delay or queue. An hour is beyond every real link and far from clock overflow.
pub const MAX_TIME: Duration = Duration::from_secs(3600);

/// Smallest MTU that IPv4 allows (RFC 791).
pub const MIN_MTU: u16 = 68;

/// How much may wait for the rate; what does not fit is dropped at the tail. Without a rate nothing waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Queue {
    /// At most so many bytes of packets, the one that is being sent included.
    Bytes(u64),
    /// At most what the rate sends in this time.
    Time(Duration),
}

impl Default for Queue {
    /// 50 ms: one bandwidth-delay product at the 50 ms round trip of most of our cases.
    fn default() -> Self {
        Self::Time(Duration::from_millis(50))
    }
}

impl FromStr for Queue {
    type Err = LinkError;

    /// Reads a time (`50ms`) or a size (`256kb`).
    fn from_str(text: &str) -> Result<Self, LinkError> {
        parse_duration(text).map(Self::Time).ok().or_else(|| parse_bytes(text).map(Self::Bytes)).ok_or_else(
            || LinkError::new(Kind::Invalid, format!("read `{text}` as a queue limit such as 50ms or 256kb")),
        )
    }
}

/// What one direction does to the packets. The default is a perfect wire.
///
/// A packet first waits in the queue for its turn at the rate, then it is on the wire: it may be lost there (it has
/// used its share of the rate all the same), corrupted, duplicated, and it arrives after the delay.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DirectionSpec {
    /// Bits a second; none is as fast as the machine can.
    pub rate: Option<BitRate>,
    /// One-way delay, after the queue.
    pub delay: Duration,
    /// Each packet's delay is drawn uniformly from `delay - jitter` to `delay + jitter`, never below zero.
    pub jitter: Duration,
    /// Packets do not overtake each other because of jitter. Without this they do, as with netem.
    pub keep_order: bool,
    /// Part of the packets that is lost; 1 is a blackhole. Packets already accepted still arrive.
    pub loss: Probability,
    /// Part of the packets that is held back by [`reorder_delay`](Self::reorder_delay), so that later ones overtake.
    pub reorder: Probability,
    /// How long a packet picked for reordering is held back.
    pub reorder_delay: Duration,
    /// Part of the packets that arrives twice.
    pub duplicate: Probability,
    /// Part of the packets in which one bit, anywhere, is flipped.
    pub corrupt: Probability,
    /// How much may wait for the rate.
    pub queue: Queue,
    /// Drop every UDP packet, let everything else pass.
    pub block_udp: bool,
}

impl DirectionSpec {
    fn check(&self) -> Result<(), LinkError> {
        let Self { delay, jitter, reorder_delay, queue, .. } = self;
        let queue_time = match queue {
            Queue::Time(time) => *time,
            Queue::Bytes(_) => Duration::ZERO,
        };
        for (name, time) in [
            ("delay", *delay),
            ("jitter", *jitter),
            ("reordering delay", *reorder_delay),
            ("queue", queue_time),
        ] {
            if time > MAX_TIME {
                let what = format!("use a {name} of {time:?}, the limit is {MAX_TIME:?}");
                return Err(LinkError::new(Kind::Invalid, what));
            }
        }
        Ok(())
    }
}

/// A link: both directions, the MTU of its ends, and the seed of its randomness.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkSpec {
    /// From side A to side B.
    pub a_to_b: DirectionSpec,
    /// From side B to side A.
    pub b_to_a: DirectionSpec,
    /// Largest IP packet in bytes. IPv6 is configured only from 1280 on.
    pub mtu: u16,
    /// Fixes every random decision; the two directions draw from different streams of it.
    pub seed: u64,
}

impl LinkSpec {
    /// The same in both directions, with an MTU of 1500 and seed 0.
    #[must_use]
    pub fn symmetric(direction: DirectionSpec) -> Self {
        Self { a_to_b: direction.clone(), b_to_a: direction, mtu: 1500, seed: 0 }
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for an MTU below [`MIN_MTU`] or a time above [`MAX_TIME`].
    pub fn check(&self) -> Result<(), LinkError> {
        if self.mtu < MIN_MTU {
            return Err(LinkError::new(
                Kind::Invalid,
                format!("use an MTU of {}, at least {MIN_MTU}", self.mtu),
            ));
        }
        self.a_to_b.check()?;
        self.b_to_a.check()
    }

    /// The seed of the stream from A to B.
    #[must_use]
    pub fn seed_a_to_b(&self) -> u64 {
        self.seed
    }

    /// The seed of the stream from B to A. An arbitrary odd constant parts it from the other one.
    #[must_use]
    pub fn seed_b_to_a(&self) -> u64 {
        self.seed ^ 0xD1B5_4A32_D192_ED03
    }
}

impl Default for LinkSpec {
    fn default() -> Self {
        Self::symmetric(DirectionSpec::default())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{DirectionSpec, LinkSpec, MAX_TIME, Queue};

    #[test]
    fn queues_are_read() {
        assert_eq!("50ms".parse::<Queue>().unwrap(), Queue::Time(Duration::from_millis(50)));
        assert_eq!("256kb".parse::<Queue>().unwrap(), Queue::Bytes(256_000));
        assert!("lots".parse::<Queue>().is_err());
    }

    #[test]
    fn impossible_links_are_refused() {
        LinkSpec::default().check().unwrap();
        assert!(LinkSpec { mtu: 67, ..LinkSpec::default() }.check().is_err());
        let slow = DirectionSpec { delay: MAX_TIME + Duration::from_nanos(1), ..DirectionSpec::default() };
        let error = LinkSpec { b_to_a: slow, ..LinkSpec::default() }.check().unwrap_err();
        assert!(error.to_string().contains("delay"), "{error}");
    }
}
