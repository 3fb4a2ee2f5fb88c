//! Transfers from end to end: dial, shake hands, run attempts until the volume is sealed or nothing more can be done.

mod accept;
mod dialled;
mod grant;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tunnel::{Event, Inbox, PeerName, Transport, TunnelHandle};
use volume::SessionId;
use wire::{Control, FailCode, Mode, VolumeFormat};

pub use accept::{Accepted, Registry, SessionInfo, accept};
pub use dialled::{Dialler, copy_locally, copy_locally_and_keep, pull, push, push_and_keep};

use crate::ends::LocalVolume;
use crate::error::EngineError;
use crate::process::Process;
use crate::progress::{Progress, Snapshot};
use receipt::{Receipt, ReceiptSigner};

/// How long each step of the handshake may take. Opening a target replays its journal: seconds for terabytes.
const HANDSHAKE: Duration = Duration::from_secs(60);

/// A volume in a pool of another host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RemoteVolume {
    /// Pool there.
    pub pool: String,
    /// Volume in it.
    pub name: String,
}

/// What a copy is to be.
#[derive(Clone, Debug)]
pub struct CopyOptions {
    /// What the target may hold.
    pub mode: Mode,
    /// How the target is stored.
    pub format: VolumeFormat,
    /// Compression.
    pub level: reduce::Mode,
    /// Read everything back before sealing.
    pub readback: bool,
    /// Leave internal snapshots and bitmaps of a source image behind.
    pub drop_snapshots: bool,
    /// Where senders and receivers on this host keep what survives them.
    pub state: PathBuf,
    /// How long to keep trying to reach the peer after the tunnel was lost, without any progress.
    pub patience: Duration,
}

/// What every transfer on this host needs.
#[derive(Clone, Debug)]
pub struct Context {
    /// The process.
    pub process: Process,
    /// What was asked for.
    pub options: CopyOptions,
    /// Counters, for whoever shows them.
    pub progress: Arc<Progress>,
    /// Stop soon: make what is in flight durable, stay resumable.
    pub stop: CancellationToken,
    /// Stop now.
    pub cancel: CancellationToken,
    /// Who signs receipts of volumes that are received here.
    pub signer: Option<Arc<ReceiptSigner>>,
}

/// What became of a transfer.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The receipt.
    pub receipt: Receipt,
    /// The counters at the end.
    pub counters: Snapshot,
    /// Time from beginning to end.
    pub elapsed: Duration,
    /// CPU seconds of the sending process meanwhile, if known.
    pub cpu_tx: Option<Duration>,
    /// CPU seconds of the receiving process meanwhile, if known.
    pub cpu_rx: Option<Duration>,
    /// An earlier process had begun it.
    pub resumed: bool,
    /// How it travelled; within this process for a local copy.
    pub transport: Transport,
    /// The other host by its certificate; none for a local copy.
    pub peer: Option<PeerName>,
    /// The session that did it.
    pub session: SessionId,
}

/// Waits for a control frame; a failure of the peer, a stop and silence are errors.
async fn next_control(inbox: &Inbox, stop: &CancellationToken) -> Result<Control, EngineError> {
    let wait = async {
        loop {
            match inbox.recv().await {
                Some(Event::Control(Control::Fail(fail))) => {
                    return Err(session::SessionError::Peer { code: fail.code, detail: fail.detail }.into());
                }
                Some(Event::Control(Control::Drain)) => return Err(session::SessionError::Drained.into()),
                Some(Event::Control(frame)) => return Ok(frame),
                Some(Event::Closed(error)) => return Err(error.into()),
                Some(Event::LaneUp { .. } | Event::LaneTook { .. } | Event::LaneDown { .. }) => {}
                None => return Err(EngineError::Interrupted),
            }
        }
    };
    tokio::select! {
        frame = wait => frame,
        () = stop.cancelled() => Err(EngineError::Interrupted),
        () = tokio::time::sleep(HANDSHAKE) => {
            Err(session::SessionError::Peer { code: FailCode::TimedOut, detail: "no answer to the handshake".to_owned() }.into())
        }
    }
}

/// Sends a control frame of the handshake; when the tunnel is over, the error says why.
async fn say(handle: &TunnelHandle, inbox: &Inbox, frame: Control) -> Result<(), EngineError> {
    match tokio::time::timeout(HANDSHAKE, handle.send(frame)).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(_closed)) => {}
        Err(_elapsed) => {
            let detail = "the peer does not read what it is told".to_owned();
            return Err(session::SessionError::Peer { code: FailCode::TimedOut, detail }.into());
        }
    }
    while let Some(event) = inbox.recv().await {
        match event {
            Event::Closed(error) => return Err(error.into()),
            Event::Control(Control::Fail(fail)) => {
                return Err(session::SessionError::Peer { code: fail.code, detail: fail.detail }.into());
            }
            _ => {}
        }
    }
    Err(EngineError::Interrupted)
}

/// A local volume as the target of a pull or a local copy.
#[derive(Clone, Debug)]
pub struct LocalTarget {
    /// Which.
    pub volume: LocalVolume,
    /// Who owns it.
    pub owner: String,
    /// Who receives, in receipts.
    pub receiver: String,
}
