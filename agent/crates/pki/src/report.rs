//! What a certificate says, as values for people and for `--output json`.

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use serde::Serialize;
use sha2::{Digest, Sha256};
use x509_parser::oid_registry::OID_SIG_ED25519;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

use super::error::{PkiError, PkiErrorKind};
use super::ledger::{Serial, moment};
use super::name::{PeerName, name_of};
use super::{files, host_files};

/// Whether a certificate can be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CertificateState {
    /// In its time and on no list that was looked at.
    Valid,
    /// Its time has not begun: a clock is wrong.
    NotYetValid,
    /// Its time is over.
    Expired,
    /// On the revocation list.
    Revoked,
}

impl fmt::Display for CertificateState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Valid => "valid",
            Self::NotYetValid => "not yet valid",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        })
    }
}

/// A revocation list, as far as a certificate's reader cares.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ListReport {
    /// Its number, when it has one that fits.
    pub number: Option<u64>,
    /// When a newer one was promised.
    #[serde(serialize_with = "optional_moment")]
    pub next_update: Option<SystemTime>,
}

/// A host certificate. `Display` prints one line a field.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct CertificateReport {
    /// The host it names.
    pub name: PeerName,
    /// Its subject.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// Its alternative names, `URI:` and `DNS:` in front.
    pub alternative_names: Vec<String>,
    /// Its serial number in hexadecimal digits.
    pub serial: String,
    /// Begin of its validity.
    #[serde(with = "moment")]
    pub not_before: SystemTime,
    /// End of its validity.
    #[serde(with = "moment")]
    pub not_after: SystemTime,
    /// SHA-256 of the certificate's DER in hexadecimal digits, as `openssl x509 -fingerprint -sha256` prints it
    /// without colons.
    pub fingerprint: String,
    /// The Ed25519 public key in hexadecimal digits: what receipts name as their signer.
    pub public_key: String,
    /// Whether it can be used now.
    pub state: CertificateState,
    /// The list that `state` is based on.
    pub list: Option<ListReport>,
}

fn optional_moment<S: serde::Serializer>(time: &Option<SystemTime>, to: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => to.serialize_some(&moment::text(*time)),
        None => to.serialize_none(),
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ok = write!(text, "{byte:02x}");
        text
    })
}

pub(super) fn system_time(time: ASN1Time) -> SystemTime {
    let seconds = time.timestamp();
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { SystemTime::UNIX_EPOCH - distance } else { SystemTime::UNIX_EPOCH + distance }
}

/// What the rest of the module needs of any certificate, a CA's too.
pub(super) struct Facts {
    pub(super) public_key: [u8; 32],
    pub(super) not_after: SystemTime,
}

impl Facts {
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Result<Self, PkiError> {
        let certificate = parse(certificate)?;
        Ok(Self {
            public_key: public_key(&certificate)?,
            not_after: system_time(certificate.validity().not_after),
        })
    }
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, PkiError> {
    X509Certificate::from_der(certificate).map(|(_, certificate)| certificate).map_err(|error| {
        PkiError::new(PkiErrorKind::Malformed, "a certificate cannot be parsed", "issue it again")
            .caused_by(error)
    })
}

/// When a certificate was issued (see [`crate::BACKDATE`]), and the end of its validity.
///
/// # Errors
/// [`PkiErrorKind::Malformed`].
pub fn issued_and_ends(certificate: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime), PkiError> {
    let certificate = parse(certificate)?;
    let validity = certificate.validity();
    Ok((system_time(validity.not_before) + crate::BACKDATE, system_time(validity.not_after)))
}

/// A certificate's serial number, as ours are: 16 bytes.
///
/// # Errors
/// [`PkiErrorKind::Malformed`] for one that nobody of ours issued.
pub fn serial_of(certificate: &CertificateDer<'_>) -> Result<Serial, PkiError> {
    let bytes = parse(certificate)?.raw_serial().try_into().map_err(|error| {
        PkiError::new(
            PkiErrorKind::Malformed,
            "the certificate's serial number is not 16 bytes long",
            "issue it again",
        )
        .caused_by(error)
    })?;
    Ok(Serial(bytes))
}

pub(super) fn public_key(certificate: &X509Certificate<'_>) -> Result<[u8; 32], PkiError> {
    let info = certificate.public_key();
    let key = &*info.subject_public_key.data;
    if info.algorithm.algorithm != OID_SIG_ED25519 {
        return Err(PkiError::new(
            PkiErrorKind::Malformed,
            "the certificate's key is not of the algorithm Ed25519",
            "issue a certificate with `pki issue`",
        ));
    }
    key.try_into().map_err(|error| {
        PkiError::new(PkiErrorKind::Malformed, "the certificate's key is not 32 bytes long", "issue it again")
            .caused_by(error)
    })
}

/// All certificates of a PEM text; at least one.
pub(super) fn certificates(pem: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let all = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| PkiError::malformed(path, "PEM certificates").caused_by(error))?;
    if all.is_empty() { Err(PkiError::malformed(path, "a PEM certificate")) } else { Ok(all) }
}

pub(super) fn single_certificate(pem: &str, path: &Path) -> Result<CertificateDer<'static>, PkiError> {
    certificates(pem, path)?.into_iter().next().ok_or_else(|| PkiError::malformed(path, "a PEM certificate"))
}

/// All revocation lists of a PEM text; at least one.
pub(super) fn lists(pem: &str, path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, PkiError> {
    let all = CertificateRevocationListDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| PkiError::malformed(path, "PEM revocation lists").caused_by(error))?;
    if all.is_empty() { Err(PkiError::malformed(path, "a PEM revocation list")) } else { Ok(all) }
}

pub(super) fn parse_list<'a>(
    list: &'a CertificateRevocationListDer<'_>,
) -> Result<CertificateRevocationList<'a>, PkiError> {
    CertificateRevocationList::from_der(list).map(|(_, list)| list).map_err(|error| {
        PkiError::new(
            PkiErrorKind::Malformed,
            "a revocation list cannot be parsed",
            "sign it again with `pki crl`",
        )
        .caused_by(error)
    })
}

impl CertificateReport {
    pub(super) fn of(
        certificate: &CertificateDer<'_>,
        list: Option<&CertificateRevocationListDer<'_>>,
        now: SystemTime,
    ) -> Result<Self, PkiError> {
        let parsed = parse(certificate)?;
        let not_before = system_time(parsed.validity().not_before);
        let not_after = system_time(parsed.validity().not_after);
        let list = list.map(parse_list).transpose()?;
        let revoked = list.as_ref().is_some_and(|list| {
            list.issuer() == parsed.issuer()
                && list.iter_revoked_certificates().any(|entry| entry.raw_serial() == parsed.raw_serial())
        });
        let state = if revoked {
            CertificateState::Revoked
        } else if now > not_after {
            CertificateState::Expired
        } else if now < not_before {
            CertificateState::NotYetValid
        } else {
            CertificateState::Valid
        };
        let alternative_names = parsed
            .subject_alternative_name()
            .ok()
            .flatten()
            .map(|names| {
                use x509_parser::extensions::GeneralName;
                names
                    .value
                    .general_names
                    .iter()
                    .map(|name| match name {
                        GeneralName::URI(uri) => format!("URI:{uri}"),
                        GeneralName::DNSName(dns) => format!("DNS:{dns}"),
                        other => other.to_string(),
                    })
                    .collect()
            })
            .unwrap_or_default();
        Ok(Self {
            name: name_of(&parsed)?,
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            alternative_names,
            serial: hex(parsed.raw_serial()),
            not_before,
            not_after,
            fingerprint: hex(&Sha256::digest(certificate)),
            public_key: hex(&public_key(&parsed)?),
            state,
            list: list.map(|list| ListReport {
                number: list.crl_number().and_then(|number| u64::try_from(number).ok()),
                next_update: list.next_update().map(system_time),
            }),
        })
    }
}

impl fmt::Display for CertificateReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "name         {}", self.name)?;
        writeln!(f, "state        {}", self.state)?;
        writeln!(f, "subject      {}", self.subject)?;
        writeln!(f, "issuer       {}", self.issuer)?;
        for name in &self.alternative_names {
            writeln!(f, "also known   {name}")?;
        }
        writeln!(f, "serial       {}", self.serial)?;
        writeln!(f, "valid from   {}", moment::text(self.not_before))?;
        writeln!(f, "valid until  {}", moment::text(self.not_after))?;
        writeln!(f, "SHA-256      {}", self.fingerprint)?;
        write!(f, "public key   {}", self.public_key)?;
        if let Some(list) = &self.list {
            write!(f, "\nlist         ")?;
            if let Some(number) = list.number {
                write!(f, "number {number}")?;
            }
            if let Some(next) = list.next_update {
                write!(f, ", next due {}", moment::text(next))?;
            }
        }
        Ok(())
    }
}

/// Reads a host's folder for `pki show`. The private key is not touched; the list is the one beside the certificate,
/// and its signature is not checked.
///
/// # Errors
/// [`PkiErrorKind::NotFound`] and [`PkiErrorKind::Malformed`] for the certificate or a list that is there.
pub fn show(folder: &Path, now: SystemTime) -> Result<CertificateReport, PkiError> {
    let path = folder.join(host_files::CERTIFICATE);
    let certificate = single_certificate(&files::read_text(&path)?, &path)?;
    let path = folder.join(host_files::CRL);
    let list = if path.exists() { lists(&files::read_text(&path)?, &path)?.into_iter().next() } else { None };
    CertificateReport::of(&certificate, list.as_ref(), now)
}

/// Digits of base 64 (RFC 4648, section 4).
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// Characters a line (RFC 7468, section 2).
const PEM_LINE: usize = 64;

/// A certificate as PEM (RFC 7468).
#[must_use]
pub fn to_pem(certificate: &CertificateDer<'_>) -> String {
    let mut digits = String::new();
    for group in certificate.chunks(3) {
        let bits =
            group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for nth in 0..4 {
            let digit = BASE64[(bits >> (18 - 6 * nth) & 63) as usize];
            digits.push(if nth <= group.len() { char::from(digit) } else { '=' });
        }
    }
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = digits.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(PEM_LINE));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}
