//! What the tests share: a folder with a CA and identities, daemons and commands as processes, and a watch over every
//! line that they log.
//!
//! A line of level WARN or ERROR fails the test unless [`Harness::allow_log`] names a part of it: who breaks something
//! on purpose says what may be complained about. Processes end with their guards, also after a failure.

pub(crate) mod collector;
pub(crate) mod copy;
pub(crate) mod disks;
pub(crate) mod host;
pub(crate) mod network;
pub(crate) mod process;
pub(crate) mod relay;
pub(crate) mod vms;

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use copy::Copy;
use host::Host;
use process::{Finished, LogBook, Process};

/// The program under test.
const AGENT: &str = env!("CARGO_BIN_EXE_novaferry-agent");
/// How long anything may take on a busy machine; only a test that fails ever waits so long.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// Something that a machine may lack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Capability {
    /// Root and loop devices.
    Loop,
    /// Root, TUN and network namespaces.
    Netns,
    /// UEFI for guests.
    Ovmf,
    /// QEMU's command-line tools.
    Qemu,
    /// Root.
    Root,
}

/// UEFI's code, as Debian has it.
pub(crate) const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";

impl Capability {
    fn name(self) -> &'static str {
        match self {
            Self::Loop => "loop",
            Self::Netns => "netns",
            Self::Ovmf => "ovmf",
            Self::Qemu => "qemu",
            Self::Root => "root",
        }
    }

    fn missing(self) -> Option<&'static str> {
        let there = |path: &str| Path::new(path).exists();
        let runs = |program: &str| Command::new(program).arg("--version").output().is_ok();
        match self {
            Self::Root => (!rustix::process::geteuid().is_root()).then_some("needs root"),
            Self::Loop => Self::Root
                .missing()
                .or_else(|| (!there("/dev/loop-control")).then_some("no /dev/loop-control"))
                .or_else(|| (!runs("losetup")).then_some("no losetup")),
            Self::Netns => {
                Self::Root.missing().or_else(|| (!there("/dev/net/tun")).then_some("no /dev/net/tun"))
            }
            Self::Ovmf => (!there(OVMF_CODE)).then_some("no OVMF in /usr/share/OVMF"),
            Self::Qemu => (!runs("qemu-img") || !runs("qemu-nbd")).then_some("no qemu-img or qemu-nbd"),
        }
    }
}

/// Whether the machine has what a test needs; says what it lacks, and fails when `NOVAFERRY_REQUIRE` demands that.
pub(crate) fn capable(test: &str, needs: &[Capability]) -> bool {
    let required = std::env::var("NOVAFERRY_REQUIRE").unwrap_or_default();
    for capability in needs {
        if let Some(why) = capability.missing() {
            assert!(
                !required.split(',').any(|name| name.trim() == capability.name()),
                "{test} cannot run ({why}) but NOVAFERRY_REQUIRE demands {}",
                capability.name()
            );
            println!("SKIP {test}: {why}");
            return false;
        }
    }
    true
}

/// A number from the environment.
pub(crate) fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{variable}={text}: {error}")))
}

/// Asks again and again until there is an answer. This is no pause that hopes: what is waited for is looked at.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    const BETWEEN: Duration = Duration::from_millis(2);
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < DEADLINE, "{what} did not happen within {DEADLINE:?}");
        std::thread::sleep(BETWEEN);
    }
}

/// An address of this host that no other test uses: ports that are free there stay free while a daemon restarts.
fn own_address() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = std::process::id().wrapping_mul(8).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
    let [_, a, b, c] = number.to_be_bytes();
    // 127.64.0.0 and up: away from what people configure by hand.
    IpAddr::V4(Ipv4Addr::new(127, 64 | (a & 63), b, c.clamp(1, 254)))
}

/// One test's world.
pub(crate) struct Harness {
    log: LogBook,
    folder: tempfile::TempDir,
}

impl Harness {
    /// A folder with a CA and the identities `host-a` and `host-b`.
    pub(crate) fn new() -> Self {
        // Beside the build's output, which is on a real disk more often than /tmp is.
        Self::in_folder(env!("CARGO_TARGET_TMPDIR"))
    }

    /// The same where the users of VMs can pass through, who are not this test's: the build's output may be closed.
    pub(crate) fn of_guests() -> Self {
        Self::in_folder("/var/tmp")
    }

    fn in_folder(parent: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("e2e-").tempdir_in(parent).unwrap();
        let harness = Self { log: LogBook::default(), folder };
        harness.agent(&["pki", "init", &harness.text("ca")]).done();
        for name in ["host-a", "host-b"] {
            harness.issue(name, "ca");
        }
        harness
    }

    /// Log lines that contain this text may be warnings or errors.
    pub(crate) fn allow_log(&self, part: &str) {
        self.log.allow(part);
    }

    /// A path in the test's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The same as text.
    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// The folder of a host's identity.
    pub(crate) fn identity(&self, name: &str) -> PathBuf {
        self.path("hosts").join(name)
    }

    /// Issues an identity by a CA of this folder.
    pub(crate) fn issue(&self, name: &str, ca: &str) {
        self.agent(&["pki", "issue", name, "--ca", &self.text(ca), "--out", &self.text("hosts")]).done();
    }

    /// Runs the agent to its end.
    pub(crate) fn agent(&self, arguments: &[&str]) -> Finished {
        let mut command = Command::new(AGENT);
        command.args(arguments);
        self.run("agent", command)
    }

    /// Starts any program; what it logs is watched.
    pub(crate) fn start(&self, name: &str, command: Command) -> Process {
        Process::start(name, command, &self.log)
    }

    /// Runs any program to its end.
    pub(crate) fn run(&self, name: &str, command: Command) -> Finished {
        self.start(name, command).finish()
    }

    /// A daemon's folder and configuration; nothing runs yet.
    pub(crate) fn host(&self, name: &str) -> Host<'_> {
        Host::new(self, name, own_address())
    }

    /// A `copy` command with the identity of host-a.
    pub(crate) fn copy(&self, source: impl AsRef<Path>, target: impl AsRef<Path>) -> Copy<'_> {
        Copy::new(self, source.as_ref(), target.as_ref())
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.log.print();
        } else {
            self.log.check();
        }
    }
}

/// A command that runs the agent, for those who start it in another way.
pub(crate) fn agent_command() -> Command {
    Command::new(AGENT)
}
