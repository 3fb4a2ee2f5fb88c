use proptest::prelude::*;
use volume::Kind;

use super::*;

fn map(size: u64) -> DirtyMap {
    DirtyMap::new(ByteLen(size), PAGE).unwrap()
}

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange { start, end }
}

#[test]
fn a_range_marks_every_grain_that_it_touches() {
    let mut map = map(10 * PAGE + 1);
    assert!(map.is_clean() && map.next_dirty(ByteOffset(0)).is_none() && map.dirty_bytes() == 0);
    map.mark(range(PAGE - 1, PAGE + 1));
    map.mark(range(5 * PAGE, 5 * PAGE));
    map.mark(range(10 * PAGE, u64::MAX));
    map.mark(range(u64::MAX - 1, u64::MAX));
    let expected = [range(0, 2 * PAGE), range(10 * PAGE, 10 * PAGE + 1)];
    assert_eq!(map.ranges().collect::<Vec<_>>(), expected);
    assert_eq!(map.dirty_bytes(), 2 * PAGE + 1);
    assert_eq!(map.next_dirty(ByteOffset(7)), Some(range(7, 2 * PAGE)), "from inside a run");
    assert!(map.is_dirty(ByteOffset(10 * PAGE)) && !map.is_dirty(ByteOffset(10 * PAGE + 1)));
}

#[test]
fn the_grain_grows_so_that_the_map_stays_bounded() {
    let largest = DirtyMap::new(ByteLen(MAX_VOLUME), PAGE).unwrap();
    assert_eq!((largest.grain(), largest.words.len() as u64), (256 << 10, MAX_GRAINS / 64));
    assert_eq!(DirtyMap::new(ByteLen(0), CHUNK).unwrap().ranges().count(), 0);
    for (size, grain) in [(MAX_VOLUME + 1, CHUNK), (1, 0), (1, 512), (1, CHUNK + 1), (1, 1 << 63)] {
        let error = DirtyMap::new(ByteLen(size), grain).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
    }
}

#[test]
fn maps_of_different_grains_join() {
    let mut coarse = DirtyMap::new(ByteLen(1 << 20), CHUNK).unwrap();
    let mut fine = map(1 << 20);
    fine.mark(range(CHUNK + PAGE, CHUNK + 2 * PAGE));
    coarse.mark(range(0, 1));
    coarse.join(&fine);
    assert_eq!(coarse.ranges().collect::<Vec<_>>(), [range(0, 2 * CHUNK)]);
}

proptest! {
    #[test]
    fn agrees_with_a_map_of_bools(
        grains in 1_u64..300,
        tail in 0..PAGE,
        marks in prop::collection::vec((0_u64..310 * PAGE, 0_u64..150 * PAGE), 0..6),
    ) {
        let size = grains * PAGE - tail;
        let mut map = map(size);
        let mut model = vec![false; usize::try_from(grains).unwrap()];
        for (start, length) in marks {
            map.mark(range(start, start + length));
            for (grain, dirty) in (0_u64..).zip(model.iter_mut()) {
                let (from, to) = (grain * PAGE, (grain + 1) * PAGE);
                *dirty |= length > 0 && start < to.min(size) && start + length > from;
            }
        }
        let mut shown = vec![false; model.len()];
        let mut before = None;
        let mut bytes = 0;
        for range in map.ranges() {
            prop_assert!(range.start < range.end && range.end <= size && before.is_none_or(|b| b < range.start));
            before = Some(range.end);
            bytes += range.len();
            let place = range.start / PAGE..range.end.div_ceil(PAGE);
            shown[usize::try_from(place.start).unwrap()..usize::try_from(place.end).unwrap()].fill(true);
        }
        prop_assert_eq!(&shown, &model);
        prop_assert_eq!(bytes, map.dirty_bytes());
        prop_assert_eq!(map.is_clean(), !model.contains(&true));
    }
}
