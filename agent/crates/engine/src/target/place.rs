//! Where a target lies, and where its sidecar is.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use hypervisor::nbd::Uri;
use rustix::fs::{AtFlags, OFlags, RenameFlags};
use rustix::io::Errno;
use volume::SessionId;
use wire::FailCode;

use super::meta::{Meta, Stamp, State};
use super::{DATA, META, stamp_of};
use crate::error::EngineError;
use crate::folder::Folder;

/// Folder beneath a pool that holds its sidecars and keys.
pub const POOL_SIDECARS: &str = ".novaferry";

#[derive(Clone, Debug)]
pub(super) enum Place {
    /// A file `name` in `folder`; built as `data` in the sidecar.
    File { folder: Folder, name: String },
    /// A block device, written in place.
    Device { path: PathBuf },
    /// An NBD export, written in place.
    Nbd { uri: Uri },
}

/// A target's place and sidecar.
#[derive(Clone, Debug)]
pub struct Home {
    sidecar: Folder,
    place: Place,
    label: String,
    pool: bool,
}

/// Checks a volume's name: one component, `[a-z0-9][a-z0-9._-]{0,127}`.
pub fn check_name(name: &str) -> Result<(), EngineError> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let good = name.len() <= wire::control::MAX_NAME
        && name.starts_with(plain)
        && name.chars().all(|c| plain(c) || matches!(c, '.' | '_' | '-'));
    if good {
        return Ok(());
    }
    let what = format!(
        "{name:?} is no volume name; use 1 to 128 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit"
    );
    Err(EngineError::refused(FailCode::BadName, what))
}

impl Home {
    /// A volume of a pool. `root` is the pool's folder.
    pub fn in_pool(root: &Folder, pool: &str, name: &str) -> Result<Self, EngineError> {
        check_name(name)?;
        let sidecar = root.make_folder(POOL_SIDECARS)?.make_folder("volumes")?.make_folder(name)?;
        let place = Place::File { folder: root.clone(), name: name.to_owned() };
        Ok(Self { sidecar, place, label: format!("{pool}/{name}"), pool: true })
    }

    /// A path on this host: a regular file (there or to be made), or a block device.
    pub fn at_path(path: &Path, state: &Path) -> Result<Self, EngineError> {
        let label = path.display().to_string();
        let device = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device());
        if device {
            let sidecar = Folder::open_or_create(&state.join("devices").join(flat(&label)))?;
            return Ok(Self { sidecar, place: Place::Device { path: path.to_owned() }, label, pool: false });
        }
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name.filter(|_| !path.is_dir()) else {
            let what = format!("{label} is no file name; name the file that is to be written");
            return Err(EngineError::refused(FailCode::BadName, what));
        };
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let folder = Folder::open(parent)?;
        let sidecar = folder.make_folder(&format!(".{name}.novaferry"))?;
        Ok(Self { sidecar, place: Place::File { folder, name: name.to_owned() }, label, pool: false })
    }

    /// An NBD export.
    pub fn at_export(uri: &Uri, state: &Path) -> Result<Self, EngineError> {
        let label = uri.to_string();
        let sidecar = Folder::open_or_create(&state.join("exports").join(flat(&label)))?;
        Ok(Self { sidecar, place: Place::Nbd { uri: uri.clone() }, label, pool: false })
    }

    /// The sidecar.
    #[must_use]
    pub fn sidecar(&self) -> &Folder {
        &self.sidecar
    }

    /// The session that wrote the target last. If it has not sealed it, it goes on; if it has, and only the receipt
    /// was lost on the way to whoever asked, it is told again.
    pub fn last_session(&self) -> Result<Option<SessionId>, EngineError> {
        Ok(Meta::load(&self.sidecar, META)?.and_then(|meta| meta.session.parse().ok()))
    }

    /// The data of an unfinished volume is still where its journal says it is. For a file: it is there. A device's name
    /// may stand for another device after a reboot, so the kernel's sequence number of the disk is compared
    /// (`/sys/dev/block/*/diskseq`); an export may serve anything by now.
    pub(super) fn holds_what_was_journalled(&self, identity: Option<&str>) -> Result<bool, EngineError> {
        match &self.place {
            Place::File { .. } => self.sidecar.has(DATA),
            Place::Device { .. } => Ok(identity.is_some() && self.identity().as_deref() == identity),
            Place::Nbd { .. } => Ok(false),
        }
    }

    /// What tells this device from another under the same name.
    pub(super) fn identity(&self) -> Option<String> {
        use std::os::unix::fs::MetadataExt;
        let Place::Device { path } = &self.place else { return None };
        let number = std::fs::metadata(path).ok()?.rdev();
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        let sequence = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/diskseq")).ok()?;
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(format!("{major}:{minor} {} {}", sequence.trim(), boot.trim()))
    }

    /// The file, wherever it is, to be probed before anything is changed. Links are refused.
    pub(super) fn open_file(&self, flags: OFlags) -> Result<Option<OwnedFd>, EngineError> {
        let Place::File { folder, name } = &self.place else { return Ok(None) };
        for (folder, name) in [(&self.sidecar, DATA), (folder, name.as_str())] {
            if folder.has(name)? {
                return folder.open_at(name, flags).map(Some);
            }
        }
        Ok(None)
    }

    /// The target's name, for people.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    pub(super) fn is_pool(&self) -> bool {
        self.pool
    }

    /// Something that no sidecar speaks of is there already.
    pub(super) fn occupied(&self) -> Result<bool, EngineError> {
        match &self.place {
            Place::File { folder, name } => folder.has(name),
            // Devices and exports always hold something.
            Place::Device { .. } | Place::Nbd { .. } => Ok(true),
        }
    }

    /// The stamp of the file, wherever it is. Devices and exports have none.
    pub(super) fn stamp(&self) -> Result<Option<Stamp>, EngineError> {
        let Place::File { folder, name } = &self.place else { return Ok(None) };
        for (folder, name) in [(&self.sidecar, DATA), (folder, name.as_str())] {
            if folder.has(name)? {
                let file = File::from(folder.open_at(name, OFlags::RDONLY)?);
                let stamp = stamp_of(&file);
                return stamp
                    .map(Some)
                    .map_err(|error| EngineError::sidecar("look at", &folder.path().join(name), error));
            }
        }
        Ok(None)
    }

    /// Takes the file's name away, so that nobody opens it while it is inconsistent. `meta` says so already.
    pub(super) fn hide(&self) -> Result<(), EngineError> {
        let Place::File { folder, name } = &self.place else { return Ok(()) };
        if folder.has(name)? && !self.sidecar.has(DATA)? {
            folder.rename(name, &self.sidecar, DATA)?;
        }
        Ok(())
    }

    /// Gives a sealed file its name, also when a crash came between sealing and this.
    pub(crate) fn finish_publishing(&self) -> Result<(), EngineError> {
        let Place::File { folder, name } = &self.place else { return Ok(()) };
        let sealed = Meta::load(&self.sidecar, META)?.is_some_and(|meta| meta.state == State::Sealed);
        if !sealed || !self.sidecar.has(DATA)? {
            return Ok(());
        }
        if folder.is_same_file(name, &self.sidecar, DATA)? {
            // Linked but not yet unlinked when a crash came.
            return self.sidecar.remove(DATA);
        }
        folder.rename_without_replacing(&self.sidecar, DATA, name).map_err(|error| match error {
            Errno::EXIST => EngineError::refused(
                FailCode::Exists,
                format!("{} cannot get its name: somebody put another file there; move that away and run the same command again", self.label),
            ),
            other => EngineError::sidecar("rename", &self.sidecar.path().join(DATA), other.into()),
        })
    }
}

impl Folder {
    /// Both names are there and stand for one file.
    fn is_same_file(&self, name: &str, other: &Self, other_name: &str) -> Result<bool, EngineError> {
        if !self.has(name)? || !other.has(other_name)? {
            return Ok(false);
        }
        let stat = |folder: &Self, name: &str| {
            rustix::fs::statat(folder.descriptor(), name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| EngineError::sidecar("look at", &folder.path().join(name), error.into()))
        };
        let (ours, theirs) = (stat(self, name)?, stat(other, other_name)?);
        Ok((ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino))
    }

    /// Renames `name` of `from` into this folder, durably, unless something is there.
    fn rename_without_replacing(&self, from: &Self, name: &str, new_name: &str) -> Result<(), Errno> {
        let no_replace = RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(from.descriptor(), name, self.descriptor(), new_name, no_replace) {
            // File systems without the flag (renameat2(2)): a link fails in the same way when the name is taken.
            Err(Errno::INVAL | Errno::NOSYS) => {
                let none = AtFlags::empty();
                rustix::fs::linkat(from.descriptor(), name, self.descriptor(), new_name, none)?;
                rustix::fs::fsync(self.descriptor())?;
                rustix::fs::unlinkat(from.descriptor(), name, none)?;
            }
            renamed => renamed?,
        }
        rustix::fs::fsync(self.descriptor())?;
        rustix::fs::fsync(from.descriptor())
    }
}

/// A path or URI as one file name that another one does not share.
fn flat(label: &str) -> String {
    let readable: String =
        label.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(80).collect();
    format!("{readable}-{:016x}", xxhash_rust::xxh3::xxh3_64(label.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_plain_component() {
        for good in ["a", "web-1", "0", "a.b_c-d", &"x".repeat(128)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        let long = "x".repeat(129);
        for bad in [
            "",
            ".",
            "..",
            ".hidden",
            "-x",
            "_x",
            "a/b",
            "../a",
            "/a",
            "a\0",
            "A",
            "a b",
            "ä",
            "a\n",
            "a\\b",
            &long,
            ".novaferry",
            "a/../b",
            "~",
            "$x",
            "a;b",
            "*",
        ] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn flat_names_differ_where_labels_do() {
        assert_ne!(flat("/dev/a-b"), flat("/dev/a/b"));
        assert!(flat(&"x".repeat(500)).len() < 120);
    }
}
