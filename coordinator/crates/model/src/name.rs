//! Names of hosts, sites and links.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name in bytes: a DNS label's limit.
const MAX: usize = 63;

/// A name: `[a-z0-9][a-z0-9.-]{0,62}`, as in hosts' certificates.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", schema(value_type = String, pattern = "^[a-z0-9][a-z0-9.-]*$", min_length = 1, max_length = 63))]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// A text that is no name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{0:?} is no name; write 1 to 63 of a-z, 0-9, '.' and '-', beginning with a letter or a digit, such as \"host-a\""
)]
pub struct InvalidName(String);

impl Name {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let valid = text.len() <= MAX
            && text.bytes().next().is_some_and(plain)
            && text.bytes().all(|c| plain(c) || c == b'.' || c == b'-');
        // What comes from outside is not repeated at any length.
        if valid { Ok(Self(text.to_owned())) } else { Err(InvalidName(text.chars().take(2 * MAX).collect())) }
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for good in ["a", "host-a", "9.rack-2", &"x".repeat(63)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", ".a", "A", "a_b", "a/b", "ä", "a b", &"x".repeat(64), "'; drop table hosts; --"]
        {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
        assert!("x".repeat(1 << 16).parse::<Name>().unwrap_err().to_string().len() < 300);
    }
}
