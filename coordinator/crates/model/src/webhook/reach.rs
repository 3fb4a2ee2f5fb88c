//! Where webhooks may be sent: the rule that keeps whoever may add one from reaching into the coordinator's network.
//! It is asked of each resolved address as it is dialled; a name says nothing about where it leads.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Where clouds tell a machine its own secrets, beside link-local addresses. No setting opens these.
const METADATA: [IpAddr; 7] = [
    // Alibaba Cloud, and Azure's wire server.
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    // AWS, instances and pods; Google Cloud; Oracle Cloud; Scaleway.
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42)),
];

/// Link-local addresses, where most clouds have their metadata, and a prefix (RFC 8215) that hides what it leads to.
fn is_hidden(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => {
            address.is_unicast_link_local() || address.segments()[..3] == [0x64, 0xff9b, 1]
        }
    }
}

/// How far webhooks reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Reach {
    /// The public network, by HTTPS.
    #[default]
    Public,
    /// Private networks and this machine, too, and by plain HTTP.
    Private,
    /// Nowhere: nothing is sent.
    Off,
}

/// Somewhere that they do not reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unreachable {
    /// No URL of a host.
    #[error("this is no URL; write it as https://HOST/PATH, without a user or password in it")]
    NoUrl,
    /// Plain HTTP.
    #[error("webhooks are sent by https; plain http is allowed by `novaferry serve --webhooks private`")]
    Plain,
    /// None are sent at all.
    #[error("webhooks are off; `novaferry serve --webhooks public` lets them be sent")]
    Off,
}

/// A word that is none of these.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("choose public, private or off")]
pub struct InvalidReach;

impl FromStr for Reach {
    type Err = InvalidReach;
    fn from_str(text: &str) -> Result<Self, InvalidReach> {
        match text {
            "public" => Ok(Self::Public),
            "private" => Ok(Self::Private),
            "off" => Ok(Self::Off),
            _ => Err(InvalidReach),
        }
    }
}

impl Reach {
    /// Whether a URL may be sent to at all; where its name leads is asked when it is dialled.
    ///
    /// # Errors
    /// Why not.
    pub fn allows(self, url: &str) -> Result<(), Unreachable> {
        let (scheme, rest) = url.split_once("://").ok_or(Unreachable::NoUrl)?;
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        // A user would be sent as a header, and a fragment never.
        let plain = host.contains('@') || host.is_empty() || url.contains('#');
        if plain || !url.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Unreachable::NoUrl);
        }
        match (self, scheme) {
            (Self::Off, _) => Err(Unreachable::Off),
            (_, "https") | (Self::Private, "http") => Ok(()),
            (Self::Public, "http") => Err(Unreachable::Plain),
            _ => Err(Unreachable::NoUrl),
        }
    }

    /// Whether an address may be dialled.
    #[must_use]
    pub fn may_dial(self, address: IpAddr) -> bool {
        // The same place by another spelling, or through a gateway of the network.
        let address = inner(address.to_canonical());
        let never = METADATA.contains(&address) || is_hidden(address);
        if never || address.is_unspecified() || address.is_multicast() {
            return false;
        }
        match (self, address) {
            (Self::Off, _) => false,
            (Self::Private, _) => true,
            (Self::Public, IpAddr::V4(address)) => is_public_v4(address),
            (Self::Public, IpAddr::V6(address)) => is_public_v6(address),
        }
    }
}

/// The IPv4 address that an IPv6 address leads to: NAT64 (RFC 6052), 6to4 (RFC 3056), IPv4-translated (RFC 2765),
/// IPv4-compatible (RFC 4291).
fn inner(address: IpAddr) -> IpAddr {
    let IpAddr::V6(six) = address else { return address };
    let segments = six.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        [0, 0, 0, 0, 0xffff, 0, high, low] => v4(high, low),
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => v4(high, low),
        _ => address,
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [first, second, third, _] = address.octets();
    let special = address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_documentation()
        || first == 0
        // Shared by carriers (RFC 6598), protocol assignments, benchmarks, reserved and broadcast.
        || (first == 100 && second & 0xc0 == 64)
        || (first == 192 && second == 0 && third == 0)
        || (first == 198 && second & 0xfe == 18)
        || first >= 240;
    !special
}

/// Only global unicast, without the prefixes that carry an IPv4 address (Teredo) or are for documentation.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.segments();
    let documentation = (first == 0x2001 && second == 0xdb8) || (first == 0x3fff && second & 0xf000 == 0);
    first & 0xe000 == 0x2000 && !(first == 0x2001 && second == 0) && !documentation
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(addresses: &[&str], reach: Reach) -> Vec<bool> {
        addresses.iter().map(|text| reach.may_dial(text.parse().unwrap())).collect()
    }

    #[test]
    fn private_addresses_need_the_operators_word() {
        let inside = [
            "127.0.0.1",
            "10.1.2.3",
            "172.31.0.1",
            "192.168.1.1",
            "100.127.0.1",
            "198.19.0.1",
            "::1",
            "fd12::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "2002:a00:1::1",
            "2001::1",
            "::10.0.0.1",
        ];
        assert_eq!(all(&inside, Reach::Public), vec![false; inside.len()]);
        assert_eq!(all(&inside, Reach::Private), vec![true; inside.len()]);
        let outside = [
            "1.1.1.1",
            "100.128.0.1",
            "172.32.0.1",
            "198.20.0.1",
            "2606:4700::1111",
            "2001:4860::1",
            "64:ff9b::101:101",
        ];
        assert_eq!(all(&outside, Reach::Public), vec![true; outside.len()]);
        assert_eq!(all(&outside, Reach::Off), vec![false; outside.len()]);
    }

    #[test]
    fn metadata_of_clouds_is_never_reached() {
        let never = [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "::169.254.169.254",
            "169.254.170.2",
            "169.254.170.23",
            "169.254.1.1",
            "fe80::a9fe:a9fe",
            "::ffff:0:a9fe:a9fe",
            "64:ff9b:1::a9fe:a9fe",
            "100.100.100.200",
            "168.63.129.16",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",
            "fd00:c1::a9fe:a9fe",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "ff02::1",
        ];
        assert_eq!(all(&never, Reach::Private), vec![false; never.len()]);
    }

    #[test]
    fn only_urls_of_hosts_are_sent_to() {
        use Unreachable as U;
        let good = ["https://example.org", "https://example.org:8443/a/b?c=d", "https://[2606:4700::1]/x"];
        for url in good {
            assert_eq!(Reach::Public.allows(url), Ok(()), "{url}");
            assert_eq!(Reach::Off.allows(url), Err(U::Off), "{url}");
        }
        for url in [
            "example.org",
            "ftp://example.org",
            "file:///etc/passwd",
            "https://",
            "https:///x",
            "https://user:word@example.org",
            "https://example.org/a b",
            "https://example.org/\r\nx",
            "https://example.org/#x",
        ] {
            assert_eq!(Reach::Private.allows(url), Err(U::NoUrl), "{url}");
        }
        assert_eq!(Reach::Public.allows("http://example.org"), Err(U::Plain));
        assert_eq!(Reach::Private.allows("http://127.0.0.1:1/x"), Ok(()));
    }
}
