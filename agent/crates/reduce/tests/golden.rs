//! Frozen vectors: ids, roots and headers that were written once must be read for ever. Never edit a value here; a
//! change of any of them is a change of format and needs a new version beside the old one.

use novaferry_reduce::leaf_table::HeaderV1;
use novaferry_reduce::{HashKey, PageSums, RootBuilder, SumSeed, chunk_id, extent_ids};
use volume::{ByteLen, CHUNK, ChunkId, EXTENT, Generation};

fn key() -> HashKey {
    HashKey::from_bytes(std::array::from_fn(|n| u8::try_from(n).expect("below 32")))
}

/// Byte n of the content is n mod 251.
fn content(len: u64) -> Vec<u8> {
    (0..len).map(|n| u8::try_from(n % 251).expect("below 251")).collect()
}

#[test]
fn key_ids() {
    assert_eq!(key().id().to_string(), "04b239a949d4b552447b272ed44180cb");
    assert_eq!(HashKey::generate([0x5a; 32]).id().to_string(), "76dae23e280e11ee0b0e207094e39d69");
}

#[test]
fn chunk_ids() {
    assert_eq!(
        chunk_id(&key(), b"a").to_string(),
        "538b8f2a2b1a04a5d427e97de10674bb33364a790dc6452700a72cdcd695299d"
    );
    assert_eq!(
        chunk_id(&key(), &content(CHUNK)).to_string(),
        "ca2a089711002f4987989e5fab9c11ca9940e94ee258ea062d2bcb402de11ca9"
    );
    assert_eq!(chunk_id(&key(), &[0; 4096]), ChunkId::ZERO);
}

#[test]
fn roots() {
    let empty = RootBuilder::new(&key(), ByteLen(0)).expect("allowed size").finish().expect("complete");
    assert_eq!(empty.to_string(), "e779fc637cdea9fe31a202d238e08a2eaf64853390dbd68fbe34e74fd4dd29c5");
    // Content, then four zero extents, then a short extent of one chunk and 512 bytes.
    let size = 5 * EXTENT + CHUNK + 512;
    let mut builder = RootBuilder::new(&key(), ByteLen(size)).expect("allowed size");
    builder.push_extent(&extent_ids(&key(), &[&content(EXTENT)]).expect("one extent")).expect("in range");
    builder.push_zero_extents(4).expect("in range");
    builder.push_extent(&extent_ids(&key(), &[&content(CHUNK + 512)]).expect("short")).expect("in range");
    assert_eq!(
        builder.finish().expect("complete").to_string(),
        "4bb3e3747e6d84ad1f7d8bb2cc09c497accd66718bd50dd9180f472fbcc42223"
    );
    // 1 TiB of zeros.
    let size = ByteLen(1 << 40);
    let mut builder = RootBuilder::new(&key(), size).expect("allowed size");
    builder.push_zero_extents(size.extents()).expect("in range");
    assert_eq!(
        builder.finish().expect("complete").to_string(),
        "2829c10d0b2be587716f59197122f54d5d59e74e5ce7f771bba75c06f5193170"
    );
}

#[test]
fn leaf_table_header() {
    let root = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff".parse().expect("a root");
    let header = HeaderV1 {
        size: ByteLen(5 * EXTENT + 512),
        key_id: key().id(),
        generation: Generation(0x0102_0304_0506_0708),
        root: Some(root),
    };
    let hex: String = header.encode().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        hex,
        "4e464c45415645530100010000000000000250000000000004b239a949d4b552447b272ed44180cb080706050403020100112233445566778899aabbccddeeff00112233445566778899aabbccddeeff00000000000000000000000000000000000000000000000000000000000000000000000000000000ad9fee45c1520499"
    );
}

#[test]
fn page_sums() {
    let sums = PageSums::of(SumSeed(0x1122_3344_5566_7788), &content(4096 + 100)).expect("within a chunk");
    assert_eq!(format!("{:016x?}", sums.as_slice()), "[4162b1f0f3fbb0b6, e53a9ce3abb2b193]");
}
