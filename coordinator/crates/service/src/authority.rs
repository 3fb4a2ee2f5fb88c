//! The coordinator as a CA: its key, what it signs for hosts, and the list of what it took back.
//!
//! The book is the database: a serial number is in it before the certificate exists.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use model::audit::Deed;
use model::{Name, Timestamp};
use pki::{CRL_DAYS, Ca, NewKey, PublicKey, Revoked, Serial, Subject, TrustStore, WebKey};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use store::{Certificate, JoinGrant, Store};

use crate::backup;
use crate::ca_key::{self, KEY_FILE, KeySource, WRAPPING_FILE};
use crate::error::ServiceError;
use crate::webhooks::Secrets;

/// The CA's certificate, for people to copy.
pub(crate) const CERTIFICATE_FILE: &str = "ca.pem";
/// The key of the certificate that browsers are shown (PKCS#8, PEM).
const WEB_KEY_FILE: &str = "web.key";
const CERTIFICATE: &str = "ca-certificate";
const LIST_NUMBER: &str = "revocation-list-number";
/// How long the CA is valid: replacing it touches every host.
const CA_VALID: Duration = Duration::from_secs(3650 * 86_400);
/// How long a host's certificate is valid. It asks for the next after half of that.
const HOST_VALID: Duration = Duration::from_secs(24 * 3600);
/// How long the coordinator's own is valid, and how often it signs itself another.
const OWN_VALID: Duration = Duration::from_secs(7 * 86_400);
const OWN_AGE: Duration = Duration::from_secs(86_400);

/// The CA, open.
#[derive(Debug)]
pub(crate) struct Authority {
    ca: Ca,
    /// Its key was given as a whole, and does not lie in the state folder.
    given: bool,
    names: Vec<String>,
    /// Of what is shown to people and programs. It stays, so that a browser that was told to trust it does so after a
    /// restart.
    web: WebKey,
    /// This CA alone. Whoever was revoked has no line to say anything on.
    trust: TrustStore,
    own: Mutex<Own>,
    /// Of webhooks.
    webhooks: Secrets,
}

#[derive(Debug)]
struct Own {
    /// For agents.
    key: Arc<CertifiedKey>,
    /// For people and programs: browsers know no Ed25519.
    web: Arc<CertifiedKey>,
    since: SystemTime,
}

impl Authority {
    /// Opens the CA, or makes it where there is none. `names` are the coordinator's DNS names and addresses.
    pub(crate) async fn open(
        folder: &Path,
        source: &KeySource,
        store: &Store,
        names: Vec<String>,
    ) -> Result<Arc<Self>, ServiceError> {
        let now = SystemTime::now();
        let found = ca_key::find(folder, source)?;
        let ca = match (store.fact(CERTIFICATE).await?, &found) {
            (Some(certificate), Some(found)) => Ca::from_pem(&found.pem, &certificate)?,
            (Some(_), None) => {
                return Err(ServiceError::Key(format!(
                    "this database's CA has a key that is not in {}; copy {KEY_FILE} and what it is sealed under                      ({WRAPPING_FILE}, unless it is a credential) from the coordinator that made it",
                    folder.display()
                )));
            }
            (None, found) => {
                let ca = match found {
                    // Given as a whole, or made by a first start that was broken off.
                    Some(found) => Ca::of_key(&found.pem, "novaferry", CA_VALID, now)?,
                    None => {
                        let ca = Ca::generate("novaferry", CA_VALID, now)?;
                        // The key first: a certificate without its key would be the end of this CA.
                        ca_key::keep(folder, source, &ca)?;
                        ca
                    }
                };
                store.set_facts(&[(CERTIFICATE, ca.certificate_pem())]).await?;
                ca
            }
        };
        let given = found.as_ref().is_some_and(|found| found.whole);
        if let Some(found) = found {
            found.take_over(folder, source)?;
        }
        pki::write_public(&folder.join(CERTIFICATE_FILE), ca.certificate_pem().as_bytes())?;
        let web = web_key(folder)?;
        let own = Mutex::new(Own::new(&ca, &names, &web, now)?);
        let trust = TrustStore::new(vec![ca.certificate().clone()], &[])?;
        let webhooks = Secrets::new(ca.key_pem()?.as_bytes());
        Ok(Arc::new(Self { ca, given, names, web, trust, own, webhooks }))
    }

    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        self.ca.certificate()
    }

    pub(crate) fn webhooks(&self) -> &Secrets {
        &self.webhooks
    }

    pub(crate) fn trust(&self) -> &TrustStore {
        &self.trust
    }

    pub(crate) fn certificate_pem(&self) -> &str {
        self.ca.certificate_pem()
    }

    /// Its key as it lies in the state folder, if it does.
    pub(crate) fn sealed_key(&self, folder: &Path) -> Result<Option<String>, ServiceError> {
        if self.given { Ok(None) } else { backup::sealed_key(folder).map(Some) }
    }

    /// When the CA ends, and the certificate that is shown now.
    pub(crate) fn ends(&self) -> (SystemTime, SystemTime) {
        let held = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        (self.ca.not_after(), held.since + OWN_VALID)
    }

    /// Lets a host in: its token is used up, and its first certificate is signed.
    pub(crate) async fn join(
        &self,
        store: &Store,
        digest: &str,
        host: &Name,
        key: &PublicKey,
        deed: Deed,
    ) -> Result<(JoinGrant, String), ServiceError> {
        let (serial, certificate) = next(host, deed.at)?;
        let grant = store.join(digest, &certificate, deed).await?;
        Ok((grant, self.sign(host, key, serial, &certificate)?))
    }

    /// Whether a host's certificate that was shown is in the book and good, or belongs there (see [`Store::adopt`]).
    pub(crate) async fn knows(
        &self,
        store: &Store,
        host: &Name,
        certificate: &CertificateDer<'_>,
        deed: impl FnOnce() -> Deed,
    ) -> Result<bool, ServiceError> {
        let serial = pki::serial_of(certificate)?.to_string();
        if store.is_good_certificate(&serial).await? {
            return Ok(true);
        }
        let (issued, ends) = pki::issued_and_ends(certificate)?;
        let entry = Certificate { serial, host: host.clone(), not_after: timestamp(ends)? };
        Ok(store.adopt(&entry, timestamp(issued)?, deed()).await?)
    }

    /// Signs a host's next certificate.
    pub(crate) async fn renew(
        &self,
        store: &Store,
        host: &Name,
        key: &PublicKey,
        deed: Deed,
    ) -> Result<String, ServiceError> {
        let (serial, certificate) = next(host, deed.at)?;
        store.renew(&certificate, deed).await?;
        self.sign(host, key, serial, &certificate)
    }

    fn sign(
        &self,
        host: &Name,
        key: &PublicKey,
        serial: Serial,
        certificate: &Certificate,
    ) -> Result<String, ServiceError> {
        let subject = Subject::Host(host.as_str().parse().map_err(ServiceError::internal)?);
        let until = system_time(certificate.not_after);
        let signed = self.ca.certify(&subject, key, serial, SystemTime::now(), until)?;
        Ok(pki::to_pem(&signed))
    }

    /// A fresh revocation list, as PEM.
    pub(crate) async fn revocations(&self, store: &Store, now: Timestamp) -> Result<String, ServiceError> {
        let known = store.fact(LIST_NUMBER).await?.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        // Numbers only grow, also past those that were given out after the backup that this database came from.
        let number = (known + 1).max(u64::try_from(now.as_millisecond()).unwrap_or(0));
        store.set_facts(&[(LIST_NUMBER, &number.to_string())]).await?;
        let mut revoked = Vec::new();
        for one in store.revoked_certificates(now).await? {
            let serial = one.serial.parse().map_err(ServiceError::internal)?;
            revoked.push(Revoked { serial, since: system_time(one.since) });
        }
        let now = system_time(now);
        let next = now + Duration::from_secs(u64::from(CRL_DAYS) * 86_400);
        Ok(self.ca.list(number, &revoked, now, next)?)
    }

    /// The certificates that are shown now. Those that cannot be replaced are shown for longer.
    fn shown(&self, which: impl FnOnce(&Own) -> &Arc<CertifiedKey>) -> Arc<CertifiedKey> {
        let mut held = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let now = SystemTime::now();
        if now.duration_since(held.since).is_ok_and(|age| age > OWN_AGE) {
            match Own::new(&self.ca, &self.names, &self.web, now) {
                Ok(own) => *held = own,
                Err(error) => tracing::error!(%error, "cannot renew the coordinator's own certificates"),
            }
        }
        Arc::clone(which(&held))
    }
}

/// What agents are shown.
impl ResolvesServerCert for Authority {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.shown(|own| &own.key))
    }
}

/// What people and programs are shown.
#[derive(Debug)]
pub(crate) struct ForPeople(pub(crate) Arc<Authority>);

impl ResolvesServerCert for ForPeople {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.shown(|own| &own.web))
    }
}

impl Own {
    fn new(ca: &Ca, names: &[String], web: &WebKey, now: SystemTime) -> Result<Self, ServiceError> {
        let mut all = vec![control_api::SERVER_NAME.to_owned()];
        all.extend(names.iter().cloned());
        let (subject, until) = (Subject::Coordinator(all), now + OWN_VALID);
        let key = NewKey::generate()?;
        let certificate = ca.certify(&subject, &key.public(), Serial::random()?, now, until)?;
        let own = rustls::crypto::ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(key.der()?.to_vec()))?;
        let web_certificate = ca.certify_web(&subject, web, Serial::random()?, now, until)?;
        let web = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(web.to_der().to_vec()));
        let web = rustls::crypto::ring::sign::any_ecdsa_type(&web)?;
        // With the CA, by whose fingerprint a new host, and a person, knows it.
        let with_ca =
            |certificate, key| Arc::new(CertifiedKey::new(vec![certificate, ca.certificate().clone()], key));
        Ok(Self { key: with_ca(certificate, own), web: with_ca(web_certificate, web), since: now })
    }
}

/// The key for browsers, made where there is none. It is worth little: whoever has it can pretend to be this coordinator
/// towards people until its certificate ends, and another is made when it is removed.
fn web_key(folder: &Path) -> Result<WebKey, ServiceError> {
    let file = folder.join(WEB_KEY_FILE);
    if file.exists() {
        return Ok(WebKey::from_pem(&pki::read_secret(&file)?)?);
    }
    let key = WebKey::generate()?;
    pki::replace_secret(&file, key.to_pem().as_bytes())?;
    Ok(key)
}

fn next(host: &Name, now: Timestamp) -> Result<(Serial, Certificate), ServiceError> {
    let serial = Serial::random()?;
    let not_after = now.checked_add(HOST_VALID).map_err(|error| ServiceError::internal(error.to_string()))?;
    Ok((serial, Certificate { serial: serial.to_string(), host: host.clone(), not_after }))
}

fn timestamp(time: SystemTime) -> Result<Timestamp, ServiceError> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).map_err(ServiceError::internal)?;
    Timestamp::from_second(seconds).map_err(ServiceError::internal)
}

fn system_time(time: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(time.as_millisecond()).unwrap_or(0))
}
