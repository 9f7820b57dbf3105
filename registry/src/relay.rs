//! The registry as a build sees it: an HTTP server on a unix socket that gives descriptions and files of packages and nothing else.
//! Credentials, certificates and proxies stay outside; versions that are too young do not exist in it; what it gave is counted.

use crate::{
    Registry,
    packument::{parse_time_s, plain},
    resolve::ResolveError,
};
use bytes::Bytes;
use futures_util::StreamExt;
use hearth_model::ModuleName;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Map, Value};
use std::{
    collections::BTreeSet,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{net::UnixListener, sync::Semaphore, task::JoinSet};

/// The largest file of a package.
const TARBALL_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Everything that one build may fetch.
const TOTAL_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;
/// Connections of one build.
const CONNECTIONS_MAX: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Deadline of one file.
const TARBALL_TIMEOUT: Duration = Duration::from_secs(180);

/// The fields of a version that npm installs by.
const FIELDS: [&str; 18] = [
    "name",
    "version",
    "dependencies",
    "optionalDependencies",
    "peerDependencies",
    "peerDependenciesMeta",
    "bundleDependencies",
    "bundledDependencies",
    "bin",
    "directories",
    "engines",
    "os",
    "cpu",
    "libc",
    "dist",
    "deprecated",
    "hasInstallScript",
    "_hasShrinkwrap",
];

/// What one build has asked for.
#[derive(Debug, Default)]
pub struct Usage {
    /// Requests that were answered.
    pub served: AtomicU64,
    /// Requests for what the relay does not give.
    pub refused: AtomicU64,
    /// Requests that the registry did not answer well: the build may succeed another time.
    pub failed: AtomicU64,
    /// Bytes given.
    pub bytes: AtomicU64,
    /// Packages with versions that were left out since they are too young; the first few.
    pub young: parking_lot::Mutex<BTreeSet<String>>,
}

/// Names that are remembered for a person.
const YOUNG_MAX: usize = 20;

type Body = BoxBody<Bytes, io::Error>;

/// Serves one build on `listener` until the future is dropped.
pub async fn serve(registry: Arc<Registry>, listener: UnixListener, usage: Arc<Usage>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (registry, usage) = (Arc::clone(&registry), Arc::clone(&usage));
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let (registry, usage) = (Arc::clone(&registry), Arc::clone(&usage));
                async move { Ok::<_, std::convert::Infallible>(answer(&registry, &usage, request).await) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            drop(place);
        });
    }
}

fn text(status: StatusCode, text: impl Into<String>) -> Response<Body> {
    let body = Full::new(Bytes::from(serde_json::json!({ "error": text.into() }).to_string())).map_err(|e| match e {}).boxed();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Packument(ModuleName),
    Tarball(ModuleName, String),
}

/// `/name`, `/@scope%2fname`, `/@scope/name`, and the addresses that the relay itself puts into descriptions.
fn parse(path: &str) -> Option<Wanted> {
    let path = path.strip_prefix('/')?.replace("%2f", "/").replace("%2F", "/");
    if let Some(file) = path.strip_prefix("-/file/") {
        let (name, version) = file.strip_suffix(".tgz")?.rsplit_once("/-/")?;
        return Some(Wanted::Tarball(name.parse().ok()?, version.to_owned()));
    }
    path.parse().ok().map(Wanted::Packument)
}

async fn answer(registry: &Registry, usage: &Usage, request: Request<Incoming>) -> Response<Body> {
    let wanted = if *request.method() == Method::GET { parse(request.uri().path()) } else { None };
    let host = request.headers().get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or("localhost").to_owned();
    let Some(wanted) = wanted else {
        usage.refused.fetch_add(1, Relaxed);
        return text(StatusCode::NOT_FOUND, "a build gets descriptions and files of packages, nothing else");
    };
    if usage.bytes.load(Relaxed) > TOTAL_BYTES_MAX {
        usage.refused.fetch_add(1, Relaxed);
        return text(StatusCode::FORBIDDEN, format!("a build may fetch {TOTAL_BYTES_MAX} bytes"));
    }
    let answered = match &wanted {
        Wanted::Packument(name) => packument(registry, usage, name, &host).await,
        Wanted::Tarball(name, version) => tarball(registry, usage, name, version).await,
    };
    match answered {
        Ok(response) => {
            usage.served.fetch_add(1, Relaxed);
            response
        }
        Err(error @ ResolveError::Registry { .. }) => {
            usage.failed.fetch_add(1, Relaxed);
            text(StatusCode::BAD_GATEWAY, error.to_string())
        }
        Err(error) => text(StatusCode::NOT_FOUND, error.to_string()),
    }
}

async fn packument(registry: &Registry, usage: &Usage, name: &ModuleName, host: &str) -> Result<Response<Body>, ResolveError> {
    let body = registry.fetch_packument(name.as_str()).await?;
    let unreadable = |e: serde_json::Error| ResolveError::Registry { module: name.to_string(), detail: e.to_string() };
    let full: Value = serde_json::from_slice(&body).map_err(unreadable)?;
    let config = registry.config();
    let min_age_s = if config.min_release_age_except.contains(name.as_str()) { 0 } else { config.min_release_age.as_secs() };
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let trimmed = trim(&full, name, host, min_age_s, now_s);
    let count = |description: &Value| description["versions"].as_object().map_or(0, Map::len);
    let mut young = usage.young.lock();
    if count(&trimmed) < count(&full) && young.len() < YOUNG_MAX {
        young.insert(name.to_string());
    }
    drop(young);
    let bytes = Bytes::from(serde_json::to_vec(&trimmed).map_err(unreadable)?);
    usage.bytes.fetch_add(bytes.len() as u64, Relaxed);
    let mut response = Response::new(Full::new(bytes).map_err(|e| match e {}).boxed());
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    Ok(response)
}

/// A description with the versions that are old enough, what npm installs by, and files at the relay itself.
fn trim(full: &Value, name: &ModuleName, host: &str, min_age_s: u64, now_s: u64) -> Value {
    let old_enough = |version: &str| {
        let published = full["time"][version].as_str().and_then(parse_time_s);
        published.is_none_or(|at| now_s.saturating_sub(at) >= min_age_s)
    };
    let mut versions = Map::new();
    for (version, manifest) in full["versions"].as_object().into_iter().flatten().filter(|(v, _)| old_enough(v)) {
        let mut kept = Map::new();
        for field in FIELDS {
            if let Some(value) = manifest.get(field) {
                kept.insert(field.to_owned(), value.clone());
            }
        }
        let scripts = ["preinstall", "install", "postinstall"].iter().any(|s| manifest["scripts"].get(s).is_some());
        if scripts {
            kept.insert("hasInstallScript".into(), Value::Bool(true));
            kept.insert("scripts".into(), manifest["scripts"].clone());
        }
        if let Some(dist) = kept.get_mut("dist").and_then(Value::as_object_mut) {
            dist.insert("tarball".into(), format!("http://{host}/-/file/{name}/-/{version}.tgz").into());
            dist.remove("signatures");
        }
        versions.insert(version.clone(), Value::Object(kept));
    }
    let parsed = |v: &str| nodejs_semver::Version::parse(v).ok();
    let mut tags = Map::new();
    for (tag, version) in full["dist-tags"].as_object().into_iter().flatten() {
        let Some(version) = version.as_str() else { continue };
        let newest = || {
            let limit = parsed(version)?;
            let lower =
                versions.keys().filter_map(|v| Some((parsed(v)?, v))).filter(|(v, _)| *v <= limit && v.pre_release().is_empty());
            lower.max().map(|(_, v)| v.clone())
        };
        // A tag on a version that is too young points to the newest before it.
        if let Some(version) = if versions.contains_key(version) { Some(version.to_owned()) } else { newest() } {
            tags.insert(tag.clone(), version.into());
        }
    }
    serde_json::json!({ "name": name, "dist-tags": tags, "versions": versions })
}

async fn tarball(registry: &Registry, usage: &Usage, name: &ModuleName, version: &str) -> Result<Response<Body>, ResolveError> {
    let down = |detail: String| ResolveError::Registry { module: name.to_string(), detail };
    let file = name.as_str().rsplit('/').next().unwrap_or_default();
    let usual = format!("{}{name}/-/{file}-{version}.tgz", registry.npm.url);
    let known = registry.packument(name).await?;
    let listed = known.versions.get(version).ok_or_else(|| ResolveError::UnknownModule { module: format!("{name}@{version}") })?;
    // Files are fetched from the registry itself, wherever a description says they are.
    let url = match &listed.dist.tarball {
        Some(url) if url.starts_with(&registry.npm.url) => url.clone(),
        _ => usual,
    };
    let response = registry.request(&url).timeout(TARBALL_TIMEOUT).send().await.map_err(|e| down(plain(&e)))?;
    if response.status() != 200 {
        return Err(down(format!("the file of {version} was answered with {}", response.status().as_u16())));
    }
    let length = response.content_length();
    if length.is_some_and(|l| l > TARBALL_BYTES_MAX) {
        return Err(ResolveError::UnknownModule {
            module: format!("{name}@{version} (its file is over {TARBALL_BYTES_MAX} bytes)"),
        });
    }
    usage.bytes.fetch_add(length.unwrap_or(0), Relaxed);
    let mut left = TARBALL_BYTES_MAX;
    let frames = response.bytes_stream().map(move |chunk| {
        let chunk = chunk.map_err(io::Error::other)?;
        left = left.checked_sub(chunk.len() as u64).ok_or_else(|| io::Error::other("the file is over its limit"))?;
        Ok(Frame::data(chunk))
    });
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/octet-stream"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_descriptions_and_files_have_paths() {
        let name: ModuleName = "@scope/x".parse().unwrap();
        assert_eq!(parse("/lodash"), Some(Wanted::Packument("lodash".parse().unwrap())));
        assert_eq!(parse("/@scope%2fx"), Some(Wanted::Packument(name.clone())));
        assert_eq!(parse("/-/file/@scope/x/-/1.0.0.tgz"), Some(Wanted::Tarball(name, "1.0.0".into())));
        for bad in [
            "/",
            "",
            "/-/npm/v1/security/audits",
            "/../etc/passwd",
            "/lodash/-/lodash-1.0.0.tgz",
            "/-/user/token",
            "/Lodash",
            "/a/b/c",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn young_versions_do_not_exist_and_files_are_at_the_relay() {
        let full = serde_json::json!({
            "name": "x", "dist-tags": { "latest": "2.0.0" },
            "time": { "1.0.0": "2020-01-01T00:00:00.000Z", "2.0.0": "2020-01-10T00:00:00.000Z" },
            "versions": {
                "1.0.0": { "name": "x", "version": "1.0.0", "readme": "long", "dist": { "tarball": "https://elsewhere/x.tgz", "integrity": "sha512-a" } },
                "2.0.0": { "name": "x", "version": "2.0.0", "dist": {}, "scripts": { "postinstall": "evil" } },
            },
        });
        let now_s = parse_time_s("2020-01-11T00:00:00Z").unwrap();
        let trimmed = trim(&full, &"x".parse().unwrap(), "127.0.0.1:1", 3 * 86_400, now_s);
        assert_eq!(trimmed["dist-tags"]["latest"], "1.0.0");
        assert!(trimmed["versions"].get("2.0.0").is_none());
        assert_eq!(trimmed["versions"]["1.0.0"]["dist"]["tarball"], "http://127.0.0.1:1/-/file/x/-/1.0.0.tgz");
        assert!(trimmed["versions"]["1.0.0"].get("readme").is_none());
        let all = trim(&full, &"x".parse().unwrap(), "h", 0, now_s);
        assert_eq!((&all["dist-tags"]["latest"], &all["versions"]["2.0.0"]["hasInstallScript"]), (&"2.0.0".into(), &true.into()));
    }
}
