//! Warm and cold: the disks are written through `qemu-nbd` while no QEMU of the VM runs here, since a QEMU that has made
//! its devices lets nobody else write its disks. A warm VM boots when it may; a cold one is put in place.
//!
//! That a VM's QEMU comes up here is tried before anything is copied ([`Owner::rehearse`]).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use hypervisor::nbd::Address;
use hypervisor::qemu_nbd::{Export, Exporter};
use hypervisor::specification::{Accelerator, DiskTarget, HostMapping, Start, StartRequest, VmSpecification};
use hypervisor::vmd::{VmState, VmdClient, VmdError};
use session::cutover::DestinationEvent;

use super::{Owner, Sockets};
use crate::migrate::message::FromDestination;
use crate::migrate::mode::Mode;
use crate::migrate::preflight::Finding;
use crate::migrate::source::chain;

/// How long the channels of disks may take to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// Connections to each image's server.
const CONNECTIONS: usize = 1;

/// What a QEMU of this host does first.
pub(super) fn start_of(mode: Mode) -> Start {
    match mode {
        Mode::Live => Start::Incoming,
        Mode::Warm | Mode::Cold => Start::Paused,
    }
}

/// What matters less to a VM that boots than to one that goes on: the host's own processor, and, for one that stays
/// off, what executes it.
pub(super) fn relax(
    mode: Mode,
    specification: &VmSpecification,
    mapping: &mut HostMapping,
) -> Option<Finding> {
    if mode == Mode::Live {
        return None;
    }
    mapping.host_cpu.clone_from(&specification.cpu.host_model);
    let wanted = specification.machine.accelerator;
    if mode == Mode::Warm || mapping.accelerators.contains(&wanted) {
        return None;
    }
    mapping.accelerators = vec![Accelerator::Tcg, Accelerator::Kvm];
    Some(Finding::warning(
        "accelerator",
        format!("the VM runs on {wanted:?}, which this host does not have now"),
        "load the module kvm before the VM is started",
    ))
}

impl Owner {
    /// Starts the VM's QEMU with its empty disks, paused, and ends it again.
    pub(super) async fn rehearse(&self, vmd: &VmdClient, request: &StartRequest) -> Result<(), String> {
        let mut request = request.clone();
        // Nothing of NovaCron's is there before the VM is: NovaCron might start it.
        request.specification.novacron = None;
        let vm = request.specification.id.clone();
        vmd.start(request).await.map_err(|error| chain(&error))?;
        vmd.stop(&vm, true).await.map_err(|error| chain(&error))?;
        vmd.forget(&vm).await.map_err(|error| chain(&error))
    }

    /// Opens the images for writing.
    pub(super) async fn open_images(
        &mut self,
        specification: &VmSpecification,
        targets: &BTreeMap<String, DiskTarget>,
    ) -> Result<(), String> {
        for disk in specification.carried() {
            let target = targets.get(disk.id).ok_or("a disk has no place here")?;
            let export = Exporter::writable(&target.path, target.format.name())
                .connections(CONNECTIONS)
                .start()
                .await
                .map_err(|error| chain(&error))?;
            self.images.insert(disk.id.to_owned(), export);
        }
        Ok(())
    }

    /// Where a disk's writes go, and where it is read back: socket and name of the export.
    pub(super) fn export_of(&self, disk: &str) -> Result<(PathBuf, String), String> {
        if let Some(image) = self.images.get(disk) {
            let uri = image.uri();
            return match uri.address {
                Address::Unix(socket) => Ok((socket, uri.export)),
                Address::Tcp { .. } => Err("an image is not served on a local socket".to_owned()),
            };
        }
        let sockets = self.sockets.as_ref().ok_or("the VM is not there")?;
        Ok((sockets.nbd.clone(), disk.to_owned()))
    }

    /// Closes the images in order, so that everything written is in the files.
    async fn close_images(&mut self) -> Result<(), String> {
        // The source said that it writes no more before it compared: what wrote into them ends by itself.
        let ended = async { while self.carriers.join_next().await.is_some() {} };
        if tokio::time::timeout(PATIENCE, ended).await.is_err() {
            return Err("the disks' channels do not end".to_owned());
        }
        for (disk, image) in std::mem::take(&mut self.images) {
            let closed: Result<(), hypervisor::Error> = Export::close(image).await;
            closed.map_err(|error| format!("close disk {disk}: {}", chain(&error)))?;
        }
        Ok(())
    }

    /// Makes ready what is about to run or to be put in place.
    pub(super) async fn make_copied_ready(&mut self) -> Result<(), String> {
        self.close_images().await?;
        if self.record.mode == Mode::Cold {
            return Ok(());
        }
        if self.sockets.is_none() {
            let vmd = VmdClient::connect(&self.context.vmd).await.map_err(|error| chain(&error))?;
            let request = self.request.clone().ok_or("the VM was not bound to this host")?;
            let status = vmd.start(request).await.map_err(|error| chain(&error))?;
            self.sockets = Some(Sockets::in_folder(&status.sockets));
        }
        self.monitor().await.map(drop)
    }

    /// Puts a VM in place that stays off.
    pub(super) async fn define_vm(&mut self) -> DestinationEvent {
        let Some(request) = self.request.clone() else {
            // After a restart: it was put in place before, or is not.
            return if self.look_for_guest().await {
                DestinationEvent::Started
            } else {
                DestinationEvent::QemuDied
            };
        };
        let defined = match VmdClient::connect(&self.context.vmd).await {
            Ok(vmd) => vmd.define(request).await,
            Err(error) => Err(error),
        };
        match defined {
            Ok(_) => DestinationEvent::Started,
            Err(error @ VmdError::Refused(_)) => DestinationEvent::StartRefused(chain(&error)),
            // vmd may have done it all the same: it is asked until it answers.
            Err(error) if self.look_for_guest().await => {
                tracing::warn!(error = %chain(&error), "vmd answered late");
                DestinationEvent::Started
            }
            Err(error) => DestinationEvent::StartRefused(chain(&error)),
        }
    }

    /// Whether a VM that stays off is in its place.
    pub(super) async fn prove_defined(&self) -> FromDestination {
        let asked = match VmdClient::connect(&self.context.vmd).await {
            Ok(vmd) => vmd.status(&self.record.vm).await,
            Err(error) => Err(error),
        };
        let (status, complaint) = match asked {
            Ok(status) if status.generation != self.record.generation => {
                ("unknown", "another generation of the VM is here".to_owned())
            }
            Ok(status) => match status.state {
                VmState::Stopped {} => ("stopped", String::new()),
                VmState::Running { .. } | VmState::Exited { .. } => {
                    ("unknown", "the VM was started meanwhile".to_owned())
                }
            },
            Err(error) => ("unknown", chain(&error)),
        };
        FromDestination::Proof { status: status.to_owned(), complaint, pending: false }
    }
}
