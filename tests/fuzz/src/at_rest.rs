//! Targets of what `engine` and `reduce` keep on disk, and of receipts.

use engine::journal::{self, Entry, HEADER_LEN};
use engine::receipt::Receipt;
use engine::target::meta::Meta;
use reduce::leaf_table;

/// A journal. What was replayed is written again and must be the very bytes that were believed.
pub fn journal_replay(data: &[u8]) {
    let mut entries = Vec::new();
    let replayed = journal::replay(data, |entry| entries.push(entry)).expect("reading memory does not fail");
    let Some(journal::Replay { header, end }) = replayed else {
        assert!(entries.is_empty(), "nothing counts without a header");
        return;
    };
    let mut written = header.encode().to_vec();
    let mut chain = header.chain();
    for entry in &entries {
        chain = match entry {
            Entry::Settled(change) => journal::encode_change(change, chain, &mut written),
            Entry::Dirty { first, count } => journal::encode_dirty(*first, *count, chain, &mut written),
        };
    }
    assert_eq!(written.len() as u64, end.len, "the replay ends with the last whole record");
    assert_eq!(written, data[..written.len()], "a record is written back as it was read");
    assert_eq!(chain, end.chain, "the next record is chained to the last one");
    assert_eq!(end.torn, written.len() < data.len(), "bytes that were not believed are called torn");
}

/// The same, with the checksums made right, so that the fields behind them are reached.
pub fn journal_fields(data: &[u8]) {
    let mut bytes = data.to_vec();
    if let Some(header) = bytes.first_chunk_mut::<HEADER_LEN>() {
        header[..8].copy_from_slice(b"NFJOURNL");
        let checksum = xxhash_rust::xxh3::xxh3_64(&header[..56]);
        header[56..].copy_from_slice(&checksum.to_le_bytes());
        let mut chain = checksum;
        let mut at = HEADER_LEN;
        while bytes.len() - at >= 24 {
            let body = 24 + 32 * usize::from(bytes[at + 1]);
            let Some(record) = bytes.get_mut(at..at + body + 8) else { break };
            chain = xxhash_rust::xxh3::xxh3_64_with_seed(&record[..body], chain);
            record[body..].copy_from_slice(&chain.to_le_bytes());
            at += body + 8;
        }
    }
    journal_replay(&bytes);
}

/// The header of a leaf table (128 bytes), then ids.
pub fn leaf_table(data: &[u8]) {
    let Some((header, ids)) = data.split_first_chunk::<{ leaf_table::HEADER_LEN }>() else { return };
    let mut fixed = *header;
    let checksum = xxhash_rust::xxh3::xxh3_64(&fixed[..120]);
    fixed[120..].copy_from_slice(&checksum.to_le_bytes());
    for header in [header, &fixed] {
        if let Ok(read) = leaf_table::HeaderV1::decode(header) {
            assert_eq!(read.encode(), *header, "a header is written back as it was read");
            assert!(read.size.0 <= volume::MAX_VOLUME, "the size is capped");
        }
    }
    if let Ok(read) = leaf_table::decode_ids(ids) {
        let read: Vec<volume::ChunkId> = read.collect();
        let mut written = vec![0; ids.len()];
        leaf_table::encode_ids(&read, &mut written).expect("the length fits");
        assert_eq!(written, ids, "ids are written back as they were read");
    }
}

/// A receipt.
pub fn receipt(data: &[u8]) {
    let Ok(receipt) = Receipt::parse(data) else { return };
    assert_eq!(Receipt::parse(&receipt.to_json()).ok().as_ref(), Some(&receipt), "a receipt is read back");
    // No key that the input could know: a signature that verifies under one was forged.
    let first = data.first().copied().unwrap_or_default();
    assert!(!receipt.verify_signature(&[first; 32]), "a signature under an arbitrary key");
    assert!(!receipt.verify_signature(&crate::seeds::STRANGER), "a signature under a stranger's key");
    let signed = receipt.body.signed_text();
    assert_eq!(signed.lines().count(), 13, "no value forges a line of what is signed");
}

/// The metadata of a volume.
pub fn volume_meta(data: &[u8]) {
    let Ok(meta) = Meta::parse(data) else { return };
    assert!(!meta.format.as_str().is_empty());
    assert_eq!(Meta::parse(&meta.to_json()), Ok(meta), "metadata is read back");
}
