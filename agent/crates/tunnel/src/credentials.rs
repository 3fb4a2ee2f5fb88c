//! What this host proves itself with and whom it believes. No file is read here.

use std::fmt;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CipherSuite, ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use webpki::{CertRevocationList, OwnedCertRevocationList};
use zeroize::Zeroize;

use crate::error::TunnelError;
use crate::identity::PeerName;
use crate::reset::ResetKey;
use crate::verify::PeerVerifier;

/// A host's certificate and key, the CA's certificates and revocation lists. Cloning is cheap.
#[derive(Clone)]
pub struct Credentials {
    identity: Arc<CertifiedKey>,
    name: PeerName,
    roots: Arc<RootCertStore>,
    revocations: Arc<[CertRevocationList<'static>]>,
    reset_key: ResetKey,
}

impl Credentials {
    /// Takes DER parts: our chain (leaf first), the leaf's key, the CA certificates and their revocation lists.
    ///
    /// Without any list nothing is checked for revocation. With lists, every certificate must be covered by one
    /// that has not expired: an attacker who can hold back updates must not be able to keep a revoked host in.
    ///
    /// # Errors
    /// [`crate::TunnelErrorKind::Config`] when a part cannot be parsed, the key does not belong to the certificate,
    /// the certificate names no host, or no CA is given.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        mut key: PrivateKeyDer<'static>,
        roots: Vec<CertificateDer<'static>>,
        revocations: Vec<CertificateRevocationListDer<'static>>,
    ) -> Result<Self, TunnelError> {
        let leaf = chain.first().ok_or_else(|| TunnelError::config("the identity has no certificate"))?;
        let name = PeerName::from_certificate(leaf)
            .map_err(|error| TunnelError::config("read the host name in our certificate").caused_by(error))?;
        let signer = provider().key_provider.load_private_key(key.clone_key());
        let reset_key = ResetKey::derive(&provider(), key.secret_der());
        key.zeroize();
        let signer = signer.map_err(|error| {
            TunnelError::config("load the private key of our certificate").caused_by(error)
        })?;
        let reset_key = reset_key.ok_or_else(|| TunnelError::config("derive a key without TLS 1.3"))?;
        let identity = CertifiedKey::new(chain, signer);
        identity.keys_match().map_err(|error| {
            TunnelError::config("the private key does not belong to our certificate").caused_by(error)
        })?;
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root).map_err(|error| TunnelError::config("read a CA certificate").caused_by(error))?;
        }
        if store.is_empty() {
            return Err(TunnelError::config("no CA certificate is given: no peer could be believed"));
        }
        let revocations = revocations
            .iter()
            .map(|list| OwnedCertRevocationList::from_der(list.as_ref()).map(CertRevocationList::from))
            .collect::<Result<_, _>>()
            .map_err(|error| TunnelError::config("read a revocation list").caused_by(error))?;
        Ok(Self { identity: Arc::new(identity), name, roots: Arc::new(store), revocations, reset_key })
    }

    /// The name in our own certificate.
    #[must_use]
    pub fn name(&self) -> &PeerName {
        &self.name
    }

    /// What stateless resets are signed with.
    pub(crate) fn reset_key(&self) -> Arc<ResetKey> {
        Arc::new(self.reset_key.clone())
    }

    fn verifier(&self, expect: Option<PeerName>) -> Arc<PeerVerifier> {
        Arc::new(PeerVerifier::new(self.roots.clone(), self.revocations.clone(), expect))
    }

    /// TLS for dialling, and the verifier that will know why a server was refused.
    pub(crate) fn client(
        &self,
        expect: Option<PeerName>,
    ) -> Result<(ClientConfig, Arc<PeerVerifier>), TunnelError> {
        let verifier = self.verifier(expect);
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| TunnelError::config("configure TLS").caused_by(error))?
            .dangerous() // the verifier checks everything but a DNS name
            .with_custom_certificate_verifier(verifier.clone())
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(self.identity.clone())));
        config.alpn_protocols = vec![wire::ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        config.enable_sni = false; // the "server name" is an address or a DNS name, which no one needs to see
        Ok((config, verifier))
    }

    /// TLS for listening.
    pub(crate) fn server(&self) -> Result<ServerConfig, TunnelError> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| TunnelError::config("configure TLS").caused_by(error))?
            .with_client_cert_verifier(self.verifier(None))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(self.identity.clone())));
        config.alpn_protocols = vec![wire::ALPN.to_vec()];
        config.ignore_client_order = true;
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.max_early_data_size = 0;
        Ok(config)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("name", &self.name.as_str())
            .field("roots", &self.roots.len())
            .field("revocations", &self.revocations.len())
            .finish_non_exhaustive()
    }
}

/// `ring`, TLS 1.3 suites only, AES-128-GCM first: it is the cheapest where AES instructions exist, and at Ethernet
/// MTU `ring` is 5 to 10 % cheaper than `aws-lc-rs`.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites.retain(|suite| suite.tls13().is_some());
    provider.cipher_suites.sort_by_key(|suite| match suite.suite() {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => 0,
        CipherSuite::TLS13_AES_256_GCM_SHA384 => 1,
        _ => 2,
    });
    Arc::new(provider)
}
