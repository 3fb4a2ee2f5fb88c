use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::authority::CERTIFICATE_FILE;

const DAY: std::time::Duration = std::time::Duration::from_secs(86_400);

fn ca() -> Ca {
    Ca::generate("novaferry", DAY, std::time::SystemTime::now()).unwrap()
}

/// A folder with this CA, its key as `write` leaves it.
fn folder(ca: &Ca, write: impl FnOnce(&Path)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    pki::write_public(&folder.path().join(CERTIFICATE_FILE), ca.certificate_pem().as_bytes()).unwrap();
    write(folder.path());
    folder
}

fn sealed(ca: &Ca, source: &KeySource) -> tempfile::TempDir {
    folder(ca, |path| keep(path, source, ca).unwrap())
}

fn key_in(folder: &Path, source: &KeySource) -> String {
    find(folder, source).unwrap().unwrap().pem.to_string()
}

fn text(folder: &Path, name: &str) -> String {
    std::fs::read_to_string(folder.join(name)).unwrap()
}

fn secret_file(folder: &Path, name: &str, content: &str) -> PathBuf {
    let path = folder.join(name);
    pki::write_secret(&path, content.as_bytes()).unwrap();
    path
}

#[test]
fn a_new_key_is_sealed_under_one_beside_it() {
    let ca = ca();
    let folder = sealed(&ca, &KeySource::Beside);
    let path = folder.path();
    assert!(is_sealed(&text(path, KEY_FILE)) && !text(path, KEY_FILE).contains("PRIVATE"));
    assert_eq!(key_in(path, &KeySource::Beside), *ca.key_pem().unwrap());
    for name in [KEY_FILE, WRAPPING_FILE] {
        let mode = std::fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{name}");
    }
    // No key is ever written over.
    keep(path, &KeySource::Beside, &ca).unwrap_err();
}

#[test]
fn a_key_that_lies_open_is_taken_over_once() {
    let ca = ca();
    let folder = folder(&ca, |path| {
        secret_file(path, KEY_FILE, &ca.key_pem().unwrap());
    });
    let path = folder.path();
    let found = find(path, &KeySource::Beside).unwrap().unwrap();
    assert!(found.plain);
    found.take_over(path, &KeySource::Beside).unwrap();
    let after = text(path, KEY_FILE);
    assert!(is_sealed(&after));
    let found = find(path, &KeySource::Beside).unwrap().unwrap();
    assert_eq!((found.plain, &found.pem), (false, &ca.key_pem().unwrap()));
    found.take_over(path, &KeySource::Beside).unwrap();
    assert_eq!(text(path, KEY_FILE), after, "sealed anew for nothing");
}

#[test]
fn without_its_wrapping_key_it_does_not_open_and_says_what_to_do() {
    let ca = ca();
    let folder = sealed(&ca, &KeySource::Beside);
    let path = folder.path();
    let other = tempfile::tempdir().unwrap();
    let wrong = KeySource::File(secret_file(other.path(), "key", &"x".repeat(40)));
    let said = find(path, &wrong).unwrap_err().to_string();
    assert!(said.contains("--ca-key-from") && !said.contains("xxx"), "{said}");
    std::fs::remove_file(path.join(WRAPPING_FILE)).unwrap();
    let said = find(path, &KeySource::Beside).unwrap_err().to_string();
    assert!(said.contains("copy wrapping.key"), "{said}");
    let open = KeySource::File(secret_file(other.path(), "open", &"y".repeat(40)));
    let KeySource::File(file) = &open else { unreachable!() };
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let said = find(path, &open).unwrap_err().to_string();
    assert!(said.contains("chmod 600"), "{said}");
    // systemd's access list shows in the group's bits.
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o440)).unwrap();
    let ca = self::ca();
    let credential = KeySource::Credential(file.clone());
    let folder = sealed(&ca, &credential);
    assert_eq!(key_in(folder.path(), &credential), *ca.key_pem().unwrap());
    assert!(!folder.path().join(WRAPPING_FILE).exists());
}

#[test]
fn a_credential_may_be_the_key_itself() {
    let ca = ca();
    let secrets = tempfile::tempdir().unwrap();
    let source = KeySource::Credential(secret_file(secrets.path(), "key", &ca.key_pem().unwrap()));
    let folder = folder(&ca, |_| {});
    assert_eq!(key_in(folder.path(), &source), *ca.key_pem().unwrap());
    find(folder.path(), &source).unwrap().unwrap().take_over(folder.path(), &source).unwrap();
    assert!(!folder.path().join(KEY_FILE).exists() && !folder.path().join(WRAPPING_FILE).exists());
}

#[test]
fn the_wrapping_key_is_changed() {
    let ca = ca();
    let folder = sealed(&ca, &KeySource::Beside);
    let (path, secrets) = (folder.path(), tempfile::tempdir().unwrap());
    let (first, plain) = (text(path, WRAPPING_FILE), ca.key_pem().unwrap());
    // Another beside; the one before is kept for older backups.
    let done = rekey(path, &KeySource::Beside, None).unwrap();
    assert_ne!(text(path, WRAPPING_FILE), first);
    assert_eq!(std::fs::read_to_string(done.before.unwrap()).unwrap(), first);
    assert_eq!(sealed_under(&text(path, KEY_FILE)).unwrap(), done.under);
    assert_eq!(key_in(path, &KeySource::Beside), *plain);
    // As a backup of before has it.
    let now = text(path, KEY_FILE);
    pki::replace_secret(
        &path.join(KEY_FILE),
        Wrapping::new(&first).unwrap().seal(&plain).unwrap().as_bytes(),
    )
    .unwrap();
    assert_eq!(key_in(path, &KeySource::Beside), *plain);
    pki::replace_secret(&path.join(KEY_FILE), now.as_bytes()).unwrap();
    // Elsewhere.
    let file = secret_file(secrets.path(), "key", &"k".repeat(32));
    let away = KeySource::File(file.clone());
    rekey(path, &KeySource::Beside, Some(&file)).unwrap();
    assert!(!path.join(WRAPPING_FILE).exists());
    assert_eq!(key_in(path, &away), *plain);
    // And back.
    assert_eq!(rekey(path, &away, None).unwrap().before, None);
    assert_eq!(key_in(path, &KeySource::Beside), *plain);
    let pem = secret_file(secrets.path(), "pem", &plain);
    assert!(rekey(path, &KeySource::Beside, Some(&pem)).unwrap_err().to_string().contains("private key"));
}

#[test]
fn a_change_that_is_broken_off_is_finished_or_never_was() {
    let ca = ca();
    let folder = sealed(&ca, &KeySource::Beside);
    let path = folder.path();
    let plain = ca.key_pem().unwrap();
    // Killed before the key was sealed anew.
    let next = Wrapping::generate().unwrap();
    secret_file(path, NEXT_FILE, &next.text());
    assert_eq!(key_in(path, &KeySource::Beside), *plain);
    // Killed after that.
    pki::replace_secret(&path.join(KEY_FILE), next.seal(&plain).unwrap().as_bytes()).unwrap();
    assert_eq!(key_in(path, &KeySource::Beside), *plain);
    assert!(!path.join(NEXT_FILE).exists());
    // Killed between the two names.
    std::fs::rename(path.join(WRAPPING_FILE), path.join(NEXT_FILE)).unwrap();
    assert_eq!(key_in(path, &KeySource::Beside), *plain);
    assert_eq!(key_in(path, &KeySource::Beside), *plain);
}

#[test]
fn only_the_key_of_this_ca_is_sealed_anew_and_only_while_no_coordinator_runs() {
    let (one, other) = (ca(), ca());
    let folder = folder(&one, |path| keep(path, &KeySource::Beside, &other).unwrap());
    let said = rekey(folder.path(), &KeySource::Beside, None).unwrap_err().to_string();
    assert!(said.contains("do not belong together"), "{said}");
    let folder = sealed(&one, &KeySource::Beside);
    let _lock = FolderLock::take(folder.path()).unwrap();
    let said = rekey(folder.path(), &KeySource::Beside, None).unwrap_err().to_string();
    assert!(said.contains("stop it first"), "{said}");
}

/// A first or later start in a folder; gives the CA's certificate.
async fn start(folder: &Path, ca_key: KeySource) -> Result<String, ServiceError> {
    let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let settings = crate::Settings {
        state: folder.to_owned(),
        database: None,
        ca_key,
        agents: any,
        api: any,
        metrics: None,
        names: Vec::new(),
        access: crate::Access::default(),
        webhooks: crate::Reach::default(),
    };
    crate::Service::open(settings).await?;
    Ok(text(folder, CERTIFICATE_FILE))
}

#[tokio::test]
async fn a_coordinator_begins_with_the_key_that_it_is_given() {
    let (folder, secrets) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let pem = ca().key_pem().unwrap();
    let given = KeySource::File(secret_file(secrets.path(), "key", &pem));
    let first = start(folder.path(), given.clone()).await.unwrap();
    Ca::from_pem(&pem, &first).unwrap();
    assert!(!folder.path().join(KEY_FILE).exists() && !folder.path().join(WRAPPING_FILE).exists());
    assert_eq!(start(folder.path(), given).await.unwrap(), first);
    // Another key is not this CA's, and none is none.
    let other = KeySource::File(secret_file(secrets.path(), "other", &ca().key_pem().unwrap()));
    let said = start(folder.path(), other).await.unwrap_err().to_string();
    assert!(said.contains("do not belong together"), "{said}");
    let said = start(folder.path(), KeySource::Beside).await.unwrap_err().to_string();
    assert!(said.contains("copy ca.key"), "{said}");
}

#[tokio::test]
async fn the_open_key_of_an_older_release_is_sealed_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let first = start(path, KeySource::Beside).await.unwrap();
    let pem = key_in(path, &KeySource::Beside);
    for name in [KEY_FILE, WRAPPING_FILE] {
        std::fs::remove_file(path.join(name)).unwrap();
    }
    // As a copy that belongs to another CA: it is left as it is.
    let wrong = ca().key_pem().unwrap();
    secret_file(path, KEY_FILE, &wrong);
    start(path, KeySource::Beside).await.unwrap_err();
    assert_eq!(text(path, KEY_FILE), *wrong);
    std::fs::remove_file(path.join(KEY_FILE)).unwrap();
    secret_file(path, KEY_FILE, &pem);
    assert_eq!(start(path, KeySource::Beside).await.unwrap(), first);
    assert!(is_sealed(&text(path, KEY_FILE)));
    assert_eq!(key_in(path, &KeySource::Beside), pem);
    // Nothing half-written is left.
    let names =
        std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(!names.into_iter().any(|name| name.starts_with('.')));
}
