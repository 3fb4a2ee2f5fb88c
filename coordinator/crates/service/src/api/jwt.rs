//! NovaCron's bearer tokens: JWTs, HS256 by the secret that both share (`AUTH_SECRET`).
//!
//! NovaCron's own server takes any HMAC; here it is HS256 alone, the only one that it makes, and they must expire.

use std::fmt;
use std::sync::Once;

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::signature;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use model::access::Role;
use ring::hmac;
use serde::Deserialize;

/// Least length of a secret: that of the hash.
const LEAST: usize = 32;
/// How far clocks may be apart, seconds.
const LEEWAY: u64 = 60;
/// Longest subject that is looked at, characters.
const MOST_SUBJECT: usize = 128;
/// Roles that are looked at.
const MOST_ROLES: usize = 32;

/// The secret that is shared with NovaCron.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

/// A secret that is too short.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the secret of JWTs (AUTH_SECRET) has {0} bytes; it must have {LEAST} or more, or others guess it")]
pub struct ShortSecret(usize);

impl Secret {
    /// From its text, as NovaCron has it; white space at its ends is none of it.
    ///
    /// # Errors
    /// When it is too short.
    pub fn new(text: &str) -> Result<Self, ShortSecret> {
        let text = text.trim();
        if text.len() < LEAST {
            return Err(ShortSecret(text.len()));
        }
        Ok(Self(text.as_bytes().to_vec()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Who bears a good JWT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Bearer {
    pub(super) subject: String,
    /// The highest of those that it names; none if it names none that we know.
    pub(super) role: Option<Role>,
}

/// Tells good JWTs.
pub(super) struct Verifier {
    key: DecodingKey,
    validation: Validation,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(…)")
    }
}

#[derive(Debug, Deserialize)]
struct Claims {
    #[serde(default)]
    sub: String,
    #[serde(default)]
    user_id: serde_json::Value,
    #[serde(default)]
    role: String,
    #[serde(default)]
    roles: Vec<String>,
    /// `pending_2fa`: half of a login.
    #[serde(default)]
    purpose: String,
    /// `refresh`: not for requests.
    #[serde(default)]
    token_type: String,
}

/// NovaCron's roles; each includes those below it there, too.
fn role(name: &str) -> Option<Role> {
    match name {
        "super-admin" | "admin" => Some(Role::Admin),
        "operator" => Some(Role::Operator),
        "viewer" | "readonly" => Some(Role::Viewer),
        _ => None,
    }
}

impl Verifier {
    pub(super) fn new(secret: Secret) -> Self {
        static INSTALL: Once = Once::new();
        INSTALL.call_once(|| {
            if PROVIDER.install_default().is_err() {
                tracing::warn!("another part of this program has chosen how JWTs are checked");
            }
        });
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        // NovaCron names none.
        validation.validate_aud = false;
        validation.set_required_spec_claims(&["exp"]);
        Self { key: DecodingKey::from_secret(&secret.0), validation }
    }

    /// Whether it is signed as it should be, but its time is over or has not begun.
    pub(super) fn is_untimely(&self, token: &str) -> bool {
        let checked = decode::<Claims>(token, &self.key, &self.validation);
        checked.is_err_and(|error| {
            matches!(error.kind(), ErrorKind::ExpiredSignature | ErrorKind::ImmatureSignature)
        })
    }

    /// Who bears it, if it is good.
    pub(super) fn bearer(&self, token: &str) -> Option<Bearer> {
        let claims: Claims = decode(token, &self.key, &self.validation).ok()?.claims;
        let Claims { sub, user_id, role: one, roles, purpose, token_type } = claims;
        let whole = purpose.is_empty() && matches!(token_type.as_str(), "" | "access");
        let subject = match (sub.is_empty(), user_id) {
            (false, _) => sub,
            (true, serde_json::Value::String(id)) => id,
            (true, serde_json::Value::Number(id)) => id.to_string(),
            _ => return None,
        };
        let named = !subject.is_empty() && subject.chars().count() <= MOST_SUBJECT;
        let plain = !subject.chars().any(char::is_control);
        if !(whole && named && plain) {
            return None;
        }
        let roles = roles.iter().take(MOST_ROLES).chain([&one]);
        Some(Bearer { subject, role: roles.filter_map(|name| role(name)).max() })
    }
}

/// HMAC of the library that TLS uses, and nothing else: whatever a token says, no other algorithm is there.
static PROVIDER: CryptoProvider = CryptoProvider {
    // No token is made here.
    signer_factory: |_, _| Err(Error::from(ErrorKind::InvalidAlgorithm)),
    verifier_factory: |algorithm, key| match algorithm {
        Algorithm::HS256 => Ok(Box::new(Mac(hmac::Key::new(hmac::HMAC_SHA256, key.try_get_as_bytes()?)))),
        _ => Err(Error::from(ErrorKind::InvalidAlgorithm)),
    },
    key_utils: KeyUtils::new_unimplemented(),
};

struct Mac(hmac::Key);

impl signature::Verifier<Vec<u8>> for Mac {
    fn verify(&self, message: &[u8], tag: &Vec<u8>) -> Result<(), signature::Error> {
        // In constant time.
        hmac::verify(&self.0, message, tag).map_err(|_unspecified| signature::Error::new())
    }
}

impl JwtVerifier for Mac {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

#[cfg(test)]
#[path = "jwt/tests.rs"]
mod tests;
#[cfg(test)]
pub(crate) use tests::signed;
