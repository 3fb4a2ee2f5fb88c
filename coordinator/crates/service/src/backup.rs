//! Backups: what the state folder needs, in one file, made while the coordinator serves.
//!
//! The file is a tar archive, so that it can be looked at without this program: `manifest.json`, `manifest.sha256`, and the
//! parts that the manifest names with their lengths and SHA-256. The CA's key is in it as it lies in the folder: sealed.
//! What it is sealed under is not in it, and neither is any API token (the database has their digests).

mod restore;

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::Path;

use axum::body::Bytes;
use model::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use store::DATABASE;
use tar::{Archive, Builder, EntryType, Header};
use tokio::sync::mpsc;

use crate::authority::CERTIFICATE_FILE;
use crate::ca_key::KEY_FILE;
use crate::error::ServiceError;
use crate::fleet::{Fleet, now};
use crate::seal::{is_sealed, sealed_under};

pub(crate) use restore::refuse_half_restored;
pub use restore::{LetIn, Options, Restored, Wanted, restore, tell_restored};

/// What the file looks like. Another number is another form.
const FORMAT: u32 = 1;
const MANIFEST: &str = "manifest.json";
const MANIFEST_SUM: &str = "manifest.sha256";
/// All parts that there can be, in their order.
const PARTS: [&str; 3] = [KEY_FILE, CERTIFICATE_FILE, DATABASE];
/// Largest manifest, and largest part beside the database, bytes.
const MOST_SMALL: u64 = 64 << 10;
/// The copy of the database while it is sent.
const COPY: &str = ".backup";
/// Bytes that are sent at once, and how many such parts wait for a reader.
const CHUNK: usize = 256 << 10;
const WAITING: usize = 4;

/// What a backup is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    /// The release that made it.
    pub version: String,
    /// When.
    pub made: Timestamp,
    /// `sqlite`: the database is in it. `postgresql`: it is not; use that server's own backups.
    pub database: Kind,
    /// Name of the key that the CA's key is sealed under; none when the CA's key is not in it.
    pub ca_key_under: Option<String>,
    parts: Vec<Part>,
}

/// Which database.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// In the backup.
    Sqlite,
    /// Not in the backup.
    Postgresql,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Part {
    name: String,
    length: u64,
    sha256: String,
}

impl Manifest {
    /// Names of the files in it, and their lengths in bytes.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.parts.iter().map(|part| (part.name.as_str(), part.length))
    }
}

fn failed(what: &str, error: &io::Error) -> ServiceError {
    ServiceError::Backup(format!("{what}: {error}; correct the cause, such as a full disk, and try again"))
}

/// Copies, and gives length and SHA-256.
fn pump(from: &mut impl Read, to: &mut impl Write) -> io::Result<(u64, String)> {
    let (mut hash, mut length, mut buffer) = (Sha256::new(), 0, vec![0; CHUNK]);
    loop {
        let count = from.read(&mut buffer)?;
        let Some(part) = buffer.get(..count).filter(|part| !part.is_empty()) else {
            return Ok((length, data_encoding::HEXLOWER.encode(&hash.finalize())));
        };
        hash.update(part);
        to.write_all(part)?;
        length += part.len() as u64;
    }
}

/// The parts of a backup that is about to be sent.
struct Content {
    manifest: Manifest,
    sources: Vec<Source>,
}

enum Source {
    Text(String),
    File(File),
}

impl Content {
    fn new(database: Kind, ca_key_under: Option<String>) -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let manifest =
            Manifest { format: FORMAT, version, made: now(), database, ca_key_under, parts: Vec::new() };
        Self { manifest, sources: Vec::new() }
    }

    fn add(&mut self, name: &str, mut source: Source) -> io::Result<()> {
        let (length, sha256) = match &mut source {
            Source::Text(text) => pump(&mut text.as_bytes(), &mut io::sink())?,
            Source::File(file) => {
                let summed = pump(file, &mut io::sink())?;
                file.rewind()?;
                summed
            }
        };
        self.manifest.parts.push(Part { name: name.to_owned(), length, sha256 });
        self.sources.push(source);
        Ok(())
    }

    fn write(self, to: impl Write) -> io::Result<()> {
        let Self { manifest, sources } = self;
        let mut archive = Builder::new(to);
        let seconds = u64::try_from(manifest.made.as_second()).unwrap_or(0);
        let mut append = |name: &str, length: u64, content: &mut dyn Read| {
            let mut header = Header::new_gnu();
            header.set_size(length);
            header.set_mode(0o600);
            header.set_mtime(seconds);
            header.set_entry_type(EntryType::Regular);
            archive.append_data(&mut header, name, content)
        };
        let text = serde_json::to_string_pretty(&manifest)?;
        append(MANIFEST, text.len() as u64, &mut text.as_bytes())?;
        let sum = data_encoding::HEXLOWER.encode(&Sha256::digest(&text));
        append(MANIFEST_SUM, sum.len() as u64, &mut sum.as_bytes())?;
        for (part, source) in manifest.parts.iter().zip(sources) {
            match source {
                Source::Text(text) => append(&part.name, part.length, &mut text.as_bytes())?,
                Source::File(mut file) => append(&part.name, part.length, &mut file)?,
            }
        }
        archive.into_inner()?.flush()
    }
}

/// Gives what is written to whoever reads a channel.
struct Sender(mpsc::Sender<io::Result<Bytes>>);

impl Write for Sender {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(part)));
        sent.map_err(|_closed| {
            io::Error::new(io::ErrorKind::BrokenPipe, "nobody reads the backup any more")
        })?;
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes a backup; its bytes come over the channel. None while another one is made.
pub(crate) async fn make(fleet: &Fleet) -> Result<Option<mpsc::Receiver<io::Result<Bytes>>>, ServiceError> {
    let Ok(turn) = std::sync::Arc::clone(&fleet.backups).try_lock_owned() else { return Ok(None) };
    let folder = fleet.state.clone();
    let copy = folder.join(COPY);
    let database = if fleet.store.is_shared() { Kind::Postgresql } else { Kind::Sqlite };
    if database == Kind::Sqlite {
        // What a killed coordinator left; nobody else works in this folder.
        match std::fs::remove_file(&copy) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove an old copy of the database", &error));
            }
            Ok(()) | Err(_) => {}
        }
        fleet.store.copy_into(&copy).await?;
    }
    let (key, certificate) =
        (fleet.authority.sealed_key(&folder)?, fleet.authority.certificate_pem().to_owned());
    let gathered = tokio::task::spawn_blocking(move || {
        let under = key.as_deref().map(sealed_under).transpose()?;
        let mut content = Content::new(database, under);
        let gather = || {
            if let Some(key) = key {
                content.add(KEY_FILE, Source::Text(key))?;
            }
            content.add(CERTIFICATE_FILE, Source::Text(certificate))?;
            if database == Kind::Sqlite {
                let file = File::open(&copy)?;
                // It lives as long as it is open.
                std::fs::remove_file(&copy)?;
                content.add(DATABASE, Source::File(file))?;
            }
            Ok(())
        };
        gather().map_err(|error: io::Error| failed("gather a backup", &error))?;
        Ok::<_, ServiceError>(content)
    });
    let content = gathered.await.map_err(ServiceError::internal)??;
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = content.write(BufWriter::with_capacity(CHUNK, Sender(sender.clone()))) {
            tracing::warn!(%error, "a backup broke off");
            // Whoever reads sees that it is not whole.
            drop(sender.blocking_send(Err(error)));
        }
        drop(turn);
    });
    Ok(Some(receiver))
}

/// The CA's key as it lies in the folder.
pub(crate) fn sealed_key(folder: &Path) -> Result<String, ServiceError> {
    let text = pki::read_secret(&folder.join(KEY_FILE))?;
    if !is_sealed(&text) {
        return Err(ServiceError::Key(
            "the CA's key lies open in the state folder, and no backup takes it so; start the coordinator anew".to_owned(),
        ));
    }
    Ok(text.to_string())
}

fn broken(what: impl std::fmt::Display) -> ServiceError {
    ServiceError::Backup(format!("this is no whole backup: {what}; use another one"))
}

/// Reads a backup and checks every part of it. `take` gets each part's name and content before its sum is known, so what
/// it keeps is good only if all of this succeeds.
fn read(
    file: &mut impl Read,
    mut take: impl FnMut(&str, &mut dyn Read) -> io::Result<(u64, String)>,
) -> Result<Manifest, ServiceError> {
    let mut archive = Archive::new(BufReader::with_capacity(CHUNK, file));
    // As they are: no long names or other extensions are followed.
    let mut entries = archive.entries().map_err(broken)?.raw(true);
    let mut next = |name: &str, most: u64| {
        let entry = entries.next().ok_or_else(|| broken(format!("{name} is missing")))?.map_err(broken)?;
        let plain = entry.header().entry_type() == EntryType::Regular;
        if !plain || entry.path_bytes() != name.as_bytes() {
            return Err(broken(format!("{name} is not where it should be")));
        }
        if entry.size() > most {
            return Err(broken(format!("{name} has {} bytes, more than {most}", entry.size())));
        }
        Ok(entry)
    };
    let mut text = String::new();
    next(MANIFEST, MOST_SMALL)?.read_to_string(&mut text).map_err(broken)?;
    let mut sum = String::new();
    next(MANIFEST_SUM, MOST_SMALL)?.read_to_string(&mut sum).map_err(broken)?;
    let form: serde_json::Value = serde_json::from_str(&text).map_err(broken)?;
    if form["format"] != FORMAT {
        let (is, known) = (&form["format"], FORMAT);
        return Err(ServiceError::Backup(format!(
            "this backup is of the form {is}, and this release reads {known}; use the release that made it ({})",
            form["version"]
        )));
    }
    if sum.trim() != data_encoding::HEXLOWER.encode(&Sha256::digest(&text)) {
        return Err(broken("its list of parts was changed"));
    }
    let manifest: Manifest = serde_json::from_str(&text).map_err(broken)?;
    let mut known = PARTS.iter();
    for part in &manifest.parts {
        // Each at most once, and in this order: what else is there nobody can name.
        if !known.any(|name| *name == part.name) {
            return Err(broken(format!("{:?} does not belong into it", part.name)));
        }
        let most = if part.name == DATABASE { part.length } else { MOST_SMALL };
        let mut entry = next(&part.name, most)?;
        let (length, sum) = take(&part.name, &mut entry).map_err(broken)?;
        if (length, &sum) != (part.length, &part.sha256) {
            return Err(broken(format!("{} is not what was put into it", part.name)));
        }
    }
    let has = |name: &str| manifest.parts.iter().any(|part| part.name == name);
    let whole = has(CERTIFICATE_FILE)
        && has(KEY_FILE) == manifest.ca_key_under.is_some()
        && has(DATABASE) == (manifest.database == Kind::Sqlite);
    if !whole {
        return Err(broken("its parts are not those that it names"));
    }
    match entries.next() {
        None => Ok(manifest),
        Some(_) => Err(broken("there is more behind its end")),
    }
}

/// Checks a backup: every part is there, and as it was put in.
///
/// # Errors
/// [`ServiceError::Backup`] when it is not whole; [`ServiceError::Backup`] when it cannot be read.
pub fn check(file: &Path) -> Result<Manifest, ServiceError> {
    let mut file = File::open(file).map_err(|error| failed(&format!("open {}", file.display()), &error))?;
    read(&mut file, |_, content| pump(&mut { content }, &mut io::sink()))
}
