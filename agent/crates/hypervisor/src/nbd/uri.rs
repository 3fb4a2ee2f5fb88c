//! NBD URIs: `nbd://HOST[:PORT]/EXPORT` and `nbd+unix:///EXPORT?socket=PATH`.
//!
//! Source: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md>. The TLS schemes (`nbds`) are known
//! and refused. A user name, a fragment and unknown parameters are refused too, so that no wish is silently ignored.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

use super::client::Address;
use super::wire::MAX_STRING;

/// The port that IANA assigned to NBD.
pub const DEFAULT_PORT: u16 = 10809;

/// A server and one of its exports.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Uri {
    /// Where the server listens.
    pub address: Address,
    /// The export; empty for the default one.
    pub export: String,
}

/// Why a text is no NBD URI that can be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UriError {
    /// Neither `nbd` nor `nbd+unix`.
    #[error("\"{0}\" is not an NBD URI; write nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH")]
    Scheme(String),
    /// A TLS scheme.
    #[error("NBD over TLS is not spoken; use nbd+unix, or nbd through a tunnel")]
    Tls,
    /// No host in `nbd://`.
    #[error("the host is missing; write nbd://HOST/EXPORT")]
    NoHost,
    /// A host in `nbd+unix://`.
    #[error("nbd+unix has no host; write nbd+unix:///EXPORT?socket=PATH with three slashes")]
    HostWithUnix,
    /// A host that is malformed.
    #[error("\"{0}\" is not a host; write a name, an IPv4 address, or an IPv6 address in brackets")]
    Host(String),
    /// A port that is no port.
    #[error("\"{0}\" is not a port; write a number from 1 to 65535")]
    Port(String),
    /// User information.
    #[error("a user name is only of use with TLS, which is not spoken; leave it out")]
    User,
    /// No socket in `nbd+unix://`.
    #[error("the socket is missing; write nbd+unix:///EXPORT?socket=PATH")]
    NoSocket,
    /// A parameter that is not known here.
    #[error("parameter \"{0}\" is not known here; only nbd+unix has one, socket=PATH, once")]
    Parameter(String),
    /// A fragment.
    #[error("an NBD URI has no fragment; write a # in a name as %23")]
    Fragment,
    /// A percent sign without two hexadecimal digits.
    #[error("a % is not followed by two hexadecimal digits; write a % itself as %25")]
    Percent,
    /// An export name that cannot be one.
    #[error("the export name is not UTF-8, contains NUL, or is longer than {MAX_STRING} bytes")]
    Export,
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(UriError::Scheme(text.to_owned()));
        };
        let unix = match scheme.to_ascii_lowercase().as_str() {
            "nbd" => false,
            "nbd+unix" => true,
            "nbds" | "nbds+unix" => return Err(UriError::Tls),
            _ => return Err(UriError::Scheme(text.to_owned())),
        };
        if rest.contains('#') {
            return Err(UriError::Fragment);
        }
        let (place, query) = match rest.split_once('?') {
            Some((place, query)) => (place, Some(query)),
            None => (rest, None),
        };
        let (authority, export) = place.split_once('/').unwrap_or((place, ""));
        if authority.contains('@') {
            return Err(UriError::User);
        }
        let export = String::from_utf8(decode(export)?).or(Err(UriError::Export))?;
        if export.len() > MAX_STRING || export.contains('\0') {
            return Err(UriError::Export);
        }
        let socket = socket(query, unix)?;
        let address = match (unix, socket) {
            (true, _) if !authority.is_empty() => return Err(UriError::HostWithUnix),
            (true, Some(path)) => Address::Unix(path),
            (true, None) => return Err(UriError::NoSocket),
            (false, _) => tcp(authority)?,
        };
        Ok(Self { address, export })
    }
}

fn socket(query: Option<&str>, unix: bool) -> Result<Option<PathBuf>, UriError> {
    let mut socket = None;
    for parameter in query.unwrap_or_default().split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        if !unix || name != "socket" || socket.is_some() {
            return Err(UriError::Parameter(name.to_owned()));
        }
        let path = decode(value)?;
        if path.is_empty() || path.contains(&0) {
            return Err(UriError::NoSocket);
        }
        socket = Some(PathBuf::from(OsString::from_vec(path)));
    }
    Ok(socket)
}

fn tcp(authority: &str) -> Result<Address, UriError> {
    if authority.is_empty() {
        return Err(UriError::NoHost);
    }
    let bad_host = || UriError::Host(authority.to_owned());
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or_else(bad_host)?;
        host.parse::<std::net::Ipv6Addr>().ok().ok_or_else(bad_host)?;
        let port = match after.strip_prefix(':') {
            Some(port) => Some(port),
            None if after.is_empty() => None,
            None => return Err(bad_host()),
        };
        (host.to_owned(), port)
    } else {
        let (host, port) = match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        };
        let host = String::from_utf8(decode(host)?).ok().ok_or_else(bad_host)?;
        let odd = |c: char| c.is_whitespace() || c.is_control() || "/:[]@?#".contains(c);
        if host.is_empty() || host.contains(odd) {
            return Err(bad_host());
        }
        (host, port)
    };
    let port = match port {
        None | Some("") => DEFAULT_PORT,
        Some(port) => {
            let digits = port.bytes().all(|b| b.is_ascii_digit());
            let number = port.parse().ok().filter(|number| digits && *number != 0);
            number.ok_or_else(|| UriError::Port(port.to_owned()))?
        }
    };
    Ok(Address::Tcp { host, port })
}

fn decode(text: &str) -> Result<Vec<u8>, UriError> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || {
            let value = char::from(bytes.next()?).to_digit(16)?;
            u8::try_from(value).ok()
        };
        match (digit(), digit()) {
            (Some(high), Some(low)) => out.push(high << 4 | low),
            _ => return Err(UriError::Percent),
        }
    }
    Ok(out)
}

/// Writes bytes with everything but unreserved characters and `/` escaped.
struct Escaped<'a>(&'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &byte in self.0 {
            if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
                write!(f, "{}", char::from(byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = Escaped(self.export.as_bytes());
        match &self.address {
            Address::Unix(path) => {
                write!(f, "nbd+unix:///{export}?socket={}", Escaped(path.as_os_str().as_bytes()))
            }
            Address::Tcp { host, port } => {
                if host.contains(':') {
                    write!(f, "nbd://[{host}]")?;
                } else {
                    write!(f, "nbd://{}", Escaped(host.as_bytes()))?;
                }
                if *port != DEFAULT_PORT {
                    write!(f, ":{port}")?;
                }
                write!(f, "/{export}")
            }
        }
    }
}

#[cfg(test)]
mod tests;
