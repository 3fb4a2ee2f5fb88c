//! Which part of an operation can go direct.

use crate::probe::Alignment;

/// Bytes from the start of an operation that direct I/O can take: all whole blocks, if place and memory are aligned.
pub(super) fn direct_part(alignment: Alignment, at: u64, memory: *const u8, len: usize) -> usize {
    let block = usize::try_from(alignment.offset).unwrap_or(usize::MAX);
    if !at.is_multiple_of(alignment.offset) || !memory.addr().is_multiple_of(alignment.memory) {
        return 0;
    }
    len - len % block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_blocks_go_direct_and_the_rest_does_not() {
        let alignment = Alignment { memory: 4, offset: 512 };
        let aligned = std::ptr::without_provenance(4096);
        let odd = std::ptr::without_provenance(4097);
        for (at, memory, len, expected) in [
            (0, aligned, 0, 0),
            (0, aligned, 511, 0),
            (0, aligned, 512, 512),
            (512, aligned, 1537, 1536),
            (1, aligned, 4096, 0),
            (0, odd, 4096, 0),
        ] {
            assert_eq!(direct_part(alignment, at, memory, len), expected, "{len} bytes at {at}");
        }
    }
}
