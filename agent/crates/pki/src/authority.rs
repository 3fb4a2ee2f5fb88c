//! The local CA: makes host certificates, revokes them, signs revocation lists.
//!
//! Order of effects: the ledger's line is durable before the thing it describes exists, and a host's files appear
//! all at once (one rename), so that a crash leaves either nothing or something that the ledger knows.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use serde::Serialize;

use super::ca::{Ca, Revoked, Subject};
use super::error::{PkiError, PkiErrorKind};
use super::host_folder::{self, IdentityParts};
use super::ledger::{Entry, Ledger, Serial, moment};
use super::name::PeerName;
use super::report::{self, CertificateReport};
use super::request::NewKey;
use super::{CRL_DAYS, LEAF_DAYS, ca_files, files, host_files, keys};

/// Longest validity that can be asked for: ten years, as long as the CA's own.
const MAX_DAYS: u32 = 3660;

/// What `pki issue` can be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IssueOptions {
    /// Days of validity from now.
    pub days: u32,
    /// Replace the host's files with a new key and certificate. The old certificate stays valid until it expires or
    /// is revoked.
    pub renew: bool,
}

impl Default for IssueOptions {
    fn default() -> Self {
        Self { days: LEAF_DAYS, renew: false }
    }
}

/// What `pki issue` made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Issued {
    /// The folder with the host's four files.
    pub folder: PathBuf,
    /// The new certificate.
    pub certificate: CertificateReport,
    /// Certificates of the same host that are still valid: revoke them by serial once the host uses the new one.
    pub still_valid: Vec<Serial>,
}

/// What to revoke.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RevokeTarget {
    /// Every certificate of this host that has not expired.
    Name(PeerName),
    /// One certificate.
    Serial(Serial),
}

/// What `pki revoke` did.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RevokeReport {
    /// The host.
    pub name: PeerName,
    /// The serial numbers that are revoked now and were not before.
    pub revoked: Vec<Serial>,
    /// The new list.
    pub crl: CrlReport,
}

/// A signed revocation list.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct CrlReport {
    /// Where it is; hosts need a copy as their `crl.pem`.
    pub path: PathBuf,
    /// Its number.
    pub number: u64,
    /// When the next one is due.
    #[serde(with = "moment")]
    pub next_update: SystemTime,
    /// How many certificates are on it.
    pub revoked: usize,
}

/// An open CA. While it exists, no other process can use the folder.
#[derive(Debug)]
pub struct Authority {
    folder: PathBuf,
    ca: Ca,
    ledger: Ledger,
}

fn after(now: SystemTime, days: u32) -> SystemTime {
    now + Duration::from_secs(u64::from(days) * 86_400)
}

fn check_days(days: u32) -> Result<(), PkiError> {
    if (1..=MAX_DAYS).contains(&days) {
        return Ok(());
    }
    Err(PkiError::new(
        PkiErrorKind::Invalid,
        format!("a validity of {days} days is not possible"),
        format!("choose 1 to {MAX_DAYS} days"),
    ))
}

impl Authority {
    /// Makes a CA in `folder`, which must not exist or be empty: an Ed25519 key, a self-signed certificate with path
    /// length 0, an empty revocation list and a ledger.
    ///
    /// # Errors
    /// [`PkiErrorKind::Exists`] when the folder holds anything; [`PkiErrorKind::Io`] and
    /// [`PkiErrorKind::Permission`] when it cannot be written. Nothing is left behind then.
    pub fn init(folder: &Path, days: u32, now: SystemTime) -> Result<Self, PkiError> {
        check_days(days)?;
        let folder = files::resolve(folder)?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let parent = files::parent_of(&folder);
        let staging = parent.join(format!(".{name}.{}", files::random_suffix()?));
        files::create_private_folder(&staging)?;
        let made = Self::init_in(&staging, days, now).and_then(|()| {
            // rename(2) replaces an empty folder and refuses any other.
            std::fs::rename(&staging, &folder).map_err(|error| match error.kind() {
                std::io::ErrorKind::DirectoryNotEmpty | std::io::ErrorKind::NotADirectory => PkiError::new(
                    PkiErrorKind::Exists,
                    format!("{} is not empty: a CA is never overwritten", folder.display()),
                    "choose another folder, or move the old CA away if no host trusts it any more",
                )
                .caused_by(error),
                _ => PkiError::io("create", &folder, error),
            })
        });
        if let Err(error) = made {
            // What could not be made whole is removed; the error that matters is the first one.
            drop(std::fs::remove_dir_all(&staging));
            return Err(error);
        }
        files::sync_folder(parent)?;
        Self::open(&folder)
    }

    fn init_in(folder: &Path, days: u32, now: SystemTime) -> Result<(), PkiError> {
        let ca =
            Ca::generate("novaferry local", after(now, days).duration_since(now).unwrap_or_default(), now)?;
        files::write_new(&folder.join(ca_files::KEY), ca.key_pem()?.as_bytes(), files::PRIVATE)?;
        files::write_new(
            &folder.join(ca_files::CERTIFICATE),
            ca.certificate_pem().as_bytes(),
            files::PUBLIC,
        )?;
        Ledger::create(&folder.join(ca_files::LEDGER))?;
        Self::open(folder)?.sign_crl(now)?;
        files::sync_folder(folder)
    }

    /// Opens the CA in `folder`.
    ///
    /// # Errors
    /// [`PkiErrorKind::NotFound`], [`PkiErrorKind::Permission`] (the key can be read by others),
    /// [`PkiErrorKind::Malformed`], [`PkiErrorKind::Mismatch`], [`PkiErrorKind::Busy`].
    pub fn open(folder: &Path) -> Result<Self, PkiError> {
        let folder = files::resolve(folder)?;
        let key_path = folder.join(ca_files::KEY);
        if !key_path.exists() {
            return Err(PkiError::new(
                PkiErrorKind::NotFound,
                format!("{} holds no CA", folder.display()),
                format!("check --ca, or make one with `pki init --ca {}`", folder.display()),
            ));
        }
        let ledger = Ledger::open(&folder.join(ca_files::LEDGER))?;
        let key = keys::read(&key_path, false)?;
        let path = folder.join(ca_files::CERTIFICATE);
        let pem = files::read_text(&path)?;
        let certificate = report::single_certificate(&pem, &path)?;
        Ok(Self { ca: Ca::of(key, certificate, pem)?, folder, ledger })
    }

    /// The CA's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The CA's certificate (DER).
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        self.ca.certificate()
    }

    /// What the CA did so far, oldest first.
    #[must_use]
    pub fn ledger(&self) -> &[Entry] {
        self.ledger.entries()
    }

    /// Makes a key and a certificate for the host `name` in `out/name`.
    ///
    /// # Errors
    /// [`PkiErrorKind::Invalid`] when `out` lies in the CA's folder or the other way round, or the validity exceeds
    /// the CA's; [`PkiErrorKind::Exists`] when the host has a valid certificate or a folder and `renew` is not set;
    /// file errors. The host's folder is then what it was before.
    pub fn issue(
        &mut self,
        name: &PeerName,
        out: &Path,
        options: IssueOptions,
        now: SystemTime,
    ) -> Result<Issued, PkiError> {
        let out = self.check_issue(name, out, options, now)?;
        let folder = out.join(name.as_str());
        let serial = Serial::random()?;
        let not_after = after(now, options.days);
        let still_valid: Vec<_> =
            self.ledger.live(now).filter(|(owner, _)| *owner == name).map(|(_, serial)| serial).collect();
        self.ledger.append(Entry::Issued { time: now, name: name.clone(), serial, not_after })?;

        let key = NewKey::generate()?;
        let subject = Subject::Host(name.clone());
        let certificate = self.ca.certify(&subject, &key.public(), serial, now, not_after)?;
        let parts = IdentityParts {
            key: key.pem()?,
            chain: report::to_pem(&certificate),
            authorities: self.ca.certificate_pem().to_owned(),
            revocations: files::read_text(&self.folder.join(ca_files::CRL))?,
        };
        host_folder::put(&folder, &parts, options.renew)?;
        Ok(Issued { folder, certificate: CertificateReport::of(&certificate, None, now)?, still_valid })
    }

    fn check_issue(
        &self,
        name: &PeerName,
        out: &Path,
        options: IssueOptions,
        now: SystemTime,
    ) -> Result<PathBuf, PkiError> {
        check_days(options.days)?;
        if after(now, options.days) > self.ca.not_after() {
            return Err(PkiError::new(
                PkiErrorKind::Invalid,
                format!(
                    "the CA's own certificate ends on {}, before {} days are over",
                    moment::text(self.ca.not_after()),
                    options.days
                ),
                "choose fewer --days, or make a new CA",
            ));
        }
        let out = files::resolve(out)?;
        if out.starts_with(&self.folder) || self.folder.starts_with(&out) {
            return Err(PkiError::new(
                PkiErrorKind::Invalid,
                format!("{} and the CA's folder {} lie in one another", out.display(), self.folder.display()),
                "choose an --out beside the CA's folder, so that copying hosts' folders never copies the CA's key",
            ));
        }
        let valid = self.ledger.live(now).find(|(owner, _)| *owner == name);
        if let (false, Some((_, serial))) = (options.renew, valid) {
            return Err(PkiError::new(
                PkiErrorKind::Exists,
                format!("{name} has a valid certificate already (serial {serial})"),
                "use --renew for a new key and certificate, or `pki revoke` the old one first",
            ));
        }
        Ok(out)
    }

    /// Revokes certificates and signs a new list. Hosts refuse them once they have the list: see
    /// [`Self::publish_crl`].
    ///
    /// # Errors
    /// [`PkiErrorKind::NotFound`] when there is nothing (left) to revoke; file errors. If signing the list fails
    /// after the ledger was written, [`Self::sign_crl`] completes the revocation.
    pub fn revoke(&mut self, target: &RevokeTarget, now: SystemTime) -> Result<RevokeReport, PkiError> {
        let chosen: Vec<(PeerName, Serial)> = match target {
            RevokeTarget::Name(name) => self
                .ledger
                .live(now)
                .filter(|(owner, _)| *owner == name)
                .map(|(owner, serial)| (owner.clone(), serial))
                .collect(),
            RevokeTarget::Serial(wanted) => self
                .ledger
                .entries()
                .iter()
                .filter_map(|entry| match entry {
                    Entry::Issued { name, serial, .. }
                        if serial == wanted && !self.ledger.is_revoked(*serial) =>
                    {
                        Some((name.clone(), *serial))
                    }
                    _ => None,
                })
                .collect(),
        };
        let Some(name) = chosen.first().map(|(name, _)| name.clone()) else {
            let what = match target {
                RevokeTarget::Name(name) => {
                    format!("{name} has no certificate that is valid and not revoked")
                }
                RevokeTarget::Serial(serial) => {
                    format!("this CA issued no certificate {serial}, or it is revoked already")
                }
            };
            return Err(PkiError::new(
                PkiErrorKind::NotFound,
                what,
                format!("look it up in {}", self.folder.join(ca_files::LEDGER).display()),
            ));
        };
        for (name, serial) in &chosen {
            self.ledger.append(Entry::Revoked { time: now, name: name.clone(), serial: *serial })?;
        }
        let crl = self.sign_crl(now)?;
        Ok(RevokeReport { name, revoked: chosen.into_iter().map(|(_, serial)| serial).collect(), crl })
    }

    /// Signs a new revocation list with the next number, due again after [`CRL_DAYS`].
    ///
    /// # Errors
    /// File errors; the old list is then still there.
    pub fn sign_crl(&mut self, now: SystemTime) -> Result<CrlReport, PkiError> {
        let number = self.ledger.next_crl_number();
        let next_update = after(now, CRL_DAYS);
        self.ledger.append(Entry::Crl { time: now, number, next_update })?;
        let revoked = self.ledger.entries().iter().filter_map(|entry| match entry {
            Entry::Revoked { time, serial, .. } => Some(Revoked { serial: *serial, since: *time }),
            _ => None,
        });
        let revoked: Vec<_> = revoked.collect();
        let list = self.ca.list(number, &revoked, now, next_update)?;
        let path = self.folder.join(ca_files::CRL);
        files::replace(&path, list.as_bytes())?;
        Ok(CrlReport { path, number, next_update, revoked: revoked.len() })
    }

    /// Copies the newest list into hosts' folders, each atomically; daemons there pick it up without a restart.
    ///
    /// # Errors
    /// At the first folder that is not one of a host of this CA ([`PkiErrorKind::Mismatch`]) or cannot be written;
    /// the ones before it have the list.
    pub fn publish_crl(&self, hosts: &[PathBuf]) -> Result<Vec<PathBuf>, PkiError> {
        let list = files::read_text(&self.folder.join(ca_files::CRL))?;
        let mut published = Vec::with_capacity(hosts.len());
        for host in hosts {
            let path = host.join(host_files::CA);
            if report::certificates(&files::read_text(&path)?, &path)?
                .iter()
                .all(|ca| ca != self.ca.certificate())
            {
                return Err(PkiError::new(
                    PkiErrorKind::Mismatch,
                    format!("{} does not trust the CA of {}", host.display(), self.folder.display()),
                    "check --publish: give the folders that `pki issue` of this CA made",
                ));
            }
            let path = host.join(host_files::CRL);
            files::replace(&path, list.as_bytes())?;
            published.push(path);
        }
        Ok(published)
    }
}
