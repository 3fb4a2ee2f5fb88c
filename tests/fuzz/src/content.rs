//! Targets of what a peer sends as content: compressed frames, changed pages, pages of RAM.

use std::sync::LazyLock;

use reduce::delta::{self, PageMask, PageSums};
use reduce::ram::{Batch, Decoder, Encoder, MAX_PACKET, MAX_PAGES, Packer, Page, Unpacker};
use reduce::{Choice, Decompressor, Kind};

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

/// Slots of the decoder that meets the packets.
const RAM_SLOTS: u32 = 16;
/// Most packets of an input: 10 bytes can stand for 512 KiB of zeros.
const MAX_RAM_PACKETS: usize = 8;

/// Packets one after the other, so that later ones can refer to what earlier ones stored. Each has the number of
/// pages that are expected (1 byte) and its length (2 bytes) in front.
pub fn ram_packet(mut data: &[u8]) {
    let mut unpacker = Unpacker::new().expect("there is memory for a context");
    let mut decoder = Decoder::new(RAM_SLOTS);
    let mut out = Vec::new();
    for _ in 0..MAX_RAM_PACKETS {
        let Some((&[pages, a, b], rest)) = data.split_first_chunk::<3>() else { break };
        let (packet, rest) = rest.split_at(usize::from(u16::from_le_bytes([a, b])).min(rest.len()));
        data = rest;
        let pages = usize::from(pages);
        let before = out.len();
        let unpacked = match unpacker.unpack(packet, pages) {
            Ok(unpacked) => unpacked,
            Err(error) => {
                assert!(error.to_string().contains("check the peer"), "{error}");
                return;
            }
        };
        assert!(pages <= MAX_PAGES && unpacked.pages() == pages && packet.len() <= MAX_PACKET);
        if let Err(error) = decoder.apply(&unpacked, &mut out) {
            assert_eq!(error.kind(), Kind::Refused, "{error}");
            assert_eq!(out.len(), before, "an error leaves no page behind");
            return;
        }
        assert_eq!(out.len() - before, pages * 4096, "exactly the expected pages");
    }
    // Whatever came out can be sent on, and comes out again.
    let mut packer = Packer::new().expect("there is memory for a context");
    let mut encoder = Encoder::new(RAM_SLOTS);
    decoder.reset();
    for (group, number) in out.as_chunks().0.chunks(MAX_PAGES).zip(0..) {
        let pages = (0..).step_by(4096).zip(group).map(|(offset, bytes)| Page { block: 0, offset, bytes });
        let plan = encoder.plan(0, number, Batch::new(pages.collect()).expect("at most a packet's pages"));
        let (mut packet, mut again) = (Vec::new(), Vec::new());
        plan.expect("rising numbers").pack(&mut packer, Choice::Raw, &mut packet).expect("nothing can fail");
        let unpacked = unpacker.unpack(&packet, group.len()).expect("own packet");
        decoder.apply(&unpacked, &mut again).expect("own packet");
        assert!(again == group.as_flattened(), "the pages come back");
    }
}
