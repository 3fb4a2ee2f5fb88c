//! A VM of NovaCron that does not run: described by the command line that NovaCron would start it with
//! (`backend/core/vm/driver_kvm_enhanced.go`), so that it is the same VM as when it runs.

use super::{BlockFact, Derived, Finding, SpecificationError, VmFacts, derive};
use crate::inventory::NovacronConfig;

/// The board that NovaCron asks for. Versioned, so QMP need not say what it stands for.
const BOARD: &str = "pc-i440fx-2.8,accel=kvm";

/// Describes a stopped VM from NovaCron's `config.json` and what is known of its disk. Nothing of it is running, so
/// what differs between hosts and only matters to a running guest is not an obstacle: see [`Finding`].
///
/// # Errors
/// [`SpecificationError`]: the configuration is none, or the VM exceeds what a specification may hold.
pub fn derive_stopped(
    id: &str,
    novacron: &[u8],
    disk: BlockFact,
    host_cpu: Option<String>,
) -> Result<Derived, SpecificationError> {
    let config = NovacronConfig::parse(novacron).map_err(|error| {
        SpecificationError::value("novacron", &error.to_string(), "config.json is not NovaCron's")
    })?;
    let arguments = arguments(&config, &disk);
    let facts = VmFacts { blocks: vec![disk], host_cpu, ..VmFacts::default() };
    let mut derived = derive(id, &arguments, &facts, Some(novacron))?;
    // It boots at the destination: another processor there is what a reboot may bring.
    derived.findings.retain(|finding| finding.rule != "cpu-host");
    if config.cloud_init_iso.is_some_and(|path| !path.is_empty()) {
        derived.findings.push(Finding::warning(
            "cloud-init",
            "config.json names an image with cloud-init's data, which does not travel",
            "make it again at the destination if the guest has not run through its first boot",
        ));
    }
    let others = config.volume_attachments.unwrap_or_default();
    if let Some(volume) = others.iter().find(|volume| volume.boot != Some(true)) {
        derived.findings.push(Finding::warning(
            "volume-attachment",
            format!(
                "config.json attaches the volume {:?}, which is not on NovaCron's command line",
                volume.volume_id.as_deref().unwrap_or_default().chars().take(64).collect::<String>()
            ),
            "move the volume by itself (`novaferry-agent copy`) if the guest needs it",
        ));
    }
    Ok(derived)
}

/// NovaCron's command line, without what is the host's alone.
fn arguments(config: &NovacronConfig, disk: &BlockFact) -> Vec<String> {
    let mut arguments: Vec<String> =
        ["qemu-system-x86_64", "-machine", BOARD, "-cpu", "host"].map(str::to_owned).into();
    let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
    if let Some(memory) = config.memory_mb.filter(|memory| *memory > 0) {
        add("-m", memory.to_string());
    }
    if let Some(processors) = config.cpu_shares.filter(|processors| *processors > 0) {
        add("-smp", processors.to_string());
    }
    if let Some(name) = &config.name {
        add("-name", format!("guest={}", name.replace(',', ",,")));
    }
    // Commas are doubled, as QEMU's syntax wants it.
    let file = disk.file.to_string_lossy().replace(',', ",,");
    add("-drive", format!("file={file},format={},if=virtio", disk.format));
    add("-netdev", "user,id=net0".to_owned());
    add("-device", "virtio-net-pci,netdev=net0".to_owned());
    add("-vnc", ":0".to_owned());
    add("-device", "virtio-balloon-pci".to_owned());
    add("-object", "rng-random,filename=/dev/urandom,id=rng0".to_owned());
    add("-device", "virtio-rng-pci,rng=rng0".to_owned());
    arguments
}
