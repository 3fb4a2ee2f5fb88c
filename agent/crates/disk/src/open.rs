//! Opening files and devices as sources and sinks: locks, direct and buffered descriptors, size.
//!
//! All functions here block (briefly, unless the file system hangs); call them where blocking is fine.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::sync::RwLock;
use volume::{ByteLen, Content, Geometry, Kind, MAX_VOLUME, Op, VolumeError};

use crate::context::Disk;
use crate::failure;
use crate::file::{Body, FileSink, FileSource};
use crate::lock::{self, Refusal, Writers};
use crate::probe::{self, Shape};

/// How often, and how long apart, a volume that seems in use is asked again. A process that is being started holds
/// copies of all our descriptors between fork and exec, so what was closed a moment ago may look open for milliseconds;
/// and the ring of a process that was killed is taken apart by the kernel after its end, so that its files are still
/// open while the next process wants them, on a busy machine for a second. A real user stays.
const PATIENCE: u32 = 60;
const PAUSE: Duration = Duration::from_millis(50);

/// How to open a source.
#[derive(Clone, Copy, Debug, Default)]
pub struct SourceOptions {
    /// Read although others may write: only where a snapshot, a dirty bitmap or tracking makes the copy consistent
    /// (design rule 9).
    pub allow_shared: bool,
}

/// How to open a sink.
#[derive(Clone, Copy, Debug, Default)]
pub struct SinkOptions {
    /// Size of the volume in bytes. A file is cut or extended to it; a device must be at least as large, and only
    /// that much of it is the volume. Without it the target's own size is the volume's.
    pub size: Option<ByteLen>,
    /// The caller has just created the file and nobody wrote to it: it holds zeros.
    pub fresh: bool,
}

/// Flags for every open: no controlling terminal, no waiting on a FIFO that somebody put there.
const ALWAYS: OFlags = OFlags::CLOEXEC.union(OFlags::NOCTTY).union(OFlags::NONBLOCK);

impl Disk {
    /// Opens a file or block device to read.
    ///
    /// # Errors
    /// [`Kind::InUse`] when somebody else has it open for writing, locked, mounted or claimed and
    /// [`SourceOptions::allow_shared`] is off; otherwise what the system said.
    pub fn open_source(&self, path: &Path, options: SourceOptions) -> Result<FileSource, VolumeError> {
        let name = path.display().to_string();
        let file = open(path, OFlags::RDONLY, &name)?;
        self.source_from(file.into(), name, options)
    }

    /// Like [`Disk::open_source`], of a descriptor that the caller opened **for reading only**; `name` is for people.
    ///
    /// # Errors
    /// As [`Disk::open_source`].
    pub fn source_from(
        &self,
        descriptor: OwnedFd,
        name: impl Into<String>,
        options: SourceOptions,
    ) -> Result<FileSource, VolumeError> {
        let (mut anchor, name) = (File::from(descriptor), name.into());
        let (shape, size) = probe::shape(&anchor, &name)?;
        if options.allow_shared {
            patiently(|| lock::shared_source(&anchor).map_err(|refusal| refused(&name, refusal)))?;
        } else {
            match shape {
                Shape::File => patiently(|| no_writers(&anchor, &name))?,
                Shape::Device { .. } => anchor = patiently(|| claim_device(&anchor, OFlags::RDONLY, &name))?,
            }
            patiently(|| lock::source(&anchor).map_err(|refusal| refused(&name, refusal)))?;
        }
        let body = self.body(anchor, name, shape, size, OFlags::RDONLY)?;
        Ok(FileSource { body })
    }

    /// Creates a file of `size` zeros, all hole, and makes its name durable. It must not exist.
    ///
    /// # Errors
    /// [`Kind::Exists`], [`Kind::NoSpace`], [`Kind::Quota`] (also when the file system has no files of that size).
    pub fn create_sink(&self, path: &Path, size: ByteLen) -> Result<FileSink, VolumeError> {
        let name = path.display().to_string();
        let fail = |error: Errno| failure::of(Op::Create, &name, None, error.into());
        check_size(size, &name)?;
        let flags = ALWAYS | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(fail)?;
        let sink = self.sink_from(file, name.clone(), SinkOptions { size: Some(size), fresh: true });
        let durable = sink.and_then(|sink| {
            rustix::fs::fsync(&*sink.body.anchor).map_err(fail)?;
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or_else(|| Path::new("."));
            let folder =
                rustix::fs::open(parent, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
            rustix::fs::fsync(folder.map_err(fail)?).map_err(fail)?;
            Ok(sink)
        });
        if durable.is_err()
            && let Err(error) = rustix::fs::unlink(path)
        {
            tracing::warn!(path = %name, %error, "an unfinished target file is left behind; remove it");
        }
        durable
    }

    /// Opens an existing file or block device to write.
    ///
    /// # Errors
    /// [`Kind::InUse`] when anybody else uses it; [`Kind::TooSmall`] when a device cannot hold
    /// [`SinkOptions::size`]; otherwise what the system said.
    pub fn open_sink(&self, path: &Path, options: SinkOptions) -> Result<FileSink, VolumeError> {
        let name = path.display().to_string();
        // Before this process becomes a writer itself.
        let look = open(path, OFlags::RDONLY, &name)?;
        if probe::shape(&look, &name)?.0 == Shape::File {
            patiently(|| no_writers(&look, &name))?;
        }
        let file = probe::reopen(&look, OFlags::RDWR).or_else(|_| open(path, OFlags::RDWR, &name));
        drop(look);
        self.sink_from(file?.into(), name, options)
    }

    /// Like [`Disk::open_sink`], of a descriptor that the caller opened for reading and writing. A caller who created
    /// the file says so with [`SinkOptions::fresh`] and makes the name durable.
    ///
    /// # Errors
    /// As [`Disk::open_sink`].
    pub fn sink_from(
        &self,
        descriptor: OwnedFd,
        name: impl Into<String>,
        options: SinkOptions,
    ) -> Result<FileSink, VolumeError> {
        let (mut anchor, name) = (File::from(descriptor), name.into());
        let (shape, mut size) = probe::shape(&anchor, &name)?;
        if matches!(shape, Shape::Device { .. }) {
            // The claimant's own descriptor, because the kernel lets nobody else zero ranges of a claimed device.
            anchor = patiently(|| claim_device(&anchor, OFlags::RDWR, &name))?;
        }
        patiently(|| lock::target(&anchor).map_err(|refusal| refused(&name, refusal)))?;
        if let Some(wanted) = options.size {
            check_size(wanted, &name)?;
            match shape {
                Shape::File if wanted.0 != size => rustix::fs::ftruncate(&anchor, wanted.0)
                    .map_err(|error| failure::of(Op::Create, &name, None, error.into()))?,
                Shape::Device { .. } if wanted.0 > size => {
                    return Err(VolumeError::new(Kind::TooSmall, Op::Open, &name).advise(format!(
                        "it has {size} bytes and the volume {}; give a device that is at least as large",
                        wanted.0
                    )));
                }
                _ => {}
            }
            size = wanted.0;
        }
        // An empty file that grew to its size is all hole.
        let fresh = options.fresh && shape == Shape::File;
        let content = if fresh { Content::Zero } else { Content::Unknown };
        let body = self.body(anchor, name, shape, size, OFlags::RDWR)?;
        Ok(FileSink { body, content })
    }

    fn body(
        &self,
        anchor: File,
        name: String,
        shape: Shape,
        size: u64,
        access: OFlags,
    ) -> Result<Body, VolumeError> {
        check_size(ByteLen(size), &name)?;
        let fail = |error| failure::of(Op::Open, &name, None, error);
        let logical_block = match shape {
            Shape::File => 1,
            Shape::Device { sector } => sector,
        };
        let direct = match probe::direct_alignment(&anchor, shape) {
            None => None,
            // Refused by file systems without direct I/O and where /proc is not mounted.
            Some(alignment) => probe::reopen(&anchor, access | OFlags::DIRECT)
                .map(|file| (self.lane(file), alignment))
                .inspect_err(|error| {
                    tracing::debug!(volume = %name, %error, "no direct I/O; going through the page cache");
                })
                .ok(),
        };
        let buffered = match probe::reopen(&anchor, access) {
            Ok(file) => file,
            Err(_) => anchor.try_clone().map_err(fail)?,
        };
        Ok(Body {
            disk: self.clone(),
            name,
            anchor: Arc::new(anchor),
            direct,
            buffered: self.lane(buffered),
            direct_refused: AtomicBool::new(false),
            shape,
            geometry: Geometry { size: ByteLen(size), logical_block },
            order: Arc::new(RwLock::new(())),
            poison: Arc::new(AtomicBool::new(false)),
        })
    }
}

fn open(path: &Path, access: OFlags, name: &str) -> Result<File, VolumeError> {
    rustix::fs::open(path, ALWAYS | access, Mode::empty())
        .map(File::from)
        .map_err(|error| failure::of(Op::Open, name, None, error.into()))
}

/// Asks again while the answer is "in use".
fn patiently<T>(mut ask: impl FnMut() -> Result<T, VolumeError>) -> Result<T, VolumeError> {
    for _ in 1..PATIENCE {
        match ask() {
            Err(error) if error.kind() == Kind::InUse => std::thread::sleep(PAUSE),
            answer => return answer,
        }
    }
    ask()
}

fn check_size(size: ByteLen, name: &str) -> Result<(), VolumeError> {
    if size.0 <= MAX_VOLUME {
        return Ok(());
    }
    Err(VolumeError::new(Kind::Invalid, Op::Open, name)
        .advise(format!("{} bytes is more than the largest volume, {MAX_VOLUME}", size.0)))
}

fn refused(name: &str, refusal: Refusal) -> VolumeError {
    match refusal {
        Refusal::Held(what) => VolumeError::new(Kind::InUse, Op::Open, name)
            .advise(format!("{what}: stop that, or use a snapshot or live migration")),
        Refusal::Failed(error) => failure::of(Op::Open, name, None, error),
    }
}

/// Refuses a file that somebody has open for writing.
fn no_writers(file: &File, name: &str) -> Result<(), VolumeError> {
    match lock::writers(file).map_err(|error| failure::of(Op::Open, name, None, error))? {
        Writers::No => Ok(()),
        Writers::Yes => Err(VolumeError::new(Kind::InUse, Op::Open, name)
            .advise("a program has it open for writing: stop that, or use a snapshot or live migration")),
        Writers::Unknown => {
            tracing::warn!(
                volume = name,
                "cannot tell whether others have it open for writing (not this user's file, or a file system \
                 without leases); locks and file times are all that guards it"
            );
            Ok(())
        }
    }
}

fn claim_device(file: &File, access: OFlags, name: &str) -> Result<File, VolumeError> {
    match probe::reopen(file, access | OFlags::EXCL) {
        Ok(claim) => Ok(claim),
        Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => Err(VolumeError::new(
            Kind::InUse,
            Op::Open,
            name,
        )
        .caused_by(error)
        .advise(
            "the device is mounted, swapped to or claimed by another program: release it first (see lsblk)",
        )),
        Err(error) => Err(failure::of(Op::Open, name, None, error)),
    }
}
