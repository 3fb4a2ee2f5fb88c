//! Image files behind a private `qemu-nbd`.
//!
//! The agent binds the listening socket itself, in a folder that only it can enter, and passes it on
//! (systemd's socket activation protocol). So a connection made right after the start waits in the socket's queue
//! until the server is ready, and is refused or reset if the server ends instead: nothing polls, nothing sleeps.
//!
//! ```text
//! agent ── bind, listen ─► socket ─► sh (sets LISTEN_PID to its own id, then becomes qemu-nbd)
//!   └── first connection, kept open: qemu-nbd is not persistent and ends when its last client has gone,
//!       so that it never outlives an agent that was killed
//! ```
//!
//! QEMU locks the image by itself; a conflict is reported as [`volume::Kind::InUse`].

use std::ffi::{OsStr, OsString};
use std::fs::Permissions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStderr, Command};
use tokio::task::JoinHandle;

use crate::error::Error;
use crate::nbd::client::{ALLOCATION, Address, Client, DIRTY_BITMAP, MAX_CONNECTIONS, Options};
use crate::nbd::{Access, NbdVolume, Uri};
use crate::qemu_img;
use crate::tool::{self, Tail};

const PROGRAM: &str = "qemu-nbd";
/// Moves the socket from stdin, where a parent can put it without `unsafe`, to descriptor 3, where the protocol
/// wants it, and names the process id, which is known only here. `exec` keeps the id.
const ACTIVATE: &str = r#"export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@" 3<&0 0</dev/null"#;
/// How long a server may take to end, which includes writing out its metadata.
const END_TIMEOUT: Duration = Duration::from_secs(30);
/// QEMU counts in sectors of this many bytes.
const SECTOR: u64 = 512;

/// How the server reaches the file, best first. O_DIRECT keeps the host's page cache out of it; some file systems
/// lack it, and some kernels or builds lack io_uring.
const ATTEMPTS: [(&str, &str); 3] = [("none", "io_uring"), ("none", "native"), ("writeback", "threads")];

/// What to export, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exporter {
    path: PathBuf,
    format: String,
    access: Access,
    connections: usize,
    bitmap: Option<String>,
    fresh: bool,
}

impl Exporter {
    /// Exports the image at `path`, of the named format, for reading; with everything below it in its chain.
    #[must_use]
    pub fn read_only(path: &Path, format: &str) -> Self {
        Self::new(path, format, Access::ReadOnly)
    }

    /// Exports the image at `path`, of the named format, for writing.
    #[must_use]
    pub fn writable(path: &Path, format: &str) -> Self {
        Self::new(path, format, Access::ReadWrite)
    }

    /// Creates a qcow2 image of exactly `size` bytes and exports it for writing. The first volume opened on the
    /// export knows that it reads as zeros.
    ///
    /// # Errors
    /// Those of [`qemu_img::create_qcow2`].
    pub async fn create_qcow2(path: &Path, size: u64) -> Result<Self, Error> {
        qemu_img::create_qcow2(path, size).await?;
        Ok(Self { fresh: true, ..Self::writable(path, "qcow2") })
    }

    fn new(path: &Path, format: &str, access: Access) -> Self {
        Self {
            path: path.to_owned(),
            format: format.to_owned(),
            access,
            connections: 4,
            bitmap: None,
            fresh: false,
        }
    }

    /// Connections that each volume makes (4 when not set; at most [`MAX_CONNECTIONS`]).
    #[must_use]
    pub fn connections(self, connections: usize) -> Self {
        Self { connections: connections.clamp(1, MAX_CONNECTIONS), ..self }
    }

    /// Exports a stored dirty bitmap too.
    #[must_use]
    pub fn bitmap(self, name: &str) -> Self {
        Self { bitmap: Some(name.to_owned()), ..self }
    }

    /// Starts the server and waits until it serves.
    ///
    /// # Errors
    /// `InUse` when the image is locked; `ToolMissing`; `NotFound`; `Unsupported` for a raw file whose size is no
    /// multiple of 512 (QEMU would round it up; read it as a file instead); `ToolFailed` with the server's words.
    pub async fn start(self) -> Result<Export, Error> {
        tool::check_format(&self.format)?;
        let image = tool::image_options(&self.path, &self.format)?;
        self.check_size()?;
        let mut failure = None;
        for (cache, aio) in ATTEMPTS {
            let arguments = self.arguments(cache, aio, &image);
            match Server::start(&arguments).await {
                Ok((server, keeper)) => {
                    tracing::debug!(image = %self.path.display(), cache, aio, "qemu-nbd serves the image");
                    let fresh = AtomicBool::new(self.fresh);
                    return Ok(Export { keeper, server, exporter: self, fresh });
                }
                Err(Error::ToolFailed { stderr, .. }) if tool::says_locked(&stderr) => {
                    return Err(Error::InUse { path: self.path, stderr });
                }
                Err(error @ Error::ToolFailed { .. }) => {
                    tracing::debug!(image = %self.path.display(), cache, aio, %error, "trying another way to open");
                    failure = Some(error);
                }
                Err(other) => return Err(other),
            }
        }
        Err(failure.expect("there is at least one attempt"))
    }

    fn check_size(&self) -> Result<(), Error> {
        let path = &self.path;
        let data = path
            .metadata()
            .map_err(|source| Error::System { what: format!("look at image {}", path.display()), source })?;
        if self.format == "raw" && data.is_file() && !data.len().is_multiple_of(SECTOR) {
            return Err(Error::Unsupported {
                target: path.display().to_string(),
                what: format!(
                    "be exported at its exact size of {} bytes: QEMU rounds up to {SECTOR}",
                    data.len()
                ),
                advice: "open the raw file directly, without qemu-nbd",
            });
        }
        Ok(())
    }

    fn arguments(&self, cache: &str, aio: &str, image: &OsStr) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec![
            // Unlimited: only this user can reach the socket, and a client beyond a limit would wait without a word.
            "--shared=0".into(),
            format!("--cache={cache}").into(),
            format!("--aio={aio}").into(),
            "--detect-zeroes=off".into(),
        ];
        arguments.push(match self.access {
            Access::ReadOnly => "--read-only".into(),
            Access::ReadWrite => "--discard=unmap".into(),
        });
        if let Some(bitmap) = &self.bitmap {
            arguments.push(format!("--bitmap={bitmap}").into());
        }
        arguments.extend(["--image-opts".into(), "--".into(), image.to_owned()]);
        arguments
    }
}

/// A running server for one image. Dropping it ends the server at once (what was flushed is safe) and waits until
/// the image's lock is free; [`Export::close`] ends it in order.
#[derive(Debug)]
pub struct Export {
    /// Before `server`, so that the server's last client says goodbye first.
    keeper: Client,
    server: Server,
    exporter: Exporter,
    fresh: AtomicBool,
}

impl Export {
    /// Where the export is, for any NBD client that may enter the agent's private folder.
    #[must_use]
    pub fn uri(&self) -> Uri {
        Uri { address: self.server.address(), export: String::new() }
    }

    /// The server's process id while it runs.
    #[must_use]
    pub fn process_id(&self) -> Option<u32> {
        self.server.child.id()
    }

    /// Opens the export as a volume, over as many connections as it was started for.
    ///
    /// # Errors
    /// Those of [`NbdVolume::open`]; what the server said when it has ended.
    pub async fn volume(&self) -> Result<NbdVolume, Error> {
        let mut options = Options { connections: self.exporter.connections, ..Options::default() };
        options.contexts = vec![ALLOCATION.to_owned()];
        options.contexts.extend(self.exporter.bitmap.iter().map(|name| format!("{DIRTY_BITMAP}{name}")));
        let volume = NbdVolume::open(&self.uri(), self.exporter.access, &options).await?;
        // Only the first volume can rely on it: the next one may find what the first has written.
        if self.fresh.swap(false, Ordering::AcqRel) { Ok(volume.freshly_created()) } else { Ok(volume) }
    }

    /// Whether the server has ended by itself, and what it said: the reason behind a lost connection.
    ///
    /// # Errors
    /// When its state cannot be asked for.
    pub fn ended(&mut self) -> Result<Option<Error>, Error> {
        let status =
            self.server.child.try_wait().map_err(|source| system("ask for the state of qemu-nbd", source))?;
        Ok(status.map(|status| tool::failed(PROGRAM, status, self.server.said())))
    }

    /// Ends the server in order: it drains its requests and closes the image. Flush first if the data matters.
    ///
    /// # Errors
    /// When it fails on its way out, or has failed before; when it does not end within half a minute (then it is
    /// killed).
    pub async fn close(self) -> Result<(), Error> {
        let Self { keeper, mut server, .. } = self;
        if let Some(id) = server.child.id() {
            terminate(id)?;
        }
        let status = server.wait().await?;
        drop(keeper);
        if status.success() { Ok(()) } else { Err(tool::failed(PROGRAM, status, server.said())) }
    }
}

fn system(what: &str, source: std::io::Error) -> Error {
    Error::System { what: what.to_owned(), source }
}

fn pid(id: u32) -> Option<Pid> {
    i32::try_from(id).ok().and_then(Pid::from_raw)
}

fn terminate(id: u32) -> Result<(), Error> {
    let Some(pid) = pid(id) else { return Ok(()) };
    kill_process(pid, Signal::TERM).map_err(|errno| system("end qemu-nbd", errno.into()))
}

/// The process, its folder, and the end of what it said.
#[derive(Debug)]
struct Server {
    child: Child,
    said: Arc<Mutex<Tail>>,
    listener: Option<JoinHandle<()>>,
    socket: PathBuf,
    _folder: TempDir,
}

impl Server {
    /// Starts a server and makes the connection that keeps it alive.
    async fn start(arguments: &[OsString]) -> Result<(Self, Client), Error> {
        let program = tool::find(PROGRAM)?;
        let folder = tempfile::Builder::new()
            .prefix("novaferry-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .map_err(|source| system("make a private folder for qemu-nbd's socket", source))?;
        let socket = folder.path().join("nbd");
        let listener = UnixListener::bind(&socket)
            .map_err(|source| system(&format!("listen on {}", socket.display()), source))?;
        let mut child = Command::new("/bin/sh")
            .args(["-c", ACTIVATE, PROGRAM])
            .arg(program)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C in a terminal is for the agent, which drains first.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| system("start qemu-nbd", source))?;
        let said = Arc::new(Mutex::new(Tail::default()));
        let listener = child.stderr.take().map(|stderr| tokio::spawn(follow(stderr, Arc::clone(&said))));
        let mut server = Self { child, said, listener, socket, _folder: folder };

        let options = Options { connections: 1, in_flight: 1, contexts: Vec::new(), ..Options::default() };
        match Client::connect(&server.address(), "", &options).await {
            Ok(keeper) => Ok((server, keeper)),
            Err(error @ (Error::Lost { .. } | Error::Connect { .. })) => {
                let status = server.wait().await?;
                if status.success() { Err(error) } else { Err(tool::failed(PROGRAM, status, server.said())) }
            }
            Err(other) => Err(other),
        }
    }

    fn address(&self) -> Address {
        Address::Unix(self.socket.clone())
    }

    fn said(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).text()
    }

    /// Waits for the end of the process and of what it says.
    async fn wait(&mut self) -> Result<ExitStatus, Error> {
        let work = async {
            let status = self.child.wait().await?;
            if let Some(listener) = self.listener.take() {
                listener.await?;
            }
            Ok::<_, std::io::Error>(status)
        };
        match tokio::time::timeout(END_TIMEOUT, work).await {
            Ok(status) => status.map_err(|source| system("wait for qemu-nbd", source)),
            Err(_) => {
                self.child.kill().await.map_err(|source| system("end qemu-nbd", source))?;
                Err(Error::ToolTimeout { program: PROGRAM, seconds: END_TIMEOUT.as_secs() })
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(pid) = self.child.id().and_then(pid) else { return };
        // Errors here mean that the process is gone already. SIGKILL takes effect within milliseconds; waiting for
        // it here means that whoever opens the image next does not find it locked. NOWAIT leaves the status to
        // tokio's `try_wait`, which takes the process from the list.
        if self.child.start_kill().is_ok() {
            let _ = rustix::io::retry_on_intr(|| {
                waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
            });
            drop(self.child.try_wait());
        }
    }
}

/// Keeps the end of what the server says, and never lets it wait for a reader.
async fn follow(mut stderr: ChildStderr, said: Arc<Mutex<Tail>>) {
    let mut piece = [0; 4096];
    while let Ok(n @ 1..) = stderr.read(&mut piece).await {
        said.lock().unwrap_or_else(PoisonError::into_inner).push(&piece[..n]);
    }
}
