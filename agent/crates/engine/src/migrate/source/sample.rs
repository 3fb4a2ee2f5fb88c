//! What the guest's memory is like: as many of its pages as can be looked at in a moment, spread over all of it, read from
//! QEMU's process where this agent may, and sent through the encoder that the move itself uses. A second look at the same
//! pages says how much of it the guest writes, and what sending that again costs. QMP has no such questions, and
//! `/proc/PID/mem` needs the right to trace the process; without it, the pages that the process has in memory are the
//! upper bound of those with content.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use reduce::Choice;
use reduce::ram::{Batch, Encoder, MAX_PAGES, PAGE_BYTES, Packer, Page, PageBytes};
use xxhash_rust::xxh3::xxh3_64;

/// Pages that are looked at, at most: 128 MiB. A share that is found by 4,000 of them is right to a percent.
const PAGES: u64 = 32_768;
/// Time for the first look.
const TIME: Duration = Duration::from_millis(250);
/// Least time between the two looks: in less, a guest that writes a little seems to write nothing.
const BETWEEN: Duration = Duration::from_millis(350);
/// Lines of `/proc/PID/maps` that are looked at.
const MAX_MAPPINGS: usize = 65_536;
/// Longest `/proc/PID/status`.
const MAX_STATUS: u64 = 64 << 10;
/// A page's bytes.
const PAGE: u64 = PAGE_BYTES as u64;
/// What no permille is above.
const WHOLE: u64 = 1000;

/// What was found of a guest's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ram {
    /// Bytes that are not all zeros, at most.
    pub(super) used: u64,
    /// What reduction leaves of those, in thousandths.
    pub(super) permille: u64,
    /// How fast they were read and reduced by one thread, bytes a second; none when they were not.
    pub(super) speed: Option<u64>,
    /// How that is known.
    pub(super) from: From,
}

/// What the guest writes to its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Written {
    /// Bytes of pages that differ, a second.
    pub(super) rate: u64,
    /// What reduction leaves of a page that is sent again, in thousandths.
    pub(super) permille: u64,
    /// Between the looks.
    pub(super) over: Duration,
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

/// The first look.
pub(super) struct Census {
    /// What was found.
    pub(super) ram: Ram,
    /// What the second look is compared with.
    looks: Option<Looks>,
}

impl std::fmt::Debug for Census {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Census").field("ram", &self.ram).finish_non_exhaustive()
    }
}

/// The memory, and the pages that were looked at.
struct Looks {
    memory: File,
    /// Where it begins in the process.
    start: u64,
    bytes: u64,
    reducer: Reducer,
    /// Offset and hash of each page.
    seen: Vec<(u64, u64)>,
    began: Instant,
}

/// Looks at the memory of the VM that a process runs, `bytes` of it. Blocks.
pub(super) fn look(pid: u32, bytes: u64, slots: u32, level: Choice) -> Census {
    match Looks::first(pid, bytes, slots, level) {
        Ok(Some((ram, looks))) => return Census { ram, looks: Some(looks) },
        Ok(None) => tracing::debug!(pid, "the guest's memory is not one mapping: it is not sampled"),
        Err(error) => tracing::debug!(pid, %error, "the guest's memory cannot be sampled"),
    }
    let mut status = String::new();
    let read = File::open(format!("/proc/{pid}/status"))
        .and_then(|file| file.take(MAX_STATUS).read_to_string(&mut status));
    if let Err(error) = read {
        tracing::debug!(pid, %error, "what QEMU has in memory cannot be read");
    }
    Census { ram: by_status(&status, bytes), looks: None }
}

impl Census {
    /// Looks once more, if there was a first look at pages. Blocks, at least until some time has passed since then.
    pub(super) fn again(self) -> Option<Written> {
        let looks = self.looks?;
        match looks.again() {
            Ok(written) => Some(written),
            Err(error) => {
                tracing::debug!(%error, "the guest's memory cannot be looked at again");
                None
            }
        }
    }
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
            Ram { used: touched.min(bytes), permille: WHOLE, speed: None, from: From::Resident }
        }
        None => Ram { used: bytes, permille: WHOLE, speed: None, from: From::Nothing },
    }
}

impl Looks {
    fn first(pid: u32, bytes: u64, slots: u32, level: Choice) -> io::Result<Option<(Ram, Self)>> {
        let maps = BufReader::new(File::open(format!("/proc/{pid}/maps"))?);
        let lines = maps.lines().map_while(Result::ok).take(MAX_MAPPINGS);
        let Some(start) = mapping(lines, bytes) else { return Ok(None) };
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        let reducer = Reducer::new(slots, level).map_err(io::Error::other)?;
        let (seen, began) = (Vec::new(), Instant::now());
        let mut looks = Self { memory, start, bytes, reducer, seen, began };
        let places = places(bytes);
        for batch in places.chunks(MAX_PAGES) {
            let pages = looks.read(batch)?;
            looks.seen.extend(batch.iter().zip(&pages).map(|(offset, page)| (*offset, xxh3_64(page))));
            looks.reducer.take(batch, &pages).map_err(io::Error::other)?;
            if looks.began.elapsed() > TIME {
                break;
            }
        }
        let Reducer { zero, wire, .. } = looks.reducer;
        let ram = ram(looks.seen.len() as u64, zero, wire, bytes, looks.began.elapsed());
        Ok(Some((ram, looks)))
    }

    fn again(mut self) -> io::Result<Written> {
        std::thread::sleep(BETWEEN.saturating_sub(self.began.elapsed()));
        let over = self.began.elapsed();
        let before = self.reducer.wire;
        let (mut differ, mut sent) = (0_u64, 0_u64);
        for batch in std::mem::take(&mut self.seen).chunks(MAX_PAGES) {
            let places: Vec<u64> = batch.iter().map(|(offset, _)| *offset).collect();
            let pages = self.read(&places)?;
            let changed = batch.iter().zip(pages).filter(|((_, hash), page)| xxh3_64(page) != *hash);
            let (places, pages): (Vec<u64>, Vec<PageBytes>) =
                changed.map(|((offset, _), page)| (*offset, page)).unzip();
            if !pages.is_empty() {
                self.reducer.take(&places, &pages).map_err(io::Error::other)?;
            }
            differ += pages.len() as u64;
            sent += batch.len() as u64;
        }
        let share = u128::from(self.bytes) * u128::from(differ) / u128::from(sent.max(1));
        let rate = share * 1000 / over.as_millis().max(1);
        let permille = (self.reducer.wire - before) * WHOLE / (differ * PAGE).max(1);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        Ok(Written { rate, permille: permille.min(WHOLE), over })
    }

    fn read(&self, places: &[u64]) -> io::Result<Vec<PageBytes>> {
        let mut pages = Vec::with_capacity(places.len());
        for offset in places {
            let mut page = [0; PAGE_BYTES];
            self.memory.read_exact_at(&mut page, self.start.saturating_add(*offset))?;
            pages.push(page);
        }
        Ok(pages)
    }
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

/// Page offsets, one in each stretch of equal length, in an order in which any beginning is spread over all. Not at a
/// stretch's start: what lies at round addresses is special.
fn places(bytes: u64) -> Vec<u64> {
    let all = bytes / PAGE;
    let count = PAGES.min(all);
    // Odd, so that it mixes: the golden ratio of 2^64.
    let mix = |nth: u64| nth.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // Stretches differ by a page where the memory is no multiple of them: all of it is covered.
    let begin = |nth: u64| nth * all / count;
    let place = |nth: u64| begin(nth) + (mix(nth) >> 32) % (begin(nth + 1) - begin(nth));
    let mut order: Vec<u64> = (0..count).collect();
    order.sort_unstable_by_key(|nth| mix(nth + 1));
    order.into_iter().map(|nth| place(nth) * PAGE).collect()
}

/// The encoder of a move, fed with a sample.
struct Reducer {
    encoder: Encoder,
    packer: Packer,
    level: Choice,
    number: u64,
    out: Vec<u8>,
    /// Pages of zeros.
    zero: u64,
    /// What is left, bytes.
    wire: u64,
}

impl Reducer {
    fn new(slots: u32, level: Choice) -> Result<Self, reduce::ReduceError> {
        let (encoder, packer) = (Encoder::new(slots), Packer::new()?);
        Ok(Self { encoder, packer, level, number: 0, out: Vec::new(), zero: 0, wire: 0 })
    }

    /// Takes a packet's pages: at most [`MAX_PAGES`].
    fn take(&mut self, places: &[u64], pages: &[PageBytes]) -> Result<(), reduce::ReduceError> {
        self.number += 1;
        let batch = pages.iter().zip(places).map(|(bytes, offset)| Page { block: 0, offset: *offset, bytes });
        let plan = self.encoder.plan(1, self.number, Batch::new(batch.collect())?)?;
        self.out.clear();
        let stats = plan.pack(&mut self.packer, self.level, &mut self.out)?;
        // As if each were answered at once.
        self.encoder.acknowledge(1, self.number)?;
        self.zero += u64::from(stats.zero);
        self.wire += stats.encoded_bytes;
        Ok(())
    }
}

/// What so many pages, so many of them zeros, that became so many bytes in this time say of all the memory.
fn ram(count: u64, zero: u64, wire: u64, bytes: u64, took: Duration) -> Ram {
    let content = count - zero.min(count);
    let share = u128::from(bytes) * u128::from(content) / u128::from(count.max(1));
    let speed = u128::from(content * PAGE) * 1_000_000 / took.as_micros().max(1);
    Ram {
        used: u64::try_from(share).unwrap_or(bytes),
        permille: (wire * WHOLE / (content * PAGE).max(1)).min(WHOLE),
        // A few pages say nothing of the speed.
        speed: (content > 256).then(|| u64::try_from(speed).unwrap_or(u64::MAX)),
        from: From::Sample(count),
    }
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
        let all = Ram { used: 1 << 20, permille: 1000, speed: None, from: From::Resident };
        assert_eq!(by_status(status, 1 << 20), all);
        assert_eq!(by_status("", 5), Ram { used: 5, permille: 1000, speed: None, from: From::Nothing });
    }

    #[test]
    fn pages_are_spread_and_inside() {
        for bytes in [1 << 20, 64 << 20, 192 << 20, (1 << 30) + 4096] {
            let places = places(bytes);
            // Any beginning of them is spread.
            let upper = places[..64].iter().filter(|at| **at >= bytes / 2).count();
            assert!((24..=40).contains(&upper), "{upper} of 64 in the upper half of {bytes}");
            let mut sorted = places.clone();
            sorted.sort_unstable();
            sorted.dedup();
            assert!(sorted.len() == places.len() && places.iter().all(|at| at % 4096 == 0), "{bytes}");
            let last = *sorted.last().unwrap();
            assert!(last < bytes && last >= bytes / 100 * 99, "the last of {bytes} is {last}");
            assert_eq!(places.len() as u64, PAGES.min(bytes / 4096));
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
        let reduced = |pages: &[PageBytes], slots, level| {
            let mut reducer = Reducer::new(slots, level).unwrap();
            for (places, pages) in offsets.chunks(MAX_PAGES).zip(pages.chunks(MAX_PAGES)) {
                reducer.take(places, pages).unwrap();
            }
            ram(200, reducer.zero, reducer.wire, 1 << 30, Duration::from_secs(1))
        };
        let ram = reduced(&pages, 1024, Choice::Level(1));
        assert_eq!((ram.used, ram.permille, ram.from), (1 << 29, 1000, From::Sample(200)));
        let ram = reduced(&vec![pages[1]; 200], 1024, Choice::Level(1));
        assert!(ram.used == 1 << 30 && ram.permille < 20, "{ram:?}");
        let ram = reduced(&vec![[0; PAGE_BYTES]; 200], 0, Choice::Raw);
        assert_eq!(ram.used, 0);
    }

    #[test]
    fn a_second_look_finds_what_was_written() {
        const SIZE: usize = 48 << 20;
        let mut dice = volume::conformance::Dice::new(1);
        let mut memory = vec![0_u8; SIZE];
        dice.fill(&mut memory[..SIZE / 2]);
        let census = look(std::process::id(), SIZE as u64 - (1 << 20), 65_536, Choice::Level(1));
        let From::Sample(seen) = census.ram.from else { panic!("{census:?}") };
        let looks = census.looks.as_ref().unwrap();
        // A debug build may not see all in time.
        assert_eq!(looks.seen.len() as u64, seen);
        assert!(census.ram.used.abs_diff(SIZE as u64 / 2) < SIZE as u64 / 8, "{census:?}");
        let written = SIZE / 4;
        dice.fill(&mut memory[..written]);
        let found = census.again().unwrap();
        let bytes = found.rate * u64::try_from(found.over.as_millis()).unwrap() / 1000;
        assert!(bytes.abs_diff(written as u64) < SIZE as u64 / 16, "{bytes} of {written}: {found:?}");
        assert!(found.permille > 900, "what is new does not shrink: {found:?}");
        std::hint::black_box(&memory);
    }
}
