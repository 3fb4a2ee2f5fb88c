//! Kernels and firmware on this host, by digest.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use sha2::{Digest, Sha256};

use super::{FileFact, NamedHostFile};

/// Largest file that is hashed: kernels with their initial file system are below 1 GiB; guessed.
pub const MAX_BOOT_FILE: u64 = 1 << 30;

/// Reads and hashes a kernel, initial file system or firmware. Blocks for the time of the read.
///
/// # Errors
/// When it cannot be read, is no regular file or larger than [`MAX_BOOT_FILE`].
pub fn fact_of(path: &Path) -> io::Result<FileFact> {
    // Without NONBLOCK a FIFO of that name would stop the caller for good.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mut file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is no regular file"));
    }
    let mut hash = Sha256::new();
    let mut size = 0;
    let mut piece = vec![0; 256 << 10];
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            break;
        }
        size += read as u64;
        if size > MAX_BOOT_FILE {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "boot files are at most 1 GiB"));
        }
        hash.update(&piece[..read]);
    }
    let mut sha256 = String::with_capacity(64);
    for byte in hash.finalize() {
        // Writing to a string cannot fail.
        let _infallible = write!(sha256, "{byte:02x}");
    }
    Ok(FileFact { path: path.to_owned(), sha256, size })
}

/// The file that a name in a folder stands for: vmd follows no links. What leads out of the folder is left to vmd, which
/// refuses it.
fn real_name(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    let real = path.canonicalize().ok().zip(folder.canonicalize().ok());
    let inside = real.and_then(|(path, folder)| Some(path.strip_prefix(folder).ok()?.to_owned()));
    inside.map_or(path, |inside| folder.join(inside))
}

/// Which of the named files a folder holds, with their digests: what
/// [`HostMapping`](super::HostMapping) wants of the boot and firmware folders. Names that are not there are left out.
///
/// # Errors
/// When a file that is there cannot be read.
pub fn inventory<'a>(
    folder: &Path,
    names: impl IntoIterator<Item = &'a str>,
) -> io::Result<Vec<NamedHostFile>> {
    let mut found = Vec::new();
    for name in names {
        // The name may come from a peer: it must not lead out of the folder.
        if !super::is_plain_name(name) {
            continue;
        }
        match fact_of(&real_name(folder, name)) {
            Ok(fact) => found.push(NamedHostFile { name: name.to_owned(), file: fact }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}
