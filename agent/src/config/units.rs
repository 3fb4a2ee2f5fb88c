//! Byte sizes and rates as people write them.
//!
//! Decimal and binary prefixes are told apart (`GB` is 10^9, `GiB` is 2^30), and bits and bytes too: a rate's unit is
//! always written out, because "200M" has been read both ways with an error of eight.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

/// A number of bytes. Written `100GiB`, `10GB`, `64MiB`, `4096` or `4096B`; one decimal fraction is allowed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ByteSize(pub u64);

/// Bytes per second. Written `200Mbit/s`, `50MB/s`, `1.5Gbit/s`, `100MiB/s`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Rate(u64);

/// A text that is neither a size nor a rate.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidUnit {
    /// Not a size.
    #[error(
        "{0:?} is not a size; write a number and B, kB, MB, GB, TB, KiB, MiB, GiB or TiB, such as \"100GiB\""
    )]
    Size(String),
    /// Not a rate.
    #[error(
        "{0:?} is not a rate; write a number and kbit/s, Mbit/s, Gbit/s, kB/s, MB/s, GB/s, MiB/s or GiB/s, such as \
         \"200Mbit/s\""
    )]
    Rate(String),
}

/// What a hostile or mistyped value may add to a message.
fn shorten(text: &str) -> String {
    text.chars().take(40).collect()
}

/// Splits `1.5GiB` into 1.5 (as thousandths) and `GiB`.
fn split(text: &str) -> Option<(u128, &str)> {
    let text = text.trim();
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) if (1..=3).contains(&fraction.len()) => (whole, fraction),
        Some(_) => return None,
        None => (number, ""),
    };
    // 15 digits: no product below can exceed u128.
    if whole.is_empty() || whole.len() > 15 || fraction.contains('.') {
        return None;
    }
    let thousandths: u128 = format!("{fraction:0<3}").parse().ok()?;
    Some((whole.parse::<u128>().ok()? * 1000 + thousandths, unit.trim_start()))
}

fn scale(thousandths: u128, factor: u128, divisor: u128) -> Option<u64> {
    u64::try_from(thousandths * factor / (1000 * divisor)).ok()
}

fn prefix(text: &str) -> Option<u128> {
    Some(match text {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    })
}

impl FromStr for ByteSize {
    type Err = InvalidUnit;
    fn from_str(text: &str) -> Result<Self, InvalidUnit> {
        let parse = || {
            let (number, unit) = split(text)?;
            let factor = if unit.is_empty() { 1 } else { prefix(unit.strip_suffix('B')?)? };
            scale(number, factor, 1).map(Self)
        };
        parse().ok_or_else(|| InvalidUnit::Size(shorten(text)))
    }
}

impl Rate {
    /// A rate in bytes per second.
    #[must_use]
    pub const fn from_bytes_per_second(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Bytes per second.
    #[must_use]
    pub const fn bytes_per_second(self) -> u64 {
        self.0
    }
}

impl FromStr for Rate {
    type Err = InvalidUnit;
    fn from_str(text: &str) -> Result<Self, InvalidUnit> {
        let parse = || {
            let (number, unit) = split(text)?;
            let unit = unit.strip_suffix("/s")?;
            let rate = match (unit.strip_suffix("bit"), unit.strip_suffix('B')) {
                (Some(bits), _) => scale(number, prefix(bits)?, 8)?,
                (_, Some(bytes)) => scale(number, prefix(bytes)?, 1)?,
                _ => return None,
            };
            (rate > 0).then_some(Self(rate))
        };
        parse().ok_or_else(|| InvalidUnit::Rate(shorten(text)))
    }
}

impl fmt::Display for ByteSize {
    /// Exact: the largest unit that divides the value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, bytes) in [
            ("TiB", 1 << 40),
            ("TB", 1_000_000_000_000),
            ("GiB", 1 << 30),
            ("GB", 1_000_000_000),
            ("MiB", 1 << 20),
            ("MB", 1_000_000),
            ("KiB", 1 << 10),
            ("kB", 1000),
        ] {
            if self.0 != 0 && self.0.is_multiple_of(bytes) {
                return write!(f, "{}{unit}", self.0 / bytes);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl fmt::Display for Rate {
    /// Exact: bits with the largest prefix that divides the value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = u128::from(self.0) * 8;
        for (unit, factor) in [("Gbit/s", 1_000_000_000), ("Mbit/s", 1_000_000), ("kbit/s", 1000)] {
            if bits != 0 && bits.is_multiple_of(factor) {
                return write!(f, "{}{unit}", bits / factor);
            }
        }
        write!(f, "{bits}bit/s")
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    /// A string as above, or a plain number of bytes.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Size;
        impl Visitor<'_> for Size {
            type Value = ByteSize;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"100GiB\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                u64::try_from(bytes)
                    .map(ByteSize)
                    .map_err(|_negative| E::custom(InvalidUnit::Size(bytes.to_string())))
            }
        }
        deserializer.deserialize_any(Size)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
