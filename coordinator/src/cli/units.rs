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
