//! Which QEMU this host starts VMs with. vmd alone knows its program, and asks it; here is remembered what it said, until
//! the program is another one.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hypervisor::specification::Accelerator;
use hypervisor::vmd::{HostStatus, VmdClient, VmdError};

/// QEMU's start takes a fifth of a second. The line is silent meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);
/// When vmd is asked again though its answer was none: each time it starts a QEMU.
const AGAIN: Duration = Duration::from_secs(300);
/// When it is asked again though its program is the same: it may be told to use another.
const SURE: Duration = Duration::from_secs(3600);

/// The QEMU of this host.
#[derive(Debug)]
pub(super) struct Qemu {
    vmd: PathBuf,
    said: Option<Said>,
}

/// What vmd said.
#[derive(Debug)]
struct Said {
    at: Instant,
    /// Empty when it said nothing of use.
    version: String,
    /// The program, if this user may look at it, and what its changes show in.
    program: Option<(PathBuf, Print)>,
}

type Print = (u64, u64, u64, i64);

fn print(data: &Metadata) -> Print {
    (data.dev(), data.ino(), data.len(), data.mtime())
}

async fn look(path: PathBuf) -> Option<(PathBuf, Print)> {
    let data = tokio::fs::metadata(&path).await.ok()?;
    Some((path, print(&data)))
}

impl Qemu {
    pub(super) fn new(vmd: PathBuf) -> Self {
        Self { vmd, said: None }
    }

    /// Its version, such as `10.0.2`; empty when there is none, or nobody says.
    pub(super) async fn version(&mut self) -> String {
        if let Some(said) = &self.said
            && said.is_good(Instant::now()).await
        {
            return said.version.clone();
        }
        let asked = tokio::time::timeout(PATIENCE, ask(&self.vmd)).await;
        let (version, program) = match asked {
            Ok(Ok(HostStatus { version: (major, minor, micro), program, .. })) => {
                let program = match program {
                    Some(path) => look(path).await,
                    None => None,
                };
                (format!("{major}.{minor}.{micro}"), program)
            }
            // It may be about to start, and asking costs nothing.
            Ok(Err(error @ VmdError::Talk { .. })) => {
                tracing::debug!(%error, "it is not known which QEMU this host has");
                self.said = None;
                return String::new();
            }
            Ok(Err(error)) => {
                tracing::info!(%error, "this host has no QEMU that VMs could be started with");
                (String::new(), None)
            }
            Err(_late) => {
                tracing::info!("novaferry-vmd takes too long to say which QEMU this host has");
                (String::new(), None)
            }
        };
        self.said = Some(Said { at: Instant::now(), version: version.clone(), program });
        version
    }
}

impl Said {
    async fn is_good(&self, now: Instant) -> bool {
        let age = now.duration_since(self.at);
        if self.version.is_empty() {
            return age < AGAIN;
        }
        let same = match &self.program {
            Some(known) => look(known.0.clone()).await.as_ref() == Some(known),
            None => true,
        };
        same && age < SURE
    }
}

async fn ask(vmd: &std::path::Path) -> Result<HostStatus, VmdError> {
    let vmd = VmdClient::connect(vmd).await?;
    match vmd.host(Accelerator::Tcg).await {
        // Some are made without it.
        Err(VmdError::Refused(_)) => vmd.host(Accelerator::Kvm).await,
        said => said,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use hypervisor::vmd::{Answer, Refusal, RefusalKind};
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::UnixListener;

    use super::*;

    /// A vmd that gives the same answer to all; says how often it was asked.
    fn vmd(socket: &Path, answer: &Answer) -> Arc<AtomicU32> {
        let listener = UnixListener::bind(socket).unwrap();
        let mut answer = serde_json::to_vec(answer).unwrap();
        answer.push(b'\n');
        let asked = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&asked);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = String::new();
                // Connecting alone asks nothing.
                if BufReader::new(&mut stream).read_line(&mut request).await.is_ok_and(|length| length > 0) {
                    count.fetch_add(1, Ordering::Relaxed);
                    drop(stream.write_all(&answer).await);
                }
            }
        });
        asked
    }

    #[tokio::test]
    async fn vmd_is_asked_again_when_its_program_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, program) = (folder.path().join("vmd.sock"), folder.path().join("qemu"));
        let mut qemu = Qemu::new(socket.clone());
        assert_eq!(qemu.version().await, "", "nobody listens");
        std::fs::write(&program, b"one").unwrap();
        let status =
            HostStatus { version: (10, 0, 2), program: Some(program.clone()), ..HostStatus::default() };
        let asked = vmd(&socket, &Answer::Host(status));
        for _ in 0..3 {
            assert_eq!(qemu.version().await, "10.0.2");
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        std::fs::write(&program, b"another").unwrap();
        for _ in 0..3 {
            assert_eq!(qemu.version().await, "10.0.2");
        }
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_vmd_without_a_qemu_is_not_asked_all_the_time() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("vmd.sock");
        let refusal = Refusal { kind: RefusalKind::Failed, message: "there is none".to_owned() };
        let asked = vmd(&socket, &Answer::Error(refusal));
        let mut qemu = Qemu::new(socket);
        for _ in 0..3 {
            assert_eq!(qemu.version().await, "");
        }
        assert_eq!(asked.load(Ordering::Relaxed), 2, "for each accelerator once");
    }
}
