//! What an interrupt leaves behind: vmd's guests outlive whoever started vmd, so they are ended by name of our folder.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, getpid, kill_process};
use tokio::signal::unix::{SignalKind, signal};

/// On SIGINT and SIGTERM, ends everything that works in `folder`, removes it unless it is to be kept, and dies.
/// Emulated links are removed by the next one.
pub(super) fn watch(folder: &Path, keep: bool) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let folder = folder.to_owned();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        end_all(&folder);
        if !keep && let Err(error) = fs::remove_dir_all(&folder) {
            eprintln!("novaferry-bench: {} stays: {error}", folder.display());
        }
        // Threads that wait for guests would wait for minutes.
        let _never_fails = kill_process(getpid(), Signal::KILL);
    });
    Ok(())
}

/// Kills processes that have `folder` in their command line. Nobody else's have: its name is made for this run.
fn end_all(folder: &Path) {
    let name = folder.as_os_str().as_encoded_bytes();
    let Ok(entries) = fs::read_dir("/proc") else { return };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    for pid in pids.filter_map(Pid::from_raw).filter(|pid| *pid != getpid()) {
        let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        if line.windows(name.len()).any(|part| part == name) {
            // It may end by itself meanwhile.
            let _gone = kill_process(pid, Signal::KILL);
        }
    }
}
