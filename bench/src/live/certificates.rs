//! Certificates for QEMU's own TLS (`tls-creds-x509`): a folder each for the server and the client.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// The name in the server's certificate.
pub(super) const SERVER: &str = "destination";

/// Writes `server` and `client` below `folder`, with the file names that QEMU looks for
/// (`docs/system/tls.rst`).
pub(super) fn make(folder: &Path) -> Result<()> {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, "novaferry-bench");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().context("make a key")?;
    let ca = parameters.self_signed(&key).context("sign the CA")?.pem();
    let issuer = Issuer::new(parameters, key);
    for (role, name, usage) in [
        ("server", SERVER, ExtendedKeyUsagePurpose::ServerAuth),
        ("client", "source", ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let mut parameters =
            CertificateParams::new([name.to_owned()]).context("name the owner of a certificate")?;
        parameters.distinguished_name.push(DnType::CommonName, name);
        // QEMU wants key encipherment, too, though TLS 1.3 has no use for it (`qcrypto_tls_creds_check_cert_key_usage`).
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        parameters.extended_key_usages = vec![usage];
        let key = KeyPair::generate().context("make a key")?;
        let certificate = parameters.signed_by(&key, &issuer).context("sign a certificate")?;
        let place = folder.join(role);
        fs::create_dir_all(&place).with_context(|| format!("make {}", place.display()))?;
        let files = [
            ("ca-cert.pem".to_owned(), ca.clone()),
            (format!("{role}-cert.pem"), certificate.pem()),
            (format!("{role}-key.pem"), key.serialize_pem()),
        ];
        for (name, text) in files {
            fs::write(place.join(&name), text)
                .with_context(|| format!("write {name} in {}", place.display()))?;
        }
    }
    Ok(())
}
