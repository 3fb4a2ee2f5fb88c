//! What is wrong with a configuration: where, what, and what to write instead.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};

/// What kind of mistake it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ConfigErrorKind {
    /// The file cannot be read.
    Read,
    /// The text is no TOML, or a value has the wrong type.
    Syntax,
    /// A value makes no sense.
    Value,
    /// A key that is needed is not there.
    Missing,
}

/// An error in the configuration. `Display` names the file, the key, the value, and what to write instead.
#[derive(Debug, thiserror::Error)]
#[error("{}{what}; {advice}", .file.as_ref().map(|file| format!("{}: ", file.display())).unwrap_or_default())]
pub struct ConfigError {
    kind: ConfigErrorKind,
    file: Option<PathBuf>,
    what: String,
    advice: String,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl ConfigError {
    /// What to match on.
    #[must_use]
    pub fn kind(&self) -> ConfigErrorKind {
        self.kind
    }

    fn new(kind: ConfigErrorKind, what: String, advice: String) -> Self {
        Self { kind, file: None, what, advice, source: None }
    }

    pub(super) fn value(key: &str, value: &str, advice: String) -> Self {
        Self::new(ConfigErrorKind::Value, format!("{key} = {value:?} is not possible"), advice)
    }

    pub(super) fn missing(key: &str, advice: &str) -> Self {
        Self::new(ConfigErrorKind::Missing, format!("{key} is missing"), advice.into())
    }

    pub(super) fn read(path: &Path, error: std::io::Error) -> Self {
        let advice = match error.kind() {
            std::io::ErrorKind::NotFound => "check --config; agent.toml.example shows every key",
            std::io::ErrorKind::PermissionDenied => "let the agent's user read it",
            _ => "correct the cause and start again",
        };
        Self::new(ConfigErrorKind::Read, "cannot be read".into(), advice.into())
            .in_file(path)
            .caused_by(error)
    }

    pub(super) fn too_large(path: &Path, limit: u64) -> Self {
        let advice = "it is no configuration of this agent: check --config";
        Self::new(ConfigErrorKind::Read, format!("is larger than {limit} bytes"), advice.into()).in_file(path)
    }

    pub(super) fn syntax(error: toml::de::Error) -> Self {
        // toml's text shows the line and marks the place, on several lines.
        let what = error.to_string().trim_end().to_owned();
        Self::new(ConfigErrorKind::Syntax, what, "agent.toml.example shows every key".into())
    }

    pub(super) fn in_file(mut self, path: &Path) -> Self {
        self.file = Some(path.to_owned());
        self
    }

    pub(super) fn caused_by(mut self, error: impl Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(error));
        self
    }
}

/// A key that means nothing: a typing mistake, or a newer version's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Warning {
    /// The key's path, such as `pool.0.qouta`.
    pub key: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown key {} is ignored; remove it or correct its spelling", self.key)
    }
}
