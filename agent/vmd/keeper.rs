//! What each request does, and what is checked first.
//!
//! A lock a VM: starting one that is slow does not keep the fence of another waiting. The record of a VM is saved
//! before QEMU is started and before a fence's files are renamed, so whatever a crash leaves is found and finished.

mod defining;
mod readiness;
mod starting;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use hypervisor::command_line::{PID_FILE, RESCUE_SOCKET};
use hypervisor::specification::is_plain_name;
use hypervisor::vmd::{
    Answer, FenceStatus, MAX_FENCED_FILES, Refusal, RefusalKind, Request, VmState, VmStatus,
};
use rustix::process::Signal;
use serde_json::json;

use crate::config::Config;
use crate::process::Process;
use crate::record::{MAX_RECORDS, Record, Run};
use crate::rescue::Rescues;
use crate::{fence, host, launch, network, place};

/// How long QEMU may take to flush its disks when it is told to end.
const END_PATIENCE: Duration = Duration::from_secs(100);

/// A refusal.
pub(crate) fn refusal(kind: RefusalKind, message: impl Into<String>) -> Refusal {
    Refusal { kind, message: message.into() }
}

fn failed(what: &str, error: &io::Error) -> Refusal {
    refusal(RefusalKind::Failed, format!("cannot {what}: {error}"))
}

/// What is asked of QEMU out of band.
enum Band<'a> {
    Pause,
    /// Listen again at this name in the VM's folder.
    Recover(&'a str),
}

type Slot = Arc<Mutex<Record>>;

/// All that vmd knows and does.
#[derive(Debug)]
pub(crate) struct Keeper {
    config: Config,
    records: PathBuf,
    slots: Mutex<BTreeMap<String, Slot>>,
    /// Users of VMs. Apart from the records, so that finding a free one takes no VM's lock.
    uids: Mutex<BTreeMap<String, u32>>,
    /// Held while taps are named.
    taps: Mutex<()>,
    /// Second monitors of those that take a guest in.
    rescues: Rescues,
    /// Locked while this vmd lives: a second one would not know what this one starts.
    _lock: File,
}

pub(crate) fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked left the record as it was saved last, or a step before: both are found out again.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Keeper {
    /// Reads what the last vmd left, finishes its fences, finds its VMs.
    pub(crate) fn open(config: Config) -> Result<Self, Refusal> {
        let records = config.state.join("vms");
        let prepare = || -> io::Result<(File, Vec<Record>)> {
            // Others may pass through the outer one, to the boot folder in it.
            for (folder, mode) in
                [(&config.state, 0o711), (&records, 0o700), (&config.state.join("logs"), 0o700)]
            {
                std::fs::create_dir_all(folder)?;
                std::fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
            }
            let lock = File::create(config.state.join("lock"))?;
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
                .map_err(|error| io::Error::other(format!("another vmd uses it ({error})")))?;
            Ok((lock, Record::load_all(&records)?))
        };
        let what = format!("use the state folder {}", config.state.display());
        let (lock, all) = prepare().map_err(|error| failed(&what, &error))?;
        let uids = all.iter().filter_map(|record| Some((record.vm.clone(), record.uid?))).collect();
        let slots = all.into_iter().map(|record| (record.vm.clone(), Arc::new(Mutex::new(record)))).collect();
        let (slots, uids) = (Mutex::new(slots), Mutex::new(uids));
        let rescues = Rescues::default();
        let keeper = Self { config, records, slots, uids, taps: Mutex::new(()), rescues, _lock: lock };
        for slot in keeper.all() {
            let mut record = hold(&slot);
            if let Some(mark) = &record.fence
                && let Err(error) = fence::apply(&record.vm, mark)
            {
                // vmd itself refuses to start the VM all the same.
                tracing::error!(vm = record.vm, %error, "cannot rename the files of a fenced VM; others may start it");
            }
            keeper.refresh(&mut record)?;
            if let Some(Run { process: Some(process), .. }) = &record.run {
                tracing::info!(vm = record.vm, pid = process.pid, lives = process.lives(), "known");
            }
        }
        Ok(keeper)
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Does what is asked.
    pub(crate) fn answer(&self, request: Request) -> Answer {
        let done = match request {
            Request::Start { request } => self.start(&request).map(Answer::Vm),
            Request::Define { request } => self.define(&request).map(Answer::Vm),
            Request::Status { vm } => self.status(&vm).map(Answer::Vm),
            Request::List {} => self.list().map(Answer::Vms),
            Request::Stop { vm, kill } => self.stop(&vm, kill).map(Answer::Vm),
            Request::Forget { vm } => self.forget(&vm).map(|()| Answer::Done {}),
            Request::Fence { vm, generation, files } => {
                self.fence(&vm, generation, &files).map(Answer::Fence)
            }
            Request::Unfence { vm, generation } => self.unfence(&vm, generation).map(|()| Answer::Done {}),
            Request::MigratePause { vm } => self.out_of_band(&vm, Band::Pause).map(|()| Answer::Done {}),
            Request::MigrateRecover { vm, socket } => {
                self.out_of_band(&vm, Band::Recover(&socket)).map(|()| Answer::Done {})
            }
            Request::Fences {} => Ok(Answer::Fences(self.fences())),
            Request::Host { accelerator } => host::ask(&self.config.qemu, accelerator)
                .map(Answer::Host)
                .map_err(|error| failed("ask QEMU what it can run", &error)),
        };
        done.unwrap_or_else(|refusal| {
            tracing::info!(kind = ?refusal.kind, message = refusal.message, "refused");
            Answer::Error(refusal)
        })
    }

    fn all(&self) -> Vec<Slot> {
        hold(&self.slots).values().cloned().collect()
    }

    fn slot(&self, vm: &str) -> Result<Slot, Refusal> {
        hold(&self.slots).get(vm).cloned().ok_or_else(|| unknown(vm))
    }

    fn slot_or_new(&self, vm: &str) -> Result<Slot, Refusal> {
        if !is_plain_name(vm) {
            let why =
                "a VM's id is at most 64 letters, digits, '-', '_' and '.', not starting with '.' or '-'";
            return Err(refusal(RefusalKind::Invalid, why));
        }
        let mut slots = hold(&self.slots);
        if slots.len() >= MAX_RECORDS && !slots.contains_key(vm) {
            return Err(refusal(
                RefusalKind::Failed,
                format!("there are {MAX_RECORDS} VMs on record already"),
            ));
        }
        let new = || Arc::new(Mutex::new(Record::new(vm)));
        Ok(Arc::clone(slots.entry(vm.to_owned()).or_insert_with(new)))
    }

    fn save(&self, record: &Record) -> Result<(), Refusal> {
        record.save(&self.records).map_err(|error| failed("save what is known of the VM", &error))
    }

    fn vm_folder(&self, vm: &str) -> PathBuf {
        self.config.vms.join(vm)
    }

    /// The user that a VM runs as.
    fn uid_of(&self, record: &Record) -> u32 {
        record.uid.unwrap_or(self.config.own_uid)
    }

    /// Finds a QEMU that was started but not noted, and cleans up after one that has ended.
    fn refresh(&self, record: &mut Record) -> Result<(), Refusal> {
        let Some(run) = &mut record.run else { return Ok(()) };
        if run.defined {
            return Ok(());
        }
        if run.process.is_none() {
            let pid_file = run.folder.join(starting::SOCKETS).join(PID_FILE);
            run.process =
                starting::find(&pid_file).map_err(|error| failed("look for the VM's process", &error))?;
            if run.process.is_some() {
                self.save(record)?;
            }
        }
        let Some(run) = &mut record.run else { return Ok(()) };
        if run.process.as_ref().is_some_and(|process| process.lives()) {
            return Ok(());
        }
        self.rescues.forget(&record.vm);
        let pid_file = run.folder.join(PID_FILE);
        match std::fs::remove_file(&pid_file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %pid_file.display(), "cannot remove the file of a process that has ended");
            }
            Ok(()) | Err(_) => {}
        }
        if run.taps.is_empty() {
            return Ok(());
        }
        for tap in std::mem::take(&mut run.taps) {
            network::unplug(&tap).map_err(|error| failed("remove a tap device", &error))?;
        }
        self.save(record)
    }

    fn status_of(&self, record: &Record) -> Result<VmStatus, Refusal> {
        let run = record.run.as_ref().ok_or_else(|| unknown(&record.vm))?;
        let running = run.process.as_ref().filter(|process| process.lives());
        let state = match running {
            Some(process) => VmState::Running { pid: process.pid },
            None if run.defined => VmState::Stopped {},
            None => VmState::Exited {
                stderr: launch::last_words(&launch::log_path(&self.config.state, &record.vm)),
            },
        };
        Ok(VmStatus {
            vm: record.vm.clone(),
            generation: run.generation,
            state,
            folder: run.folder.clone(),
            sockets: run.folder.join(starting::SOCKETS),
            uid: self.uid_of(record),
            isolated: record.uid.is_some(),
        })
    }

    fn status(&self, vm: &str) -> Result<VmStatus, Refusal> {
        let slot = self.slot(vm)?;
        let mut record = hold(&slot);
        self.refresh(&mut record)?;
        self.status_of(&record)
    }

    fn list(&self) -> Result<Vec<VmStatus>, Refusal> {
        let mut found = Vec::new();
        for slot in self.all() {
            let mut record = hold(&slot);
            if record.run.is_some() {
                self.refresh(&mut record)?;
                found.push(self.status_of(&record)?);
            }
        }
        Ok(found)
    }

    fn stop(&self, vm: &str, kill: bool) -> Result<VmStatus, Refusal> {
        let slot = self.slot(vm)?;
        let mut record = hold(&slot);
        self.refresh(&mut record)?;
        let run = record.run.as_ref().ok_or_else(|| unknown(vm))?;
        if let Some(process) = &run.process {
            let signal = if kill { Signal::KILL } else { Signal::TERM };
            let ended = process.end(signal, END_PATIENCE).map_err(|error| failed("end the VM", &error))?;
            if !ended {
                let why = format!(
                    "QEMU did not end within {} s; look at its storage, or kill it",
                    END_PATIENCE.as_secs()
                );
                return Err(refusal(RefusalKind::Failed, why));
            }
            tracing::info!(vm, kill, "ended");
        }
        self.refresh(&mut record)?;
        self.status_of(&record)
    }

    fn forget(&self, vm: &str) -> Result<(), Refusal> {
        let slot = self.slot(vm)?;
        let mut record = hold(&slot);
        self.refresh(&mut record)?;
        let Some(run) = &record.run else { return Ok(()) };
        if run.process.as_ref().is_some_and(|process| process.lives()) {
            return Err(refusal(RefusalKind::Running, format!("{vm} runs; stop it first")));
        }
        if record.uid.is_some() {
            let owner = self.config.agent_uid.unwrap_or(self.config.own_uid);
            for path in &run.files {
                // A disk that was moved or removed needs no new owner.
                match place::open_below(&self.config.disk_folders, path) {
                    Ok(file) => place::give(&file, owner, self.config.agent_gid)
                        .map_err(|error| failed("give a disk back", &error))?,
                    Err(error) => tracing::info!(vm, %error, "a disk is not given back"),
                }
            }
        }
        let left = [
            std::fs::remove_dir_all(run.folder.join(starting::SOCKETS)),
            std::fs::remove_file(launch::log_path(&self.config.state, vm)),
        ];
        for result in left {
            result
                .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
                .map_err(|error| failed("remove what the VM left", &error))?;
        }
        record.run = None;
        record.uid = None;
        self.save(&record)?;
        hold(&self.uids).remove(vm);
        Ok(())
    }

    fn fence(&self, vm: &str, generation: u64, files: &[PathBuf]) -> Result<FenceStatus, Refusal> {
        if files.len() > MAX_FENCED_FILES {
            return Err(refusal(
                RefusalKind::Invalid,
                format!("a fence names at most {MAX_FENCED_FILES} files"),
            ));
        }
        let slot = self.slot_or_new(vm)?;
        let mut record = hold(&slot);
        if generation < record.floor || generation == 0 {
            return Err(stale(&record, generation));
        }
        if record.fence.as_ref().is_none_or(|mark| mark.generation < generation) {
            for file in files {
                place::open_below(&self.config.disk_folders, file)
                    .map_err(|error| failed("fence a disk", &error))?;
            }
            let since =
                SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
            let mut mark = fence::plan(&self.vm_folder(vm), generation, files, since)
                .map_err(|error| failed("look at the VM's files", &error))?;
            // What an older fence renamed stays renamed, and comes back with this one.
            if let Some(older) = record.fence.take() {
                mark.renames.splice(0..0, older.renames);
                mark.marker = older.marker;
            }
            record.fence = Some(mark);
            record.floor = generation;
            self.save(&record)?;
        }
        let mark = record.fence.as_ref().ok_or_else(|| unknown(vm))?;
        // The mark is durable: from here on vmd refuses, whatever becomes of the files.
        fence::apply(vm, mark)
            .map_err(|error| failed("rename the fenced files; the fence itself holds", &error))?;
        tracing::info!(vm, generation, "fenced");
        Ok(fence_status(&record.vm, mark))
    }

    fn unfence(&self, vm: &str, generation: u64) -> Result<(), Refusal> {
        let slot = self.slot_or_new(vm)?;
        let mut record = hold(&slot);
        let Some(mark) = &record.fence else {
            return if generation < record.floor { Err(stale(&record, generation)) } else { Ok(()) };
        };
        if mark.generation != generation {
            return Err(stale(&record, generation));
        }
        fence::undo(mark).map_err(|error| failed("restore the fenced files; the fence holds", &error))?;
        record.fence = None;
        self.save(&record)?;
        tracing::info!(vm, generation, "fence undone");
        Ok(())
    }

    fn fences(&self) -> Vec<FenceStatus> {
        let marks = self.all().into_iter().filter_map(|slot| {
            let record = hold(&slot);
            record.fence.as_ref().map(|mark| fence_status(&record.vm, mark))
        });
        marks.collect()
    }

    /// Asks the QEMU of a VM for what it does also while its main loop stands still.
    fn out_of_band(&self, vm: &str, what: Band<'_>) -> Result<(), Refusal> {
        let (command, arguments) = match what {
            Band::Pause => ("migrate-pause", json!({})),
            Band::Recover(socket) if is_plain_name(socket) => {
                let slot = self.slot(vm)?;
                let folder = hold(&slot).run.as_ref().map(|run| run.folder.join(starting::SOCKETS));
                let folder = folder.ok_or_else(|| unknown(vm))?;
                ("migrate-recover", json!({ "uri": format!("unix:{}", folder.join(socket).display()) }))
            }
            Band::Recover(_) => {
                return Err(refusal(RefusalKind::Invalid, "a socket is a plain name in the VM's folder"));
            }
        };
        self.rescues.say(vm, command, &arguments).map_err(|error| failed(command, &error))
    }

    /// Cleans up after VMs that have ended, keeps logs short and second monitors connected. Those in use are left for
    /// the next time.
    pub(crate) fn keep_house(&self) {
        for slot in self.all() {
            let Ok(mut record) = slot.try_lock() else { continue };
            if let Err(error) = self.refresh(&mut record) {
                tracing::warn!(vm = record.vm, message = error.message, "cannot clean up");
            }
            if let Err(error) = launch::cap_log(&launch::log_path(&self.config.state, &record.vm)) {
                tracing::warn!(vm = record.vm, %error, "cannot shorten a log");
            }
            let run = record.run.as_ref().filter(|run| run.process.as_ref().is_some_and(Process::lives));
            let monitor = run.map(|run| (record.vm.clone(), run.folder.join(starting::SOCKETS)));
            // A QEMU that does not answer is waited for; nobody else is to wait for that.
            drop(record);
            if let Some((vm, folder)) = monitor {
                self.rescues.keep(&vm, &folder.join(RESCUE_SOCKET));
            }
        }
    }
}

fn unknown(vm: &str) -> Refusal {
    let vm: String = vm.chars().take(64).collect();
    refusal(RefusalKind::Unknown, format!("vmd has not started a VM {vm:?}; `list` shows those that it has"))
}

fn stale(record: &Record, generation: u64) -> Refusal {
    let known = record.fence.as_ref().map_or(record.floor, |mark| mark.generation.max(record.floor));
    let why =
        format!("generation {generation} of {} is not the one that this host knows ({known})", record.vm);
    refusal(RefusalKind::Stale, why)
}

fn fence_status(vm: &str, mark: &crate::record::Fence) -> FenceStatus {
    FenceStatus {
        vm: vm.to_owned(),
        generation: mark.generation,
        since: mark.since,
        renamed: mark.renames.clone(),
    }
}

#[cfg(test)]
mod tests;
