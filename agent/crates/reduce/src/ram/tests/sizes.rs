//! Bytes on the wire, for guests that the issue names.

use super::*;

/// Bytes of packets of 128 pages in thousandths of what they hold.
fn permille(stats: &PacketStats) -> u64 {
    stats.encoded_bytes * 1000 / stats.plain_bytes
}

#[test]
fn pages_sent_again_with_an_edit_of_8_bytes_cost_less_than_a_hundredth() {
    let mut dice = Dice::new(1);
    let mut memory: Vec<PageBytes> = (0..MAX_PAGES).map(|_| random_page(&mut dice)).collect();
    let mut pair = Pair::new(1000);
    pair.transfer(0, 0, sequence(&memory), FAST);
    for number in 1..10 {
        for bytes in &mut memory {
            let start = below(&mut dice, PAGE_BYTES - 8);
            dice.fill(&mut bytes[start..start + 8]);
        }
        let stats = pair.transfer(0, number, sequence(&memory), FAST);
        assert_eq!(stats.delta, 128);
        assert!(permille(&stats) < 10, "{stats:?}");
    }
    // As in a guest that counts its passes: the edits are alike.
    for number in 10..20_u64 {
        memory.iter_mut().for_each(|bytes| bytes[..8].copy_from_slice(&number.to_le_bytes()));
        let stats = pair.transfer(0, number, sequence(&memory), FAST);
        assert!(stats.encoded_bytes < 1024 || number == 10, "{stats:?}");
    }
}

#[test]
fn equal_pages_and_pages_of_zeros_cost_next_to_nothing() {
    let mut dice = Dice::new(1);
    let memory: Vec<PageBytes> = (0..MAX_PAGES).map(|_| random_page(&mut dice)).collect();
    let mut pair = Pair::new(1000);
    pair.transfer(0, 0, sequence(&memory), FAST);
    let again = pair.transfer(0, 1, sequence(&memory), FAST);
    assert_eq!((again.same, again.encoded_bytes < 200), (128, true), "{again:?}");
    let elsewhere = memory.iter().map(|bytes| Page { block: 1, offset: dice.below(1 << 30), bytes });
    let copied = pair.transfer(0, 2, elsewhere.collect(), FAST);
    assert_eq!((copied.copied, copied.encoded_bytes < 200), (128, true), "{copied:?}");
    let zeros = pair.transfer(0, 3, sequence(&[[0; PAGE_BYTES]; MAX_PAGES]), FAST);
    assert_eq!((zeros.zero, zeros.encoded_bytes), (128, 10), "{zeros:?}");
    let one = [[3; PAGE_BYTES]; MAX_PAGES];
    let first = pair.transfer(0, 4, sequence(&one), FAST);
    assert_eq!((first.plain, first.copied), (1, 127), "equal pages within a packet");
}

#[test]
fn random_pages_cost_at_most_a_hundredth_more_than_raw() {
    let mut dice = Dice::new(1);
    let memory: Vec<PageBytes> = (0..MAX_PAGES).map(|_| random_page(&mut dice)).collect();
    for choice in [Choice::Raw, FAST, Choice::Level(9)] {
        let mut pair = Pair::new(1000);
        let stats = pair.transfer(0, 0, sequence(&memory), choice);
        assert!((1000..1010).contains(&permille(&stats)), "{stats:?}");
        let single =
            pair.transfer(0, 1, vec![Page { block: 9, offset: 0, bytes: &random_page(&mut dice) }], choice);
        assert!((1000..1010).contains(&permille(&single)), "{single:?}");
    }
}

#[test]
fn text_is_compressed_even_among_random_pages() {
    let mut dice = Dice::new(1);
    let memory: Vec<PageBytes> = (0..MAX_PAGES)
        .map(|n| if n % 2 == 0 { text_page(&mut dice) } else { random_page(&mut dice) })
        .collect();
    let mut pair = Pair::new(1000);
    let stats = pair.transfer(0, 0, sequence(&memory), FAST);
    assert_eq!(stats.plain, 128);
    assert!(permille(&stats) < 750, "{stats:?}");
    let raw = Pair::new(1000).transfer(0, 0, sequence(&memory), Choice::Raw);
    assert!(permille(&raw) >= 1000, "{raw:?}");
}

#[test]
fn a_page_that_changed_much_is_sent_whole_and_is_the_base_of_the_next() {
    let mut dice = Dice::new(1);
    let mut bytes = random_page(&mut dice);
    let mut pair = Pair::new(10);
    pair.transfer(0, 0, vec![page(0, &bytes)], FAST);
    dice.fill(&mut bytes[..3000]);
    assert_eq!(pair.transfer(0, 1, vec![page(0, &bytes)], FAST).plain, 1);
    bytes[4000] ^= 1;
    assert_eq!(pair.transfer(0, 2, vec![page(0, &bytes)], FAST).delta, 1);
    dice.fill(&mut bytes[..1900]);
    assert_eq!(pair.transfer(0, 3, vec![page(0, &bytes)], FAST).delta, 1);
}
