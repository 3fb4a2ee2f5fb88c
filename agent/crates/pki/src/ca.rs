//! The key that signs certificates and revocation lists, in memory: what the CA of a folder and the coordinator's share.
//!
//! It keeps no book: whoever calls it must have made durable what is about to be signed.

use std::fmt;
use std::time::{Duration, SystemTime};

use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::DecodePrivateKey;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::error::{PkiError, PkiErrorKind};
use crate::keys::{self, CertificateSigner, PublicKey};
use crate::ledger::Serial;
use crate::name::PeerName;
use crate::{BACKDATE, files, report};

/// A CA's key and certificate.
pub struct Ca {
    key: SigningKey,
    certificate: CertificateDer<'static>,
    pem: String,
    not_after: SystemTime,
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ca").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// Whom a certificate is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Subject {
    /// An agent, as client and server.
    Host(PeerName),
    /// The coordinator, as server only, under these DNS names and addresses.
    Coordinator(Vec<String>),
}

/// What is said of a certificate on a revocation list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Revoked {
    /// Which.
    pub serial: Serial,
    /// Since when.
    pub since: SystemTime,
}

/// The URI in the coordinator's certificate.
pub const COORDINATOR_URI: &str = "spiffe://novaferry/coordinator";

pub(crate) fn encode(error: rcgen::Error) -> PkiError {
    PkiError::new(PkiErrorKind::Crypto, "a certificate or list cannot be encoded", "report this as a bug")
        .caused_by(error)
}

impl Ca {
    /// Makes a key and a self-signed certificate with path length 0. Its name is its own (`WHAT CA DIGITS`): a list is
    /// matched to its CA by name.
    ///
    /// # Errors
    /// [`PkiErrorKind::Io`] when the kernel gives no random numbers.
    pub fn generate(what: &str, valid: Duration, now: SystemTime) -> Result<Self, PkiError> {
        Self::begin(keys::generate()?, what, valid, now)
    }

    /// Makes the certificate of a key that is there already, in PEM.
    ///
    /// # Errors
    /// [`PkiErrorKind::Malformed`] when it is no such key.
    pub fn of_key(key: &str, what: &str, valid: Duration, now: SystemTime) -> Result<Self, PkiError> {
        Self::begin(read_key(key)?, what, valid, now)
    }

    fn begin(key: SigningKey, what: &str, valid: Duration, now: SystemTime) -> Result<Self, PkiError> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = common_name(&format!("{what} CA {}", files::random_suffix()?));
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        parameters.serial_number = Some(SerialNumber::from_slice(&Serial::random()?.0));
        parameters.not_before = OffsetDateTime::from(now - BACKDATE);
        parameters.not_after = OffsetDateTime::from(now + valid);
        let certificate = parameters.self_signed(&CertificateSigner::new(&key)).map_err(encode)?;
        let (der, pem) = (certificate.der().clone(), certificate.pem());
        Ok(Self { key, not_after: report::Facts::of(&der)?.not_after, certificate: der, pem })
    }

    /// Takes both from PEM.
    ///
    /// # Errors
    /// [`PkiErrorKind::Malformed`]; [`PkiErrorKind::Mismatch`] when they do not belong together.
    pub fn from_pem(key: &str, certificate: &str) -> Result<Self, PkiError> {
        let key = read_key(key)?;
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|error| malformed("certificate is no PEM certificate").caused_by(error))?;
        Self::of(key, der, certificate.to_owned())
    }

    pub(crate) fn of(
        key: SigningKey,
        certificate: CertificateDer<'static>,
        pem: String,
    ) -> Result<Self, PkiError> {
        let facts = report::Facts::of(&certificate)?;
        if facts.public_key != key.verifying_key().to_bytes() {
            return Err(PkiError::new(
                PkiErrorKind::Mismatch,
                "the CA's key and its certificate do not belong together",
                "restore both from the same backup",
            ));
        }
        Ok(Self { key, certificate, pem, not_after: facts.not_after })
    }

    /// The private key as PKCS#8 PEM.
    ///
    /// # Errors
    /// None in practice.
    pub fn key_pem(&self) -> Result<Zeroizing<String>, PkiError> {
        keys::to_pem(&self.key)
    }

    /// The certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The certificate as PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.pem
    }

    /// End of its validity.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Signs a certificate for a key, valid from [`BACKDATE`] before now.
    ///
    /// # Errors
    /// [`PkiErrorKind::Invalid`] when it would outlive the CA, or a DNS name cannot be written.
    pub fn certify(
        &self,
        subject: &Subject,
        key: &PublicKey,
        serial: Serial,
        now: SystemTime,
        not_after: SystemTime,
    ) -> Result<CertificateDer<'static>, PkiError> {
        self.certify_any(subject, key, serial, now, not_after)
    }

    /// Signs a certificate for a key that browsers know.
    ///
    /// # Errors
    /// As [`Ca::certify`].
    pub fn certify_web(
        &self,
        subject: &Subject,
        key: &WebKey,
        serial: Serial,
        now: SystemTime,
        not_after: SystemTime,
    ) -> Result<CertificateDer<'static>, PkiError> {
        self.certify_any(subject, &key.0, serial, now, not_after)
    }

    fn certify_any(
        &self,
        subject: &Subject,
        key: &impl rcgen::PublicKeyData,
        serial: Serial,
        now: SystemTime,
        not_after: SystemTime,
    ) -> Result<CertificateDer<'static>, PkiError> {
        if not_after > self.not_after {
            return Err(PkiError::new(
                PkiErrorKind::Invalid,
                "a certificate would be valid longer than the CA's own",
                "choose a shorter validity, or make a new CA",
            ));
        }
        let mut parameters = CertificateParams::default();
        let text = |value: &str| value.try_into().map_err(encode);
        (parameters.distinguished_name, parameters.subject_alt_names, parameters.extended_key_usages) =
            match subject {
                Subject::Host(name) => (
                    common_name(name.as_str()),
                    vec![SanType::URI(text(&name.uri())?), SanType::DnsName(text(name.as_str())?)],
                    vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
                ),
                Subject::Coordinator(names) => {
                    let mut alternatives = vec![SanType::URI(text(COORDINATOR_URI)?)];
                    for name in names {
                        alternatives.push(match name.parse() {
                            Ok(address) => SanType::IpAddress(address),
                            Err(_) => SanType::DnsName(text(name)?),
                        });
                    }
                    let usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                    (common_name("novaferry coordinator"), alternatives, usages)
                }
            };
        parameters.is_ca = IsCa::ExplicitNoCa;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.serial_number = Some(SerialNumber::from_slice(&serial.0));
        parameters.not_before = OffsetDateTime::from(now - BACKDATE);
        parameters.not_after = OffsetDateTime::from(not_after);
        parameters.use_authority_key_identifier_extension = true;
        let certificate = parameters.signed_by(key, &self.issuer()?).map_err(encode)?;
        Ok(certificate.der().clone())
    }

    /// Signs a revocation list, as PEM.
    ///
    /// # Errors
    /// None in practice.
    pub fn list(
        &self,
        number: u64,
        revoked: &[Revoked],
        now: SystemTime,
        next_update: SystemTime,
    ) -> Result<String, PkiError> {
        let revoked_certs = revoked.iter().map(|one| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&one.serial.0),
            revocation_time: OffsetDateTime::from(one.since),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: OffsetDateTime::from(now - BACKDATE),
            next_update: OffsetDateTime::from(next_update),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer()?).and_then(|list| list.pem()).map_err(encode)
    }

    fn issuer(&self) -> Result<Issuer<'static, CertificateSigner<'_>>, PkiError> {
        Issuer::from_ca_cert_der(&self.certificate, CertificateSigner::new(&self.key)).map_err(encode)
    }
}

/// A key of the kind that browsers know (ECDSA on P-256): they refuse Ed25519.
pub struct WebKey(rcgen::KeyPair);

impl fmt::Debug for WebKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebKey(..)")
    }
}

impl WebKey {
    /// A new one.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn generate() -> Result<Self, PkiError> {
        rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map(Self).map_err(encode)
    }

    /// Reads one (PKCS#8, PEM).
    ///
    /// # Errors
    /// [`PkiErrorKind::Malformed`] when it is none.
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        rcgen::KeyPair::from_pkcs8_pem_and_sign_algo(pem, &rcgen::PKCS_ECDSA_P256_SHA256).map(Self).map_err(
            |error| {
                let fix = "remove the file: another is made";
                let what = "the key for browsers is no ECDSA key on P-256 (PKCS#8 PEM)";
                PkiError::new(PkiErrorKind::Malformed, what, fix).caused_by(error)
            },
        )
    }

    /// As PKCS#8, PEM.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }

    /// As PKCS#8, DER.
    #[must_use]
    pub fn to_der(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.serialize_der())
    }
}

fn malformed(what: &str) -> PkiError {
    PkiError::new(PkiErrorKind::Malformed, format!("the CA's {what}"), "restore it from a backup")
}

fn read_key(pem: &str) -> Result<SigningKey, PkiError> {
    SigningKey::from_pkcs8_pem(pem)
        .map_err(|error| malformed("key is no Ed25519 private key (PKCS#8 PEM)").caused_by(error))
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}
