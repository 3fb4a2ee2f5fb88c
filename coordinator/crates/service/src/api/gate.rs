//! What every request passes: who asks and how much, whether it was asked before, and what of the answer is known.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::time::timeout;
use tokio_stream::StreamExt;

use super::caller::{Caller, Known};
use super::jwt::Verifier;
use super::limit::{Gauge, Limits};
use super::problem::Problem;
use super::{MOST_BODY, etag, once};
use crate::error::ServiceError;
use crate::fleet::Fleet;
use crate::listen::Peer;

/// So much of a body is read to be thrown away, bytes: of those who may ask, and of strangers.
const MOST_DRAINED: usize = 8 << 20;
const MOST_OF_STRANGERS: usize = MOST_BODY;
/// How long a body may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who may ask, beside those with API tokens, and how much.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// How much.
    pub limits: Limits,
    /// NovaCron's `AUTH_SECRET`: bearers of JWTs that are signed with it are let in.
    pub secret: Option<super::jwt::Secret>,
}

/// What decides.
#[derive(Debug)]
pub(crate) struct Gate {
    fleet: Arc<Fleet>,
    gauge: Gauge,
    verifier: Option<Verifier>,
    /// Names this run of the coordinator.
    run: String,
}

impl Gate {
    pub(crate) fn new(fleet: Arc<Fleet>, access: Access) -> Result<Arc<Self>, ServiceError> {
        let Access { limits, secret } = access;
        let run = data_encoding::HEXLOWER.encode(&super::tokens::random::<16>()?);
        Ok(Arc::new(Self { fleet, gauge: Gauge::new(limits), verifier: secret.map(Verifier::new), run }))
    }

    /// Names this run of the coordinator.
    pub(super) fn run(&self) -> &str {
        &self.run
    }

    pub(super) fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Whoever shows what is in these headers.
    pub(super) async fn caller(&self, headers: &HeaderMap) -> Result<Caller, Problem> {
        Caller::of(headers, &self.fleet, self.verifier.as_ref()).await
    }
}

/// The body of a request. One that is too long is read to its end, if that is not too far: whoever is still sending would
/// see a broken connection, and no answer.
async fn whole(body: Body, most_drained: usize) -> Result<Bytes, Problem> {
    let mut parts = body.into_data_stream();
    let (mut content, mut length) = (Vec::new(), 0);
    let read = async {
        while let Some(part) = parts.next().await {
            let part = part.map_err(|error| {
                Problem::new(StatusCode::BAD_REQUEST, "invalid", format!("the body breaks off: {error}"))
            })?;
            length += part.len();
            if length <= MOST_BODY {
                content.extend_from_slice(&part);
            } else if length > most_drained {
                break;
            }
        }
        Ok(())
    };
    timeout(PATIENCE, read).await.unwrap_or_else(|_elapsed| {
        Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the body did not come in time"))
    })?;
    if length > MOST_BODY {
        let why = format!("a request has at most {MOST_BODY} bytes");
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", why));
    }
    Ok(content.into())
}

pub(super) async fn pass(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    let Gate { fleet, gauge, run, .. } = &*gate;
    let caller = gate.caller(request.headers()).await;
    let verdict = match &caller {
        Ok(caller) => gauge.caller(caller.actor()),
        Err(_) => {
            let peer = request.extensions().get::<Peer>().map(|peer| peer.address.ip());
            gauge.address(peer.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)))
        }
    };
    if let Some(refusal) = verdict.as_ref().and_then(|verdict| verdict.refusal()) {
        return refusal;
    }
    request.extensions_mut().insert(Known(caller.clone()));
    request.extensions_mut().insert(Arc::clone(&gate));
    // Whatever is asked: a connection that is closed over a body that nobody read takes the answer with it.
    let (head, body) = request.into_parts();
    let most = if caller.is_ok() { MOST_DRAINED } else { MOST_OF_STRANGERS };
    let body = match whole(body, most).await {
        Ok(body) => body,
        Err(problem) => return problem.into_response(),
    };
    let mut request = Request::from_parts(head, Body::from(body.clone()));
    let mut response = match (request.method(), caller) {
        (&Method::POST, Ok(caller)) => {
            let (head, _) = request.into_parts();
            once::once(Arc::clone(fleet), run, &caller, (head, body), next).await
        }
        (&Method::GET, _) => {
            let seen = request.headers().get(header::IF_NONE_MATCH).cloned();
            etag::tagged(seen.as_ref(), next.run(request).await).await
        }
        (&Method::HEAD, _) => {
            // The head of the GET, its tag and length included.
            *request.method_mut() = Method::GET;
            let seen = request.headers().get(header::IF_NONE_MATCH).cloned();
            let (mut head, body) = etag::tagged(seen.as_ref(), next.run(request).await).await.into_parts();
            if let Some(length) = body.size_hint().exact().filter(|_| head.status != StatusCode::NOT_MODIFIED)
            {
                head.headers.insert(header::CONTENT_LENGTH, length.into());
            }
            Response::from_parts(head, Body::empty())
        }
        _ => next.run(request).await,
    };
    if let Some(verdict) = verdict {
        verdict.tell(response.headers_mut());
    }
    response
}
