//! Who asks, and whether they may.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use model::access::{Action, Role};
use model::audit::Deed;
use sha2::{Digest, Sha256};

use super::problem::Problem;
use crate::fleet::{Fleet, now};

/// Prefix of API tokens: whoever finds one knows what it is.
pub(crate) const PREFIX: &str = "nfa1_";
/// Longest token that is looked at.
const MOST: usize = 128;

/// Whoever asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Caller {
    /// `token:ID`.
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

impl FromRequestParts<Arc<Fleet>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, fleet: &Arc<Fleet>) -> Result<Self, Problem> {
        let denied = || {
            let why = "send a good API token as `Authorization: Bearer nfa1_…`";
            Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", why)
        };
        let value = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let (scheme, token) = value.and_then(|value| value.split_once(' ')).ok_or_else(denied)?;
        let token = token.trim();
        if !scheme.eq_ignore_ascii_case("bearer") || token.len() > MOST || !token.starts_with(PREFIX) {
            return Err(denied());
        }
        let token =
            fleet.store.api_token(&digest(token), now()).await.map_err(|error| match error.kind() {
                store::StoreErrorKind::Denied => denied(),
                _ => error.into(),
            })?;
        Ok(Self { actor: format!("token:{}", token.id), role: token.role })
    }
}
