//! `copy --dry-run`: opens and checks what can be opened without changing anything, and says what would happen.
//!
//! The source on this host is opened as for a copy; the other host is dialled, which proves both identities. Whether
//! its pool would take the volume cannot be asked without opening a session there, so that is not checked.

use engine::receive::receive_buffers;
use engine::transfer::Context;
use serde::Serialize;
use wire::{Mode, VolumeFormat};

use super::{Route, Settings, dialler};
use crate::failure::Failure;
use crate::output::{self, Format, bytes};
use pki::Identity;

/// What would happen.
#[derive(Debug, Serialize)]
struct Plan {
    action: &'static str,
    source: String,
    target: String,
    logical_bytes: Option<u64>,
    peer: Option<String>,
    transport: Option<String>,
    mode: &'static str,
    target_format: &'static str,
    readback: bool,
    checked: Vec<&'static str>,
    not_checked: Vec<&'static str>,
}

pub(super) async fn run(
    settings: &Settings,
    context: &Context,
    identity: Option<&Identity>,
) -> Result<(), Failure> {
    let (source, target, remote) = match &settings.route {
        Route::Push(source, remote) => (Some(source), None, Some(remote)),
        Route::Pull(remote, target) => (None, Some(target), Some(remote)),
        Route::Local(source, target) => (Some(source), Some(target), None),
    };
    let mut plan = Plan {
        action: match settings.route {
            Route::Push(..) => "push",
            Route::Pull(..) => "pull",
            Route::Local(..) => "copy within this host",
        },
        source: match (source, remote) {
            (Some(source), _) => source.label()?,
            (None, remote) => remote.map(ToString::to_string).unwrap_or_default(),
        },
        target: match (target, remote) {
            (Some(target), _) => target.label()?,
            (None, remote) => remote.map(ToString::to_string).unwrap_or_default(),
        },
        logical_bytes: None,
        peer: None,
        transport: None,
        mode: match settings.mode {
            Mode::Create => "create",
            Mode::ResyncTrusted => "resync-trusted",
            Mode::ResyncFull => "resync-full",
        },
        target_format: match settings.target_format {
            VolumeFormat::Raw => "raw",
            VolumeFormat::Qcow2 => "qcow2",
        },
        readback: settings.readback,
        checked: Vec::new(),
        not_checked: Vec::new(),
    };
    let disk = context.process.session_disk()?;
    if let Some(source) = source {
        let opened = source.open(&disk.disk, settings.drop_snapshots).await?;
        plan.logical_bytes = Some(opened.volume().geometry().size.0);
        opened.close().await?;
        plan.checked.push("the source can be opened and nobody writes to it");
    }
    if let Some(remote) = remote {
        let dialler = dialler(settings, remote, identity)?;
        let buffers = receive_buffers(&disk.pool, context.process.limits().buffers);
        let tunnel = tunnel::dial(&dialler.options, &dialler.credentials, buffers).await?;
        plan.peer = Some(tunnel.peer().as_str().to_owned());
        plan.transport = Some(format!("{:?}", tunnel.transport()).to_lowercase());
        plan.checked.push("the other host can be reached and each accepts the other's certificate");
        plan.not_checked.push("whether the pool there permits this host, holds the name, and has room");
        let (handle, ..) = tunnel.split();
        handle.close(tunnel::CloseCode::Done, "a rehearsal");
        handle.ended().await;
    }
    if let Some(target) = target {
        // Looks for a session that was interrupted; makes nothing but the state folder's own folders.
        target.home(&context.options.state)?;
        plan.not_checked.push("whether the target has room");
    }
    match settings.output {
        Format::Json => output::json(&plan),
        Format::Text => output::line(&plan.text()),
    }
    Ok(())
}

impl Plan {
    fn text(&self) -> String {
        let size = self.logical_bytes.map_or_else(|| "of unknown size".to_owned(), bytes);
        let mut text = format!(
            "would {}: {} ({size})\n  to {}\n  mode {}, stored as {}{}",
            self.action,
            self.source,
            self.target,
            self.mode,
            self.target_format,
            if self.readback { ", read back before it is sealed" } else { "" },
        );
        if let (Some(peer), Some(transport)) = (&self.peer, &self.transport) {
            text.push_str(&format!("\n  with {peer} over {transport}"));
        }
        for what in &self.checked {
            text.push_str("\n  checked: ");
            text.push_str(what);
        }
        for what in &self.not_checked {
            text.push_str("\n  not checked: ");
            text.push_str(what);
        }
        text
    }
}
