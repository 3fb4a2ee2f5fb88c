//! `SplitMix64` (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014): numbers that do not
//! compress and that anybody computes again from the seed.

/// A stream of numbers that are a function of its seed.
#[derive(Clone, Debug)]
pub struct Stream(u64);

impl Stream {
    /// The stream of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
}

/// The finaliser of `SplitMix64`: numbers that differ in one bit give numbers that differ in about half of them.
#[must_use]
pub fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::Stream;

    #[test]
    fn it_is_splitmix64() {
        // The reference implementation's first numbers for seed 1234567.
        let mut stream = Stream::new(1_234_567);
        let first = [stream.next_word(), stream.next_word(), stream.next_word()];
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }
}
