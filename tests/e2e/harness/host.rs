//! A host with a daemon: its folder, its configuration, and the process.

use std::cell::Cell;
use std::fmt::Write;
use std::io::{BufRead, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use super::process::{Finished, Process};
use super::{Harness, agent_command, until};

/// The pool that every host has.
pub(crate) const POOL: &str = "gold";

/// A host that a daemon can run on.
pub(crate) struct Host<'a> {
    harness: &'a Harness,
    name: String,
    folder: PathBuf,
    pool: PathBuf,
    address: Cell<SocketAddr>,
    quota: Option<String>,
    pushers: Vec<String>,
    more: String,
}

impl<'a> Host<'a> {
    pub(super) fn new(harness: &'a Harness, name: &str, address: IpAddr) -> Self {
        let folder = harness.path(&format!("{name}-daemon"));
        let pool = folder.join("pool");
        std::fs::create_dir_all(&pool).unwrap();
        // The kernel chooses the port at the first start, later ones keep it.
        let address = Cell::new(SocketAddr::new(address, 0));
        let pushers = vec!["host-a".to_owned(), "host-c".to_owned()];
        let name = name.to_owned();
        Self { harness, name, folder, pool, address, quota: None, pushers, more: String::new() }
    }

    pub(crate) fn with_quota(mut self, quota: &str) -> Self {
        self.quota = Some(quota.to_owned());
        self
    }

    /// Further sections of the configuration.
    pub(crate) fn with_config(mut self, more: &str) -> Self {
        self.more.push_str(more);
        self
    }

    /// Who may push to the pool.
    pub(crate) fn with_pushers(mut self, hosts: &[&str]) -> Self {
        self.pushers = hosts.iter().map(|&host| host.to_owned()).collect();
        self
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The pool's folder.
    pub(crate) fn pool(&self) -> &Path {
        &self.pool
    }

    /// The pool lies elsewhere.
    pub(crate) fn with_pool(mut self, folder: &Path) -> Self {
        self.pool = folder.to_owned();
        self
    }

    /// Listens there, in whatever namespace it is started.
    pub(crate) fn at(self, address: SocketAddr) -> Self {
        self.set_address(address);
        self
    }

    /// The same from now on.
    pub(super) fn set_address(&self, address: SocketAddr) {
        self.address.set(address);
    }

    /// Writes the configuration.
    pub(crate) fn configure(&self) -> PathBuf {
        let mut text = String::new();
        let identity = self.harness.identity(&self.name);
        writeln!(text, "state_dir = {:?}", self.state()).unwrap();
        writeln!(text, "[listen]\naddress = \"{}\"", self.address.get()).unwrap();
        writeln!(text, "[identity]\ndir = {identity:?}").unwrap();
        writeln!(text, "[metrics]\nlisten = \"off\"\n[log]\nformat = \"json\"").unwrap();
        writeln!(text, "[control]\nsocket = {:?}", self.socket()).unwrap();
        writeln!(text, "[[pool]]\nname = \"{POOL}\"\npath = {:?}", self.pool).unwrap();
        writeln!(text, "push = {:?}\npull = [\"host-a\"]", self.pushers).unwrap();
        if let Some(quota) = &self.quota {
            writeln!(text, "quota = \"{quota}\"").unwrap();
        }
        text.push_str(&self.more);
        let path = self.config();
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.folder.join("agent.toml")
    }

    /// What the agent remembers.
    pub(crate) fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("agent.sock")
    }

    /// A sealed volume.
    pub(crate) fn volume(&self, name: &str) -> PathBuf {
        self.pool.join(name)
    }

    /// What is kept beside a volume.
    pub(crate) fn sidecar(&self, name: &str) -> PathBuf {
        self.pool.join(".novaferry/volumes").join(name)
    }

    /// Nothing of that name can be seen in the pool.
    #[track_caller]
    pub(crate) fn shows_nothing(&self, name: &str) {
        assert!(!self.volume(name).exists(), "{name} is visible before it is sealed");
    }

    /// The address of a volume here.
    pub(crate) fn url(&self, name: &str) -> String {
        format!("novaferry://{}/{POOL}/{name}", self.address.get())
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address.get()
    }

    /// The command that runs the daemon.
    pub(crate) fn command(&self) -> Command {
        let mut command = agent_command();
        command.args(["serve", "--config"]).arg(self.configure());
        command
    }

    /// Starts the daemon and waits until it is ready.
    #[track_caller]
    pub(crate) fn start(&self) -> Daemon {
        let process = self.harness.start(&self.name, self.command());
        self.ready(process)
    }

    /// Waits until a daemon that was started in another way is ready.
    #[track_caller]
    pub(crate) fn ready(&self, process: Process) -> Daemon {
        let address = process.await_log("its readiness", |line| {
            let object: Value = serde_json::from_str(line).ok()?;
            (object["fields"]["message"] == "ready")
                .then(|| object["fields"]["address"].as_str()?.parse().ok())?
        });
        self.address.set(address);
        Daemon { process, socket: self.socket() }
    }
}

/// A session as the daemon lists it.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) id: String,
    pub(crate) logical: u64,
    pub(crate) settled: u64,
}

/// A daemon that runs; killed when dropped.
pub(crate) struct Daemon {
    process: Process,
    socket: PathBuf,
}

impl Daemon {
    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    /// The sessions that run.
    pub(crate) fn sessions(&self) -> Vec<Session> {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.write_all(b"{\"command\":\"list\"}\n").unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap();
        let count = |session: &Value, key: &str| session[key].as_u64().unwrap();
        let session = |session: &Value| Session {
            id: session["session"].as_str().unwrap().to_owned(),
            logical: count(session, "logical_bytes"),
            settled: count(session, "settled_bytes"),
        };
        answer["sessions"].as_array().unwrap().iter().map(session).collect()
    }

    /// Waits until a session has settled so much.
    #[track_caller]
    pub(crate) fn await_settled(&self, bytes: u64) -> Session {
        until("enough progress", || self.sessions().into_iter().find(|session| session.settled >= bytes))
    }

    /// Waits until no session runs.
    #[track_caller]
    pub(crate) fn await_idle(&self) {
        until("the sessions' end", || self.sessions().is_empty().then_some(()));
    }

    /// Waits for a log line with this message.
    #[track_caller]
    pub(crate) fn await_message(&self, message: &str) {
        self.process.await_log(message, |line| line.contains(message).then_some(()));
    }

    /// Asks it to end, and waits.
    #[track_caller]
    pub(crate) fn stop(self) {
        self.process.signal(Signal::TERM);
        self.process.finish().done();
    }

    pub(crate) fn kill(self) -> Finished {
        self.process.kill()
    }
}
