//! What the guest does, as the words `tg.NAME=VALUE` of its kernel's command line.

use std::fmt;

/// Largest value of a size in MiB that is believed: no test guest is larger, and a product with it cannot overflow.
const MAX_MIB: u64 = 64 << 10;

/// What the guest is told to do. All of it is printed into the command line, so nothing depends on what the guest takes
/// for granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// `tg.static`, MiB: memory with random content that never changes.
    pub constant: u64,
    /// `tg.dup`, MiB: memory that never changes; half of it pages that occur many times, half of it text.
    pub duplicate: u64,
    /// `tg.hot`, MiB: memory whose pages are rewritten over and over, each checked before it is rewritten.
    pub hot: u64,
    /// `tg.rate`, MiB a second: how fast hot pages are rewritten, counted in whole pages; 0 is as fast as it goes.
    pub rate: u64,
    /// `tg.edit`, bytes: how much of a hot page is rewritten, from its start; a multiple of 8, from 8 to 4096.
    pub edit: u64,
    /// `tg.disk`, MiB: how much of the disk is used, from its start; 0 is all of it.
    pub disk: u64,
    /// `tg.dops`: writes to the disk in each interval of the heartbeat.
    pub disk_writes: u64,
    /// `tg.hb`, milliseconds: the interval of the heartbeat.
    pub heartbeat: u64,
    /// `tg.nodisk`: leave the disk alone.
    pub no_disk: bool,
    /// `tg.seed`: read the second disk over and over, which nobody may write.
    pub seed: bool,
}

impl Default for Options {
    /// A small, calm guest: 16 MiB constant, 8 duplicate, 8 hot at 20 MiB/s, 8 disk writes each 100 ms.
    fn default() -> Self {
        Self {
            constant: 16,
            duplicate: 8,
            hot: 8,
            rate: 20,
            edit: 4096,
            disk: 0,
            disk_writes: 8,
            heartbeat: 100,
            no_disk: false,
            seed: false,
        }
    }
}

impl Options {
    /// Reads the kernel's command line. Words that are not ours are left alone.
    ///
    /// # Errors
    /// The first word of ours that makes no sense.
    pub fn parse(command_line: &str) -> Result<Self, String> {
        let mut options = Self::default();
        for word in command_line.split_ascii_whitespace() {
            let Some((name, value)) = word.strip_prefix("tg.").and_then(|word| word.split_once('=')) else {
                continue;
            };
            let number = value.parse::<u64>().ok().filter(|number| *number <= MAX_MIB);
            let field = match name {
                "static" => &mut options.constant,
                "dup" => &mut options.duplicate,
                "hot" => &mut options.hot,
                "rate" => &mut options.rate,
                "edit" => &mut options.edit,
                "disk" => &mut options.disk,
                "dops" => &mut options.disk_writes,
                "hb" => &mut options.heartbeat,
                "nodisk" => {
                    options.no_disk = value == "1";
                    continue;
                }
                "seed" => {
                    options.seed = value == "1";
                    continue;
                }
                _ => return Err(word.to_owned()),
            };
            *field = number.ok_or_else(|| word.to_owned())?;
        }
        if options.edit < 8 || options.edit > 4096 || options.edit % 8 != 0 {
            return Err(format!("tg.edit={}", options.edit));
        }
        if options.heartbeat == 0 {
            return Err("tg.hb=0".to_owned());
        }
        Ok(options)
    }
}

impl fmt::Display for Options {
    /// The words of the command line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { constant, duplicate, hot, rate, edit, disk, disk_writes, heartbeat, no_disk, seed } = self;
        write!(f, "tg.static={constant} tg.dup={duplicate} tg.hot={hot} tg.rate={rate} tg.edit={edit} ")?;
        write!(
            f,
            "tg.disk={disk} tg.dops={disk_writes} tg.hb={heartbeat} tg.nodisk={} ",
            u8::from(*no_disk)
        )?;
        write!(f, "tg.seed={}", u8::from(*seed))
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_MIB, Options};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_printed_is_read(
            sizes in prop::array::uniform6(0..=MAX_MIB), edit in 1..=512_u64, heartbeat in 1..=MAX_MIB, no_disk: bool,
            seed: bool
        ) {
            let [constant, duplicate, hot, rate, disk, disk_writes] = sizes;
            let options = Options {
                constant, duplicate, hot, rate, edit: edit * 8, disk, disk_writes, heartbeat, no_disk, seed
            };
            prop_assert_eq!(Options::parse(&format!("quiet {options} panic=-1\n")), Ok(options));
        }
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for word in
            ["tg.hot=x", "tg.hot=-1", "tg.hots=1", "tg.edit=7", "tg.edit=4104", "tg.hb=0", "tg.disk=65537"]
        {
            assert_eq!(Options::parse(&format!("quiet {word}")), Err(word.to_owned()));
        }
    }
}
