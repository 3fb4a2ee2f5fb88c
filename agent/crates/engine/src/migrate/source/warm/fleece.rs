//! Points in time of disks that a guest writes: QEMU keeps what is overwritten (fleecing), and shows the disks as they
//! were through its own NBD server, together with what was written since the point before.
//!
//! ```text
//! point N:  transaction  bitmap N begins, bitmap N-1 ends, backup (sync none) keeps old content in an overlay
//!           export       the overlay, with bitmap N-1
//! cleared:  export, backup, overlay and bitmap N-1 go; bitmap N goes on recording
//! ```
//!
//! Everything has a name of ours, so that a later process finds it and takes it away.
//!
//! An overlay without room would make the guest's writes fail: the room is looked at before each point, and all the
//! time while it lasts ([`watch_room`]).

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hypervisor::nbd::Address;
use hypervisor::qemu_img;
use hypervisor::qmp::words::{ExportRemoval, SyncMode};
use hypervisor::qmp::{
    Action, Backup, BitmapName, ImageNode, NbdExport, NewBitmap, NewNode, Qmp, SocketAddress,
};
use volume::CHUNK;

use super::super::copy::Readable;
use super::super::{chain, mirror, undo};

/// How long QEMU may take to let go of something.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(10);
/// Room that is never used up for overlays, bytes; less when the disks are smaller. Guessed.
const RESERVE: u64 = 1 << 30;
/// How often the room is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Where QEMU makes sockets and opens overlays for us: beside its own QMP socket, which its user could make there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in super::super) struct Place {
    folder: PathBuf,
    prefix: String,
}

/// A disk, as far as QEMU's commands go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in super::super) struct Disk {
    pub(in super::super) node: String,
    pub(in super::super) size: u64,
}

fn names(at: usize) -> (String, String, String) {
    (format!("novaferry-fleece-{at}"), format!("novaferry-keep-{at}"), format!("novaferry-disk-{at}"))
}

/// The bitmap of what was written since a point.
pub(in super::super) fn bitmap_name(point: u32) -> String {
    format!("novaferry-point-{point}")
}

impl Place {
    pub(in super::super) fn new(qmp: &Path, migration: &volume::SessionId) -> Self {
        let short: String = migration.to_string().chars().take(8).collect();
        let folder = qmp.parent().unwrap_or_else(|| Path::new("/")).to_owned();
        Self { folder, prefix: format!("novaferry-{short}-") }
    }

    fn socket(&self) -> PathBuf {
        self.folder.join(format!("{}nbd.sock", self.prefix))
    }

    fn overlay(&self, at: usize) -> PathBuf {
        self.folder.join(format!("{}fleece-{at}.qcow2", self.prefix))
    }

    /// The export of a disk.
    pub(in super::super) fn readable(&self, at: usize) -> Readable {
        Readable { address: Address::Unix(self.socket()), export: names(at).2 }
    }

    /// Bytes that are free where overlays grow.
    fn room(&self) -> Result<u64, String> {
        let free = rustix::fs::statvfs(&self.folder)
            .map_err(|error| format!("look at {}: {error}", self.folder.display()))?;
        Ok(free.f_bavail.saturating_mul(free.f_frsize))
    }

    /// Makes an overlay that QEMU's user can write and nobody else can read.
    async fn make_overlay(&self, at: usize, size: u64, qemu: u32) -> Result<PathBuf, String> {
        let path = self.overlay(at);
        remove(&path)?;
        qemu_img::create_qcow2(&path, size).await.map_err(|error| chain(&error))?;
        let failed =
            |what: &str, path: &Path, error: std::io::Error| format!("{what} {}: {error}", path.display());
        let folder =
            std::fs::metadata(&self.folder).map_err(|error| failed("look at", &self.folder, error))?;
        let ours = rustix::process::geteuid().as_raw();
        let mode = if [0, ours].contains(&qemu) {
            0o600
        } else if folder.mode() & 0o001 == 0 {
            // The folder lets in QEMU's user and the agent's group, and nobody else.
            0o666
        } else {
            return Err(format!(
                "{} is open to everybody, so the guest's data cannot be kept there for its QEMU (user {qemu}); put \
                 the QMP socket into a folder of the VM's own",
                self.folder.display()
            ));
        };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
            .map_err(|error| failed("open to QEMU", &path, error))?;
        Ok(path)
    }

    /// Removes the files that are left.
    pub(in super::super) fn remove_files(&self) -> Result<(), String> {
        let entries = std::fs::read_dir(&self.folder)
            .map_err(|error| format!("list {}: {error}", self.folder.display()))?;
        for entry in entries {
            let entry = entry.map_err(|error| format!("list {}: {error}", self.folder.display()))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let ours = name.strip_prefix(&self.prefix).is_some_and(|rest| {
                rest == "nbd.sock" || (rest.starts_with("fleece-") && rest.ends_with(".qcow2"))
            });
            if ours {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

fn remove(path: &Path) -> Result<(), String> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("remove {}: {error}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Room that must be left while the guest writes.
fn reserve(disks: &[Disk]) -> u64 {
    disks.iter().map(|disk| disk.size).sum::<u64>().min(RESERVE)
}

/// Starts QEMU's NBD server for us.
pub(in super::super) async fn start_server(qmp: &Qmp, place: &Place) -> Result<(), String> {
    remove(&place.socket())?;
    qmp.nbd_server_start(&SocketAddress::Unix(place.socket()), 0).await.map_err(|error| {
        format!("QEMU's NBD server cannot be used; end what uses it (nbd-server-stop): {}", chain(&error))
    })
}

/// Whether exports of others are there.
pub(in super::super) async fn is_taken(qmp: &Qmp) -> Result<bool, String> {
    let exports = qmp.query_block_exports().await.map_err(|error| chain(&error))?;
    Ok(exports.iter().any(|export| export.kind == "nbd" && !mirror::is_ours(&export.id)))
}

/// Makes point `point` of all disks at one instant, for a QEMU of user `qemu`.
pub(in super::super) async fn begin(
    qmp: &Qmp,
    place: &Place,
    disks: &[Disk],
    point: u32,
    qemu: u32,
) -> Result<(), String> {
    let failed = |error| chain(&error);
    let (room, reserve) = (place.room()?, reserve(disks));
    if room < reserve {
        return Err(format!(
            "{} has {room} bytes free, and {reserve} are needed for what the guest overwrites during the copy; make \
             room there",
            place.folder.display()
        ));
    }
    let mut actions = Vec::new();
    for (at, disk) in disks.iter().enumerate() {
        let (overlay, job, _) = names(at);
        let file = place.make_overlay(at, disk.size, qemu).await?;
        let node = ImageNode {
            node_name: overlay.clone(),
            file,
            read_only: false,
            backing: Some(disk.node.clone()),
        };
        qmp.blockdev_add(&NewNode::Qcow2(node)).await.map_err(failed)?;
        actions.push(Action::BlockDirtyBitmapAdd(NewBitmap {
            node: disk.node.clone(),
            name: bitmap_name(point),
            granularity: u32::try_from(CHUNK).ok(),
            persistent: false,
            disabled: false,
        }));
        actions.extend(before(disk, point).map(Action::BlockDirtyBitmapDisable));
        actions.push(Action::BlockdevBackup(Backup {
            job_id: job,
            device: disk.node.clone(),
            target: overlay,
            sync: SyncMode::None,
        }));
    }
    qmp.transaction(&actions).await.map_err(failed)?;
    for (at, disk) in disks.iter().enumerate() {
        let (overlay, _, export) = names(at);
        let bitmaps = before(disk, point).into_iter().collect();
        export_disk(qmp, overlay, export, bitmaps).await?;
    }
    Ok(())
}

fn before(disk: &Disk, point: u32) -> Option<BitmapName> {
    let name = bitmap_name(point.checked_sub(1)?);
    Some(BitmapName { node: disk.node.clone(), name })
}

async fn export_disk(
    qmp: &Qmp,
    node: String,
    export: String,
    bitmaps: Vec<BitmapName>,
) -> Result<(), String> {
    let export = NbdExport { id: export.clone(), node_name: node, name: export, writable: false, bitmaps };
    qmp.block_export_add(&export).await.map_err(|error| chain(&error))
}

/// Ends what [`begin`] made, but for the point's own bitmap.
pub(in super::super) async fn clear(
    qmp: &Qmp,
    place: &Place,
    disks: &[Disk],
    point: u32,
) -> Result<(), String> {
    end_exports(qmp).await?;
    undo::remove_mirrors(qmp).await?;
    for (at, disk) in disks.iter().enumerate() {
        if let Some(bitmap) = before(disk, point) {
            qmp.bitmap_remove(&bitmap).await.map_err(|error| chain(&error))?;
        }
        remove(&place.overlay(at))?;
    }
    Ok(())
}

/// Shows the disks of a stopped guest as they are, with what was written since `point`.
pub(in super::super) async fn show_stopped(qmp: &Qmp, disks: &[Disk], point: u32) -> Result<(), String> {
    let bitmap = |disk: &Disk| BitmapName { node: disk.node.clone(), name: bitmap_name(point) };
    let actions: Vec<Action> =
        disks.iter().map(|disk| Action::BlockDirtyBitmapDisable(bitmap(disk))).collect();
    qmp.transaction(&actions).await.map_err(|error| chain(&error))?;
    for (at, disk) in disks.iter().enumerate() {
        export_disk(qmp, disk.node.clone(), names(at).2, vec![bitmap(disk)]).await?;
    }
    Ok(())
}

/// Bytes that the guest has written since `point`.
pub(in super::super) async fn dirty(qmp: &Qmp, disks: &[Disk], point: u32) -> Result<u64, String> {
    let name = bitmap_name(point);
    let nodes = qmp.query_block_nodes().await.map_err(|error| chain(&error))?;
    let mut sum = 0;
    for disk in disks {
        let node = nodes.iter().find(|node| node.node_name.as_deref() == Some(disk.node.as_str()));
        let bitmap = node.and_then(|node| {
            node.dirty_bitmaps.iter().find(|bitmap| bitmap.name.as_deref() == Some(name.as_str()))
        });
        let bitmap = bitmap.ok_or_else(|| format!("QEMU lost the bitmap {name} of {}", disk.node))?;
        sum += bitmap.count;
    }
    Ok(sum)
}

/// Ends when there is too little room for what the guest overwrites. Endless otherwise.
pub(in super::super) async fn watch_room(place: &Place, disks: &[Disk]) -> String {
    let least = reserve(disks) / 2;
    loop {
        tokio::time::sleep(LOOK).await;
        match place.room() {
            Ok(room) if room < least => {
                return format!(
                    "{} is running out of room for what the guest overwrites during the copy; make room there",
                    place.folder.display()
                );
            }
            Ok(_) => {}
            Err(why) => return why,
        }
    }
}

/// Ends our exports and waits until they are gone.
pub(in super::super) async fn end_exports(qmp: &Qmp) -> Result<(), String> {
    let since = Instant::now();
    loop {
        let exports = qmp.query_block_exports().await.map_err(|error| chain(&error))?;
        let ours: Vec<_> = exports.into_iter().filter(|export| mirror::is_ours(&export.id)).collect();
        if ours.is_empty() {
            return Ok(());
        }
        if since.elapsed() > PATIENCE {
            return Err("QEMU does not end the export of a disk".to_owned());
        }
        for export in ours.iter().filter(|export| !export.shutting_down) {
            if let Err(error) = qmp.block_export_del(&export.id, ExportRemoval::Hard).await {
                tracing::debug!(error = %chain(&error), "an export is ending already");
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Takes away what is left once exports and jobs are gone: bitmaps, the server if it is ours, files.
pub(in super::super) async fn remove_rest(qmp: &Qmp, place: &Place) -> Result<(), String> {
    let failed = |error| chain(&error);
    for node in qmp.query_block_nodes().await.map_err(failed)? {
        let Some(name) = node.node_name else { continue };
        let bitmaps = node.dirty_bitmaps.into_iter().filter_map(|bitmap| bitmap.name);
        for bitmap in bitmaps.filter(|bitmap| mirror::is_ours(bitmap)) {
            qmp.bitmap_remove(&BitmapName { node: name.clone(), name: bitmap }).await.map_err(failed)?;
        }
    }
    // QEMU removes the socket with its server: if it is there, the server is ours.
    if place.socket().exists() {
        qmp.nbd_server_stop().await.map_err(failed)?;
    }
    place.remove_files()
}
