//! Completes the OpenAPI document that is generated from the handlers: each call's problems by status, and the document's own route. The
//! texts come from the problem kinds, so that document and answers cannot part; the tests of this API hold every status that they see
//! against it.

use hearth_model::ProblemKind;
use utoipa::openapi::{
    ContentBuilder, OpenApi, PathItem, Ref, ResponseBuilder,
    path::{HttpMethod, Operation, OperationBuilder},
};

const DOCUMENT: &str = "/v1/openapi.json";

/// What any call with a token can end in.
const ALWAYS: [ProblemKind; 6] = [
    ProblemKind::Invalid,
    ProblemKind::Unauthenticated,
    ProblemKind::Forbidden,
    ProblemKind::RateLimited,
    ProblemKind::Internal,
    ProblemKind::DependencyUnavailable,
];

/// The generated document, made complete.
pub(super) fn complete(mut document: OpenApi) -> OpenApi {
    for (path, item) in &mut document.paths.paths {
        let names_something = path.contains('{') || path.ends_with("/tokens");
        for (method, operation) in operations(item) {
            let mut kinds = ALWAYS.to_vec();
            if names_something {
                kinds.push(ProblemKind::NotFound);
            }
            if method != "get" {
                kinds.extend([ProblemKind::Conflict, ProblemKind::PreconditionFailed]);
            }
            if operation.request_body.is_some() {
                kinds.extend([ProblemKind::BodyTooLarge, ProblemKind::UnsupportedMediaType]);
            }
            for kind in kinds {
                add(operation, kind);
            }
        }
    }
    let answer = ResponseBuilder::new().description("This document").content("application/json", ContentBuilder::new().build());
    let own = OperationBuilder::new().summary(Some("This document")).tag("status").response("200", answer.build()).build();
    document.paths.paths.insert(DOCUMENT.into(), PathItem::new(HttpMethod::Get, own));
    document
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    let PathItem { get, put, post, delete, .. } = item;
    [("get", get), ("put", put), ("post", post), ("delete", delete)].into_iter().filter_map(|(m, o)| o.as_mut().map(|o| (m, o)))
}

/// Several kinds may share a status: their titles are listed.
fn add(operation: &mut Operation, kind: ProblemKind) {
    let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let titles: Vec<&str> = ProblemKind::ALL.iter().filter(|k| k.status() == kind.status()).map(|k| k.title()).collect();
    let titles = if kind == ProblemKind::DependencyUnavailable { vec![kind.title()] } else { titles };
    let response = ResponseBuilder::new().description(titles.join("; ")).content("application/problem+json", problem).build();
    operation.responses.responses.entry(kind.status().to_string()).or_insert_with(|| response.into());
}
