//! Server-sent events: what changes, as it changes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::sse::{Event as Written, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use model::access::Action;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;

use super::caller::Caller;
use super::gate::Gate;
use super::problem::Problem;
use crate::events::{Event, Heard};
use crate::fleet::Fleet;

/// How often it is looked whether the caller may still listen.
const LOOK: Duration = Duration::from_secs(20);
/// So often something is said at least: proxies close what is silent.
const ALIVE: Duration = Duration::from_secs(15);
/// Events on their way to one reader, beside those that wait for all.
const ON_THE_WAY: usize = 16;
/// Longest number in a `Last-Event-ID`.
const MOST_ID: usize = 64;

/// Tells what changes, as server-sent events.
///
/// Begins with `hello`. Then each event is a `host`, `vm`, `migration`, `plan` or `link`, with what the API shows of it as
/// data, or `{"id" or "name": …, "gone": true}`. `reset` says that events were missed: read everything anew. With
/// `Last-Event-ID` the stream goes on behind that event, or begins with `reset`. The stream ends when the token does.
#[utoipa::path(
    get, path = "/v1/events", tag = "events",
    params(("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that was heard.")),
    responses((status = OK, body = String, content_type = "text/event-stream"))
)]
pub(super) async fn listen(
    State(fleet): State<Arc<Fleet>>,
    Extension(gate): Extension<Arc<Gate>>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    caller.may(&fleet, Action::Look, "").await?;
    let place = fleet.events.place(caller.actor()).ok_or_else(|| {
        let why = "too many streams of events are open; close some";
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many", why)
    })?;
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()).filter(|id| id.len() <= MOST_ID);
    let asked = last.is_some();
    let after = last.and_then(|id| id.strip_prefix(gate.run())?.strip_prefix('-')?.parse().ok());
    let (out, events) = mpsc::channel(ON_THE_WAY);
    let credentials: HeaderMap = headers
        .get(header::AUTHORIZATION)
        .map(|value| (header::AUTHORIZATION, value.clone()))
        .into_iter()
        .collect();
    tokio::spawn(async move {
        let _place = place;
        let heard = fleet.events.listen(after).await;
        let reader = Reader { out, gate: Arc::clone(&gate), credentials, caller };
        reader.tell(heard, asked).await;
    });
    let stream = Sse::new(ReceiverStream::new(events)).keep_alive(KeepAlive::new().interval(ALIVE));
    let mut response = stream.into_response();
    // Reverse proxies that gather answers are asked not to.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// Who listens.
struct Reader {
    out: mpsc::Sender<Result<Written, Infallible>>,
    gate: Arc<Gate>,
    credentials: HeaderMap,
    caller: Caller,
}

impl Reader {
    fn written(&self, event: &Event) -> Written {
        Written::default()
            .id(format!("{}-{}", self.gate.run(), event.number))
            .event(event.kind.as_str())
            .data(&event.data)
    }

    /// Something that is no change, behind the event of this number.
    fn said(&self, what: &str, number: u64) -> Written {
        let hello = json!({ "version": env!("CARGO_PKG_VERSION") });
        Written::default().id(format!("{}-{number}", self.gate.run())).event(what).data(hello.to_string())
    }

    /// Whether the caller may still listen, and is who it was.
    async fn may_go_on(&self) -> bool {
        self.gate.caller(&self.credentials).await.is_ok_and(|caller| caller == self.caller)
    }

    /// Tells until the reader goes, may not listen any more, or the coordinator ends.
    async fn tell(self, heard: Heard, asked: bool) {
        let Heard { behind, missed, mut coming } = heard;
        let mut begin = vec![self.said("hello", behind)];
        match missed {
            Some(missed) => begin.extend(missed.iter().map(|event| self.written(event))),
            None if asked => begin.push(self.said("reset", behind)),
            None => {}
        }
        for event in begin {
            if self.out.send(Ok(event)).await.is_err() {
                return;
            }
        }
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        look.reset();
        let mut last = behind;
        loop {
            let event = tokio::select! {
                () = self.out.closed() => return,
                () = self.gate.fleet().events.ended().cancelled() => return,
                _ = look.tick() => {
                    if !self.may_go_on().await {
                        return;
                    }
                    continue;
                }
                event = coming.recv() => event,
            };
            let written = match event {
                Ok(event) => {
                    last = event.number;
                    self.written(&event)
                }
                Err(RecvError::Lagged(count)) => {
                    last += count;
                    self.said("reset", last)
                }
                Err(RecvError::Closed) => return,
            };
            if self.out.send(Ok(written)).await.is_err() {
                return;
            }
        }
    }
}
