//! All-zero detection: the cheapest reduction and the first one tried.

/// A page of zeros to compare with. It stays in the first-level cache, so only the data costs memory bandwidth.
static ZEROS: [u8; ZERO_BLOCK] = [0; ZERO_BLOCK];

/// Bytes compared at once. Large enough that the call is free, small enough to stay in the first-level cache.
const ZERO_BLOCK: usize = 4096;

/// True when every byte is zero; true for no bytes at all.
///
/// Slice comparison ends in the platform's vectorised `memcmp`, which picks the widest registers of the processor at
/// run time and stops at the first difference: data that is not zero normally costs one cache line.
#[must_use]
pub fn is_zero(data: &[u8]) -> bool {
    data.chunks(ZERO_BLOCK).all(|block| *block == ZEROS[..block.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_anywhere_is_found() {
        for len in [1, 15, 64, 4095, 4096, 4097, 65_536] {
            let mut data = vec![0; len];
            assert!(is_zero(&data));
            for at in (0..len).step_by(len / 61 + 1).chain([len - 1]) {
                data[at] = 0x80;
                assert!(!is_zero(&data), "bit at {at} of {len}");
                data[at] = 0;
            }
        }
        assert!(is_zero(&[]));
    }

    #[test]
    fn unaligned_starts_are_no_different() {
        let mut data = vec![0; 3 * ZERO_BLOCK];
        data[0] = 1;
        for start in 1..130 {
            assert!(is_zero(&data[start..]));
        }
        assert!(!is_zero(&data));
    }
}
