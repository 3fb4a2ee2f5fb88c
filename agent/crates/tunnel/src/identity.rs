//! Who a peer is: the host name in its certificate.

use std::fmt;
use std::str::FromStr;

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What precedes a host's name in the URI SAN of its certificate.
pub const HOST_URI_PREFIX: &str = "spiffe://novaferry/host/";

/// Longest host name in bytes: the limit of a DNS label.
const MAX_NAME: usize = 63;

/// The name of a host: `[a-z0-9][a-z0-9.-]{0,62}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerName(String);

/// Why no host name could be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InvalidPeerName {
    /// The text is no host name.
    Text,
    /// The certificate cannot be parsed.
    Certificate,
    /// The certificate has no URI name, or several.
    NotOneUri,
    /// The certificate's URI name is not below [`HOST_URI_PREFIX`].
    ForeignUri,
}

impl fmt::Display for InvalidPeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => {
                "not a host name: write 1 to 63 of a-z, 0-9, '.' and '-', beginning with a letter or digit"
            }
            Self::Certificate => "the certificate cannot be parsed",
            Self::NotOneUri => "the certificate does not carry exactly one URI name",
            Self::ForeignUri => "the certificate's URI name does not begin with spiffe://novaferry/host/",
        })
    }
}

impl std::error::Error for InvalidPeerName {}

impl PeerName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name that a certificate carries. Exactly one URI name is allowed, as SPIFFE X.509-SVID 2 demands; names
    /// of other types are ignored. The certificate's signature is not checked here.
    ///
    /// # Errors
    /// When the certificate cannot be parsed or does not carry one such name.
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Result<Self, InvalidPeerName> {
        let Ok((rest, parsed)) = X509Certificate::from_der(certificate) else {
            return Err(InvalidPeerName::Certificate);
        };
        if !rest.is_empty() {
            return Err(InvalidPeerName::Certificate);
        }
        let names = match parsed.subject_alternative_name() {
            Ok(Some(extension)) => &extension.value.general_names,
            Ok(None) => return Err(InvalidPeerName::NotOneUri),
            Err(_) => return Err(InvalidPeerName::Certificate),
        };
        let mut uris = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        let (Some(uri), None) = (uris.next(), uris.next()) else { return Err(InvalidPeerName::NotOneUri) };
        uri.strip_prefix(HOST_URI_PREFIX).ok_or(InvalidPeerName::ForeignUri)?.parse()
    }
}

impl FromStr for PeerName {
    type Err = InvalidPeerName;
    fn from_str(text: &str) -> Result<Self, InvalidPeerName> {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let valid = text.len() <= MAX_NAME
            && text.bytes().next().is_some_and(plain)
            && text.bytes().all(|c| plain(c) || c == b'.' || c == b'-');
        if valid { Ok(Self(text.to_owned())) } else { Err(InvalidPeerName::Text) }
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
