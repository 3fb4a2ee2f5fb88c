//! A `qemu-system-x86_64` with the boot-sector guest, driven over QMP by the shortest client that will do.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long anything may take: a machine that is busy with other tests is slow.
const PATIENCE: Duration = Duration::from_secs(90);

/// A running QEMU; killed when dropped.
pub(crate) struct Machine {
    _process: Process,
    qmp: BufReader<UnixStream>,
    serial: PathBuf,
}

/// Killed when dropped, also by a panic.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Polls until `done`.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Machine {
    /// Starts it. Its files begin with `name`.
    pub(crate) fn start(folder: &Path, name: &str, memory_mib: u32, disk: &Path, more: &[&str]) -> Self {
        let serial = folder.join(format!("{name}.serial"));
        let socket = folder.join(format!("{name}.qmp"));
        let process = Command::new("qemu-system-x86_64")
            .args(["-M", "pc", "-accel", "tcg", "-nodefaults", "-display", "none"])
            .args(["-name", name, "-m", &format!("{memory_mib}M")])
            .args(["-serial", &format!("file:{}", serial.display())])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())])
            .args(["-drive", &format!("file={},format=raw,if=ide,snapshot=on", disk.display())])
            .args(more)
            .stdin(Stdio::null())
            .spawn()
            .expect("start qemu-system-x86_64");
        let mut process = Process(process);
        let mut stream = None;
        until("QMP socket", || {
            if let Ok(Some(status)) = process.0.try_wait() {
                panic!("{name} ended: {status}");
            }
            stream = UnixStream::connect(&socket).ok();
            stream.is_some()
        });
        let stream = stream.expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
        let mut machine = Self { _process: process, qmp: BufReader::new(stream), serial };
        let greeting = machine.line();
        assert!(greeting.get("QMP").is_some(), "{greeting}");
        machine.run("qmp_capabilities", json!({}));
        machine
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.qmp.read_line(&mut line).expect("QMP answers");
        serde_json::from_str(&line).expect("QMP speaks JSON")
    }

    /// Runs a command. `Err` is QEMU's own words.
    pub(crate) fn attempt(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.qmp.get_mut(), "{request}").expect("QMP takes a command");
        loop {
            let mut answer = self.line();
            if let Some(error) = answer.get("error") {
                return Err(error.to_string());
            }
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
        }
    }

    pub(crate) fn run(&mut self, command: &str, arguments: Value) -> Value {
        self.attempt(command, arguments).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    pub(crate) fn capabilities(&mut self, names: &[&str]) {
        let list: Vec<_> = names.iter().map(|name| json!({"capability": name, "state": true})).collect();
        self.run("migrate-set-capabilities", json!({"capabilities": list}));
    }

    /// What the guest printed.
    pub(crate) fn printed(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.serial).unwrap_or_default()).into_owned()
    }

    /// Waits until the guest has printed `count` more times that all is well.
    pub(crate) fn wait_for_beats(&self, count: usize) {
        let beats = || {
            let printed = self.printed();
            assert!(!printed.contains('X'), "the guest found a page that is lost or old: {printed}");
            printed.matches('B').count()
        };
        let begin = beats();
        until("the guest's beats", || beats() >= begin + count);
    }

    /// Status of the migration.
    pub(crate) fn migration(&mut self) -> String {
        let answer = self.run("query-migrate", json!({}));
        answer["status"].as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the migration has that status.
    pub(crate) fn wait_for(&mut self, wanted: &str) {
        until(wanted, || {
            let status = self.migration();
            assert!(status == wanted || status != "failed", "the migration failed before it was {wanted}");
            status == wanted
        });
    }
}
