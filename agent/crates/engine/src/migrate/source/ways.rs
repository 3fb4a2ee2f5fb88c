//! Where the destination is reached: one address or several, of which the best that answers is taken. Whoever asked for
//! the migration may change them while it runs, how fast it may go, and when it may switch over.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use session::cutover::{SourceAction, SourceState};
use tokio::time::timeout;
use tunnel::{ChannelTunnel, CloseCode, Credentials, DialOptions};
use volume::SessionId;

use super::{Calls, Owner, Signal};
use crate::migrate::cutover::Cutover;
use crate::migrate::record::Role;
use crate::send::random_session;

/// How long one of several addresses may take to answer before the next is tried.
const EACH: Duration = Duration::from_secs(6);

/// How long a destination that dials may take for it: it tries again every few seconds.
const CALLED: Duration = Duration::from_secs(30);
/// What stands for [`Way::Called`] among addresses: no host has such a name.
const CALLS: &str = "(dials here)";

/// How the destination is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Way {
    /// This host dials it.
    At {
        /// Name or address, an IPv6 address without brackets.
        host: String,
        /// Its port.
        port: u16,
    },
    /// It dials this host.
    Called,
}

impl Way {
    /// A way that a record names otherwise than by an address.
    #[must_use]
    pub fn named(text: &str) -> Option<Self> {
        (text == CALLS).then_some(Self::Called)
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::At { host, port } => write!(f, "{host}:{port}"),
            Self::Called => f.write_str(CALLS),
        }
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

/// How a destination is dialled, or dials.
pub(super) struct Dial<'a> {
    pub(super) options: &'a DialOptions,
    pub(super) credentials: &'a Credentials,
    pub(super) calls: &'a Calls,
}

impl Dial<'_> {
    /// Tries one way after the other until the destination answers.
    pub(super) async fn reach(
        &self,
        ways: &[Way],
        migration: SessionId,
    ) -> Result<(ChannelTunnel, Way), String> {
        let mut failed = Vec::new();
        for way in ways {
            // The only one has all the time that there is.
            let each = if ways.len() == 1 { None } else { Some(EACH) };
            match self.by(way, each, migration).await {
                Ok(tunnel) => return Ok((tunnel, way.clone())),
                Err(why) if ways.len() == 1 => return Err(why),
                Err(why) => failed.push(format!("{way}: {why}")),
            }
        }
        Err(failed.join("; "))
    }

    async fn by(
        &self,
        way: &Way,
        each: Option<Duration>,
        migration: SessionId,
    ) -> Result<ChannelTunnel, String> {
        let (host, port) = match way {
            Way::At { host, port } => (host.clone(), *port),
            Way::Called => {
                let patience = each.unwrap_or(CALLED);
                return timeout(patience, self.calls.take()).await.map_err(|_late| {
                    let peer = self.options.expect_peer.as_ref();
                    let peer = peer.map_or_else(|| "the destination".to_owned(), ToString::to_string);
                    format!(
                        "{peer} has not dialled here within {} s; its agent's log says why: it must reach this host's \
                         port over UDP",
                        patience.as_secs()
                    )
                });
            }
        };
        let options = DialOptions { host, port, ..self.options.clone() };
        let dialling = tunnel::dial_channels(&options, self.credentials, migration);
        let dialled = match each {
            None => Ok(dialling.await),
            Some(each) => timeout(each, dialling).await,
        };
        match dialled {
            Ok(dialled) => dialled.map_err(|error| error.chain()),
            Err(_late) => Err(format!("no answer within {} s", EACH.as_secs())),
        }
    }
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
        let is_other = self.path.as_ref().is_some_and(|path| *path != best);
        // Whether a destination that dials gets through is not for this host to find out.
        if is_other && best != Way::Called && self.can_wait() && self.lost.is_none() {
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
        let (options, context) = (self.job.dial.clone(), self.context.clone());
        let (signals, migration) = (self.signals.clone(), self.job.migration);
        self.watchers.spawn(async move {
            let tried = match random_session() {
                Ok(id) => context.dial(&options).reach(std::slice::from_ref(&way), id).await,
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
