//! novaferry: an agent and a vmd for each of two hosts, as processes; the guest moves by `migrate`.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use engine::migrate::report::Report;
use guest::{Layout, Serial};
use link::{Link, Side};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::Movers;
use super::outcome::Moved;
use super::stage::{PATIENCE, Stage, VM, make_folder};
use super::steps;
use crate::agents::{Agents, Daemon, POOL, RECEIVER, SENDER, spawn, tail};
use crate::process::Guarded;

/// Name of vmd's binary, beside the agent's.
const VMD: &str = "novaferry-vmd";
/// How often is looked whether vmd answers.
const LOOK: Duration = Duration::from_millis(10);
/// How long vmd may take until it does.
const STARTS: Duration = Duration::from_secs(60);

/// A host with an agent and vmd. What vmd started ends with it.
struct Host {
    vms: PathBuf,
    vmd: Guarded,
    agent: Daemon,
}

impl Host {
    fn start(
        agents: &Agents,
        folder: &Path,
        name: &str,
        boot: &Path,
        place: Option<(&Link, Side)>,
    ) -> Result<Self> {
        let inside = |name: &str| folder.join(name);
        let [vms, pool] = ["vms", POOL].map(inside);
        for made in [folder, &vms, &pool] {
            make_folder(made)?;
        }
        let program = agents.binary().with_file_name(VMD);
        ensure!(program.is_file(), "{} is missing; build it with the agent", program.display());
        let (socket, log) = (inside("vmd.sock"), inside("vmd.log"));
        let mut command = Command::new(program);
        command.arg("serve").arg("--socket").arg(&socket).arg("--state").arg(inside("vmd"));
        command.arg("--vms").arg(&vms).arg("--disk-folder").arg(&pool).arg("--boot").arg(boot);
        let file = fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        let mut vmd = Guarded::new(spawn(command, place)?);
        let end = Instant::now() + STARTS;
        while UnixStream::connect(&socket).is_err() {
            let ended = vmd.child().try_wait().context("look after vmd")?.is_some();
            ensure!(!ended && Instant::now() < end, "vmd does not answer: {}", tail(&log));
            sleep(LOOK);
        }
        let peers = format!("[{SENDER:?}, {RECEIVER:?}]");
        let more = format!(
            "[vms]\nfolder = {vms:?}\nvmd = {socket:?}\nruntime = {folder:?}\n\
             [migrate_in]\nallow = {peers}\npool = \"{POOL}\"\nboot = {boot:?}\n\
             [[pool]]\nname = \"{POOL}\"\npath = {pool:?}\npush = {peers}\n"
        );
        let agent = agents.daemon(name, folder, &more, place)?;
        Ok(Self { vms, vmd, agent })
    }

    /// The process of the guest that vmd started here.
    fn guest(&self) -> Option<u32> {
        let layout = Layout::new(&self.vms, VM);
        let pid = fs::read_to_string(layout.pid_file()).ok()?.trim().parse().ok()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let ours = layout.folder().as_os_str().as_encoded_bytes();
        line.windows(ours.len()).any(|part| part == ours).then_some(pid)
    }

    fn processes(&self) -> [Option<u32>; 2] {
        [Some(self.agent.id()), Some(self.vmd.id())]
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _gone = self
            .guest()
            .and_then(|pid| Pid::from_raw(pid.cast_signed()))
            .map(|pid| kill_process(pid, Signal::KILL));
    }
}

/// Moves a guest, in the new folder `folder`: what was seen of it, and what the agent says.
pub(super) fn run(stage: &Stage<'_>, movers: &Movers<'_>, folder: &Path) -> Result<(Moved, Report)> {
    let Movers { agents, more } = movers;
    let start = |name: &str, identity: &str, side: Side| {
        Host::start(agents, &folder.join(name), identity, &stage.boot, stage.place(side))
    };
    let (from, to) = (start("s", SENDER, Side::A)?, start("d", RECEIVER, Side::B)?);
    let source = stage.source(&from.vms)?;
    let serial = Serial::follow(Layout::new(&to.vms, VM).folder().join("run/serial0.log"))
        .context("follow the guest's serial port at the destination")?;

    let processes = |guest: Option<u32>| {
        let [agent, vmd] = from.processes();
        let [other_agent, other_vmd] = to.processes();
        [agent, vmd, other_agent, other_vmd, Some(source.pid()), guest]
    };
    let began = stage.mark(&processes(None))?;
    let mut command = agents.command();
    command.args(["migrate", VM, "--to"]).arg(format!("novaferry://{}", to.agent.address));
    // The source's QEMU is still to be asked for its CPU time.
    command.args(["--hold", "--output", "json", "--profile", stage.plan.profile]);
    if stage.plan.throttle {
        command.args(["--on-no-converge", "throttle"]);
    }
    command.arg("--timeout").arg(format!("{}s", PATIENCE.as_secs()));
    command.arg("--socket").arg(&from.agent.control).args(*more);
    let report = migrate(command).with_context(|| {
        format!("source: {}\ndestination: {}", tail(&from.agent.log), tail(&to.agent.log))
    })?;
    Stage::arrived(&serial)?;
    let done = stage.mark(&processes(to.guest()))?;
    let (first, shown) = Stage::check(source.serial(), &serial)?;
    let mut steps = steps::read("source", &from.agent.log)?;
    steps.extend(steps::read("destination", &to.agent.log)?);
    let (steps, stream_seconds) = steps::since_the_first(steps);
    let moved = Moved {
        seconds: first.duration_since(began.at).as_secs_f64(),
        stream_seconds,
        downtime_ms: shown.downtimes.first().copied().unwrap_or_default().as_secs_f64() * 1e3,
        qemu_downtime_ms: report.qemu_downtime_ms,
        ram_plain: report.ram_plain,
        ram_wire: report.ram_wire,
        disk_wire: report.disk_wire,
        link_bytes: done.link_since(&began),
        again: Some((report.ram_again_plain, report.ram_again_wire)),
        rounds: report.rounds,
        cpu_agents: (0..4).map(|nth| done.cpu_since(&began, nth)).sum(),
        cpu_qemu: done.cpu_since(&began, 4) + done.cpu_since(&began, 5),
        cpu_bench: done.own_since(&began),
        heartbeats: shown.in_file,
        steps,
    };
    Ok((moved, report))
}

/// Runs `migrate` to its end, and reads what it came to.
fn migrate(mut command: Command) -> Result<Report> {
    let output = command.output().context("start the agent's migrate")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    if !output.status.success() {
        bail!("migrate ended with {}: {}{}", output.status, last, String::from_utf8_lossy(&output.stderr));
    }
    let mut answer: Value =
        serde_json::from_str(last).with_context(|| format!("understand the answer {last}"))?;
    let report = answer.pointer_mut("/migration/record/report").map(Value::take);
    let report = report.with_context(|| format!("find a report in {last}"))?;
    serde_json::from_value(report).context("understand the report")
}
