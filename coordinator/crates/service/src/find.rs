//! Which VM is meant.

use model::Name;
use model::host::{Host, Vm};

use crate::api::problem::Problem;

/// Hosts that an answer about an ambiguous VM names.
const NAMED: usize = 4;

/// The VM of this id or name, with its host.
///
/// # Errors
/// When there is none, or several are called so.
pub(crate) fn vm<'a>(
    hosts: &[&'a Host],
    wanted: &str,
    from: Option<&Name>,
) -> Result<(&'a Name, &'a Vm), Problem> {
    let mut found = Vec::new();
    for host in hosts.iter().filter(|host| from.is_none_or(|from| host.name == *from)) {
        let vms = host.observed.iter().flat_map(|observed| &observed.vms);
        found.extend(vms.filter(|vm| vm.id == wanted || vm.name == wanted).map(|vm| (&host.name, vm)));
    }
    // What left a host stays there as a stopped VM's folder at most: one that runs is meant.
    if found.iter().any(|(_, vm)| vm.state == "running") {
        found.retain(|(_, vm)| vm.state == "running");
    }
    match found[..] {
        [] => Err(Problem::not_found(format!(
            "no host has a VM {:?}; `novaferry vm list` shows those that there are",
            wanted.chars().take(128).collect::<String>()
        ))),
        [(host, vm)] => Ok((host, vm)),
        ref several => {
            let names: Vec<_> =
                several.iter().take(NAMED).map(|(host, vm)| format!("{} on {host}", vm.id)).collect();
            Err(Problem::conflict(format!(
                "several VMs are called so: {}; name one by its id, and its host as `from`",
                names.join(", ")
            )))
        }
    }
}
