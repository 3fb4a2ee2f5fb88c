//! A real `qemu-system-x86_64` without a guest, ended with its guard.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use novaferry_hypervisor::qmp::{MonitorErrorKind, Qmp};

/// For each command; far above what a busy machine needs.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// A QEMU. Ended, and waited for, when it is dropped.
pub(crate) struct System(pub(crate) Child);

impl Drop for System {
    fn drop(&mut self) {
        // Fails when it has ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl System {
    /// Starts a stopped machine with 64 MiB.
    pub(crate) fn start<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Self {
        let child = Command::new("qemu-system-x86_64")
            .args(["-M", "pc", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none", "-S"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("QEMU starts");
        Self(child)
    }

    /// Ends it now.
    pub(crate) fn end(&mut self) {
        self.0.kill().expect("kill QEMU");
        self.0.wait().expect("QEMU ends");
    }
}

/// The argument for a QMP socket.
pub(crate) fn qmp_option(socket: &Path) -> String {
    format!("unix:{},server=on,wait=off", socket.display())
}

/// Waits until `ready` holds.
pub(crate) async fn until(what: &str, mut ready: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if ready() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} takes too long");
}

/// Connects to a QEMU that is about to listen.
pub(crate) async fn connect(socket: &Path) -> Qmp {
    for _ in 0..3000 {
        match Qmp::connect(socket, TIMEOUT).await {
            Err(error) if error.kind() == MonitorErrorKind::Connect => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            connected => return connected.expect("QEMU greets"),
        }
    }
    panic!("QEMU does not listen at {}", socket.display());
}
