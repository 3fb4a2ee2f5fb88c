//! The socket: who may speak, and a line each way.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hypervisor::vmd::{Answer, MAX_REQUEST, Refusal, RefusalKind, Request};
use rustix::net::sockopt::socket_peercred;

use crate::config::Config;
use crate::keeper::{Keeper, refusal};

/// Requests at once: the agent's, of a few VMs, and people's. Beyond that, connections are refused.
const MAX_CLIENTS: usize = 32;
/// How long a client may take to send its request or take its answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often VMs that have ended are cleaned up after, and logs capped.
const HOUSEKEEPING: Duration = Duration::from_secs(30);

/// Answers requests until the process is ended; any moment is good for that.
pub(crate) fn serve(keeper: Keeper) -> io::Result<()> {
    let config = keeper.config();
    let listener = bind(config)?;
    let keeper = Arc::new(keeper);
    let housekeeper = Arc::clone(&keeper);
    std::thread::Builder::new().name("housekeeping".to_owned()).spawn(move || {
        loop {
            housekeeper.keep_house();
            std::thread::sleep(HOUSEKEEPING);
        }
    })?;
    tracing::info!(socket = %keeper.config().socket.display(), "answering");
    sd_notify::notify(&[sd_notify::NotifyState::Ready])?;
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a client");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let place = Place::take(&clients);
        let keeper = Arc::clone(&keeper);
        let spawned = std::thread::Builder::new().name("client".to_owned()).spawn(move || {
            if let Err(error) = converse(stream, &keeper, place.is_some()) {
                tracing::debug!(%error, "a client broke off");
            }
            drop(place);
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "cannot serve a client");
        }
    }
}

/// One of the clients that are served at once.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(clients: &Arc<AtomicUsize>) -> Option<Self> {
        let place = Self(Arc::clone(clients));
        (clients.fetch_add(1, Ordering::Relaxed) < MAX_CLIENTS).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Listens with the agent's group allowed in. Who else gets in is told no by [`may_ask`].
fn bind(config: &Config) -> io::Result<UnixListener> {
    let path = &config.socket;
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(io::Error::other(format!("{} is there and is no socket", path.display())));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(io::Error::other(format!("another vmd answers at {}", path.display())));
        }
        Ok(_) => std::fs::remove_file(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // Closed to others before it gets the name that everybody knows.
    let temporary = with_suffix(path, &format!(".{}", std::process::id()));
    let listener = UnixListener::bind(&temporary)?;
    std::os::unix::fs::chown(&temporary, None, Some(config.agent_gid))?;
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o660))?;
    std::fs::rename(&temporary, path)?;
    Ok(listener)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// Root, vmd's own user, the agent's user and group.
fn may_ask(config: &Config, uid: u32, gid: u32) -> bool {
    uid == 0
        || uid == config.own_uid
        || config.agent_uid == Some(uid)
        || (config.agent_gid_may_ask && config.agent_gid == gid)
}

fn converse(mut stream: UnixStream, keeper: &Keeper, has_place: bool) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let peer = socket_peercred(&stream)?;
    let (uid, gid) = (peer.uid.as_raw(), peer.gid.as_raw());
    let answer = if !may_ask(keeper.config(), uid, gid) {
        tracing::warn!(uid, gid, "refused a peer");
        let why = format!("user {uid} may not ask; be root, --agent-user or --agent-group");
        Answer::Error(refusal(RefusalKind::Forbidden, why))
    } else if !has_place {
        Answer::Error(refusal(RefusalKind::Failed, "too many requests at once; try again"))
    } else {
        let mut line = Vec::new();
        // One byte more than is accepted, to tell a request that is too long from one that is not.
        BufReader::new((&stream).take(MAX_REQUEST as u64 + 1)).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            // Somebody looked whether vmd is there.
            return Ok(());
        }
        read(&line).map_or_else(Answer::Error, |request| keeper.answer(request))
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn read(line: &[u8]) -> Result<Request, Refusal> {
    if line.len() > MAX_REQUEST {
        return Err(refusal(RefusalKind::Invalid, format!("a request has at most {MAX_REQUEST} bytes")));
    }
    serde_json::from_slice(line).map_err(|error| {
        refusal(
            RefusalKind::Invalid,
            format!("this is no request: {error}; use the same release of agent and vmd"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::FileConfig;

    #[test]
    fn only_some_may_ask() {
        let text = "agent_user = \"4000\"\nagent_group = \"4001\"";
        let mut config = Config::new(toml::from_str::<FileConfig>(text).unwrap()).unwrap();
        config.own_uid = 4002;
        for (uid, gid) in [(0, 9), (4000, 9), (9, 4001), (4002, 9)] {
            assert!(may_ask(&config, uid, gid), "{uid} {gid}");
        }
        assert!(!may_ask(&config, 9, 9) && !may_ask(&config, 4001, 4000));
        config.agent_gid_may_ask = false;
        assert!(!may_ask(&config, 9, 4001));
    }

    #[test]
    fn hostile_lines_are_refused() {
        let long = vec![b' '; MAX_REQUEST + 1];
        let deep = [vec![b'['; 100_000], b"\n".to_vec()].concat();
        let lines: [&[u8]; 8] = [
            b"\n",
            b"{}",
            br#"{"command":"list","x":1}"#,
            br#"{"command":"status"}"#,
            br#"{"command":"start","request":{}}"#,
            b"\xff\xfe\n",
            &long,
            &deep,
        ];
        for line in lines {
            assert_eq!(read(line).unwrap_err().kind, RefusalKind::Invalid);
        }
        assert_eq!(read(b"{\"command\":\"list\"}\n").unwrap(), Request::List {});
    }
}
