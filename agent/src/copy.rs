//! `copy`: from one volume to another, over a network or within this host.

pub(crate) mod receipt;
mod rehearsal;

use std::io::IsTerminal;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use engine::ends::LocalVolume;
use engine::process::{Process, SessionLimits};
use engine::progress::Progress;
use engine::transfer::{self, Context, CopyOptions, Dialler, LocalTarget, RemoteVolume};
use hypervisor::nbd::Uri;
use tokio_util::sync::CancellationToken;
use tunnel::{DialOptions, PeerName, Profile, TransportChoice};
use wire::{Mode, VolumeFormat};

use crate::address::{RemoteAddress, VolumeAddress};
use crate::credentials;
use crate::failure::Failure;
use crate::output::{self, Format, progress, summary::Summary};
use crate::{signals, state};
use pki::Identity;

/// Owner and receiver in the receipt of a copy within this host without an identity.
const LOCAL: &str = "local";

/// What `copy` was asked for: checked, nothing opened.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which way.
    pub route: Route,
    /// Folder of the identity.
    pub identity: Option<PathBuf>,
    /// Refuse any other host.
    pub peer: Option<PeerName>,
    /// QUIC or TCP.
    pub transport: TransportChoice,
    /// Which network.
    pub profile: Profile,
    /// Connections with data.
    pub connections: u8,
    /// Local addresses for them.
    pub via: Vec<IpAddr>,
    /// Bytes a second.
    pub limit: Option<u64>,
    /// Compression.
    pub compress: reduce::Mode,
    /// What the target may hold.
    pub mode: Mode,
    /// Read everything back.
    pub readback: bool,
    /// How the target is stored.
    pub target_format: VolumeFormat,
    /// Leave internal snapshots and bitmaps behind.
    pub drop_snapshots: bool,
    /// Where to write the receipt besides the state folder.
    pub receipt: Option<PathBuf>,
    /// State folder.
    pub state: Option<PathBuf>,
    /// How long to keep dialling without progress.
    pub patience: Duration,
    /// Only say what would happen.
    pub dry_run: bool,
    /// For whom to print.
    pub output: Format,
}

/// Which way a copy goes.
#[derive(Clone, Debug)]
pub enum Route {
    /// Into another host's pool.
    Push(LocalVolume, RemoteAddress),
    /// From another host's pool.
    Pull(RemoteAddress, LocalVolume),
    /// Within this host.
    Local(LocalVolume, LocalVolume),
}

impl Route {
    /// Of two addresses.
    ///
    /// # Errors
    /// A usage failure when both are remote.
    pub fn new(
        source: VolumeAddress,
        target: VolumeAddress,
        source_format: Option<VolumeFormat>,
        target_format: VolumeFormat,
    ) -> Result<Self, Failure> {
        let source = local(source, source_format);
        let target = local(target, Some(target_format));
        match (source, target) {
            (Err(_), Err(_)) => Err(Failure::usage(
                "source and target are both on other hosts",
                "run the command on one of the two and name its volume by its path or NBD address",
            )),
            (Ok(source), Err(target)) => Ok(Self::Push(source, target)),
            (Err(source), Ok(target)) => Ok(Self::Pull(source, target)),
            (Ok(source), Ok(target)) => Ok(Self::Local(source, target)),
        }
    }
}

/// The volume of this host that an address names, or the address of one that is elsewhere.
///
/// # Errors
/// The remote address: what that means is for the caller to say.
pub fn local(address: VolumeAddress, format: Option<VolumeFormat>) -> Result<LocalVolume, RemoteAddress> {
    match address {
        VolumeAddress::Remote(remote) => Err(remote),
        VolumeAddress::Nbd(uri) => Ok(LocalVolume::Nbd(uri)),
        VolumeAddress::Path(path) => {
            let format = format.unwrap_or_else(|| format_of(&path.to_string_lossy()));
            Ok(LocalVolume::Path { path, format })
        }
    }
}

/// The format that a name says. Content is never probed: a raw disk can begin with anything its guest wrote there.
#[must_use]
pub fn format_of(name: &str) -> VolumeFormat {
    if name.ends_with(".qcow2") { VolumeFormat::Qcow2 } else { VolumeFormat::Raw }
}

/// The name by which a volume's format is guessed; NBD exports are always raw.
#[must_use]
pub fn default_format(address: &VolumeAddress) -> VolumeFormat {
    match address {
        VolumeAddress::Path(path) => format_of(&path.to_string_lossy()),
        VolumeAddress::Remote(remote) => format_of(&remote.name),
        VolumeAddress::Nbd(Uri { .. }) => VolumeFormat::Raw,
    }
}

/// Copies.
///
/// # Errors
/// [`Failure`] says what to do, and whether the same command goes on where this one stopped.
pub async fn run(settings: Settings) -> Result<(), Failure> {
    let identity = match &settings.identity {
        Some(folder) => Some(Identity::load(folder, SystemTime::now())?),
        None => None,
    };
    let state = state::folder(settings.state.clone())?;
    let (stop, cancel) = (CancellationToken::new(), CancellationToken::new());
    signals::stop_on_signals(stop.clone(), cancel.clone())?;
    let context = Context {
        process: Process::start(SessionLimits::default(), disk::Backend::Auto)?,
        options: CopyOptions {
            mode: settings.mode,
            format: settings.target_format,
            level: settings.compress,
            readback: settings.readback,
            drop_snapshots: settings.drop_snapshots,
            state: state.clone(),
            patience: settings.patience,
        },
        progress: Arc::new(Progress::default()),
        stop,
        cancel,
        signer: identity.as_ref().map(|identity| Arc::new(credentials::signer(identity))),
    };
    if settings.dry_run {
        return rehearsal::run(&settings, &context, identity.as_ref()).await;
    }
    let ended = CancellationToken::new();
    let shown = tokio::spawn(progress::show(Arc::clone(&context.progress), settings.output, ended.clone()));
    let mut kept = PathBuf::new();
    let result = transfer(&settings, &context, identity.as_ref(), |done| {
        receipt::check(done, identity.as_ref())?;
        kept = receipt::keep(&done.receipt, &state, settings.receipt.as_deref())?;
        Ok(())
    })
    .await;
    ended.cancel();
    if let Err(error) = shown.await {
        tracing::error!(%error, "showing progress failed; this is a bug");
    }
    let done = result.map_err(|failure| {
        // A second signal: what was journalled survives.
        if context.cancel.is_cancelled() { failure.after_cancellation() } else { failure }
    })?;
    let summary = Summary::new(&done, &kept);
    match settings.output {
        Format::Json => output::json(&summary),
        Format::Text => output::line(&summary.text()),
    }
    Ok(())
}

/// Transfers. `keep` gets the receipt before the session is forgotten, so that one that is lost can be had again.
async fn transfer(
    settings: &Settings,
    context: &Context,
    identity: Option<&Identity>,
    keep: impl FnOnce(&transfer::Summary) -> Result<(), Failure>,
) -> Result<transfer::Summary, Failure> {
    let name = identity.map_or(LOCAL, |identity| identity.name().as_str()).to_owned();
    match &settings.route {
        Route::Push(source, remote) => {
            let dialler = dialler(settings, remote, identity)?;
            transfer::push_and_keep(context, source, &dialler, &volume_of(remote), keep).await
        }
        Route::Pull(remote, target) => {
            let dialler = dialler(settings, remote, identity)?;
            let target = LocalTarget { volume: target.clone(), owner: name.clone(), receiver: name };
            // The receiver is here, and its sidecar keeps the receipt.
            let done = transfer::pull(context, &dialler, &volume_of(remote), &target).await?;
            keep(&done)?;
            Ok(done)
        }
        Route::Local(source, target) => {
            let target = LocalTarget { volume: target.clone(), owner: name.clone(), receiver: name };
            transfer::copy_locally_and_keep(context, source, &target, keep).await
        }
    }
}

fn volume_of(remote: &RemoteAddress) -> RemoteVolume {
    RemoteVolume { pool: remote.pool.clone(), name: remote.name.clone() }
}

fn dialler(
    settings: &Settings,
    remote: &RemoteAddress,
    identity: Option<&Identity>,
) -> Result<Dialler, Failure> {
    let identity = identity.ok_or_else(|| {
        Failure::usage(
            format!("{remote} is on another host, and this host has no identity to show there"),
            "pass --identity DIR with the folder that `novaferry-agent pki issue` made",
        )
    })?;
    let mut options = DialOptions::new(remote.host.clone(), remote.port);
    options.expect_peer.clone_from(&settings.peer);
    options.transport = settings.transport;
    options.profile = settings.profile;
    options.connections = settings.connections;
    options.via.clone_from(&settings.via);
    options.limit = settings.limit;
    Ok(Dialler { options, credentials: credentials::of(identity)? })
}

/// The log level of a command: people who watch see warnings, logs also see progress.
#[must_use]
pub fn log_level(output: Format) -> &'static str {
    if output == Format::Json || std::io::stderr().is_terminal() { "warn" } else { "info" }
}
