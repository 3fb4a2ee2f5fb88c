//! Waiting until a QEMU that was started is ready: its devices are made and its disks open.
//!
//! A greeting alone does not say so. The monitor has a thread of its own, which greets while the main thread still reads
//! the command line, and may yet refuse it. The answer to a command is the main thread's, given after all that.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use hypervisor::qmp::first_id;
use hypervisor::vmd::{Refusal, RefusalKind};
use serde_json::{Value, json};

use super::refusal;
use crate::launch;
use crate::process::Process;

/// How long QEMU may take until it answers: it allocates memory and opens disks. Guessed.
const START_PATIENCE: Duration = Duration::from_secs(100);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);
/// Most that is read of a monitor: a greeting and an answer take less than one.
const MAX_SAID: usize = 64 << 10;

/// Waits until QEMU answers a command. The connection ends with that, so the one place of the server is free again.
pub(super) fn wait(socket: &Path, process: &Process, log: &Path) -> Result<(), Refusal> {
    let deadline = Instant::now() + START_PATIENCE;
    let mut asked = None;
    while Instant::now() < deadline {
        // Looked at first: what it said before it ended is in its log by now.
        let lives = process.lives();
        let answered = match &mut asked {
            Some(question) => Question::answered(question),
            None => Question::ask(socket).map(|question| {
                asked = Some(question);
                false
            }),
        };
        match answered {
            Ok(true) => return Ok(()),
            Ok(false) if lives => {}
            // Nobody listens yet, or it ended while it was asked.
            Err(_) if lives => {
                asked = None;
                std::thread::sleep(PAUSE);
            }
            Ok(false) | Err(_) => return Err(ended(log)),
        }
    }
    let why = format!("QEMU does not answer after {} s; look at it, then stop it", START_PATIENCE.as_secs());
    Err(refusal(RefusalKind::Failed, why))
}

pub(super) fn ended(log: &Path) -> Refusal {
    refusal(RefusalKind::Failed, format!("QEMU did not come up: {}", launch::last_words(log)))
}

/// A command that waits for its answer.
struct Question {
    stream: UnixStream,
    id: u64,
    /// What of a line has come.
    line: Vec<u8>,
    read: usize,
}

impl Question {
    fn ask(socket: &Path) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PAUSE))?;
        let id = first_id();
        // It is read when the monitor has greeted.
        stream.write_all(format!("{}\n", json!({ "execute": "qmp_capabilities", "id": id })).as_bytes())?;
        Ok(Self { stream, id, line: Vec::new(), read: 0 })
    }

    /// Reads for a moment.
    fn answered(&mut self) -> io::Result<bool> {
        let mut some = [0; 4096];
        let length = match self.stream.read(&mut some) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => length,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        self.read += length;
        if self.read > MAX_SAID {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.line.extend_from_slice(&some[..length]);
        while let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            // An answer to an earlier client has another id.
            let said: Value = serde_json::from_slice(&line)?;
            if said["id"] == self.id && said.get("return").is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_greeting_is_not_an_answer() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("qmp.sock");
        Question::ask(&socket).err().expect("nobody listens");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut question = Question::ask(&socket).unwrap();
        assert!(!question.answered().unwrap());
        let (mut stream, _) = listener.accept().unwrap();
        let mut told = String::new();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut told).unwrap();
        let told: Value = serde_json::from_str(&told).unwrap();
        let id = told["id"].as_u64().unwrap();
        let greeting = format!("{{\"QMP\": {{}}}}\r\n{{\"return\": {{}}, \"id\": {}}}\r\n{{\"ret", id - 1);
        stream.write_all(greeting.as_bytes()).unwrap();
        for _ in 0..3 {
            assert!(!question.answered().unwrap());
        }
        stream.write_all(format!("urn\": {{}}, \"id\": {id}}}\r\n").as_bytes()).unwrap();
        assert!(question.answered().unwrap());
        drop(stream);
        question.answered().expect_err("it has ended");
    }

    #[test]
    fn what_is_no_monitor_is_not_listened_to_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("qmp.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut question = Question::ask(&socket).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&vec![b'x'; MAX_SAID + 1]).unwrap();
        let why = std::iter::from_fn(|| Some(question.answered())).find_map(Result::err).unwrap();
        assert_eq!(why.kind(), io::ErrorKind::InvalidData);
    }
}
