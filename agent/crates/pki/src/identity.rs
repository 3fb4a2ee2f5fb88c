//! What a host needs to prove who it is: read, checked against each other, and kept in memory that is wiped.

use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ed25519_dalek::SigningKey;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::error::{PkiError, PkiErrorKind};
use super::name::PeerName;
use super::verify::{TrustStore, Usage};
use super::{files, host_files, keys, report};

/// Who keeps the private key's file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyOrigin {
    /// The operator: nobody but the owner may have any access.
    File,
    /// systemd's `LoadCredential=`: the folder is closed to others, and an ACL for the service's user shows up in
    /// the file's group bits.
    Credential,
}

/// Where a host's four files are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IdentityPaths {
    /// Certificate chain, the host's own first.
    pub certificate: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// Who keeps the private key.
    pub key_origin: KeyOrigin,
    /// Trusted CAs.
    pub ca: PathBuf,
    /// Revocation lists.
    pub crl: PathBuf,
}

impl IdentityPaths {
    /// All four in one folder, as `pki issue` makes it.
    #[must_use]
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            certificate: folder.join(host_files::CERTIFICATE),
            key: folder.join(host_files::KEY),
            key_origin: KeyOrigin::File,
            ca: folder.join(host_files::CA),
            crl: folder.join(host_files::CRL),
        }
    }

    /// The folder that holds all four, if one does.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        let folder = self.key.parent()?;
        self.all().iter().all(|path| path.parent() == Some(folder)).then_some(folder)
    }

    fn all(&self) -> [&Path; 4] {
        [&self.certificate, &self.key, &self.ca, &self.crl]
    }
}

/// What tells that a file was changed or replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct FileStamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The stamps of an identity's files, taken before they were read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp([FileStamp; 4]);

impl Stamp {
    pub(super) fn of(paths: &IdentityPaths) -> Result<Self, PkiError> {
        let stamp = |path: &Path| {
            let from = |metadata: Metadata| FileStamp {
                device: metadata.dev(),
                inode: metadata.ino(),
                size: metadata.size(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
                changed: (metadata.ctime(), metadata.ctime_nsec()),
            };
            std::fs::metadata(path).map(from).map_err(|error| PkiError::io("inspect", path, error))
        };
        let [certificate, key, ca, crl] = paths.all().map(stamp);
        Ok(Self([certificate?, key?, ca?, crl?]))
    }
}

/// A host's certificate, key, CAs and revocation lists, valid together when they were loaded.
///
/// `Clone` is deliberately not derived: share it in an `Arc`, so that there is one copy of the key to wipe.
pub struct Identity {
    name: PeerName,
    chain: Vec<CertificateDer<'static>>,
    key_der: Zeroizing<Vec<u8>>,
    signing_key: SigningKey,
    roots: Vec<CertificateDer<'static>>,
    lists: Vec<CertificateRevocationListDer<'static>>,
    not_after: SystemTime,
    crl_next_update: Option<SystemTime>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("name", &self.name)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads a folder that `pki issue` made.
    ///
    /// # Errors
    /// As [`Self::load_from`].
    pub fn load(folder: &Path, now: SystemTime) -> Result<Self, PkiError> {
        Self::load_from(&IdentityPaths::in_folder(folder), now)
    }

    /// Reads and checks the files: permissions of the key, key and certificate belong together, the certificate
    /// leads to the CAs for both client and server use, is valid at `now` and not revoked, and names one host.
    ///
    /// # Errors
    /// [`PkiErrorKind::NotFound`], [`PkiErrorKind::Permission`], [`PkiErrorKind::Malformed`],
    /// [`PkiErrorKind::Mismatch`], [`PkiErrorKind::Expired`], [`PkiErrorKind::Revoked`],
    /// [`PkiErrorKind::Untrusted`].
    pub fn load_from(paths: &IdentityPaths, now: SystemTime) -> Result<Self, PkiError> {
        let chain = report::certificates(&files::read_text(&paths.certificate)?, &paths.certificate)?;
        let signing_key = keys::read(&paths.key, paths.key_origin == KeyOrigin::Credential)?;
        let roots = report::certificates(&files::read_text(&paths.ca)?, &paths.ca)?;
        let lists = report::lists(&files::read_text(&paths.crl)?, &paths.crl)?;
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Err(PkiError::malformed(&paths.certificate, "a PEM certificate"));
        };
        if report::Facts::of(leaf)?.public_key != signing_key.verifying_key().to_bytes() {
            return Err(PkiError::new(
                PkiErrorKind::Mismatch,
                format!(
                    "the key {} does not belong to the certificate {}",
                    paths.key.display(),
                    paths.certificate.display()
                ),
                "copy both from the same `pki issue`",
            ));
        }
        let trust = TrustStore::new(roots.clone(), &lists)?;
        trust.verify(leaf, intermediates, Usage::Client, now)?;
        let verified = trust.verify(leaf, intermediates, Usage::Server, now)?;
        let mut crl_next_update: Option<SystemTime> = None;
        for list in &lists {
            let due = report::parse_list(list)?.next_update().map(report::system_time);
            crl_next_update = match (crl_next_update, due) {
                (Some(earlier), Some(due)) => Some(earlier.min(due)),
                (one, other) => one.or(other),
            };
        }
        Ok(Self {
            name: verified.name,
            key_der: keys::to_der(&signing_key)?,
            not_after: verified.not_after,
            chain,
            signing_key,
            roots,
            lists,
            crl_next_update,
        })
    }

    /// The host's own name.
    #[must_use]
    pub fn name(&self) -> &PeerName {
        &self.name
    }

    /// The certificate chain to present, the host's own first.
    #[must_use]
    pub fn certificate_chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// [`Self::certificate_chain`] as PEM, and nothing else that may stand in the file: what a receipt carries.
    #[must_use]
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(|certificate| report::to_pem(certificate)).collect()
    }

    /// The host's own certificate: what a receipt carries so that it can be checked offline.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.chain[0]
    }

    /// The private key as PKCS#8 DER.
    #[must_use]
    pub fn key_der(&self) -> &Zeroizing<Vec<u8>> {
        &self.key_der
    }

    /// A copy of the private key in the form that rustls takes. rustls keeps keys for its own time and wipes none.
    #[must_use]
    pub fn tls_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key_der.to_vec()))
    }

    /// The same key, to sign receipts.
    #[must_use]
    pub fn signing_key(&self) -> &SigningKey {
        &self.signing_key
    }

    /// The CAs whose peers are accepted.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The revocation lists that peers are checked against.
    #[must_use]
    pub fn crls(&self) -> &[CertificateRevocationListDer<'static>] {
        &self.lists
    }

    /// End of the certificate's validity.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// When the first of the lists is due to be replaced. Past that moment it is still used, but new revocations
    /// may be missing: warn the operator.
    #[must_use]
    pub fn crl_next_update(&self) -> Option<SystemTime> {
        self.crl_next_update
    }

    /// The CAs and lists, to check certificates outside TLS (receipts).
    ///
    /// # Errors
    /// None in practice: the same values were accepted when the identity was loaded.
    pub fn trust(&self) -> Result<TrustStore, PkiError> {
        TrustStore::new(self.roots.clone(), &self.lists)
    }
}
