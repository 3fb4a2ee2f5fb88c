//! Processes that are not this one's children.
//!
//! A process is known by its id, start time and the host's boot: an id alone may by now be somebody else's.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// A process for good.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Clock ticks since boot, field 22 of `/proc/PID/stat`.
    start: u64,
    boot: String,
}

impl Process {
    /// The process with this id as it is now; none when there is none.
    pub(crate) fn of(pid: u32) -> io::Result<Option<Self>> {
        let Some(start) = start_of(pid) else { return Ok(None) };
        Ok(Some(Self { pid, start, boot: boot()? }))
    }

    /// Whether it runs. One that has ended and waits for its parent does not.
    pub(crate) fn lives(&self) -> bool {
        start_of(self.pid) == Some(self.start) && boot().is_ok_and(|boot| boot == self.boot)
    }

    /// A handle that stays this process's; none when it has ended.
    fn handle(&self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        match pidfd_open(pid, PidfdFlags::empty()) {
            // Looked at after the handle was made, so that the handle is of what was looked at.
            Ok(handle) => Ok(self.lives().then_some(handle)),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a signal and waits until the process has ended. False when it has not in time.
    pub(crate) fn end(&self, signal: Signal, patience: Duration) -> io::Result<bool> {
        let Some(handle) = self.handle()? else { return Ok(true) };
        match pidfd_send_signal(&handle, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
        let patience = Timespec::try_from(patience).ok();
        let ended = poll(&mut [PollFd::new(&handle, PollFlags::IN)], patience.as_ref())?;
        Ok(ended > 0)
    }
}

/// None when there is no such process, or it is only waited for.
fn start_of(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, also parentheses: the fields start after the last one.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if ["Z", "X", "x"].contains(&state) {
        return None;
    }
    // State is field 3.
    fields.nth(22 - 4)?.parse().ok()
}

fn boot() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_itself_and_no_other() {
        let me = Process::of(std::process::id()).unwrap().unwrap();
        assert!(me.lives());
        assert!(!Process { start: me.start + 1, ..me.clone() }.lives());
        assert!(!Process { boot: "another".to_owned(), ..me }.lives());
        assert!(Process::of(u32::MAX).unwrap().is_none());
    }

    #[test]
    fn a_process_ends_and_its_remains_do_not_live() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let process = Process::of(child.id()).unwrap().unwrap();
        assert!(process.lives());
        assert!(process.end(Signal::KILL, Duration::from_secs(20)).unwrap());
        assert!(!process.lives(), "a zombie");
        assert!(process.end(Signal::KILL, Duration::from_secs(20)).unwrap(), "twice does no harm");
        child.wait().unwrap();
    }
}
