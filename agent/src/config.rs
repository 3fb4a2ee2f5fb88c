//! The configuration file, `agent.toml`, in three stages: text, [`FileConfig`] (everything optional), [`Config`]
//! (validated, in units and newtypes). The step from the second to the third takes every struct apart without `..`,
//! so a new key cannot be forgotten.
//!
//! Unknown keys are returned as [`Warning`]s: `serve` logs them, `serve --check-config` refuses them.

pub mod coordinator;
mod error;
mod file;
mod limits;
mod pool;
pub mod units;
pub mod vms;

#[cfg(test)]
mod tests;

use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use coordinator::Coordinator;
pub use error::{ConfigError, ConfigErrorKind, Warning};
pub use file::{
    FileConfig, FileControl, FileCoordinator, FileIdentity, FileLimits, FileListen, FileLog, FileMetrics,
    FileMigrateIn, FileOtlp, FilePool, FileVm, FileVms,
};
pub use limits::Limits;
pub use pool::{Pool, PoolName};
use units::ByteSize;
use vms::{MigrateIn, Vms};

use crate::env;
use pki::{IdentityPaths, KeyOrigin};

/// Where `serve` looks unless told otherwise.
pub const DEFAULT_PATH: &str = "/etc/novaferry/agent.toml";
/// Address for QUIC (UDP) and its fallback (TCP, same port).
pub const DEFAULT_LISTEN: &str = "0.0.0.0:7440";
/// Address of the Prometheus endpoint: this host only, because it has no authentication.
pub const DEFAULT_METRICS: &str = "127.0.0.1:9477";
/// The control socket.
pub const DEFAULT_CONTROL: &str = "/run/novaferry/agent.sock";
/// Journals, sidecars and generations.
pub const DEFAULT_STATE: &str = "/var/lib/novaferry";
/// The host's certificate, key, CA and revocation list.
pub const DEFAULT_IDENTITY: &str = "/etc/novaferry/identity";

/// Largest file that is read. A thousand pools take about 200 KiB.
const MAX_FILE: u64 = 1 << 20;

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// `[log]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Log {
    /// How lines look.
    pub format: LogFormat,
    /// Filter such as `info` or `novaferry_engine=debug,info`; the environment's `NOVAFERRY_LOG` wins over it.
    pub level: String,
}

/// `[otlp]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Otlp {
    /// Base address of the collector, such as `http://127.0.0.1:4318`.
    pub endpoint: String,
}

/// A configuration that can be run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// QUIC on UDP and the fallback on TCP.
    pub listen: SocketAddr,
    /// The host's certificate, key, CAs and lists.
    pub identity: IdentityPaths,
    /// Where volumes may be.
    pub pools: Vec<Pool>,
    /// The Prometheus endpoint; `None` when it is switched off with `listen = "off"`.
    pub metrics: Option<SocketAddr>,
    /// Bounds of everything that peers can make us use.
    pub limits: Limits,
    /// The control socket.
    pub control: PathBuf,
    /// Logging.
    pub log: Log,
    /// Where traces go, if anywhere.
    pub otlp: Option<Otlp>,
    /// Journals, sidecars and generations.
    pub state: PathBuf,
    /// Virtual machines of this host.
    pub vms: Vms,
    /// Virtual machines that may come to it.
    pub migrate_in: MigrateIn,
    /// Who tells this host what to move, if anybody does.
    pub coordinator: Option<Coordinator>,
}

impl Config {
    /// Reads and validates a file.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the key, the value and what to write instead.
    pub fn load(path: &Path) -> Result<(Self, Vec<Warning>), ConfigError> {
        let mut text = String::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text))
            .map_err(|error| ConfigError::read(path, error))?;
        if text.len() as u64 > MAX_FILE {
            return Err(ConfigError::too_large(path, MAX_FILE));
        }
        Self::parse(&text, env::credentials_directory().as_deref()).map_err(|error| error.in_file(path))
    }

    /// Validates the text of a file. `credentials` is systemd's folder of credentials, if there is one.
    ///
    /// # Errors
    /// As [`Self::load`], without the file's name.
    pub fn parse(text: &str, credentials: Option<&Path>) -> Result<(Self, Vec<Warning>), ConfigError> {
        let (file, warnings) = FileConfig::parse(text)?;
        Ok((Self::from_file(file, credentials)?, warnings))
    }

    /// Fills in defaults and checks every value.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn from_file(file: FileConfig, credentials: Option<&Path>) -> Result<Self, ConfigError> {
        let FileConfig {
            listen,
            identity,
            pool,
            metrics,
            limits,
            control,
            log,
            otlp,
            state_dir,
            vms,
            vm,
            migrate_in,
            coordinator,
        } = file;
        let FileListen { address } = listen;
        let FileMetrics { listen: metrics } = metrics;
        let FileControl { socket } = control;
        let FileLog { format, level } = log;
        let state = absolute("state_dir", state_dir, DEFAULT_STATE)?;
        let metrics = match metrics.as_deref() {
            Some("off") => None,
            other => Some(socket_address("metrics.listen", other, DEFAULT_METRICS)?),
        };
        let pools = pool::validate(pool)?;
        let migrate_in = vms::migrate_in(migrate_in, &pools)?;
        let listen = socket_address("listen.address", address.as_deref(), DEFAULT_LISTEN)?;
        let coordinator = coordinator.map(|file| coordinator::coordinator(file, listen)).transpose()?;
        Ok(Self {
            listen,
            identity: identity_paths(identity, credentials)?,
            pools,
            metrics,
            limits: Limits::from_file(limits)?,
            control: absolute("control.socket", socket, DEFAULT_CONTROL)?,
            log: Log { format: log_format(format.as_deref())?, level: log_level(level)? },
            otlp: otlp.map(otlp_endpoint).transpose()?,
            state,
            vms: vms::vms(vms, vm)?,
            migrate_in,
            coordinator,
        })
    }

    /// The pool of this name.
    #[must_use]
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.name.as_str() == name)
    }
}

fn socket_address(key: &str, value: Option<&str>, default: &str) -> Result<SocketAddr, ConfigError> {
    let value = value.unwrap_or(default);
    value.parse().map_err(|error: std::net::AddrParseError| {
        ConfigError::value(key, value, format!("write an address and a port, such as {default:?}"))
            .caused_by(error)
    })
}

fn absolute(key: &str, value: Option<PathBuf>, default: &str) -> Result<PathBuf, ConfigError> {
    let path = value.unwrap_or_else(|| default.into());
    pool::check_absolute(key, &path, default)?;
    Ok(path)
}

fn identity_paths(identity: FileIdentity, credentials: Option<&Path>) -> Result<IdentityPaths, ConfigError> {
    let FileIdentity { dir, key_credential } = identity;
    let folder = absolute("identity.dir", dir, DEFAULT_IDENTITY)?;
    let mut paths = IdentityPaths::in_folder(&folder);
    if let Some(name) = key_credential {
        let plain = Path::new(&name).file_name().is_some_and(|file_name| file_name == name.as_str());
        if !plain {
            return Err(ConfigError::value(
                "identity.key_credential",
                &name,
                "write the name that LoadCredential= has in the unit, such as \"key.pem\"".into(),
            ));
        }
        let credentials = credentials.ok_or_else(|| {
            ConfigError::value(
                "identity.key_credential",
                &name,
                format!(
                    "run the agent as a systemd service with LoadCredential={name}:PATH, or remove this key so that \
                     the private key is read from identity.dir"
                ),
            )
        })?;
        paths.key = credentials.join(name);
        paths.key_origin = KeyOrigin::Credential;
    }
    Ok(paths)
}

fn log_format(value: Option<&str>) -> Result<LogFormat, ConfigError> {
    match value {
        None | Some("text") => Ok(LogFormat::Text),
        Some("json") => Ok(LogFormat::Json),
        Some(other) => Err(ConfigError::value("log.format", other, "write \"text\" or \"json\"".into())),
    }
}

fn log_level(value: Option<String>) -> Result<String, ConfigError> {
    let level = value.unwrap_or_else(|| "info".into());
    match tracing_subscriber::EnvFilter::try_new(&level) {
        Ok(_) => Ok(level),
        Err(error) => Err(ConfigError::value(
            "log.level",
            &level,
            "write error, warn, info, debug or trace, or a list such as \"novaferry_engine=debug,info\""
                .into(),
        )
        .caused_by(error)),
    }
}

fn otlp_endpoint(otlp: FileOtlp) -> Result<Otlp, ConfigError> {
    let FileOtlp { endpoint } = otlp;
    let advice = "write the collector's base address, such as \"http://127.0.0.1:4318\"";
    let endpoint = endpoint.ok_or_else(|| ConfigError::missing("otlp.endpoint", advice))?;
    let host = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
    match host {
        Some(host) if !host.is_empty() && !host.starts_with('/') && !host.contains(char::is_whitespace) => {
            Ok(Otlp { endpoint: endpoint.trim_end_matches('/').to_owned() })
        }
        _ => Err(ConfigError::value("otlp.endpoint", &endpoint, advice.into())),
    }
}

fn byte_size(
    key: &str,
    value: Option<ByteSize>,
    default: ByteSize,
    least: ByteSize,
) -> Result<ByteSize, ConfigError> {
    let size = value.unwrap_or(default);
    if size < least {
        return Err(ConfigError::value(key, &size.to_string(), format!("write {least} or more")));
    }
    Ok(size)
}
