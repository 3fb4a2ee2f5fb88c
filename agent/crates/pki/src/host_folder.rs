//! A host's folder with its four files: made, and replaced, all at once.

use std::path::Path;

use rustix::fs::{CWD, RenameFlags};
use zeroize::Zeroizing;

use crate::error::{PkiError, PkiErrorKind};
use crate::{files, host_files};

/// What a host's folder holds, all PEM.
#[derive(Clone)]
pub struct IdentityParts {
    /// PKCS#8.
    pub key: Zeroizing<String>,
    /// The host's certificate first.
    pub chain: String,
    /// The CAs whose hosts are trusted.
    pub authorities: String,
    /// Their revocation lists.
    pub revocations: String,
}

impl std::fmt::Debug for IdentityParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IdentityParts").finish_non_exhaustive()
    }
}

/// Writes a host's folder. After a crash there is the old one, the new one, or none where there was none.
///
/// # Errors
/// [`PkiErrorKind::Exists`] when there is one and `replace` is not set, or it holds other files; file errors.
pub fn put(folder: &Path, parts: &IdentityParts, replace: bool) -> Result<(), PkiError> {
    let parent = files::parent_of(folder);
    std::fs::create_dir_all(parent).map_err(|error| PkiError::io("create folder", parent, error))?;
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let staging = parent.join(format!(".{name}.{}", files::random_suffix()?));
    files::create_private_folder(&staging)?;
    let put = write(&staging, parts).and_then(|()| publish_folder(&staging, folder, replace));
    // After an exchange this is the old folder; after a failure the unfinished one; otherwise there is none.
    remove_host_folder(&staging);
    put?;
    files::sync_folder(parent)
}

/// Replaces the revocation lists in a host's folder.
///
/// # Errors
/// File errors; the old list is then still there.
pub fn put_revocations(folder: &Path, lists: &str) -> Result<(), PkiError> {
    files::replace(&folder.join(host_files::CRL), lists.as_bytes())
}

fn write(folder: &Path, parts: &IdentityParts) -> Result<(), PkiError> {
    for (file, content, mode) in [
        (host_files::KEY, parts.key.as_bytes(), files::PRIVATE),
        (host_files::CERTIFICATE, parts.chain.as_bytes(), files::PUBLIC),
        (host_files::CA, parts.authorities.as_bytes(), files::PUBLIC),
        (host_files::CRL, parts.revocations.as_bytes(), files::PUBLIC),
    ] {
        files::write_new(&folder.join(file), content, mode)?;
    }
    files::sync_folder(folder)
}

/// Puts a finished folder in place in one step: into nothing, or in exchange for the old one.
fn publish_folder(staging: &Path, folder: &Path, renew: bool) -> Result<(), PkiError> {
    let rename = |flags| rustix::fs::renameat_with(CWD, staging, CWD, folder, flags);
    match rename(RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::EXIST) if renew => {
            check_only_host_files(folder)?;
            rename(RenameFlags::EXCHANGE).map_err(|error| PkiError::io("replace", folder, error.into()))
        }
        Err(rustix::io::Errno::EXIST) => Err(PkiError::new(
            PkiErrorKind::Exists,
            format!("{} exists", folder.display()),
            "use --renew to replace it, or choose another --out",
        )),
        Err(error) => Err(PkiError::io("create", folder, error.into())),
    }
}

/// The old folder is deleted after a renewal, so it must hold nothing but what `issue` wrote.
fn check_only_host_files(folder: &Path) -> Result<(), PkiError> {
    let known = [host_files::KEY, host_files::CERTIFICATE, host_files::CA, host_files::CRL];
    let entries = std::fs::read_dir(folder).map_err(|error| PkiError::io("list", folder, error))?;
    for entry in entries {
        let entry = entry.map_err(|error| PkiError::io("list", folder, error))?;
        if !known.iter().any(|name| entry.file_name() == *name) {
            return Err(PkiError::new(
                PkiErrorKind::Exists,
                format!("{} is no file of this CA and would be lost", entry.path().display()),
                "move it elsewhere and renew again",
            ));
        }
    }
    Ok(())
}

fn remove_host_folder(folder: &Path) {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(folder = %folder.display(), %error, "cannot remove the old files of a host: remove them by hand");
        }
        _ => {}
    }
}
