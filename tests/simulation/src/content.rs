//! Volumes whose chunks are few and known, so that thousands of states a second can be compared byte by byte.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{LazyLock, Mutex, PoisonError};

use reduce::{HashKey, Root, RootBuilder, chunk_id};
use volume::conformance::Dice;
use volume::{ByteLen, CHUNK, ChunkId, ExtentIndex};

/// Length of a chunk in memory.
pub const CHUNK_LEN: usize = 64 << 10;
const PAGE_LEN: usize = 4 << 10;

/// The content of one chunk: 0 is zeros; the others are noise, of which those that are equal modulo 16 differ in one page.
pub type Pattern = u8;

static PATTERNS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    (0_u8..32)
        .map(|pattern| {
            let mut bytes = vec![0; CHUNK_LEN];
            if pattern > 0 {
                Dice::new(u64::from(pattern % 16)).fill(&mut bytes);
            }
            if pattern >= 16 {
                Dice::new(u64::from(pattern)).fill(&mut bytes[3 * PAGE_LEN..4 * PAGE_LEN]);
            }
            bytes
        })
        .collect()
});

/// Ids by pattern and length; the other way round too.
static IDS: LazyLock<Mutex<HashMap<(Pattern, usize), ChunkId>>> = LazyLock::new(Mutex::default);
static NAMED: LazyLock<Mutex<HashMap<(ChunkId, usize), Pattern>>> = LazyLock::new(Mutex::default);

/// The key of all ids here.
#[must_use]
pub fn key() -> HashKey {
    HashKey::from_bytes([7; 32])
}

/// The bytes of a pattern, cut to `len`.
#[must_use]
pub fn bytes(pattern: Pattern, len: usize) -> &'static [u8] {
    &PATTERNS[usize::from(pattern)][..len]
}

fn id(pattern: Pattern, len: usize) -> ChunkId {
    let mut ids = IDS.lock().unwrap_or_else(PoisonError::into_inner);
    *ids.entry((pattern, len)).or_insert_with(|| {
        let id = chunk_id(&key(), bytes(pattern, len));
        NAMED.lock().unwrap_or_else(PoisonError::into_inner).insert((id, len), pattern);
        id
    })
}

/// True when these bytes are what the id names. Ids that no [`Volume`] has had name nothing.
#[must_use]
pub fn is_named(id: ChunkId, found: &[u8]) -> bool {
    if id == ChunkId::ZERO {
        return reduce::is_zero(found);
    }
    let pattern = NAMED.lock().unwrap_or_else(PoisonError::into_inner).get(&(id, found.len())).copied();
    pattern.is_some_and(|pattern| bytes(pattern, found.len()) == found)
}

/// A volume by the patterns of its chunks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Volume {
    size: ByteLen,
    chunks: Vec<Pattern>,
}

/// A number that fits memory.
pub(crate) fn small(n: u64) -> usize {
    usize::try_from(n).expect("simulated volumes fit memory")
}

impl Volume {
    /// A volume of `size` with these chunks; those that are missing are zero.
    #[must_use]
    pub fn new(size: ByteLen, chunks: &[Pattern]) -> Self {
        let mut chunks = chunks.to_vec();
        chunks.resize(small(size.chunks()), 0);
        Self { size, chunks }
    }

    /// Length.
    #[must_use]
    pub fn size(&self) -> ByteLen {
        self.size
    }

    /// All its bytes.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut all = vec![0; small(self.size.0)];
        for (place, pattern) in
            all.chunks_mut(CHUNK_LEN).zip(&self.chunks).filter(|(_, pattern)| **pattern != 0)
        {
            place.copy_from_slice(bytes(*pattern, place.len()));
        }
        all
    }

    /// Numbers of the chunks of an extent.
    #[must_use]
    pub fn chunks_of(&self, extent: u64) -> Range<usize> {
        let first = small(extent) * 16;
        first..(first + 16).min(self.chunks.len())
    }

    /// Length of a chunk; only the last one may be short.
    #[must_use]
    pub fn chunk_len(&self, chunk: usize) -> usize {
        small((self.size.0 - chunk as u64 * CHUNK).min(CHUNK))
    }

    /// The pattern of a chunk.
    #[must_use]
    pub fn pattern(&self, chunk: usize) -> Pattern {
        self.chunks[chunk]
    }

    /// The ids of an extent.
    #[must_use]
    pub fn ids(&self, extent: u64) -> Vec<ChunkId> {
        self.chunks_of(extent).map(|chunk| id(self.chunks[chunk], self.chunk_len(chunk))).collect()
    }

    /// True when the extent holds only zeros.
    #[must_use]
    pub fn is_zero(&self, extent: u64) -> bool {
        self.chunks[self.chunks_of(extent)].iter().all(|pattern| *pattern == 0)
    }

    /// The root of its content.
    ///
    /// # Panics
    /// Never: ids and size fit each other.
    #[must_use]
    pub fn root(&self) -> Root {
        root_of(self.size, |extent| self.ids(extent))
    }
}

/// The root of a table of ids.
///
/// # Panics
/// When the table does not fit the size.
pub fn root_of(size: ByteLen, mut ids: impl FnMut(u64) -> Vec<ChunkId>) -> Root {
    let mut builder = RootBuilder::new(&key(), size).expect("a small volume");
    (0..size.extents())
        .for_each(|extent| builder.push_extent(&ids(extent)).expect("ids of the whole extent"));
    builder.finish().expect("every extent was given")
}

/// What a whole volume's bytes are called, as a read-back computes it.
#[must_use]
pub fn ids_of(size: ByteLen, found: &[u8]) -> Vec<ChunkId> {
    debug_assert_eq!(found.len() as u64, size.0);
    found.chunks(CHUNK_LEN).map(|chunk| chunk_id(&key(), chunk)).collect()
}

/// A random volume of up to `most` whole extents and a short one, mostly zeros.
#[must_use]
pub fn random(dice: &mut Dice, most: u64) -> Volume {
    let tail = [1, 512, 4096, 5000, CHUNK, CHUNK + 100][small(dice.below(6))];
    let size = ByteLen(dice.below(most + 1) * volume::EXTENT + tail);
    let mut chunks = vec![0; small(size.chunks())];
    for extent in 0..size.extents() {
        let range = small(extent) * 16..(small(extent) * 16 + 16).min(chunks.len());
        for _ in 0..dice.below(4) {
            let at = range.start + small(dice.below(range.len() as u64));
            chunks[at] = 1 + u8::try_from(dice.below(12)).expect("below 12");
        }
    }
    Volume { size, chunks }
}

/// The volume before some of its chunks changed.
#[must_use]
pub fn older(dice: &mut Dice, of: &Volume) -> Volume {
    let mut old = of.clone();
    for _ in 0..=dice.below(4) {
        let at = small(dice.below(old.chunks.len() as u64));
        old.chunks[at] = match dice.below(3) {
            0 => 0,
            1 if old.chunks[at] > 0 => (old.chunks[at] % 16) + 16,
            _ => 1 + u8::try_from(dice.below(12)).expect("below 12"),
        };
    }
    old
}

/// First extent at or after `from` that is not all zero, and the first zero one after it.
pub(crate) fn next_data(of: &Volume, from: u64) -> Option<volume::ByteRange> {
    let extents = of.size.extents();
    let start = (from..extents).find(|extent| !of.is_zero(*extent))?;
    let end = (start..extents).find(|extent| of.is_zero(*extent)).unwrap_or(extents);
    Some(volume::ByteRange {
        start: ExtentIndex(start).offset().0,
        end: ExtentIndex(end).offset().0.min(of.size.0),
    })
}
