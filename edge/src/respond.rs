//! A problem as a response, the same from every listener.

use bytes::Bytes;
use hearth_model::{Problem, ProblemKind, header as names};
use http::{HeaderValue, Response, StatusCode, header};

/// A problem document as a response.
pub fn problem(kind: ProblemKind, component: &str, detail: impl Into<String>, request_id: &str) -> Response<Bytes> {
    let problem = Problem::new(kind, component, detail, request_id);
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = StatusCode::from_u16(kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if let Some(seconds) = kind.retry_after_s() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert(names::REQUEST_ID, id);
    }
    response
}
