//! The page for people, at `/`: files of `page/`, which is all there is of it: nothing is built, nothing is fetched from
//! elsewhere. It asks the API as any program does, with the token that is pasted into it.

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sha2::{Digest, Sha256};

/// Path, type, content.
type File = (&'static str, &'static str, &'static str);

macro_rules! file {
    ($path:literal, $name:literal, $kind:literal) => {
        ($path, $kind, include_str!(concat!("../page/", $name)))
    };
}

const FILES: &[File] = &[
    file!("/", "index.html", "text/html; charset=utf-8"),
    file!("/page/style.css", "style.css", "text/css; charset=utf-8"),
    file!("/page/icon.svg", "icon.svg", "image/svg+xml"),
    file!("/page/main.js", "main.js", "text/javascript; charset=utf-8"),
    file!("/page/api.js", "api.js", "text/javascript; charset=utf-8"),
    file!("/page/chart.js", "chart.js", "text/javascript; charset=utf-8"),
    file!("/page/dom.js", "dom.js", "text/javascript; charset=utf-8"),
    file!("/page/units.js", "units.js", "text/javascript; charset=utf-8"),
];

/// What the page may do: its own files, and its own coordinator.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A file, unless the browser has it.
fn answer(&(_, kind, content): &File, tag: &str, request: &Request) -> Response {
    let seen = request.headers().get(header::IF_NONE_MATCH).is_some_and(|seen| seen == tag);
    let heads: [(HeaderName, &str); 7] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::ETAG, tag),
    ];
    if seen {
        return (StatusCode::NOT_MODIFIED, heads).into_response();
    }
    (heads, content).into_response()
}

/// The page's files. For anybody: they hold nothing of the fleet.
pub(crate) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.iter().fold(Router::new(), |router, file| {
        let digest = Sha256::digest(file.2);
        let tag = format!("\"{}\"", data_encoding::HEXLOWER.encode(&digest[..16]));
        router.route(file.0, get(async move |request: Request| answer(file, &tag, &request)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        for (path, _, content) in FILES {
            for word in
                ["https://", "http://", "innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "style="]
            {
                let foreign = content.replace("http://www.w3.org/2000/svg", "");
                assert!(!foreign.contains(word), "{path} has {word}");
            }
            // Each file that another names is there.
            for part in content.split('"').filter(|part| part.starts_with("./") || part.starts_with("/page/"))
            {
                let name = part.replace("./", "/page/");
                assert!(FILES.iter().any(|(path, ..)| *path == name), "{path} names {part}");
            }
        }
        let kept = |value: &str| axum::http::HeaderValue::from_str(value).is_ok();
        assert!(FILES.iter().all(|(_, kind, _)| kept(kind)) && kept(POLICY));
    }
}
