//! `[[pool]]`: folders that hold volumes, and who may do what there.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use super::error::ConfigError;
use super::file::FilePool;
use super::units::ByteSize;
use pki::{InvalidPeerName, PeerName};

/// Longest pool name in bytes, as for volumes' names.
const MAX_NAME: usize = 128;

/// A pool's name: `[a-z0-9][a-z0-9._-]{0,127}`, because it stands in `novaferry://HOST:PORT/POOL/NAME`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PoolName(String);

impl PoolName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parse(text: &str) -> Option<Self> {
        is_name(text).then(|| Self(text.to_owned()))
    }
}

/// Whether a text can name a pool, a volume or a VM.
pub(super) fn is_name(text: &str) -> bool {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.len() <= MAX_NAME
        && text.bytes().next().is_some_and(plain)
        && text.bytes().all(|c| plain(c) || matches!(c, b'.' | b'_' | b'-'))
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A folder that holds volumes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pool {
    /// Its name in addresses.
    pub name: PoolName,
    /// The folder.
    pub path: PathBuf,
    /// Logical bytes of all volumes together; `None` for what the file system has.
    pub quota: Option<ByteSize>,
    /// Hosts that may write volumes here.
    pub push: Vec<PeerName>,
    /// Hosts that may read volumes from here.
    pub pull: Vec<PeerName>,
}

pub(super) fn validate(file: Vec<FilePool>) -> Result<Vec<Pool>, ConfigError> {
    let mut pools: Vec<Pool> = Vec::with_capacity(file.len());
    for (index, pool) in file.into_iter().enumerate() {
        let pool = one(index, pool)?;
        for earlier in &pools {
            if earlier.name == pool.name {
                return Err(ConfigError::value(
                    &format!("pool.{index}.name"),
                    pool.name.as_str(),
                    "there is a pool of this name above: give each pool a name of its own".into(),
                ));
            }
            if pool.path.starts_with(&earlier.path) || earlier.path.starts_with(&pool.path) {
                return Err(ConfigError::value(
                    &format!("pool.{index}.path"),
                    &pool.path.display().to_string(),
                    format!(
                        "it and {} of pool {} lie in one another: give each pool a folder of its own",
                        earlier.path.display(),
                        earlier.name
                    ),
                ));
            }
        }
        pools.push(pool);
    }
    Ok(pools)
}

fn one(index: usize, file: FilePool) -> Result<Pool, ConfigError> {
    let FilePool { name, path, quota, push, pull } = file;
    let key = |field: &str| format!("pool.{index}.{field}");
    let name_advice = "write 1 to 128 of a-z, 0-9, '.', '_' and '-', beginning with a letter or a digit";
    let name = name.ok_or_else(|| ConfigError::missing(&key("name"), name_advice))?;
    let name =
        PoolName::parse(&name).ok_or_else(|| ConfigError::value(&key("name"), &name, name_advice.into()))?;
    let example = format!("/srv/novaferry/{name}");
    let path = path
        .ok_or_else(|| ConfigError::missing(&key("path"), &format!("write a folder, such as {example:?}")))?;
    check_absolute(&key("path"), &path, &example)?;
    if path.parent().is_none() {
        let advice = format!("the root folder cannot be a pool: write one such as {example:?}");
        return Err(ConfigError::value(&key("path"), "/", advice));
    }
    if quota == Some(ByteSize(0)) {
        let advice = "write a size such as \"100GiB\", or remove the key for no quota";
        return Err(ConfigError::value(&key("quota"), "0", advice.into()));
    }
    Ok(Pool { name, path, quota, push: peers(&key("push"), push)?, pull: peers(&key("pull"), pull)? })
}

pub(super) fn peers(key: &str, names: Vec<String>) -> Result<Vec<PeerName>, ConfigError> {
    let mut peers = Vec::with_capacity(names.len());
    for name in names {
        let peer: PeerName = name.parse().map_err(|error: InvalidPeerName| {
            ConfigError::value(
                key,
                &name,
                "write host names as in `pki issue NAME`, such as \"host-a\"".into(),
            )
            .caused_by(error)
        })?;
        if peers.contains(&peer) {
            return Err(ConfigError::value(key, &name, "it stands there twice: remove one".into()));
        }
        peers.push(peer);
    }
    Ok(peers)
}

/// An absolute path without `.` and `..`, so that comparing paths by their text means something.
pub(super) fn check_absolute(key: &str, path: &Path, example: &str) -> Result<(), ConfigError> {
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if path.is_absolute() && plain {
        return Ok(());
    }
    Err(ConfigError::value(
        key,
        &path.display().to_string(),
        format!("write an absolute path without '..', such as {example:?}"),
    ))
}
