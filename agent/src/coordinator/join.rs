//! `join`: a one-time token becomes this host's identity.

use std::fmt;
use std::path::PathBuf;

use control_api::v1::JoinRequest;
use control_api::{JoinToken, PROTOCOL, dial, pinned};
use pki::{IdentityParts, NewKey, PeerName};
use serde::Serialize;

use crate::failure::{Failure, with_causes};

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `HOST:PORT` of the coordinator.
    pub coordinator: String,
    /// As `novaferry host token` printed it.
    pub token: JoinToken,
    /// This host's name there.
    pub name: PeerName,
    /// Where the identity is to be.
    pub folder: PathBuf,
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Joined {
    /// This host's name.
    pub host: String,
    /// Its site.
    pub site: String,
    /// Its identity.
    pub folder: PathBuf,
    /// For `[coordinator]` in agent.toml.
    pub coordinator: String,
}

impl fmt::Display for Joined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, site, folder, coordinator } = self;
        writeln!(f, "{host} joined as a host of site {site}; its identity is in {}", folder.display())?;
        write!(
            f,
            "agent.toml: [identity] dir = {folder:?}, [coordinator] address = {coordinator:?}; then start the daemon"
        )
    }
}

/// Joins.
///
/// # Errors
/// When the folder is there already, nobody answers, or the token is not good.
pub async fn run(settings: Settings) -> Result<Joined, Failure> {
    let Settings { coordinator, token, name, folder } = settings;
    if folder.exists() {
        return Err(Failure::new(
            "join-exists",
            format!("{} is there: this host has an identity", folder.display()),
            "choose another --identity, or move the old one away if this host is to join anew",
        ));
    }
    let unreachable = |error: control_api::DialError| {
        let advice = "check the address and the port, and that the token is of this very coordinator";
        Failure::new("join-unreachable", with_causes(&error), advice)
    };
    let tls = pinned(token.pin()).map_err(unreachable)?;
    let mut client = dial(&coordinator, tls).await.map_err(unreachable)?;
    let key = NewKey::generate()?;
    let request = JoinRequest {
        protocol: PROTOCOL,
        token: token.to_string(),
        host: name.to_string(),
        request: key.request()?,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let reply = client.join(request).await.map_err(|status| {
        let advice =
            "ask for a new token with `novaferry host token`; each lets one host in, once, for a while";
        Failure::new("join-refused", format!("the coordinator refuses: {}", status.message()), advice)
    })?;
    let reply = reply.into_inner();
    let certificate = reply.certificate.unwrap_or_default();
    let parts = IdentityParts {
        key: key.pem()?,
        chain: certificate.chain,
        authorities: certificate.authorities,
        revocations: certificate.revocations,
    };
    pki::put_identity(&folder, &parts, false)?;
    Ok(Joined { host: reply.host, site: reply.site, folder, coordinator })
}
