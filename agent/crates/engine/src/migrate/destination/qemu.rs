//! Whether this host's QEMU can go on with the VM: asked before anything is made, so that a dry run says it, too.

use std::collections::BTreeSet;

use hypervisor::specification::{Accelerator, HostMapping, VmSpecification};
use hypervisor::vmd::{HostStatus, VmdClient};

use crate::migrate::message::Prepare;
use crate::migrate::mode::Mode;
use crate::migrate::preflight::{Finding, qemu_versions};
use crate::migrate::source::chain;

/// Most features that are named.
const MAX_NAMED: usize = 12;

/// Looks at version and processor; what executes guests and the boards are left in `mapping`, to be looked at with the rest
/// of the VM. vmd says whether there is KVM, for it starts the VM: this agent may not even see the device.
pub(super) async fn look(vmd: &VmdClient, prepare: &Prepare, mapping: &mut HostMapping) -> Vec<Finding> {
    let wanted = prepare.specification.machine.accelerator;
    let told = match vmd.host(wanted).await {
        Ok(status) => {
            mapping.accelerators = vec![Accelerator::Tcg, wanted];
            Ok(status)
        }
        Err(error) if wanted != Accelerator::Tcg => {
            tracing::debug!(error = %chain(&error), "QEMU does not start with KVM");
            vmd.host(Accelerator::Tcg).await
        }
        Err(error) => Err(error),
    };
    let status = match told {
        Ok(status) => status,
        Err(error) => {
            let fix = "install QEMU at the destination, or tell novaferry-vmd there where it is";
            return vec![Finding::blocking("qemu", chain(&error), fix)];
        }
    };
    mapping.machines = Some(status.machines.clone());
    let mut findings = Vec::new();
    // Of a VM that is off nobody knows by which QEMU it ran.
    if prepare.mode != Mode::Cold {
        findings.extend(qemu_versions(prepare.qemu, status.version));
        findings.extend(processor(&prepare.specification, &prepare.cpu_lacks, &status, prepare.mode));
    }
    findings
}

/// Whether the guest would have the processor that it has: a guest that runs cannot do without a feature that it was
/// shown. One that boots can, but its programs may not.
fn processor(
    specification: &VmSpecification,
    lacks_there: &[String],
    here: &HostStatus,
    mode: Mode,
) -> Option<Finding> {
    // That the hosts' own processors are the same is looked at elsewhere.
    if specification.cpu.host_model.is_some() {
        return None;
    }
    differing(&specification.cpu.model, lacks_there, here, mode)
}

fn differing(model: &str, lacks_there: &[String], here: &HostStatus, mode: Mode) -> Option<Finding> {
    let Some(known) = here.processors.iter().find(|processor| processor.name == model) else {
        return Some(Finding::blocking(
            "cpu-model",
            format!("the destination's QEMU does not know the processor model {model}"),
            "install the source's version of QEMU at the destination, or a newer one",
        ));
    };
    let there: BTreeSet<&str> = lacks_there.iter().map(String::as_str).collect();
    let lost: Vec<&str> =
        known.lacks.iter().map(String::as_str).filter(|feature| !there.contains(feature)).collect();
    if lost.is_empty() {
        return None;
    }
    let more = if lost.len() > MAX_NAMED { " and others" } else { "" };
    let named = lost.iter().take(MAX_NAMED).copied().collect::<Vec<_>>().join(", ");
    let evidence =
        format!("the destination's processor lacks {named}{more} of the model {model}, which the source has");
    let fix = "choose a host with these features, or start the VM with a model that both hosts have in full";
    let finding = if mode == Mode::Live { Finding::blocking } else { Finding::warning };
    Some(finding("cpu-model", evidence, fix))
}

#[cfg(test)]
mod tests {
    use hypervisor::vmd::Processor;

    use super::*;

    #[test]
    fn a_processor_that_lacks_what_the_guest_has_blocks() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let status = HostStatus {
            processors: vec![Processor { name: "EPYC".to_owned(), lacks: words("avx2 sha-ni") }],
            ..HostStatus::default()
        };
        let found = |lacks: &str, mode| differing("EPYC", &words(lacks), &status, mode);
        let lost = found("sha-ni", Mode::Live).unwrap();
        assert!(lost.blocking && lost.rule == "cpu-model" && !lost.fix.is_empty(), "{lost:?}");
        assert!(lost.evidence.contains("lacks avx2 of the model EPYC"), "{lost:?}");
        assert!(!found("", Mode::Warm).unwrap().blocking, "a guest that boots is told anew");
        assert_eq!(found("sha-ni avx2 more", Mode::Live), None, "it never had them");
        let unknown = differing("Later", &[], &status, Mode::Warm).unwrap();
        assert!(unknown.blocking && unknown.evidence.contains("does not know"), "{unknown:?}");
    }
}
