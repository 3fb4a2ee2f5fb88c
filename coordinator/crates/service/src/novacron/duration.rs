//! Durations as Go writes them: whole nanoseconds, or texts such as `1h30m` and `2.5s`.

use serde_json::Value;

use crate::api::problem::Problem;

const NANOSECONDS_A_MILLISECOND: u64 = 1_000_000;
/// Units of texts and their nanoseconds; longer names first.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", NANOSECONDS_A_MILLISECOND),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];
/// Longest text that is looked at, bytes.
const MOST: usize = 64;

/// What a bare number counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Bare {
    /// Nanoseconds, as Go's `time.Duration` is encoded.
    Nanoseconds,
    /// Milliseconds, unless that would be more than a quarter of an hour: then nanoseconds. NovaCron's interface does not
    /// say which it means, and no pause is asked for that is shorter than a millisecond or longer than that.
    Milliseconds,
}

/// The nanoseconds of a text.
fn parse(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() || rest.len() > MOST {
        return None;
    }
    let mut sum = 0_u64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|end| *end > 0)?;
        let (number, after) = rest.split_at(end);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && part.is_empty() {
            return None;
        }
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        sum = sum.checked_add(whole.checked_mul(*factor)?)?;
        // Digit by digit: no rounding of what is exact.
        let mut worth = *factor;
        for digit in part.bytes() {
            let digit = u64::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?);
            sum = sum.checked_add(u64::try_from(u128::from(worth) * u128::from(digit) / 10).ok()?)?;
            worth /= 10;
        }
        rest = after;
    }
    Some(sum)
}

/// Milliseconds, rounded up; none for nothing or nought.
///
/// # Errors
/// When it is no duration.
pub(super) fn milliseconds(value: &Value, bare: Bare, name: &str) -> Result<Option<u64>, Problem> {
    let nanoseconds = match value {
        Value::Null => return Ok(None),
        Value::Number(number) => number.as_u64().map(|number| match bare {
            Bare::Milliseconds if number < NANOSECONDS_A_MILLISECOND => number * NANOSECONDS_A_MILLISECOND,
            _ => number,
        }),
        Value::String(text) if text.is_empty() => return Ok(None),
        Value::String(text) => parse(text),
        _ => None,
    };
    let nanoseconds = nanoseconds.ok_or_else(|| {
        Problem::invalid(format!("{name} is no duration; write one such as \"500ms\", or whole nanoseconds"))
    })?;
    Ok(Some(nanoseconds.div_ceil(NANOSECONDS_A_MILLISECOND)).filter(|milliseconds| *milliseconds > 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn texts_are_read_as_go_reads_them() {
        for (text, nanoseconds) in [
            ("5m", 300_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("2.5s", 2_500_000_000),
            ("1.5ms", 1_500_000),
            ("300us", 300_000),
            ("300µs", 300_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("0", 0),
            ("1s2ns", 1_000_000_002),
            ("+7ns", 7),
        ] {
            assert_eq!(parse(text), Some(nanoseconds), "{text}");
        }
        let long = "9".repeat(100);
        for text in ["", "5", "-5m", "m", "5x", "5 m", ".s", "1..2s", "9999999999h", "1.2.3s", &long, "½s"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn bare_numbers_count_what_their_surface_counts() {
        let ms = |value: Value, bare| milliseconds(&value, bare, "x").unwrap();
        assert_eq!(ms(json!(300_000_000), Bare::Nanoseconds), Some(300));
        assert_eq!(ms(json!(1), Bare::Nanoseconds), Some(1));
        assert_eq!(ms(json!(300), Bare::Milliseconds), Some(300));
        assert_eq!(ms(json!(300_000_000), Bare::Milliseconds), Some(300));
        assert_eq!(ms(json!("300ms"), Bare::Milliseconds), Some(300));
        for nothing in [json!(null), json!(0), json!(""), json!("0s")] {
            assert_eq!(ms(nothing, Bare::Nanoseconds), None);
        }
        for bad in [json!(-1), json!(1.5), json!("soon"), json!([]), json!(true)] {
            assert!(milliseconds(&bad, Bare::Nanoseconds, "x").is_err(), "{bad}");
        }
    }
}
