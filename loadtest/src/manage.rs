//! The management API, as far as a load test needs it: making tenants and functions, and taking them away again.

use crate::net::{Client, Destination, Failed, Failure, Options, Payload};
use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use serde_json::Value;
use std::{fmt, time::Duration};

/// An answer larger than this is not read to its end.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Deadline of a call, the wait for modules that it may ask for included.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// A call that was turned away for the moment is repeated so often, with a growing pause.
const ATTEMPTS: u32 = 6;

/// A refusal that whoever called the tool has to act on.
#[derive(Debug)]
pub enum Refusal {
    /// Nobody answers there.
    Unreachable(String),
    /// The token is missing, unknown, or lacks the right.
    NotAllowed(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(text) | Self::NotAllowed(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Refusal {}

/// A platform's management API.
#[derive(Debug)]
pub struct Api {
    client: Client,
    shown: String,
    host: HeaderValue,
    token: Option<HeaderValue>,
}

impl Api {
    /// Of the platform at this destination.
    ///
    /// # Errors
    /// The token cannot stand in a header.
    pub fn new(target: &Destination, options: &Options, token: Option<&str>) -> anyhow::Result<Self> {
        let options = Options { fresh: false, ..options.clone() };
        let token = token
            .map(|token| {
                let mut value =
                    HeaderValue::from_str(&format!("Bearer {token}")).context("the token has characters that no token has")?;
                value.set_sensitive(true);
                anyhow::Ok(value)
            })
            .transpose()?;
        Ok(Self {
            shown: target.show(),
            host: HeaderValue::from_str(target.authority.as_str())?,
            client: Client::new(vec![target.clone()], options),
            token,
        })
    }

    /// Whether it can be reached and the token is taken, before anything is done.
    ///
    /// # Errors
    /// A [`Refusal`], or an answer that no such platform gives.
    pub async fn probe(&self) -> anyhow::Result<()> {
        let (status, body) = self.call(Method::GET, "/v1/tenants?limit=1", None).await?;
        match status.is_success() && body.get("items").is_some_and(Value::is_array) {
            true => Ok(()),
            false => anyhow::bail!("{} answers {status} to GET /v1/tenants: that is not the platform's management API", self.shown),
        }
    }

    /// Whether a tenant is there.
    ///
    /// # Errors
    /// As of every call: a [`Refusal`], or what the platform says.
    pub async fn has_tenant(&self, tenant: &str) -> anyhow::Result<bool> {
        Ok(self.call(Method::GET, &format!("/v1/tenants/{tenant}"), None).await?.0.is_success())
    }

    /// Makes a tenant.
    ///
    /// # Errors
    /// As of every call.
    pub async fn put_tenant(&self, tenant: &str, limits: Option<&Value>) -> anyhow::Result<()> {
        let body = limits.map_or_else(|| serde_json::json!({}), |limits| serde_json::json!({ "limits": limits }));
        self.done(Method::PUT, &format!("/v1/tenants/{tenant}"), Some(&body)).await.map(drop)
    }

    /// Takes a tenant away with all that it has; one that is not there is no error.
    ///
    /// # Errors
    /// As of every call.
    pub async fn delete_tenant(&self, tenant: &str) -> anyhow::Result<()> {
        let path = format!("/v1/tenants/{tenant}?recursive=true");
        let (status, body) = self.call(Method::DELETE, &path, None).await?;
        if status.is_success() || status == StatusCode::NOT_FOUND { Ok(()) } else { Err(said(&path, status, &body)) }
    }

    /// The names of tenants that start with something, in pages until there are no more.
    ///
    /// # Errors
    /// As of every call.
    pub async fn tenants(&self, start: &str) -> anyhow::Result<Vec<String>> {
        let (mut names, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = self.done(Method::GET, &format!("/v1/tenants?limit=1000{cursor}"), None).await?;
            let items = page.get("items").and_then(Value::as_array).context("a list without items")?;
            let found = items.iter().filter_map(|item| item.get("name")?.as_str()).filter(|name| name.starts_with(start));
            names.extend(found.map(str::to_owned));
            match page.get("next").and_then(Value::as_str) {
                Some(next) => cursor = format!("&cursor={}", escaped(next)),
                None => return Ok(names),
            }
        }
    }

    /// The newest version's state of a function: none where there is no such function.
    ///
    /// # Errors
    /// As of every call.
    pub async fn function(&self, path: &str) -> anyhow::Result<Option<Value>> {
        let (status, body) = self.call(Method::GET, path, None).await?;
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => Ok(Some(body)),
            status => Err(said(path, status, &body)),
        }
    }

    /// Makes a version of a function and waits for it to go live, at most until the deadline.
    ///
    /// # Errors
    /// As of every call; or its modules cannot be built, or not in time.
    pub async fn deploy(&self, path: &str, function: &Value, within: Duration) -> anyhow::Result<Value> {
        let deadline = tokio::time::Instant::now() + within;
        let mut state = self.done(Method::PUT, path, Some(function)).await?;
        while state.get("status").and_then(Value::as_str) == Some("building") {
            if tokio::time::Instant::now() >= deadline {
                anyhow::bail!("{path}: its modules were not built within {} s", within.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
            state = self.function(path).await?.with_context(|| format!("{path} vanished while its modules were built"))?;
        }
        match state.get("status").and_then(Value::as_str) {
            Some("ready") => Ok(state),
            _ => {
                let reason = state.get("reason").and_then(Value::as_str).unwrap_or("its state is not known");
                anyhow::bail!("{path} did not go live: {reason}")
            }
        }
    }

    /// A call that must succeed.
    async fn done(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let (status, answer) = self.call(method, path, body).await?;
        if status.is_success() { Ok(answer) } else { Err(said(path, status, &answer)) }
    }

    /// A call; repeated where it was turned away for the moment. All that is called here may be repeated.
    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<(StatusCode, Value)> {
        let mut pause = Duration::from_millis(200);
        for attempt in 1.. {
            let result = self.once(&method, path, body).await;
            let again = attempt < ATTEMPTS
                && match &result {
                    Ok((status, _)) => matches!(status.as_u16(), 429 | 503),
                    // That nobody listens will not change by asking again.
                    Err(failed) => !matches!(failed.failure, Failure::Dial | Failure::Generator),
                };
            if again {
                tokio::time::sleep(pause).await;
                pause *= 2;
                continue;
            }
            let (status, answer) = result.map_err(|failed| {
                Refusal::Unreachable(format!("{} cannot be reached: {}\nIs `hearth up` running there? Where another server is meant, give --url or HEARTH_URL", self.shown, failed.detail))
            })?;
            return match status {
                StatusCode::UNAUTHORIZED => Err(Refusal::NotAllowed(
                    "the token is not known there: give --token or HEARTH_TOKEN; a local `hearth up` keeps its admin token in {data_dir}/admin.token".into(),
                )
                .into()),
                StatusCode::FORBIDDEN => Err(Refusal::NotAllowed(format!(
                    "the token does not allow {method} {}: a load test makes tenants, for which it needs an admin token ({})",
                    path.split('?').next().unwrap_or(path),
                    answer.get("detail").and_then(Value::as_str).unwrap_or("no detail")
                ))
                .into()),
                status => Ok((status, answer)),
            };
        }
        unreachable!("the last attempt returns")
    }

    async fn once(&self, method: &Method, path: &str, body: Option<&Value>) -> Result<(StatusCode, Value), Failed> {
        let wrong = |e: &dyn fmt::Display| Failed::new(Failure::Generator, format!("{path}: {e}"));
        let payload = match body {
            Some(body) => Payload::Whole(Bytes::from(serde_json::to_vec(body).map_err(|e| wrong(&e))?)),
            None => Payload::Empty,
        };
        let mut request = Request::builder().method(method.clone()).uri(path).body(payload).map_err(|e| wrong(&e))?;
        let headers = request.headers_mut();
        headers.insert(header::HOST, self.host.clone());
        if body.is_some() {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert("prefer", HeaderValue::from_static("wait=30"));
        }
        if let Some(token) = &self.token {
            headers.insert(header::AUTHORIZATION, token.clone());
        }
        let exchange = tokio::time::timeout(CALL_TIMEOUT, self.client.call(0, request, ANSWER_BYTES_MAX)).await;
        let answer = exchange.map_err(|_| Failed::new(Failure::Timeout, "no answer within 60 s"))??;
        Ok((answer.status, serde_json::from_slice(&answer.kept).unwrap_or(Value::Null)))
    }

    /// Calls a function once and gives one header of its answer.
    ///
    /// # Errors
    /// There is no whole answer.
    pub async fn invoke(&self, path: &str, header: &str, extra: &http::HeaderMap) -> Result<(StatusCode, Option<String>), Failed> {
        let mut request = Request::new(Payload::Empty);
        *request.uri_mut() = path.parse().map_err(|e| Failed::new(Failure::Generator, format!("{path}: {e}")))?;
        request.headers_mut().clone_from(extra);
        request.headers_mut().entry(header::HOST).or_insert(self.host.clone());
        let exchange = tokio::time::timeout(CALL_TIMEOUT, self.client.call(0, request, 0)).await;
        let answer = exchange.map_err(|_| Failed::new(Failure::Timeout, "no answer within 60 s"))??;
        let value = answer.headers.get(header).and_then(|v| v.to_str().ok()).map(str::to_owned);
        Ok((answer.status, value))
    }
}

fn said(path: &str, status: StatusCode, body: &Value) -> anyhow::Error {
    let detail = body.get("detail").and_then(Value::as_str).unwrap_or("no detail");
    anyhow::anyhow!("{}: the platform answers {status}: {detail}", path.split('?').next().unwrap_or(path))
}

/// A cursor is opaque, so all but the plainest characters are escaped.
fn escaped(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() || b == b'-' || b == b'_' { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}
