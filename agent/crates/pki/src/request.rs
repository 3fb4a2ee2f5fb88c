//! Certificate signing requests (PKCS#10, RFC 2986): how a host proves that it holds the key it wants certified.
//!
//! Nothing but the key is taken from a request: whom a certificate is for is decided by whoever signs it.

use ed25519_dalek::SigningKey;
use rcgen::{CertificateParams, CertificateSigningRequestParams};
use zeroize::Zeroizing;

use crate::ca::encode;
use crate::error::{PkiError, PkiErrorKind};
use crate::keys::{self, CertificateSigner, PublicKey};

/// Longest request that is read, bytes: ours are below 400.
pub const MAX_REQUEST: usize = 4 << 10;

/// A key that has no certificate yet.
pub struct NewKey(SigningKey);

impl std::fmt::Debug for NewKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NewKey")
    }
}

impl NewKey {
    /// A fresh one.
    ///
    /// # Errors
    /// [`PkiErrorKind::Io`] when the kernel gives no random numbers.
    pub fn generate() -> Result<Self, PkiError> {
        keys::generate().map(Self)
    }

    /// Its public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey::of(&self.0)
    }

    /// PKCS#8 PEM.
    ///
    /// # Errors
    /// None in practice.
    pub fn pem(&self) -> Result<Zeroizing<String>, PkiError> {
        keys::to_pem(&self.0)
    }

    /// PKCS#8 DER.
    ///
    /// # Errors
    /// None in practice.
    pub fn der(&self) -> Result<Zeroizing<Vec<u8>>, PkiError> {
        keys::to_der(&self.0)
    }

    /// A request for a certificate, as PEM.
    ///
    /// # Errors
    /// None in practice.
    pub fn request(&self) -> Result<String, PkiError> {
        let parameters = CertificateParams::default();
        let request = parameters.serialize_request(&CertificateSigner::new(&self.0)).map_err(encode)?;
        request.pem().map_err(encode)
    }
}

/// The key that a request is about, if whoever made the request holds it.
///
/// # Errors
/// [`PkiErrorKind::Malformed`] for what is no request, is signed by another key, or is about a key that is not Ed25519.
pub fn requested_key(pem: &str) -> Result<PublicKey, PkiError> {
    let refuse = |what: &str| {
        PkiError::new(PkiErrorKind::Malformed, what, "send a PKCS#10 request for an Ed25519 key as PEM")
    };
    if pem.len() > MAX_REQUEST {
        return Err(refuse("the certificate request is too long"));
    }
    let request = CertificateSigningRequestParams::from_pem(pem)
        .map_err(|error| refuse("this is no certificate request").caused_by(error))?;
    let key = rcgen::PublicKeyData::der_bytes(&request.public_key).try_into().ok();
    let is_ours = rcgen::PublicKeyData::algorithm(&request.public_key) == &rcgen::PKCS_ED25519;
    key.filter(|_| is_ours).map(PublicKey).ok_or_else(|| refuse("the request is about no Ed25519 key"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_proves_its_key() {
        let key = NewKey::generate().unwrap();
        let request = key.request().unwrap();
        assert!(request.len() < MAX_REQUEST / 4, "{}", request.len());
        assert_eq!(requested_key(&request).unwrap(), key.public());
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let request = NewKey::generate().unwrap().request().unwrap();
        let lines: Vec<_> = request.lines().collect();
        // One letter of the signature, at the end.
        let mut forged = request.clone().into_bytes();
        let at = request.rfind(lines[lines.len() - 2]).unwrap() + 2;
        forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
        let forged = String::from_utf8(forged).unwrap();
        for bad in ["", "x", &request.replace("CERTIFICATE REQUEST", "CERTIFICATE")[..40], &forged] {
            assert_eq!(requested_key(bad).unwrap_err().kind(), PkiErrorKind::Malformed, "{bad}");
        }
        assert!(requested_key(&"x".repeat(MAX_REQUEST + 1)).unwrap_err().to_string().contains("too long"));
        let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let other = CertificateParams::default().serialize_request(&other).unwrap().pem().unwrap();
        assert!(requested_key(&other).unwrap_err().to_string().contains("Ed25519"));
    }
}
