//! The coordinator: a CA for hosts, a line to each agent, an API for people and programs.
//!
//! Agents dial it and stay; it tells them what is wanted of them, whole, with a generation, and they say what they
//! see. What it knows lies in the [`store`]; what runs, runs on the hosts, and goes on when the coordinator is away.

mod api;
mod authority;
mod error;
mod find;
mod fleet;
mod line;
mod listen;
mod moves;
mod novacron;
mod plans;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use control_api::v1::coordinator_server::CoordinatorServer;
pub use error::ServiceError;
use fleet::Fleet;
use listen::Clients;

/// What the coordinator is told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Folder of its database and its CA.
    pub state: PathBuf,
    /// Where agents dial.
    pub agents: SocketAddr,
    /// Where people and programs ask.
    pub api: SocketAddr,
    /// DNS names and addresses in its certificate, beside `localhost` and the loopback addresses.
    pub names: Vec<String>,
}

/// A coordinator that listens.
#[derive(Debug)]
pub struct Service {
    fleet: Arc<Fleet>,
    agents: TcpListener,
    api: TcpListener,
}

impl Service {
    /// Opens the state folder, makes what is missing, and listens. A first administrator's token is written into the
    /// folder as `admin-token` when there is no token at all.
    ///
    /// # Errors
    /// When the folder or an address cannot be used.
    pub async fn open(settings: Settings) -> Result<Self, ServiceError> {
        let Settings { state, agents, api, mut names } = settings;
        names.extend(["localhost", "127.0.0.1", "::1"].map(ToOwned::to_owned));
        let fleet = Fleet::open(&state, names).await?;
        api::tokens::first(&fleet, &state).await?;
        let listen = async |what: &str, address: SocketAddr| {
            TcpListener::bind(address).await.map_err(|error| ServiceError::listen(what, address, error))
        };
        Ok(Self { agents: listen("agents", agents).await?, api: listen("the API", api).await?, fleet })
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

    /// Serves until it is to stop. Lines are closed then; agents dial again.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub async fn run(self, stop: CancellationToken) -> Result<(), ServiceError> {
        let Self { fleet, agents, api } = self;
        let lines = line::Lines::new(Arc::clone(&fleet), stop.clone());
        let server = CoordinatorServer::new(lines)
            .max_decoding_message_size(control_api::MAX_MESSAGE)
            .max_encoding_message_size(control_api::MAX_MESSAGE);
        let router = Routes::new(server).into_axum_router();
        let agents =
            listen::serve(agents, listen::tls(&fleet.authority, Clients::Hosts)?, router, stop.clone());
        let router = api::router(Arc::clone(&fleet));
        let api = listen::serve(api, listen::tls(&fleet.authority, Clients::People)?, router, stop.clone());
        tokio::join!(agents, api, plans::run::run(Arc::clone(&fleet), stop));
        fleet.store.close().await;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
