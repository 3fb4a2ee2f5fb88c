use std::error::Error as _;
use std::path::Path;

use super::units::{ByteSize, InvalidUnit, Rate};
use super::vms::NamedVm;
use super::*;

fn parse(text: &str) -> Config {
    let (config, warnings) = Config::parse(text, None).unwrap();
    assert_eq!(warnings, []);
    config
}

fn message(text: &str) -> String {
    Config::parse(text, None).unwrap_err().to_string()
}

#[test]
fn an_empty_file_is_all_defaults() {
    let config = parse("");
    assert_eq!(config.listen, "0.0.0.0:7440".parse().unwrap());
    assert_eq!(config.metrics, Some("127.0.0.1:9477".parse().unwrap()));
    assert_eq!(config.identity, IdentityPaths::in_folder(Path::new("/etc/novaferry/identity")));
    assert_eq!(config.control, Path::new("/run/novaferry/agent.sock"));
    assert_eq!(config.state, Path::new("/var/lib/novaferry"));
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.log, Log { format: LogFormat::Text, level: "info".into() });
    assert_eq!((config.pools.len(), config.otlp), (0, None));
    assert_eq!(config.vms.folder, Path::new("/var/lib/novacron/vms"));
    assert_eq!(config.vms.vmd, Path::new("/run/novaferry-vmd/vmd.sock"));
    assert_eq!(config.migrate_in.allow, []);
    assert_eq!(config.migrate_in.slots(), 65_536);
}

#[test]
fn every_key_is_taken() {
    let config = parse(
        r#"
        state_dir = "/srv/state"
        [listen]
        address = "[::]:7441"
        [identity]
        dir = "/srv/identity"
        [[pool]]
        name = "gold"
        path = "/srv/gold"
        quota = "100GiB"
        push = ["host-a", "host-b"]
        pull = ["host-a"]
        [metrics]
        listen = "off"
        [limits]
        sessions = 8
        sessions_per_peer = 2
        session_memory = "32MiB"
        total_memory = 268435456
        dedup_memory = "0"
        rate = "200Mbit/s"
        migrations = 2
        [control]
        socket = "/srv/agent.sock"
        [log]
        format = "json"
        level = "novaferry_engine=debug,info"
        [otlp]
        endpoint = "http://127.0.0.1:4318/"
        [vms]
        folder = "/srv/vms"
        vmd = "/srv/vmd.sock"
        runtime = "/srv/run"
        [[vm]]
        name = "web"
        qmp = "/srv/web.sock"
        folder = "/srv/web"
        tenant = "acme"
        labels = { "novaferry.anti-affinity" = "db", tier = "web" }
        [migrate_in]
        allow = ["host-a"]
        pool = "gold"
        default_bridge = "br0"
        bridges = { lan = "br1" }
        boot = "/srv/boot"
        firmware = "/srv/firmware"
        ram_cache = "1MiB"
        "#,
    );
    assert_eq!(config.listen, "[::]:7441".parse().unwrap());
    let pool = config.pool("gold").unwrap();
    assert_eq!(pool.quota, Some(ByteSize(100 << 30)));
    assert_eq!(pool.push.iter().map(|peer| peer.as_str()).collect::<Vec<_>>(), ["host-a", "host-b"]);
    assert_eq!(config.metrics, None);
    assert_eq!(
        config.limits,
        Limits {
            sessions: 8,
            sessions_per_peer: 2,
            session_memory: ByteSize(32 << 20),
            total_memory: ByteSize(256 << 20),
            dedup_memory: None,
            rate: Some(Rate::from_bytes_per_second(25_000_000)),
            migrations: 2,
        }
    );
    let Vms { folder, vmd, runtime, named } = config.vms;
    assert_eq!([folder, vmd, runtime], ["/srv/vms", "/srv/vmd.sock", "/srv/run"].map(PathBuf::from));
    let labels = [("novaferry.anti-affinity", "db"), ("tier", "web")];
    let web = NamedVm {
        name: "web".into(),
        qmp: "/srv/web.sock".into(),
        folder: Some("/srv/web".into()),
        tenant: "acme".into(),
        labels: labels.map(|(name, value)| (name.into(), value.into())).into(),
    };
    assert_eq!(named, [web]);
    let MigrateIn { allow, pool, default_bridge, bridges, boot, firmware, ram_cache } =
        config.migrate_in.clone();
    assert_eq!(allow.iter().map(|peer| peer.as_str()).collect::<Vec<_>>(), ["host-a"]);
    assert_eq!(pool.unwrap().as_str(), "gold");
    assert_eq!(default_bridge.as_deref(), Some("br0"));
    assert_eq!(bridges, [("lan".to_owned(), "br1".to_owned())].into());
    assert_eq!([boot, firmware], ["/srv/boot", "/srv/firmware"].map(|path| Some(path.into())));
    assert_eq!((ram_cache, config.migrate_in.slots()), (ByteSize(1 << 20), 256));
    assert_eq!(config.otlp.unwrap().endpoint, "http://127.0.0.1:4318");
}

#[test]
fn unknown_keys_are_warnings_with_their_place() {
    let text = "colour = 1\n[listen]\nadress = \"x\"\n[[pool]]\nname = \"a\"\npath = \"/a\"\nqouta = 1\n[metrcis]\na = 1";
    let (_, warnings) = Config::parse(text, None).unwrap();
    let mut keys: Vec<_> = warnings.iter().map(|warning| warning.key.as_str()).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["colour", "listen.adress", "metrcis", "pool.0.qouta"]);
    assert_eq!(
        Warning { key: "metrcis".into() }.to_string(),
        "unknown key metrcis is ignored; remove it or correct its spelling"
    );
}

#[test]
fn messages_name_the_key_the_value_and_what_to_write() {
    let pool = |rest: &str| format!("[[pool]]\nname = \"a\"\npath = \"/srv/a\"\n{rest}");
    for (text, expected) in [
        (
            "[listen]\naddress = \"7440\"".to_owned(),
            r#"listen.address = "7440" is not possible; write an address and a port, such as "0.0.0.0:7440""#,
        ),
        (
            "[metrics]\nlisten = \"none\"".into(),
            r#"metrics.listen = "none" is not possible; write an address and a port, such as "127.0.0.1:9477""#,
        ),
        (
            "state_dir = \"state\"".into(),
            r#"state_dir = "state" is not possible; write an absolute path without '..', such as "/var/lib/novaferry""#,
        ),
        ("[log]\nformat = \"xml\"".into(), r#"log.format = "xml" is not possible; write "text" or "json""#),
        (
            "[log]\nlevel = \"engine=loud\"".into(),
            r#"log.level = "engine=loud" is not possible; write error, warn, info, debug or trace, or a list such as "novaferry_engine=debug,info""#,
        ),
        (
            "[otlp]\nendpoint = \"127.0.0.1:4318\"".into(),
            r#"otlp.endpoint = "127.0.0.1:4318" is not possible; write the collector's base address, such as "http://127.0.0.1:4318""#,
        ),
        (
            "[otlp]".into(),
            r#"otlp.endpoint is missing; write the collector's base address, such as "http://127.0.0.1:4318""#,
        ),
        (
            "[identity]\nkey_credential = \"key.pem\"".into(),
            r#"identity.key_credential = "key.pem" is not possible; run the agent as a systemd service with LoadCredential=key.pem:PATH, or remove this key so that the private key is read from identity.dir"#,
        ),
        (
            "[limits]\nsessions = 0".into(),
            r#"limits.sessions = "0" is not possible; write 1 or more, such as 64"#,
        ),
        (
            "[limits]\nsessions = 4\nsessions_per_peer = 5".into(),
            r#"limits.sessions_per_peer = "5" is not possible; write 1 to 4 (limits.sessions)"#,
        ),
        (
            "[limits]\nsession_memory = \"1MiB\"".into(),
            r#"limits.session_memory = "1MiB" is not possible; write 16MiB or more"#,
        ),
        (
            "[limits]\nsession_memory = \"1GiB\"\ntotal_memory = \"512MiB\"".into(),
            r#"limits.total_memory = "512MiB" is not possible; write 1GiB or more"#,
        ),
        (
            "[limits]\nrate = \"8kbit/s\"".into(),
            r#"limits.rate = "8kbit/s" is not possible; write 100kbit/s or more, or remove the key for no limit"#,
        ),
        (
            "[limits]\nmigrations = 0".into(),
            r#"limits.migrations = "0" is not possible; write 1 or more, such as 4; [migrate_in] allow says who may come"#,
        ),
        (
            "[[vm]]\nname = \"web\"".into(),
            "vm.0.qmp is missing; write the socket at which its QEMU listens (-qmp \
             unix:/run/web/qmp.sock,server=on,wait=off)",
        ),
        (
            "[[vm]]\nname = \"../web\"\nqmp = \"/a\"".into(),
            r#"vm.0.name = "../web" is not possible; write 1 to 128 of a-z, 0-9, '.', '_' and '-', beginning with a letter or a digit"#,
        ),
        (
            "[[vm]]\nname = \"a\"\nqmp = \"/a\"\ntenant = \"a\\nb\"".into(),
            r#"vm.0.tenant = "a\nb" is not possible; write at most 256 bytes, without control characters"#,
        ),
        (
            "[[vm]]\nname = \"a\"\nqmp = \"/a\"\nlabels = { \"\" = \"x\" }".into(),
            r#"vm.0.labels = "" is not possible; write at most 256 bytes, without control characters, and one at least"#,
        ),
        (
            format!("[[vm]]\nname = \"a\"\nqmp = \"/a\"\n[vm.labels]\n{}", many_labels()),
            r#"vm.0.labels = "65" is not possible; write at most 64 labels"#,
        ),
        (
            "[[vm]]\nname = \"a\"\nqmp = \"/a\"\n[[vm]]\nname = \"a\"\nqmp = \"/b\"".into(),
            r#"vm.1.name = "a" is not possible; there is a VM of this name above: give each a name of its own"#,
        ),
        (
            "[vms]\nvmd = \"vmd.sock\"".into(),
            r#"vms.vmd = "vmd.sock" is not possible; write an absolute path without '..', such as "/run/novaferry-vmd/vmd.sock""#,
        ),
        (
            "[migrate_in]\npool = \"gold\"".into(),
            r#"migrate_in.pool = "gold" is not possible; write the name of a [[pool]] of this file"#,
        ),
        (
            "[migrate_in]\nbridges = { br0 = \"a/b\" }".into(),
            r#"migrate_in.bridges.br0 = "a/b" is not possible; write the name of a bridge, such as "br0""#,
        ),
        (
            "[migrate_in]\nram_cache = \"4KiB\"".into(),
            r#"migrate_in.ram_cache = "4KiB" is not possible; write 1MiB to 64GiB, such as "256MiB""#,
        ),
        (
            "[[pool]]\npath = \"/a\"".into(),
            "pool.0.name is missing; write 1 to 128 of a-z, 0-9, '.', '_' and '-', beginning with a letter or a digit",
        ),
        (
            "[[pool]]\nname = \"A/b\"\npath = \"/a\"".into(),
            r#"pool.0.name = "A/b" is not possible; write 1 to 128 of a-z, 0-9, '.', '_' and '-', beginning with a letter or a digit"#,
        ),
        (
            "[[pool]]\nname = \"a\"".into(),
            r#"pool.0.path is missing; write a folder, such as "/srv/novaferry/a""#,
        ),
        (
            "[[pool]]\nname = \"a\"\npath = \"/srv/../etc\"".into(),
            r#"pool.0.path = "/srv/../etc" is not possible; write an absolute path without '..', such as "/srv/novaferry/a""#,
        ),
        (
            "[[pool]]\nname = \"a\"\npath = \"/\"".into(),
            r#"pool.0.path = "/" is not possible; the root folder cannot be a pool: write one such as "/srv/novaferry/a""#,
        ),
        (
            pool("[[pool]]\nname = \"a\"\npath = \"/srv/b\""),
            r#"pool.1.name = "a" is not possible; there is a pool of this name above: give each pool a name of its own"#,
        ),
        (
            pool("[[pool]]\nname = \"b\"\npath = \"/srv/a/b\""),
            r#"pool.1.path = "/srv/a/b" is not possible; it and /srv/a of pool a lie in one another: give each pool a folder of its own"#,
        ),
        (
            pool("push = [\"Host A\"]"),
            r#"pool.0.push = "Host A" is not possible; write host names as in `pki issue NAME`, such as "host-a""#,
        ),
        (
            pool("pull = [\"b\", \"b\"]"),
            r#"pool.0.pull = "b" is not possible; it stands there twice: remove one"#,
        ),
        (
            pool("quota = 0"),
            r#"pool.0.quota = "0" is not possible; write a size such as "100GiB", or remove the key for no quota"#,
        ),
    ] {
        assert_eq!(message(&text), expected, "for {text}");
    }
}

#[test]
fn paths_that_only_begin_alike_are_not_nested() {
    parse("[[pool]]\nname = \"a\"\npath = \"/srv/a\"\n[[pool]]\nname = \"b\"\npath = \"/srv/ab\"");
}

#[test]
fn syntax_errors_show_the_line() {
    let text = "[limits]\nsession_memory = \"64 parsecs\"\n";
    let error = Config::parse(text, None).unwrap_err();
    assert_eq!(error.kind(), ConfigErrorKind::Syntax);
    let message = error.to_string();
    assert!(message.contains("line 2"), "{message}");
    assert!(message.contains("\"64 parsecs\" is not a size; write a number and B,"), "{message}");
    assert!(self::message("[limits\n").contains("line 1"));
    assert!(self::message("[listen]\naddress = 7440").contains("string"));
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Path::new("/nonexistent/agent.toml")).unwrap_err();
    assert_eq!(error.kind(), ConfigErrorKind::Read);
    assert_eq!(
        error.to_string(),
        "/nonexistent/agent.toml: cannot be read; check --config; agent.toml.example shows every key"
    );
    assert!(error.source().is_some());
}

#[test]
fn the_key_may_come_from_systemd() {
    let folder = Path::new("/run/credentials/novaferry-agent.service");
    let text = "[identity]\nkey_credential = \"key.pem\"";
    let (config, _) = Config::parse(text, Some(folder)).unwrap();
    assert_eq!(config.identity.key, folder.join("key.pem"));
    assert_eq!(config.identity.key_origin, KeyOrigin::Credential);
    assert_eq!(config.identity.certificate, Path::new("/etc/novaferry/identity/cert.pem"));
    for bad in ["", "..", "a/b", "/etc/shadow", "key.pem/"] {
        let text = format!("[identity]\nkey_credential = {bad:?}");
        assert!(Config::parse(&text, Some(folder)).is_err(), "{bad}");
    }
}

#[test]
fn sizes_and_rates_mean_what_they_say() {
    for (text, bytes) in [
        ("0", 0),
        ("4096", 4096),
        ("4096B", 4096),
        ("1kB", 1000),
        ("1KiB", 1024),
        ("10GB", 10_000_000_000),
        ("100GiB", 100 << 30),
        ("1.5 GiB", 3 << 29),
        ("1TiB", 1 << 40),
    ] {
        assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
    }
    for text in
        ["", "GiB", "-1", "1G", "1Gib", "1.2345GB", "1.", ".5GB", "1e3", "1..2GB", "99999999999TiB", "1 0"]
    {
        assert_eq!(text.parse::<ByteSize>(), Err(InvalidUnit::Size(text.into())));
    }
    for (text, bytes) in [
        ("200Mbit/s", 25_000_000),
        ("50MB/s", 50_000_000),
        ("1.5Gbit/s", 187_500_000),
        ("100MiB/s", 100 << 20),
        ("8bit/s", 1),
    ] {
        assert_eq!(text.parse(), Ok(Rate::from_bytes_per_second(bytes)), "{text}");
    }
    for text in
        ["", "200", "200M", "200Mbit", "200Mb/s", "0MB/s", "1bit/s", "200 Mbit / s", "99999999999TB/s"]
    {
        assert_eq!(text.parse::<Rate>(), Err(InvalidUnit::Rate(text.into())));
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]
    #[test]
    fn what_is_printed_parses_back(bytes in 0_u64..999_999_999_999_999, rate in 1_u64..9_999_999_999) {
        proptest::prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        let rate = Rate::from_bytes_per_second(rate);
        proptest::prop_assert_eq!(rate.to_string().parse(), Ok(rate));
    }

    #[test]
    fn no_text_panics(text in ".{0,40}") {
        let _ = text.parse::<ByteSize>();
        let _ = text.parse::<Rate>();
        let _ = Config::parse(&text, None);
    }
}

/// One more than a VM may have.
fn many_labels() -> String {
    (0..=64).map(|nth| format!("l{nth} = \"\"\n")).collect()
}
