//! Targets of what people and foreign programs write: configuration, certificates, NBD servers, clients and URIs.

use hypervisor::nbd::uri::Uri;
use novaferry_agent::config::Config;

/// The agent's configuration file.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::parse(text, None) {
        Ok((config, _)) => {
            for pool in &config.pools {
                assert!(config.pool(pool.name.as_str()).is_some(), "a pool is found by its name");
            }
        }
        Err(error) => assert!(!error.to_string().is_empty(), "an error says what to do"),
    }
}

/// A certificate (DER).
pub fn certificate(data: &[u8]) {
    if let Ok(name) = pki::peer_name(data) {
        assert_eq!(name.as_str().parse(), Ok(name.clone()), "a host name is one");
        assert!(
            !name.as_str().contains(['/', '\0']) && !name.as_str().starts_with('.'),
            "safe as a file name"
        );
    }
}

/// What an NBD server sends.
pub fn nbd_replies(data: &[u8]) {
    let decoded = hypervisor::nbd::wire::decode_anything(data);
    assert!(decoded <= data.len(), "each value takes at least a byte");
}

/// What an NBD client sends.
pub fn nbd_requests(data: &[u8]) {
    let decoded = hypervisor::nbd::wire::decode_requests(data);
    assert!(decoded <= data.len(), "each value takes at least a byte");
}

/// An NBD URI.
pub fn nbd_uri(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match text.parse::<Uri>() {
        Ok(uri) => assert_eq!(uri.to_string().parse(), Ok(uri.clone()), "{uri} is read back"),
        Err(error) => assert!(!error.to_string().is_empty(), "an error says what to do"),
    }
}
