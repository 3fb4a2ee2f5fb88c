//! The little that the emulator has to know about IP packets: which of them carry UDP.

/// IANA protocol numbers.
const HOP_BY_HOP: u8 = 0;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

const IPV6_HEADER: usize = 40;

/// Longest chain of IPv6 extension headers that is followed; the RFC 8200 order has at most six before the payload.
const MAX_EXTENSION_HEADERS: usize = 8;

/// Whether `packet` is an IPv4 or IPv6 packet (or a fragment of one) that carries UDP. Anything malformed is not.
pub(crate) fn is_udp(packet: &[u8]) -> bool {
    match packet.first().map(|first| first >> 4) {
        Some(4) => packet.get(9) == Some(&UDP),
        Some(6) => ipv6_payload(packet) == Some(UDP),
        _ => false,
    }
}

/// The protocol after the extension headers of an IPv6 packet (RFC 8200 section 4).
fn ipv6_payload(packet: &[u8]) -> Option<u8> {
    let mut next = *packet.get(6)?;
    let mut at = IPV6_HEADER;
    for _ in 0..MAX_EXTENSION_HEADERS {
        let length = match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => 8 * (1 + usize::from(*packet.get(at + 1)?)),
            FRAGMENT => 8,
            protocol => return Some(protocol),
        };
        next = *packet.get(at)?;
        at += length;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, IPV6_HEADER, UDP, is_udp};

    const TCP: u8 = 6;

    fn ipv4(protocol: u8) -> Vec<u8> {
        let mut packet = vec![0; 28];
        packet[0] = 0x45;
        packet[9] = protocol;
        packet
    }

    fn ipv6(chain: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; IPV6_HEADER];
        packet[0] = 0x60;
        packet[6] = chain[0];
        for next in &chain[1..] {
            packet.extend([*next, 0, 0, 0, 0, 0, 0, 0]);
        }
        packet.extend([0; 8]);
        packet
    }

    #[test]
    fn knows_udp_in_both_families() {
        assert!(is_udp(&ipv4(UDP)));
        assert!(!is_udp(&ipv4(TCP)));
        assert!(is_udp(&ipv6(&[UDP])));
        assert!(!is_udp(&ipv6(&[TCP])));
        assert!(is_udp(&ipv6(&[FRAGMENT, UDP])));
        assert!(is_udp(&ipv6(&[HOP_BY_HOP, DESTINATION_OPTIONS, UDP])));
        assert!(!is_udp(&ipv6(&[DESTINATION_OPTIONS, TCP])));
    }

    #[test]
    fn malformed_packets_are_not_udp() {
        assert!(!is_udp(&[]));
        assert!(!is_udp(&[0x45]));
        assert!(!is_udp(&[0x60, 0, 0, 0, 0, 0, FRAGMENT]));
        assert!(!is_udp(&ipv6(&[HOP_BY_HOP; 12])), "an endless chain is given up");
    }
}
