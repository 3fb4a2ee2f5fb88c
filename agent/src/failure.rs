//! Why a command did not do what it was asked: a code for programs, a message and an advice for people, and the exit
//! code that follows.

use std::error::Error;
use std::process::ExitCode;

use engine::EngineError;
use serde::Serialize;

use crate::config::ConfigError;
use crate::control::ControlError;
use crate::observe::ObserveError;
use pki::PkiError;

/// How a command ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// Done, and verified where there is something to verify.
    Done,
    /// Failed: somebody has to change something first.
    Failed,
    /// Interrupted: running the same command again goes on where it stopped.
    Interrupted,
    /// The command line makes no sense (`EX_USAGE` of `sysexits.h`).
    Usage,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Interrupted => 2,
            Exit::Usage => 64,
        })
    }
}

/// Why a command failed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Failure {
    /// For programs: stable, in kebab case.
    pub code: String,
    /// What failed and why, in one line.
    pub message: String,
    /// What to do.
    pub advice: Option<String>,
    /// Running the same command again can go on where it stopped.
    pub resumable: bool,
    #[serde(skip)]
    exit: Exit,
}

impl Failure {
    /// Somebody has to change something.
    #[must_use]
    pub fn new(code: impl Into<String>, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            advice: Some(advice.into()),
            resumable: false,
            exit: Exit::Failed,
        }
    }

    /// The command line makes no sense.
    #[must_use]
    pub fn usage(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, ..Self::new("usage", message, advice) }
    }

    /// From an error whose text is `WHAT; ADVICE`, the form that all our errors have. Causes go to the message.
    fn from_error(code: impl Into<String>, error: &(dyn Error + 'static)) -> Self {
        let text = error.to_string();
        let (what, advice) = match text.split_once("; ") {
            Some((what, advice)) => (what.to_owned(), Some(advice.to_owned())),
            None => (text.clone(), None),
        };
        let mut message = what;
        let mut cause = error.source();
        while let Some(error) = cause {
            let part = error.to_string();
            if !text.contains(&part) {
                message.push_str(": ");
                message.push_str(&part);
            }
            cause = error.source();
        }
        Self { code: code.into(), message, advice, resumable: false, exit: Exit::Failed }
    }

    /// The same failure after a second signal: what was journalled survives, so the command can be run again.
    #[must_use]
    pub fn after_cancellation(mut self) -> Self {
        self.resumable = true;
        self.exit = Exit::Interrupted;
        self
    }

    /// The same failure, of somebody who went away from work that goes on without him.
    #[must_use]
    pub fn detached(mut self) -> Self {
        self.exit = Exit::Interrupted;
        self
    }

    /// How the command ends.
    #[must_use]
    pub fn exit(&self) -> Exit {
        self.exit
    }
}

/// An error with its causes, in one line.
#[must_use]
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// `NotAuthorised` and `PeerClosed(Done)` as `not-authorised` and `peer-closed`.
fn kebab(name: &str) -> String {
    let name = name.split(['(', ' ', '{']).next().unwrap_or(name);
    let mut out = String::with_capacity(name.len() + 4);
    for (at, c) in name.chars().enumerate() {
        if c.is_ascii_uppercase() && at > 0 {
            out.push('-');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// The code of an engine error, as failures and metrics name it.
#[must_use]
pub fn code_of(error: &EngineError) -> String {
    match error {
        EngineError::Interrupted => "interrupted".to_owned(),
        EngineError::Tunnel(tunnel) => kebab(&format!("{:?}", tunnel.kind())),
        other => kebab(&format!("{:?}", other.fail_code())),
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let resumable = error.is_resumable();
        let exit = if resumable { Exit::Interrupted } else { Exit::Failed };
        let mut failure = Self::from_error(code_of(&error), &error);
        // A tunnel's error knows its advice, which may stand in its causes too.
        if let EngineError::Tunnel(tunnel) = &error {
            let advice = tunnel.advice();
            failure.message = error.chain();
            if let Some(advice) = advice {
                failure.message = failure.message.replace(&format!("; {advice}"), "");
            }
            failure.advice = advice.map(ToOwned::to_owned);
        }
        Self { resumable, exit, ..failure }
    }
}

impl From<tunnel::TunnelError> for Failure {
    fn from(error: tunnel::TunnelError) -> Self {
        EngineError::from(error).into()
    }
}

impl From<PkiError> for Failure {
    fn from(error: PkiError) -> Self {
        Self::from_error(format!("pki-{}", kebab(&format!("{:?}", error.kind()))), &error)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::from_error(format!("config-{}", kebab(&format!("{:?}", error.kind()))), &error)
    }
}

impl From<ObserveError> for Failure {
    fn from(error: ObserveError) -> Self {
        Self::from_error("observe", &error)
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        Self::from_error("control", &error)
    }
}

#[cfg(test)]
mod tests {
    use wire::FailCode;

    use super::*;

    #[test]
    fn exit_codes_follow_what_can_be_done() {
        let exit = |error: EngineError| Failure::from(error).exit();
        assert_eq!(exit(EngineError::Interrupted), Exit::Interrupted);
        assert_eq!(exit(EngineError::Cancelled), Exit::Failed);
        assert_eq!(Failure::from(EngineError::Cancelled).after_cancellation().exit(), Exit::Interrupted);
        let refused = |code| EngineError::Refused { code, detail: "no; choose another name".to_owned() };
        for code in FailCode::ALL {
            assert_eq!(exit(refused(*code)), Exit::Failed, "{code:?}");
        }
        assert_eq!(Failure::usage("no", "yes").exit(), Exit::Usage);
    }

    #[test]
    fn messages_and_advice_are_told_apart() {
        let error =
            EngineError::Refused { code: FailCode::NotAuthorised, detail: "no; ask; twice".to_owned() };
        let failure = Failure::from(error);
        assert_eq!(failure.code, "not-authorised");
        assert_eq!(failure.message, "no");
        assert_eq!(failure.advice.as_deref(), Some("ask; twice"));
    }
}
