//! Things that are named by the first digits of their ids.

use crate::client::Client;
use crate::failure::Failure;

/// Digits of an id.
const LENGTH: usize = 32;
/// The newest of a list, among which first digits are sought.
const NEWEST: usize = 500;
/// Ids that an answer about an ambiguous one names.
const NAMED: usize = 5;

/// The whole id of the one that begins so. Whether there is one of 32 digits, the coordinator says.
pub(super) fn pick(client: &Client, digits: &str, noun: &str, path: &str) -> Result<String, Failure> {
    let valid = !digits.is_empty() && digits.len() <= LENGTH && digits.bytes().all(|c| c.is_ascii_hexdigit());
    if !valid {
        let what = format!("a {noun} is named by its digits, or the first of them");
        let advice = format!("`novaferry {noun} list` shows the ids");
        return Err(Failure::new("usage", what, advice).usage());
    }
    let digits = digits.to_lowercase();
    if digits.len() == LENGTH {
        return Ok(digits);
    }
    let newest = client.list(path, Some(NEWEST))?;
    among(&digits, noun, newest.iter().filter_map(|one| one["id"].as_str()))
}

fn among<'a>(digits: &str, noun: &str, ids: impl Iterator<Item = &'a str>) -> Result<String, Failure> {
    let found: Vec<_> = ids.filter(|id| id.starts_with(digits)).collect();
    match found[..] {
        [one] => Ok(one.to_owned()),
        [] => Err(Failure::new(
            "not-found",
            format!("none of the last {NEWEST} {noun}s begins with {digits}"),
            format!("`novaferry {noun} list` shows the ids; of an older one write all digits"),
        )),
        ref several => {
            let named = several.iter().take(NAMED).map(|id| id.get(..digits.len() + 6).unwrap_or(id));
            let named = named.collect::<Vec<_>>().join(", ");
            let more = if several.len() > NAMED { ", …" } else { "" };
            let what = format!("several {noun}s begin with {digits}: {named}{more}");
            Err(Failure::new("conflict", what, "write more digits"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_digits_name_one_or_none() {
        let ids = ["aa".repeat(16), format!("aa{}", "b".repeat(30)), "c".repeat(32)];
        let find = |digits: &str| among(digits, "migration", ids.iter().map(String::as_str));
        assert_eq!(find("c").unwrap(), ids[2]);
        assert_eq!(find("aab").unwrap(), ids[1]);
        let several = find("aa").unwrap_err();
        assert_eq!(several.message, "several migrations begin with aa: aaaaaaaa, aabbbbbb");
        assert_eq!(find("d").unwrap_err().code, "not-found");
        let many = vec!["ab"; 9];
        assert!(among("a", "plan", many.into_iter()).unwrap_err().message.ends_with("ab, …"));
    }
}
