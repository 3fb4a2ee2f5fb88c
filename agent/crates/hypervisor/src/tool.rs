//! Running QEMU's programs: found in PATH, spoken to in the C locale, with bounded output and a time limit.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use crate::error::Error;

/// Bytes kept of what a program says on stderr: the end, where the reason is.
const MAX_STDERR: usize = 16 << 10;

/// The full path of a program in PATH.
pub(crate) fn find(program: &'static str) -> Result<PathBuf, Error> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/local/bin:/usr/bin:/bin"));
    let runnable = |candidate: &PathBuf| {
        candidate.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(program))
        .find(runnable)
        .ok_or(Error::ToolMissing { program })
}

/// Runs a program to its end and returns what it printed, at most `limit` bytes of it.
pub(crate) async fn run(
    program: &'static str,
    arguments: &[OsString],
    limit: usize,
    timeout: Duration,
) -> Result<Vec<u8>, Error> {
    let system = |source| Error::System { what: format!("run {program}"), source };
    let mut child = Command::new(find(program)?)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(system)?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(system(std::io::ErrorKind::BrokenPipe.into()));
    };
    let mut out = Vec::new();
    let mut said = Tail::default();
    let work = async {
        let mut stdout = stdout.take(limit as u64 + 1);
        let read = async {
            stdout.read_to_end(&mut out).await.map_err(system)?;
            // Before it is waited for: it may be blocked on the output that nobody reads any more.
            if out.len() > limit {
                return Err(Error::ToolOutput { program, why: format!("more than {limit} bytes") });
            }
            Ok(())
        };
        let follow = async {
            said.follow(stderr).await;
            Ok(())
        };
        tokio::try_join!(read, follow)?;
        child.wait().await.map_err(system)
    };
    let late = || Err(Error::ToolTimeout { program, seconds: timeout.as_secs() });
    match tokio::time::timeout(timeout, work).await.ok().unwrap_or_else(late) {
        Ok(status) if status.success() => Ok(out),
        Ok(status) => Err(failed(program, status, said.text())),
        Err(error) => {
            child.kill().await.map_err(system)?;
            Err(error)
        }
    }
}

pub(crate) fn failed(program: &'static str, status: ExitStatus, stderr: String) -> Error {
    Error::ToolFailed { program, status: status.to_string(), stderr }
}

/// Whether QEMU's complaint is that somebody else holds the image's lock.
pub(crate) fn says_locked(stderr: &str) -> bool {
    stderr.contains("Is another process using the image") || stderr.contains("Failed to get \"write\" lock")
}

/// The last bytes of a stream.
#[derive(Debug, Default)]
pub(crate) struct Tail(Vec<u8>);

impl Tail {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        let excess = self.0.len().saturating_sub(MAX_STDERR);
        self.0.drain(..excess);
    }

    /// Keeps what comes until the stream ends; a stream that fails has ended.
    async fn follow(&mut self, mut stream: impl AsyncRead + Unpin) {
        let mut piece = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut piece).await {
            self.push(&piece[..n]);
        }
    }

    /// As one line without control characters, so that a file name cannot forge log lines.
    pub(crate) fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.0);
        text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
    }
}

/// An image file as QEMU's `--image-opts`: driver and file are named, so nothing is probed, and no character of the
/// path means anything (a comma is doubled; that is the only escape the syntax knows).
pub(crate) fn image_options(path: &Path, driver: &str) -> Result<OsString, Error> {
    let path = absolute(path)?;
    let kind = path.metadata().map_err(|source| open_error(&path, source))?.file_type();
    let protocol = if kind.is_block_device() { "host_device" } else { "file" };
    let mut options = format!("driver={driver},file.driver={protocol},file.filename=").into_bytes();
    for &byte in path.as_os_str().as_bytes() {
        options.push(byte);
        if byte == b',' {
            options.push(byte);
        }
    }
    Ok(OsString::from_vec(options))
}

/// Absolute, so that a path that starts with a dash or holds a colon is no option and no protocol.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).map_err(|source| open_error(path, source))
}

fn open_error(path: &Path, source: std::io::Error) -> Error {
    if source.kind() == std::io::ErrorKind::NotFound {
        return Error::NotFound { what: format!("image {}", path.display()) };
    }
    Error::System { what: format!("look at image {}", path.display()), source }
}

/// A format's name as QEMU knows it: the agent passes only names that its configuration or command line chose.
pub(crate) fn check_format(format: &str) -> Result<(), Error> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    if !format.is_empty() && format.len() <= 32 && format.bytes().all(plain) {
        return Ok(());
    }
    Err(Error::Invalid {
        what: format!("\"{format}\" is not an image format; write for example raw or qcow2"),
    })
}

/// `name=value` arguments and the like.
pub(crate) fn arguments<const N: usize>(list: [&OsStr; N]) -> Vec<OsString> {
    list.into_iter().map(OsStr::to_os_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_bounded_and_one_line() {
        let mut tail = Tail::default();
        tail.push(&vec![b'x'; MAX_STDERR]);
        tail.push(b"why\nthen\x1b[2J");
        assert_eq!(tail.0.len(), MAX_STDERR);
        assert!(tail.text().ends_with("xwhy then [2J"));
    }

    #[test]
    fn a_missing_program_is_said_to_be() {
        let error = find("novaferry-absent-program").unwrap_err();
        assert!(matches!(error, Error::ToolMissing { .. }), "{error}");
    }

    #[tokio::test]
    async fn output_and_time_are_bounded() {
        let forever = Duration::from_secs(60);
        let error = run("yes", &[], 1000, forever).await.unwrap_err();
        assert!(matches!(error, Error::ToolOutput { .. }), "{error}");
        let error = run("sleep", &["60".into()], 1000, Duration::from_millis(1)).await.unwrap_err();
        assert!(matches!(error, Error::ToolTimeout { .. }), "{error}");
        let script = ["-c".into(), "echo out; echo why >&2; exit 3".into()];
        let error = run("sh", &script, 1000, forever).await.unwrap_err();
        assert!(matches!(&error, Error::ToolFailed { stderr, .. } if stderr == "why"), "{error}");
        assert_eq!(run("echo", &["x".into()], 2, forever).await.unwrap(), b"x\n");
    }

    #[test]
    fn formats_are_plain_words() {
        for good in ["raw", "qcow2", "vmdk", "host_device"] {
            check_format(good).unwrap();
        }
        for bad in ["", "qcow2,file.driver=nbd", "QCOW2", "a b", "x=y"] {
            assert!(check_format(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn commas_are_doubled_and_nothing_else_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a,b:c=d -e");
        std::fs::write(&path, b"").unwrap();
        let options = image_options(&path, "raw").unwrap();
        let expected =
            format!("driver=raw,file.driver=file,file.filename={}/a,,b:c=d -e", folder.path().display());
        assert_eq!(options, OsString::from(expected));
    }
}
