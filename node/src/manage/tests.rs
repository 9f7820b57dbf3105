//! The API as a caller sees it: every route, every kind of caller, limits, preconditions, secrets that never come back, audit lines.

use super::{ClientIp, Config, Deps, RequestId, bootstrap_admin_token, router, routes};
use crate::{catalog::Catalog, logs::LogHub};
use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode},
};
use hearth_model::{Scope, Timestamp, Token, TokenHash};
use hearth_registry::Registry;
use hearth_store::FunctionStore;
use serde_json::{Value, json};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tower::ServiceExt;

mod faults;

struct Api {
    document: Value,
    router: Router,
    dir: tempfile::TempDir,
    admin: String,
    /// What lies below, whatever the API was given above it.
    records: Arc<dyn FunctionStore>,
}

/// Whether the OpenAPI document has this status for what is served there; what is not served needs no place in it.
fn documented(document: &Value, method: &str, path: &str, status: StatusCode) -> bool {
    let path: Vec<&str> = path.split('?').next().unwrap_or_default().split('/').collect();
    let fits = |template: &str| {
        let template: Vec<&str> = template.split('/').collect();
        template.len() == path.len() && template.iter().zip(&path).all(|(t, p)| t == p || t.starts_with('{'))
    };
    let item = document["paths"].as_object().and_then(|paths| paths.iter().find(|(template, _)| fits(template)));
    let operation = item.map(|(_, item)| &item[method.to_lowercase()]).filter(|operation| operation.is_object());
    operation.is_none_or(|operation| operation["responses"][status.as_str()].is_object())
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or(Value::Null)
    }
}

fn classes() -> hearth_model::Classes {
    serde_json::from_value(json!({ "small": { "functions_max": 1, "concurrency": 5 } })).unwrap()
}

impl Api {
    async fn new() -> Self {
        Self::with_wrong_tokens(1_000_000).await
    }

    async fn with_wrong_tokens(wrong_tokens_per_minute: u32) -> Self {
        Self::over(wrong_tokens_per_minute, |records| records).await
    }

    /// Over the store of records that `wrap` makes of the embedded one.
    async fn over(wrong_tokens_per_minute: u32, wrap: impl FnOnce(Arc<dyn FunctionStore>) -> Arc<dyn FunctionStore>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let stores = hearth_store::open(&hearth_store::Config::embedded(dir.path())).await.unwrap();
        let token_file = dir.path().join("admin.token");
        bootstrap_admin_token(&*stores.functions, &token_file).await.unwrap();
        let records = Arc::clone(&stores.functions);
        let functions = wrap(stores.functions);
        // Nothing listens there: what needs the registry is refused as unavailable.
        let registry = hearth_registry::Config { url: Some("http://127.0.0.1:9/".into()), ..Default::default() };
        let deps = Deps {
            functions: Arc::clone(&functions),
            bundles: stores.bundles,
            queue: stores.queue,
            keyring: stores.keyring,
            registry: Arc::new(Registry::new(registry).unwrap()),
            catalog: Catalog::new(functions, Default::default(), Arc::default(), Arc::default()),
            classes: Arc::new(classes()),
            oci_runtimes: vec!["runsc".into()],
            usage: Arc::default(),
            handler_evict: Arc::new(|_| {}),
            logs: LogHub::new(),
            peers: None,
            status: Arc::new(|| json!({ "version": "test" })),
            build_image: "image".into(),
            arch: "x86_64",
            data_dir: dir.path().to_owned(),
        };
        let config = Config { wrong_tokens_per_minute, ..Config::default() };
        let admin = fs::read_to_string(token_file).unwrap().trim().to_owned();
        let document = serde_json::to_value(super::document::complete(routes().split_for_parts().1)).unwrap();
        Self { document, router: router(config, deps), dir, admin, records }
    }

    async fn call(&self, token: Option<&str>, method: &str, path: &str, headers: &[(&str, &str)], body: Option<Value>) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = match body {
            Some(body) => {
                request = request.header("content-type", "application/json");
                Body::from(body.to_string())
            }
            None => Body::empty(),
        };
        let mut request = request.body(body).unwrap();
        request.extensions_mut().insert(RequestId("req-1".into()));
        request.extensions_mut().insert(ClientIp(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let text = String::from_utf8(to_bytes(response.into_body(), 10_000_000).await.unwrap().to_vec()).unwrap();
        assert!(
            documented(&self.document, method, path, status),
            "{method} {path} answered {status}, which the document does not tell"
        );
        Answer { status, headers, text }
    }

    async fn admin(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        self.call(Some(&self.admin), method, path, &[], body).await
    }

    async fn token(&self, tenant: &str, scope: &str, expires_in_s: Option<u64>) -> String {
        let body = json!({ "tenant": tenant, "scope": scope, "expires_in_s": expires_in_s });
        let answer = self.admin("POST", "/v1/tokens", Some(body)).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
        answer.json()["token"].as_str().unwrap().to_owned()
    }

    /// A token of this tenant's that has expired: the `n`th.
    async fn expired(&self, tenant: &str, n: u64) -> String {
        let text = format!("hth_expired-{n}");
        let now = SystemTime::now();
        let at = |ago: u64| Timestamp::from_system(now - Duration::from_secs(ago));
        let token = Token {
            id: format!("tok-{n:016x}"),
            tenant: Some(tenant.parse().unwrap()),
            scope: Scope::Write,
            created_at: at(10),
            expires_at: Some(at(1)),
            note: String::new(),
        };
        self.records.put_token(TokenHash::of(&text), token).await.unwrap();
        text
    }

    /// The id of a token of this tenant's, made for this.
    async fn token_id(&self, tenant: &str) -> String {
        let made = self.admin("POST", "/v1/tokens", Some(json!({ "tenant": tenant, "scope": "read" }))).await;
        made.json()["id"].as_str().unwrap().to_owned()
    }

    fn audit_lines(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.dir.path().join("audit.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

const FUNCTION: &str = "/v1/tenants/acme/containers/main/functions/hello";

fn hello() -> Value {
    json!({ "code": "module.exports = cb => cb(null, 1)" })
}

#[tokio::test]
async fn a_function_is_made_changed_rolled_back_and_deleted() {
    let api = Api::new().await;
    let made = api.admin("PUT", FUNCTION, Some(hello())).await;
    assert_eq!(
        (made.status, &made.json()["live"], &made.json()["status"]),
        (StatusCode::CREATED, &json!(1), &json!("ready")),
        "{}",
        made.text
    );
    assert_eq!(made.headers["etag"], "\"1\"");
    assert_eq!(made.json()["url"], "/run/acme/main/hello");
    let changed =
        api.admin("PUT", FUNCTION, Some(json!({ "files": { "index.mjs": "export default 1" }, "timeout_ms": 500 }))).await;
    assert_eq!((changed.status, &changed.json()["live"], &changed.json()["timeout_ms"]), (StatusCode::OK, &json!(2), &json!(500)));
    let back = api.admin("POST", &format!("{FUNCTION}/rollback"), Some(json!({ "version": 1 }))).await;
    assert_eq!((back.status, &back.json()["live"]), (StatusCode::OK, &json!(1)));
    assert_eq!(
        api.admin("POST", &format!("{FUNCTION}/rollback"), Some(json!({ "version": 9 }))).await.status,
        StatusCode::NOT_FOUND
    );
    let versions = api.admin("GET", &format!("{FUNCTION}/versions?limit=1"), None).await.json();
    assert_eq!((&versions["items"][0]["version"], versions["next"].is_string()), (&json!(2), true));
    let first = api.admin("GET", &format!("{FUNCTION}/versions/1"), None).await.json();
    assert_eq!(first["files"]["index.js"], "module.exports = cb => cb(null, 1)");
    assert_eq!(api.admin("DELETE", "/v1/tenants/acme", None).await.status, StatusCode::CONFLICT);
    assert_eq!(api.admin("DELETE", FUNCTION, None).await.status, StatusCode::NO_CONTENT);
    assert_eq!(api.admin("GET", FUNCTION, None).await.status, StatusCode::NOT_FOUND);
    assert_eq!(api.admin("DELETE", "/v1/tenants/acme?recursive=true", None).await.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn preconditions_guard_every_change() {
    let api = Api::new().await;
    let with = async |name: &str, value: &str, method: &str| {
        let body = (method == "PUT").then(hello);
        api.call(Some(&api.admin), method, FUNCTION, &[(name, value)], body).await.status
    };
    assert_eq!(with("if-match", "\"1\"", "PUT").await, StatusCode::PRECONDITION_FAILED);
    assert_eq!(with("if-none-match", "*", "PUT").await, StatusCode::CREATED);
    assert_eq!(with("if-none-match", "*", "PUT").await, StatusCode::PRECONDITION_FAILED);
    assert_eq!(with("if-match", "\"1\"", "PUT").await, StatusCode::OK);
    assert_eq!(with("if-match", "\"1\"", "DELETE").await, StatusCode::PRECONDITION_FAILED);
    assert_eq!(with("if-match", "1", "PUT").await, StatusCode::BAD_REQUEST);
    assert_eq!(with("if-match", "\"2\"", "DELETE").await, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn a_refused_call_changes_nothing_beside_its_function_either() {
    let api = Api::new().await;
    let refused = api.admin("PUT", FUNCTION, Some(json!({ "code": "1", "memory_mb": 1 }))).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    let stale = api.call(Some(&api.admin), "PUT", FUNCTION, &[("if-match", "\"7\"")], Some(hello())).await;
    assert_eq!(stale.status, StatusCode::PRECONDITION_FAILED);
    assert_eq!(api.admin("GET", "/v1/tenants/acme", None).await.status, StatusCode::NOT_FOUND, "no tenant was made on the way");
    api.admin("PUT", FUNCTION, Some(hello())).await;
    let bigger = json!({ "code": "module.exports = cb => cb()", "memory_mb": 512 });
    let stale = api.call(Some(&api.admin), "PUT", FUNCTION, &[("if-match", "\"7\"")], Some(bigger)).await;
    assert_eq!(stale.status, StatusCode::PRECONDITION_FAILED);
    assert_eq!(
        api.admin("GET", "/v1/tenants/acme/containers/main", None).await.json()["memory_mb"],
        256,
        "the container is as it was"
    );
}

#[tokio::test]
async fn bad_input_is_refused_by_field_and_leaves_nothing() {
    let api = Api::new().await;
    let cases = [
        (json!({ "code": "module.exports = (" }), "code"),
        (json!({ "code": "1", "files": { "a.js": "1" } }), "code"),
        (json!({}), "code"),
        (json!({ "files": { "../x.js": "1" } }), "files.../x.js"),
        (json!({ "code": "1", "dependencies": { "x": "git+https://h/x" } }), "dependencies.x"),
        (json!({ "code": "1", "dependencies": { "X": "1" } }), "dependencies.X"),
        (json!({ "code": "1", "env": { "A-B": "1" } }), "env.A-B"),
        (json!({ "code": "1", "secrets": { "K": null } }), "secrets.K"),
        (json!({ "code": "1", "timeout_ms": 1 }), "timeout_ms"),
        (json!({ "code": "1", "memory_mb": 1 }), "memory_mb"),
        (json!({ "code": "1", "concurrency": 0 }), "concurrency"),
    ];
    for (body, field) in cases {
        let answer = api.admin("PUT", FUNCTION, Some(body.clone())).await;
        assert_eq!((answer.status, &answer.json()["field"]), (StatusCode::BAD_REQUEST, &json!(field)), "{body}: {}", answer.text);
        assert_eq!(answer.headers["content-type"], "application/problem+json");
        assert_eq!(answer.json()["instance"], "req-1");
    }
    for (body, word) in [
        (json!({ "code": "1", "colour": 1 }), "colour"),
        (json!({ "code": "1", "model": "php" }), "php"),
        (json!({ "code": 5 }), "string"),
    ] {
        let answer = api.admin("PUT", FUNCTION, Some(body)).await;
        assert!(
            answer.status == StatusCode::BAD_REQUEST && answer.json()["detail"].as_str().unwrap().contains(word),
            "{}",
            answer.text
        );
        assert!(answer.json()["field"].is_string(), "{}", answer.text);
        assert_eq!(answer.headers["content-type"], "application/problem+json");
    }
    let big = api.admin("PUT", FUNCTION, Some(json!({ "code": "x".repeat(9_000_000) }))).await;
    assert_eq!((big.status, &big.json()["reason"]), (StatusCode::PAYLOAD_TOO_LARGE, &json!("body-too-large")));
    let away = api.admin("PUT", FUNCTION, Some(json!({ "code": "1", "dependencies": { "lodash": "^4" } }))).await;
    assert_eq!((away.status, &away.json()["fault"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("platform")), "{}", away.text);
    assert_eq!(api.admin("GET", FUNCTION, None).await.status, StatusCode::NOT_FOUND, "nothing is half-written");
    assert_eq!(api.admin("PATCH", FUNCTION, None).await.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(api.admin("GET", "/v1/nothing", None).await.json()["reason"], "not-found");
    assert_eq!(api.admin("PUT", "/v1/tenants/UPPER", Some(json!({}))).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(api.admin("GET", "/v1/tenants?limit=0", None).await.json()["field"], "limit");
    assert_eq!(api.admin("GET", "/v1/tenants?cursor=!", None).await.json()["field"], "cursor");
}

#[tokio::test]
async fn secrets_never_come_back() {
    let api = Api::new().await;
    let canary = "canary-3f9a";
    let with_secret = json!({ "code": "module.exports = cb => cb()", "secrets": { "KEY": canary }, "env": { "MODE": "live" } });
    let mut seen = vec![api.admin("PUT", FUNCTION, Some(with_secret)).await];
    let kept = json!({ "code": "module.exports = cb => cb(1)", "secrets": { "KEY": null } });
    seen.push(api.admin("PUT", FUNCTION, Some(kept)).await);
    assert_eq!(seen[1].json()["secrets"], json!(["KEY"]), "{}", seen[1].text);
    for path in ["", "?code=true", "/versions", "/versions/1", "/versions/2"] {
        seen.push(api.admin("GET", &format!("{FUNCTION}{path}"), None).await);
    }
    assert!(seen.iter().all(|a| a.status.is_success() && !a.text.contains(canary)));
    for entry in ["hearth.db", "hearth.db-wal", "audit.jsonl"] {
        let bytes = fs::read(api.dir.path().join(entry)).unwrap_or_default();
        assert!(!bytes.windows(canary.len()).any(|w| w == canary.as_bytes()), "{entry} holds the secret");
    }
}

#[tokio::test]
async fn quotas_hold_at_the_bound_and_one_past_it() {
    let api = Api::new().await;
    api.admin(
        "PUT",
        "/v1/tenants/acme",
        Some(json!({ "limits": { "functions_max": 2, "containers_max": 1, "memory_mb_max": 128 } })),
    )
    .await;
    let put = async |container: &str, name: &str, body: Value| {
        api.admin("PUT", &format!("/v1/tenants/acme/containers/{container}/functions/{name}"), Some(body)).await
    };
    assert_eq!(put("main", "a", hello()).await.status, StatusCode::CREATED);
    let container = api.admin("GET", "/v1/tenants/acme/containers/main", None).await.json();
    assert_eq!(container["memory_mb"], 128, "the default is cut to what the tenant may use");
    assert_eq!(put("other", "a", hello()).await.json()["reason"], "quota-exceeded");
    assert_eq!(put("main", "b", hello()).await.status, StatusCode::CREATED);
    assert_eq!(put("main", "c", hello()).await.json()["reason"], "quota-exceeded");
    assert_eq!(put("main", "a", json!({ "code": "1", "memory_mb": 129 })).await.json()["field"], "memory_mb");
}

#[tokio::test]
async fn a_class_sets_limits_that_its_tenants_cannot_exceed() {
    let api = Api::new().await;
    let put = |tenant: &'static str, body: Value| api.admin("PUT", tenant, Some(body));
    let made = put("/v1/tenants/acme", json!({ "class": "small" })).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    assert_eq!((&made.json()["class"], &made.json()["limits"]["concurrency"]), (&json!("small"), &json!(5)));
    let function = |name: &str| format!("/v1/tenants/acme/containers/main/functions/{name}");
    assert_eq!(api.admin("PUT", &function("a"), Some(hello())).await.status, StatusCode::CREATED);
    assert_eq!(api.admin("PUT", &function("b"), Some(hello())).await.json()["reason"], "quota-exceeded");
    for (body, field) in [
        (json!({ "class": "huge" }), "class"),
        (json!({ "class": "small", "limits": {} }), "class"),
        (json!({ "limits": { "oci_runtime": "kata" } }), "limits.oci_runtime"),
        (json!({ "limits": { "egress": { "mode": "allow", "to": [] } } }), "limits.egress"),
    ] {
        let refused = put("/v1/tenants/acme", body).await;
        assert_eq!((refused.status, &refused.json()["field"]), (StatusCode::BAD_REQUEST, &json!(field)), "{}", refused.text);
    }
    let wrong = put("/v1/tenants/acme", json!({ "limits": { "egress": { "mode": "allow", "to": ["http://x"] } } })).await;
    assert!(wrong.text.contains("api.example.com:443"), "the refusal shows what is right: {}", wrong.text);
    let own = json!({ "limits": { "oci_runtime": "runsc", "egress": { "mode": "allow", "to": ["203.0.113.0/24:443"] } } });
    let changed = put("/v1/tenants/acme", own).await;
    assert_eq!(changed.json()["limits"]["egress"], json!({ "mode": "allow", "to": ["203.0.113.0/24:443"] }));
    assert_eq!(changed.json()["class"], Value::Null);
    let usage = api.admin("GET", "/v1/tenants/acme/usage", None).await.json();
    assert_eq!((&usage["requests"], &usage["builds"]), (&json!(0), &json!(0)));
}

/// What each route needs: the least scope, or `admin` for operators only. A route without a line here fails the matrix.
fn needs(method: &str, path: &str) -> Option<&'static str> {
    Some(match (method, path) {
        ("GET", "/v1/tenants") => "read",
        ("GET", "/v1/tenants/{tenant}") => "read",
        ("PUT" | "DELETE", "/v1/tenants/{tenant}") => "admin",
        ("GET", "/v1/tenants/{tenant}/usage") => "read",
        ("GET", p) if p.starts_with("/v1/tenants/{tenant}/containers") => "read",
        ("PUT" | "DELETE" | "POST", p) if p.starts_with("/v1/tenants/{tenant}/containers") => "write",
        ("GET", "/v1/modules" | "/v1/modules/{module}") => "read",
        ("GET" | "POST", "/v1/tokens") | ("DELETE", "/v1/tokens/{id}") => "write",
        ("GET", "/v1/status") | ("POST", "/v1/nodes/{node}/drain") => "admin",
        _ => return None,
    })
}

/// A body that the route takes, so that a refusal is for who asks and nothing else.
fn right_body(method: &str, path: &str) -> Option<Value> {
    match (method, path) {
        ("PUT", p) if p.ends_with("/functions/{function}") => Some(hello()),
        ("PUT", _) => Some(json!({})),
        ("POST", p) if p.ends_with("/rollback") => Some(json!({ "version": 1 })),
        ("POST", "/v1/tokens") => Some(json!({ "tenant": "acme", "scope": "invoke" })),
        _ => None,
    }
}

#[tokio::test]
async fn every_route_asks_every_kind_of_caller_for_the_right_token() {
    let api = Api::new().await;
    let there = async || {
        for tenant in ["acme", "other"] {
            api.admin("PUT", &format!("/v1/tenants/{tenant}"), Some(json!({}))).await;
        }
        api.admin("PUT", FUNCTION, Some(hello())).await;
    };
    there().await;
    let (_, document) = routes().split_for_parts();
    let document = serde_json::to_value(document).unwrap();
    let (mut checked, mut cells) = (0, 0);
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys().filter(|m| ["get", "put", "post", "delete"].contains(&m.as_str())) {
            let method = method.to_uppercase();
            let needed = needs(&method, path).unwrap_or_else(|| panic!("{method} {path} has no authorization case"));
            let own = path
                .replace("{tenant}", "acme")
                .replace("{container}", "main")
                .replace("{function}", "hello")
                .replace("{version}", "1");
            let own = own.replace("{module}", "x@1.0.0").replace("{id}", &api.token_id("acme").await).replace("{node}", "node-1");
            let own = own
                + match (method.as_str(), path.as_str()) {
                    ("GET", p) if p.ends_with("/logs") => "?follow=false",
                    ("DELETE", "/v1/tenants/{tenant}" | "/v1/tenants/{tenant}/containers/{container}") => "?recursive=true",
                    _ => "",
                };
            let expired = api.expired("acme", checked).await;
            let mut refused = async |kind: &str, token: Option<&str>, status: StatusCode| {
                let answer = api.call(token, &method, &own, &[], right_body(&method, path)).await;
                assert_eq!(answer.status, status, "{kind}: {method} {own}: {}", answer.text);
                cells += 1;
                answer
            };
            for (kind, token) in [("none", None), ("garbage", Some("hth_garbage")), ("expired", Some(expired.as_str()))] {
                assert!(refused(kind, token, StatusCode::UNAUTHORIZED).await.headers.contains_key("www-authenticate"));
            }
            let less: &[&str] = match needed {
                "read" => &["invoke"],
                "write" => &["invoke", "read"],
                _ => &["invoke", "read", "write"],
            };
            for scope in less {
                refused(scope, Some(&api.token("acme", scope, None).await), StatusCode::FORBIDDEN).await;
            }
            // Whose it is not learns not even whether it is there.
            let of_tenant = path.contains("{tenant}")
                || path == "/v1/tokens/{id}"
                || (method.as_str(), path.as_str()) == ("POST", "/v1/tokens");
            if of_tenant {
                refused("other tenant", Some(&api.token("other", "write", None).await), StatusCode::NOT_FOUND).await;
            }
            // With the right token the same request gets through: it was the token that was refused.
            let token = if needed == "admin" { api.admin.clone() } else { api.token("acme", needed, None).await };
            let answer = api.call(Some(&token), &method, &own, &[], right_body(&method, path)).await;
            let through = match path.as_str() {
                // Neither is there in this test, which only those are told who may ask.
                "/v1/modules/{module}" | "/v1/nodes/{node}/drain" => answer.status == StatusCode::NOT_FOUND,
                _ => answer.status.is_success(),
            };
            assert!(through, "{needed}: {method} {own}: {} {}", answer.status, answer.text);
            there().await;
            checked += 1;
        }
    }
    assert!(checked >= 20 && cells >= 5 * checked, "only {checked} routes, {cells} refusals");
}

/// Tokens are looked up, never parsed: what was not made here is nobody's, whatever it claims.
#[tokio::test]
async fn forged_tokens_are_nobodys() {
    let api = Api::new().await;
    api.admin("PUT", FUNCTION, Some(hello())).await;
    let real = api.admin.clone();
    assert_eq!(real.len(), "hth_".len() + 256_usize.div_ceil(6), "256 random bits");
    let bare = real.strip_prefix("hth_").unwrap();
    let (first, last) = bare.split_at(bare.len() - 1);
    let other = |than: &str| if than == "A" { "B" } else { "A" };
    let hash = hex::encode(TokenHash::of(&real).0);
    let none = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9.";
    let keyless = "eyJhbGciOiJIUzI1NiIsImtpZCI6Ii9kZXYvbnVsbCJ9.eyJzdWIiOiJhZG1pbiJ9.PO2hygPHNU1vwTCg-4iy7vSb6JYLohN2UJ_lT9J-MCw";
    let far =
        "eyJhbGciOiJSUzI1NiIsImprdSI6Imh0dHA6Ly8xMjcuMC4wLjEvIn0.eyJzdWIiOiJhZG1pbiJ9.UEk50Szy7LBSD1y3k7PCVob4-lPiowLfzTMwWpPiP-E";
    let credentials = [
        // Nearly right.
        format!("Bearer hth_{first}{}", other(last)),
        format!("Bearer hth_{}{}", other(&bare[..1]), &bare[1..]),
        format!("Bearer hth_{first}"),
        format!("Bearer {real}A"),
        format!("Bearer {real}="),
        format!("Bearer {bare}"),
        format!("Bearer {}", real.to_uppercase()),
        format!("Bearer {}", real.to_lowercase()),
        format!("Bearer HTH_{bare}"),
        format!("Bearer {real}{real}"),
        format!("Bearer {real} {real}"),
        format!("Bearer {real},{real}"),
        format!("Bearer \"{real}\""),
        format!("Bearer %68th_{bare}"),
        // What a stolen store has: neither is a token.
        format!("Bearer {hash}"),
        format!("Bearer hth_{hash}"),
        "Bearer tok-0000000000000000".to_owned(),
        // Signed by nobody, by an empty key, by a key that the forger names.
        format!("Bearer {none}"),
        format!("Bearer {keyless}"),
        format!("Bearer {far}"),
        format!("Bearer hth_{none}"),
        // Patterns, statements and the languages' own nothings.
        "Bearer".to_owned(),
        "Bearer ".to_owned(),
        "Bearer hth_".to_owned(),
        "Bearer hth_*".to_owned(),
        "Bearer hth_%".to_owned(),
        "Bearer ' OR 1=1 --".to_owned(),
        "Bearer null".to_owned(),
        "Bearer undefined".to_owned(),
        "Bearer {\"$ne\":null}".to_owned(),
        "Bearer ../admin.token".to_owned(),
        format!("Bearer hth_{}", "A".repeat(8_000)),
        // Other schemes.
        format!("Basic {real}"),
        format!("Token {real}"),
        format!("BEARER{real}"),
        real.clone(),
    ];
    for credential in &credentials {
        for (method, path) in [("GET", "/v1/tenants"), ("GET", FUNCTION), ("DELETE", FUNCTION)] {
            let answer = api.call(None, method, path, &[("authorization", credential)], None).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{credential}: {method} {path}: {}", answer.text);
        }
    }
    assert_eq!(api.admin("GET", FUNCTION, None).await.status, StatusCode::OK, "it is still there, and its owner gets in");
}

#[tokio::test]
async fn a_tenant_manages_its_own_tokens_and_no_more() {
    let api = Api::new().await;
    api.admin("PUT", "/v1/tenants/acme", Some(json!({}))).await;
    let write = api.token("acme", "write", None).await;
    let make = async |body: Value| api.call(Some(&write), "POST", "/v1/tokens", &[], Some(body)).await;
    let made = make(json!({ "scope": "read" })).await;
    assert_eq!((made.status, &made.json()["tenant"]), (StatusCode::CREATED, &json!("acme")));
    assert_eq!(make(json!({ "scope": "admin" })).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(make(json!({ "tenant": "other", "scope": "read" })).await.status, StatusCode::NOT_FOUND);
    let listed = api.call(Some(&write), "GET", "/v1/tokens", &[], None).await;
    assert!(!listed.text.contains("hth_"), "a list never shows a token");
    assert_eq!(listed.json()["items"].as_array().unwrap().len(), 2);
    let id = made.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(api.call(Some(&write), "DELETE", &format!("/v1/tokens/{id}"), &[], None).await.status, StatusCode::NO_CONTENT);
    let read = made.json()["token"].as_str().unwrap().to_owned();
    assert_eq!(api.call(Some(&read), "GET", "/v1/tenants/acme", &[], None).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn each_change_leaves_one_audit_line_whatever_it_holds() {
    let api = Api::new().await;
    api.admin("PUT", FUNCTION, Some(hello())).await;
    api.admin("GET", FUNCTION, None).await;
    api.call(None, "DELETE", FUNCTION, &[], None).await;
    api.admin("DELETE", "/v1/tokens/x%0a%7b%22actor%22:%22forged%22%7d%1b[31m", None).await;
    let lines = api.audit_lines();
    let results: Vec<_> = lines.iter().map(|l| (l["action"].as_str().unwrap(), l["result"].as_u64().unwrap())).collect();
    assert_eq!(results, [("PUT", 201), ("DELETE", 401), ("DELETE", 404)]);
    assert!(lines[0]["actor"].as_str().unwrap().starts_with("tok-"));
    assert_eq!(
        (&lines[1]["actor"], &lines[0]["request_id"], &lines[0]["client_ip"]),
        (&Value::Null, &json!("req-1"), &json!("127.0.0.1"))
    );
}

#[tokio::test]
async fn the_document_lists_what_is_served() {
    let api = Api::new().await;
    let document = api.call(None, "GET", "/v1/openapi.json", &[], None).await.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    let paths = document["paths"].as_object().unwrap();
    for path in [
        "/v1/tenants",
        "/v1/tenants/{tenant}/containers/{container}/functions/{function}",
        "/v1/modules/{module}",
        "/v1/tokens",
        "/v1/status",
    ] {
        assert!(paths.contains_key(path), "{path}");
    }
    assert!(document["components"]["schemas"]["FunctionSpec"]["properties"]["dependencies"].is_object());
    assert_eq!(document["components"]["securitySchemes"]["bearer"]["scheme"], "bearer");
    assert!(document["components"]["schemas"]["Problem"]["properties"]["fault"].is_object());
    for (path, item) in paths {
        for (method, operation) in item.as_object().unwrap() {
            let answers: Vec<&String> = operation["responses"].as_object().unwrap().keys().collect();
            assert!(answers.iter().any(|status| status.starts_with('2')), "{method} {path} never succeeds");
            assert!(path == "/v1/openapi.json" || answers.len() > 6, "{method} {path} tells {answers:?} only");
        }
    }
}

#[tokio::test]
async fn wrong_tokens_are_bounded_per_address() {
    let api = Api::with_wrong_tokens(2).await;
    for expected in [StatusCode::UNAUTHORIZED, StatusCode::UNAUTHORIZED, StatusCode::TOO_MANY_REQUESTS] {
        assert_eq!(api.call(Some("hth_wrong"), "GET", "/v1/tenants", &[], None).await.status, expected);
    }
    assert_eq!(
        api.admin("GET", "/v1/tenants", None).await.status,
        StatusCode::TOO_MANY_REQUESTS,
        "a right guess is not told apart"
    );
}
