//! The heartbeat: the line by which the guest shows that it lives, and by whose numbers nothing can be missing.

use std::fmt;
use std::str::FromStr;

/// One heartbeat, as the guest prints it on its first serial port.
///
/// ```text
/// HB 15 up=4210ms pass=3 disk=120 gap=100ms ok
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heartbeat {
    /// 1, 2, 3 and so on since the guest booted.
    pub number: u64,
    /// Milliseconds since the guest booted, by its own clock.
    pub up: u64,
    /// Passes over the hot region that are complete.
    pub pass: u64,
    /// Sequence number of the last write to the disk that the disk has acknowledged; 0 without a disk.
    pub disk: u64,
    /// Milliseconds since the previous heartbeat, by the guest's clock, which stands still while the guest is stopped.
    pub gap: u64,
    /// Whether everything that was checked since the guest booted was as it should be.
    pub intact: bool,
}

impl fmt::Display for Heartbeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, up, pass, disk, gap, intact } = self;
        let verdict = if *intact { "ok" } else { "BAD" };
        write!(f, "HB {number} up={up}ms pass={pass} disk={disk} gap={gap}ms {verdict}")
    }
}

/// The line is no heartbeat.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotAHeartbeat;

impl fmt::Display for NotAHeartbeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the line is no heartbeat")
    }
}

impl std::error::Error for NotAHeartbeat {}

impl FromStr for Heartbeat {
    type Err = NotAHeartbeat;

    fn from_str(line: &str) -> Result<Self, NotAHeartbeat> {
        fn number(text: &str, before: &str, after: &str) -> Option<u64> {
            text.strip_prefix(before)?.strip_suffix(after)?.parse().ok()
        }
        let words: Vec<&str> = line.split(' ').collect();
        let ["HB", count, up, pass, disk, gap, verdict] = words[..] else { return Err(NotAHeartbeat) };
        let parsed = || {
            Some(Self {
                number: count.parse().ok()?,
                up: number(up, "up=", "ms")?,
                pass: number(pass, "pass=", "")?,
                disk: number(disk, "disk=", "")?,
                gap: number(gap, "gap=", "ms")?,
                intact: match verdict {
                    "ok" => true,
                    "BAD" => false,
                    _ => return None,
                },
            })
        };
        parsed().ok_or(NotAHeartbeat)
    }
}

#[cfg(test)]
mod tests {
    use super::{Heartbeat, NotAHeartbeat};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_printed_is_read(
            number: u64, up: u64, pass: u64, disk: u64, gap: u64, intact: bool
        ) {
            let heartbeat = Heartbeat { number, up, pass, disk, gap, intact };
            prop_assert_eq!(heartbeat.to_string().parse(), Ok(heartbeat));
        }
    }

    #[test]
    fn half_a_line_is_none() {
        let whole = "HB 15 up=4210ms pass=3 disk=120 gap=100ms ok";
        assert!(whole.parse::<Heartbeat>().is_ok());
        for end in 0..whole.len() {
            assert_eq!(whole[..end].parse::<Heartbeat>(), Err(NotAHeartbeat), "{:?}", &whole[..end]);
        }
        assert_eq!("HB 15 up=4210ms pass=3 disk=120 gap=100ms ok ".parse::<Heartbeat>(), Err(NotAHeartbeat));
    }
}
