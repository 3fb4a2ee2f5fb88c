//! Where the CA's key lies, and what it is sealed under.
//!
//! In the state folder `ca.key` is sealed (see [`crate::seal`]). The key for that comes from a systemd credential, from a
//! file that the operator names, or from `wrapping.key` beside it, so that a first start needs nothing. A credential or
//! file may also be the CA's key itself: then none lies in the folder.

use std::path::{Path, PathBuf};

use pki::Ca;
use store::FolderLock;
use zeroize::Zeroizing;

use crate::error::ServiceError;
use crate::seal::{Wrapping, is_sealed, sealed_under};

/// The CA's key, beside the database and never in it: a copy of the database alone signs nothing.
pub(crate) const KEY_FILE: &str = "ca.key";
/// What it is sealed under, where nothing else is said.
pub(crate) const WRAPPING_FILE: &str = "wrapping.key";
/// The next of these, while it is changed.
const NEXT_FILE: &str = "wrapping.key.next";
/// How a private key in PEM begins.
const PEM: &str = "-----BEGIN PRIVATE KEY-----";

/// Where the key comes from that opens the CA's key, or the CA's key itself (PKCS#8 PEM).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum KeySource {
    /// `wrapping.key` in the state folder; made where there is none.
    #[default]
    Beside,
    /// This file.
    File(PathBuf),
    /// This file, which systemd made for this service.
    Credential(PathBuf),
}

/// What a source holds.
enum Held {
    Wrapping(Wrapping),
    Key(Zeroizing<String>),
    Nothing,
}

/// A key of a CA, and whether it lies open in the folder.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) pem: Zeroizing<String>,
    plain: bool,
    /// It does not lie in the folder at all.
    pub(crate) whole: bool,
}

impl KeySource {
    fn read(&self, folder: &Path) -> Result<Held, ServiceError> {
        let text = match self {
            Self::Beside => {
                let path = folder.join(WRAPPING_FILE);
                if !path.exists() {
                    return Ok(Held::Nothing);
                }
                return Ok(Held::Wrapping(Wrapping::new(&pki::read_secret(&path)?)?));
            }
            Self::File(path) => pki::read_secret(path)?,
            Self::Credential(path) => pki::read_credential(path)?,
        };
        if text.trim_start().starts_with(PEM) {
            return Ok(Held::Key(text));
        }
        Ok(Held::Wrapping(Wrapping::new(&text)?))
    }

    /// The wrapping key, if it is one that is there.
    pub(crate) fn wrapping(&self, folder: &Path) -> Result<Option<Wrapping>, ServiceError> {
        Ok(match self.read(folder)? {
            Held::Wrapping(wrapping) => Some(wrapping),
            Held::Key(_) | Held::Nothing => None,
        })
    }
}

/// The key that is there, if there is one.
pub(crate) fn find(folder: &Path, source: &KeySource) -> Result<Option<Found>, ServiceError> {
    let path = folder.join(KEY_FILE);
    let held = source.read(folder)?;
    if let Held::Key(pem) = held {
        if path.exists() {
            tracing::warn!(file = %path.display(), "not used: the CA's key was given as a whole; remove this file");
        }
        return Ok(Some(Found { pem, plain: false, whole: true }));
    }
    if !path.exists() {
        return Ok(None);
    }
    let text = pki::read_secret(&path)?;
    if !is_sealed(&text) {
        return Ok(Some(Found { pem: text, plain: true, whole: false }));
    }
    let pem = match (held, source) {
        (Held::Wrapping(wrapping), KeySource::Beside) => match wrapping.open(&text) {
            Ok(pem) => pem,
            // A change of the wrapping key that was broken off between its two files, or an older backup that was restored.
            Err(error) => match finish_change(folder, &text)? {
                Some(pem) => pem,
                None => with_older(folder, &text)?.ok_or(error)?,
            },
        },
        (Held::Wrapping(wrapping), _) => wrapping.open(&text)?,
        (Held::Nothing | Held::Key(_), _) => {
            let opened = match finish_change(folder, &text)? {
                Some(pem) => Some(pem),
                None => with_older(folder, &text)?,
            };
            opened.ok_or_else(|| missing(folder, &text))?
        }
    };
    if *source == KeySource::Beside {
        tracing::warn!(
            file = %folder.join(WRAPPING_FILE).display(),
            "the key that opens the CA's key lies beside it: whoever copies this folder has the CA; keep it as a systemd \
             credential (see the unit) or in another place (--ca-key-from)"
        );
    }
    Ok(Some(Found { pem, plain: false, whole: false }))
}

fn missing(folder: &Path, sealed: &str) -> ServiceError {
    match sealed_under(sealed) {
        Ok(id) => ServiceError::Key(format!(
            "the CA's key in {} is sealed under the wrapping key {id}, which is not here; give it as the credential \
             novaferry-ca-key or by --ca-key-from, or copy {WRAPPING_FILE} from the coordinator that made it",
            folder.display()
        )),
        Err(error) => error,
    }
}

/// Opens with the next wrapping key, and puts it in its place, if it is there and is the one.
fn finish_change(folder: &Path, sealed: &str) -> Result<Option<Zeroizing<String>>, ServiceError> {
    let next = folder.join(NEXT_FILE);
    if !next.exists() {
        return Ok(None);
    }
    let wrapping = Wrapping::new(&pki::read_secret(&next)?)?;
    if wrapping.id() != sealed_under(sealed)? {
        return Ok(None);
    }
    let pem = wrapping.open(sealed)?;
    publish(folder)?;
    tracing::info!("finished a change of the wrapping key that was broken off");
    Ok(Some(pem))
}

/// Opens with a wrapping key that was set aside when it was changed, if it is there.
pub(crate) fn with_older(folder: &Path, sealed: &str) -> Result<Option<Zeroizing<String>>, ServiceError> {
    let path = folder.join(format!("{WRAPPING_FILE}.{}", sealed_under(sealed)?));
    if !path.exists() {
        return Ok(None);
    }
    let pem = Wrapping::new(&pki::read_secret(&path)?)?.open(sealed)?;
    tracing::warn!(file = %path.display(), "the CA's key is of an older backup, and this opens it: rename it to wrapping.key");
    Ok(Some(pem))
}

/// Puts the next wrapping key in the place of the one before, which is kept under its name for older backups.
fn publish(folder: &Path) -> Result<Option<PathBuf>, ServiceError> {
    let path = folder.join(WRAPPING_FILE);
    let kept = set_aside(folder)?;
    rename(&folder.join(NEXT_FILE), &path)?;
    Ok(kept)
}

/// Keeps the wrapping key beside under its id, if there is one.
fn set_aside(folder: &Path) -> Result<Option<PathBuf>, ServiceError> {
    let path = folder.join(WRAPPING_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let before = Wrapping::new(&pki::read_secret(&path)?)?;
    let kept = folder.join(format!("{WRAPPING_FILE}.{}", before.id()));
    rename(&path, &kept)?;
    Ok(Some(kept))
}

fn rename(from: &Path, to: &Path) -> Result<(), ServiceError> {
    let renamed = std::fs::rename(from, to).and_then(|()| {
        let folder = to.parent().unwrap_or_else(|| Path::new("."));
        std::fs::File::open(folder)?.sync_all()
    });
    renamed.map_err(|error| {
        ServiceError::Key(format!(
            "cannot rename {} to {}: {error}; correct the cause and try again",
            from.display(),
            to.display()
        ))
    })
}

impl Found {
    /// Seals a key that lies open, once it is known to be the right one.
    pub(crate) fn take_over(&self, folder: &Path, source: &KeySource) -> Result<(), ServiceError> {
        if !self.plain {
            return Ok(());
        }
        let wrapping = wrapping(folder, source)?;
        pki::replace_secret(&folder.join(KEY_FILE), wrapping.seal(&self.pem)?.as_bytes())?;
        tracing::info!(
            under = wrapping.id(),
            "the CA's key was lying open and is sealed now; older copies of it are not"
        );
        Ok(())
    }
}

/// Keeps a new CA's key, if it is to lie in the folder.
pub(crate) fn keep(folder: &Path, source: &KeySource, ca: &Ca) -> Result<(), ServiceError> {
    let wrapping = wrapping(folder, source)?;
    Ok(pki::write_secret(&folder.join(KEY_FILE), wrapping.seal(&ca.key_pem()?)?.as_bytes())?)
}

/// The wrapping key of a source; makes the one beside where there is none.
fn wrapping(folder: &Path, source: &KeySource) -> Result<Wrapping, ServiceError> {
    match source.read(folder)? {
        Held::Wrapping(wrapping) => Ok(wrapping),
        Held::Nothing => {
            let wrapping = Wrapping::generate()?;
            pki::replace_secret(&folder.join(WRAPPING_FILE), wrapping.text().as_bytes())?;
            Ok(wrapping)
        }
        Held::Key(_) => Err(ServiceError::internal("a key that is given as a whole is not sealed")),
    }
}

/// What became of the wrapping key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rekeyed {
    /// Name of the key that the CA's key is sealed under now.
    pub under: String,
    /// Where the one before lies now, if it lay beside.
    pub before: Option<PathBuf>,
}

/// Seals the CA's key under another key: that of a file, or a new one beside it. No coordinator may run there.
///
/// # Errors
/// When a coordinator uses the folder; when the key cannot be opened; file errors.
pub fn rekey(folder: &Path, from: &KeySource, to: Option<&Path>) -> Result<Rekeyed, ServiceError> {
    let _lock = FolderLock::take(folder)?;
    let found = find(folder, from)?.ok_or_else(|| {
        ServiceError::Key(format!("there is no CA's key in {}; check --state", folder.display()))
    })?;
    let certificate = folder.join(crate::authority::CERTIFICATE_FILE);
    let certificate = std::fs::read_to_string(&certificate).map_err(|error| {
        ServiceError::Key(format!(
            "cannot read {}: {error}; start the coordinator once, it writes it",
            certificate.display()
        ))
    })?;
    // A key of another CA is not to take its place.
    Ca::from_pem(&found.pem, &certificate)?;
    let path = folder.join(KEY_FILE);
    if let Some(to) = to {
        let Held::Wrapping(wrapping) = KeySource::File(to.to_owned()).read(folder)? else {
            return Err(ServiceError::Key(format!(
                "{} is a private key; name a file with a wrapping key of 32 characters or more",
                to.display()
            )));
        };
        pki::replace_secret(&path, wrapping.seal(&found.pem)?.as_bytes())?;
        return Ok(Rekeyed { under: wrapping.id(), before: set_aside(folder)? });
    }
    let wrapping = Wrapping::generate()?;
    pki::replace_secret(&folder.join(NEXT_FILE), wrapping.text().as_bytes())?;
    pki::replace_secret(&path, wrapping.seal(&found.pem)?.as_bytes())?;
    Ok(Rekeyed { under: wrapping.id(), before: publish(folder)? })
}

#[cfg(test)]
mod tests;
