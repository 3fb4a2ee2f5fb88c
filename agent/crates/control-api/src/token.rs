//! Join tokens: `nfj1_SECRET_PIN`, in base 32. The secret lets one host join once. The pin is the SHA-256 of the
//! coordinator's CA certificate, so that a new host knows whom it talks to before it trusts anybody.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use sha2::{Digest, Sha256};

const PREFIX: &str = "nfj1";
/// Bytes of secret and pin.
const LENGTH: usize = 32;

/// A token, parsed. `Debug` does not show the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    secret: [u8; LENGTH],
    pin: [u8; LENGTH],
}

/// A text that is no join token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("this is no join token; `novaferry host token` prints one, which begins with nfj1_")]
pub struct InvalidJoinToken;

/// The pin of a CA certificate (DER).
#[must_use]
pub fn fingerprint(certificate: &[u8]) -> [u8; 32] {
    Sha256::digest(certificate).into()
}

impl JoinToken {
    /// A token with this secret, for the coordinator whose CA has this fingerprint.
    #[must_use]
    pub fn new(secret: [u8; 32], pin: [u8; 32]) -> Self {
        Self { secret, pin }
    }

    /// Fingerprint of the coordinator's CA certificate.
    #[must_use]
    pub fn pin(&self) -> [u8; 32] {
        self.pin
    }

    /// What a coordinator keeps of it: the SHA-256 of the secret, which is random and long enough to need no salt.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.secret).into()
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [secret, pin] = [self.secret, self.pin].map(|bytes| BASE32_NOPAD.encode(&bytes).to_lowercase());
        write!(f, "{PREFIX}_{secret}_{pin}")
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken")
    }
}

impl FromStr for JoinToken {
    type Err = InvalidJoinToken;
    fn from_str(text: &str) -> Result<Self, InvalidJoinToken> {
        // Both parts have one length; what is longer is not looked at.
        if text.len() > 128 {
            return Err(InvalidJoinToken);
        }
        let part = |text: &str| -> Option<[u8; LENGTH]> {
            BASE32_NOPAD.decode(text.to_uppercase().as_bytes()).ok()?.try_into().ok()
        };
        let mut parts = text.trim().split('_');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(PREFIX), Some(secret), Some(pin), None) => Some(Self {
                secret: part(secret).ok_or(InvalidJoinToken)?,
                pin: part(pin).ok_or(InvalidJoinToken)?,
            }),
            _ => None,
        }
        .ok_or(InvalidJoinToken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_being_written_and_read() {
        let token = JoinToken::new([7; 32], fingerprint(b"ca"));
        let text = token.to_string();
        assert!(text.starts_with("nfj1_") && text.len() == 4 + 2 * 53, "{text}");
        assert_eq!(text.parse::<JoinToken>().unwrap(), token);
        assert_eq!(format!("  {}\n", text).parse::<JoinToken>().unwrap(), token, "as it is pasted");
        assert_ne!(token.digest(), [7; 32]);
        assert_eq!(format!("{token:?}"), "JoinToken");
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let good = JoinToken::new([7; 32], [8; 32]).to_string();
        for bad in [
            "",
            "nfj1",
            "nfj1__",
            "nfj2_a_b",
            &good[..good.len() - 1],
            &format!("{good}_x"),
            &good.replace('a', "1"),
        ] {
            if bad != good {
                assert_eq!(bad.parse::<JoinToken>(), Err(InvalidJoinToken), "{bad}");
            }
        }
        assert_eq!("x".repeat(1 << 20).parse::<JoinToken>(), Err(InvalidJoinToken));
    }
}
