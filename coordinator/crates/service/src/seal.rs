//! One secret sealed under another: AES-256-GCM, under a key that HKDF-SHA256 makes of the wrapping secret and of salt
//! that is used once.
//!
//! ```text
//! -----BEGIN NOVAFERRY SEALED KEY-----
//! base64 of: version 1 · id of the wrapping key (8) · salt (32) · ciphertext · tag (16)
//! -----END NOVAFERRY SEALED KEY-----
//! ```

use data_encoding::{BASE64, HEXLOWER};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use zeroize::Zeroizing;

use crate::api::tokens::random;
use crate::error::ServiceError;

const BEGIN: &str = "-----BEGIN NOVAFERRY SEALED KEY-----";
const END: &str = "-----END NOVAFERRY SEALED KEY-----";
const VERSION: u8 = 1;
const ID: usize = 8;
const SALT: usize = 32;
const HEAD: usize = 1 + ID + SALT;
/// What is sealed here, so that nothing sealed for another end opens as this.
const PURPOSE: &[u8] = b"novaferry CA key 1";
const PURPOSE_OF_ID: &[u8] = b"novaferry wrapping key id 1";
/// Fewest characters of a wrapping secret: it is made by a machine, not thought up, as there is no slow hash here.
const LEAST: usize = 32;
/// Characters of a line.
const LINE: usize = 64;

/// The secret that another is sealed under.
pub(crate) struct Wrapping {
    secret: Zeroizing<String>,
}

impl std::fmt::Debug for Wrapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Wrapping").field(&self.id()).finish()
    }
}

fn broken(_unspecified: ring::error::Unspecified) -> ServiceError {
    ServiceError::internal("a key cannot be sealed")
}

fn told(what: impl Into<String>) -> ServiceError {
    ServiceError::Key(what.into())
}

impl Wrapping {
    /// Takes one from a file's text.
    pub(crate) fn new(text: &str) -> Result<Self, ServiceError> {
        let secret = Zeroizing::new(text.trim().to_owned());
        if secret.len() < LEAST {
            return Err(told(format!(
                "a wrapping key of {} characters can be guessed; write one of {LEAST} or more, as \
                 `openssl rand -hex 32` prints",
                secret.len()
            )));
        }
        Ok(Self { secret })
    }

    /// Makes one.
    pub(crate) fn generate() -> Result<Self, ServiceError> {
        let bytes = Zeroizing::new(random::<32>()?);
        Ok(Self { secret: Zeroizing::new(HEXLOWER.encode(&*bytes)) })
    }

    /// The text for a file.
    pub(crate) fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}\n", self.secret.as_str()))
    }

    /// Names it without telling anything of it.
    pub(crate) fn id(&self) -> String {
        HEXLOWER.encode(&self.id_bytes())
    }

    fn id_bytes(&self) -> [u8; ID] {
        let mut id = [0; 32];
        let derived = Salt::new(HKDF_SHA256, &[]).extract(self.secret.as_bytes());
        let filled = derived.expand(&[PURPOSE_OF_ID], HKDF_SHA256).and_then(|okm| okm.fill(&mut id));
        debug_assert!(filled.is_ok(), "the length of the hash is never too long");
        let mut short = [0; ID];
        short.copy_from_slice(&id[..ID]);
        short
    }

    /// The key for what is sealed with this salt, which is never used for anything else.
    fn key(&self, salt: &[u8]) -> Result<LessSafeKey, ServiceError> {
        let derived = Salt::new(HKDF_SHA256, salt).extract(self.secret.as_bytes());
        let purpose = [PURPOSE];
        let okm = derived.expand(&purpose, &AES_256_GCM).map_err(broken)?;
        Ok(LessSafeKey::new(UnboundKey::from(okm)))
    }

    /// Seals a secret.
    pub(crate) fn seal(&self, secret: &str) -> Result<String, ServiceError> {
        let salt = random::<SALT>()?;
        let mut head = vec![VERSION];
        head.extend(self.id_bytes());
        head.extend(salt);
        let mut body = secret.as_bytes().to_vec();
        self.key(&salt)?
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key([0; NONCE_LEN]),
                Aad::from(&head),
                &mut body,
            )
            .map_err(broken)?;
        head.extend(body);
        let mut text = format!("{BEGIN}\n");
        for line in BASE64.encode(&head).as_bytes().chunks(LINE) {
            text.extend(line.iter().map(|byte| char::from(*byte)));
            text.push('\n');
        }
        text.push_str(END);
        text.push('\n');
        Ok(text)
    }

    /// Opens what was sealed.
    pub(crate) fn open(&self, sealed: &str) -> Result<Zeroizing<String>, ServiceError> {
        let whole = bytes(sealed)?;
        let (head, body) = whole.split_at(HEAD);
        let (id, salt) = head[1..].split_at(ID);
        let (under, ours) = (HEXLOWER.encode(id), self.id());
        if under != ours {
            return Err(told(format!(
                "the CA's key is sealed under the wrapping key {under}, and the one given is {ours}; give that one \
                 (credential novaferry-ca-key, --ca-key-from, or wrapping.key in the state folder), or restore a backup \
                 whose key you have"
            )));
        }
        let mut body = Zeroizing::new(body.to_vec());
        let nonce = Nonce::assume_unique_for_key([0; NONCE_LEN]);
        let opened = self
            .key(salt)?
            .open_in_place(nonce, Aad::from(head), &mut body)
            .map_err(|_unspecified| damaged())?;
        let text = std::str::from_utf8(opened).map_err(|_not_text| damaged())?;
        Ok(Zeroizing::new(text.to_owned()))
    }
}

fn damaged() -> ServiceError {
    told("the sealed key of the CA is damaged; restore ca.key from a backup")
}

/// Whether a text claims to be a sealed secret.
pub(crate) fn is_sealed(text: &str) -> bool {
    text.trim_start().starts_with(BEGIN)
}

/// The name of the key that a secret is sealed under.
pub(crate) fn sealed_under(text: &str) -> Result<String, ServiceError> {
    Ok(HEXLOWER.encode(&bytes(text)?[1..=ID]))
}

fn bytes(text: &str) -> Result<Vec<u8>, ServiceError> {
    let inner =
        text.trim().strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(END)).ok_or_else(damaged)?;
    let joined: String = inner.split_ascii_whitespace().collect();
    let bytes = BASE64.decode(joined.as_bytes()).map_err(|_malformed| damaged())?;
    match bytes.first() {
        Some(&VERSION) if bytes.len() > HEAD + AES_256_GCM.tag_len() => Ok(bytes),
        Some(&VERSION) | None => Err(damaged()),
        Some(version) => Err(told(format!(
            "the CA's key is sealed in a form ({version}) that this release does not know; start the release that wrote it"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_with_its_key_alone() {
        let (one, other) = (Wrapping::generate().unwrap(), Wrapping::generate().unwrap());
        let sealed = one.seal("the secret").unwrap();
        assert!(is_sealed(&sealed) && !sealed.contains("the secret"));
        assert_eq!(sealed_under(&sealed).unwrap(), one.id());
        assert_eq!(one.open(&sealed).unwrap().as_str(), "the secret");
        assert_ne!(sealed, one.seal("the secret").unwrap());
        // As read from a file.
        assert_eq!(Wrapping::new(&one.text()).unwrap().open(&sealed).unwrap().as_str(), "the secret");
        let error = other.open(&sealed).unwrap_err().to_string();
        assert!(error.contains(&one.id()) && error.contains("--ca-key-from"), "{error}");
        assert!(!format!("{one:?}").contains(one.text().trim()));
    }

    #[test]
    fn every_changed_byte_is_found() {
        let key = Wrapping::generate().unwrap();
        let whole = bytes(&key.seal("the secret").unwrap()).unwrap();
        for nth in 0..whole.len() {
            let mut changed = whole.clone();
            changed[nth] ^= 1;
            let text = format!("{BEGIN}\n{}\n{END}\n", BASE64.encode(&changed));
            assert!(matches!(key.open(&text), Err(ServiceError::Key(_))), "byte {nth}");
        }
        for length in 0..whole.len() {
            let text = format!("{BEGIN}\n{}\n{END}\n", BASE64.encode(&whole[..length]));
            assert!(matches!(key.open(&text), Err(ServiceError::Key(_))), "{length} bytes");
        }
    }

    #[test]
    fn a_key_that_can_be_guessed_is_refused() {
        let error = Wrapping::new("password\n").unwrap_err().to_string();
        assert!(error.contains("32") && !error.contains("password"), "{error}");
    }
}
