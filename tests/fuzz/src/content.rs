//! Targets of what a peer sends as content: compressed frames and changed pages.

use std::sync::LazyLock;

use reduce::delta::{self, PageMask, PageSums};
use reduce::{Decompressor, Kind};

/// Largest content that is declared: more only makes the runs slower.
const MAX_PLAIN: usize = 256 << 10;

/// The declared length (3 bytes), the length of the slices that it goes into (2 bytes), then a zstd frame.
pub fn decompress(data: &[u8]) {
    let Some((&[a, b, c, d, e], frame)) = data.split_first_chunk::<5>() else { return };
    let plain = usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16;
    let slice = (usize::from(d) | usize::from(e) << 8).max(1);
    // So that a seed with a large declared length meets small slices too, but not millions of them.
    let slice = slice.max(plain / 1024 + 1);
    let plain = plain.min(MAX_PLAIN);
    let mut decompressor = Decompressor::new().expect("there is memory for a context");
    let mut out = vec![0; plain];
    let mut slices: Vec<&mut [u8]> = out.chunks_mut(slice).collect();
    let result = decompressor.decompress(frame, &mut slices);
    let shown = format!("{decompressor:?}");
    assert!(decompressor.memory() <= 2 << 20, "{shown}");
    if result.is_ok() {
        assert!(frame.len() <= plain, "a frame longer than its content");
        let mut whole = vec![0; plain];
        decompressor.decompress(frame, &mut [&mut whole]).expect("the context can be used again");
        assert_eq!(whole, out, "the content does not depend on the slices");
    }
}

/// What the old chunk is cut from: longer than a chunk may be.
static OLD: LazyLock<Vec<u8>> = LazyLock::new(|| (0..=250).cycle().take(MAX_OLD).collect());
const MAX_OLD: usize = 2 * 65_536;

/// Length of the old chunk (3 bytes), a mask (2 bytes), a count of sums (1 byte), then payload.
pub fn page_delta(data: &[u8]) {
    let Some((&[a, b, c, d, e, sums], payload)) = data.split_first_chunk::<6>() else { return };
    let len = (usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16).min(MAX_OLD);
    let mask = PageMask(u16::from_le_bytes([d, e]));
    let old = OLD[..len].to_vec();
    let mut chunk = old.clone();
    match delta::apply(&mut chunk, mask, payload) {
        Ok(()) => {
            assert_eq!(mask.payload_len(len), Some(payload.len()), "the payload is exactly the pages");
            assert_eq!(mask.pages(&chunk).collect::<Vec<_>>().concat(), payload, "the named pages");
            let others = PageMask(!mask.0);
            assert!(others.pages(&chunk).eq(others.pages(&old)), "other pages are untouched");
        }
        Err(error) => {
            assert_eq!(error.kind(), Kind::WrongLength);
            assert_eq!(chunk, old, "an error leaves the chunk alone");
        }
    }
    let words: Vec<u64> = payload.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let claimed = &words[..words.len().min(usize::from(sums))];
    if let Ok(read) = PageSums::from_slice(claimed) {
        assert_eq!(read.as_slice(), claimed);
        let seed = reduce::SumSeed(u64::from(sums));
        if let Ok(mask) = delta::diff(seed, &old, &read) {
            assert!(mask.payload_len(len).is_some(), "only pages that the chunk has");
        }
    } else {
        assert!(claimed.len() > volume::PAGES_PER_CHUNK);
    }
}
