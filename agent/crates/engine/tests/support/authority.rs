//! Certificates for the hosts of a test.

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls_pki_types::PrivatePkcs8KeyDer;
use tunnel::Credentials;

/// A CA and the credentials that it issued.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: rustls_pki_types::CertificateDer<'static>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = parameters.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(parameters, key), certificate }
    }

    pub(crate) fn credentials(&self, name: &str) -> Credentials {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let mut parameters = CertificateParams::default();
        let uri = format!("spiffe://novaferry/host/{name}");
        parameters.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().unwrap())];
        parameters.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = parameters.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Credentials::new(vec![leaf], key, vec![self.certificate.clone()], vec![]).unwrap()
    }
}
