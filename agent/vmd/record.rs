//! What vmd knows of a VM, in a file each, durable before anybody is told.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::process::Process;

/// Version of the file; others make vmd refuse to start, because it might overlook a fence.
const VERSION: u32 = 1;
/// Largest file, bytes: paths of all disks of a VM, twice.
const MAX_FILE: u64 = 4 << 20;
/// Most records: VMs that a host ever saw. Guessed; fences of VMs long gone may be lifted.
pub(crate) const MAX_RECORDS: usize = 16_384;

/// A VM.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    version: u32,
    pub(crate) vm: String,
    /// The newest generation that this host has seen of it; older ones are refused.
    pub(crate) floor: u64,
    /// Its user while it is not forgotten.
    pub(crate) uid: Option<u32>,
    pub(crate) fence: Option<Fence>,
    pub(crate) run: Option<Run>,
}

/// The mark that this host must not start the VM.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fence {
    pub(crate) generation: u64,
    /// Seconds since 1970.
    pub(crate) since: u64,
    /// What is renamed so that others do not start it either: from, to. Written before it is done.
    pub(crate) renames: Vec<(PathBuf, PathBuf)>,
    pub(crate) marker: PathBuf,
}

/// A QEMU that was started.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Run {
    pub(crate) generation: u64,
    pub(crate) folder: PathBuf,
    /// None until it is known; then it is found by its arguments.
    pub(crate) process: Option<Process>,
    /// It was put in place only: there is no process, and never was.
    #[serde(default)]
    pub(crate) defined: bool,
    pub(crate) taps: Vec<String>,
    /// Files that were given to the VM's user.
    pub(crate) files: Vec<PathBuf>,
}

impl Record {
    pub(crate) fn new(vm: &str) -> Self {
        Self { version: VERSION, vm: vm.to_owned(), floor: 0, uid: None, fence: None, run: None }
    }

    fn path(folder: &Path, vm: &str) -> PathBuf {
        folder.join(format!("{vm}.json"))
    }

    /// Makes it durable.
    pub(crate) fn save(&self, folder: &Path) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        replace(&Self::path(folder, &self.vm), &text, 0o600)
    }

    /// All records of a folder.
    pub(crate) fn load_all(folder: &Path) -> io::Result<Vec<Self>> {
        let mut records = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            if records.len() == MAX_RECORDS {
                return Err(io::Error::other(format!(
                    "more than {MAX_RECORDS} records in {}",
                    folder.display()
                )));
            }
            let broken = |why: String| {
                io::Error::other(format!(
                    "{} cannot be read ({why}); it may hold a fence, so restore it, or remove it if the VM may run here",
                    path.display()
                ))
            };
            let mut text = Vec::new();
            File::open(&path)?.take(MAX_FILE).read_to_end(&mut text)?;
            let record: Self = serde_json::from_slice(&text).map_err(|error| broken(error.to_string()))?;
            if record.version != VERSION || path != Self::path(folder, &record.vm) {
                return Err(broken("another version or name".to_owned()));
            }
            records.push(record);
        }
        Ok(records)
    }
}

/// Replaces a file: after a crash at any instant there is the old one or the new one.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // `create_new` follows no link that somebody put there.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_folder_of(path)
}

/// Makes the names in a file's folder durable.
pub(crate) fn sync_folder_of(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_and_broken_ones_are_not_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let fence =
            Fence { generation: 7, since: 1, renames: vec![("/a".into(), "/b".into())], marker: "/c".into() };
        let record = Record { floor: 7, fence: Some(fence), ..Record::new("web-1") };
        record.save(folder.path()).unwrap();
        // What a crash left is no record.
        std::fs::write(folder.path().join("web-2.json.new"), b"{").unwrap();
        assert_eq!(Record::load_all(folder.path()).unwrap(), [record]);
        for broken in ["{", "{}", r#"{"version":2,"vm":"x","floor":0,"uid":null,"fence":null,"run":null}"#] {
            std::fs::write(folder.path().join("x.json"), broken).unwrap();
            let error = Record::load_all(folder.path()).unwrap_err().to_string();
            assert!(error.contains("may hold a fence"), "{error}");
        }
    }
}
