//! Numbers with their units.

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

pub(super) fn seconds(text: &str) -> Result<u64, String> {
    duration(text, &[("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)])
}

pub(super) fn milliseconds(text: &str) -> Result<u64, String> {
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

/// An amount of money in millionths, exactly.
pub(super) fn micros(text: &str) -> Result<u64, String> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    let parsed = (plain(whole) && plain(part) && part.len() <= 6).then(|| {
        let part: u64 = format!("{part:0<6}").parse().ok()?;
        whole.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(part)
    });
    parsed.flatten().ok_or_else(|| "write an amount with at most six decimals, such as 0.09".to_owned())
}
