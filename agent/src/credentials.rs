//! An identity's files as the tunnel and the engine take them.

use engine::receipt::ReceiptSigner;
use tunnel::{Credentials, TunnelError};

use pki::Identity;

/// For TLS.
///
/// # Errors
/// When the tunnel finds fault with what [`Identity`] accepted.
pub fn of(identity: &Identity) -> Result<Credentials, TunnelError> {
    Credentials::new(
        identity.certificate_chain().to_vec(),
        identity.tls_key(),
        identity.roots().to_vec(),
        identity.crls().to_vec(),
    )
}

/// For receipts.
#[must_use]
pub fn signer(identity: &Identity) -> ReceiptSigner {
    ReceiptSigner::new(
        identity.signing_key().clone(),
        identity.chain_pem(),
        identity.name().as_str().to_owned(),
    )
}
