//! Keeps the daemon's identity and revocation lists current.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tunnel::Listener;

use super::meter::Meter;
use super::migrations::Shows;
use super::sessions::Sessions;
use crate::credentials;
use pki::{Identity, IdentityWatcher, PkiError};

/// How long before a certificate or list ends the log says so: time for somebody to act after a weekend.
const NOTICE: Duration = Duration::from_secs(7 * 86_400);
/// The same for a certificate that the coordinator renews half-way: below that, something keeps it from that.
const RENEWED_NOTICE: Duration = Duration::from_secs(6 * 3600);
/// How often it is said again.
const REMIND: Duration = Duration::from_secs(86_400);

/// The current identity, and what notices the next.
pub(super) struct Keeper {
    watcher: IdentityWatcher,
    warned: Option<SystemTime>,
    /// The coordinator renews the certificate.
    renewed: bool,
}

impl Keeper {
    pub(super) fn new(watcher: IdentityWatcher, renewed: bool) -> Self {
        Self { watcher, warned: None, renewed }
    }

    /// The identity that is in force.
    pub(super) fn current(&self) -> &Arc<Identity> {
        self.watcher.current()
    }

    /// Looks whether files changed. Cheap: four stats.
    pub(super) fn poll(
        &mut self,
        listener: &Listener,
        sessions: &mut Sessions,
        shows: &watch::Sender<Shows>,
        meter: &Meter,
        now: SystemTime,
    ) {
        match self.watcher.poll(now) {
            Ok(None) => {}
            Ok(Some(identity)) => take(&identity, listener, sessions, shows, meter),
            Err(error) => complain(&error),
        }
        self.warn(now);
    }

    /// On SIGHUP: the same, and says so when there was nothing new.
    pub(super) fn reload(
        &mut self,
        listener: &Listener,
        sessions: &mut Sessions,
        shows: &watch::Sender<Shows>,
        meter: &Meter,
        now: SystemTime,
    ) {
        match self.watcher.poll(now) {
            Ok(None) => tracing::info!("the identity's files have not changed"),
            Ok(Some(identity)) => take(&identity, listener, sessions, shows, meter),
            Err(error) => complain(&error),
        }
    }

    /// Says in time what will end soon.
    pub(super) fn warn(&mut self, now: SystemTime) {
        let recently = self.warned.and_then(|then| now.duration_since(then).ok());
        if recently.is_some_and(|ago| ago < REMIND) {
            return;
        }
        let identity = self.watcher.current();
        let left = |end: SystemTime| end.duration_since(now).unwrap_or_default();
        let mut said = false;
        let notice = if self.renewed { RENEWED_NOTICE } else { NOTICE };
        if left(identity.not_after()) < notice {
            let hours = left(identity.not_after()).as_secs() / 3600;
            let advice = if self.renewed {
                "the coordinator has not renewed it: look why there is no line to it"
            } else {
                "issue a new one with `pki issue --renew`"
            };
            tracing::warn!(hours, "this host's certificate ends soon; {advice}");
            said = true;
        }
        if let Some(due) = identity.crl_next_update().filter(|due| left(*due) < NOTICE) {
            let hours = left(due).as_secs() / 3600;
            tracing::warn!(
                hours,
                "the revocation list ends soon, and then nobody is let in; sign a new one with `pki crl --publish`"
            );
            said = true;
        }
        if said {
            self.warned = Some(now);
        }
    }
}

fn take(
    identity: &Identity,
    listener: &Listener,
    sessions: &mut Sessions,
    shows: &watch::Sender<Shows>,
    meter: &Meter,
) {
    let loaded =
        credentials::of(identity).and_then(|credentials| listener.reload(&credentials).map(|()| credentials));
    match loaded {
        Ok(credentials) => {
            sessions.sign_with(credentials::signer(identity));
            shows.send_replace(Shows { credentials, signer: Arc::new(credentials::signer(identity)) });
            meter.identity(identity);
            tracing::info!(host = %identity.name(), "the identity and the revocation lists were read again");
        }
        Err(error) => {
            tracing::error!(%error, "the new identity cannot be used; the old one stays in force");
        }
    }
}

fn complain(error: &PkiError) {
    tracing::error!(%error, "the identity's files changed but cannot be used; the old ones stay in force");
}
