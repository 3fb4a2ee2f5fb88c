use super::*;

fn offer(min: u16, max: u16, features: u64) -> Prelude {
    Prelude { min, max, features }
}

#[test]
fn ours_is_a_range_that_decodes() {
    let ours = Prelude::ours();
    assert!(ours.min <= ours.max && ours.min > 0);
    assert!(ours.max - ours.min <= 1, "a build speaks its own version and the one before");
    assert_eq!(Prelude::decode(&ours.encode()), Ok(ours));
}

#[test]
fn the_alpn_name_carries_the_version() {
    assert_eq!(crate::ALPN, format!("novaferry/{}", crate::VERSION).as_bytes());
}

#[test]
fn negotiation_takes_the_newest_common_version() {
    // Ours, theirs, and the version of the answer.
    let table = [
        ((1, 1), (1, 1), Some(1)),
        ((1, 1), (1, 2), Some(1)),
        ((1, 2), (1, 2), Some(2)),
        ((1, 2), (2, 3), Some(2)),
        ((2, 3), (1, 2), Some(2)),
        ((2, 3), (1, 9), Some(3)),
        ((1, 1), (2, 2), None),
        ((2, 3), (1, 1), None),
        ((2, 3), (4, 5), None),
        ((1, 1), (0, 0), None),
        ((0, 0), (0, 0), None),
        ((0, 1), (0, 1), Some(1)),
        ((1, u16::MAX), (u16::MAX, u16::MAX), Some(u16::MAX)),
    ];
    for (ours, theirs, expected) in table {
        let answer = negotiate(&offer(ours.0, ours.1, 0), &offer(theirs.0, theirs.1, 0));
        let expected = expected.map(|version| offer(version, version, 0)).ok_or({
            DecodeError::NoCommonVersion {
                theirs_min: theirs.0,
                theirs_max: theirs.1,
                ours_min: ours.0,
                ours_max: ours.1,
            }
        });
        assert_eq!(answer, expected, "{ours:?} with {theirs:?}");
    }
}

#[test]
fn negotiation_keeps_the_common_features_only() {
    let answer = negotiate(&offer(1, 1, 0b0110), &offer(1, 1, 0b0011 | 1 << 63)).unwrap();
    assert_eq!(answer.features, 0b0010);
}

#[test]
fn a_range_backwards_is_refused() {
    let bytes = offer(3, 2, 0).encode();
    let error = DecodeError::Invalid { field: "prelude version range", value: 3 };
    assert_eq!(Prelude::decode(&bytes), Err(error));
}

#[test]
fn another_protocol_is_told_apart() {
    let mut bytes = [0; PRELUDE];
    bytes[..18].copy_from_slice(b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!(Prelude::decode(&bytes), Err(DecodeError::BadMagic));
    let mut newer = Prelude::ours().encode();
    newer[8] = PRELUDE_VERSION + 1;
    assert_eq!(Prelude::decode(&newer), Err(DecodeError::PreludeVersion(2)));
}
