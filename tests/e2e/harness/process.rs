//! A process whose every line is read, watched and kept.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::DEADLINE;

/// All log lines of a test, and which of them are expected.
#[derive(Clone, Default)]
pub(crate) struct LogBook(Arc<Mutex<Book>>);

#[derive(Default)]
struct Book {
    lines: Vec<String>,
    complaints: Vec<String>,
    allowed: Vec<String>,
}

impl LogBook {
    fn lock(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn allow(&self, part: &str) {
        self.lock().allowed.push(part.to_owned());
    }

    fn add(&self, process: &str, line: &str) {
        let mut book = self.lock();
        let named = format!("{process}: {line}");
        if is_complaint(line) {
            book.complaints.push(named.clone());
        }
        book.lines.push(named);
    }

    /// Fails on what nobody allowed.
    pub(crate) fn check(&self) {
        let book = self.lock();
        let unexpected: Vec<_> = book
            .complaints
            .iter()
            .filter(|line| !book.allowed.iter().any(|part| line.contains(part.as_str())))
            .map(String::as_str)
            .collect();
        assert!(unexpected.is_empty(), "log lines that the test did not allow:\n{}", unexpected.join("\n"));
    }

    pub(crate) fn print(&self) {
        for line in &self.lock().lines {
            println!("{line}");
        }
    }
}

/// Warnings and errors, as JSON or as text (time, level, …), and panics.
fn is_complaint(line: &str) -> bool {
    let complains = |level: &str| matches!(level, "WARN" | "ERROR");
    match serde_json::from_str::<Value>(line) {
        Ok(object) => object["level"].as_str().is_some_and(complains),
        Err(_) => line.contains("panicked at") || line.split_whitespace().nth(1).is_some_and(complains),
    }
}

#[derive(Default)]
struct Output {
    stdout: Vec<String>,
    stderr: Vec<String>,
    open: usize,
}

#[derive(Default)]
struct Shared {
    output: Mutex<Output>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running process; killed when dropped.
pub(crate) struct Process {
    name: String,
    child: Child,
    shared: Arc<Shared>,
    readers: Vec<JoinHandle<()>>,
}

/// What a process left.
pub(crate) struct Finished {
    name: String,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<String>,
    pub(crate) stderr: Vec<String>,
}

impl Process {
    pub(crate) fn start(name: &str, mut command: Command, log: &LogBook) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        Self::watch(name, child, log)
    }

    /// Takes over a process that was started with piped stdout and stderr.
    pub(crate) fn watch(name: &str, mut child: Child, log: &LogBook) -> Self {
        let shared = Arc::new(Shared::default());
        shared.lock().open = 2;
        let out = child.stdout.take().unwrap();
        let err = child.stderr.take().unwrap();
        let (of_out, of_err) = (Arc::clone(&shared), Arc::clone(&shared));
        let (log, log_name) = (log.clone(), name.to_owned());
        let readers = vec![
            std::thread::spawn(move || read(out, &of_out, |output, line| output.stdout.push(line))),
            std::thread::spawn(move || {
                read(err, &of_err, |output, line| {
                    log.add(&log_name, &line);
                    output.stderr.push(line);
                });
            }),
        ];
        Self { name: name.to_owned(), child, shared, readers }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        // Until it is waited for, the id is its own, also when it has ended.
        kill_process(pid, signal).unwrap();
    }

    /// Waits until a line of stderr means something.
    #[track_caller]
    pub(crate) fn await_log<T>(&self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        self.await_output(what, |output| output.stderr.iter().find_map(|line| find(line)))
    }

    /// Waits until its output means something.
    #[track_caller]
    fn await_output<T>(&self, what: &str, find: impl Fn(&Output) -> Option<T>) -> T {
        let begun = Instant::now();
        let mut output = self.shared.lock();
        loop {
            if let Some(found) = find(&output) {
                return found;
            }
            let left = DEADLINE.saturating_sub(begun.elapsed());
            let ended = output.open == 0;
            assert!(!ended && !left.is_zero(), "{}: {what} did not come (ended: {ended})", self.name);
            output = self.shared.changed.wait_timeout(output, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Finished {
        self.await_output("its end", |output| (output.open == 0).then_some(()));
        let status = self.child.wait().unwrap();
        self.join();
        let mut output = self.shared.lock();
        Finished {
            name: self.name.clone(),
            status,
            stdout: std::mem::take(&mut output.stdout),
            stderr: std::mem::take(&mut output.stderr),
        }
    }

    /// Ends it without a chance to say anything.
    pub(crate) fn kill(self) -> Finished {
        self.signal(Signal::KILL);
        self.finish()
    }

    fn join(&mut self) {
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.readers.is_empty() {
            return;
        }
        // Fails when it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
        self.join();
    }
}

fn read(from: impl Read, shared: &Shared, mut keep: impl FnMut(&mut Output, String)) {
    for line in BufReader::new(from).split(b'\n') {
        let Ok(line) = line else { break };
        keep(&mut shared.lock(), String::from_utf8_lossy(&line).into_owned());
        shared.changed.notify_all();
    }
    shared.lock().open -= 1;
    shared.changed.notify_all();
}

impl Finished {
    /// The exit code; none after a signal.
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Ends well.
    #[track_caller]
    pub(crate) fn done(self) -> Self {
        self.exits(0)
    }

    /// Ends with this code.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code(), Some(code), "{}: {}\n{}", self.name, self.status, self.text());
        self
    }

    /// All output.
    pub(crate) fn text(&self) -> String {
        [self.stdout.join("\n"), self.stderr.join("\n")].join("\n")
    }

    /// The objects on stdout.
    #[track_caller]
    pub(crate) fn objects(&self) -> Vec<Value> {
        let parse = |line: &String| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{}: {error}: {line}", self.name))
        };
        self.stdout.iter().map(parse).collect()
    }
}
