//! Processes of this host, from `/proc` (Linux, proc(5)).
//!
//! A process id is used again after its process has ended; together with the start time it names one process.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::command_line::CommandLine;

/// Longest command line read, in bytes: Linux's own limit is 2 MiB with the environment; libvirt's have some 10 KiB.
const MAX_COMMAND_LINE: u64 = 1 << 20;

/// Longest `/proc/PID/stat`: 52 numbers and a name of 64 bytes.
const MAX_STAT: u64 = 4096;

/// Longest `/proc/net/unix`, in bytes: at 100 a line some 100,000 sockets.
const MAX_SOCKETS: u64 = 16 << 20;

/// Folder within a VM's that `novaferry-vmd` gives to its QEMU.
const OWN_FOLDER: &str = "run";

/// Most processes looked at: Linux's highest process id on 64 bits.
const MAX_PROCESSES: usize = 4 << 20;

/// What a process does, as far as that matters here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Activity {
    /// It runs or can run.
    Alive,
    /// A signal (SIGSTOP) or a debugger has stopped it. Its monitor does not answer.
    Suspended,
    /// It has ended and waits for its parent.
    Dead,
}

/// A process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// When it started, in clock ticks since the host's start (`starttime` of `/proc/PID/stat`).
    pub start_time: u64,
}

impl Process {
    /// The process that has this id now.
    ///
    /// # Errors
    /// That of reading `/proc`; [`io::ErrorKind::NotFound`] if there is none.
    pub fn find(pid: u32) -> io::Result<Self> {
        stat(pid).map(|(process, _)| process)
    }

    /// What this process does now; [`Activity::Dead`] also if its id belongs to another by now.
    ///
    /// # Errors
    /// That of reading `/proc`.
    pub fn activity(self) -> io::Result<Activity> {
        match stat(self.pid) {
            Ok((process, activity)) if process == self => Ok(activity),
            Ok(_) => Ok(Activity::Dead),
            Err(error) if is_gone(&error) => Ok(Activity::Dead),
            Err(error) => Err(error),
        }
    }

    /// Waits until this process is dead, but no longer than `patience`. One that was killed closes its sockets before
    /// its end can be seen, so that who hears a socket close must look twice.
    pub async fn is_dead_within(self, patience: Duration) -> bool {
        const BETWEEN: Duration = Duration::from_millis(10);
        let since = Instant::now();
        loop {
            match self.activity() {
                Ok(Activity::Dead) => return true,
                Ok(_) if since.elapsed() < patience => tokio::time::sleep(BETWEEN).await,
                Ok(_) | Err(_) => return false,
            }
        }
    }

    /// A path of this process's own, which may be relative to its folder. (A QEMU that became a daemon is in `/`,
    /// wherever it was started.)
    fn absolute(self, path: &Path) -> io::Result<PathBuf> {
        if path.is_absolute() {
            return Ok(path.to_owned());
        }
        Ok(fs::read_link(format!("/proc/{}/cwd", self.pid))?.join(path))
    }
}

/// A running QEMU.
#[derive(Clone, Debug)]
pub(super) struct Qemu {
    pub(super) process: Process,
    pub(super) activity: Activity,
    pub(super) line: CommandLine,
}

impl Qemu {
    /// The QEMU that has this id now; `None` if that is something else, or nothing.
    pub(super) fn find(pid: u32) -> io::Result<Option<Self>> {
        match Self::read(pid) {
            Err(error) if is_gone(&error) => Ok(None),
            found => found,
        }
    }

    fn read(pid: u32) -> io::Result<Option<Self>> {
        let (process, _) = stat(pid)?;
        let line =
            CommandLine::parse(&read_capped(Path::new(&format!("/proc/{pid}/cmdline")), MAX_COMMAND_LINE)?);
        // Again, so that both are of one process.
        let (same, activity) = stat(pid)?;
        let lives = same == process && activity != Activity::Dead;
        Ok((lives && line.is_qemu_system()).then_some(Self { process, activity, line }))
    }

    /// All that run on this host, by their ids. Those that cannot be read (another owner's, with `hidepid`) are not
    /// among them.
    pub(super) fn all() -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")?.take(MAX_PROCESSES) {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            match Self::find(pid) {
                Ok(qemu) => found.extend(qemu),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                Err(error) => return Err(error),
            }
        }
        found.sort_by_key(|qemu| qemu.process.pid);
        Ok(found)
    }

    /// A path of its command line.
    pub(super) fn absolute(&self, path: &Path) -> io::Result<PathBuf> {
        self.process.absolute(path)
    }

    /// Whether this QEMU is that of the folder: by its `-pidfile`, which vmd lets it write in a folder of its own in there,
    /// or, without one, by the files that it names.
    pub(super) fn belongs_to(&self, folder: &Path, pid_file: &str) -> bool {
        let Some(own) = &self.line.pid_file else {
            return forms(folder).iter().any(|folder| self.line.names_file_in(folder));
        };
        let Ok(own) = self.absolute(own) else { return false };
        let own = forms(&own);
        let places = [folder.join(pid_file), folder.join(OWN_FOLDER).join(pid_file)];
        places.iter().flat_map(|place| forms(place)).any(|path| own.contains(&path))
    }
}

/// Whether somebody of this network namespace listens at a unix socket, by `/proc/net/unix`: found without
/// connecting. The kernel lists the path as it was bound.
pub(super) fn listening(socket: &Path) -> io::Result<bool> {
    let list = read_capped(Path::new("/proc/net/unix"), MAX_SOCKETS)?;
    let wanted = forms(socket);
    Ok(list.split(|byte| *byte == b'\n').any(|line| {
        // Num RefCount Protocol Flags Type St Inode Path; the flag is SO_ACCEPTCON.
        let mut fields = line.splitn(8, |byte| *byte == b' ');
        let accepts = fields.nth(3) == Some(&b"00010000"[..]);
        let path = fields.nth(3).map(<[u8]>::trim_ascii_start);
        accepts && wanted.iter().any(|wanted| path == Some(wanted.as_os_str().as_encoded_bytes()))
    }))
}

/// A path as it is written, and as it is without links; the latter only if it is there.
fn forms(path: &Path) -> Vec<PathBuf> {
    let mut forms = vec![path.to_owned()];
    forms.extend(path.canonicalize());
    forms
}

/// Whether the error says that the process has ended.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

fn stat(pid: u32) -> io::Result<(Process, Activity)> {
    let bytes = read_capped(Path::new(&format!("/proc/{pid}/stat")), MAX_STAT)?;
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has another form"));
    let (activity, start_time) = parse_stat(&bytes).ok_or_else(wrong)?;
    Ok((Process { pid, start_time }, activity))
}

/// State (field 3) and start time (field 22). The name before them can hold anything, parentheses and blanks included.
fn parse_stat(bytes: &[u8]) -> Option<(Activity, u64)> {
    let end_of_name = bytes.iter().rposition(|byte| *byte == b')')?;
    let mut fields = std::str::from_utf8(&bytes[end_of_name + 1..]).ok()?.split_ascii_whitespace();
    let activity = match fields.next()? {
        "T" | "t" => Activity::Suspended,
        "Z" | "X" | "x" => Activity::Dead,
        _ => Activity::Alive,
    };
    Some((activity, fields.nth(18)?.parse().ok()?))
}

/// A whole file of at most `limit` bytes. Does not wait, whatever the path names.
///
/// # Errors
/// The operating system's; [`io::ErrorKind::InvalidData`] if it is longer, or no file.
pub(super) fn read_capped(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let flags =
        i32::try_from(flags.bits()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("longer than {limit} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_past_a_hostile_name() {
        let rest = "1 1 1 0 -1 4194560 1 0 0 0 1 1 0 0 20 0 1 0 8643 1 1 1";
        for (name, state, activity) in [
            ("qemu-system-x86", "S", Activity::Alive),
            (") Z 1 (", "T", Activity::Suspended),
            ("a b", "Z", Activity::Dead),
        ] {
            let text = format!("77 ({name}) {state} {rest}");
            assert_eq!(parse_stat(text.as_bytes()), Some((activity, 8643)), "{text}");
        }
        for text in ["", "77 (x", "77 (x) S 1 2", "77 (x) S 1 1 1 0 -1 4194560 1 0 0 0 1 1 0 0 20 0 1 0 x"] {
            assert_eq!(parse_stat(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_process_is_its_id_and_its_start() {
        let own = Process::find(std::process::id()).unwrap();
        assert_eq!(own.activity().unwrap(), Activity::Alive);
        let earlier = Process { start_time: own.start_time - 1, ..own };
        assert_eq!(earlier.activity().unwrap(), Activity::Dead);
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let process = Process::find(child.id()).unwrap();
        child.wait().unwrap();
        assert_eq!(process.activity().unwrap(), Activity::Dead);
        assert!(Qemu::find(own.pid).unwrap().is_none(), "this is a test, no QEMU");
    }

    #[test]
    fn a_listener_is_seen_without_connecting() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("a socket");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(listening(&socket).unwrap());
        assert!(!listening(&folder.path().join("another")).unwrap());
        drop(listener);
        assert!(!listening(&socket).unwrap(), "its file is still there");
    }

    #[test]
    fn only_regular_files_within_the_cap_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("f");
        fs::write(&file, [7; 100]).unwrap();
        assert_eq!(read_capped(&file, 100).unwrap(), [7; 100]);
        assert_eq!(read_capped(&file, 99).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let fifo = folder.path().join("p");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
        assert_eq!(read_capped(&fifo, 99).unwrap_err().kind(), io::ErrorKind::InvalidData);
        read_capped(folder.path(), 99).unwrap_err();
    }
}
