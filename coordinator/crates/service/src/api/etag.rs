//! Entity tags: what a GET gives has the SHA-256 of its content as its strong tag.

use axum::body::{Body, HttpBody, to_bytes};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::problem::Problem;

/// Largest answer that gets a tag, bytes.
const MOST_ANSWER: usize = 64 << 20;
/// Bytes of the hash in a tag.
const LENGTH: usize = 16;

/// The tag of an answer's bytes.
fn tag(content: &[u8]) -> String {
    format!("\"{}\"", data_encoding::HEXLOWER.encode(&Sha256::digest(content)[..LENGTH]))
}

/// The tag that a GET of this value gives.
fn of(value: &impl Serialize) -> Result<String, Problem> {
    let content = serde_json::to_vec(value).map_err(crate::error::ServiceError::internal)?;
    Ok(tag(&content))
}

/// Whether a header's list of tags has this one. `*` is any.
fn lists(header: &str, tag: &str) -> bool {
    header.split(',').map(|one| one.trim()).any(|one| one == "*" || one == tag)
}

/// Whether the caller wants it done only to what it has seen, and this is something else.
pub(super) fn differs(headers: &HeaderMap, value: &impl Serialize) -> Result<bool, Problem> {
    let mut wanted = headers.get_all(header::IF_MATCH).iter().peekable();
    if wanted.peek().is_none() {
        return Ok(false);
    }
    let tag = of(value)?;
    Ok(!wanted.any(|header| header.to_str().is_ok_and(|header| lists(header, &tag))))
}

/// That it does.
pub(super) fn stale() -> Problem {
    let why = "it has changed since you looked (If-Match); look again";
    Problem::new(StatusCode::PRECONDITION_FAILED, "stale", why)
}

/// Gives an answer to a GET its tag, or leaves the content out if the caller has it.
pub(super) async fn tagged(seen: Option<&HeaderValue>, response: Response) -> Response {
    let json = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    // A stream has no end: only what is whole already can be tagged.
    if response.status() != StatusCode::OK || !json || response.body().size_hint().exact().is_none() {
        return response;
    }
    let (mut head, body) = response.into_parts();
    let content = match to_bytes(body, MOST_ANSWER).await {
        Ok(content) => content,
        Err(error) => return Problem::broken(&error).into_response(),
    };
    let tag = tag(&content);
    // If-None-Match compares weakly.
    let seen = seen.and_then(|seen| seen.to_str().ok()).map(|seen| seen.replace("W/", ""));
    let has = seen.is_some_and(|seen| lists(&seen, &tag));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        head.headers.insert(header::ETAG, tag);
    }
    head.headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    if has {
        head.status = StatusCode::NOT_MODIFIED;
        head.headers.remove(header::CONTENT_TYPE);
        head.headers.remove(header::CONTENT_LENGTH);
        return Response::from_parts(head, Body::empty());
    }
    Response::from_parts(head, Body::from(content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_compared_whole() {
        let one = of(&"content").unwrap();
        assert!(one.len() == 2 + 2 * LENGTH && one != of(&"other").unwrap());
        for (header, has) in [
            (one.clone(), true),
            (format!("\"x\", {one}"), true),
            ("*".to_owned(), true),
            (format!("W/{one}"), false),
            (one[..8].to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(lists(&header, &one), has, "{header}");
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_MATCH, header.parse().unwrap());
            assert_eq!(differs(&headers, &"content").unwrap(), !has, "{header}");
        }
        assert!(!differs(&HeaderMap::new(), &"content").unwrap());
    }
}
