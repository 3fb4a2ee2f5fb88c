//! Asking vmd.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::{Answer, FenceStatus, HostStatus, MAX_ANSWER, MAX_REQUEST, Refusal, Request, VmStatus};
use crate::specification::{Accelerator, StartRequest};

/// Patience with what vmd does at once: it answers in milliseconds, but a disk that is flushed may take seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// Patience with a start or stop; vmd gives up before.
const LONG_PATIENCE: Duration = Duration::from_secs(150);

/// Why vmd did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmdError {
    /// It cannot be talked to. Whether it did what was asked is unknown.
    #[error("cannot talk to novaferry-vmd at {}; check that it runs and that this user may", .path.display())]
    Talk {
        /// Its socket.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// It did not answer in time. Whether it did what was asked is unknown.
    #[error("novaferry-vmd did not answer within {seconds} s; look at its log")]
    Timeout {
        /// The limit in seconds.
        seconds: u64,
    },
    /// The answer is not one to what was asked.
    #[error("the answer of novaferry-vmd was not understood; use the same release of both programs")]
    Answer {
        /// Why not, where it could not be read.
        source: Option<serde_json::Error>,
    },
    /// The request is longer than vmd accepts.
    #[error("the request is {found} bytes long, at most {MAX_REQUEST} are accepted")]
    TooLong {
        /// Its length.
        found: usize,
    },
    /// It said no.
    #[error("{}", .0.message)]
    Refused(Refusal),
}

impl VmdError {
    /// What vmd said, when it said no.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            Self::Talk { .. } | Self::Timeout { .. } | Self::Answer { .. } | Self::TooLong { .. } => None,
        }
    }
}

/// A vmd. Holds no connection: each request makes its own, so a vmd that is restarted is not noticed.
#[derive(Clone, Debug)]
pub struct VmdClient {
    path: PathBuf,
}

impl VmdClient {
    /// A vmd that answers at this socket.
    ///
    /// # Errors
    /// [`VmdError::Talk`] when nobody listens there.
    pub async fn connect(path: &Path) -> Result<Self, VmdError> {
        let client = Self { path: path.to_owned() };
        client.open().await?;
        Ok(client)
    }

    async fn open(&self) -> Result<UnixStream, VmdError> {
        UnixStream::connect(&self.path).await.map_err(|source| self.talk(source))
    }

    fn talk(&self, source: std::io::Error) -> VmdError {
        VmdError::Talk { path: self.path.clone(), source }
    }

    /// Starts a VM; returns when its QMP socket answers.
    ///
    /// # Errors
    /// [`VmdError`], as for all requests. [`VmdError::Refused`] with the end of QEMU's stderr when it did not come up.
    pub async fn start(&self, request: StartRequest) -> Result<VmStatus, VmdError> {
        self.vm(&Request::Start { request: Box::new(request) }, LONG_PATIENCE).await
    }

    /// Puts a VM in place without starting it.
    ///
    /// # Errors
    /// [`VmdError`].
    pub async fn define(&self, request: StartRequest) -> Result<VmStatus, VmdError> {
        self.vm(&Request::Define { request: Box::new(request) }, PATIENCE).await
    }

    /// How a VM is.
    ///
    /// # Errors
    /// [`VmdError`].
    pub async fn status(&self, vm: &str) -> Result<VmStatus, VmdError> {
        self.vm(&Request::Status { vm: vm.to_owned() }, PATIENCE).await
    }

    /// How all VMs are.
    ///
    /// # Errors
    /// [`VmdError`].
    pub async fn list(&self) -> Result<Vec<VmStatus>, VmdError> {
        match self.ask(&Request::List {}, PATIENCE).await? {
            Answer::Vms(vms) => Ok(vms),
            other => Err(unexpected(other)),
        }
    }

    /// Ends a VM's QEMU; with `kill`, without flushing its disks.
    ///
    /// # Errors
    /// [`VmdError`].
    pub async fn stop(&self, vm: &str, kill: bool) -> Result<VmStatus, VmdError> {
        self.vm(&Request::Stop { vm: vm.to_owned(), kill }, LONG_PATIENCE).await
    }

    /// Forgets a VM that does not run.
    ///
    /// # Errors
    /// [`VmdError`].
    pub async fn forget(&self, vm: &str) -> Result<(), VmdError> {
        self.done(&Request::Forget { vm: vm.to_owned() }).await
    }

    /// Makes it durable that this host must not start the VM at this generation or an older one. Repeating it does no
    /// harm.
    ///
    /// # Errors
    /// [`VmdError`].
    pub async fn fence(
        &self,
        vm: &str,
        generation: u64,
        files: Vec<PathBuf>,
    ) -> Result<FenceStatus, VmdError> {
        match self.ask(&Request::Fence { vm: vm.to_owned(), generation, files }, PATIENCE).await? {
            Answer::Fence(fence) => Ok(fence),
            other => Err(unexpected(other)),
        }
    }

    /// Undoes the fence of exactly this generation. Repeating it does no harm.
    ///
    /// # Errors
    /// [`VmdError`].
    pub async fn unfence(&self, vm: &str, generation: u64) -> Result<(), VmdError> {
        self.done(&Request::Unfence { vm: vm.to_owned(), generation }).await
    }

    /// All fences.
    ///
    /// # Errors
    /// [`VmdError`].
    pub async fn fences(&self) -> Result<Vec<FenceStatus>, VmdError> {
        match self.ask(&Request::Fences {}, PATIENCE).await? {
            Answer::Fences(fences) => Ok(fences),
            other => Err(unexpected(other)),
        }
    }

    /// Interrupts the post-copy that brings a VM here, also while its QEMU answers nothing else.
    ///
    /// # Errors
    /// [`VmdError`]. [`VmdError::Refused`] when QEMU says no, or vmd is not connected to it.
    pub async fn migrate_pause(&self, vm: &str) -> Result<(), VmdError> {
        self.done(&Request::MigratePause { vm: vm.to_owned() }).await
    }

    /// Lets a VM whose post-copy is interrupted listen again, at this name in the folder of its sockets.
    ///
    /// # Errors
    /// As [`Self::migrate_pause`].
    pub async fn migrate_recover(&self, vm: &str, socket: &str) -> Result<(), VmdError> {
        self.done(&Request::MigrateRecover { vm: vm.to_owned(), socket: socket.to_owned() }).await
    }

    /// What this host's QEMU can run.
    ///
    /// # Errors
    /// [`VmdError`]. [`VmdError::Refused`] when there is no QEMU, or it does not start so.
    pub async fn host(&self, accelerator: Accelerator) -> Result<HostStatus, VmdError> {
        match self.ask(&Request::Host { accelerator }, PATIENCE).await? {
            Answer::Host(status) => Ok(status),
            other => Err(unexpected(other)),
        }
    }

    async fn vm(&self, request: &Request, patience: Duration) -> Result<VmStatus, VmdError> {
        match self.ask(request, patience).await? {
            Answer::Vm(status) => Ok(status),
            other => Err(unexpected(other)),
        }
    }

    async fn done(&self, request: &Request) -> Result<(), VmdError> {
        match self.ask(request, PATIENCE).await? {
            Answer::Done {} => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    async fn ask(&self, request: &Request, patience: Duration) -> Result<Answer, VmdError> {
        let late = VmdError::Timeout { seconds: patience.as_secs() };
        tokio::time::timeout(patience, self.converse(request)).await.ok().unwrap_or(Err(late))
    }

    async fn converse(&self, request: &Request) -> Result<Answer, VmdError> {
        let mut line =
            serde_json::to_vec(request).map_err(|error| VmdError::Answer { source: Some(error) })?;
        line.push(b'\n');
        if line.len() > MAX_REQUEST {
            return Err(VmdError::TooLong { found: line.len() });
        }
        let mut stream = self.open().await?;
        // A daemon that refuses this peer closes before it has read: what it said then is worth more than the error.
        let sent = stream.write_all(&line).await;
        let mut answer = Vec::new();
        let mut reader = BufReader::new((&mut stream).take(MAX_ANSWER as u64));
        let read = reader.read_until(b'\n', &mut answer).await;
        if answer.is_empty() {
            let ended = || std::io::ErrorKind::UnexpectedEof.into();
            return Err(self.talk(sent.err().or_else(|| read.err()).unwrap_or_else(ended)));
        }
        serde_json::from_slice(&answer).map_err(|error| VmdError::Answer { source: Some(error) })
    }
}

fn unexpected(answer: Answer) -> VmdError {
    match answer {
        Answer::Error(refusal) => VmdError::Refused(refusal),
        Answer::Vm(_)
        | Answer::Vms(_)
        | Answer::Fence(_)
        | Answer::Fences(_)
        | Answer::Host(_)
        | Answer::Done {} => VmdError::Answer { source: None },
    }
}
