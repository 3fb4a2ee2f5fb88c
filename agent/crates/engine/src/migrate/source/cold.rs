//! Cold: the VM is off. Its disks are read through `qemu-nbd`, which keeps QEMU's locks on them until the migration is
//! over; their files must not change meanwhile.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hypervisor::inventory::{Activity, MAX_CONFIG, NovacronConfig};
use hypervisor::qemu_img;
use hypervisor::qemu_nbd::{Export, Exporter};
use hypervisor::specification::{BlockFact, Derived, derive_stopped};

use super::copy::{Readable, allocated, copy};
use super::{Owner, Signal, StepResult, chain};
use crate::migrate::host_cpu::host_cpu;
use crate::migrate::preflight::Finding;
use crate::migrate::status::Live;

/// NovaCron's names in a VM's folder.
const CONFIG: &str = "config.json";
const DISK: &str = "disk.qcow2";

/// Servers of the images, and what their files were like at first.
#[derive(Debug, Default)]
pub(super) struct Images {
    exports: Vec<Export>,
    prints: Vec<Print>,
}

/// What a change of a file shows in. Not its ctime: the fence renames it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Print {
    path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Print {
    fn of(path: &Path) -> Result<Self, String> {
        let data = std::fs::metadata(path).map_err(|error| format!("look at {}: {error}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            device: data.dev(),
            inode: data.ino(),
            size: data.len(),
            modified: (data.mtime(), data.mtime_nsec()),
        })
    }

    /// Whether the file under `path` is as it was.
    fn holds(&self, path: &Path) -> Result<bool, String> {
        Ok(Self { path: self.path.clone(), ..Self::of(path)? } == *self)
    }
}

/// NovaCron's disk of a stopped VM: the file itself, not a link to it, since the fence renames it.
fn root_disk(folder: &Path, config: &NovacronConfig) -> Result<PathBuf, String> {
    let in_folder = folder.join(DISK);
    let named = config.rootfs.as_deref().map(PathBuf::from).filter(|path| path.is_absolute());
    let path = if in_folder.exists() { in_folder } else { named.unwrap_or(in_folder) };
    std::fs::canonicalize(&path).map_err(|error| format!("find the VM's disk {}: {error}", path.display()))
}

impl Owner {
    /// Describes the VM by NovaCron's files.
    pub(super) async fn describe_stopped(&mut self) -> Result<Derived, String> {
        let runs = self
            .job
            .process
            .is_some_and(|process| process.activity().is_ok_and(|activity| activity != Activity::Dead));
        if runs {
            return Err("the VM runs, and a cold move is for one that is off: shut it down first".to_owned());
        }
        let folder =
            self.job.folder.clone().ok_or(
                "a cold move needs NovaCron's folder of the VM: its config.json says what the VM is",
            )?;
        let path = folder.join(CONFIG);
        let data =
            std::fs::metadata(&path).map_err(|error| format!("look at {}: {error}", path.display()))?;
        if data.len() > MAX_CONFIG {
            return Err(format!(
                "{} has {} bytes, and no more than {MAX_CONFIG} are read",
                path.display(),
                data.len()
            ));
        }
        let novacron = std::fs::read(&path).map_err(|error| format!("read {}: {error}", path.display()))?;
        let config = NovacronConfig::parse(&novacron)
            .map_err(|error| format!("{} is not NovaCron's: {error}", path.display()))?;
        let file = root_disk(&folder, &config)?;
        let format = match qemu_img::looks_like_qcow2(&file).map_err(|error| chain(&error))? {
            true => "qcow2",
            false => "raw",
        };
        let info = qemu_img::inspect(&file, format).await.map_err(|error| chain(&error))?;
        for found in qemu_img::findings(&info, true) {
            let finding = if found.blocking { Finding::blocking } else { Finding::warning };
            self.findings.push(finding("image", found.what, found.advice));
        }
        let disk = BlockFact {
            device: "virtio0".to_owned(),
            node: String::new(),
            qdev: None,
            file,
            format: info.format,
            size: info.virtual_size,
            read_only: false,
        };
        derive_stopped(&self.job.vm, &novacron, disk, host_cpu())
            .map_err(|error| format!("the VM cannot be described: {}", chain(&error)))
    }

    /// Begins to copy the images.
    pub(super) async fn start_cold(&mut self) -> StepResult {
        let disks = self.open_targets()?;
        let mut work = Vec::new();
        for (source, disk) in disks.iter().zip(&self.disks) {
            self.copying.images.prints.push(Print::of(&source.path)?);
            let export = Exporter::read_only(&source.path, source.format.name())
                .connections(1)
                .start()
                .await
                .map_err(|error| chain(&error))?;
            let uri = export.uri();
            let readable = Readable { address: uri.address, export: uri.export };
            self.copying.images.exports.push(export);
            self.copying.readable.push(readable.clone());
            work.push((readable, Arc::clone(&disk.target)));
        }
        let signals = self.signals.clone();
        self.copying.work.spawn(async move {
            let copy_all = async {
                for (readable, target) in work {
                    let (volume, map) = allocated(&readable).await?;
                    copy(volume.client(), &map, &target).await?;
                    volume.close().await;
                }
                Ok(())
            };
            let signal = match copy_all.await {
                Ok(()) => Signal::Copied(super::warm::Copied::once()),
                Err(why) => Signal::Carrier("the copy of the disks", Err(why)),
            };
            // Fails when the owner is gone.
            drop(signals.send(signal).await);
        });
        Ok(None)
    }

    /// Whether the images are what they were when the copy began. `now` gives a file's name of today.
    pub(super) fn check_unchanged(&self, now: impl Fn(&Path) -> PathBuf) -> Result<(), String> {
        for print in &self.copying.images.prints {
            if !print.holds(&now(&print.path))? {
                return Err(format!(
                    "{} changed while it was copied: something used the VM's disk",
                    print.path.display()
                ));
            }
        }
        Ok(())
    }

    /// Ends the servers of the images, and what reads from them.
    pub(super) async fn end_copying(&mut self) {
        self.copying.work.shutdown().await;
        self.copying.readable.clear();
        for export in std::mem::take(&mut self.copying.images).exports {
            if let Err(error) = export.close().await {
                tracing::debug!(error = %chain(&error), "a server of an image did not end in order");
            }
        }
    }

    /// Shows how far the copy of a VM that is off has come; for others, QEMU's ticks do.
    pub(super) fn show_copied(&self) {
        use std::sync::atomic::Ordering;
        let mut live = Live { lost_ms: self.lost_millis(), ..Live::default() };
        for disk in &self.disks {
            live.disk_total += disk.size;
            live.disk_done += disk.target.counters().plain.load(Ordering::Relaxed).min(disk.size);
        }
        self.publish(Some(live));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn novacrons_disk_is_found_also_behind_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = folder.path().join("elsewhere.qcow2");
        let mut config = NovacronConfig::default();
        root_disk(folder.path(), &config).unwrap_err();
        std::fs::write(&elsewhere, b"x").unwrap();
        config.rootfs = Some(elsewhere.display().to_string());
        let real = std::fs::canonicalize(&elsewhere).unwrap();
        assert_eq!(root_disk(folder.path(), &config).unwrap(), real);
        config.rootfs = None;
        std::os::unix::fs::symlink(&elsewhere, folder.path().join(DISK)).unwrap();
        assert_eq!(root_disk(folder.path(), &config).unwrap(), real);
    }

    #[test]
    fn a_change_shows_and_a_new_name_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("a"), folder.path().join("b"));
        std::fs::write(&old, b"x").unwrap();
        let print = Print::of(&old).unwrap();
        std::fs::rename(&old, &new).unwrap();
        assert!(print.holds(&new).unwrap());
        std::fs::write(&new, b"xy").unwrap();
        assert!(!print.holds(&new).unwrap());
        print.holds(&old).unwrap_err();
    }
}
