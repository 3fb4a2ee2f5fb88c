//! Ending a guest for good that runs here, or ran: the source takes it back, by its operator's word.
//!
//! The order matters. The fence comes first, so that nobody starts the guest again behind it; the source hears of it only
//! when all is done.

use std::path::Path;

use hypervisor::qemu_img;
use hypervisor::vmd::{VmStatus, VmdClient};

use super::Owner;
use super::run::remove;
use crate::migrate::record::Role;
use crate::migrate::source::chain;

impl Owner {
    /// The VM left this host again, or came back to it: what this migration brought is not all that there is of it.
    pub(super) fn moved_on(&self) -> bool {
        let known = self.context.records.generation(&self.record.vm);
        known.is_ok_and(|known| known.0 > self.record.generation)
    }

    /// Fences the VM, ends its process, and removes its disks. May be repeated.
    pub(super) async fn revoke(&self) -> Result<(), String> {
        let (vm, generation) = (self.record.vm.as_str(), self.record.generation);
        let vmd = VmdClient::connect(&self.context.vmd).await.map_err(|error| chain(&error))?;
        let fence = vmd.fence(vm, generation, Vec::new()).await.map_err(|error| chain(&error))?;
        let known = vmd.list().await.map_err(|error| chain(&error))?;
        let ours = |status: &VmStatus| status.vm == vm && status.generation == generation;
        if known.iter().any(ours) {
            vmd.stop(vm, true).await.map_err(|error| chain(&error))?;
            vmd.forget(vm).await.map_err(|error| chain(&error))?;
        }
        // A move of the VM away from here that got past its own fence may have taken the guest along before it ended.
        let fences = vmd.fences().await.map_err(|error| chain(&error))?;
        if fences.iter().any(|fence| fence.vm == vm && fence.generation > generation) {
            return Err("the VM was moved on from here meanwhile; it cannot be given back".to_owned());
        }
        let Role::Destination { disks, .. } = &self.record.role else { return Ok(()) };
        for disk in disks.iter().map(Path::new) {
            let format =
                if disk.extension().is_some_and(|ending| ending == "qcow2") { "qcow2" } else { "raw" };
            match qemu_img::inspect(disk, format).await {
                Err(error @ hypervisor::Error::InUse { .. }) => {
                    return Err(format!("somebody else runs the VM; end it: {}", chain(&error)));
                }
                Err(error) if disk.exists() => {
                    tracing::debug!(error = %chain(&error), "a disk that is thrown away is damaged");
                }
                Ok(_) | Err(_) => {}
            }
        }
        // The configuration that the fence renamed names disks that are gone.
        let config = fence.renamed.iter().filter(|(from, _)| from.ends_with("config.json"));
        config.map(|(_, to)| to.as_path()).try_for_each(remove)?;
        disks.iter().map(Path::new).try_for_each(remove)
    }
}
