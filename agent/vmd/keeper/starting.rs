//! Starting a VM.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use hypervisor::command_line::{self, PID_FILE, QMP_SOCKET, RESCUE_SOCKET};
use hypervisor::specification::{Accelerator, DiskTarget, HostNetwork, Start, StartRequest};
use hypervisor::vmd::{Refusal, RefusalKind, VmStatus};

use super::readiness::{ended, wait};
use super::{Keeper, failed, hold, refusal, stale};
use crate::launch::{self, Program};
use crate::process::Process;
use crate::record::{Record, Run, replace};
use crate::{network, place};

/// The folder of sockets in a VM's folder: the only one that the VM's user may write.
pub(super) const SOCKETS: &str = "run";

impl Keeper {
    pub(super) fn start(&self, request: &StartRequest) -> Result<VmStatus, Refusal> {
        request.check().map_err(|error| refusal(RefusalKind::Invalid, error.to_string()))?;
        let vm = request.specification.id.as_str();
        let slot = self.slot_or_new(vm)?;
        let mut record = hold(&slot);
        self.refresh(&mut record)?;
        permitted(&record, request.generation)?;
        let mut files = self.permitted_files(request)?;
        let uid = self.user(&mut record)?;
        let folder = self.vm_folder(vm);
        let run = Run {
            generation: request.generation,
            folder: folder.clone(),
            process: None,
            defined: false,
            taps: Vec::new(),
            files: files.iter().map(|(path, _)| path.clone()).collect(),
        };
        self.take_in(&mut record, run)?;
        self.prepare(request, &folder, uid, &mut files)
            .map_err(|error| failed("prepare the VM's folder", &error))?;
        let taps = self.plug(&mut record, request)?;
        let scope = launch::has_systemd().then(|| launch::unit(vm, request.generation));
        let sockets = folder.join(SOCKETS);
        let arguments =
            command_line::arguments(request, &command_line::Place { folder: sockets.clone(), taps })
                .map_err(|error| refusal(RefusalKind::Invalid, error.to_string()))?;
        let log = launch::log_path(&self.config.state, vm);
        let fresh = std::fs::write(&log, b"");
        fresh.map_err(|error| failed("make the VM's log", &error))?;
        let program = Program {
            vm,
            qemu: &self.config.qemu,
            arguments,
            uid,
            groups: device_groups(request).map_err(|error| failed("look at /dev/kvm", &error))?,
            folder: &sockets,
            log: &log,
        };
        let pid = launch::start(&program, scope.as_deref()).map_err(|error| failed("start QEMU", &error))?;
        let process = Process::of(pid).map_err(|error| failed("look at QEMU's process", &error))?;
        let Some(process) = process else { return Err(ended(&log)) };
        if let Some(run) = &mut record.run {
            run.process = Some(process.clone());
        }
        self.save(&record)?;
        replace(&folder.join(PID_FILE), format!("{pid}\n").as_bytes(), 0o644)
            .map_err(|error| failed("write qemu.pid", &error))?;
        wait(&sockets.join(QMP_SOCKET), &process, &log)?;
        self.rescues.keep(vm, &sockets.join(RESCUE_SOCKET));
        tracing::info!(vm, pid, generation = request.generation, uid = self.uid_of(&record), "started");
        self.status_of(&record)
    }

    /// Notes a VM of a newer generation, durably: it has come back to this host, so an old fence is over and its floor
    /// is passed.
    pub(super) fn take_in(&self, record: &mut Record, run: Run) -> Result<(), Refusal> {
        let over = record.fence.take();
        record.floor = run.generation;
        record.run = Some(run);
        self.save(record)?;
        if let Some(mark) = over
            && let Err(error) = std::fs::remove_file(&mark.marker)
        {
            tracing::info!(vm = record.vm, %error, "the note of the old fence stays");
        }
        Ok(())
    }

    /// Disks (to be given to the VM's user) and boot files, if they are where the configuration allows.
    pub(super) fn permitted_files(
        &self,
        request: &StartRequest,
    ) -> Result<Vec<(PathBuf, std::os::fd::OwnedFd)>, Refusal> {
        let bindings = &request.bindings;
        let denied = |error: io::Error| refusal(RefusalKind::Invalid, error.to_string());
        for path in [&bindings.kernel, &bindings.initrd].into_iter().flatten() {
            place::open_below(std::slice::from_ref(&self.config.boot), path).map_err(denied)?;
        }
        if let Some(path) = &bindings.firmware {
            place::open_below(std::slice::from_ref(&self.config.firmware), path).map_err(denied)?;
        }
        let mut files = Vec::new();
        // Those that the guest only reads, too: QEMU writes them before the guest comes.
        for target in bindings.disks.values() {
            let file = place::open_below(&self.config.disk_folders, &target.path).map_err(denied)?;
            files.push((target.path.clone(), file));
        }
        Ok(files)
    }

    /// The VM's own user: what it had, or a free one. None without root.
    fn user(&self, record: &mut Record) -> Result<Option<u32>, Refusal> {
        if !self.config.is_root() || record.uid.is_some() {
            return Ok(record.uid);
        }
        let mut uids = hold(&self.uids);
        let (first, last) = self.config.uids;
        let free = (first..=last).find(|uid| !uids.values().any(|taken| taken == uid));
        let uid = free.ok_or_else(|| {
            refusal(
                RefusalKind::Failed,
                format!("all users {first}-{last} are taken; forget VMs, or widen --uids"),
            )
        })?;
        uids.insert(record.vm.clone(), uid);
        record.uid = Some(uid);
        Ok(Some(uid))
    }

    fn prepare(
        &self,
        request: &StartRequest,
        folder: &Path,
        uid: Option<u32>,
        files: &mut Vec<(PathBuf, std::os::fd::OwnedFd)>,
    ) -> io::Result<()> {
        let gid = self.config.agent_gid;
        place::vm_folder(folder, uid.map(|_| gid))?;
        place::socket_folder(&folder.join(SOCKETS), uid.map(|uid| (uid, gid)))?;
        for (_, file) in files.drain(..) {
            if let Some(uid) = uid {
                place::give(&file, uid, gid)?;
            }
        }
        write_config(request, folder)
    }

    fn plug(&self, record: &mut Record, request: &StartRequest) -> Result<BTreeMap<String, String>, Refusal> {
        let mut taps = BTreeMap::new();
        for (id, binding) in &request.bindings.networks {
            let HostNetwork::Bridge { name: bridge } = binding else { continue };
            let uid = self.uid_of(record);
            let naming = hold(&self.taps);
            let tap =
                network::plug(bridge, uid).map_err(|error| failed("plug the VM into its bridge", &error))?;
            drop(naming);
            taps.insert(id.clone(), tap.clone());
            if let Some(run) = &mut record.run {
                run.taps.push(tap);
            }
            self.save(record)?;
        }
        Ok(taps)
    }
}

/// The VM's root disk here: the first that it may write.
pub(super) fn root_disk(request: &StartRequest) -> Option<&DiskTarget> {
    let disk = request.specification.disks().find(|disk| !disk.read_only)?;
    request.bindings.disks.get(&disk.id)
}

/// NovaCron's `config.json`, if the VM is NovaCron's.
pub(super) fn write_config(request: &StartRequest, folder: &Path) -> io::Result<()> {
    let vm = &request.specification;
    let Some(novacron) = &vm.novacron else { return Ok(()) };
    let content = novacron.file(&vm.id, root_disk(request).map(|target| target.path.as_path()));
    replace(&folder.join("config.json"), &content, 0o640)
}

/// Whether this generation of the VM may start here.
pub(super) fn permitted(record: &Record, generation: u64) -> Result<(), Refusal> {
    if let Some(mark) = record.fence.as_ref().filter(|mark| mark.generation >= generation) {
        let why = format!(
            "{} left this host with generation {}: it must not run here with generation {generation}",
            record.vm, mark.generation
        );
        return Err(refusal(RefusalKind::Fenced, why));
    }
    if generation < record.floor || generation == 0 {
        return Err(stale(record, generation));
    }
    let runs = record.run.as_ref().and_then(|run| run.process.as_ref()).is_some_and(Process::lives);
    if runs {
        return Err(refusal(RefusalKind::Running, format!("{} runs already", record.vm)));
    }
    Ok(())
}

/// The process that was started with this pid file, when vmd died before it noted its id.
pub(super) fn find(pid_file: &Path) -> io::Result<Option<Process>> {
    let wanted = pid_file.as_os_str().as_bytes();
    for entry in std::fs::read_dir("/proc")? {
        let name: OsString = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // Gone since it was listed, or a kernel thread.
        let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        let arguments: Vec<_> = line.split(|byte| *byte == 0).collect();
        // The launcher and setpriv carry the same arguments after another name.
        let is_qemu = arguments.first().is_some_and(|first| !first.ends_with(b"setpriv"))
            && arguments.get(1).is_some_and(|first| *first == b"-name");
        if is_qemu && arguments.windows(2).any(|pair| pair == [b"-pidfile".as_slice(), wanted]) {
            return Process::of(pid);
        }
    }
    Ok(None)
}

/// Groups through which the VM's user reaches devices: `/dev/kvm`, and for a guest that comes `/dev/userfaultfd`, without
/// which there is no post-copy (QEMU, `migration/postcopy-ram.c`). A device that is root's alone is not opened to it.
fn device_groups(request: &StartRequest) -> io::Result<Vec<u32>> {
    const GROUP_READS_AND_WRITES: u32 = 0o060;
    let mut groups = Vec::new();
    if request.specification.machine.accelerator == Accelerator::Kvm {
        groups.push(std::fs::metadata("/dev/kvm")?.gid());
    }
    if request.start == Start::Incoming
        && let Ok(device) = std::fs::metadata("/dev/userfaultfd")
        && device.mode() & GROUP_READS_AND_WRITES == GROUP_READS_AND_WRITES
        && device.gid() != 0
    {
        groups.push(device.gid());
    }
    Ok(groups)
}
