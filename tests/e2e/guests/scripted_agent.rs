//! A guest's agent that only notes what it is asked, at the other end of QEMU's channel: the test guest has none.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// Listens where QEMU's channel ends. Its threads end with the process of the test.
pub(crate) struct ScriptedAgent {
    pub(crate) socket: PathBuf,
    asked: Arc<Mutex<Vec<String>>>,
}

impl ScriptedAgent {
    pub(crate) fn start(socket: &Path) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let notes = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let notes = Arc::clone(&notes);
                std::thread::spawn(move || serve(stream, &notes));
            }
        });
        Self { socket: socket.to_owned(), asked }
    }

    /// What it was told to do, in order: `freeze` and `thaw`.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(stream: UnixStream, notes: &Mutex<Vec<String>>) {
    let mut answers = stream.try_clone().unwrap();
    for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
        let line: Vec<u8> = line.into_iter().filter(|byte| *byte != 0xff).collect();
        let Ok(request) = serde_json::from_slice::<Value>(&line) else { continue };
        let command = request["execute"].as_str().unwrap_or_default();
        let mut notes = notes.lock().unwrap();
        let answer = match command {
            "guest-sync-delimited" => json!({"return": request["arguments"]["id"]}),
            "guest-fsfreeze-status" => {
                let frozen = notes.last().is_some_and(|last| last == "freeze");
                json!({"return": if frozen { "frozen" } else { "thawed" }})
            }
            "guest-fsfreeze-freeze" | "guest-fsfreeze-thaw" => {
                notes.push(command.trim_start_matches("guest-fsfreeze-").to_owned());
                json!({"return": 1})
            }
            _ => json!({"error": {"class": "CommandNotFound", "desc": command}}),
        };
        drop(notes);
        // Only a synchronisation is answered with the byte that no JSON holds.
        let mut bytes = if command == "guest-sync-delimited" { vec![0xff] } else { Vec::new() };
        bytes.extend(answer.to_string().into_bytes());
        bytes.push(b'\n');
        if answers.write_all(&bytes).is_err() {
            return;
        }
    }
}
