//! The daemon's side of the control socket.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engine::migrate::status::Command;
use engine::transfer::{Registry, SessionInfo};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::Direction;

use super::{Answer, ControlError, Listed, MAX_REQUEST, Request, TIMEOUT};
use crate::daemon::Desk;

/// Clients at once: people and scripts on this host. More wait in the kernel.
const MAX_CLIENTS: usize = 8;
/// Pause after accept() failed, usually for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The bound socket; its file goes with it.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Binds the socket with mode 0600. What a daemon left that did not end well is replaced.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn bind(path: &Path) -> Result<Self, ControlError> {
        let failed = |source| ControlError::Listen { path: path.to_owned(), source };
        match std::fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(ControlError::Occupied { path: path.to_owned() });
            }
            Ok(_) => {
                if std::os::unix::net::UnixStream::connect(path).is_ok() {
                    return Err(ControlError::Taken { path: path.to_owned() });
                }
                std::fs::remove_file(path).map_err(failed)?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        // Made under a name that nobody knows and closed to others before it gets the one that everybody knows.
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}", std::process::id()));
        let temporary = PathBuf::from(temporary);
        let listener = UnixListener::bind(&temporary).map_err(failed)?;
        let opened = std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600))
            .and_then(|()| std::fs::rename(&temporary, path));
        if let Err(error) = opened {
            // What counts is why it failed.
            drop(std::fs::remove_file(&temporary));
            return Err(failed(error));
        }
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Answers clients until `stop`.
    pub async fn serve(self, registry: Registry, desk: Desk, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(MAX_CLIENTS));
        let clients = TaskTracker::new();
        loop {
            let accept = async {
                // The semaphore is never closed.
                let place = Arc::clone(&places).acquire_owned().await;
                (self.listener.accept().await, place)
            };
            tokio::select! {
                () = stop.cancelled() => break,
                (accepted, place) = accept => match accepted {
                    Ok((stream, _)) => {
                        let (registry, desk) = (registry.clone(), desk.clone());
                        clients.spawn(async move {
                            let _place = place;
                            match timeout(TIMEOUT, converse(stream, &registry, &desk)).await {
                                Ok(Ok(())) => {}
                                Ok(Err(error)) => tracing::debug!(%error, "a control client broke off"),
                                Err(_) => tracing::debug!("a control client took too long"),
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a control client");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        clients.close();
        clients.wait().await;
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // It may have been replaced or removed by an operator; the next daemon copes with what is left.
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "the control socket is gone already");
        }
    }
}

async fn converse(stream: UnixStream, registry: &Registry, desk: &Desk) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut request = Vec::new();
    BufReader::new(reader.take(MAX_REQUEST)).read_until(b'\n', &mut request).await?;
    let answer = match serde_json::from_slice(&request) {
        Ok(request) => answer(&request, registry, desk).await,
        Err(error) => {
            Answer::Error(format!("this is no request: {error}; use the commands of novaferry-agent"))
        }
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    writer.write_all(&line).await
}

/// What a request does.
pub async fn answer(request: &Request, registry: &Registry, desk: &Desk) -> Answer {
    match request {
        Request::List {} => Answer::Sessions(registry.list().iter().map(listed).collect()),
        Request::Cancel { session } => cancel(session, registry),
        Request::Vms {} => or_error(desk.list_vms().await, Answer::Vms),
        Request::Migrate(asked) => {
            or_error(desk.migrate(asked).await, |id| Answer::Migrating(id.to_string()))
        }
        Request::Migrations {} => or_error(desk.list().await, Answer::Migrations),
        Request::Migration { id } => {
            or_error(desk.find(id).await, |shown| Answer::Migration(Box::new(shown)))
        }
        Request::MigrationCancel { id } => or_error(desk.command(id, Command::Cancel).await, Answer::Asked),
        Request::MigrationTakeBack { id } => {
            or_error(desk.command(id, Command::TakeBack).await, Answer::Asked)
        }
        Request::MigrationCutover { id, cutover } => {
            or_error(desk.cutover(id, *cutover).await, Answer::Asked)
        }
        Request::MigrationFinalise { id } => {
            or_error(desk.command(id, Command::Finalise).await, Answer::Asked)
        }
        Request::MigrationResolve { id, keep } => {
            or_error(desk.command(id, Command::Resolve(*keep)).await, Answer::Asked)
        }
    }
}

fn or_error<T>(result: Result<T, String>, answer: impl FnOnce(T) -> Answer) -> Answer {
    result.map_or_else(Answer::Error, answer)
}

fn cancel(session: &str, registry: &Registry) -> Answer {
    if session.parse().is_ok_and(|id| registry.cancel(id)) {
        tracing::info!(%session, "cancelled through the control socket");
        return Answer::Cancelled(session.to_owned());
    }
    Answer::Error(format!(
        "no session {} runs here; `novaferry-agent session list` shows those that do",
        session.chars().take(64).collect::<String>()
    ))
}

fn listed(session: &SessionInfo) -> Listed {
    Listed {
        session: session.session.to_string(),
        generation: session.generation,
        peer: session.peer.clone(),
        volume: session.volume.clone(),
        direction: match session.direction {
            Direction::Push => "push",
            Direction::Pull => "pull",
        }
        .to_owned(),
        seconds: session.since.elapsed().as_secs(),
        logical_bytes: session.counters.size,
        settled_bytes: session.counters.settled,
        wire_bytes: session.counters.wire_total(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::client::ask;

    #[tokio::test]
    async fn clients_are_answered_and_nonsense_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let socket = ControlSocket::bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        let stop = CancellationToken::new();
        let desk = Desk::closed(folder.path());
        let server = tokio::spawn(socket.serve(Registry::new(4), desk, stop.clone()));
        assert_eq!(ask(&path, &Request::List {}).await.unwrap(), Answer::Sessions(Vec::new()));
        let cancel = Request::Cancel { session: "ab".repeat(16) };
        assert!(matches!(ask(&path, &cancel).await.unwrap(), Answer::Error(_)));
        let Answer::Error(closed) = ask(&path, &Request::Migrations {}).await.unwrap() else { panic!() };
        assert_eq!(closed, "the daemon is stopping; ask again when it runs");
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(&vec![b'x'; 10_000]).await.unwrap_or_default();
        let mut text = String::new();
        // The daemon stops reading at its limit, so it may reset the connection after its answer.
        drop(stream.read_to_string(&mut text).await);
        assert!(text.is_empty() || text.starts_with(r#"{"error":"this is no request"#), "{text}");
        stop.cancel();
        server.await.unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let live = ControlSocket::bind(&path).unwrap();
        assert!(matches!(ControlSocket::bind(&path), Err(ControlError::Taken { .. })));
        drop(live);
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(ControlSocket::bind(&path), Err(ControlError::Occupied { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
