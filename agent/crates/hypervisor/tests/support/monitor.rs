//! QEMU guests for tests: a process that ends with the test, and a few commands to it, written apart from the crate.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Far beyond what anything takes here: a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A boot sector that dirties memory and writes `B` to the first serial port for ever: 16-bit code, no kernel needed.
///
/// ```text
/// mov dx, 3f8h; l: mov al, 'B'; out dx, al; mov cx, 0; w: inc word [1000h]; loop w; jmp l
/// ```
pub(crate) fn boot_sector() -> Vec<u8> {
    let code: [u8; 18] = [
        0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xb0, b'B', // l: mov al, 'B'
        0xee, // out dx, al
        0xb9, 0x00, 0x00, // mov cx, 0
        0xff, 0x06, 0x00, 0x10, // w: inc word [0x1000]
        0xe2, 0xfa, // loop w
        0xeb, 0xf2, // jmp l
        0x90,
    ];
    let mut sector = vec![0; 512];
    sector[..code.len()].copy_from_slice(&code);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// A disk of 1 MiB that boots.
pub(crate) fn boot_disk(path: &Path) {
    let mut disk = boot_sector();
    disk.resize(1 << 20, 0);
    std::fs::write(path, disk).expect("write disk");
}

/// Polls until it is so.
pub(crate) fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A QMP connection.
pub(crate) struct Monitor {
    reader: BufReader<UnixStream>,
}

impl Monitor {
    pub(crate) fn connect(socket: &Path) -> Self {
        let mut stream = None;
        until("QMP listens", || {
            stream = UnixStream::connect(socket).ok();
            stream.is_some()
        });
        let stream = stream.expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("set timeout");
        let mut monitor = Self { reader: BufReader::new(stream) };
        assert!(monitor.line().get("QMP").is_some());
        monitor.execute("qmp_capabilities", json!({}));
        monitor
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("QMP answers");
        serde_json::from_str(&line).expect("QMP speaks JSON")
    }

    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Value {
        let text = json!({"execute": command, "arguments": arguments}).to_string();
        self.reader.get_mut().write_all(text.as_bytes()).expect("QMP listens");
        loop {
            let mut answer = self.line();
            if let Some(value) = answer.get_mut("return") {
                return value.take();
            }
            assert!(answer.get("event").is_some(), "{command}: {answer}");
        }
    }

    pub(crate) fn status(&mut self) -> String {
        self.execute("query-status", json!({}))["status"].as_str().expect("a status").to_owned()
    }

    /// What the human monitor says.
    pub(crate) fn human(&mut self, line: &str) -> String {
        let said = self.execute("human-monitor-command", json!({"command-line": line}));
        said.as_str().expect("text").replace('\r', "")
    }
}

/// A QEMU that ends with the test.
pub(crate) struct Guest {
    child: Child,
    pub(crate) monitor: Monitor,
}

impl Guest {
    pub(crate) fn start<S: AsRef<std::ffi::OsStr>>(arguments: &[S], qmp: &Path) -> Self {
        let child = Command::new("qemu-system-x86_64").args(arguments).stdin(Stdio::null()).spawn();
        let mut child = child.expect("QEMU starts");
        until("QEMU makes its QMP socket", || {
            let ended = child.try_wait().expect("wait for QEMU");
            assert!(ended.is_none(), "QEMU ended: {ended:?}");
            qmp.exists()
        });
        // In a guard before anything can fail.
        let mut guard = Unfinished(Some(child));
        let monitor = Monitor::connect(qmp);
        let child = guard.0.take().expect("still here");
        Self { child, monitor }
    }
}

struct Unfinished(Option<Child>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            end(child);
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    // It may have ended by itself.
    drop(child.kill());
    drop(child.wait());
}

/// What a running QEMU's own process says of it.
pub(crate) fn arguments_of(guest: &Guest) -> Vec<String> {
    let line = std::fs::read(format!("/proc/{}/cmdline", guest.child.id())).expect("read its arguments");
    let words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    let mut words: Vec<_> = words.collect();
    words.pop();
    words
}

/// A folder of the test's with a short path: sockets have at most 107 characters.
pub(crate) fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::Builder::new().prefix("nf").tempdir_in("/tmp").expect("make folder");
    let path = folder.path().to_owned();
    (folder, path)
}
