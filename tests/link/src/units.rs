//! Rates, probabilities and times as they are written on a command line.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use crate::error::{Kind, LinkError};

#[cfg(test)]
mod tests;

/// Bits a second, of whole IP packets (header included, no Ethernet framing).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct BitRate(NonZeroU64);

impl BitRate {
    /// A rate of `bits` a second.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for zero: for a link that carries nothing, use a loss of 1.
    pub fn new(bits: u64) -> Result<Self, LinkError> {
        NonZeroU64::new(bits).map(Self).ok_or_else(|| {
            LinkError::new(Kind::Invalid, "use a rate of 0 bit/s (a blackhole is a loss of 100%)")
        })
    }

    /// A rate of `megabits` (10^6 bits) a second.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for zero or more than 64 bits hold.
    pub fn megabits(megabits: u64) -> Result<Self, LinkError> {
        megabits
            .checked_mul(1_000_000)
            .ok_or_else(|| LinkError::new(Kind::Invalid, format!("use a rate of {megabits} Mbit/s")))
            .and_then(Self::new)
    }

    /// Bits a second.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0.get()
    }
}

impl FromStr for BitRate {
    type Err = LinkError;

    /// Reads `200mbit`, `2.5gbit`, `64kbit` or `800bit`; the prefixes are decimal.
    fn from_str(text: &str) -> Result<Self, LinkError> {
        let bits = scaled(text, &[("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3), ("bit", 1.0)]);
        bits.and_then(|bits| Self::new(bits).ok()).ok_or_else(|| {
            LinkError::new(
                Kind::Invalid,
                format!("read `{text}` as a rate such as 200mbit, 2.5gbit or 64kbit"),
            )
        })
    }
}

impl fmt::Display for BitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.get() {
            bits if bits % 1_000_000_000 == 0 => write!(f, "{}gbit", bits / 1_000_000_000),
            bits if bits % 1_000_000 == 0 => write!(f, "{}mbit", bits / 1_000_000),
            bits if bits % 1_000 == 0 => write!(f, "{}kbit", bits / 1_000),
            bits => write!(f, "{bits}bit"),
        }
    }
}

/// A probability from 0 to 1.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug, Default)]
pub struct Probability(f64);

impl Probability {
    /// Never.
    pub const NEVER: Self = Self(0.0);
    /// Always.
    pub const ALWAYS: Self = Self(1.0);

    /// The probability `value`.
    ///
    /// # Errors
    /// [`Kind::Invalid`] unless `value` is from 0 to 1.
    pub fn new(value: f64) -> Result<Self, LinkError> {
        if (0.0..=1.0).contains(&value) {
            Ok(Self(value))
        } else {
            Err(LinkError::new(Kind::Invalid, format!("use {value} as a probability from 0 to 1")))
        }
    }

    /// The value from 0 to 1.
    #[must_use]
    pub fn get(self) -> f64 {
        self.0
    }

    /// Whether a uniformly drawn 64-bit number falls under this probability.
    pub(crate) fn hit(self, draw: u64) -> bool {
        unit_interval(draw) < self.0
    }
}

impl FromStr for Probability {
    type Err = LinkError;

    /// Reads `1%`, `0.5%` or the fraction `0.01`.
    fn from_str(text: &str) -> Result<Self, LinkError> {
        let (number, divisor) = text.strip_suffix('%').map_or((text, 1.0), |percent| (percent, 100.0));
        let value = number.trim().parse::<f64>().ok().map(|number| number / divisor);
        value.and_then(|value| Self::new(value).ok()).ok_or_else(|| {
            LinkError::new(Kind::Invalid, format!("read `{text}` as a probability such as 1% or 0.01"))
        })
    }
}

impl fmt::Display for Probability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0 * 100.0)
    }
}

/// Reads `25ms`, `1.5s`, `100us` or `0`.
///
/// # Errors
/// [`Kind::Invalid`] for anything else.
pub fn parse_duration(text: &str) -> Result<Duration, LinkError> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    scaled(text, &[("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9)]).map(Duration::from_nanos).ok_or_else(
        || LinkError::new(Kind::Invalid, format!("read `{text}` as a time such as 25ms, 100us or 1.5s")),
    )
}

/// Reads `64kb`, `1mb`, `1500b`; the prefixes are decimal.
pub(crate) fn parse_bytes(text: &str) -> Option<u64> {
    scaled(text, &[("mb", 1e6), ("kb", 1e3), ("b", 1.0)])
}

/// Maps a 64-bit number to `[0, 1)` by its upper 53 bits, all that a double holds.
#[expect(clippy::cast_precision_loss, reason = "53 bits fit a double exactly")]
pub(crate) fn unit_interval(draw: u64) -> f64 {
    (draw >> 11) as f64 / (1_u64 << 53) as f64
}

/// The number before the first suffix that fits, times its factor, if it is a whole number that 53 bits hold.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
fn scaled(text: &str, suffixes: &[(&str, f64)]) -> Option<u64> {
    const MAX: f64 = (1_u64 << 53) as f64;
    let lower = text.trim().to_ascii_lowercase();
    let (number, factor) =
        suffixes.iter().find_map(|(suffix, factor)| Some((lower.strip_suffix(suffix)?, factor)))?;
    let value = (number.trim_end().parse::<f64>().ok()? * factor).round();
    (0.0..=MAX).contains(&value).then_some(value as u64)
}
