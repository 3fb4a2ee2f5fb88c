//! Requests as parts of traces: each is a span that follows the caller's, and what it begins follows that span.

use std::convert::Infallible;

use axum::extract::{FromRequestParts, MatchedPath, Request};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use model::migration::Options;
use tracing::Instrument;

/// The context that what a request begins is to follow.
#[derive(Clone, Debug, Default)]
pub(super) struct Traced(Option<String>);

impl Traced {
    /// Into what is asked for. A context that stands there already was written by the caller, and wins if it is one.
    pub(super) fn mark(self, options: &mut Options) {
        let named = options.traceparent.take().filter(|context| trace::is_context(context));
        options.traceparent = named.or(self.0);
    }
}

impl<S: Sync> FromRequestParts<S> for Traced {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_default())
    }
}

/// Runs a request in its span.
pub(super) async fn follow(mut request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("none", |route| route.as_str());
    let span = tracing::info_span!("request", method = %request.method(), route);
    let parent = request.headers().get(trace::HEADER).and_then(|value| value.to_str().ok());
    let traced = Traced(trace::hand_on(&span, parent));
    request.extensions_mut().insert(traced);
    next.run(request).instrument(span).await
}
