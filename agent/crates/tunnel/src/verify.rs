//! The one rule by which a certificate of either side is judged: chain to our CA, validity, purpose, revocation,
//! Ed25519 only, then exactly one host name, then the expected one.
//!
//! Hosts are dialled by address, so the DNS name that TLS brings along is ignored: identity is the URI name alone.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy,
};

use crate::error::{Refusal, TunnelError, TunnelErrorKind};
use crate::identity::PeerName;

/// id-kp-serverAuth and id-kp-clientAuth (RFC 5280, 4.2.1.12), as DER content.
const SERVER_PURPOSE: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
const CLIENT_PURPOSE: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];

static ALGORITHMS: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[webpki::ring::ED25519],
    mapping: &[(SignatureScheme::ED25519, &[webpki::ring::ED25519])],
};

/// Judges the certificates of one side's peers.
#[derive(Debug)]
pub(crate) struct PeerVerifier {
    roots: Arc<RootCertStore>,
    subjects: Vec<DistinguishedName>,
    revocations: Arc<[CertRevocationList<'static>]>,
    expect: Option<PeerName>,
    verdict: Mutex<Option<TunnelError>>,
}

impl PeerVerifier {
    pub(crate) fn new(
        roots: Arc<RootCertStore>,
        revocations: Arc<[CertRevocationList<'static>]>,
        expect: Option<PeerName>,
    ) -> Self {
        let subjects = roots.subjects();
        Self { roots, subjects, revocations, expect, verdict: Mutex::new(None) }
    }

    /// Why the last certificate was refused. TLS reports it as an alert number only; a dialler uses one verifier a
    /// connection, so this is exact.
    pub(crate) fn verdict(&self) -> Option<TunnelError> {
        self.verdict.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        purpose: &'static [u8],
    ) -> Result<(), rustls::Error> {
        let result = self.check(leaf, intermediates, now, purpose);
        result.map_err(|error| {
            let refusal = match error.kind() {
                TunnelErrorKind::Refused(refusal) => refusal,
                _ => Refusal::Malformed,
            };
            *self.verdict.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
            rustls::Error::InvalidCertificate(match refusal {
                Refusal::UnknownAuthority => CertificateError::UnknownIssuer,
                Refusal::Expired => CertificateError::Expired,
                Refusal::NotYetValid => CertificateError::NotValidYet,
                Refusal::Revoked => CertificateError::Revoked,
                Refusal::RevocationUnknown => CertificateError::UnknownRevocationStatus,
                Refusal::Purpose => CertificateError::InvalidPurpose,
                Refusal::Identity | Refusal::WrongPeer => CertificateError::ApplicationVerificationFailure,
                Refusal::Malformed => CertificateError::BadEncoding,
                _ => CertificateError::Other(OtherError(Arc::new(error))),
            })
        })
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        purpose: &'static [u8],
    ) -> Result<(), TunnelError> {
        let refuse = |error: webpki::Error| {
            TunnelError::new(refused(&error), "refuse the peer's certificate").caused_by(error)
        };
        let certificate = EndEntityCert::try_from(leaf).map_err(refuse)?;
        let lists: Vec<_> = self.revocations.iter().collect();
        // The builder fails on an empty list only: then there is nothing to check against.
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Deny)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        certificate
            .verify_for_usage(
                ALGORITHMS.all,
                &self.roots.roots,
                intermediates,
                now,
                KeyUsage::required(purpose),
                revocation,
                None,
            )
            .map_err(refuse)?;
        let name = PeerName::from_certificate(leaf).map_err(|error| {
            TunnelError::new(TunnelErrorKind::Refused(Refusal::Identity), "refuse the peer's certificate")
                .caused_by(error)
        })?;
        match &self.expect {
            Some(expected) if *expected != name => Err(TunnelError::new(
                TunnelErrorKind::Refused(Refusal::WrongPeer),
                format!("the host there is {name}, not {expected}"),
            )),
            _ => Ok(()),
        }
    }
}

fn refused(error: &webpki::Error) -> TunnelErrorKind {
    use webpki::Error as E;
    TunnelErrorKind::Refused(match error {
        E::UnknownIssuer | E::EndEntityUsedAsCa | E::InvalidSignatureForPublicKey | E::CertDistrusted => {
            Refusal::UnknownAuthority
        }
        E::CertExpired { .. } => Refusal::Expired,
        E::CertNotValidYet { .. } => Refusal::NotYetValid,
        E::CertRevoked => Refusal::Revoked,
        E::CrlExpired { .. }
        | E::UnknownRevocationStatus
        | E::InvalidCrlSignatureForPublicKey
        | E::IssuerNotCrlSigner => Refusal::RevocationUnknown,
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension | E::CaUsedAsEndEntity => Refusal::Purpose,
        _ => Refusal::Malformed,
    })
}

/// TLS 1.2 is not configured; rustls asks all the same.
fn no_tls12() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls13RequiredForQuic))
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.judge(leaf, intermediates, now, SERVER_PURPOSE).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &ALGORITHMS)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ALGORITHMS.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.subjects
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.judge(leaf, intermediates, now, CLIENT_PURPOSE).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &ALGORITHMS)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ALGORITHMS.supported_schemes()
    }
}
