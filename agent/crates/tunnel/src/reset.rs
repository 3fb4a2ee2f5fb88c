//! The key of stateless resets (RFC 9000, section 10.3): the same after a restart, so that an agent that was killed and
//! started again can tell its peers at once that their connections are gone. Without it they would wait until their
//! idle timeout.

use std::fmt;
use std::sync::Arc;

use quinn_proto::crypto::{CryptoError, HmacKey};
use rustls::crypto::CryptoProvider;
use rustls::crypto::tls13::{Hkdf, OkmBlock};

/// What separates this use of the identity's key from every other.
const CONTEXT: &[u8] = b"novaferry stateless reset";

/// HMAC under a key that is derived from the identity's private key by HKDF (RFC 5869), which reveals nothing of it.
#[derive(Clone)]
pub(crate) struct ResetKey {
    hkdf: &'static dyn Hkdf,
    key: Arc<OkmBlock>,
    length: usize,
}

impl fmt::Debug for ResetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResetKey")
    }
}

impl ResetKey {
    /// None for a provider without TLS 1.3, which is not what this crate uses.
    pub(crate) fn derive(provider: &CryptoProvider, secret: &[u8]) -> Option<Self> {
        let suite = provider.cipher_suites.iter().find_map(|suite| suite.tls13())?;
        let hkdf = suite.hkdf_provider;
        let expander = hkdf.extract_from_secret(None, secret);
        let key = Arc::new(expander.expand_block(&[CONTEXT]));
        Some(Self { hkdf, key, length: expander.hash_len() })
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(self.hkdf.hmac_sign(&self.key, data).as_ref());
    }

    fn signature_len(&self) -> usize {
        self.length
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let tag = self.hkdf.hmac_sign(&self.key, data);
        let expected = tag.as_ref();
        // Every byte is looked at, whichever differs first.
        let differing = expected.iter().zip(signature).fold(0, |bits, (a, b)| bits | (a ^ b));
        if expected.len() == signature.len() && differing == 0 { Ok(()) } else { Err(CryptoError) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_identity_has_one_key_and_another_has_another() {
        let provider = crate::credentials::provider();
        let sign = |secret: &[u8]| {
            let key = ResetKey::derive(&provider, secret).unwrap();
            let mut out = vec![0; key.signature_len()];
            key.sign(b"id", &mut out);
            assert!(key.verify(b"id", &out).is_ok());
            assert!(key.verify(b"ie", &out).is_err());
            assert!(key.verify(b"id", &out[1..]).is_err());
            out
        };
        assert_eq!(sign(b"a"), sign(b"a"));
        assert_ne!(sign(b"a"), sign(b"b"));
    }
}
