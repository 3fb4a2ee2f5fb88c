//! Numbers with their units.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

/// A number with its unit.
fn duration(text: &str, units: &[(&str, u64)]) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let names = || units.iter().map(|(name, _)| format!("10{name}")).collect::<Vec<_>>().join(", ");
    let factor = units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
    let value =
        number.parse::<u64>().ok().zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    value.filter(|value| *value > 0).ok_or_else(|| format!("write a number and a unit, such as {}", names()))
}

pub(crate) fn seconds(text: &str) -> Result<u64, String> {
    duration(text, &[("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)])
}

pub(crate) fn milliseconds(text: &str) -> Result<u64, String> {
    duration(text, &[("ms", 1), ("s", 1000)])
}

/// Bytes a second: a number alone, or with a unit of bits or bytes.
pub(super) fn rate(text: &str) -> Result<u64, String> {
    let text = text.strip_suffix("/s").unwrap_or(text);
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    // Times 8, so that bits are exact.
    let factor = match unit {
        "" | "B" => Some(8),
        "kB" => Some(8_000),
        "MB" => Some(8_000_000),
        "GB" => Some(8_000_000_000),
        "kbit" => Some(1_000),
        "Mbit" => Some(1_000_000),
        "Gbit" => Some(1_000_000_000_u64),
        _ => None,
    };
    let bits = number.parse::<u64>().ok().zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    let rate = bits.map(|bits| bits / 8).filter(|rate| *rate > 0);
    rate.ok_or_else(|| "write bytes or bits a second, such as 1Gbit, 200Mbit or 50MB".to_owned())
}

/// Money as millionths: digits, and at most six after a point.
pub(crate) fn micros(text: &str) -> Result<u64, String> {
    let advice = || "write an amount such as 2 or 1.50".to_owned();
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| text.bytes().all(|c| c.is_ascii_digit());
    if whole.is_empty() || part.is_empty() || part.len() > 6 || !digits(whole) || !digits(part) {
        return Err(advice());
    }
    let part: u64 = format!("{part:0<6}").parse().map_err(|_invalid| advice())?;
    let whole = whole.parse::<u64>().ok().and_then(|whole| whole.checked_mul(1_000_000));
    whole.and_then(|whole| whole.checked_add(part)).ok_or_else(advice)
}

/// An amount for people.
pub(crate) fn money(micros: u64, currency: &str) -> String {
    if currency.is_empty() && micros == 0 {
        return "no cost".to_owned();
    }
    format!("{}.{:04} {currency}", micros / 1_000_000, micros % 1_000_000 / 100)
}

/// Milliseconds for people.
pub(crate) fn span(milliseconds: u64) -> String {
    let tenths = |of: u64| format!("{}.{}", milliseconds / of, milliseconds % of * 10 / of);
    match milliseconds {
        0..1000 => format!("{milliseconds} ms"),
        1000..120_000 => format!("{} s", tenths(1000)),
        120_000..7_200_000 => format!("{} min", tenths(60_000)),
        _ => format!("{} h", tenths(3_600_000)),
    }
}

/// Bytes for people.
pub(crate) fn bytes(bytes: u64) -> String {
    let (unit, name) = match bytes {
        0..10_000 => return format!("{bytes} B"),
        10_000..10_000_000 => (1_000, "kB"),
        10_000_000..10_000_000_000 => (1_000_000, "MB"),
        _ => (1_000_000_000, "GB"),
    };
    format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit)
}

/// Bytes a second, for people.
pub(crate) fn speed(bytes: u64) -> String {
    format!("{}.{} MB/s", bytes / 1_000_000, bytes % 1_000_000 / 100_000)
}

/// A time for people, as seen from now: `3 min ago`, `in 2 h`. What is no time stays what it is.
pub(crate) fn when(time: &Value) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    from(time, i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}

/// The same, as seen from that second.
pub(super) fn from(time: &Value, now: i64) -> String {
    let Some(then) = time.as_str().and_then(|text| text.parse::<model::Timestamp>().ok()) else {
        return super::show::text(time);
    };
    let away = now.saturating_sub(then.as_second());
    let (count, unit) = match away.unsigned_abs() {
        0 => return "now".to_owned(),
        seconds @ 1..120 => (seconds, "s"),
        seconds @ 120..7_200 => (seconds / 60, "min"),
        seconds @ 7_200..172_800 => (seconds / 3_600, "h"),
        seconds => (seconds / 86_400, "days"),
    };
    if away > 0 { format!("{count} {unit} ago") } else { format!("in {count} {unit}") }
}
