//! Volumes as people name them: a path, an NBD export, or a volume in another host's pool.

use std::ffi::OsStr;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use hypervisor::nbd::Uri;

/// Port of agents unless another is given.
pub const DEFAULT_PORT: u16 = 7440;
/// Scheme of volumes in other hosts' pools.
const SCHEME: &str = "novaferry";
/// Longest host name (RFC 1035, section 2.3.4).
const MAX_HOST: usize = 253;
/// Longest name of a pool or volume.
const MAX_NAME: usize = 128;

/// Where a volume is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VolumeAddress {
    /// A file or block device of this host.
    Path(PathBuf),
    /// An NBD export, which this host reads or writes.
    Nbd(Uri),
    /// A volume in another host's pool.
    Remote(RemoteAddress),
}

/// `novaferry://HOST[:PORT]/POOL/NAME`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RemoteAddress {
    /// Name or address of the host, an IPv6 address without brackets.
    pub host: String,
    /// Its port, for UDP and TCP.
    pub port: u16,
    /// The pool.
    pub pool: String,
    /// The volume in it.
    pub name: String,
}

/// `novaferry://HOST[:PORT]`: another host's agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostAddress {
    /// Name or address of the host, an IPv6 address without brackets.
    pub host: String,
    /// Its port, for UDP and TCP.
    pub port: u16,
}

/// A text that names no volume.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AddressError {
    /// A scheme that is not known.
    #[error(
        "{0:?} is no kind of volume; write a path (./ before it if it holds ://), nbd://HOST/EXPORT, \
         nbd+unix:///EXPORT?socket=PATH or novaferry://HOST:PORT/POOL/NAME"
    )]
    Scheme(String),
    /// An NBD URI that cannot be used.
    #[error(transparent)]
    Nbd(#[from] hypervisor::nbd::uri::UriError),
    /// A host that is none.
    #[error("{0:?} is no host; write a name, an IPv4 address, or an IPv6 address in brackets")]
    Host(String),
    /// A port that is none.
    #[error("{0:?} is no port; write a number from 1 to 65535, or leave it out for {DEFAULT_PORT}")]
    Port(String),
    /// Not two path components.
    #[error("{0:?} does not name a pool and a volume; write novaferry://HOST:PORT/POOL/NAME")]
    Parts(String),
    /// No agent's address.
    #[error("{0:?} is no agent's address; write novaferry://HOST:PORT")]
    NoHost(String),
    /// A name that is not allowed.
    #[error(
        "{0:?} is no name of a pool or volume; write 1 to 128 of a-z, 0-9, '.', '_' and '-', beginning with a letter \
         or a digit"
    )]
    Name(String),
    /// Nothing.
    #[error("the volume's name is empty; write a path or an address")]
    Empty,
    /// A URI with bytes that are no text.
    #[error("an address must be UTF-8; only paths may hold other bytes")]
    NotText,
}

impl VolumeAddress {
    /// Understands an argument of the command line. What has no `://` is a path.
    ///
    /// # Errors
    /// [`AddressError`].
    pub fn parse(argument: &OsStr) -> Result<Self, AddressError> {
        if argument.is_empty() {
            return Err(AddressError::Empty);
        }
        let lossy = argument.to_string_lossy();
        let Some((scheme, rest)) = lossy.split_once("://") else {
            return Ok(Self::Path(PathBuf::from(argument)));
        };
        if scheme.contains('/') {
            return Ok(Self::Path(PathBuf::from(argument)));
        }
        if argument.to_str().is_none() {
            return Err(AddressError::NotText);
        }
        match scheme {
            "nbd" | "nbd+unix" | "nbds" | "nbds+unix" => Ok(Self::Nbd(lossy.parse()?)),
            SCHEME => RemoteAddress::parse(rest).map(Self::Remote),
            other => Err(AddressError::Scheme(shorten(other))),
        }
    }
}

impl HostAddress {
    /// `HOST` or `HOST:PORT`, an IPv6 address in brackets.
    ///
    /// # Errors
    /// [`AddressError`].
    pub fn from_authority(authority: &str) -> Result<Self, AddressError> {
        let (host, port) = match authority.strip_prefix('[') {
            Some(inner) => {
                let (host, after) =
                    inner.split_once(']').ok_or_else(|| AddressError::Host(shorten(authority)))?;
                if host.parse::<Ipv6Addr>().is_err() {
                    return Err(AddressError::Host(shorten(host)));
                }
                let port = match after {
                    "" => None,
                    _ => Some(after.strip_prefix(':').ok_or_else(|| AddressError::Host(shorten(authority)))?),
                };
                (host, port)
            }
            None => {
                let (host, port) = match authority.split_once(':') {
                    Some((host, port)) => (host, Some(port)),
                    None => (authority, None),
                };
                if !is_host(host) {
                    return Err(AddressError::Host(shorten(host)));
                }
                (host, port)
            }
        };
        let port = match port {
            None => DEFAULT_PORT,
            Some(text) => {
                let digits = text.bytes().all(|c| c.is_ascii_digit());
                let number = text.parse().ok().filter(|port| digits && *port != 0);
                number.ok_or_else(|| AddressError::Port(shorten(text)))?
            }
        };
        Ok(Self { host: host.to_owned(), port })
    }

    /// `HOST:PORT`, an IPv6 address in brackets.
    #[must_use]
    pub fn authority(&self) -> String {
        let Self { host, port } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

impl FromStr for HostAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.split_once("://") {
            Some((SCHEME, rest)) => Self::from_authority(rest.strip_suffix('/').unwrap_or(rest)),
            _ => Err(AddressError::NoHost(shorten(text))),
        }
    }
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}://{}", self.authority())
    }
}

impl RemoteAddress {
    fn parse(rest: &str) -> Result<Self, AddressError> {
        let (authority, path) = rest.split_once('/').ok_or_else(|| AddressError::Parts(shorten(rest)))?;
        let (pool, name) = path.split_once('/').ok_or_else(|| AddressError::Parts(shorten(path)))?;
        for part in [pool, name] {
            if !is_name(part) {
                return Err(AddressError::Name(shorten(part)));
            }
        }
        let HostAddress { host, port } = HostAddress::from_authority(authority)?;
        Ok(Self { host, port, pool: pool.to_owned(), name: name.to_owned() })
    }
}

impl fmt::Display for RemoteAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, pool, name } = self;
        let agent = HostAddress { host: host.clone(), port: *port };
        write!(f, "{agent}/{pool}/{name}")
    }
}

impl fmt::Display for VolumeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Nbd(uri) => write!(f, "{uri}"),
            Self::Remote(remote) => write!(f, "{remote}"),
        }
    }
}

/// What a mistyped argument may add to a message.
fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

fn is_name(text: &str) -> bool {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.len() <= MAX_NAME
        && text.bytes().next().is_some_and(plain)
        && text.bytes().all(|c| plain(c) || matches!(c, b'.' | b'_' | b'-'))
}

fn is_host(text: &str) -> bool {
    if text.bytes().all(|c| c.is_ascii_digit() || c == b'.') {
        return text.parse::<Ipv4Addr>().is_ok();
    }
    text.len() <= MAX_HOST
        && text.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric())
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<VolumeAddress, AddressError> {
        VolumeAddress::parse(OsStr::new(text))
    }

    fn remote(host: &str, port: u16, pool: &str, name: &str) -> VolumeAddress {
        VolumeAddress::Remote(RemoteAddress {
            host: host.to_owned(),
            port,
            pool: pool.to_owned(),
            name: name.to_owned(),
        })
    }

    #[test]
    fn remote_volumes() {
        assert_eq!(parse("novaferry://host-b/gold/web-1").unwrap(), remote("host-b", 7440, "gold", "web-1"));
        assert_eq!(parse("novaferry://10.0.0.1:99/g/w.img").unwrap(), remote("10.0.0.1", 99, "g", "w.img"));
        assert_eq!(parse("novaferry://[::1]:7441/g/w").unwrap(), remote("::1", 7441, "g", "w"));
        assert_eq!(parse("novaferry://[fe80::1]/g/w").unwrap(), remote("fe80::1", 7440, "g", "w"));
        for text in ["novaferry://[::1]:7441/g/w", "novaferry://a.example:1/g/w"] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn agents() {
        let is = |text: &str, host: &str, port: u16| {
            assert_eq!(text.parse(), Ok(HostAddress { host: host.to_owned(), port }), "{text}");
        };
        is("novaferry://host-b", "host-b", 7440);
        is("novaferry://host-b:99/", "host-b", 99);
        is("novaferry://[fe80::1]:99", "fe80::1", 99);
        let back: HostAddress = "novaferry://[fe80::1]:99".parse().unwrap();
        assert_eq!(back.to_string(), "novaferry://[fe80::1]:99");
        assert_eq!("host-b:99".parse::<HostAddress>(), Err(AddressError::NoHost("host-b:99".to_owned())));
        for bad in ["novaferry://host-b/gold", "novaferry://", "novaferry://h:0", "nbd://host-b"] {
            assert!(bad.parse::<HostAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_no_remote_volume_is_refused_by_the_part_that_is_wrong() {
        use AddressError as E;
        let is = |text: &str, expected: fn(String) -> AddressError, part: &str| {
            assert_eq!(parse(text).unwrap_err(), expected(part.to_owned()), "{text}");
        };
        is("novaferry://host", E::Parts, "host");
        is("novaferry://host/pool", E::Parts, "pool");
        is("novaferry://host/pool/", E::Name, "");
        is("novaferry://host/pool/a/b", E::Name, "a/b");
        is("novaferry://host/pool/..", E::Name, "..");
        is("novaferry://host/pool/Upper", E::Name, "Upper");
        is("novaferry://host/po%6fl/x", E::Name, "po%6fl");
        is("novaferry:///pool/x", E::Host, "");
        is("novaferry://::1/pool/x", E::Host, "");
        is("novaferry://[::1/pool/x", E::Host, "[::1");
        is("novaferry://[::g]/pool/x", E::Host, "::g");
        is("novaferry://[::1]7/pool/x", E::Host, "[::1]7");
        is("novaferry://1.2.3/pool/x", E::Host, "1.2.3");
        is("novaferry://user@host/pool/x", E::Host, "user@host");
        is("novaferry://host:0/pool/x", E::Port, "0");
        is("novaferry://host:+7/pool/x", E::Port, "+7");
        is("novaferry://host:65536/pool/x", E::Port, "65536");
        is("novaferry://host:/pool/x", E::Port, "");
        is("http://host/pool/x", E::Scheme, "http");
        assert_eq!(parse("").unwrap_err(), E::Empty);
        assert_eq!(parse("nbds://host/x").unwrap_err(), E::Nbd(hypervisor::nbd::uri::UriError::Tls));
        let long = format!("novaferry://h/p/{}", "x".repeat(129));
        assert!(matches!(parse(&long), Err(E::Name(_))));
    }

    #[test]
    fn paths_and_exports() {
        let path = |text: &str| assert_eq!(parse(text).unwrap(), VolumeAddress::Path(PathBuf::from(text)));
        path("disk.img");
        path("/dev/vg/lv");
        path("C:\\x");
        path("./novaferry://h/p/n");
        path("/a/nbd://x");
        assert!(matches!(parse("nbd+unix:///e?socket=/run/s"), Ok(VolumeAddress::Nbd(_))));
        assert!(matches!(parse("nbd://host/e"), Ok(VolumeAddress::Nbd(_))));
    }
}
