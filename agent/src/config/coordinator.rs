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
    /// `HOST:PORT` at which other agents reach this host, best first; empty to find out.
    pub advertise: Vec<String>,
}

pub(super) fn coordinator(file: FileCoordinator, listen: SocketAddr) -> Result<Coordinator, ConfigError> {
    let FileCoordinator { address, advertise } = file;
    let advice = "write HOST:PORT, such as \"coordinator.example:7444\"";
    let address = address.ok_or_else(|| ConfigError::missing("coordinator.address", advice))?;
    let address = authority("coordinator.address", &address, control_api::PORT, advice)?;
    let advice = "write HOST:PORT, such as \"host-a.example:7440\"";
    let advertise =
        advertise.iter().map(|one| authority("coordinator.advertise", one, listen.port(), advice));
    Ok(Coordinator { address, advertise: advertise.collect::<Result<_, _>>()? })
}

impl Coordinator {
    /// Where other agents reach this host: as configured, or else by the address that it listens on, or by its name.
    #[must_use]
    pub fn reached(&self, listens: SocketAddr) -> Vec<String> {
        if !self.advertise.is_empty() {
            return self.advertise.clone();
        }
        if !listens.ip().is_unspecified() {
            return vec![listens.to_string()];
        }
        let name = rustix::system::uname();
        vec![format!("{}:{}", name.nodename().to_string_lossy(), listens.port())]
    }
}

fn authority(key: &str, text: &str, port: u16, advice: &str) -> Result<String, ConfigError> {
    let has_port = text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let text = if has_port { text.to_owned() } else { format!("{text}:{port}") };
    let parsed: HostAddress = format!("novaferry://{text}")
        .parse()
        .map_err(|error| ConfigError::value(key, &text, advice.to_owned()).caused_by(error))?;
    Ok(parsed.authority())
}
