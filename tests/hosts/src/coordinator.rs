//! `novaferry serve` as a process.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Far beyond what a start takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Lines of its log that a failure shows.
const LOG_LINES: usize = 200;

#[derive(Debug, Default)]
struct Log {
    lines: Mutex<Lines>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    last: std::collections::VecDeque<String>,
    ready: bool,
    stands_by: bool,
    ended: bool,
}

/// A coordinator that can be killed and started again at the same addresses. It ends when it is dropped.
#[derive(Debug)]
pub struct Coordinator {
    binary: PathBuf,
    state: PathBuf,
    database: Option<String>,
    options: Vec<String>,
    agents: SocketAddr,
    api: SocketAddr,
    child: Option<Child>,
    log: Arc<Log>,
}

/// Two ports on an address that no other process has: nobody takes them while the coordinator is away. Whoever dials a
/// loopback address does it from 127.0.0.1, so a client's own port is none of these, either.
fn addresses() -> [SocketAddr; 2] {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let address = Ipv4Addr::new(127, 64 | (high & 63), middle, low);
    let held = [(); 2].map(|()| TcpListener::bind((address, 0)).expect("a loopback address has free ports"));
    held.map(|listener| listener.local_addr().expect("it is bound"))
}

impl Coordinator {
    /// One that is not started. Without a database it has its own in the state folder.
    #[must_use]
    pub fn new(binary: &Path, state: &Path, database: Option<String>, options: &[&str]) -> Self {
        let [agents, api] = addresses();
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let (binary, state) = (binary.to_owned(), state.to_owned());
        Self { binary, state, database, options, agents, api, child: None, log: Arc::default() }
    }

    /// Where agents dial.
    #[must_use]
    pub fn agents(&self) -> String {
        self.agents.to_string()
    }

    /// The URL of its API.
    #[must_use]
    pub fn api(&self) -> String {
        format!("https://{}", self.api)
    }

    /// Its process, if it was started.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Starts it, and does not wait.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(&mut self) {
        self.kill();
        let mut command = Command::new(&self.binary);
        command.args(["serve", "--agents", &self.agents.to_string(), "--api", &self.api.to_string()]);
        command.args(["--name", &self.api.ip().to_string(), "--state"]).arg(&self.state).args(&self.options);
        match &self.database {
            Some(database) => command.env("NOVAFERRY_DATABASE", database),
            None => command.env_remove("NOVAFERRY_DATABASE"),
        };
        command.env("NOVAFERRY_LOG", "warn,novaferry=info,novaferry_service=warn,novaferry_store=info");
        command.env_remove("AUTH_SECRET");
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
        let lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let log = Arc::new(Log::default());
        self.log = Arc::clone(&log);
        self.child = Some(child);
        std::thread::spawn(move || {
            let change = |change: &dyn Fn(&mut Lines)| {
                change(&mut log.lines.lock().unwrap_or_else(PoisonError::into_inner));
                log.news.notify_all();
            };
            for line in lines.map_while(Result::ok) {
                change(&|lines| {
                    lines.ready |= line.contains(" ready ");
                    lines.stands_by |= line.contains("stands by");
                    if lines.last.len() >= LOG_LINES {
                        lines.last.pop_front();
                    }
                    lines.last.push_back(line.clone());
                });
            }
            change(&|lines| lines.ended = true);
        });
    }

    fn wait(&self, what: &str, so: impl Fn(&Lines) -> bool) {
        let lines = self.log.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.log.news.wait_timeout_while(lines, PATIENCE, |lines| !so(lines) && !lines.ended);
        let (lines, _) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(so(&lines), "the coordinator {what} not: {:#?}", lines.last);
    }

    /// Waits until it leads and listens.
    ///
    /// # Panics
    /// When it does not.
    pub fn ready(&self) {
        self.wait("gets ready", |lines| lines.ready);
    }

    /// Waits until it stands by, or leads.
    ///
    /// # Panics
    /// When it does neither.
    pub fn waits_or_leads(&self) {
        self.wait("comes up", |lines| lines.ready || lines.stands_by);
    }

    /// Whether it leads.
    #[must_use]
    pub fn leads(&self) -> bool {
        let lines = self.log.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.ready && !lines.ended
    }

    /// Whether it ended without being killed.
    ///
    /// # Panics
    /// When its process cannot be asked.
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().expect("a child can be asked").is_some())
    }

    /// The end of its log.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.log.lines.lock().unwrap_or_else(PoisonError::into_inner).last.iter().cloned().collect()
    }

    /// Kills it (`SIGKILL`), if it runs.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended already.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.kill();
    }
}
