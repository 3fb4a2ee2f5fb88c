use std::collections::{HashMap, HashSet};

use super::*;
use proptest::prelude::*;
use volume::conformance::Dice;
use volume::{ChunkId, ChunkIndex};

fn id(tag: u64) -> ChunkId {
    let mut bytes = [0x11; 32];
    bytes[..8].copy_from_slice(&tag.to_le_bytes());
    ChunkId(bytes)
}

fn place(volume: u16, chunk: u64) -> Location {
    Location { volume: VolumeSlot::new(volume).unwrap(), chunk: ChunkIndex(chunk) }
}

/// Few different tags, many in one shard, and the ends of the range: collisions and wrap-around happen all the time.
fn tag() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0_u64..200).prop_map(|n| u64::MAX - n),
        (0_u64..100).prop_map(|n| n << 40),
        0_u64..20
    ]
}

proptest! {
    #[test]
    fn known_chunks_agree_with_a_hash_set(
        steps in proptest::collection::vec((tag(), 0..8), 0..2000), max_bytes in 0_usize..100_000
    ) {
        let mut known = KnownChunks::new(max_bytes);
        let mut oracle = HashSet::new();
        for (tag, action) in steps {
            let real = tag.max(1);
            if action == 0 {
                prop_assert_eq!(known.remove(&id(tag)), oracle.remove(&real));
            } else {
                match known.insert(&id(tag)) {
                    Inserted::New => prop_assert!(oracle.insert(real)),
                    Inserted::Present => prop_assert!(oracle.contains(&real)),
                    Inserted::Full => prop_assert!(!oracle.contains(&real)),
                }
            }
            prop_assert_eq!(known.len(), oracle.len());
            prop_assert!(known.memory() <= max_bytes);
        }
        prop_assert!(oracle.iter().all(|tag| known.contains_tag(*tag)));
        for probe in 0..300 {
            prop_assert_eq!(known.contains(&id(probe)), oracle.contains(&probe.max(1)));
        }
    }

    #[test]
    fn the_index_agrees_with_a_hash_map(
        steps in proptest::collection::vec((tag(), 0_u16..4, prop_oneof![0_u64..3, 0..1_u64 << 34], 0..100), 0..1500),
        max_bytes in 0_usize..200_000
    ) {
        let mut index = ContentIndex::new(max_bytes);
        let mut oracle: HashMap<u64, Vec<Location>> = HashMap::new();
        for (tag, volume, chunk, action) in steps {
            let location = place(volume, chunk);
            if action == 0 {
                index.forget_volume(location.volume);
                oracle.values_mut().for_each(|places| places.retain(|place| place.volume != location.volume));
                oracle.retain(|_, places| !places.is_empty());
            } else {
                let places = oracle.entry(tag.max(1)).or_default();
                match index.insert(&id(tag), location) {
                    Inserted::New => {
                        prop_assert!(!places.contains(&location));
                        places.truncate(1);
                        places.push(location);
                    }
                    Inserted::Present => prop_assert!(places.contains(&location)),
                    Inserted::Full => prop_assert!(places.len() < 2),
                }
            }
            prop_assert!(index.memory() <= max_bytes);
        }
        oracle.retain(|_, places| !places.is_empty());
        prop_assert_eq!(index.len(), oracle.values().map(Vec::len).sum::<usize>());
        for (tag, places) in &oracle {
            prop_assert_eq!(&index.candidates(&id(*tag)).collect::<Vec<_>>(), places);
        }
        prop_assert_eq!(index.tags().collect::<HashSet<_>>(), oracle.keys().copied().collect::<HashSet<_>>());
        prop_assert_eq!(index.tags().count(), index.len());
    }
}

#[test]
fn nothing_is_allocated_before_it_is_needed() {
    assert_eq!(KnownChunks::default().memory(), 0);
    assert_eq!(ContentIndex::new(1 << 30).memory(), 0);
    let mut known = KnownChunks::default();
    known.insert_tag(1 << 60);
    assert!(known.memory() <= FIRST_SLOTS * 8);
    assert!(!known.contains(&ChunkId::ZERO));
}

#[test]
fn a_full_set_keeps_what_it_has_and_its_memory() {
    let max_bytes = 1 << 20;
    let mut known = KnownChunks::new(max_bytes);
    let seed = 0xded0;
    println!("seed {seed}");
    let mut dice = Dice::new(seed);
    let mut taken = Vec::new();
    for _ in 0..150_000 {
        let tag = dice.roll();
        if known.insert_tag(tag) == Inserted::New {
            taken.push(tag);
        }
        assert!(known.memory() <= max_bytes);
    }
    assert!(taken.iter().all(|tag| known.contains_tag(*tag)));
    assert_eq!(known.len(), taken.len());
    assert_eq!(known.refused(), 150_000 - taken.len() as u64);
    assert!(taken.len() > max_bytes / 8 * 68 / 100, "only {} tags fit", taken.len());
}

#[test]
fn a_full_index_costs_sixteen_bytes_an_entry() {
    let max_bytes = 1 << 20;
    let mut index = ContentIndex::new(max_bytes);
    let mut dice = Dice::new(0xded1);
    for n in 0..100_000 {
        index.insert(&id(dice.roll()), place(u16::try_from(n % 16_384).unwrap(), n << 17));
    }
    assert!(index.memory() <= max_bytes);
    assert!(index.memory() <= index.len() * 162 / 10, "{} bytes for {}", index.memory(), index.len());
}

#[test]
fn tags_that_were_made_to_collide_cost_bounded_time_and_stay_out() {
    let mut known = KnownChunks::new(1 << 20);
    let taken = (1..20_000).filter(|n| known.insert_tag(*n) == Inserted::New).count();
    assert!(taken <= MAX_PROBE, "{taken}");
    assert_eq!(known.len(), taken);
    assert!(known.memory() <= 1 << 20);
}

#[test]
fn places_outside_the_limits_are_not_stored() {
    assert_eq!(VolumeSlot::new(VolumeSlot::COUNT), None);
    let mut index = ContentIndex::new(1 << 20);
    assert_eq!(index.insert(&id(9), place(16_383, 1 << 34)), Inserted::Full);
    assert_eq!(index.insert(&id(9), place(16_383, (1 << 34) - 1)), Inserted::New);
    assert_eq!(index.candidates(&id(9)).collect::<Vec<_>>(), [place(16_383, (1 << 34) - 1)]);
    index.insert(&ChunkId::ZERO, place(0, 0));
    assert_eq!(index.candidates(&ChunkId::ZERO).count(), 0);
}
