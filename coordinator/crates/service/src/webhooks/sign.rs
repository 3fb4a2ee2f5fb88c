//! What is signed under what: HMAC-SHA256 as Standard Webhooks 1 says. A webhook's secret is made by HKDF-SHA256 of the
//! CA's key and the webhook's salt, so no copy of the database tells it, and nothing more than the CA's key is to be kept.

use std::fmt;

use data_encoding::BASE64;
use model::Timestamp;
use model::webhook::Event;
use ring::hkdf::{HKDF_SHA256, Prk, Salt};
use ring::hmac;
use store::KeptWebhook;

use crate::error::ServiceError;

/// What the CA's key is used for here, so that nothing else that is made of it is the same.
const PURPOSE: &[u8] = b"novaferry webhook secret 1";
/// How a secret of Standard Webhooks begins.
const PREFIX: &str = "whsec_";

/// Makes the secrets of webhooks.
pub(crate) struct Secrets(Prk);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(..)")
    }
}

impl Secrets {
    /// Of the CA's key.
    pub(crate) fn new(key: &[u8]) -> Self {
        Self(Salt::new(HKDF_SHA256, PURPOSE).extract(key))
    }

    fn of(&self, salt: &str) -> Result<[u8; 32], ServiceError> {
        let mut secret = [0; 32];
        let filled = self.0.expand(&[salt.as_bytes()], HKDF_SHA256).and_then(|okm| okm.fill(&mut secret));
        filled.map_err(|_unspecified| ServiceError::internal("a webhook's secret cannot be made"))?;
        Ok(secret)
    }

    /// A webhook's secret, for its receiver.
    pub(crate) fn told(&self, salt: &str) -> Result<String, ServiceError> {
        Ok(format!("{PREFIX}{}", BASE64.encode(&self.of(salt)?)))
    }

    /// The header for an event that is sent now: signed under the secret, and under the one before while that is good.
    pub(crate) fn signature(
        &self,
        kept: &KeptWebhook,
        event: &Event,
        at: Timestamp,
    ) -> Result<String, ServiceError> {
        let older = kept.older.as_ref().filter(|(_, until)| *until > at).map(|(salt, _)| salt);
        let mut signatures = Vec::new();
        for salt in std::iter::once(&kept.salt).chain(older) {
            signatures.push(sign(&self.of(salt)?, &event.id, at.as_second(), &event.body));
        }
        Ok(signatures.join(" "))
    }
}

/// One signature.
fn sign(secret: &[u8], id: &str, timestamp: i64, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    format!("v1,{}", BASE64.encode(hmac::sign(&key, format!("{id}.{timestamp}.{body}").as_bytes()).as_ref()))
}

#[cfg(test)]
mod tests {
    use model::webhook::{Happening, Standing, Webhook};

    use super::*;

    /// As the specification's reference library for Python 1.0 signs.
    #[test]
    fn signatures_are_those_of_standard_webhooks() {
        let secret = BASE64.decode(b"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signed = sign(&secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_secret_that_was_replaced_signs_for_a_while() {
        let secrets = Secrets::new(b"a CA's key");
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let webhook = Webhook {
            name: "chat".parse().unwrap(),
            url: "https://example.org".to_owned(),
            on: Vec::new(),
            ca: None,
            paused: false,
        };
        let kept = KeptWebhook {
            webhook,
            salt: "new".to_owned(),
            older: Some(("old".to_owned(), at(100))),
            passed: 0,
            standing: Standing::default(),
        };
        let event = Happening::test(at(0), &kept.webhook.name).numbered(0);
        let of = |salt: &str, now| {
            let kept = KeptWebhook { salt: salt.to_owned(), older: None, ..kept.clone() };
            secrets.signature(&kept, &event, at(now)).unwrap()
        };
        let both = secrets.signature(&kept, &event, at(99)).unwrap();
        assert_eq!(both, format!("{} {}", of("new", 99), of("old", 99)));
        assert_eq!(secrets.signature(&kept, &event, at(100)).unwrap(), of("new", 100));
        let (new, old) = (secrets.told("new").unwrap(), secrets.told("old").unwrap());
        assert!(new.starts_with("whsec_") && new != old, "{new} {old}");
        assert_ne!(new, Secrets::new(b"another CA's key").told("new").unwrap());
    }
}
