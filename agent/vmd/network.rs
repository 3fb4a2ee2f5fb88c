//! Tap devices, made with `ip` for the VM's user and plugged into a bridge. QEMU may not do that itself: its sandbox
//! forbids the helper, and its user may not.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

/// Most tap devices of this host's VMs together: what a bridge of Linux has ports for.
const MAX_TAPS: u32 = 1023;

/// Makes a tap device in a bridge; returns its name.
pub(crate) fn plug(bridge: &str, uid: u32) -> io::Result<String> {
    let taken = |name: &str| Path::new("/sys/class/net").join(name).exists();
    for number in 0..MAX_TAPS {
        let name = format!("novaferry{number}");
        if taken(&name) {
            continue;
        }
        ip(&["tuntap", "add", "dev", &name, "mode", "tap", "user", &uid.to_string()])?;
        let plugged = ip(&["link", "set", "dev", &name, "master", bridge, "up"]);
        if let Err(error) = plugged {
            unplug(&name)?;
            return Err(error);
        }
        return Ok(name);
    }
    Err(io::Error::other(format!("there are {MAX_TAPS} tap devices already")))
}

/// Removes a tap device. That it is gone already is no error.
pub(crate) fn unplug(name: &str) -> io::Result<()> {
    if !Path::new("/sys/class/net").join(name).exists() {
        return Ok(());
    }
    ip(&["link", "delete", "dev", name])
}

fn ip(arguments: &[&str]) -> io::Result<()> {
    let output = Command::new("ip").args(arguments).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("ip {}: {}", arguments.join(" "), said.trim())))
}
