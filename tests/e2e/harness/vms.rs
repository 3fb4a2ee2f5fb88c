//! A host that runs VMs: an agent, vmd, and NovaCron's folder.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use guest::{Layout, Linux, Serial};
use link::{Link, Side};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::host::{Daemon, Host, POOL};
use super::process::{Finished, Process};
use super::relay::Relay;
use super::{Harness, agent_command, own_address, until};

const VMD: &str = env!("CARGO_BIN_EXE_novaferry-vmd");

/// A host with its folder of VMs. QEMUs that vmd started end with it.
pub(crate) struct VmHost<'a> {
    harness: &'a Harness,
    host: Host<'a>,
    folder: PathBuf,
    agent: RefCell<Option<Daemon>>,
    vmd: RefCell<Option<Process>>,
}

impl<'a> VmHost<'a> {
    /// A host that takes VMs of host-a and host-b, with the guest's kernel in its boot folder.
    pub(crate) fn new(harness: &'a Harness, name: &str, linux: Option<&Linux>) -> Self {
        Self::with(harness, name, linux, "", &["host-a", "host-b"])
    }

    /// A host of a coordinator's fleet, with further sections of its configuration: who may come is the coordinator's to
    /// say alone.
    fn of_fleet(harness: &'a Harness, name: &str, linux: Option<&Linux>, more: &str) -> Self {
        Self::with(harness, name, linux, more, &[])
    }

    fn with(harness: &'a Harness, name: &str, linux: Option<&Linux>, more: &str, allow: &[&str]) -> Self {
        // Sockets' paths are short by law, and the build's folder may be deep.
        let folder = harness.path(name);
        let (vms, boot, firmware) = (folder.join("vms"), folder.join("boot"), folder.join("firmware"));
        for made in [&vms, &boot, &firmware] {
            std::fs::create_dir_all(made).unwrap();
        }
        if let Some(linux) = linux {
            for file in [&linux.kernel, &linux.initramfs] {
                std::fs::copy(file, boot.join(file.file_name().unwrap())).unwrap();
            }
        }
        let mut text = more.to_owned();
        writeln!(text, "[vms]\nfolder = {vms:?}\nvmd = {:?}\nruntime = {folder:?}", folder.join("vmd.sock"))
            .unwrap();
        writeln!(
            text,
            "[migrate_in]\nallow = {allow:?}\npool = \"{POOL}\"\nboot = {boot:?}\nfirmware = {firmware:?}"
        )
        .unwrap();
        let host = harness.host(name).with_config(&text).with_pushers(allow);
        Self { harness, host, folder, agent: RefCell::default(), vmd: RefCell::default() }
    }

    /// The same, of a coordinator's fleet.
    pub(crate) fn joining(
        harness: &'a Harness,
        name: &str,
        linux: Option<&Linux>,
        coordinator: &str,
    ) -> Self {
        Self::of_fleet(harness, name, linux, &format!("[coordinator]\naddress = \"{coordinator}\"\n"))
    }

    /// The same, of a coordinator's fleet, reached also by a relay on the network `relay`.
    pub(crate) fn joining_behind(
        harness: &'a Harness,
        name: &str,
        linux: Option<&Linux>,
        coordinator: &str,
    ) -> (Self, Relay) {
        // An address of its own has every port to itself.
        let address = SocketAddr::new(own_address(), 7440);
        let relay = Relay::to(address);
        let near = relay.url().replace("novaferry://", "");
        let text = format!(
            "[coordinator]\naddress = \"{coordinator}\"\nadvertise = [\"relay={near}\", \"{address}\"]\n"
        );
        let made = Self::of_fleet(harness, name, linux, &text);
        made.host.set_address(address);
        (made, relay)
    }

    /// The same, of a coordinator's fleet, its spans sent to a collector.
    pub(crate) fn traced(
        harness: &'a Harness,
        name: &str,
        linux: Option<&Linux>,
        coordinator: &str,
        collector: &str,
    ) -> Self {
        let more =
            format!("[coordinator]\naddress = \"{coordinator}\"\n[otlp]\nendpoint = \"{collector}\"\n");
        Self::of_fleet(harness, name, linux, &more)
    }

    /// Starts vmd and the agent.
    pub(crate) fn start(&self) {
        self.start_vmd();
        self.start_agent();
    }

    /// A host that nobody can dial: it has a namespace to itself, where it listens to itself alone.
    pub(crate) fn joining_hidden(
        harness: &'a Harness,
        name: &str,
        linux: Option<&Linux>,
        coordinator: &str,
    ) -> Self {
        let text = format!("[coordinator]\naddress = \"{coordinator}\"\nreachable = false\n");
        let made = Self::of_fleet(harness, name, linux, &text);
        made.host.set_address((Ipv4Addr::LOCALHOST, 7440).into());
        made
    }

    /// A host with an address of its own on a link.
    pub(crate) fn joining_at(
        harness: &'a Harness,
        name: &str,
        linux: Option<&Linux>,
        coordinator: &str,
        address: SocketAddr,
    ) -> Self {
        let made = Self::joining(harness, name, linux, coordinator);
        made.host.set_address(address);
        made
    }

    /// Starts vmd, and the agent at one end of a link.
    pub(crate) fn start_at(&self, link: &Link, side: Side) {
        self.start_vmd();
        let mut command = self.host.command();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = link.exec(side, command).unwrap();
        let process = Process::watch(self.host.name(), child, &self.harness.log);
        *self.agent.borrow_mut() = Some(self.host.ready(process));
    }

    pub(crate) fn start_agent(&self) {
        *self.agent.borrow_mut() = Some(self.host.start());
    }

    pub(crate) fn start_vmd(&self) {
        // Another QEMU than the system's; the guest that a test starts takes the first in PATH.
        self.start_vmd_with(std::env::var_os("NOVAFERRY_QEMU").map(PathBuf::from).as_deref());
    }

    /// Starts vmd with this QEMU, or the one that it takes by itself.
    pub(crate) fn start_vmd_with(&self, qemu: Option<&Path>) {
        let mut command = Command::new(VMD);
        command.arg("serve").arg("--socket").arg(self.folder.join("vmd.sock"));
        command.arg("--state").arg(self.folder.join("vmd-state")).arg("--vms").arg(self.vms());
        command.arg("--firmware").arg(self.folder.join("firmware"));
        command.arg("--disk-folder").arg(self.host.pool()).arg("--boot").arg(self.folder.join("boot"));
        if let Some(qemu) = qemu {
            command.arg("--qemu").arg(qemu);
        }
        let process = self.harness.start("vmd", command);
        until("vmd's socket", || UnixStream::connect(self.folder.join("vmd.sock")).ok());
        *self.vmd.borrow_mut() = Some(process);
    }

    /// Kills the agent; its log is kept.
    pub(crate) fn kill_agent(&self) -> Finished {
        self.agent.borrow_mut().take().unwrap().kill()
    }

    pub(crate) fn kill_vmd(&self) -> Finished {
        self.vmd.borrow_mut().take().unwrap().kill()
    }

    /// Waits until the agent has logged this.
    pub(crate) fn await_log(&self, words: &str) {
        let agent = self.agent.borrow();
        agent.as_ref().unwrap().process().await_log(words, |line| line.contains(words).then_some(()));
    }

    pub(crate) fn signal_agent(&self, signal: Signal) {
        self.agent.borrow().as_ref().unwrap().process().signal(signal);
    }

    /// Disks of VMs in the pool here.
    pub(crate) fn disk_paths(&self) -> Vec<PathBuf> {
        let Ok(vms) = std::fs::read_dir(self.host.pool().join(".vms")) else { return Vec::new() };
        vms.flatten()
            .flat_map(|vm| std::fs::read_dir(vm.path()).unwrap().flatten())
            .map(|disk| disk.path())
            .collect()
    }

    /// NovaCron's folder.
    pub(crate) fn vms(&self) -> PathBuf {
        self.folder.join("vms")
    }

    /// Where a VM's files are.
    pub(crate) fn layout(&self, vm: &str) -> Layout {
        Layout::new(&self.vms(), vm)
    }

    /// Where its agent listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.host.address()
    }

    /// Where a VM goes when it is moved here.
    pub(crate) fn url(&self) -> String {
        format!("novaferry://{}", self.host.address())
    }

    /// What a VM that vmd runs here writes to its serial port.
    pub(crate) fn serial(&self, vm: &str) -> Serial {
        Serial::follow(self.layout(vm).folder().join("run/serial0.log")).unwrap()
    }

    /// Removes what an earlier visit of a VM wrote there.
    pub(crate) fn forget_serial(&self, vm: &str) {
        // It need not be there.
        drop(std::fs::remove_file(self.layout(vm).folder().join("run/serial0.log")));
    }

    /// A command of the agent's that talks to the daemon here.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = agent_command();
        command.args(arguments).arg("--socket").arg(self.host.socket()).args(["--output", "json"]);
        command
    }

    /// Runs such a command to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Finished {
        self.harness.run("command", self.command(arguments))
    }

    /// Starts to move a VM to another host; the command follows it.
    pub(crate) fn migrate(&self, vm: &str, to: &VmHost<'_>, more: &[&str]) -> Process {
        self.migrate_to(vm, &to.url(), more)
    }

    /// The same to whatever listens at an address.
    pub(crate) fn migrate_to(&self, vm: &str, url: &str, more: &[&str]) -> Process {
        let mut arguments = vec!["migrate", vm, "--to", url];
        arguments.extend_from_slice(more);
        self.harness.start("migrate", self.command(&arguments))
    }

    /// The newest migration that this host knows.
    pub(crate) fn migration(&self) -> Option<Value> {
        let listed = self.run(&["migration", "list"]);
        let text = listed.stdout.join("\n");
        let answer: Value = serde_json::from_str(&text).ok()?;
        answer["migrations"].as_array()?.first().cloned()
    }

    /// The figures of this instant of the newest migration here.
    pub(crate) fn live(&self) -> Value {
        self.shown().expect("there is one")["live"].clone()
    }

    /// All that the daemon here knows of it.
    pub(crate) fn shown(&self) -> Option<Value> {
        let id = self.migration()?["migration"].as_str()?.to_owned();
        let said = self.run(&["migration", "status", &id]);
        let answer: Value = serde_json::from_str(&said.stdout.join("\n")).ok()?;
        Some(answer["migration"].clone())
    }

    /// The state of the newest migration here.
    pub(crate) fn state(&self) -> String {
        let migration = self.migration().unwrap_or(Value::Null);
        migration["state"].as_str().unwrap_or("none").to_owned()
    }

    /// Waits until the newest migration here is in one of these states.
    #[track_caller]
    pub(crate) fn await_state(&self, states: &[&str]) -> String {
        until(&format!("one of {states:?} at {}", self.folder.display()), || {
            let state = self.state();
            states.contains(&state.as_str()).then_some(state)
        })
    }

    /// The receipts that the destination of a migration gave to this host.
    pub(crate) fn receipts(&self, migration: &str) -> Vec<Value> {
        let path = self.host.state().join("migrations").join(migration).join("receipts");
        let text = until("the receipts", || std::fs::read_to_string(&path).ok());
        serde_json::from_str(&text).unwrap()
    }

    /// Has `verify` check a receipt of this host's against a disk, with the key of the pool here.
    #[track_caller]
    pub(crate) fn verify(&self, receipt: &Value, disk: &Path) {
        let file = self.folder.join("receipt.json");
        std::fs::write(&file, receipt.to_string()).unwrap();
        let mut command = agent_command();
        command.arg("verify").args([&file, disk]).arg("--config").arg(self.host.config());
        command.arg("--trust").arg(self.harness.identity("host-a")).args(["--output", "json"]);
        command.arg("--state").arg(self.folder.join("no-state"));
        let verdict = self.harness.run("verify", command).done().objects().pop().unwrap();
        assert_eq!(verdict["signer"], receipt["receiver"]);
    }

    /// The process of a VM that runs here, started by whomever.
    pub(crate) fn guest_process(&self, vm: &str) -> Option<u32> {
        let pid: u32 = std::fs::read_to_string(self.layout(vm).pid_file()).ok()?.trim().parse().ok()?;
        is_qemu_of(pid, self.layout(vm).folder()).then_some(pid)
    }
}

/// Asks QEMU at this socket; nobody else may be connected to it.
pub(crate) fn ask_qemu(socket: &Path, command: &str) -> Value {
    let stream = UnixStream::connect(socket).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    for command in ["qmp_capabilities", command] {
        writeln!(&stream, "{}", serde_json::json!({ "execute": command })).unwrap();
        loop {
            let answer: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
            // The greeting and events are passed over.
            if !answer["return"].is_null() && command != "qmp_capabilities" {
                return answer["return"].clone();
            }
            if !answer["return"].is_null() {
                break;
            }
        }
    }
    unreachable!("the second command returns")
}

fn is_qemu_of(pid: u32, folder: &Path) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let folder = folder.to_str().unwrap().as_bytes();
    line.windows(folder.len()).any(|part| part == folder)
}

impl Drop for VmHost<'_> {
    fn drop(&mut self) {
        drop(self.agent.borrow_mut().take());
        drop(self.vmd.borrow_mut().take());
        let Ok(folders) = std::fs::read_dir(self.vms()) else { return };
        for entry in folders.flatten() {
            let name = entry.file_name();
            let pid = self.guest_process(name.to_str().unwrap_or_default());
            if let Some(pid) = pid.and_then(|pid| Pid::from_raw(pid.try_into().ok()?))
                && let Err(error) = kill_process(pid, Signal::KILL)
            {
                println!("a guest ended by itself: {error}");
            }
        }
    }
}
