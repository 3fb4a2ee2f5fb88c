//! What a process 1 has to do for its machine: file systems, drivers, the power button.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use novaferry_guest_init::POWER_OFF;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::system::RebootCommand;

use crate::state::State;

/// Where the initramfs has the drivers.
const MODULES: &str = "/modules";

/// Where the input devices are.
const INPUT: &str = "/dev/input";

/// Size of the kernel's `struct input_event` on 64-bit machines (include/uapi/linux/input.h): a time of 16 bytes, then
/// type and code, two bytes each, and a value of four.
const INPUT_EVENT: usize = 24;

/// `EV_KEY` and `KEY_POWER`, the button pressed (include/uapi/linux/input-event-codes.h).
const PRESSED: [u8; 8] = [1, 0, 116, 0, 1, 0, 0, 0];

/// Mounts what the kernel shows of itself.
///
/// # Returns
/// The kernel's command line.
pub(crate) fn mount() -> io::Result<String> {
    for (kind, folder) in [("proc", "/proc"), ("devtmpfs", "/dev")] {
        fs::create_dir_all(folder)?;
        rustix::mount::mount(kind, folder, kind, MountFlags::empty(), None)?;
    }
    fs::read_to_string("/proc/cmdline")
}

/// When the machine booted.
pub(crate) fn boot_time() -> Instant {
    let now = Instant::now();
    let clock = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let up = Duration::try_from(clock).unwrap_or_default();
    now.checked_sub(up).unwrap_or(now)
}

/// Loads the drivers. Which needs which is found by trying: one whose symbols are missing is tried again after the
/// others, as long as any gets in.
///
/// # Returns
/// The drivers that could not be loaded, and why.
pub(crate) fn load_modules() -> io::Result<Vec<(String, Errno)>> {
    let mut waiting: Vec<PathBuf> = match fs::read_dir(MODULES) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?,
        // A kernel that has them built in.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    waiting.sort();
    loop {
        let before = waiting.len();
        let mut failed = Vec::new();
        for path in waiting {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            match rustix::system::finit_module(&File::open(&path)?, c"", 0) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => failed.push((path, name, error)),
            }
        }
        if failed.is_empty() || failed.len() == before {
            return Ok(failed.into_iter().map(|(_, name, error)| (name, error)).collect());
        }
        waiting = failed.into_iter().map(|(path, _, _)| path).collect();
    }
}

/// Waits for the power button and then powers off, between two writes to the disk. Without a button it ends.
pub(crate) fn watch_power_button(state: &State) {
    if let Err(error) = wait_until_pressed() {
        if error.kind() != io::ErrorKind::NotFound {
            state.corrupt(&format!("power button: {error}"));
        }
        return;
    }
    let _busy = state.disk_busy();
    rustix::fs::sync();
    state.say(POWER_OFF);
    if let Err(error) = rustix::system::reboot(RebootCommand::PowerOff) {
        state.corrupt(&format!("power off: {error}"));
    }
    loop {
        thread::park();
    }
}

/// Reads all input devices, which may be a keyboard and a mouse beside the button.
fn wait_until_pressed() -> io::Result<()> {
    let mut devices = Vec::new();
    for entry in fs::read_dir(INPUT)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b"event") {
            devices.push(File::open(entry.path())?);
        }
    }
    if devices.is_empty() {
        return Err(io::ErrorKind::NotFound.into());
    }
    loop {
        let mut polled: Vec<PollFd<'_>> =
            devices.iter().map(|device| PollFd::new(device, PollFlags::IN)).collect();
        rustix::event::poll(&mut polled, None)?;
        let ready: Vec<bool> = polled.iter().map(|polled| !polled.revents().is_empty()).collect();
        for (mut device, ready) in devices.iter().zip(ready) {
            let mut event = [0; INPUT_EVENT];
            if ready {
                device.read_exact(&mut event)?;
            }
            if event[16..] == PRESSED {
                return Ok(());
            }
        }
    }
}
