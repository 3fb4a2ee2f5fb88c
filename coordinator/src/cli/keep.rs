//! `authority`, `backup` and `restore`: what must outlive the coordinator's machine.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::json;
use service::backup::{self, Kind, LetIn, Manifest, Options, Restored, Wanted};
use service::{KeySource, ServiceError};

use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, Format, plain};

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
    /// Tells a database that was put back by other tools than `novaferry restore` of which time it is; run it on the
    /// coordinator's machine, while all coordinators are stopped.
    #[command(after_help = "\
Hosts renew their certificates twice a day. A database that knows of which time it is takes in those that were signed since;
one that does not know refuses them, and those hosts have to join again.

Example:
  novaferry authority restored --made 2026-11-22T03:00:00Z --database-file /etc/novaferry/database --revoke-host host-x")]
    Restored {
        #[command(flatten)]
        state: State,
        /// File with the address of the PostgreSQL database; the one in the state folder if not given.
        #[arg(long, value_name = "FILE")]
        database_file: Option<PathBuf>,
        /// When the backup was made, or rather a little before.
        #[arg(long, value_name = "TIME", value_parser = moment)]
        made: model::Timestamp,
        #[command(flatten)]
        since: Since,
    },
}

/// What was forbidden after a backup.
#[derive(Debug, Args)]
pub(super) struct Since {
    /// A host that was revoked after the backup; give it several times for several.
    #[arg(long, value_name = "HOST")]
    revoke_host: Vec<model::Name>,
    /// Makes all API tokens of the backup no good, and a new administrator's.
    #[arg(long)]
    revoke_tokens: bool,
}

impl Since {
    fn wanted(self) -> Wanted {
        Wanted { revoke_hosts: self.revoke_host, revoke_tokens: self.revoke_tokens }
    }
}

fn moment(text: &str) -> Result<model::Timestamp, String> {
    text.parse().map_err(|_invalid| "write a time such as 2026-11-22T03:00:00Z".to_owned())
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
    let (folder, from, to) = match command {
        AuthorityCommand::Rekey { state: State { folder }, from, to } => (folder, from, to),
        AuthorityCommand::Restored { state: State { folder }, database_file, made, since } => {
            return restored(&folder, database_file.as_deref(), made, &since.wanted(), format);
        }
    };
    let done = service::rekey(&folder, &from.source()?, to.as_deref()).map_err(failed("ca-key"))?;
    let before = done.before.as_ref().map(|path| path.display().to_string());
    if format != Format::Text {
        output::value(format, &json!({ "under": done.under, "before": before }));
        return Ok(());
    }
    let place = to.unwrap_or_else(|| folder.join("wrapping.key"));
    output::line(&format!("the CA's key is sealed under key {} of {}", done.under, place.display()));
    if let Some(before) = before {
        output::line(&format!("the key before is {before}: remove it once no backup needs it"));
    }
    Ok(())
}

fn restored(
    folder: &Path,
    database: Option<&Path>,
    made: model::Timestamp,
    wanted: &Wanted,
    format: Format,
) -> Result<(), Failure> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).map(|text| text.trim().to_owned()).map_err(|error| {
            let what = format!("cannot read {}: {error}", path.display());
            Failure::new("database", what, "write the database's address into it").usage()
        })
    };
    let database = database.map(read).transpose()?;
    let told = backup::tell_restored(folder, database, made, wanted);
    let LetIn { hosts, tokens } = runtime()?.block_on(told).map_err(failed("restore"))?;
    if format != Format::Text {
        output::value(format, &json!({ "made": made, "hosts": hosts, "tokens": tokens }));
        return Ok(());
    }
    let_in(&LetIn { hosts, tokens });
    Ok(())
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        Failure::new("runtime", format!("cannot start: {error}"), "check the limits of this process")
    })
}

/// Says who is let in by a database from a backup.
fn let_in(LetIn { hosts, tokens }: &LetIn) {
    let names = hosts.iter().map(|host| host.as_str()).collect::<Vec<_>>().join(", ");
    output::line(&format!("let in again: {} hosts ({names}), {tokens} API tokens", hosts.len()));
    output::line(
        "  those that were revoked since: --revoke-host and --revoke-tokens here, before it is started",
    );
}

/// Asks for a backup, and keeps it once it is whole.
#[derive(Debug, Args)]
#[command(after_help = "\
The file has mode 0600 and is there only when all of it was checked and is on disk; nothing is written over. The CA's key is
in it, sealed; what it is sealed under is not: keep that apart. It is taken over the API, by an administrator's token, so it
may be asked for from another machine.

Example:
  novaferry backup /srv/backup/coordinator-$(date +%F).tar")]
pub(super) struct BackupArgs {
    /// Where to.
    file: PathBuf,
}

/// Makes a state folder from a backup.
#[derive(Debug, Args)]
#[command(after_help = "\
Run it on the coordinator's machine, as root or its user, while the coordinator is stopped. The coordinator that made the backup
must stay off. Every part is checked before anything is changed; what is in the folder is put aside, never removed.

A backup does not know what was forbidden after it: name the hosts that were revoked since, and make all tokens no good with
--revoke-tokens if one was. Join tokens of that time are no good any more; a new administrator's token is made.

Examples:
  novaferry restore coordinator-2026-11-22.tar --dry-run
  novaferry restore coordinator-2026-11-22.tar --force --revoke-host host-x --revoke-tokens")]
pub(super) struct RestoreArgs {
    /// The backup.
    file: PathBuf,
    #[command(flatten)]
    state: State,
    /// Puts what is in the folder aside, into replaced-TIME in it.
    #[arg(long)]
    force: bool,
    /// Checks the backup and says what would be done; changes nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    since: Since,
}

fn broken(what: &str, path: &Path, error: &io::Error) -> Failure {
    let what = format!("cannot {what} {}: {error}", path.display());
    Failure::new("backup", what, "correct the cause, or choose another file")
}

/// A file that is gone unless it is kept.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Kept under its name by now, or never made.
        drop(std::fs::remove_file(&self.0));
    }
}

pub(super) fn backup(client: &Client, args: &BackupArgs, format: Format) -> Result<(), Failure> {
    let file = &args.file;
    let exists = || {
        let what = format!("{} is there already", file.display());
        Failure::new("exists", what, "choose another file: no backup is written over")
    };
    if file.symlink_metadata().is_ok() {
        return Err(exists());
    }
    let (Some(name), parent) = (file.file_name(), file.parent().filter(|path| !path.as_os_str().is_empty()))
    else {
        return Err(
            Failure::new("backup", "this is no name of a file", "name the file of the backup").usage()
        );
    };
    let parent = parent.unwrap_or_else(|| Path::new("."));
    let part = Unfinished(parent.join(format!(".{}.{}", name.to_string_lossy(), std::process::id())));
    let mut to = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&part.0)
        .map_err(|error| broken("make", &part.0, &error))?;
    client.download("/v1/backup", &mut to)?;
    to.sync_all().map_err(|error| broken("write", &part.0, &error))?;
    let manifest = backup::check(&part.0).map_err(failed("backup"))?;
    match renameat_with(CWD, &part.0, CWD, file, RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::EXIST) => return Err(exists()),
        done => done.map_err(|error| broken("name", file, &error.into()))?,
    }
    File::open(parent).and_then(|folder| folder.sync_all()).map_err(|error| broken("keep", file, &error))?;
    if format != Format::Text {
        output::value(format, &json!({ "file": file.display().to_string(), "backup": manifest }));
        return Ok(());
    }
    output::line(&format!("{}: checked, and on disk", file.display()));
    contents(&manifest);
    Ok(())
}

/// Says what is in a backup, and what must be kept beside it.
fn contents(manifest: &Manifest) {
    output::line(&format!("made {} by release {}", manifest.made, plain(&manifest.version)));
    for (name, length) in manifest.files() {
        output::line(&format!("  {name}, {length} bytes"));
    }
    match &manifest.ca_key_under {
        Some(id) => output::line(&format!(
            "the CA's key in it is sealed under the key {}, which is NOT in it: keep a copy of that (wrapping.key in the state \
             folder, or what the credential or --ca-key-from holds) in another place; without it every host must join anew",
            plain(id)
        )),
        None => output::line(
            "the CA's key is NOT in it: it comes from the credential or --ca-key-from; keep a copy in another place",
        ),
    }
    if manifest.database == Kind::Postgresql {
        output::line(
            "the database is NOT in it: back PostgreSQL up with pg_dump, or its log for point-in-time recovery",
        );
    }
}

pub(super) fn restore(args: RestoreArgs, format: Format) -> Result<(), Failure> {
    let RestoreArgs { file, state: State { folder }, force, dry_run, since } = args;
    let options = Options { force, dry_run, wanted: since.wanted() };
    let done = runtime()?.block_on(backup::restore(&file, &folder, &options)).map_err(failed("restore"))?;
    let Restored { manifest, aside, replaced, token, let_in: LetIn { hosts, tokens }, opens } = done;
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    if format != Format::Text {
        output::value(
            format,
            &json!({
                "dry_run": dry_run, "state": folder.display().to_string(), "backup": manifest, "replaced": replaced,
                "aside": path(&aside), "token": path(&token), "hosts": hosts, "tokens": tokens, "ca_key_opens": opens,
            }),
        );
        return Ok(());
    }
    let (restored, put) =
        if dry_run { ("would be restored", "would be put") } else { ("is restored", "was put") };
    output::line(&format!("{} {restored} from {}", folder.display(), file.display()));
    contents(&manifest);
    if let Some(aside) = path(&aside) {
        output::line(&format!("what is there {put} into {aside}: {}", replaced.join(", ")));
    }
    if opens == Some(false) {
        output::line(
            "nothing in the folder opens the CA's key: before the coordinator is started, put wrapping.key there, or give the \
             credential or --ca-key-from",
        );
    }
    if let Some(token) = path(&token) {
        let_in(&LetIn { hosts, tokens });
        output::line(&format!("an administrator's token: {token}"));
    }
    Ok(())
}
