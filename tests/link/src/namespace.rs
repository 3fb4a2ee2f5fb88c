//! Network namespaces with names that say who made them, so that those of dead processes can be removed.
//!
//! A name is `nf-<pid>-<start>-<number><side>`: the start time (in clock ticks since boot, from `/proc/<pid>/stat`)
//! tells a process from a later one with the same pid.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::{Kind, LinkError};

const PREFIX: &str = "nf-";

/// Where `ip netns` keeps the names (`ip-netns(8)`).
const NAMES: &str = "/run/netns";

/// A network namespace of this process; dropping it kills what still runs inside and removes it.
#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
    file: File,
}

/// A fresh pair of names for the two sides of one link.
pub(crate) fn unique_names() -> Result<[String; 2], LinkError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let pid = std::process::id();
    let start = start_time(pid).ok_or_else(|| {
        LinkError::new(Kind::Namespace, "read this process's start time from /proc/self/stat")
    })?;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Ok(["a", "b"].map(|side| format!("{PREFIX}{pid}-{start}-{number}{side}")))
}

impl Namespace {
    pub(crate) fn create(name: String) -> Result<Self, LinkError> {
        ip(&["netns", "add", &name], "").map_err(|error| {
            LinkError::new(Kind::Namespace, format!("make network namespace {name}")).caused_by(error)
        })?;
        match File::open(path(&name)) {
            Ok(file) => Ok(Self { name, file }),
            Err(error) => {
                remove(&name)?;
                Err(LinkError::new(Kind::Namespace, format!("open network namespace {name}"))
                    .caused_by(error))
            }
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs `action` on a thread inside the namespace: sockets it opens and processes it starts stay there.
    pub(crate) fn enter<T: Send>(&self, action: impl FnOnce() -> T + Send) -> Result<T, LinkError> {
        let inside = || {
            move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(action())
        };
        let result: io::Result<T> = thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        result.map_err(|error| {
            LinkError::new(Kind::Namespace, format!("enter network namespace {}", self.name)).caused_by(error)
        })
    }

    /// Runs `ip` commands, one a line, inside the namespace.
    pub(crate) fn configure(&self, commands: &str) -> Result<(), LinkError> {
        ip(&["-netns", &self.name, "-batch", "-"], commands).map_err(|error| {
            LinkError::new(Kind::Device, format!("configure network namespace {}", self.name))
                .caused_by(error)
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.name) {
            // A destructor has nobody to pass the error to; the next link's `remove_stale` tries again.
            eprintln!("novaferry-link: {error}: {:?}", std::error::Error::source(&error));
        }
    }
}

/// Removes the namespaces of links whose process has died without doing so, and kills what still runs inside them.
/// Gives their names. Every [`Link::up`](crate::Link::up) does this first.
///
/// # Errors
/// [`Kind::Namespace`] if the names cannot be listed or one cannot be removed.
pub fn remove_stale() -> Result<Vec<String>, LinkError> {
    let entries = match fs::read_dir(NAMES) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(LinkError::new(Kind::Namespace, format!("list {NAMES}")).caused_by(error)),
    };
    let mut removed = Vec::new();
    for entry in entries {
        let entry = entry
            .map_err(|error| LinkError::new(Kind::Namespace, format!("list {NAMES}")).caused_by(error))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if let Some((pid, start)) = owner(&name)
            && start_time(pid) != Some(start)
        {
            remove(&name)?;
            removed.push(name);
        }
    }
    Ok(removed)
}

/// The pid and start time in a name of ours.
fn owner(name: &str) -> Option<(u32, u64)> {
    let mut parts = name.strip_prefix(PREFIX)?.splitn(3, '-');
    let owner = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next()?;
    Some(owner)
}

/// When a process was started, in clock ticks since boot; nothing if it does not run (any more).
fn start_time(pid: u32) -> Option<u64> {
    parse_start_time(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Field 22 of `proc_pid_stat(5)`, unless field 3, the state, says that only the exit code is left. The second field,
/// the command in parentheses, may itself hold spaces and parentheses, so the count starts behind the last one.
fn parse_start_time(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let start = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(start)
}

fn path(name: &str) -> PathBuf {
    Path::new(NAMES).join(name)
}

/// Kills what runs in the namespace and removes its name. One that is gone already is fine: two processes may clean
/// up after the same dead one.
fn remove(name: &str) -> Result<(), LinkError> {
    let failed = |error: io::Error| {
        LinkError::new(Kind::Namespace, format!("remove network namespace {name}")).caused_by(error)
    };
    match fs::metadata(path(name)) {
        Ok(metadata) => kill_inside((metadata.dev(), metadata.ino())).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    }
    match ip(&["netns", "delete", name], "") {
        Err(error) if path(name).exists() => Err(failed(error)),
        _ => Ok(()),
    }
}

/// Kills every process, this one excepted, whose network namespace is `inside` (device and inode number).
fn kill_inside(inside: (u64, u64)) -> io::Result<()> {
    let is_inside = |pid: i32| {
        fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|found| (found.dev(), found.ino()) == inside)
    };
    // A process may fork while we look: look again until a round finds nobody new.
    let mut killed = BTreeSet::new();
    loop {
        let mut found = false;
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            if pid.cast_unsigned() == std::process::id() || killed.contains(&pid) || !is_inside(pid) {
                continue;
            }
            let Some(raw) = Pid::from_raw(pid) else { continue };
            // The pidfd pins the process, and the second look proves that it is still the one that was found.
            match pidfd_open(raw, PidfdFlags::empty()) {
                Ok(process) if is_inside(pid) => match pidfd_send_signal(&process, Signal::KILL) {
                    Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                    Err(error) => return Err(error.into()),
                },
                Ok(_) | Err(rustix::io::Errno::SRCH) => continue,
                Err(error) => return Err(error.into()),
            }
            killed.insert(pid);
            found = true;
        }
        if !found {
            return Ok(());
        }
    }
}

/// Runs the `ip` command with `input`; what it prints on failure becomes the error.
fn ip(arguments: &[&str], input: &str) -> io::Result<()> {
    let mut child = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!("`ip {}`: {}", arguments.join(" "), text.trim())));
    }
    written
}

#[cfg(test)]
mod tests {
    use super::{owner, parse_start_time, start_time, unique_names};

    #[test]
    fn names_tell_their_owner() {
        let [a, b] = unique_names().unwrap();
        assert_ne!(a, b);
        let pid = std::process::id();
        assert_eq!(owner(&a), Some((pid, start_time(pid).unwrap())));
        assert_eq!(owner(&b), owner(&a));
        for foreign in ["nf-", "nf-7-", "nf-x-1-0a", "nf-7-1", "nova-7-1-0a", "qemu"] {
            assert_eq!(owner(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn the_command_name_does_not_confuse_the_start_time() {
        let fields: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        let stat = |state: &str| format!("7 (a) S (b) {state} {}", fields.join(" "));
        assert_eq!(parse_start_time(&stat("S")), Some(22));
        assert_eq!(parse_start_time(&stat("Z")), None, "a zombie owns nothing");
        assert_eq!(parse_start_time("7 (short) S 1"), None);
    }
}
