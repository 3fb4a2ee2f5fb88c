//! Which virtual machines this host has, and how each can be moved.
//!
//! Three places say so: the agent's configuration ([`Entry`]), NovaCron's folder of VMs, and the processes that run.
//! The process is believed first: NovaCron's own state is wrong (it marks a VM as stopped while its QEMU runs as a
//! daemon), and a `qemu.pid` outlives its QEMU. So a VM runs if a QEMU belongs to its folder, by that QEMU's own command
//! line; the process id is recorded with its start time, so that a later look cannot take another for it.
//!
//! QEMU is not connected to here: its monitor serves one client at a time, and another one may be at work.
//!
//! libvirt's domains are shown, and not driven: libvirt would not know what happened to them.
//!
//! What each VM needs of its host ([`Needs`]) is read from the same places: from the command line of the QEMU that runs,
//! or, for one that is off, from its `config.json`.

mod command_line;
mod disk;
mod needs;
mod novacron;
mod process;
mod started;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

pub use command_line::{CommandLine, Endpoint, Language, Monitor};
pub use disk::{Disk, Sizes};
pub use needs::{MAX_LABEL, MAX_LABELS, Needs};
pub use novacron::{MAX_CONFIG, MigrationPolicy, NetworkAttachment, NovacronConfig, VolumeAttachment};
pub use process::{Activity, Process};

use crate::error::Error;
use process::Qemu;
use started::Started;

/// Most entries of NovaCron's folder. A host runs some hundred VMs; beyond this the folder is not what it should be.
pub const MAX_ENTRIES: usize = 16_384;

/// The file in a VM's folder in which QEMU leaves its process id.
const PID_FILE: &str = "qemu.pid";

/// Longest content of that file: a number and a newline.
const MAX_PID_FILE: u64 = 32;

/// A virtual machine that the agent's configuration names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its name, which is its id, too.
    pub name: String,
    /// Its QMP socket.
    pub qmp: PathBuf,
    /// Its folder, if it has one.
    pub folder: Option<PathBuf>,
    /// Whose it is, if NovaCron does not say, or says otherwise; or empty.
    pub tenant: String,
    /// Labels beside those that NovaCron gives it, or instead of them.
    pub labels: BTreeMap<String, String>,
}

/// Where to look.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Places {
    /// What the configuration names.
    pub entries: Vec<Entry>,
    /// NovaCron's folder of VMs (`/var/lib/novacron/vms`).
    pub novacron: Option<PathBuf>,
}

/// Whether a virtual machine runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    /// Its QEMU runs. (Whether the guest's processors do, QMP says.)
    Running,
    /// Its QEMU was stopped by a signal, as NovaCron's "pause" does. QMP does not answer until it is continued.
    Suspended,
    /// No QEMU of it runs.
    Stopped,
}

/// How a virtual machine can be moved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Access {
    /// Live: QEMU listens for QMP.
    Live {
        /// The socket.
        qmp: PathBuf,
    },
    /// It runs, but cannot be driven: only its disks can be moved.
    ColdOrWarmOnly {
        /// Why.
        reason: String,
        /// The option that QEMU needs at its next start.
        fix: String,
    },
    /// Not by this version.
    NotYet {
        /// Why.
        reason: String,
    },
    /// It does not run: its disks can be moved cold.
    Stopped,
}

/// A virtual machine of this host.
#[derive(Clone, PartialEq, Debug)]
pub struct Vm {
    /// Its id: that of its folder, or its name.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its folder.
    pub folder: Option<PathBuf>,
    /// Its QEMU.
    pub process: Option<Process>,
    /// Whether it runs.
    pub state: State,
    /// How it can be moved.
    pub access: Access,
    /// NovaCron's configuration of it.
    pub config: Option<NovacronConfig>,
    /// What it needs of its host.
    pub needs: Needs,
    /// What is odd about it, for people.
    pub findings: Vec<String>,
}

impl Vm {
    /// The id of its QEMU's process. Use [`Vm::process`] to find out later whether it is still the same.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.map(|process| process.pid)
    }
}

/// This host's virtual machines, looked at again and again.
#[derive(Debug)]
pub struct Inventory {
    places: Places,
    /// What does not change while a process lives.
    started: HashMap<Process, Started>,
}

/// Looks for virtual machines once; see [`Inventory::find`].
///
/// # Errors
/// As there.
pub fn find(places: &Places) -> Result<Vec<Vm>, Error> {
    Inventory::new(places.clone()).find()
}

impl Inventory {
    /// One that has not looked yet.
    #[must_use]
    pub fn new(places: Places) -> Self {
        Self { places, started: HashMap::new() }
    }

    /// Looks for virtual machines: the configuration's first, then NovaCron's by id, then libvirt's by process id. Reads
    /// files and `/proc`: not for a thread that must not wait.
    ///
    /// # Errors
    /// [`Error::System`] if `/proc` or NovaCron's folder cannot be read; a missing folder has no VMs. [`Error::Invalid`]
    /// if it has more than [`MAX_ENTRIES`]. What is wrong with one VM is in its findings.
    pub fn find(&mut self) -> Result<Vec<Vm>, Error> {
        let running = Qemu::all().map_err(system("look at the processes of this host"))?;
        let mut vms = Vec::new();
        for entry in &self.places.entries {
            vms.push(configured(entry, &running));
        }
        if let Some(root) = &self.places.novacron {
            for (id, folder) in folders(root)? {
                let vm = in_folder(id, folder, &running);
                // The configuration may name a VM that is NovaCron's: one of them is enough.
                let known = |other: &Vm| {
                    other.folder == vm.folder || (vm.process.is_some() && other.process == vm.process)
                };
                if !vms.iter().any(known) {
                    vms.push(vm);
                }
            }
        }
        for qemu in &running {
            if qemu.line.is_libvirt() && !vms.iter().any(|vm| vm.process == Some(qemu.process)) {
                vms.push(libvirt(qemu));
            }
        }
        self.weigh(&mut vms, &running);
        Ok(vms)
    }

    /// Finds out what each needs. Those of the configuration come first, in its order.
    fn weigh(&mut self, vms: &mut [Vm], running: &[Qemu]) {
        let running: HashMap<Process, &Qemu> = running.iter().map(|qemu| (qemu.process, qemu)).collect();
        self.started.retain(|process, _| running.contains_key(process));
        for (at, vm) in vms.iter_mut().enumerate() {
            if let Some(qemu) = vm.process.and_then(|process| running.get(&process)) {
                let started = self.started.entry(qemu.process);
                let started = started.or_insert_with(|| Started::read(&qemu.line));
                vm.needs = Needs::of_started(started, |image| {
                    let path = qemu.absolute(&image.path).ok()?;
                    Some(Disk::look(&path, &image.format))
                });
            } else if let (Some(folder), Some(config)) = (&vm.folder, &vm.config) {
                vm.needs = Needs::of_definition(folder, config);
            }
            needs::label(vm, self.places.entries.get(at));
        }
    }
}

fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System { what: what.into(), source }
}

/// The folders of NovaCron's VMs with their ids, in order. Links are not followed: a VM's folder is a folder.
fn folders(root: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let failed = || system(format!("list {}", root.display()));
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed()(error)),
    };
    let mut folders = Vec::new();
    for (count, entry) in entries.enumerate() {
        if count >= MAX_ENTRIES {
            return Err(Error::Invalid {
                what: format!(
                    "{} has more than {MAX_ENTRIES} entries; is it NovaCron's folder of VMs?",
                    root.display()
                ),
            });
        }
        let entry = entry.map_err(failed())?;
        if entry.file_type().map_err(failed())?.is_dir() {
            folders.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
        }
    }
    folders.sort();
    Ok(folders)
}

fn state(qemu: Option<&Qemu>) -> State {
    match qemu.map(|qemu| qemu.activity) {
        Some(Activity::Alive) => State::Running,
        Some(Activity::Suspended) => State::Suspended,
        Some(Activity::Dead) | None => State::Stopped,
    }
}

/// A VM of the configuration.
fn configured(entry: &Entry, running: &[Qemu]) -> Vm {
    let mut findings = Vec::new();
    let listens_there = |qemu: &&Qemu| {
        qemu.line.monitors.iter().any(|monitor| {
            matches!(monitor, Monitor { language: Language::Qmp, endpoint: Endpoint::Listens(path) }
                if qemu.absolute(path).is_ok_and(|path| same_file(&path, &entry.qmp)))
        })
    };
    let in_folder = || {
        let folder = entry.folder.as_deref()?;
        running.iter().find(|qemu| qemu.belongs_to(folder, PID_FILE))
    };
    let qemu = running.iter().find(listens_there).or_else(in_folder);
    let listening = is_socket(&entry.qmp)
        && process::listening(&entry.qmp).unwrap_or_else(|error| {
            findings.push(format!("cannot see who listens at {}: {error}", entry.qmp.display()));
            false
        });
    let access = match qemu {
        // Another owner's process with `hidepid`, or another container's.
        None if listening => Access::Live { qmp: entry.qmp.clone() },
        None => Access::Stopped,
        Some(qemu) if qemu.line.is_libvirt() => libvirt_access(),
        Some(qemu) if listens_there(&qemu) && is_socket(&entry.qmp) => {
            Access::Live { qmp: entry.qmp.clone() }
        }
        Some(_) => Access::ColdOrWarmOnly {
            reason: format!("QEMU does not listen at {}, which the configuration names", entry.qmp.display()),
            fix: fix(&entry.qmp),
        },
    };
    if qemu.is_none() && listening {
        findings.push(format!("this agent cannot see the process that listens at {}", entry.qmp.display()));
    }
    Vm {
        id: entry.name.clone(),
        name: entry.name.clone(),
        config: entry.folder.as_deref().and_then(|folder| config(folder, &mut findings)),
        folder: entry.folder.clone(),
        process: qemu.map(|qemu| qemu.process),
        state: if qemu.is_none() && listening { State::Running } else { state(qemu) },
        access,
        needs: Needs::default(),
        findings,
    }
}

/// A VM of NovaCron.
fn in_folder(id: String, folder: PathBuf, running: &[Qemu]) -> Vm {
    let mut findings = Vec::new();
    let config = config(&folder, &mut findings);
    let recorded = recorded(&folder, &mut findings);
    let belongs = |qemu: &&Qemu| qemu.belongs_to(&folder, PID_FILE);
    let by_file =
        recorded.and_then(|pid| running.iter().find(|qemu| qemu.process.pid == pid).filter(belongs));
    // Without its file, or with a stale one, a QEMU may still run.
    let qemu = by_file.or_else(|| running.iter().find(belongs));
    match (recorded, by_file, qemu) {
        (Some(pid), None, None) => {
            findings
                .push(format!("{PID_FILE} names process {pid}, which is not this virtual machine's QEMU"));
        }
        (_, None, Some(qemu)) => {
            findings.push(format!("{PID_FILE} does not name process {}, which runs it", qemu.process.pid));
        }
        _ => {}
    }
    let name = config.as_ref().and_then(|config| config.name.clone());
    let named = || qemu.and_then(|qemu| qemu.line.name.clone());
    Vm {
        name: name.filter(|name| !name.is_empty()).or_else(named).unwrap_or_else(|| id.clone()),
        process: qemu.map(|qemu| qemu.process),
        state: state(qemu),
        access: qemu.map_or(Access::Stopped, |qemu| access(qemu, &folder)),
        id,
        folder: Some(folder),
        config,
        needs: Needs::default(),
        findings,
    }
}

/// A domain of libvirt.
fn libvirt(qemu: &Qemu) -> Vm {
    let name = qemu.line.name.clone().unwrap_or_else(|| qemu.process.pid.to_string());
    Vm {
        id: name.clone(),
        name,
        folder: None,
        process: Some(qemu.process),
        state: state(Some(qemu)),
        access: libvirt_access(),
        config: None,
        needs: Needs::default(),
        findings: Vec::new(),
    }
}

fn libvirt_access() -> Access {
    let reason = "libvirt runs it, and would not know that it moved; move it with virsh";
    Access::NotYet { reason: reason.to_owned() }
}

/// How a QEMU that runs can be reached.
fn access(qemu: &Qemu, folder: &Path) -> Access {
    if qemu.line.is_libvirt() {
        return libvirt_access();
    }
    let qmp = || qemu.line.monitors.iter().filter(|monitor| monitor.language == Language::Qmp);
    let sockets = qmp().filter_map(|monitor| match &monitor.endpoint {
        Endpoint::Listens(path) => qemu.absolute(path).ok(),
        Endpoint::Other(_) => None,
    });
    if let Some(qmp) = sockets.into_iter().find(|path| is_socket(path)) {
        return Access::Live { qmp };
    }
    let reason = match qmp().next().map(|monitor| &monitor.endpoint) {
        Some(Endpoint::Listens(path)) => format!("its QMP socket {} is not there", path.display()),
        Some(Endpoint::Other(text)) => {
            format!("its QMP monitor is no unix socket that QEMU listens at ({text})")
        }
        None if qemu.line.monitors.is_empty() => "it has no monitor".to_owned(),
        None => "it has a monitor for people (HMP) only".to_owned(),
    };
    Access::ColdOrWarmOnly { reason, fix: fix(&folder.join("qmp.sock")) }
}

/// The option that makes a QEMU listen for QMP. A comma in a path is doubled.
fn fix(socket: &Path) -> String {
    format!("-qmp unix:{},server=on,wait=off", socket.display().to_string().replace(',', ",,"))
}

fn is_socket(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.file_type().is_socket())
}

fn same_file(one: &Path, other: &Path) -> bool {
    one == other || matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

fn config(folder: &Path, findings: &mut Vec<String>) -> Option<NovacronConfig> {
    match NovacronConfig::read(&folder.join("config.json")) {
        Ok(config) => config,
        Err(error) => {
            findings.push(with_source(&error));
            None
        }
    }
}

/// The process id that `qemu.pid` names. QEMU writes the number and a newline (`qemu_write_pidfile`).
fn recorded(folder: &Path, findings: &mut Vec<String>) -> Option<u32> {
    let path = folder.join(PID_FILE);
    match process::read_capped(&path, MAX_PID_FILE) {
        Ok(bytes) => {
            let pid = std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse().ok());
            if pid.is_none() {
                findings.push(format!("{} holds no process id", path.display()));
            }
            pid
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            findings.push(format!("cannot read {}: {error}", path.display()));
            None
        }
    }
}

fn with_source(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
