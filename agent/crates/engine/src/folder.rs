//! A folder by its descriptor. Names are single components, opened beneath it without following links
//! (`openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)`, openat2(2)), so that neither a name from
//! the wire nor a link that somebody planted leads outside.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::EngineError;

/// Largest file that is read whole (metadata, keys, receipts).
const MAX_SMALL: u64 = 256 << 10;

/// An open folder. Cloning shares the descriptor.
#[derive(Clone, Debug)]
pub struct Folder {
    descriptor: Arc<OwnedFd>,
    path: PathBuf,
}

fn private() -> Mode {
    Mode::RUSR | Mode::WUSR
}

impl Folder {
    /// Opens a folder that the operator named.
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| EngineError::sidecar("open folder", path, error.into()))?;
        Ok(Self { descriptor: Arc::new(descriptor), path: path.to_owned() })
    }

    /// Opens a folder that the operator named, making it (and its parents, private to us) when it is not there.
    pub fn open_or_create(path: &Path) -> Result<Self, EngineError> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| EngineError::sidecar("create folder", path, error))?;
        Self::open(path)
    }

    /// Where it is, for messages and for programs that need a path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn descriptor(&self) -> &OwnedFd {
        &self.descriptor
    }

    fn fail(&self, what: &'static str, name: &str) -> impl Fn(Errno) -> EngineError {
        let path = self.path.join(name);
        move |error| EngineError::sidecar(what, &path, error.into())
    }

    /// Opens a file or folder beneath this one.
    pub fn open_at(&self, name: &str, flags: OFlags) -> Result<OwnedFd, EngineError> {
        self.try_open(name, flags).map_err(self.fail("open", name))
    }

    fn try_open(&self, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let mode = if flags.contains(OFlags::CREATE) { private() } else { Mode::empty() };
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        loop {
            match rustix::fs::openat2(&*self.descriptor, name, flags, mode, resolve) {
                // A rename beneath us raced with the look-up.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// A folder beneath this one.
    pub fn folder(&self, name: &str) -> Result<Self, EngineError> {
        let descriptor = self.open_at(name, OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(Self { descriptor: Arc::new(descriptor), path: self.path.join(name) })
    }

    /// A folder beneath this one, made (private to us) when it is not there.
    pub fn make_folder(&self, name: &str) -> Result<Self, EngineError> {
        match rustix::fs::mkdirat(&*self.descriptor, name, Mode::RWXU) {
            Ok(()) => self.sync()?,
            Err(Errno::EXIST) => {}
            Err(error) => return Err(self.fail("create folder", name)(error)),
        }
        self.folder(name)
    }

    /// Lets every user pass through to what is in it, and no other see what that is.
    pub fn open_to_pass(&self) -> Result<(), EngineError> {
        rustix::fs::fchmod(&*self.descriptor, Mode::RWXU | Mode::XGRP | Mode::XOTH)
            .map_err(self.fail("open to others", "."))
    }

    /// True when something of this name is there, whatever it is.
    pub fn has(&self, name: &str) -> Result<bool, EngineError> {
        match rustix::fs::statat(&*self.descriptor, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(self.fail("look at", name)(error)),
        }
    }

    /// When a file was last changed, or `None` when it is not there.
    pub fn modified(&self, name: &str) -> Result<Option<std::time::SystemTime>, EngineError> {
        if !self.has(name)? {
            return Ok(None);
        }
        let file = File::from(self.open_at(name, OFlags::RDONLY)?);
        let modified = file.metadata().and_then(|metadata| metadata.modified());
        modified.map(Some).map_err(|error| EngineError::sidecar("look at", &self.path.join(name), error))
    }

    /// Names of the folders beneath this one.
    pub fn folders(&self) -> Result<Vec<String>, EngineError> {
        self.names(FileType::Directory)
    }

    /// Names of the regular files beneath this one.
    pub fn files(&self) -> Result<Vec<String>, EngineError> {
        self.names(FileType::RegularFile)
    }

    fn names(&self, wanted: FileType) -> Result<Vec<String>, EngineError> {
        let listing = rustix::fs::Dir::read_from(&*self.descriptor).map_err(self.fail("list", "."))?;
        let mut names = Vec::new();
        for entry in listing {
            let entry = entry.map_err(self.fail("list", "."))?;
            if let Ok(name) = entry.file_name().to_str()
                && !matches!(name, "." | "..")
                && (entry.file_type() == wanted || entry.file_type() == FileType::Unknown)
            {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Reads a small file whole, or `None` when it is not there.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, EngineError> {
        let descriptor = match self.try_open(name, OFlags::RDONLY) {
            Ok(descriptor) => descriptor,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(self.fail("open", name)(error)),
        };
        let mut bytes = Vec::new();
        File::from(descriptor)
            .take(MAX_SMALL + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| EngineError::sidecar("read", &self.path.join(name), error))?;
        if bytes.len() as u64 > MAX_SMALL {
            let what = format!("{} is larger than any file of ours", self.path.join(name).display());
            return Err(EngineError::Corrupt(what));
        }
        Ok(Some(bytes))
    }

    /// Replaces a small file as a whole and durably: after a crash either the old or the new one is there.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), EngineError> {
        let temporary = format!("{name}.new");
        let descriptor = self.open_at(&temporary, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)?;
        let mut file = File::from(descriptor);
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(|error| EngineError::sidecar("write", &self.path.join(&temporary), error))?;
        self.rename(&temporary, self, name)
    }

    /// Makes a small file as a whole and durably, unless there is one.
    pub fn create_once(&self, name: &str, bytes: &[u8]) -> Result<(), EngineError> {
        // A name of its own for each attempt, so that two at a time do not write to one file.
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| {
            EngineError::sidecar("draw random bytes for", &self.path.join(name), error.into())
        })?;
        let temporary = format!("{name}.{:016x}.new", u64::from_le_bytes(random));
        let mut file = File::from(self.open_at(&temporary, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?);
        let written = file
            .write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(|error| EngineError::sidecar("write", &self.path.join(&temporary), error));
        let linked = written.and_then(|()| {
            match rustix::fs::linkat(&*self.descriptor, &temporary, &*self.descriptor, name, AtFlags::empty())
            {
                Ok(()) | Err(Errno::EXIST) => Ok(()),
                Err(error) => Err(self.fail("create", name)(error)),
            }
        });
        self.remove(&temporary)?;
        linked?;
        self.sync()
    }

    /// Renames durably, from this folder into another on the same file system.
    pub fn rename(&self, name: &str, to: &Self, new_name: &str) -> Result<(), EngineError> {
        rustix::fs::renameat(&*self.descriptor, name, &*to.descriptor, new_name)
            .map_err(self.fail("rename", name))?;
        to.sync()?;
        if !Arc::ptr_eq(&self.descriptor, &to.descriptor) {
            self.sync()?;
        }
        Ok(())
    }

    /// Removes a file; it need not be there.
    pub fn remove(&self, name: &str) -> Result<(), EngineError> {
        match rustix::fs::unlinkat(&*self.descriptor, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(self.fail("remove", name)(error)),
        }
    }

    /// Removes files and the lock, in this order, and then the folder if nothing else is in it.
    pub fn clear(&self, names: &[&str]) -> Result<(), EngineError> {
        for name in names.iter().chain(&["lock"]) {
            self.remove(name)?;
        }
        match rustix::fs::rmdir(&self.path) {
            Ok(()) | Err(Errno::NOTEMPTY | Errno::NOENT | Errno::EXIST) => Ok(()),
            Err(error) => Err(self.fail("remove", ".")(error)),
        }
    }

    /// Makes the names in this folder durable.
    pub fn sync(&self) -> Result<(), EngineError> {
        rustix::fs::fsync(&*self.descriptor).map_err(self.fail("sync", "."))
    }

    /// Takes the folder's lock, or `None` when another process or session has it. It is free again when the file is
    /// dropped.
    pub fn lock(&self) -> Result<Option<File>, EngineError> {
        let descriptor = self.open_at("lock", OFlags::RDWR | OFlags::CREATE)?;
        match rustix::fs::flock(&descriptor, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(File::from(descriptor))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(self.fail("lock", "lock")(error)),
        }
    }
}

/// Reads exactly at an offset; the end of the file reads as zeros, as a hole would.
pub(crate) fn read_padded(file: &File, out: &mut [u8], at: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut done = 0;
    while done < out.len() {
        match file.read_at(&mut out[done..], at + done as u64) {
            Ok(0) => {
                out[done..].fill(0);
                return Ok(());
            }
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
