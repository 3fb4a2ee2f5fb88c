//! Putting a VM in place that is not started: NovaCron starts it, whenever it is told to.

use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use hypervisor::specification::{DiskFormat, StartRequest};
use hypervisor::vmd::{Refusal, RefusalKind, VmStatus};

use super::starting::{permitted, root_disk, write_config};
use super::{Keeper, failed, hold, refusal};
use crate::place;
use crate::record::{Run, sync_folder_of};

/// The disk that NovaCron starts a VM with, in the VM's folder.
const NOVACRON_DISK: &str = "disk.qcow2";

impl Keeper {
    pub(super) fn define(&self, request: &StartRequest) -> Result<VmStatus, Refusal> {
        request.check().map_err(|error| refusal(RefusalKind::Invalid, error.to_string()))?;
        let vm = request.specification.id.as_str();
        let slot = self.slot_or_new(vm)?;
        let mut record = hold(&slot);
        self.refresh(&mut record)?;
        permitted(&record, request.generation)?;
        // The disks keep their owner: whoever starts the VM is not known.
        self.permitted_files(request)?;
        let folder = self.vm_folder(vm);
        let run = Run {
            generation: request.generation,
            folder: folder.clone(),
            process: None,
            defined: true,
            taps: Vec::new(),
            files: Vec::new(),
        };
        self.take_in(&mut record, run)?;
        let gid = self.config.is_root().then_some(self.config.agent_gid);
        place::vm_folder(&folder, gid)
            .and_then(|()| link_disk(request, &folder))
            .and_then(|()| write_config(request, &folder))
            .map_err(|error| failed("prepare the VM's folder", &error))?;
        tracing::info!(vm, generation = request.generation, "put in place");
        self.status_of(&record)
    }
}

/// Gives a qcow2 root disk the name by which NovaCron finds it. A file of that name is somebody's disk, and stays.
fn link_disk(request: &StartRequest, folder: &Path) -> io::Result<()> {
    let Some(target) = root_disk(request).filter(|target| target.format == DiskFormat::Qcow2) else {
        return Ok(());
    };
    let name = folder.join(NOVACRON_DISK);
    if request.specification.novacron.is_none() || target.path == name {
        return Ok(());
    }
    match std::fs::symlink_metadata(&name) {
        Ok(metadata) if metadata.is_symlink() => std::fs::remove_file(&name)?,
        Ok(_) => {
            let why = format!("{} is there already; move it away", name.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    symlink(&target.path, &name)?;
    sync_folder_of(&name)
}
