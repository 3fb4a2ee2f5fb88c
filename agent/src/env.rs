//! Every environment variable that the agent reads, in one place. None carries a secret.

use std::ffi::OsString;
use std::path::PathBuf;

/// Log filter in the syntax of `tracing_subscriber::EnvFilter` (`info`, `novaferry_engine=debug,info`); wins over `[log] level`.
pub const LOG: &str = "NOVAFERRY_LOG";

/// Where systemd puts the files of `LoadCredential=` (`systemd.exec(5)`); set by systemd only.
pub const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// Where systemd wants the state (`StateDirectory=`); set by systemd, a colon-separated list of which the first counts.
pub const STATE_DIRECTORY: &str = "STATE_DIRECTORY";

/// Where a user's programs keep their state (XDG base directories); used when it is absolute.
pub const XDG_STATE_HOME: &str = "XDG_STATE_HOME";

/// W3C trace context of whoever started the program.
pub const TRACEPARENT: &str = trace::PARENT;

/// The user's home.
pub const HOME: &str = "HOME";

/// systemd's state folder.
#[must_use]
pub fn state_directory() -> Option<PathBuf> {
    let value = std::env::var_os(STATE_DIRECTORY)?;
    let first = std::env::split_paths(&value).next()?;
    first.is_absolute().then_some(first)
}

/// The folder for the state of a user's programs.
#[must_use]
pub fn user_state_folder() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute(XDG_STATE_HOME).or_else(|| Some(absolute(HOME)?.join(".local/state")))
}

/// The log filter, when set and not empty. A value that is not UTF-8 is returned lossily, so that its parser refuses
/// it by name instead of it being ignored.
#[must_use]
pub fn log_filter() -> Option<String> {
    std::env::var_os(LOG).filter(|value| !value.is_empty()).map(|value| value.to_string_lossy().into_owned())
}

/// The folder of systemd credentials, when the agent runs as a service that has some.
#[must_use]
pub fn credentials_directory() -> Option<PathBuf> {
    std::env::var_os(CREDENTIALS_DIRECTORY).filter(|value: &OsString| !value.is_empty()).map(PathBuf::from)
}

/// The trace context that a migration is to follow, if it is one.
#[must_use]
pub fn traceparent() -> Option<String> {
    std::env::var(TRACEPARENT).ok().filter(|context| trace::is_context(context))
}
