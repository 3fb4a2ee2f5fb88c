use proptest::prelude::*;

use super::*;

fn tcp(host: &str, port: u16, export: &str) -> Uri {
    Uri { address: Address::Tcp { host: host.to_owned(), port }, export: export.to_owned() }
}

fn unix(path: &str, export: &str) -> Uri {
    Uri { address: Address::Unix(path.into()), export: export.to_owned() }
}

#[test]
fn forms_of_the_specification_parse() {
    for (text, expected) in [
        ("nbd://example.com", tcp("example.com", 10809, "")),
        ("nbd://example.com/", tcp("example.com", 10809, "")),
        ("NBD://example.com:1234/disk", tcp("example.com", 1234, "disk")),
        ("nbd://192.0.2.1//leading", tcp("192.0.2.1", 10809, "/leading")),
        ("nbd://[2001:db8::1]:99/a/b", tcp("2001:db8::1", 99, "a/b")),
        ("nbd://[::1]/", tcp("::1", 10809, "")),
        ("nbd://h:/x", tcp("h", 10809, "x")),
        ("nbd://h/a%20b%3f%25", tcp("h", 10809, "a b?%")),
        ("nbd+unix:///?socket=/run/nbd.sock", unix("/run/nbd.sock", "")),
        ("nbd+unix:///disk%2Done?socket=/run/a%26b%20c", unix("/run/a&b c", "disk-one")),
        ("nbd+unix://?socket=relative", unix("relative", "")),
    ] {
        assert_eq!(text.parse::<Uri>(), Ok(expected), "{text}");
    }
}

#[test]
fn every_refusal_has_its_own_error() {
    use UriError as E;
    for (text, expected) in [
        ("/dev/sda", E::Scheme("/dev/sda".into())),
        ("http://h/", E::Scheme("http://h/".into())),
        ("nbds://h/", E::Tls),
        ("nbds+unix:///?socket=/s", E::Tls),
        ("nbd:///x", E::NoHost),
        ("nbd+unix://h/x?socket=/s", E::HostWithUnix),
        ("nbd://[::1/x", E::Host("[::1".into())),
        ("nbd://[h]/x", E::Host("[h]".into())),
        ("nbd://[::1]9/x", E::Host("[::1]9".into())),
        ("nbd://a b/x", E::Host("a b".into())),
        ("nbd://h:0/", E::Port("0".into())),
        ("nbd://h:+1/", E::Port("+1".into())),
        ("nbd://h:65536/", E::Port("65536".into())),
        ("nbd://user@h/", E::User),
        ("nbd+unix:///x", E::NoSocket),
        ("nbd+unix:///x?socket=", E::NoSocket),
        ("nbd+unix:///x?socket=%00", E::NoSocket),
        ("nbd://h/x?socket=/s", E::Parameter("socket".into())),
        ("nbd+unix:///x?socket=/a&socket=/b", E::Parameter("socket".into())),
        ("nbd+unix:///x?tls=1&socket=/s", E::Parameter("tls".into())),
        ("nbd://h/x#y", E::Fragment),
        ("nbd://h/%2", E::Percent),
        ("nbd://h/%zz", E::Percent),
        ("nbd://h/%ff", E::Export),
        ("nbd://h/%00", E::Export),
    ] {
        assert_eq!(text.parse::<Uri>(), Err(expected), "{text}");
    }
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,60}") {
        drop(text.parse::<Uri>());
        drop(format!("nbd://{text}").parse::<Uri>());
        drop(format!("nbd+unix://{text}").parse::<Uri>());
    }

    #[test]
    fn printed_uris_parse_to_themselves(export in "[^\\x00]{0,40}", path in "/[^\\x00]{1,40}", port in 1_u16..) {
        for uri in [unix(&path, &export), tcp("host.example", port, &export), tcp("fe80::1", port, &export)] {
            prop_assert_eq!(uri.to_string().parse::<Uri>(), Ok(uri));
        }
    }
}
