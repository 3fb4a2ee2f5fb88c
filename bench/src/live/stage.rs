//! What both sides share: the path, the guest at its beginning, and how it is looked at.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use guest::{Layout, Linux, Report, Serial, Settings, Timeline, Vm};
use link::{Link, Side};
use tokio::runtime::Runtime;

use super::case::Plan;
use crate::corpus;
use crate::machine::{cpu_of, process_cpu};

/// The guest's id.
pub(super) const VM: &str = "g";
/// How long a guest may take to boot or to show itself, and a move may take, on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);
/// Heartbeats before the move and after it: every tenth makes the guest check all of its memory.
const BEATS: usize = 25;
/// Bytes in a MiB.
const MEBI: u64 = 1 << 20;

/// One case's surroundings.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    pub(super) plan: Plan,
    pub(super) linux: &'a Linux,
    pub(super) runtime: &'a Runtime,
    /// Everything of this case.
    pub(super) folder: PathBuf,
    pub(super) link: Option<Link>,
    /// The guest's kernel, as a receiver's boot folder.
    pub(super) boot: PathBuf,
    /// What the disk holds at first.
    template: Option<PathBuf>,
}

/// CPU seconds of processes, and bytes of the link, at one instant.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    pub(super) at: Instant,
    /// Of the processes, in their order.
    cpu: Vec<f64>,
    /// Of this program: relays and link.
    own: f64,
    /// Bytes that the link delivered in both directions.
    pub(super) link: Option<u64>,
}

impl Mark {
    /// CPU seconds of the `nth` process since `before`; one that was not there then counts whole.
    pub(super) fn cpu_since(&self, before: &Self, nth: usize) -> f64 {
        self.cpu.get(nth).map_or(0.0, |now| now - before.cpu.get(nth).unwrap_or(&0.0))
    }

    /// CPU seconds of this program since `before`.
    pub(super) fn own_since(&self, before: &Self) -> f64 {
        self.own - before.own
    }

    /// Bytes on the link since `before`.
    pub(super) fn link_since(&self, before: &Self) -> Option<u64> {
        Some(self.link?.saturating_sub(before.link?))
    }
}

impl<'a> Stage<'a> {
    /// Makes the path and what the disk holds, in the new folder `folder`.
    pub(super) fn set(plan: Plan, linux: &'a Linux, runtime: &'a Runtime, folder: PathBuf) -> Result<Self> {
        make_folder(&folder)?;
        let template = plan.files.then(|| folder.join("files"));
        if let Some(template) = &template {
            let len = corpus::real(template, plan.disk)?;
            anyhow::ensure!(
                len == plan.disk,
                "the files of this machine fill {} MiB of the disk's {}",
                len / MEBI,
                plan.disk / MEBI
            );
        }
        let boot = folder.join("boot");
        make_folder(&boot)?;
        for file in [&linux.kernel, &linux.initramfs] {
            let target = boot.join(file.file_name().context("name a boot file")?);
            fs::copy(file, &target).with_context(|| format!("write {}", target.display()))?;
        }
        let link = plan.link.as_ref().map(Link::up).transpose().context("make the emulated link")?;
        Ok(Self { plan, linux, runtime, folder, link, boot, template })
    }

    /// Which side of the link, if there is one.
    pub(super) fn place(&self, side: Side) -> Option<(&Link, Side)> {
        self.link.as_ref().map(|link| (link, side))
    }

    /// The guest's settings at its source.
    pub(super) fn settings(&self) -> Settings {
        let mut settings = Settings::linux(VM, self.linux, self.plan.options);
        settings.memory = self.plan.memory;
        settings.disk.size = self.plan.disk;
        settings.disk.format = guest::disk::Format::Raw;
        settings
    }

    /// Starts a machine below `vms`, on its side of the link. A source gets its disk.
    pub(super) fn start(&self, vms: &Path, settings: Settings, side: Side) -> Result<Vm> {
        let layout = Layout::new(vms, VM);
        make_folder(layout.folder())?;
        if let (Some(template), None) = (&self.template, &settings.incoming) {
            let disk = settings.disk_path(&layout);
            fs::copy(template, &disk).with_context(|| format!("write {}", disk.display()))?;
        }
        let start = || Vm::start(vms, settings);
        let vm = match &self.link {
            Some(link) => link.enter(side, start)?,
            None => start(),
        };
        vm.context("start a guest")
    }

    /// Starts the guest at its source, and waits until it is in its stride.
    pub(super) fn source(&self, vms: &Path) -> Result<Vm> {
        let vm = self.start(vms, self.settings(), Side::A)?;
        vm.wait_for_boot(PATIENCE).context("boot the guest")?;
        vm.serial().wait_for_heartbeats(BEATS, PATIENCE).context("hear the guest at its source")?;
        self.settle()?;
        Ok(vm)
    }

    /// Writes back what the preparations left in the page cache: it would be written in the middle of what is measured.
    fn settle(&self) -> Result<()> {
        let folder = fs::File::open(&self.folder).context("open the bench's folder")?;
        rustix::fs::syncfs(&folder).context("write back what was prepared")
    }

    /// Waits until the guest has shown itself at its destination.
    pub(super) fn arrived(serial: &Serial) -> Result<()> {
        serial.wait_for_heartbeats(1, PATIENCE).context("hear the guest at its destination")
    }

    /// Waits until the guest has checked itself at its destination; when it was first heard there, and what it showed.
    pub(super) fn check(source: &Serial, destination: &Serial) -> Result<(Instant, Report)> {
        destination.wait_for_heartbeats(BEATS, PATIENCE).context("hear the guest at its destination")?;
        let timeline = Timeline::join(&[source, destination]);
        let report = timeline.check(BEATS as u64).context("VERIFICATION FAILED: the guest is not whole")?;
        let first = timeline.beats().find(|beat| beat.file == 1).context("find the first heartbeat")?;
        Ok((first.at, report))
    }

    /// This instant. Processes that are not there have used nothing.
    pub(super) fn mark(&self, processes: &[Option<u32>]) -> Result<Mark> {
        let cpu = processes.iter().map(|pid| match pid {
            Some(pid) => cpu_of(Path::new(&format!("/proc/{pid}/stat"))),
            None => Ok(0.0),
        });
        let cpu = cpu.collect::<Result<_>>()?;
        let link = match &self.link {
            Some(link) => {
                let stats = link.stats().context("ask the emulated link")?;
                Some(stats.a_to_b.counters.delivered_bytes + stats.b_to_a.counters.delivered_bytes)
            }
            None => None,
        };
        Ok(Mark { at: Instant::now(), cpu, own: process_cpu().as_secs_f64(), link })
    }
}

/// Makes a folder that the users of VMs may enter.
pub(super) fn make_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(folder, open).with_context(|| format!("open {} to all", folder.display()))
}
