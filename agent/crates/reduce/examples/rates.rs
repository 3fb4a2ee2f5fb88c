//! Prints how fast each function is on one core of this machine:
//! `cargo run --release -p novaferry-reduce --example rates [FILE]`.
//!
//! Compression is measured on FILE (the first 256 MiB of a disk image or an archive; at least 1 MiB), or on made-up
//! data, which shows changes but says nothing about real disks.
//!
//! The best of several rounds is shown, so that other load on the machine disturbs little.
#![expect(clippy::print_stdout, reason = "its output is its purpose")]
#![expect(clippy::disallowed_methods, reason = "measures; the library itself reads no clock")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use novaferry_reduce::delta::{apply, diff};
use novaferry_reduce::{
    Compressor, ContentIndex, Decompressor, HashKey, KnownChunks, Location, Outcome, PageMask, PageSums,
    PayHint, RootBuilder, SumSeed, VolumeSlot, extent_ids, is_zero,
};
use volume::conformance::Dice;
use volume::{ByteLen, ChunkId, ChunkIndex, EXTENT};

const MIB: usize = 1 << 20;

/// The shortest of at least 5 runs that together take 300 ms.
fn best(mut work: impl FnMut()) -> Duration {
    let start = Instant::now();
    let mut shortest = Duration::MAX;
    let mut runs = 0;
    while runs < 5 || start.elapsed() < Duration::from_millis(300) {
        let begin = Instant::now();
        work();
        shortest = shortest.min(begin.elapsed());
        runs += 1;
    }
    shortest
}

fn rate(name: &str, bytes: usize, work: impl FnMut()) {
    let seconds = best(work).as_secs_f64();
    let gigabytes = f64::from(u32::try_from(bytes).expect("below 4 GiB")) / 1e9;
    println!("{name:<44} {:>8.2} GB/s", gigabytes / seconds);
}

fn each(name: &str, count: u32, work: impl FnMut()) {
    println!("{name:<44} {:>8.1} ns", best(work).as_secs_f64() * 1e9 / f64::from(count));
}

/// Words, numbers and some noise.
fn disk_like(len: usize, dice: &mut Dice) -> Vec<u8> {
    let mut words = vec![0; 4096];
    dice.fill(&mut words);
    let mut data = Vec::with_capacity(len + 64);
    while data.len() < len {
        let start = usize::try_from(dice.below(dice.clone().below(4000) + 1)).expect("small");
        let length = usize::try_from(dice.below(24)).expect("small") + 4;
        data.extend_from_slice(&words[start..start + length]);
        let mut noise = [0; 6];
        dice.fill(&mut noise);
        data.extend_from_slice(&noise[..usize::try_from(dice.below(7)).expect("small")]);
    }
    data.truncate(len);
    data
}

fn main() {
    let mut dice = Dice::new(1);
    let zeros = vec![0; MIB];
    let mut random = vec![0; MIB];
    dice.fill(&mut random);
    let mut text = match std::env::args().nth(1) {
        Some(path) => std::fs::read(&path).unwrap_or_else(|error| panic!("cannot read {path}: {error}")),
        None => disk_like(16 * MIB, &mut dice),
    };
    text.truncate(256 * MIB);
    assert!(text.len() >= MIB, "FILE must have at least 1 MiB");
    let key = HashKey::generate([7; 32]);

    // Written once, or all of it would be the kernel's one shared page of zeros.
    let mut large = vec![1; 256 * MIB];
    black_box(&mut large).fill(0);
    rate("is_zero, 1 MiB in cache", MIB, || assert!(is_zero(black_box(&zeros))));
    rate("is_zero, 64 KiB in cache", 64 << 10, || assert!(is_zero(black_box(&zeros[..64 << 10]))));
    rate("is_zero, 256 MiB from memory", 256 * MIB, || assert!(is_zero(black_box(&large))));
    drop(large);
    let slices: Vec<&[u8]> = random.chunks(256 << 10).collect();
    rate("extent_ids, data", MIB, || {
        let _ids = black_box(extent_ids(&key, &slices));
    });
    let zero_slices: Vec<&[u8]> = zeros.chunks(256 << 10).collect();
    rate("extent_ids, zeros", MIB, || {
        let _ids = black_box(extent_ids(&key, &zero_slices));
    });

    let tebibyte = ByteLen(1 << 40);
    let sparse = best(|| {
        let mut builder = RootBuilder::new(&key, tebibyte).expect("allowed size");
        builder.push_zero_extents(tebibyte.extents()).expect("in range");
        black_box(builder.finish().expect("complete"));
    });
    println!("{:<44} {:>8.1} ms", "root of 1 TiB of zeros", sparse.as_secs_f64() * 1e3);
    let ids = extent_ids(&key, &slices).expect("one extent");
    let dense = best(|| {
        let mut builder = RootBuilder::new(&key, ByteLen(EXTENT << 16)).expect("allowed size");
        for _ in 0..1 << 16 {
            builder.push_extent(&ids).expect("in range");
        }
        black_box(builder.finish().expect("complete"));
    });
    println!("{:<44} {:>8.1} ms", "root of 64 GiB of data, ids given", dense.as_secs_f64() * 1e3);

    let seed = SumSeed(3);
    let chunk = &random[..64 << 10];
    let old = PageSums::of(seed, chunk).expect("one chunk");
    rate("page sums and diff", 64 << 10, || {
        let _mask = black_box(diff(seed, chunk, &old));
    });
    let mut target = chunk.to_vec();
    rate("apply all pages", 64 << 10, || apply(&mut target, PageMask(0xffff), chunk).expect("fits"));

    let mut hint = PayHint::default();
    rate("hint, random 1 MiB", MIB, || {
        let _try = black_box(hint.worth_trying(&[&random]));
    });
    codec_rates(&text, &random);
    dedup_rates(&mut dice);
}

fn codec_rates(text: &[u8], random: &[u8]) {
    let mut compressor = Compressor::new().expect("memory");
    let mut decompressor = Decompressor::new().expect("memory");
    let mut out = vec![0; MIB];
    let mut back = vec![0; MIB];
    for level in [-5, -1, 1, 3, 6, 9] {
        let mut frames = Vec::new();
        let mut raw = 0;
        let time = best(|| {
            frames.clear();
            raw = 0;
            for batch in text.chunks(MIB) {
                let parts: Vec<&[u8]> = batch.chunks(256 << 10).collect();
                match compressor.compress(level, &parts, &mut out).expect("compress") {
                    Outcome::Compressed(len) => frames.push((batch.len(), out[..len].to_vec())),
                    Outcome::DoesNotPay => raw += batch.len(),
                }
            }
        });
        let total = raw + frames.iter().map(|(_, frame)| frame.len()).sum::<usize>();
        let decoded: usize = frames.iter().map(|(plain, _)| plain).sum();
        let bytes = |n: usize| f64::from(u32::try_from(n).expect("below 4 GiB"));
        let decode = best(|| {
            for (plain, frame) in &frames {
                let mut parts: Vec<&mut [u8]> = back[..*plain].chunks_mut(256 << 10).collect();
                decompressor.decompress(frame, &mut parts).expect("own frame");
            }
        });
        let noise = best(|| {
            let _outcome = black_box(compressor.compress(level, &[random], &mut out));
        });
        println!(
            "zstd {level:>2}: ratio {:.2}, compress {:.2}, decompress {:.2}, incompressible {:.2} GB/s, context {} KiB",
            bytes(text.len()) / bytes(total),
            bytes(text.len()) / 1e9 / time.as_secs_f64(),
            bytes(decoded) / 1e9 / decode.as_secs_f64(),
            bytes(MIB) / 1e9 / noise.as_secs_f64(),
            compressor.memory() >> 10,
        );
    }
    println!("decompression context {} KiB", decompressor.memory() >> 10);
}

fn dedup_rates(dice: &mut Dice) {
    const COUNT: u32 = 4_000_000;
    let ids: Vec<ChunkId> = (0..COUNT)
        .map(|_| {
            let mut id = [0; 32];
            dice.fill(&mut id);
            ChunkId(id)
        })
        .collect();
    let mut known = KnownChunks::default();
    each("KnownChunks insert, 4 M from empty", COUNT, || {
        known = KnownChunks::default();
        for id in &ids {
            known.insert(id);
        }
    });
    each("KnownChunks contains, hit", COUNT, || assert!(ids.iter().all(|id| known.contains(id))));
    println!("{known:?}");
    let mut index = ContentIndex::new(256 << 20);
    let volume = VolumeSlot::new(1).expect("small");
    each("ContentIndex insert, 4 M from empty", COUNT, || {
        index = ContentIndex::new(256 << 20);
        for (id, n) in ids.iter().zip(0..) {
            index.insert(id, Location { volume, chunk: ChunkIndex(n) });
        }
    });
    each("ContentIndex candidates, hit", COUNT, || {
        assert!(ids.iter().all(|id| index.candidates(id).next().is_some()));
    });
    println!("{index:?}");
}
