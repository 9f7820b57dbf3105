//! `GET .../logs`: a container's output as server-sent events.

use super::{Shared, auth::Caller, problem::ApiError};
use crate::{
    cluster::{NodeLine, Tailed},
    logs::LogItem,
};
use axum::{
    extract::{Path, Query, State},
    response::sse::{Event, KeepAlive, Sse},
};
use futures_util::{FutureExt, Stream, StreamExt, stream};
use hearth_model::{ContainerName, ContainerPath, Problem, Scope, TenantName};
use serde::Deserialize;
use std::{convert::Infallible, time::Duration};

/// How to read.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reading {
    /// Whether to wait for what comes; true where absent.
    #[serde(default = "yes")]
    follow: bool,
}

const fn yes() -> bool {
    true
}

fn event(item: LogItem) -> Result<Event, Infallible> {
    Ok(match item {
        LogItem::Line(line) => Event::default().event("line").json_data(&*line).unwrap_or_default(),
        LogItem::Dropped(count) => Event::default().event("dropped").data(count.to_string()),
    })
}

fn event_of_node(line: NodeLine) -> Result<Event, Infallible> {
    Ok(match line.item {
        Tailed::Line(mut value) => {
            value["node"] = line.node.as_str().into();
            Event::default().event("line").json_data(value).unwrap_or_default()
        }
        Tailed::Dropped(count) => Event::default().event("dropped").data(count.to_string()),
    })
}

/// The container's last lines, then those that come, from every node that it runs on: events `line` (JSON) and `dropped` (a number of lines
/// that were lost).
#[utoipa::path(get, path = "/v1/tenants/{tenant}/containers/{container}/logs", tag = "containers",
    params(("tenant" = TenantName, Path), ("container" = ContainerName, Path), Reading), security(("bearer" = [])), responses(
    (status = 200, description = "Server-sent events", body = String, content_type = "text/event-stream"),
    (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn follow(
    State(api): State<Shared>,
    caller: Caller,
    Path((tenant, container)): Path<(String, String)>,
    Query(reading): Query<Reading>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let path = ContainerPath { tenant: tenant.parse()?, container: container.parse()? };
    caller.require(&path.tenant, Scope::Read)?;
    if api.deps.functions.get_container(&path).await?.is_none() {
        return Err(ApiError::not_found("container"));
    }
    let mut lines = api.deps.logs.subscribe(&path);
    let stream = match &api.deps.peers {
        Some(peers) if reading.follow => peers.follow(path, lines).map(event_of_node).boxed(),
        Some(peers) => stream::iter(peers.kept(&path, lines).await.into_iter().map(event_of_node)).boxed(),
        None if reading.follow => lines.map(event).boxed(),
        None => {
            // What is kept is there at once; the first wait is the end.
            let mut kept = Vec::new();
            while let Some(Some(item)) = lines.next().now_or_never() {
                kept.push(event(item));
            }
            stream::iter(kept).boxed()
        }
    };
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))))
}
