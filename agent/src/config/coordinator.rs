//! `[coordinator]`: who tells this host what to move.

use std::net::SocketAddr;

use super::error::ConfigError;
use super::file::FileCoordinator;
use crate::address::HostAddress;

/// The coordinator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Coordinator {
    /// `HOST:PORT` at which it listens for agents.
    pub address: String,
    /// `HOST:PORT` at which other agents reach this host, best first.
    pub advertise: Vec<String>,
}

pub(super) fn coordinator(file: FileCoordinator, listen: SocketAddr) -> Result<Coordinator, ConfigError> {
    let FileCoordinator { address, advertise } = file;
    let advice = "write HOST:PORT, such as \"coordinator.example:7444\"";
    let address = address.ok_or_else(|| ConfigError::missing("coordinator.address", advice))?;
    let address = authority("coordinator.address", &address, control_api::PORT, advice)?;
    let advice = "write HOST:PORT, such as \"host-a.example:7440\"";
    let mut known = Vec::with_capacity(advertise.len().max(1));
    for one in &advertise {
        known.push(authority("coordinator.advertise", one, listen.port(), advice)?);
    }
    if known.is_empty() {
        known.push(own(listen));
    }
    Ok(Coordinator { address, advertise: known })
}

/// By the address that it listens on, or by its name.
fn own(listen: SocketAddr) -> String {
    if !listen.ip().is_unspecified() {
        return listen.to_string();
    }
    let name = rustix::system::uname();
    format!("{}:{}", name.nodename().to_string_lossy(), listen.port())
}

fn authority(key: &str, text: &str, port: u16, advice: &str) -> Result<String, ConfigError> {
    let has_port = text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let text = if has_port { text.to_owned() } else { format!("{text}:{port}") };
    let parsed: HostAddress = format!("novaferry://{text}")
        .parse()
        .map_err(|error| ConfigError::value(key, &text, advice.to_owned()).caused_by(error))?;
    Ok(parsed.authority())
}
