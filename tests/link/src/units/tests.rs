use std::time::Duration;

use proptest::prelude::{any, proptest};

use super::{BitRate, Probability, parse_bytes, parse_duration, unit_interval};

#[test]
fn rates_are_read_and_printed() {
    for (text, bits) in
        [("200mbit", 200_000_000), ("2.5gbit", 2_500_000_000), ("64kbit", 64_000), ("800bit", 800)]
    {
        assert_eq!(text.parse::<BitRate>().unwrap().get(), bits, "{text}");
    }
    assert_eq!(BitRate::new(2_500_000_000).unwrap().to_string(), "2500mbit");
    for text in ["", "0mbit", "-1mbit", "fast", "10", "mbit", "nanmbit", "1e30gbit"] {
        let error = text.parse::<BitRate>().unwrap_err();
        assert!(error.to_string().contains("200mbit"), "{text}: {error}");
    }
    assert!(BitRate::megabits(u64::MAX).is_err());
}

#[test]
fn probabilities_are_read() {
    for (text, value) in [("1%", 0.01), ("0.05", 0.05), ("0", 0.0), ("100%", 1.0), ("1", 1.0)] {
        assert!((text.parse::<Probability>().unwrap().get() - value).abs() < 1e-12, "{text}");
    }
    for text in ["101%", "-1%", "nan", "", "%", "2"] {
        assert!(text.parse::<Probability>().is_err(), "{text}");
    }
}

#[test]
fn times_and_sizes_are_read() {
    assert_eq!(parse_duration("25ms").unwrap(), Duration::from_millis(25));
    assert_eq!(parse_duration("1.5s").unwrap(), Duration::from_millis(1500));
    assert_eq!(parse_duration("100us").unwrap(), Duration::from_micros(100));
    assert_eq!(parse_duration("0").unwrap(), Duration::ZERO);
    assert!(parse_duration("25").is_err());
    assert!(parse_duration("-1ms").is_err());
    assert_eq!(parse_bytes("64kb"), Some(64_000));
    assert_eq!(parse_bytes("64"), None);
}

#[test]
fn zero_never_hits_and_one_always_does() {
    for draw in [0, 1, u64::MAX / 2, u64::MAX] {
        assert!(!Probability::NEVER.hit(draw));
        assert!(Probability::ALWAYS.hit(draw));
    }
}

proptest! {
    #[test]
    fn the_unit_interval_is_half_open(draw in any::<u64>()) {
        assert!((0.0..1.0).contains(&unit_interval(draw)));
    }

    #[test]
    fn a_printed_rate_reads_back(bits in 1..1_u64 << 50) {
        let rate = BitRate::new(bits).unwrap();
        assert_eq!(rate.to_string().parse::<BitRate>().unwrap(), rate);
    }
}
