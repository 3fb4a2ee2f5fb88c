//! The coordinator: a CA for hosts, a line to each agent, an API for people and programs.
//!
//! Agents dial it and stay; it tells them what is wanted of them, whole, with a generation, and they say what they
//! see. What it knows lies in the [`store`]; what runs, runs on the hosts, and goes on when the coordinator is away.

mod api;
mod arrivals;
mod authority;
pub mod backup;
mod ca_key;
mod error;
mod events;
mod find;
mod fleet;
mod line;
mod links;
mod listen;
mod metrics;
mod moves;
mod novacron;
mod page;
mod pinned;
mod plans;
mod proof;
mod seal;
mod webhooks;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

pub use api::gate::Access;
pub use api::jwt::{Secret, ShortSecret};
pub use api::limit::Limits;
pub use ca_key::{KeySource, Rekeyed, rekey};
pub use model::webhook::Reach;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use api::gate::Gate;
use control_api::v1::coordinator_server::CoordinatorServer;
pub use error::ServiceError;
use fleet::Fleet;
use listen::Clients;
pub use pinned::{PinError, authority_at};
use store::{Database, FolderLock};

/// What the coordinator is told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Folder of its CA's key, and of its database if that is its own.
    pub state: PathBuf,
    /// A PostgreSQL database, `postgres://…`, that several coordinators share; none for one in the folder.
    pub database: Option<String>,
    /// What the CA's key is sealed under, or the key itself.
    pub ca_key: KeySource,
    /// Where agents dial.
    pub agents: SocketAddr,
    /// Where people and programs ask.
    pub api: SocketAddr,
    /// Where Prometheus asks, in plain HTTP and without a token; nowhere if none.
    pub metrics: Option<SocketAddr>,
    /// DNS names and addresses in its certificate, beside `localhost` and the loopback addresses.
    pub names: Vec<String>,
    /// Who may ask the API beside holders of tokens, and how much.
    pub access: Access,
    /// Where webhooks may be sent.
    pub webhooks: Reach,
}

/// A coordinator that listens.
#[derive(Debug)]
pub struct Service {
    fleet: Arc<Fleet>,
    gate: Arc<Gate>,
    agents: TcpListener,
    api: TcpListener,
    metrics: Option<metrics::Endpoint>,
    _lock: Option<FolderLock>,
}

impl Service {
    /// Opens the state folder, makes what is missing, and listens. A first administrator's token is written into the
    /// folder as `admin-token` when there is no token at all. Of a database that another coordinator leads it waits for
    /// its turn, and listens nowhere meanwhile.
    ///
    /// # Errors
    /// When the folder or an address cannot be used.
    pub async fn open(settings: Settings) -> Result<Self, ServiceError> {
        let Settings { state, database, ca_key, agents, api, metrics, mut names, access, webhooks } =
            settings;
        let database = database.map_or_else(|| Database::Folder(state.clone()), Database::Postgres);
        names.extend(["localhost", "127.0.0.1", "::1"].map(ToOwned::to_owned));
        backup::refuse_half_restored(&state)?;
        // Before there is a lead to have: that this one stands by is to be seen, too.
        let metrics = match metrics {
            Some(address) => Some(metrics::Endpoint::start(address).await?),
            None => None,
        };
        // A SQLite database in it is locked when it is opened.
        let lock = match &database {
            Database::Folder(_) => None,
            Database::Postgres(_) => Some(FolderLock::take(&state)?),
        };
        let fleet = Fleet::open(&state, &ca_key, &database, names, webhooks).await?;
        api::tokens::first(&fleet, &state).await?;
        let listen = async |what: &str, address: SocketAddr| {
            TcpListener::bind(address).await.map_err(|error| ServiceError::listen(what, address, error))
        };
        let gate = Gate::new(Arc::clone(&fleet), access)?;
        let (agents, api) = (listen("agents", agents).await?, listen("the API", api).await?);
        Ok(Self { fleet, gate, agents, api, metrics, _lock: lock })
    }

    /// Where agents dial.
    ///
    /// # Errors
    /// None in practice.
    pub fn agents(&self) -> std::io::Result<SocketAddr> {
        self.agents.local_addr()
    }

    /// Where people and programs ask.
    ///
    /// # Errors
    /// None in practice.
    pub fn api(&self) -> std::io::Result<SocketAddr> {
        self.api.local_addr()
    }

    /// SHA-256 of its CA's certificate (DER), hexadecimal: by it `novaferry login` knows it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        data_encoding::HEXLOWER.encode(&control_api::fingerprint(self.fleet.authority.certificate()))
    }

    /// Where Prometheus asks, if anywhere.
    #[must_use]
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(metrics::Endpoint::address)
    }

    /// Serves until it is to stop. Lines are closed then; agents dial again.
    ///
    /// # Errors
    /// When TLS cannot be set up; [`ServiceError::Replaced`] when another coordinator may lead.
    pub async fn run(self, stop: CancellationToken) -> Result<(), ServiceError> {
        let Self { fleet, gate, agents, api, metrics, _lock } = self;
        if let Some(metrics) = &metrics {
            metrics.lead(&fleet);
        }
        let (lost, stop) = (fleet.store.lost(), stop.child_token());
        let replaced = tokio::spawn({
            let (lost, stop) = (lost.clone(), stop.clone());
            async move {
                lost.cancelled().await;
                stop.cancel();
            }
        });
        let lines = line::Lines::new(Arc::clone(&fleet), stop.clone());
        let server = CoordinatorServer::new(lines)
            .max_decoding_message_size(control_api::MAX_MESSAGE)
            .max_encoding_message_size(control_api::MAX_MESSAGE);
        let router = Routes::new(server).into_axum_router();
        let agents =
            listen::serve(agents, listen::tls(&fleet.authority, Clients::Hosts)?, router, stop.clone());
        let router = api::router(Arc::clone(&fleet), gate);
        let tls = listen::tls(&fleet.authority, Clients::People)?;
        let api = listen::serve(api, tls, router, stop.clone());
        let plans = plans::run::run(Arc::clone(&fleet), stop.clone());
        let (probing, telling) = (links::run(&fleet, stop.clone()), events::run(&fleet, stop.clone()));
        let seen = fleet.note_seen(stop.clone());
        let webhooks = webhooks::run(Arc::clone(&fleet), stop.clone());
        tokio::join!(agents, api, plans, probing, telling, seen, webhooks);
        replaced.abort();
        if let Some(metrics) = metrics {
            metrics.end().await;
        }
        if lost.is_cancelled() {
            return Err(ServiceError::Replaced);
        }
        fleet.store.close().await;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
