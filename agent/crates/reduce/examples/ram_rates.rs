//! Prints how fast RAM pages are reduced and restored on one core of this machine, and to what size:
//! `cargo run --release -p novaferry-reduce --example ram_rates [FILE]`.
//!
//! The pages are 128 MiB that do not fit the caches, in packets of 128. FILE (a memory dump, as QMP's `pmemsave`
//! writes it) adds rows of its own; its pages of zeros are left out. "decide" is what happens under the lock of the encoder's owner; the best of five rounds counts.
#![expect(clippy::print_stdout, reason = "its output is its purpose")]
#![expect(clippy::disallowed_methods, reason = "measures; the library itself reads no clock")]

use std::time::{Duration, Instant};

use novaferry_reduce::Choice;
use novaferry_reduce::ram::{
    Batch, Decoder, Encoder, MAX_PAGES, PAGE_BYTES, Packer, Page, PageBytes, Unpacker,
};
use volume::conformance::Dice;

/// 128 MiB.
const PAGES: usize = 32 << 10;
const ROUNDS: u64 = 5;

/// One workload: memory as it is at first, and how each round changes it.
struct Workload {
    name: &'static str,
    memory: Vec<PageBytes>,
    /// Slots for every page, so that pages are known when they come again; or few.
    slots: u32,
    choice: Choice,
    change: fn(&mut PageBytes, &mut Dice),
}

fn random(bytes: &mut PageBytes, dice: &mut Dice) {
    dice.fill(bytes);
}

fn text(bytes: &mut PageBytes, dice: &mut Dice) {
    let words =
        ["the ", "of ", "memory ", "page ", "int ", "return ", "0x", "struct ", "offset ", "; ", "() ", "\n"];
    let mut at = 0;
    while at < PAGE_BYTES {
        let word = words[usize::try_from(dice.below(12)).expect("small")].as_bytes();
        let len = word.len().min(PAGE_BYTES - at);
        bytes[at..at + len].copy_from_slice(&word[..len]);
        at += len;
        if at < PAGE_BYTES && dice.below(3) == 0 {
            bytes[at] = b'a' + u8::try_from(dice.below(26)).expect("small");
            at += 1;
        }
    }
}

fn edit(bytes: &mut PageBytes, dice: &mut Dice) {
    let start = usize::try_from(dice.below(511)).expect("small") * 8;
    dice.fill(&mut bytes[start..start + 8]);
}

fn count(bytes: &mut PageBytes, _: &mut Dice) {
    let [a, b, c, d, ..] = *bytes;
    bytes[..4].copy_from_slice(&u32::from_le_bytes([a, b, c, d]).wrapping_add(1).to_le_bytes());
}

fn nothing(_: &mut PageBytes, _: &mut Dice) {}

fn filled(pages: usize, fill: fn(&mut PageBytes, &mut Dice)) -> Vec<PageBytes> {
    let mut dice = Dice::new(1);
    let mut memory = vec![[0; PAGE_BYTES]; pages];
    memory.iter_mut().for_each(|page| fill(page, &mut dice));
    memory
}

#[derive(Default)]
struct Times {
    look: Duration,
    decide: Duration,
    pack: Duration,
    unpack: Duration,
    apply: Duration,
}

/// Adds the time since `start`, and starts again.
fn lap(start: &mut Instant, sum: &mut Duration) {
    *sum += start.elapsed();
    *start = Instant::now();
}

fn run(mut work: Workload) {
    let mut dice = Dice::new(2);
    let (mut encoder, mut decoder) = (Encoder::new(work.slots), Decoder::new(work.slots));
    let (mut packer, mut unpacker) = (Packer::new().expect("memory"), Unpacker::new().expect("memory"));
    let (mut packet, mut out) = (Vec::new(), Vec::new());
    let mut number = 0;
    let mut best = [Duration::MAX; 5];
    let mut sizes = (0, 0);
    // The first round fills the slots.
    for round in 0..=ROUNDS {
        if round > 0 {
            work.memory.iter_mut().for_each(|page| (work.change)(page, &mut dice));
        }
        let mut times = Times::default();
        sizes = (0, 0);
        for (start, pages) in (0..).step_by(MAX_PAGES * PAGE_BYTES).zip(work.memory.chunks(MAX_PAGES)) {
            let offsets = (start..).step_by(PAGE_BYTES);
            let mut clock = Instant::now();
            let batch = offsets.zip(pages).map(|(offset, bytes)| Page { block: 0, offset, bytes });
            let batch = Batch::new(batch.collect()).expect("a full packet");
            lap(&mut clock, &mut times.look);
            let plan = encoder.plan(0, number, batch).expect("rising numbers");
            lap(&mut clock, &mut times.decide);
            packet.clear();
            let stats = plan.pack(&mut packer, work.choice, &mut packet).expect("an allowed level");
            lap(&mut clock, &mut times.pack);
            let unpacked = unpacker.unpack(&packet, pages.len()).expect("own packet");
            lap(&mut clock, &mut times.unpack);
            out.clear();
            decoder.apply(&unpacked, &mut out).expect("own packet");
            lap(&mut clock, &mut times.apply);
            assert!(out == pages.as_flattened(), "the pages come back");
            encoder.acknowledge(0, number).expect("it was sent");
            number += 1;
            sizes = (sizes.0 + stats.plain_bytes, sizes.1 + stats.encoded_bytes);
        }
        let Times { look, decide, pack, unpack, apply } = times;
        if round > 0 || work.slots == 0 {
            for (best, time) in best.iter_mut().zip([look, decide, pack, unpack, apply]) {
                *best = (*best).min(time);
            }
        }
    }
    let bytes = f64::from(u32::try_from(work.memory.len() * PAGE_BYTES).expect("below 4 GiB"));
    let rate = |time: Duration| bytes / 1e6 / time.as_secs_f64();
    let [look, decide, pack, unpack, apply] = best;
    println!(
        "{:<32} {:>6.2} % | encode {:>6.0} MB/s (look {:>6.0}, decide {:>6.0}, pack {:>6.0}) | decode {:>6.0} MB/s",
        work.name,
        f64::from(u32::try_from(sizes.1).expect("below 4 GiB")) / bytes * 100.0,
        rate(look + decide + pack),
        rate(look),
        rate(decide),
        rate(pack),
        rate(unpack + apply),
    );
}

fn main() {
    let all = u32::try_from(PAGES).expect("small");
    let level = Choice::Level(1);
    let work = |name, memory, slots, choice, change| Workload { name, memory, slots, choice, change };
    run(work("zeros", filled(PAGES, nothing), all, level, nothing));
    run(work("random, always new", filled(PAGES, random), all, level, random));
    run(work("random, too many for the slots", filled(PAGES, random), all / 4, level, nothing));
    run(work("the same again", filled(PAGES, random), all, level, nothing));
    let mut equal = filled(64, random);
    equal = (0..PAGES).map(|n| equal[n % 64]).collect();
    run(work("equal to one of 64", equal, 64, level, nothing));
    run(work("edit of 8 random bytes", filled(PAGES, random), all, level, edit));
    run(work("a counter in each page", filled(PAGES, random), all, level, count));
    run(work("text, always new, level 1", filled(PAGES / 4, text), all / 4, level, text));
    run(work("text, always new, level -3", filled(PAGES / 4, text), all / 4, Choice::Level(-3), text));
    run(work("text, always new, raw", filled(PAGES / 4, text), all / 4, Choice::Raw, text));
    if let Some(path) = std::env::args().nth(1) {
        let content = std::fs::read(&path).unwrap_or_else(|error| panic!("cannot read {path}: {error}"));
        let pages = content.as_chunks::<PAGE_BYTES>().0;
        // Zeros are so cheap that they would hide the rest.
        let data = pages.iter().filter(|page| **page != [0; PAGE_BYTES]);
        let memory: Vec<PageBytes> = data.take(PAGES * 4).copied().collect();
        assert!(memory.len() >= 256, "FILE must have at least 1 MiB that is not zero");
        let slots = u32::try_from(memory.len()).expect("limited above");
        run(work("FILE, first time", memory.clone(), 0, level, nothing));
        run(work("FILE, first time, level -3", memory.clone(), 0, Choice::Level(-3), nothing));
        run(work("FILE, edits of 8 bytes", memory, slots, level, edit));
    }
}
