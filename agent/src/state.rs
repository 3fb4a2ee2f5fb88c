//! Where a command keeps what must survive it: journals, sidecars, hash keys and receipts.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::env;
use crate::failure::Failure;

/// Folder of receipts in the state folder.
pub const RECEIPTS: &str = "receipts";

/// The folder: what was asked for, or the default. It is made, for its owner alone, when it is not there.
///
/// # Errors
/// When there is no place for it, or it cannot be made.
pub fn folder(asked: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let folder = match asked {
        Some(folder) => folder,
        None => default().ok_or_else(|| {
            Failure::new(
                "state",
                "there is no home folder to keep the state of copies in",
                "pass --state DIR",
            )
        })?,
    };
    make(&folder)?;
    std::path::absolute(&folder).map_err(|error| cannot("find", &folder, &error))
}

/// The folder as [`folder`] would choose it, without making it.
#[must_use]
pub fn existing(asked: Option<PathBuf>) -> Option<PathBuf> {
    asked.or_else(default)
}

/// systemd's folder; `/var/lib/novaferry` for root; the XDG state folder for others.
fn default() -> Option<PathBuf> {
    if let Some(folder) = env::state_directory() {
        return Some(folder);
    }
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from(crate::config::DEFAULT_STATE));
    }
    env::user_state_folder().map(|folder| folder.join("novaferry"))
}

/// Makes a folder for its owner alone.
///
/// # Errors
/// When it cannot be made.
pub fn make(folder: &Path) -> Result<(), Failure> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| cannot("make", folder, &error))
}

fn cannot(verb: &str, folder: &Path, error: &std::io::Error) -> Failure {
    let what = format!("cannot {verb} the state folder {}: {error}", folder.display());
    Failure::new("state", what, "pass --state DIR with a folder that this user may write")
}
