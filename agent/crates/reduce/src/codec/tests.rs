use super::*;
use crate::error::Kind;
use proptest::prelude::*;
use volume::conformance::Dice;

/// Content like that of a disk: runs of text, binary tables and noise.
fn mixed(len: usize, seed: u64) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    let words: Vec<Vec<u8>> = (0..64).map(|n| vec![u8::try_from(97 + n % 26).unwrap(); n % 9 + 1]).collect();
    let mut data = Vec::with_capacity(len + 64);
    while data.len() < len {
        if dice.below(20) == 0 {
            let mut noise = [0; 32];
            dice.fill(&mut noise);
            data.extend_from_slice(&noise);
        } else {
            let word = usize::try_from(dice.below(64)).unwrap();
            data.extend_from_slice(&words[word]);
        }
    }
    data.truncate(len);
    data
}

fn frame_of(level: i32, data: &[u8]) -> Vec<u8> {
    let mut out = vec![0; data.len()];
    let outcome = Compressor::new().unwrap().compress(level, &[data], &mut out).unwrap();
    let Outcome::Compressed(len) = outcome else { panic!("test data must compress") };
    out.truncate(len);
    out
}

fn decompress(frame: &[u8], plain: usize) -> Result<Vec<u8>, crate::ReduceError> {
    let mut out = vec![0; plain];
    Decompressor::new()?.decompress(frame, &mut [&mut out])?;
    Ok(out)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn batches_come_back_whatever_the_segments(
        len in 1_usize..=300_000, seed in any::<u64>(), level in -5..=9, cuts in proptest::collection::vec(any::<u32>(), 0..5)
    ) {
        let data = mixed(len, seed);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| usize::try_from(*cut).unwrap() % (len + 1)).collect();
        cuts.extend([0, len]);
        cuts.sort_unstable();
        let segments: Vec<&[u8]> = cuts.windows(2).map(|pair| &data[pair[0]..pair[1]]).collect();
        let mut out = vec![0xee; len];
        match Compressor::new().unwrap().compress(level, &segments, &mut out).unwrap() {
            Outcome::DoesNotPay => {}
            Outcome::Compressed(n) => {
                prop_assert!(n * 100 <= len * 97);
                let mut back = vec![0; len];
                let mut rest = &mut back[..];
                let mut parts = Vec::new();
                for pair in cuts.windows(2) {
                    let (part, tail) = rest.split_at_mut(pair[1] - pair[0]);
                    parts.push(part);
                    rest = tail;
                }
                Decompressor::new().unwrap().decompress(&out[..n], &mut parts).unwrap();
                prop_assert!(back == data);
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000), plain in 0_usize..4000) {
        let mut bytes = bytes;
        let _result = decompress(&bytes, plain);
        if bytes.len() > 4 {
            bytes[..4].copy_from_slice(&[0x28, 0xb5, 0x2f, 0xfd]);
            let _result = decompress(&bytes, plain);
            bytes[4] &= 0b1110_0100;
            let _result = decompress(&bytes, plain.max(bytes.len()));
        }
    }
}

#[test]
fn one_context_serves_many_batches_and_levels() {
    let mut compressor = Compressor::new().unwrap();
    let mut decompressor = Decompressor::new().unwrap();
    let mut out = vec![0; MAX_BATCH];
    for (seed, level) in (0..).zip((-5..=9).chain((-5..=9).rev())) {
        let data = mixed(if seed % 2 == 0 { MAX_BATCH } else { 70_001 }, seed);
        let Outcome::Compressed(len) = compressor.compress(level, &[&data], &mut out).unwrap() else {
            panic!("level {level} pays on text")
        };
        let mut back = vec![0; data.len()];
        // A failure in between must not spoil the context.
        assert!(decompressor.decompress(&out[..len - 1], &mut [&mut back]).is_err());
        decompressor.decompress(&out[..len], &mut [&mut back]).unwrap();
        assert!(back == data, "level {level}");
    }
    assert!(compressor.memory() < 24 << 20, "{} bytes", compressor.memory());
    assert!(decompressor.memory() < 2 << 20, "{} bytes", decompressor.memory());
}

#[test]
fn random_bytes_do_not_pay_and_stay_inside_the_output() {
    let mut data = vec![0; MAX_BATCH];
    Dice::new(1).fill(&mut data);
    let mut compressor = Compressor::new().unwrap();
    for level in LEVELS {
        let mut out = vec![0xa5; MAX_BATCH];
        assert_eq!(compressor.compress(level, &[&data], &mut out).unwrap(), Outcome::DoesNotPay);
        assert!(out[MAX_BATCH * 97 / 100..].iter().all(|byte| *byte == 0xa5), "level {level}");
    }
    let mut small = [0xa5; 300];
    let text = mixed(200_000, 2);
    assert_eq!(compressor.compress(1, &[&text], &mut small[..200]).unwrap(), Outcome::DoesNotPay);
    assert_eq!(small[200..], [0xa5; 100]);
    assert_eq!(compressor.compress(1, &[], &mut small).unwrap(), Outcome::DoesNotPay);
}

#[test]
fn levels_and_sizes_outside_the_limits_are_refused() {
    let mut compressor = Compressor::new().unwrap();
    for level in [-6, 10, i32::MIN, i32::MAX] {
        assert_eq!(
            compressor.compress(level, &[&[0; 64]], &mut [0; 64]).unwrap_err().kind(),
            Kind::WrongLength
        );
    }
    let big = vec![0; MAX_BATCH + 1];
    assert_eq!(compressor.compress(1, &[&big], &mut [0; 64]).unwrap_err().kind(), Kind::WrongLength);
    assert_eq!(decompress(&[0; 10], MAX_BATCH + 1).unwrap_err().kind(), Kind::WrongLength);
}

#[test]
fn lying_lengths_are_refused() {
    let data = mixed(100_000, 3);
    let frame = frame_of(1, &data);
    assert_eq!(decompress(&frame, data.len()).unwrap(), data);
    for plain in [data.len() - 1, data.len() + 1, frame.len(), MAX_BATCH] {
        assert_eq!(decompress(&frame, plain).unwrap_err().kind(), Kind::WrongLength, "{plain}");
    }
    for cut in [1, 4, 5, 6, frame.len() / 2, frame.len() - 1] {
        assert!(decompress(&frame[..cut], data.len()).is_err(), "cut at {cut}");
    }
}

#[test]
fn only_one_plain_frame_is_accepted() {
    let data = mixed(50_000, 4);
    let frame = frame_of(3, &data);
    let refused = |bytes: &[u8], plain| decompress(bytes, plain).unwrap_err().kind();
    // Trailing byte; two frames; a skippable frame before or after; an empty frame after.
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9];
    let empty = [0x28, 0xb5, 0x2f, 0xfd, 0x20, 0, 1, 0, 0];
    assert_eq!(refused(&[&frame[..], &[0]].concat(), data.len()), Kind::Refused);
    assert_eq!(refused(&[&frame[..], &frame].concat(), data.len()), Kind::Refused);
    assert_eq!(refused(&[&frame[..], &frame].concat(), 2 * data.len()), Kind::WrongLength);
    assert_eq!(refused(&[&frame[..], &skippable].concat(), data.len()), Kind::Refused);
    assert_eq!(refused(&[&skippable[..], &frame].concat(), data.len()), Kind::Refused);
    assert_eq!(refused(&[&frame[..], &empty].concat(), data.len()), Kind::Refused);
    // Dictionary flag, reserved bits, window of 2 MiB, magic of zstd 0.7.
    for descriptor in [1, 2, 3, 0x08, 0x10] {
        let mut bytes = frame.clone();
        bytes[4] |= descriptor;
        assert_eq!(refused(&bytes, data.len()), Kind::Refused, "descriptor {descriptor:#x}");
    }
    let mut bytes = frame.clone();
    bytes[5] = 11 << 3;
    assert_eq!(refused(&bytes, data.len()), Kind::Refused);
    let mut bytes = frame.clone();
    bytes[0] = 0x27;
    assert_eq!(refused(&bytes, data.len()), Kind::Refused);
}

/// A frame without content size and `count` RLE blocks of 128 KiB: 4 bytes each.
fn bomb(count: usize, header: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd];
    frame.extend_from_slice(header);
    for n in 0..count {
        let block = (128_u32 << 10) << 3 | 1 << 1 | u32::from(n + 1 == count);
        frame.extend_from_slice(&block.to_le_bytes()[..3]);
        frame.push(b'x');
    }
    frame
}

/// Bytes behind the output that must stay as they are.
const GUARD: usize = 64;

#[test]
fn ten_thousand_bombs_are_refused_in_bounded_memory() {
    let seed = 0xb0b;
    println!("seed {seed}");
    let mut dice = Dice::new(seed);
    let mut decompressor = Decompressor::new().unwrap();
    let window_128k = [0_u8, 7 << 3];
    let window_1m = [0_u8, 10 << 3];
    // A 1 KiB frame that claims 1 GiB and one that decodes to 32 MiB; 32 KiB that decode to 1 GiB.
    let claims: Vec<u8> = [&[0xa0][..], &(1_u32 << 30).to_le_bytes()].concat();
    let fixed = [bomb(250, &claims), bomb(250, &window_1m), bomb(8192, &window_1m), bomb(8192, &window_128k)];
    let text = frame_of(1, &mixed(60_000, 5));
    let mut out = vec![0; MAX_BATCH + GUARD];
    for round in 0..10_000_usize {
        let mut frame = match round % 4 {
            0 => fixed[round / 4 % fixed.len()].clone(),
            1 => {
                let count = usize::try_from(dice.below(300) + 10).unwrap();
                bomb(count, if dice.below(2) == 0 { &window_128k } else { &window_1m })
            }
            // Random claims of the content size and window.
            2 => {
                let claim = dice.roll();
                let header =
                    [&[0xc0 | u8::try_from(dice.below(2) << 5).unwrap()][..], &claim.to_le_bytes()].concat();
                bomb(20, &header)
            }
            _ => text.clone(),
        };
        // One or two flipped bits behind the magic in most of them.
        for _ in 0..dice.below(3) {
            let at = 4 + usize::try_from(dice.below(frame.len() as u64 - 4)).unwrap();
            frame[at] ^= 1 << dice.below(8);
        }
        // Never exactly what the frame holds, but room for the frame itself.
        let plain = frame.len().max(usize::try_from(dice.below(MAX_BATCH as u64)).unwrap()) | 1;
        out[plain..plain + GUARD].fill(0xa5);
        let error = decompressor.decompress(&frame, &mut [&mut out[..plain]]);
        assert!(error.is_err(), "seed {seed} round {round}");
        assert!(out[plain..plain + GUARD] == [0xa5; GUARD], "seed {seed} round {round}: wrote past the end");
        assert!(decompressor.memory() < 2 << 20, "seed {seed} round {round}: {}", decompressor.memory());
    }
}
