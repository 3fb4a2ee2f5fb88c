//! File handling that certificates and keys need: never overwrite by accident, never half-written, never too open.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::error::{PkiError, PkiErrorKind};

/// Largest PEM file that is read. A list of ten thousand revoked certificates is about 500 KiB.
pub(super) const MAX_FILE: u64 = 4 << 20;

/// Mode of a private key.
pub(super) const PRIVATE: u32 = 0o600;
/// Mode of everything that is no secret.
pub(super) const PUBLIC: u32 = 0o644;

/// Creates a folder of mode 0700 (and its parents with the usual mode).
pub(super) fn create_private_folder(path: &Path) -> Result<(), PkiError> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(|error| PkiError::io("create folder", parent, error))?;
    }
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(|error| PkiError::io("create folder", path, error))
}

/// Writes a new file durably; fails when it exists (O_EXCL), so that no key is ever overwritten.
pub(super) fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<(), PkiError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(|error| PkiError::io("create", path, error))
}

/// Writes a new file that only its owner may read, durably.
///
/// # Errors
/// [`PkiErrorKind::Io`], also when it exists: no key is ever overwritten.
pub fn write_secret(path: &Path, content: &[u8]) -> Result<(), PkiError> {
    write_new(path, content, PRIVATE)
}

/// Reads a file that only its owner may read.
///
/// # Errors
/// [`PkiErrorKind::Permission`] when others may read it; file errors.
pub fn read_secret(path: &Path) -> Result<zeroize::Zeroizing<String>, PkiError> {
    read_private(path, false)
}

/// Reads a systemd credential: systemd lets a service's user in by an access list, which shows in the group's bits.
///
/// # Errors
/// [`PkiErrorKind::Permission`] when others may read it; file errors.
pub fn read_credential(path: &Path) -> Result<zeroize::Zeroizing<String>, PkiError> {
    read_private(path, true)
}

/// Replaces a public file atomically: readers see the old or the new content, also after a crash.
///
/// # Errors
/// File errors; the old content is then still there.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), PkiError> {
    replace_with(path, content, PUBLIC)
}

/// The same for a file that only its owner may read.
///
/// # Errors
/// File errors; the old content is then still there.
pub fn replace_secret(path: &Path, content: &[u8]) -> Result<(), PkiError> {
    replace_with(path, content, PRIVATE)
}

fn replace_with(path: &Path, content: &[u8], mode: u32) -> Result<(), PkiError> {
    let folder = parent_of(path);
    let file_name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{file_name}.{}", random_suffix()?));
    let written = write_new(&temporary, content, mode).and_then(|()| {
        give(&temporary, folder).map_err(|error| PkiError::io("give away", &temporary, error))?;
        std::fs::rename(&temporary, path).map_err(|error| PkiError::io("replace", path, error))?;
        sync_folder(folder)
    });
    if written.is_err() {
        // The temporary file may not exist any more; the error that matters is the first one.
        drop(std::fs::remove_file(&temporary));
    }
    written
}

/// What root makes in a folder belongs to the folder's owner.
fn give(path: &Path, folder: &Path) -> std::io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let owner = std::fs::metadata(folder)?;
    std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid()))
}

/// Makes the entries of a folder durable.
pub(super) fn sync_folder(path: &Path) -> Result<(), PkiError> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| PkiError::io("flush folder", path, error))
}

/// The folder that holds `path`; the current one for a bare file name.
pub(super) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Eight random hexadecimal digits for the name of a temporary file.
pub(super) fn random_suffix() -> Result<String, PkiError> {
    let mut bytes = [0; 4];
    fill_random(&mut bytes)?;
    Ok(format!("{:08x}", u32::from_be_bytes(bytes)))
}

/// Random bytes from the kernel.
pub(super) fn fill_random(bytes: &mut [u8]) -> Result<(), PkiError> {
    getrandom::fill(bytes).map_err(|error| {
        PkiError::new(
            PkiErrorKind::Crypto,
            "the kernel gave no random bytes",
            "check that the getrandom system call is allowed here",
        )
        .caused_by(error.to_string())
    })
}

/// Reads a file of at most [`MAX_FILE`] bytes as text.
pub(super) fn read_text(path: &Path) -> Result<String, PkiError> {
    let file = File::open(path).map_err(|error| PkiError::io("read", path, error))?;
    read_open(file, path)
}

fn read_open(file: File, path: &Path) -> Result<String, PkiError> {
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|error| PkiError::io("read", path, error))?;
    if text.len() as u64 > MAX_FILE {
        return Err(PkiError::new(
            PkiErrorKind::Malformed,
            format!("{} is larger than {MAX_FILE} bytes", path.display()),
            "it is no PEM file of this agent: check the path",
        ));
    }
    Ok(text)
}

/// Reads a private key after checking, on the open file, that nobody else can read it.
///
/// `group_may_read` is for systemd credentials: systemd grants the service's user access by an ACL, whose mask shows
/// up in the group bits although the group itself has no access.
pub(super) fn read_private(
    path: &Path,
    group_may_read: bool,
) -> Result<zeroize::Zeroizing<String>, PkiError> {
    let file = File::open(path).map_err(|error| PkiError::io("read", path, error))?;
    let metadata = file.metadata().map_err(|error| PkiError::io("inspect", path, error))?;
    let forbidden = if group_may_read { 0o037 } else { 0o077 };
    let mode = metadata.mode() & 0o777;
    if mode & forbidden != 0 {
        return Err(PkiError::new(
            PkiErrorKind::Permission,
            format!("the private key {} can be read or changed by others (mode {mode:04o})", path.display()),
            format!("run `chmod 600 {}`, and issue a new key if others may have read it", path.display()),
        ));
    }
    let us = rustix::process::geteuid().as_raw();
    // Root may look after the folder of a service's user.
    let folder = std::fs::metadata(parent_of(path)).map_err(|error| PkiError::io("inspect", path, error))?;
    let looked_after = us == 0 && folder.uid() == metadata.uid();
    if metadata.uid() != us && metadata.uid() != 0 && !looked_after {
        return Err(PkiError::new(
            PkiErrorKind::Permission,
            format!(
                "the private key {} belongs to user {}, not to us ({us})",
                path.display(),
                metadata.uid()
            ),
            format!("run `chown {us} {}`", path.display()),
        ));
    }
    read_open(file, path).map(zeroize::Zeroizing::new)
}

/// The path with links resolved, also when its last components do not exist yet.
pub(super) fn resolve(path: &Path) -> Result<PathBuf, PkiError> {
    let absolute = std::path::absolute(path).map_err(|error| PkiError::io("resolve", path, error))?;
    let mut missing = Vec::new();
    let mut existing = absolute.as_path();
    loop {
        match existing.canonicalize() {
            Ok(mut resolved) => {
                resolved.extend(missing.iter().rev());
                return Ok(resolved);
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let (Some(parent), Some(name)) = (existing.parent(), existing.file_name()) else {
                    // ".." after a folder that does not exist cannot be resolved.
                    return Err(PkiError::io("resolve", path, error));
                };
                missing.push(name.to_owned());
                existing = parent;
            }
            Err(error) => return Err(PkiError::io("resolve", path, error)),
        }
    }
}
