//! A CA for tests.

use novaferry_tunnel::Credentials;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};

/// A certificate chain and its key.
pub(crate) struct Identity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: Vec<u8>,
}

impl Identity {
    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }
}

/// A CA.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) certificate: CertificateDer<'static>,
}

pub(crate) fn key() -> KeyPair {
    KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap()
}

pub(crate) fn serial(name: &str) -> SerialNumber {
    SerialNumber::from_slice(name.as_bytes())
}

/// What `pki issue` would make for a host.
pub(crate) fn host(name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.subject_alt_names = vec![uri(&format!("spiffe://novaferry/host/{name}"))];
    parameters.is_ca = IsCa::ExplicitNoCa;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    parameters.serial_number = Some(serial(name));
    parameters.not_before = OffsetDateTime::now_utc() - Duration::hours(1);
    parameters.not_after = OffsetDateTime::now_utc() + Duration::days(1);
    parameters.use_authority_key_identifier_extension = true;
    parameters
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn authority_parameters(name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let (parameters, key) = (authority_parameters(name), key());
        let certificate = parameters.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(parameters, key), certificate }
    }

    pub(crate) fn issue(&self, parameters: &CertificateParams) -> Identity {
        self.issue_for(parameters, &key())
    }

    pub(crate) fn issue_for(&self, parameters: &CertificateParams, key: &KeyPair) -> Identity {
        let certificate = parameters.signed_by(key, &self.issuer).unwrap();
        Identity { chain: vec![certificate.der().clone()], key: key.serialize_der() }
    }

    /// A leaf below an intermediate CA that `self` never made into one.
    pub(crate) fn issue_below_leaf(&self, parameters: &CertificateParams) -> Identity {
        let (between, between_key) = (host("between"), key());
        let middle = between.signed_by(&between_key, &self.issuer).unwrap();
        let leaf_key = key();
        let leaf = parameters.signed_by(&leaf_key, &Issuer::new(between, between_key)).unwrap();
        Identity { chain: vec![leaf.der().clone(), middle.der().clone()], key: leaf_key.serialize_der() }
    }

    pub(crate) fn self_as_leaf(&self) -> Identity {
        Identity { chain: vec![self.certificate.clone()], key: self.issuer.key().serialize_der() }
    }

    /// A revocation list that is good for `hours`.
    pub(crate) fn revocations(&self, names: &[&str], hours: i64) -> CertificateRevocationListDer<'static> {
        let now = OffsetDateTime::now_utc();
        let revoked_certs = names
            .iter()
            .map(|name| RevokedCertParams {
                serial_number: serial(name),
                revocation_time: now - Duration::hours(3),
                reason_code: None,
                invalidity_date: None,
            })
            .collect();
        let parameters = CertificateRevocationListParams {
            this_update: now - Duration::hours(2),
            next_update: now + Duration::hours(hours),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        parameters.signed_by(&self.issuer).unwrap().der().clone()
    }

    /// Credentials of a good host that believes this CA.
    pub(crate) fn host(&self, name: &str) -> Credentials {
        self.credentials(&self.issue(&host(name)), vec![])
    }

    pub(crate) fn credentials(
        &self,
        identity: &Identity,
        revocations: Vec<CertificateRevocationListDer<'static>>,
    ) -> Credentials {
        let roots = vec![self.certificate.clone()];
        Credentials::new(identity.chain.clone(), identity.key(), roots, revocations).unwrap()
    }
}

pub(crate) fn self_signed(parameters: &CertificateParams) -> Identity {
    let key = key();
    let certificate = parameters.self_signed(&key).unwrap();
    Identity { chain: vec![certificate.der().clone()], key: key.serialize_der() }
}
