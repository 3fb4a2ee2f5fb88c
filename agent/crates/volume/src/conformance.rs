//! The suite that every [`Sink`] passes: real files, devices, NBD exports and the simulated disk alike.
//!
//! It is runtime-free: a backend's test awaits [`check_sink`] on its own executor with a fresh sink per size.
//! The model beside the sink is a plain byte vector.

use crate::buffer::Buffer;
use crate::error::Kind;
use crate::traits::{Content, Sink, Source, ZeroMode};
use crate::units::{ByteLen, ByteOffset, ByteRange};

/// A deterministic generator (SplitMix64, Steele et al. 2014), so that a failing run replays from its seed.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Starts from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound` (which must not be 0).
    pub fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    /// Fills a slice.
    pub fn fill(&mut self, out: &mut [u8]) {
        for part in out.chunks_mut(8) {
            let word = self.roll().to_le_bytes();
            part.copy_from_slice(&word[..part.len()]);
        }
    }
}

fn usize_of(n: u64) -> usize {
    usize::try_from(n).expect("test sizes fit the address space")
}

/// Reads the whole of a source in pieces of 128 KiB.
///
/// # Panics
/// When a read fails: the suite's assertion.
pub async fn read_all(source: &dyn Source) -> Vec<u8> {
    let size = source.geometry().size.0;
    let mut all = Vec::with_capacity(usize_of(size));
    let mut at = 0;
    while at < size {
        let buffer = Buffer::heap(usize_of((size - at).min(128 << 10)));
        let (result, buffer) = source.read_at(ByteOffset(at), buffer).await;
        result.expect("read inside the volume succeeds");
        at += buffer.len() as u64;
        all.extend_from_slice(&buffer);
    }
    all
}

/// Runs the suite on a fresh sink. `seed` picks the operations and is part of every message.
///
/// Covers: initial zeros where promised; writes at aligned and unaligned offsets up to the very last byte; overlap;
/// zeroing in both modes; buffers that come back with their length on success and on failure; refusal of ranges
/// outside the volume; `next_data` that never hides a non-zero byte; flush.
///
/// # Panics
/// When the sink breaks the contract.
pub async fn check_sink(sink: &dyn Sink, seed: u64) {
    let geometry = sink.geometry();
    let size = geometry.size.0;
    assert!(size > 0, "the suite needs a volume of at least one byte");
    let block = u64::from(geometry.logical_block.max(1));
    let mut dice = Dice::new(seed);
    let mut model =
        if sink.content() == Content::Zero { vec![0; usize_of(size)] } else { read_all(sink).await };
    assert_eq!(read_all(sink).await, model, "seed {seed}: initial content");

    for step in 0..40 {
        let start = dice.below(size.div_ceil(block)) * block;
        // Whole blocks, except that the last write may stop at the volume's end.
        let length = ((dice.below(300 << 10) / block + 1) * block).min(size - start);
        let range = ByteRange::new(ByteOffset(start), ByteLen(length)).expect("in range");
        let place = usize_of(range.start)..usize_of(range.end);
        match dice.below(4) {
            0 => {
                let mode = if dice.below(2) == 0 { ZeroMode::Deallocate } else { ZeroMode::Allocate };
                sink.zero(range, mode).await.expect("zero inside the volume succeeds");
                model[place].fill(0);
            }
            1 => sink.flush().await.expect("flush succeeds"),
            _ => {
                let mut buffer = Buffer::heap(usize_of(length));
                dice.fill(&mut buffer);
                model[place].copy_from_slice(&buffer);
                let (result, back) = sink.write_at(ByteOffset(start), buffer).await;
                result.expect("write inside the volume succeeds");
                assert_eq!(back.len() as u64, length, "seed {seed} step {step}: buffer comes back whole");
            }
        }
        let probe = dice.below(size);
        let length = (size - probe).min(dice.below(200 << 10) + 1);
        let (result, back) = sink.read_at(ByteOffset(probe), Buffer::heap(usize_of(length))).await;
        result.expect("read inside the volume succeeds");
        let expected = &model[usize_of(probe)..usize_of(probe + length)];
        assert!(
            *expected == *back,
            "seed {seed} step {step}: bytes at {probe}+{length} differ from the model"
        );
    }

    // The very last byte, and one past it.
    let tail = block.min(size);
    let start = (size - 1) / block * block;
    let mut buffer = Buffer::heap(usize_of(size - start));
    buffer.fill(0xa5);
    model[usize_of(start)..].fill(0xa5);
    let (result, _) = sink.write_at(ByteOffset(start), buffer).await;
    result.expect("writing the last block succeeds");
    let (result, back) = sink.write_at(ByteOffset(size), Buffer::heap(usize_of(tail))).await;
    assert_eq!(result.expect_err("a write past the end fails").kind(), Kind::OutOfRange);
    assert_eq!(back.len() as u64, tail, "seed {seed}: the buffer comes back from a refused write");
    let (result, back) = sink.read_at(ByteOffset(size - 1), Buffer::heap(2)).await;
    assert_eq!(result.expect_err("a read past the end fails").kind(), Kind::OutOfRange);
    assert_eq!(back.len(), 2);
    let (result, _) = sink.write_at(ByteOffset(u64::MAX - 1), Buffer::heap(512)).await;
    assert_eq!(result.expect_err("an overflowing offset fails").kind(), Kind::OutOfRange);
    let past = ByteRange { start: size, end: size + block };
    let error = sink.zero(past, ZeroMode::Deallocate).await.expect_err("zeroing past the end fails");
    assert_eq!(error.kind(), Kind::OutOfRange);

    sink.flush().await.expect("flush succeeds");
    assert!(read_all(sink).await == model, "seed {seed}: final content differs from the model");
    check_next_data(sink, &model, seed).await;
}

/// `next_data` may call zeros data, but never data zeros; it always moves forward and ends.
///
/// # Panics
/// When the source breaks the contract.
pub async fn check_next_data(source: &dyn Source, model: &[u8], seed: u64) {
    let mut at = 0;
    loop {
        let next = source.next_data(ByteOffset(at)).await.expect("find data succeeds");
        let hole_end = next.map_or(model.len(), |r| usize_of(r.start));
        let hole = &model[usize_of(at)..hole_end];
        assert!(hole.iter().all(|b| *b == 0), "seed {seed}: next_data({at}) skipped data");
        let Some(range) = next else { break };
        assert!(range.start >= at && range.end > range.start, "seed {seed}: next_data({at}) went to {range}");
        assert!(range.end <= model.len() as u64, "seed {seed}: next_data({at}) ran past the end: {range}");
        at = range.end;
    }
}
