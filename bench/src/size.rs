//! Sizes as they are written on the command line, and conversions of bytes for printing.

/// Reads `4096`, `64KiB`, `512MiB`, `2GiB` or `1TiB`; units are binary.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err(format!("{unit:?} is no unit; write a size such as 64KiB, 512MiB or 2GiB")),
    };
    let number: u64 =
        number.parse().map_err(|_not_one| format!("write a size such as 2GiB instead of {text:?}"))?;
    number
        .checked_mul(1 << shift)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| format!("{text:?} is no size to work with"))
}

/// Bytes as decimal gigabytes, the unit of every rate here.
pub(crate) fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

/// Bytes as MiB, the unit of memory here.
pub(crate) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!(parse("4096"), Ok(4096));
        assert_eq!(parse("64KiB"), Ok(64 << 10));
        assert_eq!(parse("2GiB"), Ok(2 << 30));
        for wrong in ["", "GiB", "2GB", "-1", "0", "99999999999TiB"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
