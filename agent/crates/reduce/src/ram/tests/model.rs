//! A guest that writes at random, channels that deliver and acknowledge at random.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// A packet on its way, and what it must decode to.
struct Sent {
    number: u64,
    packet: Vec<u8>,
    expected: Vec<u8>,
}

#[derive(Default)]
struct Lane {
    next: u64,
    in_flight: VecDeque<Sent>,
    decoded: Option<u64>,
}

struct Model {
    dice: Dice,
    pair: Pair,
    memory: Vec<PageBytes>,
    lanes: Vec<Lane>,
    /// A digest of all packets.
    log: Vec<u64>,
    total: PacketStats,
}

impl Model {
    fn new(seed: u64, slots: u32, pages: usize, lanes: usize) -> Self {
        Self {
            dice: Dice::new(seed),
            pair: Pair::new(slots),
            memory: vec![[0; PAGE_BYTES]; pages],
            lanes: (0..lanes).map(|_| Lane::default()).collect(),
            log: Vec::new(),
            total: PacketStats::default(),
        }
    }

    /// One write of the guest.
    fn write(&mut self) {
        let dice = &mut self.dice;
        let at = below(dice, self.memory.len());
        match dice.below(8) {
            0 => self.memory[at] = random_page(dice),
            1 => self.memory[at] = text_page(dice),
            2 => self.memory[at] = [0; PAGE_BYTES],
            // One of four contents that many pages share.
            3 => self.memory[at] = random_page(&mut Dice::new(dice.below(4))),
            4 => self.memory[at] = self.memory[below(dice, self.memory.len())],
            5 => {
                let (start, len) = (below(dice, PAGE_BYTES), below(dice, 3000));
                let end = PAGE_BYTES.min(start + len);
                dice.fill(&mut self.memory[at][start..end]);
            }
            _ => {
                let start = below(dice, PAGE_BYTES / 8) * 8;
                dice.fill(&mut self.memory[at][start..start + 8]);
            }
        }
    }

    fn send(&mut self) {
        let channel = below(&mut self.dice, self.lanes.len());
        let count = 1 + below(&mut self.dice, 12);
        let places: Vec<usize> = (0..count).map(|_| below(&mut self.dice, self.memory.len())).collect();
        // Two blocks, so that offsets alone name no page.
        let pages = places.iter().map(|place| Page {
            block: u32::from(place % 2 == 1),
            offset: (place / 2 * PAGE_BYTES) as u64,
            bytes: &self.memory[*place],
        });
        let choice = [Choice::Raw, FAST, Choice::Level(-5)][below(&mut self.dice, 3)];
        let lane = &mut self.lanes[channel];
        lane.next += 1 + self.dice.below(2);
        let expected = places.iter().flat_map(|place| self.memory[*place]).collect();
        let number = lane.next;
        let channel = u8::try_from(channel).expect("few lanes");
        let (packet, stats) = self.pair.encode(channel, number, pages.collect(), choice);
        assert_eq!(stats.plain_bytes, (count * PAGE_BYTES) as u64);
        assert_eq!(
            stats.zero + stats.same + stats.copied + stats.delta + stats.plain,
            u32::try_from(count).unwrap()
        );
        assert!(packet.len() <= MAX_PACKET.min(8 + count * (PAGE_BYTES + 16)));
        self.total.same += stats.same;
        self.total.copied += stats.copied;
        self.total.delta += stats.delta;
        self.log.push(xxhash_rust::xxh3::xxh3_64(&packet));
        self.lanes[usize::from(channel)].in_flight.push_back(Sent { number, packet, expected });
    }

    fn deliver(&mut self) {
        let channel = below(&mut self.dice, self.lanes.len());
        if let Some(sent) = self.lanes[channel].in_flight.pop_front() {
            let decoded =
                self.pair.decode(&sent.packet, sent.expected.len() / PAGE_BYTES).expect("own packet");
            assert!(decoded == sent.expected, "packet {} of channel {channel} differs", sent.number);
            self.lanes[channel].decoded = Some(sent.number);
        }
    }

    fn acknowledge(&mut self) {
        let channel = below(&mut self.dice, self.lanes.len());
        if let Some(number) = self.lanes[channel].decoded {
            let channel = u8::try_from(channel).expect("few lanes");
            self.pair.encoder.acknowledge(channel, number).expect("it was sent");
        }
    }

    /// All channels break: what is in flight is lost.
    fn reconnect(&mut self) {
        self.pair.encoder.reset();
        self.pair.decoder.reset();
        self.lanes.iter_mut().for_each(|lane| *lane = Lane::default());
    }

    fn run(&mut self, steps: usize) {
        // How eagerly packets are delivered and acknowledged, from hardly to at once.
        let (deliver, acknowledge) = (self.dice.below(40) + 2, self.dice.below(30) + 1);
        for _ in 0..steps {
            match self.dice.below(40 + deliver + acknowledge) {
                0 if self.dice.below(10) == 0 => self.reconnect(),
                0..20 => self.write(),
                20..40 => self.send(),
                n if n < 40 + deliver => self.deliver(),
                _ => self.acknowledge(),
            }
        }
        while self.lanes.iter().any(|lane| !lane.in_flight.is_empty()) {
            self.deliver();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn pages_come_back_in_any_order_of_delivery(
        seed in any::<u64>(), slots in 0_u32..48, pages in 1_usize..40, lanes in 1_usize..=4
    ) {
        let mut model = Model::new(seed, slots, pages, lanes);
        model.run(400);
    }

    #[test]
    fn equal_inputs_give_equal_packets(seed in any::<u64>(), slots in 0_u32..48) {
        let mut logs = (0..2).map(|_| {
            let mut model = Model::new(seed, slots, 20, 3);
            model.run(150);
            model.log
        });
        prop_assert_eq!(logs.next(), logs.next());
    }
}

/// Without this the properties above could pass because nothing ever refers to anything.
#[test]
fn the_model_meets_every_kind_of_page() {
    let mut model = Model::new(1, 24, 20, 3);
    model.run(3000);
    let PacketStats { same, copied, delta, .. } = model.total;
    assert!(same > 500 && copied > 100 && delta > 100, "{:?}", model.total);
}
