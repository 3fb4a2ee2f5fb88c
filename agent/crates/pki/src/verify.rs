//! Checks certificates of peers and of receipts' signers against a set of CAs and revocation lists.
//!
//! Path building and revocation are those of rustls-webpki, the same code that checks peers inside TLS; x509-parser
//! only reads fields of what webpki accepted.

use std::path::Path;
use std::time::SystemTime;

use ed25519_dalek::VerifyingKey;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, KeyUsage, OwnedCertRevocationList, RevocationOptionsBuilder,
};

use super::error::{PkiError, PkiErrorKind};
use super::name::{PeerName, peer_name};
use super::{files, host_files, report};

/// What the certificate is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Usage {
    /// The peer dialled us.
    Client,
    /// We dialled the peer; also whoever signs receipts, since receivers listen.
    Server,
}

/// What a checked certificate proves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VerifiedPeer {
    /// The host.
    pub name: PeerName,
    /// Its Ed25519 key, which also signs receipts.
    pub key: VerifyingKey,
    /// End of the certificate's validity: a session must not outlive it.
    pub not_after: SystemTime,
}

/// CAs and revocation lists.
#[derive(Debug)]
pub struct TrustStore {
    roots: Vec<CertificateDer<'static>>,
    lists: Vec<CertRevocationList<'static>>,
}

impl TrustStore {
    /// Takes CA certificates and lists in DER. Without lists, revocation is not checked; with lists, a certificate
    /// whose CA has none among them is refused.
    ///
    /// # Errors
    /// [`PkiErrorKind::Invalid`] without a CA; [`PkiErrorKind::Malformed`] for one that cannot be parsed.
    pub fn new(
        roots: Vec<CertificateDer<'static>>,
        lists: &[CertificateRevocationListDer<'static>],
    ) -> Result<Self, PkiError> {
        if roots.is_empty() {
            return Err(PkiError::new(
                PkiErrorKind::Invalid,
                "no CA is trusted",
                "give at least one CA certificate",
            ));
        }
        for root in &roots {
            anchor(root)?;
        }
        let lists = lists
            .iter()
            .map(|list| OwnedCertRevocationList::from_der(list).map(CertRevocationList::Owned))
            .collect::<Result<_, _>>()
            .map_err(|error| {
                PkiError::new(
                    PkiErrorKind::Malformed,
                    "a revocation list cannot be parsed",
                    "sign it again with `pki crl`",
                )
                .caused_by(error)
            })?;
        Ok(Self { roots, lists })
    }

    /// Reads `ca.pem`, and `crl.pem` if there is one, from a folder (`--trust DIR`).
    ///
    /// # Errors
    /// [`PkiErrorKind::NotFound`] and [`PkiErrorKind::Malformed`].
    pub fn load(folder: &Path) -> Result<Self, PkiError> {
        let path = folder.join(host_files::CA);
        let roots = report::certificates(&files::read_text(&path)?, &path)?;
        let path = folder.join(host_files::CRL);
        let lists = if path.exists() { report::lists(&files::read_text(&path)?, &path)? } else { Vec::new() };
        Self::new(roots, &lists)
    }

    /// Checks the chain in PEM that a receipt carries, as of the receipt's time. `whence` names it in messages.
    ///
    /// # Errors
    /// As [`Self::verify`].
    pub fn verify_signer(
        &self,
        pem: &str,
        whence: &Path,
        time: SystemTime,
    ) -> Result<VerifiedPeer, PkiError> {
        let chain = report::certificates(pem, whence)?;
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Err(PkiError::malformed(whence, "a certificate of its signer"));
        };
        self.verify(leaf, intermediates, Usage::Server, time)
    }

    /// Checks that `leaf` leads to a trusted CA, is valid at `now` and not revoked, may be used for `usage`, holds
    /// an Ed25519 key and names one host.
    ///
    /// For a receipt, `now` is the receipt's time; revocation is what the lists say today, whenever it happened. A
    /// list that is overdue is still used: refusing everybody when an operator is late would stop all transfers,
    /// and [`super::Identity::crl_next_update`] lets the daemon warn in time.
    ///
    /// # Errors
    /// [`PkiErrorKind::Untrusted`], [`PkiErrorKind::Expired`], [`PkiErrorKind::Revoked`],
    /// [`PkiErrorKind::Malformed`].
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: Usage,
        now: SystemTime,
    ) -> Result<VerifiedPeer, PkiError> {
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).map_err(|error| {
            PkiError::new(
                PkiErrorKind::Invalid,
                "the time to check a certificate at is before 1970",
                "set the clock of this host",
            )
            .caused_by(error)
        })?;
        let anchors = self.roots.iter().map(anchor).collect::<Result<Vec<_>, _>>()?;
        let lists: Vec<&CertRevocationList<'_>> = self.lists.iter().collect();
        // Empty lists mean no revocation check, as documented on `new`.
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            options
                .with_depth(webpki::RevocationCheckDepth::EndEntity)
                .with_status_policy(webpki::UnknownStatusPolicy::Deny)
                .with_expiration_policy(webpki::ExpirationPolicy::Ignore)
                .build()
        });
        let end_entity = EndEntityCert::try_from(leaf).map_err(refusal)?;
        end_entity
            .verify_for_usage(
                &[webpki::ring::ED25519],
                &anchors,
                intermediates,
                UnixTime::since_unix_epoch(since_epoch),
                match usage {
                    Usage::Client => KeyUsage::client_auth(),
                    Usage::Server => KeyUsage::server_auth(),
                },
                revocation,
                None,
            )
            .map_err(refusal)?;
        let facts = report::Facts::of(leaf)?;
        let key = VerifyingKey::from_bytes(&facts.public_key).map_err(|error| {
            PkiError::new(
                PkiErrorKind::Malformed,
                "the certificate's key is no point of Ed25519",
                "issue it again",
            )
            .caused_by(error)
        })?;
        Ok(VerifiedPeer { name: peer_name(leaf)?, key, not_after: facts.not_after })
    }
}

fn anchor<'a>(root: &'a CertificateDer<'_>) -> Result<TrustAnchor<'a>, PkiError> {
    webpki::anchor_from_trusted_cert(root).map_err(|error| {
        PkiError::new(
            PkiErrorKind::Malformed,
            "a CA certificate cannot be parsed",
            "copy the CA's ca.pem again",
        )
        .caused_by(error)
    })
}

fn refusal(error: webpki::Error) -> PkiError {
    use webpki::Error as E;
    let (kind, what, advice) = match &error {
        E::CertExpired { .. } => {
            (PkiErrorKind::Expired, "the certificate has expired", "issue a new one with `pki issue --renew`")
        }
        E::CertNotValidYet { .. } => (
            PkiErrorKind::Expired,
            "the certificate is not valid yet",
            "compare the clocks of this host and of the CA",
        ),
        E::CertRevoked => {
            (PkiErrorKind::Revoked, "the certificate is revoked", "issue a new one with `pki issue --renew`")
        }
        E::UnknownRevocationStatus => (
            PkiErrorKind::Untrusted,
            "no revocation list of the certificate's CA is here",
            "copy the CA's newest crl.pem, or `pki crl --publish`",
        ),
        E::UnknownIssuer => (
            PkiErrorKind::Untrusted,
            "the certificate was not signed by a trusted CA",
            "check that both hosts have certificates of the same CA",
        ),
        E::BadDer | E::BadDerTime => {
            (PkiErrorKind::Malformed, "the certificate cannot be parsed", "issue it again with `pki issue`")
        }
        _ => (
            PkiErrorKind::Untrusted,
            "the certificate is not acceptable",
            "issue a certificate with `pki issue`; the cause follows",
        ),
    };
    PkiError::new(kind, what, advice).caused_by(error)
}
