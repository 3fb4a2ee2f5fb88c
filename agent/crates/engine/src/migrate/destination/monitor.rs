//! Talking to the QEMU that takes the guest in.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hypervisor::qmp::Qmp;
use hypervisor::vmd::VmdClient;

use super::{Owner, Signal};
use crate::migrate::source::chain;

/// Patience with a QEMU that comes up or works.
const PATIENCE: Duration = Duration::from_secs(20);
/// For a command to one whose main loop may stand still.
pub(super) const BRIEFLY: Duration = Duration::from_secs(3);

/// A connection over which QEMU does what is asked out of band, also while its main loop stands still.
#[derive(Debug)]
pub(super) enum OutOfBand {
    /// This agent's.
    Own(Qmp),
    /// vmd's, which is older than this agent's process.
    Kept(VmdClient, String),
}

impl OutOfBand {
    pub(super) async fn pause(&self) -> Result<(), String> {
        match self {
            Self::Own(qmp) => qmp.migrate_pause().await.map_err(|error| chain(&error)),
            Self::Kept(vmd, vm) => vmd.migrate_pause(vm).await.map_err(|error| chain(&error)),
        }
    }

    /// Listens again, at this name in `folder`.
    pub(super) async fn recover(&self, folder: &Path, name: &str) -> Result<(), String> {
        match self {
            Self::Own(qmp) => {
                let uri = format!("unix:{}", folder.join(name).display());
                qmp.migrate_recover(&uri).await.map_err(|error| chain(&error))
            }
            Self::Kept(vmd, vm) => vmd.migrate_recover(vm, name).await.map_err(|error| chain(&error)),
        }
    }
}

impl Owner {
    /// Connects to QEMU and hears its events.
    pub(super) async fn monitor(&mut self) -> Result<Qmp, String> {
        if let Some(qmp) = self.connected() {
            return Ok(qmp);
        }
        let qmp = connect(self.monitor_socket()?).await?;
        Ok(self.adopt(qmp))
    }

    /// As [`Self::monitor`], of a QEMU whose main loop may stand still: nobody waits for it. None while it did not
    /// answer; a signal comes when it does.
    pub(super) fn monitor_if_it_answers(&mut self) -> Option<Qmp> {
        if let Some(qmp) = self.connected() {
            return Some(qmp.within(BRIEFLY));
        }
        if let Ok(socket) = self.monitor_socket()
            && !std::mem::replace(&mut self.connecting, true)
        {
            let signals = self.signals.clone();
            self.watchers.spawn(async move {
                // Fails when the owner is gone.
                drop(signals.send(Signal::Monitor(connect(socket).await)).await);
            });
        }
        None
    }

    fn monitor_socket(&self) -> Result<PathBuf, String> {
        Ok(self.sockets.as_ref().ok_or("the VM is not there")?.qmp.clone())
    }

    /// Hears the events of a connection from now on.
    pub(super) fn adopt(&mut self, qmp: Qmp) -> Qmp {
        self.monitors += 1;
        let (mut events, signals, which) = (qmp.subscribe(), self.signals.clone(), self.monitors);
        self.watchers.spawn(async move {
            loop {
                match events.next().await {
                    Ok(event) => {
                        if signals.send(Signal::Qemu(event.kind)).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        drop(signals.send(Signal::QemuGone(which, chain(&error))).await);
                        return;
                    }
                }
            }
        });
        self.qmp = Some(qmp.clone());
        qmp
    }

    /// Leaves QEMU's monitor; its end is no news.
    pub(super) fn leave_monitor(&mut self) {
        self.qmp = None;
        self.monitors += 1;
    }

    fn connected(&self) -> Option<Qmp> {
        self.qmp.clone().filter(|qmp| qmp.ended().is_none())
    }

    /// What is left to talk over while QEMU's main loop stands still.
    pub(super) async fn out_of_band(&self) -> Result<OutOfBand, String> {
        if let Some(qmp) = self.connected().filter(Qmp::has_out_of_band) {
            return Ok(OutOfBand::Own(qmp));
        }
        let vmd = VmdClient::connect(&self.context.vmd).await.map_err(|error| chain(&error))?;
        Ok(OutOfBand::Kept(vmd, self.record.vm.clone()))
    }
}

async fn connect(socket: PathBuf) -> Result<Qmp, String> {
    Qmp::connect(&socket, PATIENCE).await.map_err(|error| chain(&error))
}
