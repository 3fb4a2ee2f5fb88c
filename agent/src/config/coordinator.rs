//! `[coordinator]`: who tells this host what to move.

use std::net::SocketAddr;

use super::error::ConfigError;
use super::file::FileCoordinator;
use crate::address::HostAddress;

/// Addresses that a coordinator keeps of a host.
const MOST_ADDRESSES: usize = 8;

/// The coordinator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Coordinator {
    /// `HOST:PORT` at which it listens for agents.
    pub address: String,
    /// `HOST:PORT` at which other agents reach this host, best first; `NETWORK=HOST:PORT` on a network that the
    /// coordinator's links name. Empty to find out.
    pub advertise: Vec<String>,
    /// Other agents can dial this host. If not (NAT, a firewall), it dials them, whichever way VMs go.
    pub reachable: bool,
}

pub(super) fn coordinator(file: FileCoordinator, listen: SocketAddr) -> Result<Coordinator, ConfigError> {
    let FileCoordinator { address, advertise, reachable } = file;
    let reachable = reachable.unwrap_or(true);
    let advice = "write HOST:PORT, such as \"coordinator.example:7444\"";
    let address = address.ok_or_else(|| ConfigError::missing("coordinator.address", advice))?;
    let address = authority("coordinator.address", &address, control_api::PORT, advice)?;
    let advertise = advertise.iter().map(|one| advertised(one, listen.port()));
    let advertise: Vec<_> = advertise.collect::<Result<_, _>>()?;
    if let Some(first_too_many) = advertise.get(MOST_ADDRESSES) {
        let advice = format!("name {MOST_ADDRESSES} addresses at most");
        return Err(ConfigError::value("coordinator.advertise", first_too_many, advice));
    }
    if let (false, Some(first)) = (reachable, advertise.first()) {
        let advice = "leave `advertise` out where `reachable` is false, or `reachable`".to_owned();
        return Err(ConfigError::value("coordinator.advertise", first, advice));
    }
    Ok(Coordinator { address, advertise, reachable })
}

impl Coordinator {
    /// Where other agents reach this host, nowhere if they do not: as configured, or else by the address that it listens on, or by its name.
    #[must_use]
    pub fn reached(&self, listens: SocketAddr) -> Vec<String> {
        if !self.reachable {
            return Vec::new();
        }
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

/// An address with its network's name before it, if it has one: named as hosts are.
fn advertised(text: &str, port: u16) -> Result<String, ConfigError> {
    let key = "coordinator.advertise";
    let advice = "write HOST:PORT, such as \"host-a.example:7440\", or NETWORK=HOST:PORT, such as \"mpls=10.9.0.5:7440\"";
    match text.split_once('=') {
        None => authority(key, text, port, advice),
        Some((network, address)) => {
            let network: pki::PeerName = network.parse().map_err(|error: pki::InvalidPeerName| {
                ConfigError::value(key, text, advice.to_owned()).caused_by(error)
            })?;
            Ok(format!("{network}={}", authority(key, address, port, advice)?))
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_host_is_reached_is_said_found_out_or_nowhere() {
        let listen: SocketAddr = "[::1]:7440".parse().unwrap();
        let said = |advertise: &[&str], reachable| {
            let advertise = advertise.iter().map(|&one| one.to_owned()).collect();
            let file = FileCoordinator { address: Some("c".to_owned()), advertise, reachable };
            coordinator(file, listen).map(|made| made.reached(listen)).map_err(|error| error.to_string())
        };
        assert_eq!(said(&[], None).unwrap(), ["[::1]:7440"]);
        assert_eq!(said(&["mpls=a", "b:1"], Some(true)).unwrap(), ["mpls=a:7440", "b:1"]);
        assert!(said(&[], Some(false)).unwrap().is_empty());
        let both = said(&["b:1"], Some(false)).unwrap_err();
        assert!(both.contains("leave `advertise` out"), "{both}");
        assert!(said(&["Ä=b"], None).unwrap_err().contains("NETWORK=HOST:PORT"));
    }
}
