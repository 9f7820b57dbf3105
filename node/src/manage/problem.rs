//! Errors of the API, and the one mapping of each backend's errors to a problem. What a caller may read and what only the log may say are
//! separate from the start.

use super::RequestId;
use axum::{
    body::Body,
    http::{Extensions, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use hearth_model::{Fault, NameError, Problem, ProblemKind};
use hearth_registry::ResolveError;
use hearth_store::{ArtifactError, KeyringError, QueueError, StoreError};

/// A call that ends in a problem.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    pub kind: ProblemKind,
    pub detail: String,
    pub field: Option<String>,
    /// For the log only.
    private: Option<String>,
}

impl ApiError {
    pub fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), field: None, private: None }
    }

    pub fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..Self::new(ProblemKind::Invalid, detail) }
    }

    pub fn not_found(what: &str) -> Self {
        Self::new(ProblemKind::NotFound, format!("there is no such {what}, or it is not yours to see"))
    }

    pub fn unknown_route() -> Self {
        Self::new(ProblemKind::NotFound, "there is nothing here; /v1/openapi.json lists what there is")
    }

    pub fn wrong_method() -> Self {
        Self::new(ProblemKind::MethodNotAllowed, "this path exists, but not with this method; /v1/openapi.json lists them")
    }

    pub fn too_slow() -> Self {
        Self::new(ProblemKind::DependencyUnavailable, "the call did not end in time; what it changed, if anything, a GET will show")
    }

    fn unavailable(what: &str, private: String) -> Self {
        Self {
            private: Some(private),
            ..Self::new(
                ProblemKind::DependencyUnavailable,
                format!("{what} cannot be reached now; nothing was changed that a GET does not show"),
            )
        }
    }

    fn internal(private: String) -> Self {
        Self {
            private: Some(private),
            ..Self::new(ProblemKind::Internal, "something is wrong inside; the log tells more under this request's id")
        }
    }

    /// The framework's refusal as a problem, with its words.
    pub async fn from_framework(response: Response) -> Self {
        let kind = match response.status() {
            StatusCode::PAYLOAD_TOO_LARGE => ProblemKind::BodyTooLarge,
            StatusCode::UNSUPPORTED_MEDIA_TYPE => ProblemKind::UnsupportedMediaType,
            StatusCode::NOT_FOUND => ProblemKind::NotFound,
            StatusCode::METHOD_NOT_ALLOWED => ProblemKind::MethodNotAllowed,
            _ => ProblemKind::Invalid,
        };
        let text = axum::body::to_bytes(response.into_body(), 4_096).await.unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        // Its words about a body are `Failed to ...: {path of the field}: {what is wrong}`.
        let found = text.split_once("target type: ").and_then(|(_, rest)| rest.split_once(": "));
        let is_path = |p: &str| p.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-[]".contains(&b));
        match found.filter(|(field, _)| is_path(field)) {
            Some((field, detail)) => Self::invalid(field, detail),
            None => Self::new(kind, text),
        }
    }

    /// The final response.
    pub fn answer(self, extensions: &Extensions) -> Response {
        let id = extensions.get::<RequestId>().map_or("", |id| id.0.as_str());
        if let Some(private) = &self.private {
            tracing::error!(request_id = id, reason = self.kind.slug(), detail = private, "a management call failed");
        }
        let mut problem = Problem::new(self.kind, "manage", self.detail, id);
        problem.field = self.field;
        let status = StatusCode::from_u16(self.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, serde_json::to_string(&problem).unwrap_or_default()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM));
        if let Some(seconds) = self.kind.retry_after_s() {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.kind == ProblemKind::Unauthenticated {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"hearth\""));
        }
        response
    }
}

const PROBLEM: &str = "application/problem+json";

pub(crate) fn is_problem(response: &Response) -> bool {
    response.headers().get(header::CONTENT_TYPE).is_some_and(|v| v == PROBLEM)
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::from_u16(self.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response.extensions_mut().insert(self);
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound { what } => Self::new(ProblemKind::NotFound, format!("{what} does not exist")),
            StoreError::Precondition { ref what, actual: Some(actual) } => Self::new(
                ProblemKind::PreconditionFailed,
                format!("{what} is at \"{actual}\": GET it again, look at what changed, and send that as If-Match"),
            ),
            StoreError::Precondition { ref what, actual: None } => {
                Self::new(ProblemKind::PreconditionFailed, format!("{what} does not exist, so that If-Match cannot hold"))
            }
            StoreError::NotEmpty { .. } => Self::new(ProblemKind::Conflict, error.to_string()),
            StoreError::BadCursor { .. } => Self::invalid("cursor", error.to_string()),
            StoreError::NewerSchema { .. } | StoreError::Damaged { .. } => Self::internal(error.to_string()),
            StoreError::Unavailable { .. } => Self::unavailable("the store", error.to_string()),
        }
    }
}

impl From<ArtifactError> for ApiError {
    fn from(error: ArtifactError) -> Self {
        match error {
            ArtifactError::Unavailable { .. } => Self::unavailable("the artifact store", error.to_string()),
            ArtifactError::NotFound { .. } | ArtifactError::Mismatch { .. } => Self::internal(error.to_string()),
        }
    }
}

impl From<QueueError> for ApiError {
    fn from(error: QueueError) -> Self {
        match error {
            QueueError::Unavailable { .. } => Self::unavailable("the build queue", error.to_string()),
            QueueError::Stale => Self::internal(error.to_string()),
        }
    }
}

impl From<KeyringError> for ApiError {
    fn from(error: KeyringError) -> Self {
        match error {
            KeyringError::Unavailable { .. } => Self::unavailable("the key service", error.to_string()),
            _ => Self::internal(error.to_string()),
        }
    }
}

impl From<NameError> for ApiError {
    fn from(error: NameError) -> Self {
        Self::invalid("path", error.to_string())
    }
}

impl From<ResolveError> for ApiError {
    fn from(error: ResolveError) -> Self {
        let field = error.module().map_or_else(|| "dependencies".to_owned(), |name| format!("dependencies.{name}"));
        match error.fault() {
            Fault::Platform => Self { field: Some(field), ..Self::new(ProblemKind::DependencyUnavailable, error.to_string()) },
            Fault::Client | Fault::Tenant => Self::invalid(field, error.to_string()),
        }
    }
}
