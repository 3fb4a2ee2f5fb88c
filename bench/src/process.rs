//! Processes that end with us.

use std::process::{Child, Command, ExitStatus};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How often a process is looked at while it runs: what its memory grows by between the last look and its end is
/// missed.
const LOOK: Duration = Duration::from_millis(5);

/// A process that is killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Guarded(Child);

impl Guarded {
    pub(crate) fn new(child: Child) -> Self {
        Self(child)
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Waits for the end, and calls `look` now and then until then.
    pub(crate) fn watch(&mut self, mut look: impl FnMut(u32)) -> Result<ExitStatus> {
        loop {
            look(self.id());
            if let Some(status) = self.0.try_wait().context("wait for a process")? {
                return Ok(status);
            }
            sleep(LOOK);
        }
    }

    /// Asks the process to end, and waits for that.
    pub(crate) fn terminate(mut self, patience: Duration) -> Result<ExitStatus> {
        let pid = Pid::from_child(&self.0);
        kill_process(pid, Signal::TERM).context("ask a process to end")?;
        let until = Instant::now() + patience;
        loop {
            if let Some(status) = self.0.try_wait().context("wait for a process")? {
                return Ok(status);
            }
            if Instant::now() >= until {
                bail!("process {} did not end within {patience:?} of SIGTERM; it is killed", self.id());
            }
            sleep(LOOK);
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // It may have ended already; there is nothing else to do about a process that cannot be killed.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Runs a command to its end; what it says is part of the error when it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().display().to_string();
    let output = command.output().with_context(|| format!("start {program}"))?;
    if output.status.success() {
        return Ok(());
    }
    bail!(
        "{program} ended with {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
