//! Names of hosts, and how a certificate carries one.

use std::fmt;
use std::str::FromStr;

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::error::{PkiError, PkiErrorKind};

/// What precedes a host's name in the URI SAN of its certificate.
pub const HOST_URI_PREFIX: &str = "spiffe://novaferry/host/";

/// Longest host name in bytes: a DNS label's limit, and short enough for a file name with any suffix.
const MAX_NAME: usize = 63;

/// The name of a host: `[a-z0-9][a-z0-9.-]{0,62}`. It is safe as one path component.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PeerName(String);

/// A text that is not a host name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{0:?} is not a host name; write 1 to 63 of a-z, 0-9, '.' and '-', beginning with a letter or a digit, such as \"host-a\""
)]
pub struct InvalidPeerName(String);

impl PeerName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The URI that stands in the certificate.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("{HOST_URI_PREFIX}{}", self.0)
    }
}

impl FromStr for PeerName {
    type Err = InvalidPeerName;
    fn from_str(text: &str) -> Result<Self, InvalidPeerName> {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let valid = text.len() <= MAX_NAME
            && text.bytes().next().is_some_and(plain)
            && text.bytes().all(|c| plain(c) || c == b'.' || c == b'-');
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            // A hostile certificate must not be able to write a novel into the log.
            Err(InvalidPeerName(text.chars().take(2 * MAX_NAME).collect()))
        }
    }
}

impl TryFrom<String> for PeerName {
    type Error = InvalidPeerName;
    fn try_from(text: String) -> Result<Self, InvalidPeerName> {
        text.parse()
    }
}

impl From<PeerName> for String {
    fn from(name: PeerName) -> Self {
        name.0
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The host's name in a certificate (DER). The certificate's signature is not checked: call this on what TLS or
/// [`super::TrustStore::verify`] has accepted.
///
/// # Errors
/// [`PkiErrorKind::Malformed`] when the bytes are no certificate; [`PkiErrorKind::Untrusted`] unless there is exactly
/// one URI SAN (as SPIFFE's X.509-SVID, section 2, demands) and it names a host of novaferry.
pub fn peer_name(certificate: &[u8]) -> Result<PeerName, PkiError> {
    let (rest, certificate) = X509Certificate::from_der(certificate).map_err(|error| {
        PkiError::new(
            PkiErrorKind::Malformed,
            "the peer's certificate cannot be parsed",
            "issue the peer a new certificate with `pki issue`",
        )
        .caused_by(error)
    })?;
    if !rest.is_empty() {
        return Err(PkiError::new(
            PkiErrorKind::Malformed,
            "the peer's certificate is followed by other bytes",
            "issue the peer a new certificate with `pki issue`",
        ));
    }
    name_of(&certificate)
}

pub(super) fn name_of(certificate: &X509Certificate<'_>) -> Result<PeerName, PkiError> {
    let refuse = |what: String| {
        PkiError::new(
            PkiErrorKind::Untrusted,
            what,
            format!(
                "use a certificate with the one URI SAN {HOST_URI_PREFIX}NAME, as `pki issue NAME` makes"
            ),
        )
    };
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| {
            refuse("the certificate's alternative names cannot be read".into()).caused_by(error)
        })?
        .ok_or_else(|| refuse("the certificate has no alternative name".into()))?;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (None, _) => Err(refuse("the certificate names no host".into())),
        (Some(_), Some(_)) => Err(refuse("the certificate has more than one URI name".into())),
        (Some(uri), None) => {
            let name = uri
                .strip_prefix(HOST_URI_PREFIX)
                .ok_or_else(|| refuse("the certificate's URI names no host of novaferry".into()))?;
            name.parse().map_err(|error: InvalidPeerName| {
                refuse("the certificate's URI holds no valid host name".into()).caused_by(error)
            })
        }
    }
}
