//! Where the registry is and how it is reached: what this machine's npm uses, unless the configuration says otherwise.

use crate::RegistryError;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// The npm registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Its address; where absent, what npm on this machine is configured for, scopes included.
    pub url: Option<String>,
    /// Certificates to trust beside the system's and npm's `cafile`, PEM.
    pub ca_file: Option<PathBuf>,
    /// A file with the registry's token; where absent, npm's own `_authToken` or `_auth` for the address.
    pub token_file: Option<PathBuf>,
    /// Versions younger than this are not used: most malicious ones are found within days.
    #[serde(with = "humantime_serde")]
    pub min_release_age: Duration,
    /// Modules that the minimum age does not apply to.
    pub min_release_age_except: BTreeSet<String>,
    /// Modules that may run install scripts, beside those that are shipped as allowed.
    pub scripts_allow: BTreeSet<String>,
    /// Deadline of one request for a description.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// Requests at a time.
    pub requests_max: usize,
    /// Memory for descriptions of packages.
    pub cache_size: ByteSize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: None,
            ca_file: None,
            token_file: None,
            min_release_age: Duration::from_secs(3 * 24 * 3_600),
            min_release_age_except: BTreeSet::new(),
            scripts_allow: BTreeSet::new(),
            request_timeout: Duration::from_secs(20),
            requests_max: 16,
            cache_size: ByteSize::mib(128),
        }
    }
}

/// What npm on this machine is configured for.
#[derive(Clone, Default)]
pub struct HostNpm {
    /// The registry's address, with a slash at its end.
    pub url: String,
    /// Other registries by scope (`@scope`).
    pub scopes: BTreeMap<String, String>,
    /// Files with certificates to trust, PEM. Those that were asked for by name must be readable.
    pub ca_files: Vec<(PathBuf, Required)>,
    /// npm's `ca`, PEM.
    pub ca: Vec<String>,
    /// `https-proxy` or `proxy`.
    pub proxy: Option<String>,
    /// `noproxy`.
    pub no_proxy: Option<String>,
    /// Addresses' beginnings with the `Authorization` that goes there and nowhere else; it stays on this machine.
    pub(crate) authorizations: Vec<(String, String)>,
}

/// Whether a file of certificates must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Required {
    /// It was named in a configuration.
    Yes,
    /// It is where systems usually have it.
    No,
}

/// How long npm may take to say what it is configured for.
const NPM_TIMEOUT: Duration = Duration::from_secs(30);
/// Where systems keep the certificates that they trust.
const SYSTEM_CA_FILES: [&str; 3] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

impl HostNpm {
    /// Asks npm for what the configuration leaves open. Starts a process and waits for it.
    ///
    /// # Errors
    /// [`RegistryError::Npm`] when npm cannot be run and the address is not given.
    pub fn read(config: &Config) -> Result<Self, RegistryError> {
        let settings = match &config.url {
            Some(url) => serde_json::json!({ "registry": url }),
            None => npm_settings()?,
        };
        let environment: Vec<(String, String)> = std::env::vars().collect();
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let file = |key: &str, usual: Option<PathBuf>| settings[key].as_str().map(PathBuf::from).or(usual);
        let files = [file("globalconfig", None), file("userconfig", home.map(|h| h.join(".npmrc")))];
        let npmrc: String = files.iter().flatten().filter_map(|f| fs::read_to_string(f).ok()).collect::<Vec<_>>().join("\n");
        let mut npm = Self::of(&settings, &npmrc, &environment);
        if let Some(file) = &config.ca_file {
            npm.ca_files.push((file.clone(), Required::Yes));
        }
        if let Some(file) = &config.token_file {
            let fail = |detail: String| RegistryError::Token { path: file.display().to_string(), detail };
            let token = fs::read_to_string(file).map_err(|e| fail(e.to_string()))?;
            if token.trim().is_empty() {
                return Err(fail("it is empty".into()));
            }
            npm.authorizations = vec![(npm.url.clone(), format!("Bearer {}", token.trim()))];
        }
        Ok(npm)
    }

    fn of(settings: &Value, npmrc: &str, environment: &[(String, String)]) -> Self {
        let text = |key: &str| settings[key].as_str().filter(|t| !t.is_empty() && *t != "null").map(str::to_owned);
        let entries = settings.as_object().into_iter().flatten();
        let scopes: BTreeMap<String, String> = entries
            .filter_map(|(key, value)| Some((key.strip_suffix(":registry").filter(|s| s.starts_with('@'))?.to_owned(), with_slash(value.as_str()?))))
            .collect();
        let ca = match &settings["ca"] {
            Value::String(pem) => vec![pem.clone()],
            Value::Array(all) => all.iter().filter_map(|pem| pem.as_str().map(str::to_owned)).collect(),
            _ => Vec::new(),
        };
        let variable = |name: &str| environment.iter().find(|(n, _)| n == name).map(|(_, v)| PathBuf::from(v));
        let system = SYSTEM_CA_FILES.iter().map(PathBuf::from).find(|f| f.exists());
        let optional = [system, variable("NODE_EXTRA_CA_CERTS"), variable("SSL_CERT_FILE")];
        let mut ca_files: Vec<_> = optional.into_iter().flatten().map(|f| (f, Required::No)).collect();
        ca_files.extend(text("cafile").map(|f| (PathBuf::from(f), Required::Yes)));
        if settings["strict-ssl"] == Value::Bool(false) {
            tracing::warn!("npm's strict-ssl is off on this machine; certificates of the registry are checked all the same");
        }
        let url = with_slash(&text("registry").unwrap_or_default());
        let bases: Vec<&String> = [&url].into_iter().chain(scopes.values()).collect();
        let authorizations = authorizations(npmrc, environment, &bases);
        Self { ca_files, ca, proxy: text("https-proxy").or_else(|| text("proxy")), no_proxy: text("noproxy"), authorizations, scopes, url }
    }

    /// The registry of a package.
    pub(crate) fn base(&self, name: &str) -> &str {
        let scope = name.split_once('/').map(|(scope, _)| scope);
        scope.and_then(|s| self.scopes.get(s)).unwrap_or(&self.url)
    }

    /// What goes with a request to `url`, and to nowhere else.
    pub(crate) fn authorization(&self, url: &str) -> Option<&str> {
        let fitting = self.authorizations.iter().filter(|(start, _)| url.starts_with(start.as_str()));
        fitting.max_by_key(|(start, _)| start.len()).map(|(_, value)| value.as_str())
    }
}

fn npm_settings() -> Result<Value, RegistryError> {
    let fail = |detail: String| RegistryError::Npm(detail);
    // From the root, so that the settings of a project that this process happens to start in do not get mixed in.
    let mut command = Command::new("npm");
    command.args(["config", "list", "--json"]).current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|e| fail(e.to_string()))?;
    let mut output = child.stdout.take().ok_or_else(|| fail("it has no output".into()))?;
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        output.by_ref().take(1024 * 1024).read_to_end(&mut text).map(|_| text)
    });
    let began = Instant::now();
    let status = loop {
        match child.try_wait().map_err(|e| fail(e.to_string()))? {
            Some(status) => break status,
            None if began.elapsed() > NPM_TIMEOUT => {
                let _ = child.kill();
                return Err(fail(format!("no answer within {NPM_TIMEOUT:?}")));
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let text = reader.join().map_err(|_| fail("its output could not be read".into()))?.map_err(|e| fail(e.to_string()))?;
    if !status.success() {
        return Err(fail(status.to_string()));
    }
    let settings: Value = serde_json::from_slice(&text).map_err(|e| fail(format!("its output makes no sense: {e}")))?;
    match settings["registry"].as_str() {
        Some(url) if !url.is_empty() => Ok(settings),
        _ => Err(fail("no registry is set".into())),
    }
}

fn with_slash(url: &str) -> String {
    format!("{}/", url.trim().trim_end_matches('/'))
}

/// `${NAME}` in an npmrc.
fn expand(text: &str, environment: &[(String, String)]) -> String {
    let mut expanded = text.to_owned();
    for (name, value) in environment {
        expanded = expanded.replace(&format!("${{{name}}}"), value);
    }
    expanded
}

/// `//host/path/:_authToken=...` and the older forms; npm itself does not print them.
fn authorizations(npmrc: &str, environment: &[(String, String)], bases: &[&String]) -> Vec<(String, String)> {
    let lines = npmrc.lines().filter_map(|line| line.trim().split_once('=')).map(|(k, v)| (k.trim().to_owned(), v.trim().trim_matches('"').to_owned()));
    let variables = environment.iter().filter_map(|(k, v)| Some((k.strip_prefix("npm_config_")?.to_owned(), v.clone())));
    let mut places: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for (key, value) in lines.chain(variables).filter(|(key, _)| key.starts_with("//")) {
        if let Some((place, what)) = key.rsplit_once(':') {
            places.entry(with_slash(place)).or_default().insert(what.to_owned(), expand(&value, environment));
        }
    }
    let header = |fields: &BTreeMap<String, String>| {
        let field = |name: &str| fields.get(name).filter(|v| !v.is_empty());
        if let Some(token) = field("_authToken") {
            return Some(format!("Bearer {token}"));
        }
        if let Some(both) = field("_auth") {
            return Some(format!("Basic {both}"));
        }
        let password = STANDARD.decode(field("_password")?).ok()?;
        let both = [field("username")?.as_bytes(), b":", &password].concat();
        Some(format!("Basic {}", STANDARD.encode(both)))
    };
    let mut found = Vec::new();
    for (place, fields) in &places {
        let Some(value) = header(fields) else { continue };
        // By the scheme that the registry is reached with: a token must not go out in the clear because an address says http.
        let mut schemes: Vec<&str> = bases.iter().filter_map(|base| base.split_once("//")).filter(|(_, rest)| format!("//{rest}").starts_with(place.as_str())).map(|(s, _)| s).collect();
        schemes.dedup();
        found.extend(schemes.into_iter().map(|scheme| (format!("{scheme}{place}"), value.clone())));
    }
    found
}


#[cfg(test)]
mod tests {
    use super::*;

    fn npm(npmrc: &str) -> HostNpm {
        let settings = serde_json::json!({
            "registry": "https://r.test/npm", "@mine:registry": "https://own.test", "cafile": "/ca.pem", "ca": ["one", "two"],
            "proxy": null, "https-proxy": "http://proxy.test:3128", "noproxy": "",
        });
        HostNpm::of(&settings, npmrc, &[("TOKEN".into(), "t0k".into()), ("npm_config_//env.test/:_authToken".into(), "e".into())])
    }

    #[test]
    fn npms_settings_are_taken() {
        let npm = npm("");
        assert_eq!((npm.url.as_str(), npm.base("lodash"), npm.base("@mine/x"), npm.base("@other/x")), ("https://r.test/npm/", "https://r.test/npm/", "https://own.test/", "https://r.test/npm/"));
        assert_eq!((npm.ca.len(), npm.proxy.as_deref(), npm.no_proxy), (2, Some("http://proxy.test:3128"), None));
        assert!(npm.ca_files.contains(&(PathBuf::from("/ca.pem"), Required::Yes)));
    }

    #[test]
    fn credentials_go_where_they_belong_and_nowhere_else() {
        let npm = npm("//r.test/npm/:_authToken=${TOKEN}\n//own.test/:username=u\n//own.test/:_password=cA==\n//elsewhere.test/:_authToken=x\n_authToken=y");
        assert_eq!(npm.authorization("https://r.test/npm/lodash"), Some("Bearer t0k"));
        assert_eq!(npm.authorization("https://own.test/x"), Some("Basic dTpw"));
        for bad in ["http://r.test/npm/lodash", "https://r.test/other", "https://r.test.evil/npm/x", "https://elsewhere.test/x", "https://env.test/x"] {
            assert_eq!(npm.authorization(bad), None, "{bad}");
        }
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(serde_json::from_str::<Config>(r#"{"min_age": "3d"}"#).is_err());
        let config: Config = serde_json::from_str(r#"{"min_release_age": "12h", "cache_size": "1MiB"}"#).unwrap();
        assert_eq!(config.min_release_age, Duration::from_secs(12 * 3_600));
    }

    #[test]
    fn an_empty_token_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        fs::write(&file, " \n").unwrap();
        let config = Config { url: Some("http://127.0.0.1:1".into()), token_file: Some(file.clone()), ..Config::default() };
        assert!(matches!(HostNpm::read(&config), Err(RegistryError::Token { .. })));
        fs::write(&file, "abc\n").unwrap();
        assert_eq!(HostNpm::read(&config).unwrap().authorization("http://127.0.0.1:1/x"), Some("Bearer abc"));
    }
}
