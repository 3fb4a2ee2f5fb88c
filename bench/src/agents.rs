//! Two agents on this machine as people would run them: identities by `pki`, a daemon by `serve`, copies by `copy`.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use link::{Link, Side};
use serde::Deserialize;

use crate::machine::{busy_seconds, cpu_of, peak_memory};
use crate::process::{Guarded, run};

/// How long a daemon may take to be ready, and to end: it generates nothing and holds nothing for long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Name of the pool.
pub(crate) const POOL: &str = "pool";
/// Names of the hosts.
pub(crate) const SENDER: &str = "sender";
pub(crate) const RECEIVER: &str = "receiver";

/// What a copy prints last. Other keys are not needed here.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Summary {
    pub(crate) wire_bytes: u64,
    pub(crate) payload_bytes: u64,
    pub(crate) zero_bytes: u64,
    pub(crate) dedup_bytes: u64,
    pub(crate) resent_bytes: u64,
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds_tx: Option<f64>,
}

/// The agent's binary and two identities of one CA.
#[derive(Debug)]
pub(crate) struct Agents {
    binary: PathBuf,
    folder: PathBuf,
}

impl Agents {
    /// Makes identities in `folder`, which is empty.
    pub(crate) fn new(binary: &Path, folder: &Path) -> Result<Self> {
        if !binary.is_file() {
            bail!(
                "the agent is not at {}; build it with `cargo build -p novaferry-agent` (in the same profile), or say \
                 where it is with --agent PATH",
                binary.display()
            );
        }
        let agents = Self { binary: binary.to_owned(), folder: folder.to_owned() };
        let (ca, hosts) = (folder.join("ca"), folder.join("hosts"));
        fs::create_dir(&hosts).with_context(|| format!("make {}", hosts.display()))?;
        run(agents.command().args(["pki", "init"]).arg(&ca))?;
        for host in [SENDER, RECEIVER] {
            run(agents.command().args(["pki", "issue", host, "--ca"]).arg(&ca).arg("--out").arg(&hosts))?;
        }
        Ok(agents)
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        // The caller's settings must not reach what is measured.
        command.env_remove("NOVAFERRY_LOG").env_remove("STATE_DIRECTORY").stdin(Stdio::null());
        command
    }

    /// The agent's binary.
    pub(crate) fn binary(&self) -> &Path {
        &self.binary
    }

    fn identity(&self, host: &str) -> PathBuf {
        self.folder.join("hosts").join(host)
    }

    /// Starts a receiver with an empty pool in the folder `name`; on side B of `link` if there is one.
    pub(crate) fn serve<'a>(&'a self, folder: &Path, link: Option<&'a Link>) -> Result<Pair<'a>> {
        let pool = folder.join(POOL);
        fs::create_dir_all(&pool).with_context(|| format!("make {}", pool.display()))?;
        let more = format!("[[pool]]\nname = \"{POOL}\"\npath = {pool:?}\npush = [\"{SENDER}\"]\n");
        let daemon = self.daemon(RECEIVER, folder, &more, link.map(|link| (link, Side::B)))?;
        Ok(Pair { agents: self, link, folder: folder.to_owned(), daemon, pool })
    }

    /// Starts a daemon with the identity of `host` and everything of its own in `folder`, on its side of a link if there
    /// is one, and waits until it is ready. `more` is the rest of its configuration.
    pub(crate) fn daemon(
        &self,
        host: &str,
        folder: &Path,
        more: &str,
        place: Option<(&Link, Side)>,
    ) -> Result<Daemon> {
        let address: IpAddr = match place {
            Some((_, side)) => side.address().into(),
            None => Ipv4Addr::LOCALHOST.into(),
        };
        let (config, control) = (folder.join("agent.toml"), folder.join("daemon/control.sock"));
        let text = format!(
            "state_dir = {:?}\n[listen]\naddress = \"{address}:0\"\n[identity]\ndir = {:?}\n\
             [control]\nsocket = {control:?}\n[log]\nformat = \"json\"\n\
             [metrics]\nlisten = \"127.0.0.1:0\"\n{more}",
            folder.join("daemon"),
            self.identity(host),
        );
        fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
        let mut command = self.command();
        command.arg("serve").arg("--config").arg(&config).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = Guarded::new(spawn(command, place)?);
        let log = folder.join("daemon.log");
        let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let lines = process.child().stderr.take().context("read the daemon's log")?;
        let (ready, is_ready) = sync_channel(1);
        std::thread::Builder::new()
            .name("bench-log".to_owned())
            .spawn(move || keep_log(BufReader::new(lines), file, &ready))
            .context("start the thread that keeps the daemon's log")?;
        let address = is_ready
            .recv_timeout(PATIENCE)
            .map_err(|_late| anyhow!("the agent did not become ready: {}", tail(&log)))?;
        Ok(Daemon { process, address, control, log })
    }
}

/// An agent that runs.
#[derive(Debug)]
pub(crate) struct Daemon {
    process: Guarded,
    /// Where it takes volumes and VMs.
    pub(crate) address: SocketAddr,
    /// Its control socket.
    pub(crate) control: PathBuf,
    /// Its log: JSON objects, one a line.
    pub(crate) log: PathBuf,
}

impl Daemon {
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Ends it.
    pub(crate) fn end(self) -> Result<()> {
        let status = self.process.terminate(PATIENCE)?;
        anyhow::ensure!(status.success(), "an agent ended with {status}: {}", tail(&self.log));
        Ok(())
    }
}

/// Writes the log down, and tells the address when it is there.
fn keep_log(lines: impl BufRead, mut file: File, ready: &SyncSender<SocketAddr>) {
    #[derive(Deserialize)]
    struct Line {
        fields: Fields,
    }
    #[derive(Deserialize)]
    struct Fields {
        message: Option<String>,
        address: Option<SocketAddr>,
    }
    // A log that ends or cannot be written costs only its part of an error message.
    for line in lines.lines().map_while(Result::ok) {
        drop(writeln!(file, "{line}"));
        if let Ok(Line { fields: Fields { message: Some(message), address: Some(address) } }) =
            serde_json::from_str(&line)
            && message == "ready"
        {
            let _nobody_waits = ready.try_send(address);
        }
    }
}

pub(crate) fn spawn(mut command: Command, place: Option<(&Link, Side)>) -> Result<std::process::Child> {
    match place {
        Some((link, side)) => Ok(link.exec(side, command)?),
        None => command.spawn().with_context(|| format!("start {}", command.get_program().display())),
    }
}

/// The end of a file, for an error message.
pub(crate) fn tail(path: &Path) -> String {
    const MOST: usize = 2000;
    match fs::read(path) {
        Ok(text) => String::from_utf8_lossy(&text[text.len().saturating_sub(MOST)..]).into_owned(),
        Err(error) => format!("and {} cannot be read: {error}", path.display()),
    }
}

/// A receiver that runs, and what sends to it.
#[derive(Debug)]
pub(crate) struct Pair<'a> {
    agents: &'a Agents,
    link: Option<&'a Link>,
    folder: PathBuf,
    daemon: Daemon,
    pool: PathBuf,
}

/// A copy that runs.
#[derive(Debug)]
pub(crate) struct Copying {
    process: Guarded,
    out: PathBuf,
    log: PathBuf,
}

/// A copy that is done.
#[derive(Clone, Debug)]
pub(crate) struct Copied {
    pub(crate) summary: Summary,
    /// Peak resident memory of the sending process in bytes.
    pub(crate) peak_tx: u64,
    /// The same of the daemon, since it started.
    pub(crate) peak_rx: u64,
    /// CPU seconds of the daemon meanwhile.
    pub(crate) cpu_rx: f64,
    /// Processors that others kept busy meanwhile, on average.
    pub(crate) other_cpus: f64,
}

impl Pair<'_> {
    /// Where a copied volume is.
    pub(crate) fn volume(&self, name: &str) -> PathBuf {
        self.pool.join(name)
    }

    /// Starts a copy of `source` to the volume `name`.
    pub(crate) fn start(&self, source: &Path, name: &str, options: &[&str]) -> Result<Copying> {
        let (out, log) = (self.folder.join(format!("{name}.out")), self.folder.join(format!("{name}.log")));
        let create = |path: &Path| File::create(path).with_context(|| format!("create {}", path.display()));
        let mut command = self.agents.command();
        command
            .arg("copy")
            .arg(source)
            .arg(format!("novaferry://{}/{POOL}/{name}", self.daemon.address))
            .arg("--identity")
            .arg(self.agents.identity(SENDER))
            .arg("--state")
            .arg(self.folder.join("state"))
            .args(["--output", "json"])
            .args(options)
            .stdout(create(&out)?)
            .stderr(create(&log)?);
        let process = Guarded::new(spawn(command, self.link.map(|link| (link, Side::A)))?);
        Ok(Copying { process, out, log })
    }

    /// Copies, and measures that.
    pub(crate) fn copy(&self, source: &Path, name: &str, options: &[&str]) -> Result<Copied> {
        let stat = PathBuf::from(format!("/proc/{}/stat", self.daemon.id()));
        let (cpu, busy, begun) = (cpu_of(&stat)?, busy_seconds()?, std::time::Instant::now());
        let (summary, peak_tx) = self.start(source, name, options)?.finish()?;
        let (seconds, busy) = (begun.elapsed().as_secs_f64(), busy_seconds()? - busy);
        let cpu_rx = cpu_of(&stat)? - cpu;
        let ours = cpu_rx + summary.cpu_seconds_tx.unwrap_or(0.0);
        Ok(Copied {
            summary,
            peak_tx,
            peak_rx: self.peak_memory()?,
            cpu_rx,
            other_cpus: (busy - ours).max(0.0) / seconds,
        })
    }

    /// Peak resident memory of the daemon in bytes.
    pub(crate) fn peak_memory(&self) -> Result<u64> {
        let ended = || format!("the receiver has ended: {}", tail(&self.daemon.log));
        peak_memory(self.daemon.id()).with_context(ended)
    }

    /// Ends the receiver.
    pub(crate) fn end(self) -> Result<()> {
        self.daemon.end()
    }
}

impl Copying {
    /// Waits for the end: the summary, and the peak of resident memory in bytes.
    pub(crate) fn finish(mut self) -> Result<(Summary, u64)> {
        let mut peak = 0;
        let status = self.process.watch(|pid| peak = peak_memory(pid).unwrap_or(0).max(peak))?;
        if !status.success() {
            bail!("the copy ended with {status}: {}{}", tail(&self.out), tail(&self.log));
        }
        let text = fs::read_to_string(&self.out).with_context(|| format!("read {}", self.out.display()))?;
        let last = text.lines().last().context("the copy printed nothing")?;
        let summary = serde_json::from_str(last).with_context(|| format!("understand the summary {last}"))?;
        Ok((summary, peak))
    }
}
