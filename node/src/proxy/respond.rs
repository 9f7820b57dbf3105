//! Answers that the platform makes itself.

use super::body::ResponseBody;
use hearth_model::ProblemKind;
use http::Response;

/// A problem document as a response.
pub(super) fn problem(kind: ProblemKind, component: &str, detail: impl Into<String>, request_id: &str) -> Response<ResponseBody> {
    hearth_edge::respond::problem(kind, component, detail, request_id).map(|body| ResponseBody::Own(Some(body)))
}
