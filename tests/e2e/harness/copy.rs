//! `copy` as a process.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::process::{Finished, Process};
use super::{Harness, agent_command};

/// A `copy` that can be run, again and again.
#[derive(Clone)]
pub(crate) struct Copy<'a> {
    harness: &'a Harness,
    identity: PathBuf,
    state: PathBuf,
    arguments: Vec<OsString>,
}

impl<'a> Copy<'a> {
    pub(super) fn new(harness: &'a Harness, source: &Path, target: &Path) -> Self {
        Self {
            harness,
            identity: harness.identity("host-a"),
            state: harness.path("state"),
            arguments: vec![source.into(), target.into()],
        }
    }

    /// More arguments.
    pub(crate) fn with<T: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = T>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// As another host.
    pub(crate) fn sent_by(mut self, name: &str) -> Self {
        self.identity = self.harness.identity(name);
        self.state = self.harness.path(&format!("state-of-{name}"));
        self
    }

    /// The command line.
    pub(crate) fn command(&self) -> Command {
        let mut command = agent_command();
        command
            .arg("copy")
            .args(&self.arguments)
            .args(["--output", "json", "--identity"])
            .arg(&self.identity);
        command.arg("--state").arg(&self.state);
        command
    }

    pub(crate) fn start(&self) -> Process {
        self.harness.start("copy", self.command())
    }

    /// Runs it to its end, whatever that is.
    #[track_caller]
    pub(crate) fn run(&self) -> Outcome {
        Outcome::of(self.start().finish())
    }

    /// Runs it, and it is done.
    #[track_caller]
    pub(crate) fn done(&self) -> Summary {
        self.run().done()
    }

    /// Runs it, and it fails for this reason.
    #[track_caller]
    pub(crate) fn fails(&self, code: &str) -> Failure {
        self.run().fails(1, code)
    }
}

/// How a `copy` ended.
pub(crate) struct Outcome {
    pub(crate) finished: Finished,
    last: Option<Value>,
}

impl Outcome {
    #[track_caller]
    pub(crate) fn of(finished: Finished) -> Self {
        let mut objects = if finished.code().is_some() { finished.objects() } else { Vec::new() };
        let last = objects.pop();
        for object in objects {
            assert!(object["progress"]["settled_bytes"].is_u64(), "progress comes before the end: {object}");
        }
        Self { finished, last }
    }

    #[track_caller]
    pub(crate) fn done(self) -> Summary {
        let finished = self.finished.done();
        Summary(self.last.unwrap_or_else(|| panic!("no summary: {}", finished.text())))
    }

    /// Ends with this exit code and this reason, and says what to do.
    #[track_caller]
    pub(crate) fn fails(self, exit: i32, code: &str) -> Failure {
        let finished = self.finished.exits(exit);
        let last = self.last.unwrap_or_else(|| panic!("no reason: {}", finished.text()));
        let error = &last["error"];
        assert_eq!(error["code"], code, "{error}");
        assert_eq!(error["resumable"], exit == 2, "{error}");
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        let failure = Failure { message: text("message"), advice: text("advice") };
        assert!(!failure.advice.is_empty(), "says what to do: {error}");
        println!("{code}: {} -- {}", failure.message, failure.advice);
        failure
    }
}

/// Why it failed.
pub(crate) struct Failure {
    pub(crate) message: String,
    pub(crate) advice: String,
}

/// The last object of a `copy` that is done.
pub(crate) struct Summary(pub(crate) Value);

impl Summary {
    #[track_caller]
    pub(crate) fn count(&self, key: &str) -> u64 {
        self.0[key].as_u64().unwrap_or_else(|| panic!("{key} in {}", self.0))
    }

    #[track_caller]
    pub(crate) fn text(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap_or_else(|| panic!("{key} in {}", self.0))
    }

    pub(crate) fn resumed(&self) -> bool {
        self.0["resumed"] == true
    }
}
