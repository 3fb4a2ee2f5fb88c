//! A state folder from a backup.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::audit::Deed;
use model::{Name, Timestamp};
use store::{DATABASE, Database, FolderLock, Store, StoreErrorKind};

use super::{Kind, Manifest, broken, check, failed, pump, read};
use crate::api::tokens;
use crate::ca_key::{KEY_FILE, KeySource, WRAPPING_FILE, with_older};
use crate::error::ServiceError;
use crate::fleet::now;

/// Where the new state is made ready. As long as it is there no coordinator starts: it would begin a new CA in a folder that
/// is half restored.
pub(crate) const STAGING: &str = ".restore";

/// How long a database may take until it can be used.
const PATIENCE: Duration = Duration::from_secs(15);

/// What is done to it before anybody is let in: what was forbidden after the backup is allowed in it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wanted {
    /// Hosts that were revoked since.
    pub revoke_hosts: Vec<Name>,
    /// Makes all API tokens no good but the one that is made here.
    pub revoke_tokens: bool,
}

/// How to restore.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Puts what is there aside.
    pub force: bool,
    /// Checks, and changes nothing.
    pub dry_run: bool,
    /// See there.
    pub wanted: Wanted,
}

/// What was, or would be, restored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Restored {
    /// From what.
    pub manifest: Manifest,
    /// Files that were put aside, and where; none when there were none.
    pub aside: Option<PathBuf>,
    /// What was put aside.
    pub replaced: Vec<String>,
    /// A new administrator's token, if the database was in the backup.
    pub token: Option<PathBuf>,
    /// Who is let in again.
    pub let_in: LetIn,
    /// Whether the CA's key can be opened with what is in the folder; none when it is not in the backup.
    pub opens: Option<bool>,
}

/// What a coordinator keeps in its folder, beside what opens the CA's key.
const OURS: [&str; 6] =
    ["ca.key", "ca.pem", "coordinator.db", "coordinator.db-wal", "coordinator.db-shm", tokens::FIRST];

/// Refuses a folder in which a restore was broken off.
pub(crate) fn refuse_half_restored(folder: &Path) -> Result<(), ServiceError> {
    if folder.join(STAGING).exists() {
        return Err(ServiceError::Backup(format!(
            "a restore into {} was broken off; run `novaferry restore` again, with --force",
            folder.display()
        )));
    }
    Ok(())
}

fn refused(what: String) -> ServiceError {
    ServiceError::Backup(what)
}

/// Makes a state folder from a backup, all of it or nothing. Wants no coordinator there.
///
/// # Errors
/// When the backup is not whole, or of a newer release; when a coordinator uses the folder; when something is in it and
/// `force` is not set; file errors.
pub async fn restore(file: &Path, folder: &Path, options: &Options) -> Result<Restored, ServiceError> {
    // All of it is known to be good before anything is touched.
    let manifest = check(file)?;
    if !options.dry_run && !folder.exists() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|error| failed(&format!("make the folder {}", folder.display()), &error))?;
    }
    let _lock = match (options.dry_run, folder.join("lock").exists()) {
        (true, false) => None,
        _ => Some(FolderLock::take(folder)?),
    };
    let here: Vec<String> =
        OURS.iter().filter(|name| folder.join(name).exists()).map(|name| (*name).to_owned()).collect();
    let strange = strangers(folder)?;
    if (!here.is_empty() || !strange.is_empty()) && !options.force {
        let all = [here, strange].concat().join(", ");
        return Err(refused(format!(
            "{} is not empty ({all}); choose another folder, or put what is there aside with --force",
            folder.display()
        )));
    }
    // Of a PostgreSQL database only the CA is replaced.
    let replaced: Vec<String> = here
        .into_iter()
        .filter(|name| manifest.database == Kind::Sqlite || manifest.files().any(|(file, _)| file == name))
        .collect();
    let aside = folder.join(format!("replaced-{}", now().as_millisecond()));
    let mut restored = Restored {
        aside: (!replaced.is_empty()).then(|| aside.clone()),
        replaced,
        token: (manifest.database == Kind::Sqlite).then(|| folder.join(tokens::FIRST)),
        let_in: LetIn::default(),
        opens: None,
        manifest,
    };
    let staging = if options.dry_run {
        // Beside nothing that matters: a dry run changes nothing in the folder.
        tempfile_in(&std::env::temp_dir())?
    } else {
        let staging = folder.join(STAGING);
        remove(&staging)?;
        DirBuilder::new()
            .mode(0o700)
            .create(&staging)
            .map_err(|error| failed(&format!("make {}", staging.display()), &error))?;
        staging
    };
    let staged = stage(file, &staging, folder, options, &mut restored).await;
    if staged.is_err() || options.dry_run {
        // The folder is as it was.
        remove(&staging)?;
        staged?;
        return Ok(restored);
    }
    publish(&staging, folder, &aside, &restored).map_err(|error| {
        failed("put the restored files in their place; run it again with --force", &error)
    })?;
    Ok(restored)
}

fn remove(staging: &Path) -> Result<(), ServiceError> {
    match std::fs::remove_dir_all(staging) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed(&format!("remove {}", staging.display()), &error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A new folder that only we can read.
fn tempfile_in(parent: &Path) -> Result<PathBuf, ServiceError> {
    let name = format!("novaferry-{}", data_encoding::HEXLOWER.encode(&tokens::random::<8>()?));
    let path = parent.join(name);
    DirBuilder::new()
        .mode(0o700)
        .create(&path)
        .map_err(|error| failed(&format!("make {}", path.display()), &error))?;
    Ok(path)
}

/// What is in a folder that no coordinator put there.
fn strangers(folder: &Path) -> Result<Vec<String>, ServiceError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(&format!("list {}", folder.display()), &error)),
    };
    let mut strange = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| failed(&format!("list {}", folder.display()), &error))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let known = OURS.contains(&name.as_str())
            || name == "lock"
            || name == STAGING
            || name.starts_with(WRAPPING_FILE)
            || name.starts_with("replaced-");
        if !known {
            strange.push(name);
        }
    }
    Ok(strange)
}

/// Unpacks the backup, and makes its database ready.
async fn stage(
    file: &Path,
    staging: &Path,
    folder: &Path,
    options: &Options,
    restored: &mut Restored,
) -> Result<(), ServiceError> {
    let mut source = File::open(file).map_err(|error| failed("open the backup", &error))?;
    let again = read(&mut source, |name, content| {
        let mode = if name == "ca.pem" { 0o644 } else { 0o600 };
        let path = staging.join(name);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        let pumped = pump(&mut { content }, &mut file)?;
        file.sync_all()?;
        Ok(pumped)
    })?;
    if again != restored.manifest {
        return Err(broken("it changed while it was read"));
    }
    if restored.manifest.ca_key_under.is_some() {
        restored.opens = Some(opens(staging, folder)?);
    }
    if restored.manifest.database == Kind::Sqlite {
        database(staging, options, restored).await?;
    }
    Ok(())
}

/// Whether a wrapping key in the folder opens the key of the backup.
fn opens(staging: &Path, folder: &Path) -> Result<bool, ServiceError> {
    let sealed = pki::read_secret(&staging.join(KEY_FILE))?;
    let wrapping = KeySource::Beside.wrapping(folder)?;
    if wrapping.is_some_and(|wrapping| wrapping.open(&sealed).is_ok()) {
        return Ok(true);
    }
    Ok(with_older(folder, &sealed)?.is_some())
}

fn deed(action: &str, subject: String, detail: String) -> Deed {
    let (actor, outcome) = ("restore".to_owned(), "done".to_owned());
    Deed { at: now(), actor, action: action.to_owned(), subject, outcome, detail }
}

/// What a database that came from a backup lets in.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LetIn {
    /// Hosts of the fleet that are not revoked.
    pub hosts: Vec<Name>,
    /// API tokens that are good.
    pub tokens: usize,
}

async fn database(staging: &Path, options: &Options, restored: &mut Restored) -> Result<(), ServiceError> {
    // Brings the schema up to date, and refuses that of a newer release.
    let store = Store::open(&Database::Folder(staging.to_owned())).await?;
    let made = restored.manifest.made;
    let detail = format!("from a backup of {made} by release {}", restored.manifest.version);
    restored.let_in = settle(&store, made, detail, &options.wanted).await?;
    tokens::another(&store, staging, "restored administrator", "restore").await?;
    store.close().await;
    drop(store);
    for rest in ["coordinator.db-wal", "coordinator.db-shm"] {
        if staging.join(rest).exists() {
            return Err(ServiceError::internal(format!("{rest} is left of a closed database")));
        }
    }
    match std::fs::remove_file(staging.join("lock")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove a lock", &error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Makes a database that came from a backup ready for use.
async fn settle(
    store: &Store,
    made: Timestamp,
    detail: String,
    wanted: &Wanted,
) -> Result<LetIn, ServiceError> {
    store.verify_audit().await?;
    store.restored(made, deed("restore", String::new(), detail)).await?;
    for host in &wanted.revoke_hosts {
        let detail = "revoked since the backup".to_owned();
        store.revoke_host(host, deed("revoke-host", host.to_string(), detail)).await.map_err(|error| {
            match error.kind() {
                StoreErrorKind::NotFound => refused(format!(
                    "the backup knows no host {host}; leave it out: what it does not know has no line"
                )),
                _ => error.into(),
            }
        })?;
    }
    if wanted.revoke_tokens {
        store.revoke_api_tokens(deed("manage-tokens", String::new(), "revoked all".to_owned())).await?;
    }
    let hosts = store.hosts().await?;
    let hosts = hosts.into_iter().filter(|host| host.revoked.is_none()).map(|host| host.name).collect();
    let now = now();
    let good = |token: &store::ApiToken| token.revoked.is_none() && token.expires.is_none_or(|end| end > now);
    let tokens = store.api_tokens().await?.iter().filter(|token| good(token)).count();
    Ok(LetIn { hosts, tokens })
}

/// Tells a database that was put back by other tools than [`restore`] of which time it is: it then takes in the certificates
/// of the time between. No coordinator may use it. With `revoke_tokens`, an administrator's token is made in `state`.
///
/// # Errors
/// When a coordinator uses it; when the time is to come; what the database says.
pub async fn tell_restored(
    state: &Path,
    database: Option<String>,
    made: Timestamp,
    wanted: &Wanted,
) -> Result<LetIn, ServiceError> {
    if made > now() {
        return Err(refused(format!(
            "{made} is to come; give the time of the backup, as 2026-11-22T03:00:00Z"
        )));
    }
    let (database, _lock) = match database {
        Some(url) => (Database::Postgres(url), Some(FolderLock::take(state)?)),
        None => {
            if !state.join(DATABASE).exists() {
                return Err(refused(format!("there is no {DATABASE} in {}; check --state", state.display())));
            }
            (Database::Folder(state.to_owned()), None)
        }
    };
    // One that is led by another waits for its turn; nobody wants that here.
    let store = tokio::time::timeout(PATIENCE, Store::open(&database)).await.map_err(|_elapsed| {
        refused("a coordinator uses this database; stop all of them first".to_owned())
    })??;
    let let_in = settle(&store, made, format!("told to be of {made}"), wanted).await?;
    if wanted.revoke_tokens {
        tokens::another(&store, state, "restored administrator", "restore").await?;
    }
    store.close().await;
    Ok(let_in)
}

/// Puts the new files in the place of the old ones.
fn publish(staging: &Path, folder: &Path, aside: &Path, restored: &Restored) -> io::Result<()> {
    let owner = std::fs::metadata(folder)?;
    let give = |path: &Path| {
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid()))?;
        }
        Ok::<_, io::Error>(())
    };
    let mut staged = Vec::new();
    for entry in std::fs::read_dir(staging)? {
        let entry = entry?;
        give(&entry.path())?;
        File::open(entry.path())?.sync_all()?;
        staged.push(entry.file_name());
    }
    File::open(staging)?.sync_all()?;
    if !restored.replaced.is_empty() {
        DirBuilder::new().mode(0o700).create(aside)?;
        give(aside)?;
        for name in &restored.replaced {
            std::fs::rename(folder.join(name), aside.join(name))?;
        }
        File::open(aside)?.sync_all()?;
    }
    // Durable before the new ones come: a log of the old database must never meet the new one.
    File::open(folder)?.sync_all()?;
    // The database last.
    staged.sort_by_key(|name| name == DATABASE);
    for name in staged {
        std::fs::rename(staging.join(&name), folder.join(&name))?;
    }
    File::open(folder)?.sync_all()?;
    std::fs::remove_dir(staging)?;
    File::open(folder)?.sync_all()
}
