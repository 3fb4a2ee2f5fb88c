//! Where the destination is reached: one address or several, of which the best that answers is taken. Whoever asked for
//! the migration may change them while it runs, how fast it may go, and when it may switch over.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use session::cutover::{SourceAction, SourceState};
use tokio::time::timeout;
use tunnel::{ChannelTunnel, CloseCode, Credentials, DialOptions};
use volume::SessionId;

use super::{Owner, Signal};
use crate::migrate::cutover::Cutover;
use crate::migrate::record::Role;
use crate::send::random_session;

/// How long one of several addresses may take to answer before the next is tried.
const EACH: Duration = Duration::from_secs(6);

/// An address of the destination.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Way {
    /// Name or address, an IPv6 address without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// Which addresses, how fast, and not before when.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ways {
    /// Best first, at least one.
    pub to: Vec<Way>,
    /// Bytes a second.
    pub limit: Option<u64>,
    /// When it may switch over.
    pub cutover: Cutover,
}

/// Dials one address after the other until one answers.
pub(super) async fn dial(
    options: &DialOptions,
    ways: &[Way],
    credentials: &Credentials,
    migration: SessionId,
) -> Result<(ChannelTunnel, Way), String> {
    let mut failed = Vec::new();
    for way in ways {
        let options = DialOptions { host: way.host.clone(), port: way.port, ..options.clone() };
        let dialling = tunnel::dial_channels(&options, credentials, migration);
        // The only one has all the time that there is.
        let dialled = if ways.len() == 1 { Ok(dialling.await) } else { timeout(EACH, dialling).await };
        let why = match dialled {
            Ok(Ok(tunnel)) => return Ok((tunnel, way.clone())),
            Ok(Err(error)) => error.chain(),
            Err(_late) => format!("no answer within {} s", EACH.as_secs()),
        };
        if ways.len() == 1 {
            return Err(why);
        }
        failed.push(format!("{way}: {why}"));
    }
    Err(failed.join("; "))
}

impl Owner {
    /// Somebody changed the ways, the limit, or the time.
    pub(super) fn take_ways(&mut self, todo: &mut VecDeque<SourceAction>) {
        let ways = self.ways.borrow_and_update().clone();
        self.take_cutover(ways.cutover, todo);
        if self.job.dial.limit != ways.limit {
            tracing::info!(migration = %self.job.migration, limit = ways.limit, "the limit is another one now");
            self.job.dial.limit = ways.limit;
            if let Some(tunnel) = &self.tunnel {
                tunnel.set_limit(ways.limit);
            }
        }
        let Some(best) = ways.to.first().cloned() else { return };
        self.note_ways(&ways.to);
        if self.path.as_ref().is_some_and(|path| *path != best) && self.can_wait() && self.lost.is_none() {
            self.try_way(best);
        }
    }

    /// A restart goes on with them.
    fn note_ways(&mut self, to: &[Way]) {
        let Role::Source { address, alternates, .. } = &mut self.record.role else { return };
        let mut all = to.iter().map(Way::to_string);
        let best = all.next().unwrap_or_default();
        let rest: Vec<String> = all.collect();
        if *address == best && *alternates == rest {
            return;
        }
        (*address, *alternates) = (best, rest);
        if *self.state() != SourceState::Preparing
            && let Err(error) = self.save()
        {
            tracing::warn!(error = %error.chain(), "the addresses of a destination cannot be recorded");
        }
        self.publish(None);
    }

    /// Finds out whether the destination answers at a better address, before the connection that there is is given up
    /// for it. Asked under another id, so that the destination does not take it for this migration's next connection.
    fn try_way(&mut self, way: Way) {
        let (options, credentials) = (self.job.dial.clone(), self.context.credentials.clone());
        let (signals, migration) = (self.signals.clone(), self.job.migration);
        self.watchers.spawn(async move {
            let tried = match random_session() {
                Ok(id) => dial(&options, std::slice::from_ref(&way), &credentials, id).await,
                Err(error) => Err(error.chain()),
            };
            match tried {
                Ok((tunnel, _)) => {
                    tunnel.close(CloseCode::Done, "only asked whether this address answers");
                    drop(signals.send(Signal::BetterWay(way)).await);
                }
                Err(why) => tracing::info!(%migration, %way, %why, "a better way does not answer"),
            }
        });
    }

    /// A better address answers: the connection is made again over it, as after a lost one.
    pub(super) fn move_over(&mut self, way: &Way) {
        let is_best = self.ways.borrow().to.first() == Some(way);
        let Some(tunnel) = self.tunnel.as_ref().filter(|_| is_best && self.can_wait() && self.lost.is_none())
        else {
            return;
        };
        tracing::info!(migration = %self.job.migration, %way, "the migration moves over to a better way");
        tunnel.close(CloseCode::Done, "the migration moves over to another address");
    }
}
