//! What the guest's memory is like: some hundred of its pages, read from QEMU's process where this agent may, and sent
//! through the encoder that the move itself uses. QMP has no such question, and `/proc/PID/mem` needs the right to trace
//! the process; without it, the pages that the process has in memory are the upper bound of those with content.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;

use reduce::Choice;
use reduce::ram::{Batch, Encoder, MAX_PAGES, PAGE_BYTES, Packer, Page, PageBytes};

/// Pages that are looked at: 2 MiB. The share that is found is right to some percent.
const PAGES: u64 = 512;
/// Lines of `/proc/PID/maps` that are looked at.
const MAX_MAPPINGS: usize = 65_536;
/// Longest `/proc/PID/status`.
const MAX_STATUS: u64 = 64 << 10;

/// What was found of a guest's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ram {
    /// Bytes that are not all zeros, at most.
    pub(super) used: u64,
    /// What reduction leaves of those, in thousandths.
    pub(super) permille: u64,
    /// How that is known.
    pub(super) from: From,
}

/// Where the figures come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum From {
    /// So many pages were looked at.
    Sample(u64),
    /// What QEMU's process has in memory.
    Resident,
    /// Nothing: all of it is taken to have content.
    Nothing,
}

/// Looks at the memory of the VM that a process runs, `bytes` of it. Blocks.
pub(super) fn look(pid: u32, bytes: u64, slots: u32, level: Choice) -> Ram {
    match sample(pid, bytes, slots, level) {
        Ok(Some(ram)) => return ram,
        Ok(None) => tracing::debug!(pid, "the guest's memory is not one mapping: it is not sampled"),
        Err(error) => tracing::debug!(pid, %error, "the guest's memory cannot be sampled"),
    }
    let mut status = String::new();
    let read = File::open(format!("/proc/{pid}/status"))
        .and_then(|file| file.take(MAX_STATUS).read_to_string(&mut status));
    if let Err(error) = read {
        tracing::debug!(pid, %error, "what QEMU has in memory cannot be read");
    }
    by_status(&status, bytes)
}

/// What a process has in memory or swapped out (`/proc/PID/status`): QEMU's own data with it.
fn by_status(status: &str, bytes: u64) -> Ram {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    match field("VmRSS:") {
        Some(resident) => {
            let touched = resident.saturating_add(field("VmSwap:").unwrap_or(0)).saturating_mul(1024);
            Ram { used: touched.min(bytes), permille: 1000, from: From::Resident }
        }
        None => Ram { used: bytes, permille: 1000, from: From::Nothing },
    }
}

fn sample(pid: u32, bytes: u64, slots: u32, level: Choice) -> io::Result<Option<Ram>> {
    let maps = BufReader::new(File::open(format!("/proc/{pid}/maps"))?);
    let lines = maps.lines().map_while(Result::ok).take(MAX_MAPPINGS);
    let Some(start) = mapping(lines, bytes) else { return Ok(None) };
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let offsets = places(bytes);
    let mut pages: Vec<PageBytes> = Vec::with_capacity(offsets.len());
    for offset in &offsets {
        let mut page = [0; PAGE_BYTES];
        memory.read_exact_at(&mut page, start.saturating_add(*offset))?;
        pages.push(page);
    }
    reduced(&pages, &offsets, bytes, slots, level).map(Some).map_err(io::Error::other)
}

/// Where the guest's memory begins: the smallest mapping that it fits, writable and not executable. Others of that size
/// hold no pages that the guest wrote: QEMU's translated code is executable.
fn mapping(lines: impl Iterator<Item = String>, bytes: u64) -> Option<u64> {
    let found = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        let (range, access) = (words.next()?, words.next()?);
        let (start, end) = range.split_once('-')?;
        let start = u64::from_str_radix(start, 16).ok()?;
        let length = u64::from_str_radix(end, 16).ok()?.checked_sub(start)?;
        (access.starts_with("rw-") && length >= bytes).then_some((length, start))
    });
    found.min().map(|(_, start)| start)
}

/// Page offsets, one in each stretch of equal length. Not at its start: what lies at round addresses is special.
fn places(bytes: u64) -> Vec<u64> {
    const PAGE: u64 = PAGE_BYTES as u64;
    let all = bytes / PAGE;
    let count = PAGES.min(all);
    let stretch = all / count.max(1);
    // Odd, so that it mixes: the golden ratio of 2^64.
    let within = |nth: u64| nth.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    (0..count).map(|nth| (nth * stretch + within(nth) % stretch) * PAGE).collect()
}

/// What the encoder makes of them.
fn reduced(
    pages: &[PageBytes],
    offsets: &[u64],
    bytes: u64,
    slots: u32,
    level: Choice,
) -> Result<Ram, reduce::ReduceError> {
    let (mut encoder, mut packer) = (Encoder::new(slots), Packer::new()?);
    let (mut zero, mut wire, mut out) = (0_u64, 0_u64, Vec::new());
    for (number, (part, places)) in (1_u64..).zip(pages.chunks(MAX_PAGES).zip(offsets.chunks(MAX_PAGES))) {
        let batch = part.iter().zip(places);
        let batch = batch.map(|(bytes, offset)| Page { block: 0, offset: *offset, bytes }).collect();
        let plan = encoder.plan(1, number, Batch::new(batch)?)?;
        out.clear();
        let stats = plan.pack(&mut packer, level, &mut out)?;
        zero += u64::from(stats.zero);
        wire += stats.encoded_bytes;
    }
    let count = pages.len() as u64;
    let used = count - zero.min(count);
    let share = u128::from(bytes) * u128::from(used) / u128::from(count.max(1));
    Ok(Ram {
        used: u64::try_from(share).unwrap_or(bytes),
        permille: (wire * 1000 / (used * PAGE_BYTES as u64).max(1)).min(1000),
        from: From::Sample(count),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_mapping_that_the_memory_fits_is_taken() {
        let maps = "55d0-55d1 rw-p 0 0:0 0 [heap]\n10000000-90000000 rwxp 0 0:0 0\n\
                    a0000000-b0000000 rw-s 0 0:1 9 /memfd:ram (deleted)\nc0000000-f0000000 rw-p 0 0:0 0\nrubbish\n";
        let lines = || maps.lines().map(str::to_owned);
        assert_eq!(mapping(lines(), 0x1000_0000), Some(0xa000_0000));
        assert_eq!(mapping(lines(), 0x2000_0000), Some(0xc000_0000));
        assert_eq!(mapping(lines(), 0x4000_0000), None);
    }

    #[test]
    fn what_is_resident_is_the_upper_bound() {
        let status = "Name:\tqemu\nVmRSS:\t  2048 kB\nVmSwap:\t 1024 kB\n";
        assert_eq!(by_status(status, 8 << 20).used, 3 << 20);
        assert_eq!(by_status(status, 1 << 20), Ram { used: 1 << 20, permille: 1000, from: From::Resident });
        assert_eq!(by_status("", 5), Ram { used: 5, permille: 1000, from: From::Nothing });
    }

    #[test]
    fn pages_are_spread_and_inside() {
        for bytes in [1 << 20, 64 << 20, (1 << 30) + 4096] {
            let places = places(bytes);
            assert!(places.is_sorted_by(|a, b| a < b) && places.iter().all(|at| at % 4096 == 0), "{bytes}");
            assert!(*places.last().unwrap() < bytes && places.len() as u64 == PAGES.min(bytes / 4096));
        }
        assert_eq!(places(100), Vec::<u64>::new());
    }

    #[test]
    fn zeros_and_repetitions_are_taken_off() {
        let mut random = 1_u64;
        let mut page = |kind: usize| -> PageBytes {
            std::array::from_fn(|_| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                if kind == 0 { 0 } else { random.to_be_bytes()[0] }
            })
        };
        // Half zeros, half that cannot be reduced.
        let pages: Vec<_> = (0..200).map(|nth| page(nth % 2)).collect();
        let offsets: Vec<_> = (0..200).map(|nth| nth * 4096).collect();
        let ram = reduced(&pages, &offsets, 1 << 30, 1024, Choice::Level(1)).unwrap();
        assert_eq!((ram.used, ram.permille, ram.from), (1 << 29, 1000, From::Sample(200)));
        let same = vec![pages[1]; 200];
        let ram = reduced(&same, &offsets, 1 << 30, 1024, Choice::Level(1)).unwrap();
        assert!(ram.used == 1 << 30 && ram.permille < 20, "{ram:?}");
        let ram = reduced(&vec![[0; PAGE_BYTES]; 200], &offsets, 1 << 30, 0, Choice::Raw).unwrap();
        assert_eq!(ram.used, 0);
    }
}
