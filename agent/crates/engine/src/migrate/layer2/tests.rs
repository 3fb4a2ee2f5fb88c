use std::path::Path;

use super::facts::segment_below;
use super::*;

fn mac(text: &str) -> Mac {
    text.parse().unwrap()
}

fn prefix(address: &str, length: u8) -> Prefix {
    Prefix { address: address.parse().unwrap(), length }
}

fn bridge(name: &str, own: &str, networks: &[Prefix], neighbours: &[&str]) -> Segment {
    Segment {
        bridge: name.to_owned(),
        prefixes: networks.iter().copied().collect(),
        own: BTreeSet::from([mac(own)]),
        neighbours: neighbours.iter().map(|text| mac(text)).collect(),
        ..Segment::default()
    }
}

#[test]
fn who_has_seen_the_other_is_in_its_network() {
    let there = bridge("br0", "06:00:00:00:00:01", &[prefix("10.1.0.0", 24)], &[]);
    // Even with other addresses: two networks may share a wire.
    let here = bridge("br7", "06:00:00:00:00:02", &[prefix("10.2.0.0", 24)], &["06:00:00:00:00:01"]);
    assert_eq!(judge(&there, &here), Verdict::Same);
    assert_eq!(judge(&here, &there), Verdict::Same);
    assert_eq!(judge(&there, &there), Verdict::Same, "two agents of one host");
}

#[test]
fn a_neighbour_in_common_proves_it_unless_software_made_it_up() {
    let pair = |neighbour: &str| {
        let there = bridge("br0", "06:00:00:00:00:01", &[], &[neighbour]);
        let here = bridge("br7", "06:00:00:00:00:02", &[], &[neighbour]);
        judge(&there, &here)
    };
    assert_eq!(pair("3c:fd:fe:00:00:07"), Verdict::Same);
    // QEMU's first default, Docker's, a virtual router's: the same in many networks.
    for made_up in ["52:54:00:12:34:56", "02:42:ac:11:00:02", "00:00:5e:00:01:07", "01:00:5e:00:00:01"] {
        assert!(matches!(pair(made_up), Verdict::Unknown(_)), "{made_up}");
    }
}

#[test]
fn other_networks_or_another_gateway_differ_and_silence_is_said() {
    let there = bridge("br0", "06:00:00:00:00:01", &[prefix("10.1.0.0", 24)], &[]);
    let here = |networks: &[Prefix]| bridge("br7", "06:00:00:00:00:02", networks, &[]);
    let Verdict::Differs(why) = judge(&there, &here(&[prefix("10.2.0.0", 24)])) else { panic!() };
    assert_eq!(why, "br0 there is in 10.1.0.0/24, br7 here in 10.2.0.0/24");
    // One within the other, another protocol, none: nothing follows from that.
    for networks in [&[prefix("10.1.0.0", 16)][..], &[prefix("fd00::", 64)], &[]] {
        assert!(matches!(judge(&there, &here(networks)), Verdict::Unknown(_)), "{networks:?}");
    }
    let gateway = |mut segment: Segment, address: &str| {
        segment.gateway = Some(Gateway { address: Ipv4Addr::new(10, 1, 0, 1), mac: mac(address) });
        segment
    };
    let one = gateway(there.clone(), "3c:fd:fe:00:00:01");
    let other = gateway(here(&[prefix("10.1.0.0", 24)]), "3c:fd:fe:00:00:02");
    let Verdict::Differs(why) = judge(&one, &other) else { panic!() };
    assert_eq!(why, "the gateway 10.1.0.1 is 3c:fd:fe:00:00:01 there and 3c:fd:fe:00:00:02 here");
}

#[test]
fn addresses_are_read_strictly() {
    assert_eq!(mac("3C:fd:fe:00:00:07").to_string(), "3c:fd:fe:00:00:07");
    for wrong in ["", "3c:fd:fe:00:00", "3c:fd:fe:00:00:07:08", "3c:fd:fe:00:0:07", "3c:fd:fe:00:00:0g"] {
        assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
        assert!(serde_json::from_value::<Mac>(wrong.into()).is_err(), "{wrong}");
    }
}

fn write(root: &Path, path: &str, content: &[u8]) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

/// `/proc/net/route` has numbers of this machine's byte order.
fn number(address: [u8; 4]) -> String {
    format!("{:08X}", u32::from_ne_bytes(address))
}

#[test]
fn the_kernels_tables_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    assert_eq!(segment_below(root, "br0"), None);
    write(root, "sys/class/net/br0/address", b"06:00:00:00:00:01\n");
    let entry = |mac: [u8; 6], local: u8| [&mac[..], &[1, local], &[0; 8]].concat();
    let table = [entry([6, 0, 0, 0, 0, 9], 1), entry([0x3c, 0xfd, 0xfe, 0, 0, 7], 0), vec![1, 2, 3]].concat();
    write(root, "sys/class/net/br0/brforward", &table);
    let arp = "IP address  HW type  Flags  HW address  Mask  Device\n\
               10.1.0.1  0x1  0x2  3c:fd:fe:00:00:01  *  br0\n\
               10.1.0.9  0x1  0x0  00:00:00:00:00:00  *  br0\n\
               10.9.0.9  0x1  0x2  3c:fd:fe:00:00:99  *  eth9\nrubbish\n";
    write(root, "proc/self/net/arp", arp.as_bytes());
    let none = number([0; 4]);
    let routes = format!(
        "Iface Destination Gateway Flags RefCnt Use Metric Mask\nbr0 {none} {} 0003 0 0 0 {none}\nbr0 {} {none} 0001 0 0 0 {}\n",
        number([10, 1, 0, 1]),
        number([10, 1, 0, 0]),
        number([255, 255, 255, 0])
    );
    write(root, "proc/self/net/route", routes.as_bytes());
    let addresses = "fd000000000000000000000000000001 02 40 00 80      br0\n\
                     fe800000000000000000000000000001 02 40 20 80      br0\n";
    write(root, "proc/self/net/if_inet6", addresses.as_bytes());
    let networks = BTreeSet::from([prefix("10.1.0.0", 24), prefix("fd00::", 64)]);
    let expected = Segment {
        bridge: "br0".to_owned(),
        prefixes: networks.clone(),
        host: networks,
        gateway: Some(Gateway { address: Ipv4Addr::new(10, 1, 0, 1), mac: mac("3c:fd:fe:00:00:01") }),
        own: BTreeSet::from([mac("06:00:00:00:00:01"), mac("06:00:00:00:00:09")]),
        neighbours: BTreeSet::from([mac("3c:fd:fe:00:00:01"), mac("3c:fd:fe:00:00:07")]),
    };
    assert_eq!(segment_below(root, "br0").unwrap(), expected);
    let json = serde_json::to_vec(&expected).unwrap();
    assert_eq!(serde_json::from_slice::<Segment>(&json).unwrap(), expected);
    for hostile in ["", "..", "a/b", "name-that-is-too-long"] {
        assert_eq!(segment_below(root, hostile), None);
    }
}

#[test]
fn a_full_segment_of_each_bridge_fits_a_message() {
    let wide = |n: usize| Mac([0x3c, 0xfd, 0xfe, 0, 0, u8::try_from(n).unwrap()]);
    let networks: BTreeSet<Prefix> =
        (0..MAX_OWN).map(|n| prefix(&format!("2001:db8:ffff:ffff:ffff:ffff:ffff:ff{n:02x}"), 128)).collect();
    let full = Segment {
        bridge: "b".repeat(15),
        prefixes: networks.clone(),
        host: networks,
        gateway: None,
        own: (100..100 + MAX_OWN).map(wide).collect(),
        neighbours: (0..MAX_NEIGHBOURS).map(wide).collect(),
    };
    let bytes = serde_json::to_vec(&vec![full; MAX_SEGMENTS]).unwrap();
    assert!(bytes.len() < wire::MAX_CONTROL_BODY / 2, "{} bytes", bytes.len());
}

fn card(id: &str, backend: NetworkBackend) -> NetworkDevice {
    NetworkDevice {
        id: id.to_owned(),
        model: "virtio-net-pci".to_owned(),
        device_id: None,
        mac: "52:54:00:00:00:01".to_owned(),
        backend,
        properties: Vec::new(),
    }
}

#[test]
fn findings_name_the_card_and_what_to_do() {
    let on = |name: &str| NetworkBackend::Bridge { name: name.to_owned() };
    let cards = [
        card("same", on("br0")),
        card("other", on("br1")),
        card("silent", on("br2")),
        card("tap", NetworkBackend::Tap {}),
        card("nat", NetworkBackend::User {}),
        card("loose", NetworkBackend::Disconnected {}),
        card("unplugged", on("br3")),
        card("undescribed", on("br9")),
    ];
    let there = [
        bridge("br0", "06:00:00:00:00:01", &[], &["3c:fd:fe:00:00:07"]),
        bridge("br1", "06:00:00:00:00:02", &[prefix("10.1.0.0", 24)], &[]),
        bridge("br2", "06:00:00:00:00:03", &[], &[]),
        bridge("br3", "06:00:00:00:00:04", &[], &[]),
    ];
    let default = "vm0".to_owned();
    let bridges = BTreeMap::from([("br3".to_owned(), "gone".to_owned())]);
    let here = |name: &str| {
        let own = [prefix("10.2.0.0", 24)];
        (name == "vm0").then(|| bridge("vm0", "06:00:00:00:00:11", &own, &["3c:fd:fe:00:00:07"]))
    };
    let found = findings(cards.iter(), &there, &bridges, Some(&default), here);
    let seen: Vec<_> = found.iter().map(|one| (one.rule.as_str(), one.blocking)).collect();
    let warning = ("layer-2", false);
    assert_eq!(seen, [warning, warning, warning, ("bridge", true), warning], "{found:#?}");
    assert!(
        found[0].evidence.starts_with("network card other comes to another layer-2 network: br1 there is in")
    );
    assert!(found[0].fix.starts_with("stretch the VLAN"), "{}", found[0].fix);
    assert!(found[1].evidence.starts_with("whether network card silent stays"), "{}", found[1].evidence);
    assert!(found[2].evidence.contains("the source does not know the bridge"), "{}", found[2].evidence);
    assert!(found[3].evidence.contains("no bridge gone"), "{}", found[3].evidence);
    // No bridge stands for a card: that is said elsewhere.
    assert_eq!(findings(cards[..1].iter(), &there, &BTreeMap::new(), None, here), []);
}
