//! The disks: QEMU mirrors each into an NBD server of ours, and at the end both ends compare their roots.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hypervisor::nbd::server::{BlockSizes, Export, Handler, Zeroing, serve};
use hypervisor::qmp::words::{CopyMode, JobStatus, OnError, SyncMode};
use hypervisor::qmp::{EventKind, JobProgress, Mirror, NbdExport, NbdNode, NewNode, Qmp, SocketAddress};
use reduce::Root;
use tokio::net::UnixListener;
use volume::{ByteOffset, ByteRange, Kind, Op, VolumeError, ZeroMode};

use super::copy::FIRST_CHANNEL;
use super::{DiskRun, Owner, Signal, StepResult, chain};
use crate::migrate::disk::MirrorTarget;
use crate::migrate::message::{DiskRoot, FromSource};
use crate::migrate::mode::Mode;
use crate::migrate::readback::root_of_export;

/// What our jobs and nodes in QEMU are called, so that a later process finds and removes them.
const PREFIX: &str = "novaferry-";
/// Unit of the mirror: whole chunks, so that every write names its leaves.
const GRANULARITY: u32 = 64 << 10;
/// How long a ready mirror may take to hand over what is left while the guest is paused.
const DRAIN: Duration = Duration::from_secs(30);

/// Whether a job or node of QEMU is one of ours.
pub(super) fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX)
}

// By number, since QEMU's own names of nodes (`#block123`) are no ids, and names have at most 31 characters.
fn job_name(at: usize) -> String {
    format!("{PREFIX}mirror-{at}")
}

fn target_name(at: usize) -> String {
    format!("{PREFIX}target-{at}")
}

/// The target of a mirror as an NBD server's handler.
#[derive(Debug)]
struct Writes(Arc<MirrorTarget>);

fn outcome(errno: u32, op: Op) -> Result<(), VolumeError> {
    const EPERM: u32 = 1;
    const ENOSPC: u32 = 28;
    let kind = match errno {
        0 => return Ok(()),
        ENOSPC => Kind::NoSpace,
        EPERM => Kind::Permission,
        _ => Kind::Io,
    };
    Err(VolumeError::new(kind, op, "the destination refused"))
}

impl Handler for Writes {
    async fn read(&self, _range: ByteRange) -> Result<Bytes, VolumeError> {
        // A mirror of the whole disk never reads its target.
        Err(VolumeError::new(Kind::Unsupported, Op::Read, "the target of a mirror is only written"))
    }

    async fn write(&self, at: ByteOffset, data: Bytes, fua: bool) -> Result<(), VolumeError> {
        outcome(self.0.write(at.0, data, fua).await, Op::Write)
    }

    async fn zero(&self, range: ByteRange, how: Zeroing) -> Result<(), VolumeError> {
        let errno = self.0.zero(range.start, range.len(), how.fua, how.mode == ZeroMode::Deallocate).await;
        outcome(errno, Op::Write)
    }

    async fn flush(&self) -> Result<(), VolumeError> {
        outcome(self.0.flush().await, Op::Flush)
    }
}

impl Owner {
    /// Where sockets for QEMU are made: in the VM's folder, which its user may enter, or in ours.
    pub(super) fn socket(&self, name: &str) -> PathBuf {
        let short: String = self.job.migration.to_string().chars().take(8).collect();
        let folder = self.job.folder.as_deref().unwrap_or(&self.context.runtime);
        folder.join(format!("novaferry-{short}-{name}.sock"))
    }

    pub(super) async fn start_mirror(&mut self) -> StepResult {
        let qmp = self.monitor().await?;
        let derived = self.derived.clone().ok_or("the VM was not described")?;
        for (at, (channel, disk)) in (FIRST_CHANNEL..).zip(&derived.disks).enumerate() {
            let target = self.open_target(channel, disk.size)?;
            let socket = self.socket(&disk.id);
            let listener = listen(&socket)?;
            let export = Export {
                sizes: BlockSizes { minimum: 512, preferred: GRANULARITY, maximum: 1 << 20 },
                ..Export::new(disk.id.clone(), disk.size)
            };
            self.carry("the mirror's NBD server", nbd_server(listener, export, Arc::clone(&target)));
            add_target(&qmp, target_name(at), &disk.id, &socket).await?;
            let mirror = Mirror {
                job_id: job_name(at),
                device: disk.node.clone(),
                target: target_name(at),
                sync: SyncMode::Full,
                copy_mode: Some(CopyMode::Background),
                on_source_error: Some(OnError::Report),
                on_target_error: Some(OnError::Report),
                speed: None,
                granularity: Some(GRANULARITY),
                filter_node_name: None,
            };
            qmp.blockdev_mirror(&mirror).await.map_err(|error| chain(&error))?;
            self.disks.push(DiskRun {
                id: disk.id.clone(),
                node: disk.node.clone(),
                size: disk.size,
                target,
            });
        }
        // With disks, their `JobReady` events say when.
        if self.disks.is_empty() {
            return Ok(self.in_step());
        }
        Ok(None)
    }

    /// Runs a byte path; its end is a signal.
    pub(super) fn carry(
        &mut self,
        what: &'static str,
        work: impl Future<Output = Result<(), String>> + Send + 'static,
    ) {
        let signals = self.signals.clone();
        self.carriers.spawn(async move {
            let result = work.await;
            // Fails when the owner is gone.
            drop(signals.send(Signal::Carrier(what, result)).await);
        });
    }

    /// Makes Merkle nodes again as they become stale, so that few are left for the pause.
    pub(super) fn keep_leaves_fresh(&mut self, target: &Arc<MirrorTarget>) {
        const PAUSE: Duration = Duration::from_millis(100);
        let (leaves, cpu) = (Arc::clone(target.leaves()), self.context.cpu.clone());
        self.carriers.spawn(async move {
            loop {
                let table = Arc::clone(&leaves);
                match cpu.run(move |_| table.refresh()).await {
                    Ok(true) => {}
                    Ok(false) => tokio::time::sleep(PAUSE).await,
                    Err(error) => {
                        // The root, which is computed later, meets the same error and reports it.
                        tracing::debug!(error = %error.chain(), "the leaf table is not kept fresh");
                        return;
                    }
                }
            }
        });
    }

    /// Ends the mirrors, makes what they wrote durable, and sends the roots.
    pub(super) async fn compare_roots(&mut self) -> StepResult {
        self.wait_no_more();
        if self.record.mode != Mode::Live {
            if self.job.options.readback {
                self.read_back_copied().await?;
            }
            self.check_unchanged(Path::to_owned)?;
            return self.send_roots(None).await;
        }
        let qmp = self.monitor().await?;
        let mut events = qmp.subscribe();
        for at in 0..self.disks.len() {
            qmp.block_job_cancel(&job_name(at), false).await.map_err(|error| chain(&error))?;
        }
        let mut left: Vec<String> = (0..self.disks.len()).map(job_name).collect();
        let drained = async {
            // Its node is in use until the job is gone altogether: `null`.
            while !left.is_empty() {
                match events.next().await.map_err(|error| chain(&error))?.kind {
                    EventKind::JobCompleted(JobProgress { device, error: Some(why), .. })
                        if left.contains(&device) =>
                    {
                        return Err(format!("the mirror {device}: {why}"));
                    }
                    EventKind::JobCancelled(job) if left.contains(&job.device) => {
                        return Err(format!("the mirror {} did not end well", job.device));
                    }
                    EventKind::JobStatusChange { id, status: JobStatus::Null } => {
                        left.retain(|name| *name != id)
                    }
                    _ => {}
                }
            }
            Ok(())
        };
        tokio::time::timeout(DRAIN, drained)
            .await
            .map_err(|_late| "the mirror did not hand over what was left in time".to_owned())??;
        for at in 0..self.disks.len() {
            // QEMU flushes a node that it lets go of; what it left out we do.
            qmp.blockdev_del(&target_name(at)).await.map_err(|error| chain(&error))?;
        }
        self.send_roots(Some(&qmp)).await
    }

    /// What a mirror's I/O error was, as far as the destination said so.
    pub(super) fn why_mirror_failed(&self, job: &str) -> String {
        /// `errno(3)`, as NBD has it on the wire.
        const ENOSPC: u32 = 28;
        let refused = self.disks.iter().find_map(|disk| Some((&disk.id, disk.target.refusal()?)));
        match refused {
            Some((disk, ENOSPC)) => format!(
                "the destination has no room left for disk {disk}: make some in its pool, or choose another with --pool"
            ),
            Some((disk, errno)) => {
                format!("the destination could not write disk {disk} (errno {errno}); see its log")
            }
            None => {
                format!("the mirror {job} met an I/O error; see the log of QEMU and of the host's storage")
            }
        }
    }

    /// Makes durable what was copied, and sends the roots. With `qmp`, a read-back asks QEMU for the disks.
    pub(super) async fn send_roots(&mut self, qmp: Option<&Qmp>) -> StepResult {
        let mut roots = Vec::with_capacity(self.disks.len());
        for disk in &self.disks {
            if disk.target.flush().await != 0 {
                return Err(format!("disk {} could not be flushed at the destination", disk.id));
            }
            disk.target.end();
            let leaves = Arc::clone(disk.target.leaves());
            let root = self.context.cpu.run(move |_| leaves.root()).await.map_err(|error| error.chain())?;
            if let Some(qmp) = qmp.filter(|_| self.job.options.readback) {
                let read = self.read_back(qmp, disk).await?;
                if read != root {
                    return Err(format!("disk {} here is not what was mirrored", disk.id));
                }
            }
            roots.push(DiskRoot { disk: disk.id.clone(), root: root.to_string() });
        }
        // Durable with the fence, which comes next.
        self.record.roots.clone_from(&roots);
        self.tell(&FromSource::Compare { roots, readback: self.job.options.readback }).await?;
        Ok(None)
    }
}

impl Owner {
    /// Reads a disk of the paused guest through an export of its QEMU's own, which goes again.
    async fn read_back(&self, qmp: &Qmp, disk: &DiskRun) -> Result<Root, String> {
        let failed = |error| chain(&error);
        let socket = self.socket("readback");
        qmp.nbd_server_start(&SocketAddress::Unix(socket.clone()), 0).await.map_err(failed)?;
        let id = format!("{PREFIX}readback-{}", disk.id);
        let export = NbdExport {
            id: id.clone(),
            node_name: disk.node.clone(),
            name: disk.id.clone(),
            writable: false,
            bitmaps: Vec::new(),
        };
        let read = match qmp.block_export_add(&export).await.map_err(failed) {
            Ok(()) => root_of_export(&socket, &disk.id, disk.target.leaves().key(), &self.context.cpu).await,
            Err(why) => Err(why),
        };
        // Stopping the server removes its exports, hard.
        qmp.nbd_server_stop().await.map_err(failed)?;
        read
    }
}

fn listen(socket: &Path) -> Result<UnixListener, String> {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(format!("cannot remove {}: {error}", socket.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(socket)
        .map_err(|error| format!("cannot listen on {}: {error}", socket.display()))?;
    // QEMU runs as another user; the folder decides who gets here.
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o666))
        .map_err(|error| format!("cannot open {} to QEMU: {error}", socket.display()))?;
    Ok(listener)
}

/// A socket's file that goes with its listener.
pub(super) struct SocketFile(pub(super) PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!(%error, path = %self.0.display(), "a socket is gone already");
        }
    }
}

pub(super) fn listen_at(socket: &Path) -> Result<(UnixListener, SocketFile), String> {
    Ok((listen(socket)?, SocketFile(socket.to_owned())))
}

async fn nbd_server(listener: UnixListener, export: Export, target: Arc<MirrorTarget>) -> Result<(), String> {
    let path = listener.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned));
    let _file = path.map(SocketFile);
    // One client: QEMU does not reconnect, because a lost write must fail the mirror.
    let (stream, _) = listener.accept().await.map_err(|error| error.to_string())?;
    serve(stream, &export, Arc::new(Writes(target)), std::future::pending())
        .await
        .map(drop)
        .map_err(|error| chain(&error))
}

async fn add_target(qmp: &Qmp, node: String, export: &str, socket: &Path) -> Result<(), String> {
    let target = NewNode::Nbd(NbdNode {
        node_name: node,
        server: SocketAddress::Unix(socket.to_owned()),
        export: export.to_owned(),
        reconnect_delay: None,
        open_timeout: Some(10),
    });
    qmp.blockdev_add(&target).await.map_err(|error| chain(&error))
}
