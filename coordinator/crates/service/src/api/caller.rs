//! Who asks, and whether they may.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use model::access::{Action, Role};
use model::audit::Deed;
use sha2::{Digest, Sha256};

use super::jwt::{Bearer, Verifier};
use super::problem::Problem;
use crate::error::ServiceError;
use crate::fleet::{Fleet, now};

/// Prefix of API tokens: whoever finds one knows what it is.
pub(crate) const PREFIX: &str = "nfa1_";
/// Longest token that is looked at.
const MOST: usize = 128;
/// Longest JWT that is looked at.
const MOST_JWT: usize = 4096;

/// Whoever asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Caller {
    /// `token:ID` or `jwt:SUBJECT`.
    actor: String,
    role: Role,
}

/// What is kept of a token.
pub(crate) fn digest(token: &str) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(token))
}

impl Caller {
    /// Whether the caller may do this. That it was refused is noted.
    pub(crate) async fn may(&self, fleet: &Fleet, action: Action, subject: &str) -> Result<(), Problem> {
        if self.role >= action.needs() {
            return Ok(());
        }
        let mut deed = self.does(action, subject, String::new());
        "refused".clone_into(&mut deed.outcome);
        fleet.store.note(deed).await?;
        let (needs, is) = (action.needs(), self.role);
        let why = format!("this needs the role {needs}; the token has {is}");
        Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", why))
    }

    /// What the caller does, for the audit log. Subjects from outside are cut.
    pub(crate) fn does(&self, action: Action, subject: &str, detail: String) -> Deed {
        Deed {
            at: now(),
            actor: self.actor.clone(),
            action: action.as_str().to_owned(),
            subject: subject.chars().take(256).collect(),
            outcome: "done".to_owned(),
            detail,
        }
    }

    /// The name in records.
    pub(crate) fn actor(&self) -> &str {
        &self.actor
    }
}

/// Whoever asks, as the gate found: put into the request.
#[derive(Clone, Debug)]
pub(super) struct Known(pub(super) Result<Caller, Problem>);

impl Caller {
    /// Whoever shows what is in these headers.
    pub(super) async fn of(
        headers: &HeaderMap,
        fleet: &Fleet,
        verifier: Option<&Verifier>,
    ) -> Result<Self, Problem> {
        let denied = || {
            let why = "send a good API token as `Authorization: Bearer nfa1_…`";
            Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", why)
        };
        let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let (scheme, token) = value.and_then(|value| value.split_once(' ')).ok_or_else(denied)?;
        let token = token.trim();
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(denied());
        }
        if token.starts_with(PREFIX) && token.len() <= MOST {
            let found = fleet.store.api_token(&digest(token), now()).await;
            let token = found.map_err(|error| match error.kind() {
                store::StoreErrorKind::Denied => denied(),
                _ => error.into(),
            })?;
            return Ok(Self { actor: format!("token:{}", token.id), role: token.role });
        }
        let verifier = verifier.filter(|_| token.len() <= MOST_JWT);
        let Some(Bearer { subject, role }) = verifier.and_then(|verifier| verifier.bearer(token)) else {
            if verifier.is_some_and(|verifier| verifier.is_untimely(token)) {
                let why = "the time of this JWT is over, or has not begun; get a new one, or set the clocks of this machine \
                           and of the one that made it (they may be a minute apart)";
                return Err(Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", why));
            }
            return Err(denied());
        };
        let role = role.ok_or_else(|| {
            let why = "the token names no role that is known here; they are admin, operator and viewer";
            Problem::new(StatusCode::FORBIDDEN, "forbidden", why)
        })?;
        Ok(Self { actor: format!("jwt:{subject}"), role })
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        match parts.extensions.get::<Known>() {
            Some(Known(found)) => found.clone(),
            None => Err(ServiceError::internal("a request went past the gate").into()),
        }
    }
}
