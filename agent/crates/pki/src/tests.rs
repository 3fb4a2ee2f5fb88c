use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::*;

/// 2027-01-15T08:00:00Z: no test depends on the machine's clock.
fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn days(count: u64) -> Duration {
    Duration::from_secs(count * 86_400)
}

fn name(text: &str) -> PeerName {
    text.parse().unwrap()
}

struct World {
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> (Self, Authority) {
        let world = Self { folder: tempfile::tempdir().unwrap() };
        let authority = Authority::init(&world.path("ca"), CA_DAYS, start()).unwrap();
        (world, authority)
    }
    fn path(&self, relative: &str) -> PathBuf {
        self.folder.path().join(relative)
    }
    fn issue(&self, authority: &mut Authority, host: &str) -> PathBuf {
        let issued =
            authority.issue(&name(host), &self.path("hosts"), IssueOptions::default(), start()).unwrap();
        issued.folder
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o777
}

#[test]
fn init_makes_a_closed_folder_and_never_overwrites() {
    let (world, authority) = World::new();
    assert_eq!(mode(&world.path("ca")), 0o700);
    assert_eq!(mode(&world.path("ca/ca.key")), 0o600);
    let before = std::fs::read(world.path("ca/ca.key")).unwrap();
    drop(authority);
    let error = Authority::init(&world.path("ca"), CA_DAYS, start()).unwrap_err();
    assert_eq!(error.kind(), PkiErrorKind::Exists);
    assert!(error.to_string().contains("never overwritten"), "{error}");
    assert_eq!(std::fs::read(world.path("ca/ca.key")).unwrap(), before);
    let left: Vec<_> =
        std::fs::read_dir(world.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["ca"], "no temporary folder is left behind");
}

#[test]
fn init_accepts_an_empty_folder() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("ca")).unwrap();
    Authority::init(&folder.path().join("ca"), CA_DAYS, start()).unwrap();
    assert_eq!(mode(&folder.path().join("ca")), 0o700);
}

#[test]
fn the_ca_certificate_can_sign_hosts_and_lists_and_nothing_below() {
    let (_world, authority) = World::new();
    let (_, certificate) = x509_parser::parse_x509_certificate(authority.certificate()).unwrap();
    let constraints = certificate.basic_constraints().unwrap().unwrap().value;
    assert!(constraints.ca);
    assert_eq!(constraints.path_len_constraint, Some(0));
    let usage = certificate.key_usage().unwrap().unwrap().value;
    assert!(usage.key_cert_sign() && usage.crl_sign() && !usage.digital_signature());
    certificate.verify_signature(None).unwrap();
}

#[test]
fn an_issued_identity_loads_signs_and_is_trusted() {
    let (world, mut authority) = World::new();
    let folder = world.issue(&mut authority, "host-a");
    assert_eq!(folder, world.path("hosts/host-a").canonicalize().unwrap());
    assert_eq!(mode(&folder), 0o700);
    assert_eq!(mode(&folder.join("key.pem")), 0o600);
    let identity = Identity::load(&folder, start()).unwrap();
    assert_eq!(identity.name(), &name("host-a"));
    assert_eq!(peer_name(identity.certificate()).unwrap(), name("host-a"));
    let trust = TrustStore::load(&folder).unwrap();
    let peer = trust.verify(identity.certificate(), &[], Usage::Server, start()).unwrap();
    let signature = ed25519_dalek::Signer::sign(identity.signing_key(), b"receipt");
    peer.key.verify_strict(b"receipt", &signature).unwrap();
    assert!(!format!("{identity:?}").contains("key"), "Debug shows no key material");

    let report = show(&folder, start()).unwrap();
    assert_eq!(report.state, CertificateState::Valid);
    assert_eq!(report.alternative_names, ["URI:spiffe://novaferry/host/host-a", "DNS:host-a"]);
    assert_eq!(report.not_before, start() - BACKDATE);
    assert_eq!(report.not_after, start() + days(90));
    assert_eq!(report.serial.len(), 32);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["not_after"], "2027-04-15T08:00:00Z");
    assert!(report.to_string().contains("state        valid"), "{report}");
}

#[test]
fn the_key_is_never_in_the_ca_folder_nor_the_other_way_round() {
    let (world, mut authority) = World::new();
    std::os::unix::fs::symlink(world.path("ca"), world.path("link")).unwrap();
    for out in ["ca", "ca/hosts", "", "link/hosts"] {
        let error =
            authority.issue(&name("host-a"), &world.path(out), IssueOptions::default(), start()).unwrap_err();
        assert_eq!(error.kind(), PkiErrorKind::Invalid, "{out:?}: {error}");
        assert!(error.to_string().contains("beside the CA's folder"), "{error}");
    }
    assert!(!world.path("ca/hosts").exists());
}

#[test]
fn issuing_twice_needs_renew_and_renew_replaces_all_files_at_once() {
    let (world, mut authority) = World::new();
    let folder = world.issue(&mut authority, "host-a");
    let old = show(&folder, start()).unwrap();
    let again = authority.issue(&name("host-a"), &world.path("hosts"), IssueOptions::default(), start());
    assert_eq!(again.unwrap_err().kind(), PkiErrorKind::Exists);
    let renew = IssueOptions { renew: true, ..IssueOptions::default() };
    let issued = authority.issue(&name("host-a"), &world.path("hosts"), renew, start() + days(60)).unwrap();
    assert_eq!(issued.still_valid.iter().map(ToString::to_string).collect::<Vec<_>>(), [old.serial]);
    assert_ne!(issued.certificate.public_key, old.public_key);
    Identity::load(&folder, start() + days(60)).unwrap();
    let left: Vec<_> =
        std::fs::read_dir(world.path("hosts")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["host-a"]);

    std::fs::write(folder.join("notes.txt"), "mine").unwrap();
    let error = authority.issue(&name("host-a"), &world.path("hosts"), renew, start()).unwrap_err();
    assert!(error.to_string().contains("notes.txt"), "{error}");
    assert!(folder.join("notes.txt").exists());
}

#[test]
fn revoking_a_name_reaches_a_running_host_through_its_list() {
    let (world, mut authority) = World::new();
    let a = world.issue(&mut authority, "host-a");
    let b = world.issue(&mut authority, "host-b");
    let certificate = Identity::load(&b, start()).unwrap().certificate().clone();
    let mut watcher = IdentityWatcher::new(IdentityPaths::in_folder(&a), start()).unwrap();
    assert!(watcher.poll(start()).unwrap().is_none());

    let report = authority.revoke(&RevokeTarget::Name(name("host-b")), start()).unwrap();
    assert_eq!((report.revoked.len(), report.crl.number, report.crl.revoked), (1, 2, 1));
    assert!(watcher.poll(start()).unwrap().is_none(), "the host has the old list still");
    authority.publish_crl(&[a, b.clone()]).unwrap();
    let identity = watcher.poll(start()).unwrap().expect("the new list is noticed");
    assert!(Arc::ptr_eq(&identity, watcher.current()));
    let error = identity.trust().unwrap().verify(&certificate, &[], Usage::Client, start()).unwrap_err();
    assert_eq!(error.kind(), PkiErrorKind::Revoked);
    assert_eq!(show(&b, start()).unwrap().state, CertificateState::Revoked);
    assert_eq!(Identity::load(&b, start()).unwrap_err().kind(), PkiErrorKind::Revoked);
    let error = authority.revoke(&RevokeTarget::Name(name("host-b")), start()).unwrap_err();
    assert_eq!(error.kind(), PkiErrorKind::NotFound);
}

#[test]
fn revoking_a_serial_takes_openssl_notation_and_leaves_the_new_certificate() {
    let (world, mut authority) = World::new();
    let folder = world.issue(&mut authority, "host-a");
    let old = show(&folder, start()).unwrap().serial;
    let renew = IssueOptions { renew: true, ..IssueOptions::default() };
    authority.issue(&name("host-a"), &world.path("hosts"), renew, start()).unwrap();
    let colons = old.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap().to_uppercase());
    let serial: Serial = colons.collect::<Vec<_>>().join(":").parse().unwrap();
    let report = authority.revoke(&RevokeTarget::Serial(serial), start()).unwrap();
    assert_eq!(report.revoked, [serial]);
    authority.publish_crl(std::slice::from_ref(&folder)).unwrap();
    Identity::load(&folder, start()).unwrap();
}

#[test]
fn list_numbers_rise_over_restarts_and_a_torn_ledger_line_is_cut_off() {
    use std::io::Write;
    let (world, authority) = World::new();
    drop(authority);
    let ledger = world.path("ca/ledger.jsonl");
    let mut file = std::fs::OpenOptions::new().append(true).open(&ledger).unwrap();
    file.write_all(br#"{"event":"crl","time":"2027-01"#).unwrap();
    let mut authority = Authority::open(&world.path("ca")).unwrap();
    let first = authority.sign_crl(start()).unwrap();
    drop(authority);
    let second = Authority::open(&world.path("ca")).unwrap().sign_crl(start()).unwrap();
    assert_eq!((first.number, second.number), (2, 3));
    assert!(std::fs::read_to_string(&ledger).unwrap().lines().all(|line| line.ends_with('}')));

    std::fs::write(&ledger, "nonsense\n").unwrap();
    let error = Authority::open(&world.path("ca")).unwrap_err();
    assert_eq!(error.kind(), PkiErrorKind::Malformed);
    assert!(error.to_string().contains("line 1"), "{error}");
}

#[test]
fn two_commands_cannot_use_one_ca() {
    let (world, _authority) = World::new();
    assert_eq!(Authority::open(&world.path("ca")).unwrap_err().kind(), PkiErrorKind::Busy);
}

#[test]
fn a_key_that_others_can_read_is_refused_with_advice() {
    let (world, mut authority) = World::new();
    let folder = world.issue(&mut authority, "host-a");
    let key = folder.join("key.pem");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
    let error = Identity::load(&folder, start()).unwrap_err();
    assert_eq!(error.kind(), PkiErrorKind::Permission);
    assert!(error.to_string().contains("chmod 600"), "{error}");
    let paths = IdentityPaths { key_origin: KeyOrigin::Credential, ..IdentityPaths::in_folder(&folder) };
    Identity::load_from(&paths, start()).expect("systemd's ACL mask shows in the group bits");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(Identity::load_from(&paths, start()).unwrap_err().kind(), PkiErrorKind::Permission);
}

#[test]
fn files_of_two_hosts_do_not_mix() {
    let (world, mut authority) = World::new();
    let a = world.issue(&mut authority, "host-a");
    let b = world.issue(&mut authority, "host-b");
    std::fs::copy(b.join("cert.pem"), a.join("cert.pem")).unwrap();
    assert_eq!(Identity::load(&a, start()).unwrap_err().kind(), PkiErrorKind::Mismatch);
}

#[test]
fn strangers_expired_and_early_certificates_are_refused() {
    let (world, mut authority) = World::new();
    let folder = world.issue(&mut authority, "host-a");
    let (other_world, mut other) = World::new();
    let stranger = Identity::load(&other_world.issue(&mut other, "host-a"), start()).unwrap();
    let trust = TrustStore::load(&folder).unwrap();
    let refused = |leaf: &rustls_pki_types::CertificateDer<'_>, now| {
        trust.verify(leaf, &[], Usage::Client, now).unwrap_err().kind()
    };
    assert_eq!(refused(stranger.certificate(), start()), PkiErrorKind::Untrusted);
    assert_eq!(refused(other.certificate(), start()), PkiErrorKind::Untrusted, "a CA is no host");
    let own = Identity::load(&folder, start()).unwrap();
    assert_eq!(refused(own.certificate(), start() + days(91)), PkiErrorKind::Expired);
    assert_eq!(refused(own.certificate(), start() - days(1)), PkiErrorKind::Expired);
    assert_eq!(Identity::load(&folder, start() + days(91)).unwrap_err().kind(), PkiErrorKind::Expired);
}

#[test]
fn a_leaf_cannot_act_as_a_ca() {
    let (world, mut authority) = World::new();
    let folder = world.issue(&mut authority, "host-a");
    let identity = Identity::load(&folder, start()).unwrap();
    let signer = keys::CertificateSigner::new(identity.signing_key());
    let issuer = rcgen::Issuer::from_ca_cert_der(identity.certificate(), signer).unwrap();
    let key = keys::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::default();
    parameters.subject_alt_names =
        vec![rcgen::SanType::URI("spiffe://novaferry/host/evil".try_into().unwrap())];
    let forged = parameters.signed_by(&keys::CertificateSigner::new(&key), &issuer).unwrap();
    let error = identity
        .trust()
        .unwrap()
        .verify(forged.der(), &[identity.certificate().clone()], Usage::Client, start())
        .unwrap_err();
    assert_eq!(error.kind(), PkiErrorKind::Untrusted);
}

#[test]
fn a_failed_reload_keeps_the_old_identity_and_is_reported_once() {
    let (world, mut authority) = World::new();
    let folder = world.issue(&mut authority, "host-a");
    let mut watcher = IdentityWatcher::new(IdentityPaths::in_folder(&folder), start()).unwrap();
    let good = std::fs::read(folder.join("crl.pem")).unwrap();
    std::fs::write(folder.join("crl.pem"), "half a li").unwrap();
    assert_eq!(watcher.poll(start()).unwrap_err().kind(), PkiErrorKind::Malformed);
    assert!(watcher.poll(start()).unwrap().is_none());
    std::fs::remove_file(folder.join("crl.pem")).unwrap();
    assert_eq!(watcher.poll(start()).unwrap_err().kind(), PkiErrorKind::NotFound);
    assert!(watcher.poll(start()).unwrap().is_none());
    assert_eq!(watcher.current().name(), &name("host-a"));
    std::fs::write(folder.join("crl.pem"), good).unwrap();
    assert!(watcher.poll(start()).unwrap().is_some());
}

#[test]
fn a_list_is_not_published_to_hosts_of_another_ca() {
    let (_world, authority) = World::new();
    let (other_world, mut other) = World::new();
    let folder = other_world.issue(&mut other, "host-a");
    let before = std::fs::read(folder.join("crl.pem")).unwrap();
    let error = authority.publish_crl(std::slice::from_ref(&folder)).unwrap_err();
    assert_eq!(error.kind(), PkiErrorKind::Mismatch);
    assert_eq!(std::fs::read(folder.join("crl.pem")).unwrap(), before);
}

#[test]
fn validity_is_bounded_by_sense_and_by_the_ca() {
    let (world, mut authority) = World::new();
    for days in [0, 4000, u32::MAX] {
        let options = IssueOptions { days, renew: false };
        let error = authority.issue(&name("host-a"), &world.path("hosts"), options, start()).unwrap_err();
        assert_eq!(error.kind(), PkiErrorKind::Invalid);
    }
    let options = IssueOptions { days: 90, renew: false };
    let late = authority.issue(&name("host-a"), &world.path("hosts"), options, start() + days(3600));
    assert!(late.unwrap_err().to_string().contains("the CA's own certificate ends"));
    assert_eq!(authority.ledger().len(), 1, "nothing but the first list was recorded");
}

#[test]
fn host_names_are_one_safe_path_component() {
    for good in ["a", "0", "host-a.example", &"x".repeat(63)] {
        assert_eq!(good.parse::<PeerName>().unwrap().as_str(), good);
    }
    for bad in ["", ".", "..", "-a", "A", "a/b", "a_b", "a b", "h\u{f6}st", "a\0", &"x".repeat(64)] {
        let error = bad.parse::<PeerName>().unwrap_err();
        assert!(error.to_string().contains("host-a"), "{error}");
    }
}

#[test]
fn a_certificate_must_name_exactly_one_host() {
    let make = |names: &[&str]| {
        let key = keys::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        parameters.subject_alt_names =
            names.iter().map(|uri| rcgen::SanType::URI((*uri).try_into().unwrap())).collect();
        parameters.self_signed(&keys::CertificateSigner::new(&key)).unwrap().der().clone()
    };
    assert_eq!(peer_name(&make(&["spiffe://novaferry/host/a"])).unwrap(), name("a"));
    for bad in [
        &[][..],
        &["spiffe://novaferry/host/a", "spiffe://novaferry/host/b"],
        &["spiffe://novaferry/host/a", "https://example.com/"],
        &["spiffe://other/host/a"],
        &["spiffe://novaferry/host/"],
        &["spiffe://novaferry/host/a/b"],
        &["spiffe://novaferry/host/A"],
        &["SPIFFE://novaferry/host/a"],
    ] {
        assert_eq!(peer_name(&make(bad)).unwrap_err().kind(), PkiErrorKind::Untrusted, "{bad:?}");
    }
    let mut trailing = make(&["spiffe://novaferry/host/a"]).to_vec();
    trailing.push(0);
    assert_eq!(peer_name(&trailing).unwrap_err().kind(), PkiErrorKind::Malformed);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]
    #[test]
    fn peer_name_survives_any_bytes(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
        // Only that it returns: random bytes are hardly ever a certificate.
        proptest::prop_assert!(peer_name(&bytes).is_err());
    }

    #[test]
    fn peer_name_survives_a_flipped_byte(at in 0_usize..250, bit in 0_u8..8) {
        let key = keys::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        parameters.subject_alt_names = vec![rcgen::SanType::URI("spiffe://novaferry/host/a".try_into().unwrap())];
        let mut der = parameters.self_signed(&keys::CertificateSigner::new(&key)).unwrap().der().to_vec();
        let at = at % der.len();
        der[at] ^= 1 << bit;
        if let Ok(name) = peer_name(&der) {
            proptest::prop_assert!(name.as_str().len() < 64);
        }
    }
}
