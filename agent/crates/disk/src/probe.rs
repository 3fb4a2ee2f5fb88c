//! What a file or device is: its kind, size, sector size and what direct I/O demands.

use std::fs::File;
use std::io;

use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags};
use rustix::io::Errno;
use volume::{Fingerprint, Kind, Op, VolumeError};

use crate::failure;

/// Alignment assumed where the kernel does not say: satisfies every sector size in use.
const SAFE_ALIGNMENT: u32 = 4096;

/// What holds the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shape {
    /// A regular file.
    File,
    /// A block device with this logical sector size in bytes.
    Device { sector: u32 },
}

/// What direct I/O demands, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Alignment {
    pub(crate) memory: usize,
    pub(crate) offset: u64,
}

/// Kind and size in bytes of what is open.
pub(crate) fn shape(file: &File, what: &str) -> Result<(Shape, u64), VolumeError> {
    let fail = |error: Errno| failure::of(Op::Open, what, None, error.into());
    let stat = rustix::fs::fstat(file).map_err(fail)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok((Shape::File, u64::try_from(stat.st_size).unwrap_or(0))),
        FileType::BlockDevice => {
            let sector = rustix::fs::ioctl_blksszget(file).map_err(fail)?;
            Ok((Shape::Device { sector }, device_size(file).map_err(fail)?))
        }
        other => Err(VolumeError::new(Kind::Invalid, Op::Open, what).advise(format!(
            "a volume is a regular file or a block device, and this is neither ({other:?})"
        ))),
    }
}

fn device_size(file: &File) -> Result<u64, Errno> {
    // BLKGETSIZE64 of <linux/fs.h>: declared with size_t, writes a u64.
    const BLKGETSIZE64: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<usize>(0x12, 114);
    // SAFETY: the opcode writes one u64 through its pointer, which is what the getter provides.
    unsafe {
        let getter = rustix::ioctl::Getter::<BLKGETSIZE64, u64>::new();
        rustix::ioctl::ioctl(file, getter)
    }
}

/// Has the kernel write zeros (BLKZEROOUT); the range is a multiple of the sector size.
pub(crate) fn zero_out(file: &File, start: u64, len: u64) -> Result<(), Errno> {
    // BLKZEROOUT of <linux/fs.h>: `_IO(0x12, 127)` with a pointer to two u64, start and length in bytes.
    const BLKZEROOUT: rustix::ioctl::Opcode = rustix::ioctl::opcode::none(0x12, 127);
    // SAFETY: the opcode reads two u64 through its pointer, which is what the setter provides.
    unsafe {
        let setter = rustix::ioctl::Setter::<BLKZEROOUT, [u64; 2]>::new([start, len]);
        rustix::ioctl::ioctl(file, setter)
    }
}

/// What direct I/O on `file` demands, or `None` when it cannot be had. Asks statx (STATX_DIOALIGN, Linux 6.1).
pub(crate) fn direct_alignment(file: &File, shape: Shape) -> Option<Alignment> {
    let fallback = match shape {
        Shape::File => SAFE_ALIGNMENT,
        Shape::Device { sector } => sector,
    };
    let asked = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    let (memory, offset) = match asked {
        Ok(answer) if answer.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => {
            (answer.stx_dio_mem_align, answer.stx_dio_offset_align)
        }
        _ => (fallback, fallback),
    };
    // Zero means that direct I/O is not supported on this file.
    if memory == 0 || offset == 0 {
        return None;
    }
    let memory = usize::try_from(memory).ok()?;
    Some(Alignment { memory, offset: u64::from(offset) })
}

/// Opens the same inode again with its own file description. Needs /proc.
pub(crate) fn reopen(file: &File, flags: OFlags) -> io::Result<File> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    Ok(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?.into())
}

/// Evidence that a file did not change.
pub(crate) fn fingerprint(file: &File) -> io::Result<Fingerprint> {
    let stat = rustix::fs::fstat(file)?;
    let nanoseconds = |seconds: i64, part: u64| i128::from(seconds) * 1_000_000_000 + i128::from(part);
    Ok(Fingerprint {
        device: stat.st_dev,
        inode: stat.st_ino,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        modified_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
        changed_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
    })
}
