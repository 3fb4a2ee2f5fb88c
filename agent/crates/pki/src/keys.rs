//! The Ed25519 key that stands behind a CA or a host: making it, writing it, reading it, signing certificates.

use std::path::Path;

use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey, KeypairBytes};
use ed25519_dalek::{Signer, SigningKey};
use zeroize::Zeroizing;

use super::error::{PkiError, PkiErrorKind};
use super::files;

/// A fresh key from the kernel's generator.
pub(super) fn generate() -> Result<SigningKey, PkiError> {
    let mut seed = Zeroizing::new([0; ed25519_dalek::SECRET_KEY_LENGTH]);
    files::fill_random(&mut *seed)?;
    Ok(SigningKey::from_bytes(&seed))
}

fn crypto(error: impl std::error::Error + Send + Sync + 'static) -> PkiError {
    PkiError::new(PkiErrorKind::Crypto, "a private key cannot be encoded", "report this as a bug")
        .caused_by(error)
}

/// PKCS#8 version 1 without the public key: version 2 is not understood by OpenSSL 3.0.
fn document(key: &SigningKey) -> KeypairBytes {
    KeypairBytes { secret_key: key.to_bytes(), public_key: None }
}

/// The key as PKCS#8 DER.
pub(super) fn to_der(key: &SigningKey) -> Result<Zeroizing<Vec<u8>>, PkiError> {
    let der = document(key).to_pkcs8_der().map_err(crypto)?;
    Ok(Zeroizing::new(der.as_bytes().to_vec()))
}

/// The key as PKCS#8 PEM.
pub(super) fn to_pem(key: &SigningKey) -> Result<Zeroizing<String>, PkiError> {
    document(key).to_pkcs8_pem(LineEnding::LF).map_err(crypto)
}

/// Reads a key file after checking its permissions.
pub(super) fn read(path: &Path, group_may_read: bool) -> Result<SigningKey, PkiError> {
    let pem = files::read_private(path, group_may_read)?;
    SigningKey::from_pkcs8_pem(&pem).map_err(|error| {
        PkiError::new(
            PkiErrorKind::Malformed,
            format!("{} does not hold an Ed25519 private key (PKCS#8 PEM)", path.display()),
            "issue it with `pki issue`; keys of other algorithms are not supported",
        )
        .caused_by(error)
    })
}

/// An Ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    pub(super) fn of(key: &SigningKey) -> Self {
        Self(key.verifying_key().to_bytes())
    }
}

impl rcgen::PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

/// Lets the certificate writer sign without ever holding the key.
pub(super) struct CertificateSigner<'a> {
    key: &'a SigningKey,
    public: PublicKey,
}

impl<'a> CertificateSigner<'a> {
    pub(super) fn new(key: &'a SigningKey) -> Self {
        Self { key, public: PublicKey::of(key) }
    }
}

impl rcgen::PublicKeyData for CertificateSigner<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.public.der_bytes()
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl rcgen::SigningKey for CertificateSigner<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.key.sign(message).to_bytes().to_vec())
    }
}
