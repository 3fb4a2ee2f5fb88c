//! Disks: nodes, jobs, exports, dirty bitmaps (`qapi/{block-core,block-export,transaction}.json`).
//!
//! A trap of QEMU: `blockdev-add` of an NBD node connects from its main loop. If a server accepts the connection and
//! then says nothing, the guest's devices and every in-band command hang as long (seen with 10.0.2): add such a node
//! only when its server serves.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::migration::SocketAddress;
use super::words::{CopyMode, ExportRemoval, IoStatus, JobStatus, JobType, OnError, SyncMode};
use super::{MonitorError, Qmp};

/// One of `query-block`: a device of the guest.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct BlockDevice {
    /// Its old-style name; empty for devices made with `-blockdev`.
    pub device: String,
    /// Its object or id.
    pub qdev: Option<String>,
    /// Whether the guest can eject it.
    pub removable: bool,
    /// What is in it.
    pub inserted: Option<BlockNode>,
}

/// One of `query-blockstats`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockStats {
    /// The node in the device.
    pub node_name: Option<String>,
    /// What was counted.
    pub stats: BlockCounts,
}

/// What the guest did (`BlockDeviceStats`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
pub struct BlockCounts {
    /// Bytes that it wrote.
    pub wr_bytes: u64,
    /// In so many requests.
    pub wr_operations: u64,
}

/// One of `query-named-block-nodes`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct BlockNode {
    /// Its name; begins with `#` where QEMU made it up.
    #[serde(rename = "node-name")]
    pub node_name: Option<String>,
    /// Its driver: a format, a protocol or a filter.
    #[serde(rename = "drv")]
    pub driver: String,
    /// The file, as QEMU writes it; a `json:` text where there is no simple one.
    pub file: String,
    /// Whether it is read-only.
    #[serde(rename = "ro")]
    pub read_only: bool,
    /// Images below it.
    #[serde(default)]
    pub backing_file_depth: u64,
    /// The image.
    pub image: Image,
    /// Its dirty bitmaps.
    #[serde(rename = "dirty-bitmaps", default)]
    pub dirty_bitmaps: Vec<DirtyBitmap>,
}

/// An image and what is below it (`ImageInfo`).
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Image {
    /// The file, as QEMU writes it.
    pub filename: String,
    /// Its format, or the driver's name.
    pub format: String,
    /// Bytes that the guest sees.
    pub virtual_size: u64,
    /// Bytes on the disk, where that is known.
    pub actual_size: Option<u64>,
    /// Bytes of a cluster.
    pub cluster_size: Option<u64>,
    /// The image below, with its folder.
    pub full_backing_filename: Option<String>,
    /// The image below.
    pub backing_image: Option<Box<Self>>,
}

/// A dirty bitmap (`BlockDirtyInfo`).
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct DirtyBitmap {
    /// Its name; QEMU's own have none.
    pub name: Option<String>,
    /// Bytes that are dirty.
    pub count: u64,
    /// Bytes of one bit.
    pub granularity: u32,
    /// Whether writes are recorded.
    pub recording: bool,
    /// Whether a job or an export uses it.
    pub busy: bool,
    /// Whether it is stored in the image.
    pub persistent: bool,
    /// Whether it was not stored properly: good for being removed only.
    #[serde(default)]
    pub inconsistent: bool,
}

/// A node made of an image file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageNode {
    /// The node's name.
    pub node_name: String,
    /// The image.
    pub file: PathBuf,
    /// Whether it is opened read-only.
    pub read_only: bool,
    /// The node below, instead of what the image says. For qcow2 only.
    pub backing: Option<String>,
}

/// A node that is another's NBD export.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NbdNode {
    /// The node's name.
    pub node_name: String,
    /// The server.
    pub server: SocketAddress,
    /// The export's name.
    pub export: String,
    /// How long requests wait for a lost server to come back, in seconds. `None` or 0: they fail at once, as the
    /// design wants it (a silent reconnect must not hide a lost write).
    pub reconnect_delay: Option<u32>,
    /// How long to try to connect, in seconds; `None` tries once. QEMU 7.0 and later.
    pub open_timeout: Option<u32>,
}

/// A node to be added.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NewNode {
    /// A raw image file.
    Raw(ImageNode),
    /// A qcow2 image file.
    Qcow2(ImageNode),
    /// An NBD export.
    Nbd(NbdNode),
}

impl NewNode {
    /// QEMU's `BlockdevOptions`.
    fn options(&self) -> Result<Value, String> {
        let image = |driver, ImageNode { node_name, file, read_only, backing }: &ImageNode| {
            let file = file.to_str().ok_or("a path that is not UTF-8")?;
            let mut options = json!({
                "driver": driver, "node-name": node_name, "read-only": read_only,
                "file": { "driver": "file", "filename": file },
            });
            if let Some(backing) = backing {
                options["backing"] = backing.as_str().into();
            }
            Ok(options)
        };
        match self {
            Self::Raw(ImageNode { backing: Some(_), .. }) => {
                Err("a raw image with another below it".to_owned())
            }
            Self::Raw(node) => image("raw", node),
            Self::Qcow2(node) => image("qcow2", node),
            Self::Nbd(NbdNode { node_name, server, export, reconnect_delay, open_timeout }) => {
                // Without it QEMU asks for zeros that take room, and what was sparse is no more.
                let mut options = json!({
                    "driver": "nbd", "node-name": node_name, "server": server.flat()?, "export": export,
                    "discard": "unmap",
                });
                if let Some(seconds) = reconnect_delay {
                    options["reconnect-delay"] = (*seconds).into();
                }
                if let Some(seconds) = open_timeout {
                    options["open-timeout"] = (*seconds).into();
                }
                Ok(options)
            }
        }
    }
}

/// `blockdev-mirror`: copies a device to a node while the guest writes, and then keeps both the same.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Mirror {
    /// The job's id.
    pub job_id: String,
    /// The device or node that is copied.
    pub device: String,
    /// The node that it is copied to.
    pub target: String,
    /// What is copied.
    pub sync: SyncMode,
    /// When the target is written; QEMU's choice is in the background.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copy_mode: Option<CopyMode>,
    /// If the source cannot be read; QEMU's choice is to end the job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_source_error: Option<OnError>,
    /// If the target cannot be written; QEMU's choice is to end the job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_target_error: Option<OnError>,
    /// Bytes a second at most; 0 or `None` for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed: Option<u64>,
    /// Bytes that are tracked and copied together; a power of two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub granularity: Option<u32>,
    /// Name for the node that QEMU puts in between.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter_node_name: Option<String>,
}

/// One of `query-block-jobs`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockJob {
    /// The job's id (QEMU's name for it comes from older days).
    pub device: String,
    /// What it does.
    #[serde(rename = "type")]
    pub kind: JobType,
    /// Bytes to be done in all.
    pub len: u64,
    /// Bytes done.
    pub offset: u64,
    /// Whether it is paused.
    pub paused: bool,
    /// Whether it has caught up.
    pub ready: bool,
    /// Its speed limit in bytes a second; 0 for none.
    pub speed: u64,
    /// Whether it met an I/O error.
    pub io_status: IoStatus,
    /// Its state.
    pub status: JobStatus,
    /// Why it failed.
    pub error: Option<String>,
    /// Whether every write of the guest goes to both at once by now; for mirrors, QEMU 8.2 and later.
    pub actively_synced: Option<bool>,
}

/// A bitmap's place.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct BitmapName {
    /// The node that it belongs to.
    pub node: String,
    /// Its name.
    pub name: String,
}

/// `block-dirty-bitmap-add`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct NewBitmap {
    /// The node that it belongs to.
    pub node: String,
    /// Its name.
    pub name: String,
    /// Bytes of one bit, a power of two from 512; QEMU's choice is the cluster size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub granularity: Option<u32>,
    /// Whether it is stored in the image (qcow2 only) when that is closed.
    pub persistent: bool,
    /// Whether it starts without recording.
    pub disabled: bool,
}

/// `blockdev-backup`: copies a device's old content to a node before the guest overwrites it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Backup {
    /// The job's id.
    pub job_id: String,
    /// The device or node that is copied.
    pub device: String,
    /// The node that it is copied to.
    pub target: String,
    /// What is copied; [`SyncMode::None`]: only what is about to be overwritten ("fleecing").
    pub sync: SyncMode,
}

/// One part of a [`Qmp::transaction`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case")]
pub enum Action {
    /// Adds a bitmap.
    BlockDirtyBitmapAdd(NewBitmap),
    /// Removes a bitmap.
    BlockDirtyBitmapRemove(BitmapName),
    /// Makes a bitmap clean.
    BlockDirtyBitmapClear(BitmapName),
    /// Starts to record.
    BlockDirtyBitmapEnable(BitmapName),
    /// Stops to record.
    BlockDirtyBitmapDisable(BitmapName),
    /// Starts a backup.
    BlockdevBackup(Backup),
}

/// An NBD export to be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NbdExport {
    /// The export's id.
    pub id: String,
    /// The node that is exported.
    pub node_name: String,
    /// The name that clients ask for.
    pub name: String,
    /// Whether clients may write.
    pub writable: bool,
    /// Bitmaps that clients can read, as context `qemu:dirty-bitmap:NAME`. They must not record.
    pub bitmaps: Vec<BitmapName>,
}

/// One of `query-block-exports`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Export {
    /// The export's id.
    pub id: String,
    /// `nbd`, or another way.
    #[serde(rename = "type")]
    pub kind: String,
    /// The node that is exported.
    pub node_name: String,
    /// Whether it is about to go.
    pub shutting_down: bool,
}

impl Qmp {
    /// `query-block`: the guest's block devices.
    ///
    /// # Errors
    /// As [`Qmp::execute`], here and below.
    pub async fn query_block(&self) -> Result<Vec<BlockDevice>, MonitorError> {
        self.execute("query-block", &()).await
    }

    /// `query-blockstats`: what the guest has done with its block devices since they are there.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_block_stats(&self) -> Result<Vec<BlockStats>, MonitorError> {
        self.execute("query-blockstats", &()).await
    }

    /// `query-named-block-nodes`, flat: without the images below each (nodes of their own tell of those).
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_block_nodes(&self) -> Result<Vec<BlockNode>, MonitorError> {
        self.execute("query-named-block-nodes", &json!({ "flat": true })).await
    }

    /// `blockdev-add`. See the module's text about NBD nodes whose server does not answer.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn blockdev_add(&self, node: &NewNode) -> Result<(), MonitorError> {
        let refuse = |reason| MonitorError::Request { operation: "blockdev-add".to_owned(), reason };
        self.command("blockdev-add", &node.options().map_err(refuse)?).await
    }

    /// `blockdev-del`.
    ///
    /// # Errors
    /// As [`Qmp::execute`]; refused while the node is in use.
    pub async fn blockdev_del(&self, node_name: &str) -> Result<(), MonitorError> {
        self.command("blockdev-del", &json!({ "node-name": node_name })).await
    }

    /// `blockdev-set-active` (QEMU 10) of all nodes: whether this QEMU uses the images. A guest must not run without.
    ///
    /// # Errors
    /// As [`Qmp::execute`]; refused while something writes.
    pub async fn blockdev_set_active(&self, active: bool) -> Result<(), MonitorError> {
        self.command("blockdev-set-active", &json!({ "active": active })).await
    }

    /// `blockdev-mirror`: starts it. [`EventKind::JobReady`](super::EventKind::JobReady) says that it has caught up.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn blockdev_mirror(&self, mirror: &Mirror) -> Result<(), MonitorError> {
        self.command("blockdev-mirror", mirror).await
    }

    /// `block-job-cancel`. A mirror that is ready and is cancelled without `force` finishes well: what the guest
    /// wrote before is on the target, and [`EventKind::JobCompleted`](super::EventKind::JobCompleted) comes.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn block_job_cancel(&self, job: &str, force: bool) -> Result<(), MonitorError> {
        self.command("block-job-cancel", &json!({ "device": job, "force": force })).await
    }

    /// `query-block-jobs`.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_block_jobs(&self) -> Result<Vec<BlockJob>, MonitorError> {
        self.execute("query-block-jobs", &()).await
    }

    /// `nbd-server-start`. At most `max_connections` clients; 0 for any number.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn nbd_server_start(
        &self,
        address: &SocketAddress,
        max_connections: u32,
    ) -> Result<(), MonitorError> {
        let refuse = |reason| MonitorError::Request { operation: "nbd-server-start".to_owned(), reason };
        let address = address.nested().map_err(refuse)?;
        self.command("nbd-server-start", &json!({ "addr": address, "max-connections": max_connections }))
            .await
    }

    /// `nbd-server-stop`: ends its exports, too.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn nbd_server_stop(&self) -> Result<(), MonitorError> {
        self.command("nbd-server-stop", &()).await
    }

    /// `block-export-add` of an NBD export.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn block_export_add(&self, export: &NbdExport) -> Result<(), MonitorError> {
        let NbdExport { id, node_name, name, writable, bitmaps } = export;
        let arguments = json!({
            "type": "nbd", "id": id, "node-name": node_name, "name": name, "writable": writable,
            "bitmaps": bitmaps,
        });
        self.command("block-export-add", &arguments).await
    }

    /// `block-export-del`: starts to remove it; [`EventKind::ExportDeleted`](super::EventKind::ExportDeleted) says
    /// that it is gone. Refused with [`ExportRemoval::Safe`] while it has clients.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn block_export_del(&self, id: &str, mode: ExportRemoval) -> Result<(), MonitorError> {
        self.command("block-export-del", &json!({ "id": id, "mode": mode.as_str() })).await
    }

    /// `query-block-exports`.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_block_exports(&self) -> Result<Vec<Export>, MonitorError> {
        self.execute("query-block-exports", &()).await
    }

    /// `block-dirty-bitmap-add`.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn bitmap_add(&self, bitmap: &NewBitmap) -> Result<(), MonitorError> {
        self.command("block-dirty-bitmap-add", bitmap).await
    }

    /// `block-dirty-bitmap-remove`.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn bitmap_remove(&self, bitmap: &BitmapName) -> Result<(), MonitorError> {
        self.command("block-dirty-bitmap-remove", bitmap).await
    }

    /// `block-dirty-bitmap-clear`.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn bitmap_clear(&self, bitmap: &BitmapName) -> Result<(), MonitorError> {
        self.command("block-dirty-bitmap-clear", bitmap).await
    }

    /// `transaction`: all of these at one instant of the guest's writes, or none of them.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn transaction(&self, actions: &[Action]) -> Result<(), MonitorError> {
        self.command("transaction", &json!({ "actions": actions })).await
    }
}
