//! Which paths vmd touches for others, and what it does to them.
//!
//! The agent has no privilege, vmd may have all: so a path that the agent names is used only below the configured
//! folders, without following links, and only if it is a file or block device with one name.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{
    FileType, Gid, Mode, OFlags, ResolveFlags, Uid, fchmod, fchown, fstat, mkdir, open, openat2,
};

/// A folder of a VM: its disks, `config.json` and `qemu.pid`. The group may write; others may pass.
const VM_FOLDER: Mode = Mode::from_raw_mode(0o2771);
/// Its sockets: the VM's user and the agent's group.
const SOCKET_FOLDER: Mode = Mode::from_raw_mode(0o2770);
/// A disk: the VM's user and the agent's group.
const DISK: Mode = Mode::from_raw_mode(0o660);

/// Opens what the agent named, if it lies below one of the folders.
pub(crate) fn open_below(folders: &[PathBuf], path: &Path) -> io::Result<OwnedFd> {
    let denied = |why: &str| {
        let text = format!("{} {why}", path.display());
        io::Error::new(io::ErrorKind::PermissionDenied, text)
    };
    let inside = folders.iter().find_map(|folder| Some((folder, path.strip_prefix(folder).ok()?)));
    let (folder, rest) =
        inside.ok_or_else(|| denied("does not lie in a folder that vmd may use; see --disk-folder"))?;
    let root = open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // Not blocking: a FIFO would keep the caller for good.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(&root, rest, flags, Mode::empty(), resolve)
        .map_err(io::Error::from)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot open {}: {error}", path.display())))?;
    let stat = fstat(&file)?;
    match FileType::from_raw_mode(stat.st_mode) {
        // A second name may be that of somebody else's file.
        FileType::RegularFile if stat.st_nlink == 1 => Ok(file),
        FileType::BlockDevice => Ok(file),
        FileType::RegularFile => Err(denied("has several names (hard links)")),
        _ => Err(denied("is neither a file nor a block device")),
    }
}

/// Gives a disk to a user and the agent's group.
pub(crate) fn give(file: &OwnedFd, uid: u32, gid: u32) -> io::Result<()> {
    fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    Ok(fchmod(file, DISK)?)
}

/// Makes the VM's folder, with vmd's user (None: as it is) and the agent's group.
pub(crate) fn vm_folder(path: &Path, gid: Option<u32>) -> io::Result<()> {
    folder(path, gid.map(|gid| (0, gid)), VM_FOLDER)
}

/// Makes the folder of its sockets, with the VM's user and the agent's group.
pub(crate) fn socket_folder(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    folder(path, owner, SOCKET_FOLDER)
}

fn folder(path: &Path, owner: Option<(u32, u32)>, mode: Mode) -> io::Result<()> {
    match mkdir(path, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => {
            let error = io::Error::from(error);
            return Err(io::Error::new(error.kind(), format!("cannot make {}: {error}", path.display())));
        }
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = open(path, flags, Mode::empty())?;
    if let Some((uid, gid)) = owner {
        fchown(&folder, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    Ok(fchmod(&folder, mode)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_plain_files_below_the_folders_are_opened() {
        let outside = tempfile::tempdir().unwrap();
        let inside = tempfile::tempdir().unwrap();
        let path = |name: &str| inside.path().join(name);
        std::fs::write(outside.path().join("secret"), b"").unwrap();
        std::fs::write(path("disk"), b"").unwrap();
        std::fs::write(path("linked"), b"").unwrap();
        std::fs::hard_link(path("linked"), path("twice")).unwrap();
        symlink(outside.path().join("secret"), path("link")).unwrap();
        symlink(outside.path(), path("way")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, path("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            .unwrap();
        let folders = [inside.path().to_owned()];
        open_below(&folders, &path("disk")).unwrap();
        for name in ["absent", "linked", "link", "way/secret", "fifo", "", "../x"] {
            open_below(&folders, &path(name)).unwrap_err();
        }
        open_below(&folders, &outside.path().join("secret")).unwrap_err();
        open_below(&[], &path("disk")).unwrap_err();
    }

    #[test]
    fn folders_are_made_once_and_links_are_not_followed() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm");
        for _ in 0..2 {
            vm_folder(&path, None).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o2771);
        }
        symlink("/", folder.path().join("link")).unwrap();
        vm_folder(&folder.path().join("link"), None).unwrap_err();
    }
}
