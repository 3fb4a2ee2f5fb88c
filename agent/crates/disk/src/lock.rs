//! Locks: nobody writes a source while it is read, and nobody else touches a target.
//!
//! Files carry open-file-description locks (`F_OFD_SETLK`), which belong to the descriptor and vanish with it, also
//! when the process is killed. They speak QEMU's language (its `block/file-posix.c`): a user of permission *p* holds
//! a read lock on byte 100+*p*; one who does not share *p* holds a read lock on byte 200+*p*; conflicts are found by
//! asking for a write lock. So an image that a QEMU has open for writing is refused as a source and as a target, and
//! a QEMU that would write to our source refuses to start.
//!
//! | who | holds | refuses when |
//! |---|---|---|
//! | source | read locks on "reads" (100), "write not shared" (201), "resize not shared" (203) | somebody writes (101), resizes (103) or does not share reads (200) |
//! | source, shared | read lock on 100 | a novaferry target or the like holds the file whole |
//! | target | a write lock on the whole file | anybody holds any lock |
//!
//! Writers without locks are found by asking for a read lease, which the kernel grants only when nobody has the file
//! open for writing. Block devices are claimed with `O_EXCL` besides, which mounts and other claimants exclude.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use rustix::io::Errno;

/// QEMU's permission numbers.
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;
/// First byte of the locks that say "I use this permission".
const USED: i64 = 100;
/// First byte of the locks that say "I do not share this permission".
const UNSHARED: i64 = 200;

/// How locking ended when it did not succeed.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Somebody else holds a conflicting lock; says what they do.
    Held(&'static str),
    /// The system failed.
    Failed(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// Locks a source against writers.
pub(crate) fn source(file: &File) -> Result<(), Refusal> {
    set(file, libc::F_RDLCK, USED + READ, 1, "somebody has it locked for exclusive use")?;
    for permission in [WRITE, RESIZE] {
        set(file, libc::F_RDLCK, UNSHARED + permission, 1, "somebody has it locked for exclusive use")?;
    }
    // Take first, look afterwards: of two who come at once at least one sees the other.
    look(file, USED + WRITE, "a virtual machine or another program has it locked for writing")?;
    look(file, USED + RESIZE, "a virtual machine or another program has it locked for resizing")?;
    look(file, UNSHARED + READ, "somebody does not allow it to be read meanwhile")
}

/// Marks a source as read although others may write it.
pub(crate) fn shared_source(file: &File) -> Result<(), Refusal> {
    set(file, libc::F_RDLCK, USED + READ, 1, "somebody has it locked for exclusive use")
}

/// Locks a target against everybody.
pub(crate) fn target(file: &File) -> Result<(), Refusal> {
    set(file, libc::F_WRLCK, 0, 0, "a virtual machine or another program has it locked")
}

fn record(kind: i32, start: i64, len: i64) -> libc::flock {
    let narrow = |value: i32| i16::try_from(value).expect("lock constants are small");
    libc::flock {
        l_type: narrow(kind),
        l_whence: narrow(libc::SEEK_SET),
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

fn set(file: &File, kind: i32, start: i64, len: i64, held: &'static str) -> Result<(), Refusal> {
    let lock = record(kind, start, len);
    // SAFETY: F_OFD_SETLK reads one `struct flock`, which outlives the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match errno(&error) {
        Some(Errno::AGAIN | Errno::ACCESS) => Err(Refusal::Held(held)),
        _ => Err(Refusal::Failed(error)),
    }
}

fn look(file: &File, byte: i64, held: &'static str) -> Result<(), Refusal> {
    let mut lock = record(libc::F_WRLCK, byte, 1);
    // SAFETY: F_OFD_GETLK reads and writes one `struct flock`, which outlives the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    if result != 0 {
        return Err(Refusal::Failed(io::Error::last_os_error()));
    }
    if i32::from(lock.l_type) == libc::F_UNLCK { Ok(()) } else { Err(Refusal::Held(held)) }
}

/// Whether somebody has a file open for writing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Writers {
    No,
    Yes,
    /// The system does not tell: not our file, or a file system without leases.
    Unknown,
}

/// `F_SETSIG` of <asm-generic/fcntl.h>, which the bindings lack.
const F_SETSIG: i32 = 10;

/// Asks for a read lease on `file`, which must be open for reading only, and gives it back at once.
pub(crate) fn writers(file: &File) -> io::Result<Writers> {
    let fd = file.as_raw_fd();
    // A writer that comes in between makes the kernel signal the lease holder, and SIGIO's default is to kill it.
    // SIGURG is ignored by default.
    // SAFETY: F_SETSIG takes an integer and touches no memory.
    if unsafe { libc::fcntl(fd, F_SETSIG, libc::SIGURG) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: F_SETLEASE takes an integer and touches no memory.
    if unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK) } != 0 {
        let error = io::Error::last_os_error();
        return match errno(&error) {
            Some(Errno::AGAIN | Errno::BUSY) => Ok(Writers::Yes),
            Some(
                Errno::ACCESS | Errno::PERM | Errno::INVAL | Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOTTY,
            ) => Ok(Writers::Unknown),
            _ => Err(error),
        };
    }
    // SAFETY: as above.
    if unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Writers::No)
}

fn errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw_os_error)
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;

    fn pair() -> (tempfile::TempPath, impl Fn(bool) -> File) {
        // Closed again: the file that made it would count as a writer.
        let file = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let path = file.to_path_buf();
        (file, move |write| OpenOptions::new().read(true).write(write).open(&path).unwrap())
    }

    fn held(result: Result<(), Refusal>) -> bool {
        match result {
            Ok(()) => false,
            Err(Refusal::Held(_)) => true,
            Err(Refusal::Failed(error)) => panic!("{error}"),
        }
    }

    #[test]
    fn sources_share_and_targets_do_not() {
        let (_file, open) = pair();
        let (first, second, third) = (open(false), open(false), open(true));
        source(&first).unwrap();
        source(&second).unwrap();
        shared_source(&open(false)).unwrap();
        assert!(held(target(&third)));
        drop((first, second));
        target(&third).unwrap();
        assert!(held(target(&open(true))));
        assert!(held(source(&open(false))));
        assert!(held(shared_source(&open(false))));
    }

    #[test]
    fn a_qemu_that_writes_is_seen_and_one_that_reads_is_not_in_the_way() {
        let (_file, open) = pair();
        // What QEMU 10 holds for a disk it writes: reads, writes, and shares neither writing nor resizing.
        let qemu = open(true);
        for byte in [USED + READ, USED + WRITE, UNSHARED + WRITE, UNSHARED + RESIZE] {
            set(&qemu, libc::F_RDLCK, byte, 1, "").unwrap();
        }
        assert!(held(source(&open(false))));
        assert!(held(target(&open(true))));
        shared_source(&open(false)).unwrap();
        drop(qemu);
        let qemu = open(false);
        for byte in [USED + READ, UNSHARED + WRITE, UNSHARED + RESIZE] {
            set(&qemu, libc::F_RDLCK, byte, 1, "").unwrap();
        }
        let ours = open(false);
        source(&ours).unwrap();
        // A QEMU that wants to write asks whether anybody does not share that.
        assert!(held(look(&qemu, UNSHARED + WRITE, "")));
        // One that only reads asks whether anybody writes.
        assert!(!held(look(&qemu, USED + WRITE, "")));
    }

    #[test]
    fn writers_without_locks_are_found() {
        let (_file, open) = pair();
        let reader = open(false);
        assert_eq!(writers(&reader).unwrap(), Writers::No);
        let writer = open(true);
        assert_eq!(writers(&reader).unwrap(), Writers::Yes);
        drop(writer);
        assert_eq!(writers(&reader).unwrap(), Writers::No);
    }

    /// A lease break signals its holder, by default with a signal that kills.
    #[test]
    fn a_writer_that_comes_during_the_question_does_not_kill_us() {
        let (_file, open) = pair();
        let reader = open(false);
        std::thread::scope(|scope| {
            let opener = scope.spawn(|| (0..2000).for_each(|_| drop(open(true))));
            while !opener.is_finished() {
                writers(&reader).unwrap();
            }
        });
    }
}
