//! `authority`: what the CA's key is sealed under.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;
use service::{KeySource, ServiceError};

use crate::failure::Failure;
use crate::output::{self, Format};

/// Name of the credential (systemd, `LoadCredentialEncrypted=`).
const CREDENTIAL: &str = "novaferry-ca-key";

/// What the CA's key is sealed under.
#[derive(Debug, Default, Args)]
pub(crate) struct KeyFrom {
    /// File of mode 0600 with the key that the CA's key is sealed under (32 characters or more), or the CA's private key
    /// itself (PEM); else the credential novaferry-ca-key, else wrapping.key in the state folder.
    #[arg(long = "ca-key-from", value_name = "FILE")]
    file: Option<PathBuf>,
}

impl KeyFrom {
    pub(crate) fn source(self) -> Result<KeySource, Failure> {
        let folder = std::env::var_os("CREDENTIALS_DIRECTORY");
        let credential =
            folder.map(|folder| Path::new(&folder).join(CREDENTIAL)).filter(|path| path.exists());
        match (credential, self.file) {
            (None, None) => Ok(KeySource::Beside),
            (None, Some(file)) => Ok(KeySource::File(file)),
            (Some(credential), None) => Ok(KeySource::Credential(credential)),
            (Some(credential), Some(_)) => {
                let what =
                    format!("--ca-key-from is given, and so is the credential {}", credential.display());
                Err(Failure::new("ca-key", what, "leave one of them out").usage())
            }
        }
    }
}

/// The state folder.
#[derive(Debug, Args)]
pub(super) struct State {
    /// Folder of the database and the CA.
    #[arg(long = "state", value_name = "DIR", default_value = "/var/lib/novaferry-coordinator")]
    folder: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(super) enum AuthorityCommand {
    /// Seals the CA's key under another key; run it on the coordinator's machine, while that is stopped.
    #[command(after_help = "\
Backups that were made before stay sealed under the key of that time: keep it as long as they are kept.

Examples:
  novaferry authority rekey
  umask 077; openssl rand -hex 32 >/root/ca.wrap; novaferry authority rekey --to /root/ca.wrap
  systemd-creds decrypt --name novaferry-ca-key KEY.cred - | novaferry authority rekey --ca-key-from /dev/stdin")]
    Rekey {
        #[command(flatten)]
        state: State,
        #[command(flatten)]
        from: KeyFrom,
        /// File of mode 0600 with the new key: 32 characters or more; a new one in the state folder if not given.
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
}

fn failed(code: &'static str) -> impl Fn(ServiceError) -> Failure {
    move |error| {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        Failure::told(code, &text)
    }
}

pub(super) fn authority(command: AuthorityCommand, format: Format) -> Result<(), Failure> {
    let AuthorityCommand::Rekey { state: State { folder }, from, to } = command;
    let done = service::rekey(&folder, &from.source()?, to.as_deref()).map_err(failed("ca-key"))?;
    let before = done.before.as_ref().map(|path| path.display().to_string());
    if format == Format::Json {
        output::json(&json!({ "under": done.under, "before": before }));
        return Ok(());
    }
    let place = to.unwrap_or_else(|| folder.join("wrapping.key"));
    output::line(&format!("the CA's key is sealed under key {} of {}", done.under, place.display()));
    if let Some(before) = before {
        output::line(&format!("the key before is {before}: remove it once no backup needs it"));
    }
    Ok(())
}
