//! The API's description: OpenAPI 3.1 for programs, a page without scripts for people.

use std::sync::Arc;

use axum::Extension;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    Components, Content, InfoBuilder, ObjectBuilder, OpenApi, OpenApiBuilder, Ref, RefOr,
    Response as Described, ResponseBuilder, Schema, Type,
};
use utoipa::{PartialSchema, ToSchema};

use super::problem::Written;

/// What is served, made once.
#[derive(Debug)]
pub(super) struct Document {
    json: String,
    page: String,
}

/// Why pages of ours need nothing but their own style.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What is said before the routes.
pub(super) fn head() -> OpenApi {
    let about = "Moves virtual machines between the hosts of a fleet.\n\nCallers send an API token as `Authorization: \
                 Bearer nfa1_…`, or one of NovaCron's JWTs where the coordinator knows its secret. Lists come in pages: \
                 `{items, next}`; give `next` as `after`. Every POST may carry an `Idempotency-Key`: sent again within \
                 a day it is answered as it was, and not done again. GETs have an `ETag`. Errors are problems (RFC 9457).";
    let info = InfoBuilder::new()
        .title("novaferry coordinator")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(about));
    let mut components = Components::new();
    let mut bearer = Http::new(HttpAuthScheme::Bearer);
    bearer.description = Some("An API token (`nfa1_…`) or a JWT of NovaCron's (HS256).".to_owned());
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    components.schemas.insert(Written::name().into_owned(), Written::schema());
    OpenApiBuilder::new()
        .info(info.build())
        .components(Some(components))
        .security(Some([SecurityRequirement::new("bearer", Vec::<String>::new())]))
        .build()
}

fn problem(description: &str) -> ResponseBuilder {
    let content = Content::new(Some(RefOr::Ref(Ref::from_schema_name("Problem"))));
    ResponseBuilder::new().description(description).content("application/problem+json", content)
}

fn text_header(name: &str, place: ParameterIn, description: &str) -> RefOr<Parameter> {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .description(Some(description))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .build()
        .into()
}

fn say(operation: &mut Operation, status: &str, response: impl Into<Described>) {
    operation.responses.responses.entry(status.to_owned()).or_insert_with(|| RefOr::T(response.into()));
}

/// What holds for every route is said here, not at each of them.
fn complete(openapi: &mut OpenApi) {
    for item in openapi.paths.paths.values_mut() {
        let all = item.get.iter_mut().chain(&mut item.post).chain(&mut item.put).chain(&mut item.delete);
        for operation in all {
            let text =
                || HeaderBuilder::new().schema(Some(ObjectBuilder::new().schema_type(Type::String))).build();
            let number =
                || HeaderBuilder::new().schema(Some(ObjectBuilder::new().schema_type(Type::Integer))).build();
            let too_many =
                problem("Too many requests of this token, or from this address without a good one.")
                    .header("Retry-After", number())
                    .header("RateLimit", text())
                    .header("RateLimit-Policy", text());
            say(operation, "429", too_many.build());
            say(operation, "default", problem("Why it was not done.").build());
        }
        if let Some(get) = &mut item.get {
            let about = "Tags of what the caller has: if it is still so, the answer is 304 without content.";
            get.parameters.get_or_insert_default().push(text_header(
                "If-None-Match",
                ParameterIn::Header,
                about,
            ));
            say(get, "304", ResponseBuilder::new().description("It is as the caller has it.").build());
        }
        if let Some(post) = &mut item.post {
            let about = "1 to 128 visible ASCII characters that the caller chose for this request alone.";
            post.parameters.get_or_insert_default().push(text_header(
                "Idempotency-Key",
                ParameterIn::Header,
                about,
            ));
            say(
                post,
                "409",
                problem("Something stands against it, or this very request is being done.").build(),
            );
            say(
                post,
                "422",
                problem("It makes no sense, or its Idempotency-Key was used for another.").build(),
            );
        }
    }
}

/// What is a part of another schema (`allOf`) is not closed: each part is checked by itself, and the fields of the others
/// would be strange to it.
fn open_parts(openapi: &mut OpenApi) {
    let Some(components) = &mut openapi.components else { return };
    let all_of = components.schemas.values().filter_map(|schema| match schema {
        RefOr::T(Schema::AllOf(all)) => Some(all.items.iter()),
        _ => None,
    });
    let parts: Vec<String> = all_of
        .flatten()
        .filter_map(|part| match part {
            RefOr::Ref(part) => part.ref_location.rsplit('/').next().map(ToOwned::to_owned),
            RefOr::T(_) => None,
        })
        .collect();
    for part in parts {
        if let Some(RefOr::T(Schema::Object(part))) = components.schemas.get_mut(&part) {
            part.additional_properties = None;
        }
    }
}

/// Gives the handlers below what they serve.
pub(super) fn layer(mut openapi: OpenApi) -> Extension<Arc<Document>> {
    complete(&mut openapi);
    open_parts(&mut openapi);
    let value = serde_json::to_value(&openapi).unwrap_or_default();
    Extension(Arc::new(Document { page: html(&value), json: value.to_string() }))
}

/// Describes this API as OpenAPI 3.1. For anybody.
#[utoipa::path(
    get, path = "/v1/openapi.json", tag = "service", security(()),
    responses((status = OK, body = Object, content_type = "application/json"))
)]
pub(super) async fn json(Extension(document): Extension<Arc<Document>>) -> Response {
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (kind, document.json.clone()).into_response()
}

/// Describes this API to people. For anybody.
#[utoipa::path(
    get, path = "/v1/docs", tag = "service", security(()),
    responses((status = OK, body = String, content_type = "text/html"))
)]
pub(super) async fn page(Extension(document): Extension<Arc<Document>>) -> Response {
    let heads: [(HeaderName, &str); 4] = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (heads, document.page.clone()).into_response()
}

fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b;\
background:#fff}code,pre{font:14px/1.45 ui-monospace,monospace}pre{background:#f4f4f4;padding:.75rem;overflow:auto}\
summary{cursor:pointer;padding:.4rem 0}table{border-collapse:collapse}th,td{text-align:left;padding:.2rem 1rem .2rem 0;\
vertical-align:top}b.get{color:#0b5c2e}b.post{color:#8a3b00}a{color:#0645ad}\
@media(prefers-color-scheme:dark){body{background:#161616;color:#eee}pre{background:#242424}b.get{color:#7fd6a0}\
b.post{color:#ffb27a}a{color:#9cc4ff}}";

/// A schema in few words: a link to a named one, or its type.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        return format!("<a href=\"#{0}\">{0}</a>", escape(name));
    }
    for several in ["oneOf", "anyOf", "allOf"] {
        if let Some(parts) = schema[several].as_array() {
            return parts.iter().map(kind).collect::<Vec<_>>().join(" | ");
        }
    }
    match &schema["type"] {
        Value::String(one) if one == "array" => format!("list of {}", kind(&schema["items"])),
        Value::String(one) => escape(one),
        Value::Array(several) => {
            escape(&several.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" | "))
        }
        _ => "any".to_owned(),
    }
}

fn content(bodies: &Value) -> String {
    let bodies = bodies.as_object().into_iter().flatten();
    bodies.map(|(media, body)| format!("<code>{}</code> {}", escape(media), kind(&body["schema"]))).collect()
}

fn operation(page: &mut String, method: &str, path: &str, operation: &Value) {
    let text = |field: &str| escape(operation[field].as_str().unwrap_or_default());
    page.push_str(&format!(
        "<details><summary><b class={method}>{}</b> <code>{}</code> {}</summary><p>{}</p>",
        method.to_uppercase(),
        escape(path),
        text("summary"),
        text("description")
    ));
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    let rows: String = parameters
        .map(|one| {
            let text = |field: &str| escape(one[field].as_str().unwrap_or_default());
            let (name, place, about) = (text("name"), text("in"), text("description"));
            format!("<tr><td><code>{name}</code><td>{place}<td>{}<td>{about}", kind(&one["schema"]))
        })
        .collect();
    if !rows.is_empty() {
        page.push_str(&format!("<table><tr><th>Parameter<th>In<th>Type<th>{rows}</table>"));
    }
    if operation["requestBody"].is_object() {
        page.push_str(&format!("<p>Body: {}", content(&operation["requestBody"]["content"])));
    }
    page.push_str("<table><tr><th>Status<th>Content<th>");
    for (status, response) in operation["responses"].as_object().into_iter().flatten() {
        let about = escape(response["description"].as_str().unwrap_or_default());
        page.push_str(&format!("<tr><td>{}<td>{}<td>{about}", escape(status), content(&response["content"])));
    }
    page.push_str("</table></details>");
}

/// The document as a page.
fn html(document: &Value) -> String {
    let about = document["info"]["description"].as_str().unwrap_or_default();
    let mut page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>{0}</title><style>{STYLE}</style><main><h1>{0} {1}</h1>",
        escape(document["info"]["title"].as_str().unwrap_or_default()),
        escape(document["info"]["version"].as_str().unwrap_or_default()),
    );
    about.split("\n\n").for_each(|part| page.push_str(&format!("<p>{}</p>", escape(part))));
    page.push_str("<p><a href=openapi.json>The same as OpenAPI 3.1</a></p><h2>What can be asked</h2>");
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        for (method, what) in item.as_object().into_iter().flatten() {
            operation(&mut page, method, path, what);
        }
    }
    page.push_str("<h2>Types</h2>");
    for (name, schema) in document["components"]["schemas"].as_object().into_iter().flatten() {
        let name = escape(name);
        let text = serde_json::to_string_pretty(schema).unwrap_or_default();
        page.push_str(&format!("<h3 id=\"{name}\">{name}</h3><pre>{}</pre>", escape(&text)));
    }
    page.push_str("</main></html>");
    page
}
