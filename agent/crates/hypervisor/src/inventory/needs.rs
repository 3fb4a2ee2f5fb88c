//! What a virtual machine needs of its host: for whoever chooses a host for it, or lists what there is.
//!
//! One that runs needs what its QEMU was started with ([`Started`]); one that is off, what NovaCron's `config.json` says
//! that it will be started with. Nothing is guessed: what is not known is zero or empty. Whose it is and how it is
//! labelled are the definition's in both cases, and what the agent's configuration adds to it.

use std::collections::BTreeMap;
use std::path::Path;

use super::disk::Disk;
use super::novacron::NovacronConfig;
use super::started::{Image, Started};
use super::{Entry, Vm};

/// Most labels that a VM is told with.
pub const MAX_LABELS: usize = 64;
/// Longest name of a label, value of one, and tenant, bytes.
pub const MAX_LABEL: usize = 256;

/// The disk that NovaCron starts a VM with, in the VM's folder.
const NOVACRON_DISK: &str = "disk.qcow2";
/// Its format: NovaCron names no other.
const NOVACRON_FORMAT: &str = "qcow2";
/// Most processors of the board that NovaCron asks for (QEMU, `pc_i440fx_machine_options`). More is no count: NovaCron's
/// default of this field, 1024, is a share of time.
const NOVACRON_PROCESSORS: u64 = 255;

/// What a virtual machine needs of its host. What is not known is zero or empty.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Needs {
    /// RAM, bytes.
    pub memory_bytes: u64,
    /// Virtual processors.
    pub processors: u32,
    /// The processor's model as QEMU was told: of a VM that runs.
    pub cpu: String,
    /// The machine's type as QEMU was told, perhaps an alias: of a VM that runs.
    pub machine: String,
    /// It runs on the processor itself. Not where QEMU had a choice of accelerators.
    pub kvm: bool,
    /// All its disks; none when one of them is not known. [`Sizes`](super::Sizes) tells how large they are.
    pub disks: Option<Vec<Disk>>,
    /// Whose it is.
    pub tenant: String,
    /// Its labels: at most [`MAX_LABELS`] of at most [`MAX_LABEL`] bytes.
    pub labels: BTreeMap<String, String>,
}

impl Needs {
    /// Of a VM that runs. `disk` looks at an image of its QEMU's.
    pub(super) fn of_started(started: &Started, disk: impl Fn(&Image) -> Option<Disk>) -> Self {
        let Started { memory_bytes, processors, cpu, machine, kvm, disks } = started.clone();
        let disks = disks.and_then(|images| images.iter().map(disk).collect());
        Self { memory_bytes, processors, cpu, machine, kvm, disks, ..Self::default() }
    }

    /// Of a VM that is off: what NovaCron would start it with.
    pub(super) fn of_definition(folder: &Path, config: &NovacronConfig) -> Self {
        let positive =
            |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok()).unwrap_or(0);
        let in_folder = folder.join(NOVACRON_DISK);
        let named = config.rootfs.as_deref().map(Path::new).filter(|path| path.is_absolute());
        let path = if in_folder.exists() { in_folder.as_path() } else { named.unwrap_or(&in_folder) };
        let processors =
            Some(positive(config.cpu_shares)).filter(|count| *count <= NOVACRON_PROCESSORS).unwrap_or(0);
        let planned = positive(config.disk_size_gb).saturating_mul(1 << 30);
        Self {
            memory_bytes: positive(config.memory_mb).saturating_mul(1 << 20),
            processors: u32::try_from(processors).unwrap_or(0),
            disks: Some(vec![Disk::look(path, NOVACRON_FORMAT).planned(planned)]),
            ..Self::default()
        }
    }
}

/// Takes in whose a VM is and its labels: from NovaCron's definition, and over it what the agent's configuration says.
pub(super) fn label(vm: &mut Vm, entry: Option<&Entry>) {
    let novacron = vm.config.as_ref();
    let tenant = entry.map(|entry| &entry.tenant).filter(|tenant| !tenant.is_empty());
    let tenant = tenant.or_else(|| novacron?.tenant_id.as_ref()).cloned().unwrap_or_default();
    let mut labels = novacron.and_then(|config| config.tags.clone()).unwrap_or_default();
    labels.extend(entry.into_iter().flat_map(|entry| entry.labels.clone()));
    let before = labels.len();
    labels.retain(|name, value| !name.is_empty() && name.len() <= MAX_LABEL && value.len() <= MAX_LABEL);
    // A part of a label would be another one.
    let labels: BTreeMap<_, _> = labels.into_iter().take(MAX_LABELS).collect();
    if labels.len() < before {
        vm.findings.push(format!(
            "{} of its {before} labels are passed over: {MAX_LABELS} of at most {MAX_LABEL} bytes are read",
            before - labels.len()
        ));
    }
    if tenant.len() > MAX_LABEL {
        vm.findings.push(format!("its tenant's name is longer than {MAX_LABEL} bytes and passed over"));
    } else {
        vm.needs.tenant = tenant;
    }
    vm.needs.labels = labels;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::{Access, State};

    fn vm(config: &str) -> Vm {
        let config = NovacronConfig::parse(config.as_bytes()).unwrap();
        Vm {
            id: "a".to_owned(),
            name: "a".to_owned(),
            folder: Some("/nowhere".into()),
            process: None,
            state: State::Stopped,
            access: Access::Stopped,
            needs: Needs::of_definition(Path::new("/nowhere"), &config),
            config: Some(config),
            findings: Vec::new(),
        }
    }

    #[test]
    fn a_definition_tells_what_it_will_take() {
        let needs = vm(r#"{"memory_mb": 512, "cpu_shares": 2, "disk_size_gb": 8}"#).needs;
        assert_eq!((needs.memory_bytes, needs.processors), (512 << 20, 2));
        assert_eq!(
            needs.disks.unwrap(),
            [Disk::look(Path::new("/nowhere/disk.qcow2"), "qcow2").planned(8 << 30)]
        );
        assert_eq!((needs.cpu.as_str(), needs.machine.as_str(), needs.kvm), ("", "", false));
        let needs = vm(r#"{"memory_mb": -1, "cpu_shares": 1024, "rootfs": "/d/a.qcow2"}"#).needs;
        assert_eq!((needs.memory_bytes, needs.processors), (0, 0));
        assert_eq!(needs.disks.unwrap(), [Disk::look(Path::new("/d/a.qcow2"), "qcow2")]);
    }

    #[test]
    fn the_configuration_labels_over_novacron() {
        let mut vm = vm(r#"{"tenant_id": "acme", "tags": {"tier": "db", "vm_type": "kvm"}}"#);
        label(&mut vm, None);
        assert_eq!(vm.needs.tenant, "acme");
        assert_eq!(vm.needs.labels["tier"], "db");
        let entry = Entry {
            name: "a".to_owned(),
            qmp: "/q".into(),
            folder: None,
            tenant: "other".to_owned(),
            labels: [("tier", "web"), ("x", "y")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
        };
        label(&mut vm, Some(&entry));
        assert_eq!((vm.needs.tenant.as_str(), vm.needs.labels.len()), ("other", 3));
        assert_eq!(vm.needs.labels["tier"], "web");
        assert_eq!(vm.findings, Vec::<String>::new());
    }

    #[test]
    fn labels_are_bounded_and_never_cut() {
        let long = "x".repeat(MAX_LABEL + 1);
        let mut vm = vm(r#"{"tags": {"good": "y", "": "z"}}"#);
        let config = vm.config.as_mut().unwrap();
        config.tenant_id = Some(long.clone());
        let tags = config.tags.as_mut().unwrap();
        tags.insert("a".to_owned(), long.clone());
        tags.insert(long, String::new());
        label(&mut vm, None);
        assert_eq!(vm.needs.labels, [("good".to_owned(), "y".to_owned())].into());
        assert_eq!((vm.needs.tenant.as_str(), vm.findings.len()), ("", 2));
        assert!(vm.findings[0].starts_with("3 of its 4 labels"), "{:?}", vm.findings);
        let tags = vm.config.as_mut().unwrap().tags.as_mut().unwrap();
        tags.extend((0..100).map(|nth| (format!("l{nth}"), String::new())));
        label(&mut vm, None);
        assert_eq!(vm.needs.labels.len(), MAX_LABELS);
    }
}
