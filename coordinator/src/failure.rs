//! Why a command did not do what it was asked.

use std::process::ExitCode;

use serde::Serialize;

/// How a command ends when it fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Exit {
    /// Somebody has to change something first.
    Failed = 1,
    /// A migration is in doubt: a person must say which copy of the VM lives.
    Doubt = 2,
    /// The command line makes no sense (`EX_USAGE` of `sysexits.h`).
    Usage = 64,
}

/// A failure.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Failure {
    /// For programs.
    pub(crate) code: String,
    /// What failed and why.
    pub(crate) message: String,
    /// What to do.
    pub(crate) advice: Option<String>,
    #[serde(skip)]
    pub(crate) exit: Exit,
}

impl Failure {
    pub(crate) fn new(code: &str, message: impl Into<String>, advice: impl Into<String>) -> Self {
        let (message, advice) = (message.into(), Some(advice.into()));
        Self { code: code.to_owned(), message, advice, exit: Exit::Failed }
    }

    /// From a text of the form `WHAT; ADVICE`.
    pub(crate) fn told(code: &str, text: &str) -> Self {
        let (what, advice) = match text.split_once("; ") {
            Some((what, advice)) => (what, Some(advice.to_owned())),
            None => (text, None),
        };
        Self { code: code.to_owned(), message: what.to_owned(), advice, exit: Exit::Failed }
    }

    pub(crate) fn usage(mut self) -> Self {
        self.exit = Exit::Usage;
        self
    }

    pub(crate) fn exits(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    /// The same with other advice.
    pub(crate) fn advising(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
