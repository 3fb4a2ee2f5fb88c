//! Both halves together: a model of a guest whose packets arrive in any order that the channels allow.

mod hostile;
mod model;
mod rules;
mod sizes;

use volume::conformance::Dice;

use super::*;
use crate::controller::Choice;
use crate::error::ReduceError;

/// The level of most tests.
const FAST: Choice = Choice::Level(1);

fn page(offset: u64, bytes: &PageBytes) -> Page<'_> {
    Page { block: 0, offset, bytes }
}

/// Pages one after the other from offset 0 on.
fn sequence(memory: &[PageBytes]) -> Vec<Page<'_>> {
    (0..).step_by(PAGE_BYTES).zip(memory).map(|(offset, bytes)| page(offset, bytes)).collect()
}

fn random_page(dice: &mut Dice) -> PageBytes {
    let mut bytes = [0; PAGE_BYTES];
    dice.fill(&mut bytes);
    bytes
}

/// A page that zstd halves at least, different for each seed.
fn text_page(dice: &mut Dice) -> PageBytes {
    let mut bytes = [b' '; PAGE_BYTES];
    for word in bytes.as_chunks_mut::<16>().0 {
        let number = dice.below(1000);
        word[..12].copy_from_slice(format!("item {number:>5} =").get(..12).expect("long enough").as_bytes());
    }
    bytes
}

fn below(dice: &mut Dice, bound: usize) -> usize {
    usize::try_from(dice.below(bound as u64)).expect("below the bound")
}

/// An encoder and a decoder with as many slots.
struct Pair {
    encoder: Encoder,
    packer: Packer,
    unpacker: Unpacker,
    decoder: Decoder,
}

impl Pair {
    fn new(slots: u32) -> Self {
        Self {
            encoder: Encoder::new(slots),
            packer: Packer::new().expect("memory"),
            unpacker: Unpacker::new().expect("memory"),
            decoder: Decoder::new(slots),
        }
    }

    fn encode(
        &mut self,
        channel: u8,
        number: u64,
        pages: Vec<Page<'_>>,
        choice: Choice,
    ) -> (Vec<u8>, PacketStats) {
        let mut packet = Vec::new();
        let plan =
            self.encoder.plan(channel, number, Batch::new(pages).expect("allowed")).expect("a rising number");
        let stats = plan.pack(&mut self.packer, choice, &mut packet).expect("an allowed level");
        assert_eq!(stats.encoded_bytes, packet.len() as u64);
        (packet, stats)
    }

    fn decode(&mut self, packet: &[u8], pages: usize) -> Result<Vec<u8>, ReduceError> {
        let mut out = b"before".to_vec();
        let result = self.decoder.apply(&self.unpacker.unpack(packet, pages)?, &mut out);
        assert!(out.starts_with(b"before"));
        assert!(result.is_ok() || out.len() == 6, "an error leaves nothing behind");
        result.map(|()| out.split_off(6))
    }

    /// Sends a packet and has it acknowledged.
    fn transfer(&mut self, channel: u8, number: u64, pages: Vec<Page<'_>>, choice: Choice) -> PacketStats {
        let expected: Vec<u8> = pages.iter().flat_map(|page| *page.bytes).collect();
        let (packet, stats) = self.encode(channel, number, pages, choice);
        let decoded = self.decode(&packet, expected.len() / PAGE_BYTES).expect("own packet");
        assert!(decoded == expected, "the pages come back");
        self.encoder.acknowledge(channel, number).expect("it was sent");
        stats
    }
}
