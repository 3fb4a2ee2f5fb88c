//! A PostgreSQL server of a test's own: in a temporary folder, behind a unix socket, gone with the test.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Far beyond what a start takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// The user that Debian's package makes. PostgreSQL refuses to run as root.
const USER: &str = "postgres";
/// Environment that names what must be there (see `tests/optional.txt`).
const REQUIRE: &str = "NOVAFERRY_REQUIRE";

/// A server.
#[derive(Debug)]
pub struct Server {
    folder: tempfile::TempDir,
    bin: PathBuf,
    child: Option<Child>,
}

/// Where the programs are, if they are there: the newest release of Debian's packages.
fn programs() -> Option<PathBuf> {
    let releases = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let folders = releases.filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    folders.filter(|bin| bin.join("initdb").exists()).max()
}

impl Server {
    /// Starts one. None, told by the test's name, where there is no PostgreSQL and it is not required.
    ///
    /// # Panics
    /// When it is required and not there, or does not start.
    #[must_use]
    pub fn start(test: &str) -> Option<Self> {
        let Some(bin) = programs() else {
            let required = std::env::var(REQUIRE).unwrap_or_default();
            let needed = required.split(',').any(|name| name == "postgresql");
            assert!(!needed, "{test}: no PostgreSQL; install the package postgresql");
            #[expect(clippy::print_stdout, reason = "a skipped test says so by name")]
            {
                println!("SKIP {test}: PostgreSQL is not installed");
            }
            return None;
        };
        let folder = tempfile::Builder::new().prefix("novaferry-pg").tempdir().expect("a folder");
        let mut server = Self { folder, bin, child: None };
        server.initialise();
        server.resume();
        Some(server)
    }

    /// A command of PostgreSQL as a user that it accepts, ended with this process.
    fn command(&self, program: &str) -> Command {
        let program = self.bin.join(program);
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if rustix::process::geteuid().is_root() {
            command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]);
        }
        command.arg("--").arg(program).current_dir("/");
        command
    }

    fn initialise(&self) {
        std::fs::set_permissions(self.folder.path(), PermissionsExt::from_mode(0o777)).expect("permissions");
        let mut command = self.command("initdb");
        command.args(["--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C", "-U", USER, "-D"]);
        done(command.arg(self.data()).output(), "initdb");
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The folder of its socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        self.folder.path()
    }

    /// The address of a database.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}@localhost/{database}?host={}", self.socket().display())
    }

    /// Makes an empty database.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn make(&self, database: &str) {
        let mut command = self.command("createdb");
        done(command.arg("-h").arg(self.socket()).args(["-U", USER, database]).output(), "createdb");
    }

    /// Starts it, if it does not run.
    ///
    /// # Panics
    /// When it does not start.
    pub fn resume(&mut self) {
        if self.child.is_some() {
            return;
        }
        let log = std::fs::File::create(self.folder.path().join("log")).expect("a log");
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).arg("-k").arg(self.socket());
        command.args(["-c", "listen_addresses=", "-c", "fsync=off"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        self.child = Some(child.expect("setpriv"));
        let began = Instant::now();
        loop {
            let mut ready = self.command("pg_isready");
            let ready = ready.arg("-q").arg("-h").arg(self.socket()).args(["-U", USER]).status();
            if ready.is_ok_and(|status| status.success()) {
                return;
            }
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(began.elapsed() < PATIENCE, "PostgreSQL does not start: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it as by a crash (`SIGQUIT`: an immediate shutdown; the next start recovers from the log).
    ///
    /// # Panics
    /// When it cannot be ended.
    pub fn crash(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a process");
        rustix::process::kill_process(pid, rustix::process::Signal::QUIT).expect("a signal");
        child.wait().expect("its end");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.crash();
    }
}

fn done(output: io::Result<Output>, what: &str) {
    let output = output.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
}
