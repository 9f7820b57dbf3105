//! A stand-in for the platform: its management API as far as the tool uses it, in memory, and functions that answer who they are.

use crate::stub::{Reply, Request, Stub};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

/// How it misbehaves.
#[derive(Debug, Clone, Default)]
pub struct Manners {
    /// Functions answer in the name of others.
    pub crossed: bool,
    /// The token is known but may not make tenants.
    pub forbids: bool,
    /// The function with this number (of all that are put) is refused.
    pub refuses_function: Option<usize>,
    /// Each answer of a function takes so long.
    pub slow: Duration,
    /// Once so many functions have been put, functions answer 503 for good.
    pub broken: bool,
}

/// What it holds.
#[derive(Debug, Default)]
pub struct State {
    pub tenants: BTreeSet<String>,
    /// Function paths and what they say about themselves.
    pub functions: BTreeMap<String, (String, String)>,
    pub puts: usize,
    pub tenants_made: usize,
    pub calls: usize,
}

/// A running stand-in.
pub struct Platform {
    stub: Stub,
    pub state: Arc<Mutex<State>>,
}

impl Platform {
    /// Takes the token `admin`.
    pub fn start(manners: Manners) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let stub = Stub::start(move |request| answer(request, &manners, &mut shared.lock().unwrap()));
        Self { stub, state }
    }

    pub fn url(&self) -> String {
        self.stub.url("")
    }

    pub fn tenants(&self) -> usize {
        self.state.lock().unwrap().tenants.len()
    }
}

fn answer(request: &Request, manners: &Manners, state: &mut State) -> Reply {
    let path = request.path.split('?').next().unwrap_or("");
    if let Some(function) = path.strip_prefix("/run/") {
        return call(function, manners, state);
    }
    if !request.head.contains("authorization: bearer admin\r\n") {
        return Reply::problem(401, "client", "unknown-token");
    }
    if manners.forbids {
        return Reply::problem(403, "client", "scope");
    }
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match (request.method.as_str(), parts.as_slice()) {
        ("GET", ["v1", "tenants"]) => {
            let items: Vec<_> = state.tenants.iter().map(|t| serde_json::json!({ "name": t })).collect();
            Reply::json(200, &serde_json::json!({ "items": items }).to_string(), "")
        }
        ("GET", ["v1", "tenants", tenant]) => match state.tenants.contains(*tenant) {
            true => Reply::json(200, "{}", ""),
            false => Reply::problem(404, "client", "no-such-tenant"),
        },
        ("PUT", ["v1", "tenants", tenant]) => {
            state.tenants_made += usize::from(state.tenants.insert((*tenant).to_owned()));
            Reply::json(201, "{}", "")
        }
        ("DELETE", ["v1", "tenants", tenant]) => {
            state.tenants.remove(*tenant);
            state.functions.retain(|path, _| !path.starts_with(&format!("{tenant}/")));
            Reply::json(200, "{}", "")
        }
        ("GET", ["v1", "tenants", tenant, "containers", container, "functions", function]) => {
            match state.functions.contains_key(&format!("{tenant}/{container}/{function}")) {
                true => Reply::json(200, r#"{"status":"ready"}"#, ""),
                false => Reply::problem(404, "client", "no-such-function"),
            }
        }
        ("PUT", ["v1", "tenants", tenant, "containers", container, "functions", function]) => {
            state.puts += 1;
            if manners.refuses_function == Some(state.puts) {
                return Reply::problem(400, "client", "bad-code");
            }
            let spec: serde_json::Value = serde_json::from_slice(&request.body).unwrap_or_default();
            let env = |name: &str| spec["env"][name].as_str().unwrap_or("").to_owned();
            let said = (env("LOADTEST_ID"), env("LOADTEST_VERSION"));
            state.functions.insert(format!("{tenant}/{container}/{function}"), said);
            Reply::json(201, r#"{"status":"ready"}"#, "")
        }
        _ => Reply::problem(404, "client", "no-such-route"),
    }
}

fn call(function: &str, manners: &Manners, state: &mut State) -> Reply {
    state.calls += 1;
    let Some((id, version)) = state.functions.get(function) else { return Reply::problem(404, "client", "no-such-function") };
    if manners.broken {
        return Reply::problem(503, "platform", "no-capacity");
    }
    let id = if manners.crossed { "somebody/else/f" } else { id };
    let version = if version.is_empty() { "1" } else { version };
    let headers = format!("hearth-start: warm\r\nx-loadtest-id: {id}\r\nx-loadtest-version: {version}\r\n");
    Reply::status(200, &headers).after(manners.slow)
}
