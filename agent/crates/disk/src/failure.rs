//! Operating-system errors as volume errors, with what the reader should do.

use std::io;

use rustix::io::Errno;
use volume::{ByteRange, Kind, Op, VolumeError};

/// Classifies `error` and adds advice and place.
pub(crate) fn of(op: Op, what: &str, range: Option<ByteRange>, error: io::Error) -> VolumeError {
    let kind = match (error.kind(), error.raw_os_error().map(Errno::from_raw_os_error)) {
        // The range was inside the volume when it was checked.
        (io::ErrorKind::UnexpectedEof, _) => Some(Kind::Changed),
        (io::ErrorKind::WriteZero, _) => Some(Kind::NoSpace),
        // A device that was detached, or a network file system that forgot the file.
        (_, Some(Errno::NXIO | Errno::NODEV | Errno::NOMEDIUM | Errno::STALE)) => Some(Kind::NotFound),
        _ => None,
    };
    let error = match kind {
        Some(kind) => VolumeError::new(kind, op, what).caused_by(error),
        None => VolumeError::io(op, what, error),
    };
    let error = match advice(error.kind(), op) {
        Some(advice) => error.advise(advice),
        None => error,
    };
    match range {
        Some(range) => error.at(range),
        None => error,
    }
}

fn advice(kind: Kind, op: Op) -> Option<&'static str> {
    match kind {
        Kind::Io if op == Op::Flush => Some(
            "check the kernel log and the disk; what was written is not durable and must be verified again",
        ),
        Kind::Io => Some("check the kernel log and the disk, then start again"),
        Kind::NoSpace => Some("free some space where the volume lies, then resume"),
        Kind::Quota => Some("raise the quota or the file size limit, then resume"),
        Kind::Changed => Some("something shortened it while it was open; stop that and start again"),
        Kind::NotFound => Some("check that the path is right and the disk still attached"),
        Kind::Permission => Some("give the agent's user access to it"),
        Kind::Exists => Some("choose another name, or open the existing volume with a re-sync"),
        Kind::InUse => Some("stop whatever uses it, then try again"),
        _ => None,
    }
}

/// The error of every call after a failed flush.
pub(crate) fn poisoned(op: Op, what: &str) -> VolumeError {
    VolumeError::new(Kind::Poisoned, op, what)
        .advise("close the volume, check the disk, and start a session that verifies what is there")
}

/// The error of a range that is not inside the volume.
pub(crate) fn out_of_range(op: Op, what: &str, at: u64, len: u64, size: u64) -> VolumeError {
    let range = ByteRange { start: at, end: at.saturating_add(len) };
    VolumeError::new(Kind::OutOfRange, op, what)
        .at(range)
        .advise(format!("the volume ends at byte {size}; this is a defect of whoever asked"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_classified_and_advise() {
        for (errno, kind) in [
            (Errno::NOSPC, Kind::NoSpace),
            (Errno::DQUOT, Kind::Quota),
            (Errno::FBIG, Kind::Quota),
            (Errno::IO, Kind::Io),
            (Errno::NODEV, Kind::NotFound),
            (Errno::ROFS, Kind::Permission),
            (Errno::BUSY, Kind::InUse),
        ] {
            let error = of(Op::Write, "disk", Some(ByteRange { start: 0, end: 1 }), errno.into());
            assert_eq!(error.kind(), kind, "{errno}");
            assert!(error.advice().is_some(), "{errno} has no advice");
        }
        let error = of(Op::Read, "disk", None, io::ErrorKind::UnexpectedEof.into());
        assert_eq!(error.kind(), Kind::Changed);
    }
}
