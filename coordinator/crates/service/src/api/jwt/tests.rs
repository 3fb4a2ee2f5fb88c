use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use super::*;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// Made by hand, so that what no library would make can be made, too.
fn token(header: &Value, claims: &Value, algorithm: hmac::Algorithm, secret: &str) -> String {
    let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let text = format!("{}.{}", part(header), part(claims));
    let mac = hmac::sign(&hmac::Key::new(algorithm, secret.as_bytes()), text.as_bytes());
    format!("{text}.{}", BASE64URL_NOPAD.encode(mac.as_ref()))
}

/// A token as NovaCron makes it.
pub(crate) fn signed(secret: &str, claims: &Value) -> String {
    token(&json!({ "alg": "HS256", "typ": "JWT" }), claims, hmac::HMAC_SHA256, secret)
}

fn in_seconds(seconds: i64) -> i64 {
    crate::fleet::now().as_second() + seconds
}

fn good(claims: Value) -> Option<Bearer> {
    let verifier = Verifier::new(Secret::new(SECRET).unwrap());
    verifier.bearer(&token(&json!({ "alg": "HS256", "typ": "JWT" }), &claims, hmac::HMAC_SHA256, SECRET))
}

#[test]
fn the_vector_of_rfc_7515_is_taken() {
    // Appendix A.1: the signing input and the key as they stand there.
    let input = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let key = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
    let mac = Mac(hmac::Key::new(hmac::HMAC_SHA256, &BASE64URL_NOPAD.decode(key.as_bytes()).unwrap()));
    let signed = BASE64URL_NOPAD.decode(b"dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk").unwrap();
    assert!(signature::Verifier::verify(&mac, input.as_bytes(), &signed).is_ok());
    assert!(signature::Verifier::verify(&mac, b"other", &signed).is_err());
}

#[test]
fn novacrons_claims_are_read() {
    let claims = json!({
        "user_id": 7, "sub": "7", "username": "ada", "email": "ada@example.org", "role": "viewer",
        "roles": ["viewer", "operator", "poet"], "tenant_id": "t", "exp": in_seconds(60), "iat": in_seconds(0),
    });
    let bearer = good(claims).unwrap();
    assert_eq!((bearer.subject.as_str(), bearer.role), ("7", Some(Role::Operator)));
    for (name, expected) in [
        ("super-admin", Some(Role::Admin)),
        ("admin", Some(Role::Admin)),
        ("readonly", Some(Role::Viewer)),
        ("Admin", None),
        ("user", None),
        ("", None),
    ] {
        let bearer = good(json!({ "sub": "x", "role": name, "exp": in_seconds(60) })).unwrap();
        assert_eq!(bearer.role, expected, "{name}");
    }
    let by_id = good(json!({ "user_id": 9, "role": "admin", "exp": in_seconds(60) })).unwrap();
    assert_eq!(by_id.subject, "9");
}

#[test]
fn what_is_not_good_is_refused() {
    let exp = in_seconds(600);
    for claims in [
        json!({ "sub": "x", "role": "admin" }),
        json!({ "sub": "x", "role": "admin", "exp": in_seconds(-120) }),
        json!({ "sub": "x", "role": "admin", "exp": exp, "nbf": in_seconds(120) }),
        json!({ "sub": "x", "role": "admin", "exp": exp, "purpose": "pending_2fa" }),
        json!({ "sub": "x", "role": "admin", "exp": exp, "token_type": "refresh" }),
        json!({ "role": "admin", "exp": exp }),
        json!({ "sub": "x".repeat(1000), "role": "admin", "exp": exp }),
        json!({ "sub": "a\nb", "role": "admin", "exp": exp }),
        json!([1, 2]),
    ] {
        assert_eq!(good(claims.clone()), None, "{claims}");
    }
    // Clocks are up to a minute apart.
    assert!(good(json!({ "sub": "x", "exp": in_seconds(-30) })).is_some());
    assert!(good(json!({ "sub": "x", "exp": exp, "nbf": in_seconds(30) })).is_some());
    let verifier = Verifier::new(Secret::new(SECRET).unwrap());
    let claims = json!({ "sub": "x", "role": "admin", "exp": exp });
    let made = |alg: &str, algorithm, secret: &str| token(&json!({ "alg": alg }), &claims, algorithm, secret);
    for (token, why) in [
        (made("HS256", hmac::HMAC_SHA256, "another secret of thirty-two bytes"), "another's secret"),
        (made("HS512", hmac::HMAC_SHA512, SECRET), "another algorithm, signed well"),
        (made("none", hmac::HMAC_SHA256, SECRET), "no algorithm"),
        (made("RS256", hmac::HMAC_SHA256, SECRET), "a public key for a secret"),
        (
            made("HS256", hmac::HMAC_SHA256, SECRET).rsplit_once('.').unwrap().0.to_owned() + ".",
            "no signature",
        ),
        ("..".to_owned(), "nothing"),
        ("a.b.c".to_owned(), "no JSON"),
    ] {
        assert_eq!(verifier.bearer(&token), None, "{why}");
    }
    assert!(verifier.bearer(&made("HS256", hmac::HMAC_SHA256, SECRET)).is_some());
}

#[test]
fn a_short_secret_is_none() {
    assert_eq!(Secret::new(&"x".repeat(31)), Err(ShortSecret(31)));
    assert_eq!(Secret::new(&format!(" {} \n", "x".repeat(31))), Err(ShortSecret(31)));
    assert_eq!(format!("{:?}", Secret::new(&"x".repeat(32)).unwrap()), "Secret(…)");
}
