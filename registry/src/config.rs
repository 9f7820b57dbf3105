//! Where the registry is and how it is reached: what this machine's npm uses, unless the configuration says otherwise.

use crate::RegistryError;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fs, path::PathBuf, process::Command, sync::Arc, time::Duration};

/// The npm registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Its address; where absent, what `npm config get registry` says on this machine.
    pub url: Option<String>,
    /// Certificates to trust beside the usual, PEM; where absent, npm's `cafile`.
    pub ca_file: Option<PathBuf>,
    /// Versions younger than this are not used: most malicious ones are found within days.
    #[serde(with = "humantime_serde")]
    pub min_release_age: Duration,
    /// Modules that the minimum age does not apply to.
    pub min_release_age_except: BTreeSet<String>,
    /// Modules that may run install scripts, beside those that are shipped as allowed.
    pub scripts_allow: BTreeSet<String>,
    /// Deadline of one request.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: None,
            ca_file: None,
            min_release_age: Duration::from_secs(3 * 24 * 3_600),
            min_release_age_except: BTreeSet::new(),
            scripts_allow: BTreeSet::new(),
            request_timeout: Duration::from_secs(20),
        }
    }
}

/// What npm on this machine is configured for.
#[derive(Debug, Clone)]
pub struct HostNpm {
    /// The registry's address, with a slash at its end.
    pub url: String,
    /// Certificates to trust, PEM.
    pub ca_file: Option<PathBuf>,
    /// `Authorization` for the registry; it stays on this machine.
    pub authorization: Option<String>,
    /// `https-proxy` or `proxy`.
    pub proxy: Option<String>,
    /// Hosts that are reached without it, by comma.
    pub no_proxy: Option<String>,
}

fn npm_config(key: &str) -> Result<Option<String>, RegistryError> {
    let output = Command::new("npm").args(["config", "get", key]).output().map_err(|e| RegistryError::Npm(e.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok((output.status.success() && !text.is_empty() && text != "null" && text != "undefined").then_some(text))
}

impl HostNpm {
    /// Asks npm for what the configuration leaves open.
    ///
    /// # Errors
    /// [`RegistryError::Npm`] when npm cannot be run and the address is not given.
    pub fn read(config: &Config) -> Result<Self, RegistryError> {
        if let Some(url) = &config.url {
            return Ok(Self {
                url: with_slash(url),
                ca_file: config.ca_file.clone(),
                authorization: None,
                proxy: None,
                no_proxy: None,
            });
        }
        let url = with_slash(&npm_config("registry")?.ok_or_else(|| RegistryError::Npm("no registry is set".into()))?);
        let proxy = match npm_config("https-proxy")? {
            Some(proxy) => Some(proxy),
            None => npm_config("proxy")?,
        };
        let ca_file = match &config.ca_file {
            Some(file) => Some(file.clone()),
            None => npm_config("cafile")?.map(PathBuf::from).or_else(|| std::env::var_os("NODE_EXTRA_CA_CERTS").map(PathBuf::from)),
        };
        let no_proxy = npm_config("noproxy")?;
        let npmrc = npm_config("userconfig")?.and_then(|file| fs::read_to_string(file).ok());
        let authorization = npmrc.and_then(|text| authorization(&url, &text, |name| std::env::var(name).ok()));
        Ok(Self { authorization, url, ca_file, proxy, no_proxy })
    }
}

fn with_slash(url: &str) -> String {
    format!("{}/", url.trim_end_matches('/'))
}

/// `//host/path/:_authToken=...` (or `:_auth=...`) in the user's npmrc; npm itself does not print them. `${NAME}` stands for a variable
/// of the environment, as npm has it.
fn authorization(url: &str, npmrc: &str, variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    let place = url.split_once("://")?.1;
    let find = |field: &str| {
        let key = format!("//{place}:{field}");
        let value = npmrc.lines().find_map(|line| line.trim().strip_prefix(&key)?.trim_start().strip_prefix('='))?;
        let value = value.trim().trim_matches('"');
        match value.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) {
            Some(name) => variable(name),
            None => Some(value.to_owned()),
        }
    };
    find("_authToken").map(|token| format!("Bearer {token}")).or_else(|| find("_auth").map(|basic| format!("Basic {basic}")))
}

/// The client of everything that is asked of the registry.
pub(crate) fn client(config: &Config, npm: &HostNpm) -> Result<reqwest::Client, RegistryError> {
    let bad_url = |detail: String| RegistryError::Url { url: npm.url.clone(), detail };
    let url = reqwest::Url::parse(&npm.url).map_err(|e| bad_url(e.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad_url("it must start with https:// or http://".into()));
    }
    let client = |e: reqwest::Error| RegistryError::Client(e.to_string());
    let roots = roots(npm)?;
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| RegistryError::Client(e.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .connect_timeout(Duration::from_secs(10))
        .timeout(config.request_timeout)
        .redirect(reqwest::redirect::Policy::limited(3))
        .user_agent(concat!("hearth/", env!("CARGO_PKG_VERSION")));
    if let Some(proxy) = &npm.proxy {
        let except = npm.no_proxy.as_deref().and_then(reqwest::NoProxy::from_string);
        builder = builder.proxy(reqwest::Proxy::all(proxy).map_err(client)?.no_proxy(except));
    }
    builder.build().map_err(client)
}

/// Where systems keep the certificates that they trust.
const SYSTEM_CA_FILES: [&str; 3] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

fn roots(npm: &HostNpm) -> Result<rustls::RootCertStore, RegistryError> {
    let mut roots = rustls::RootCertStore::empty();
    let system = SYSTEM_CA_FILES.iter().map(PathBuf::from).find(|f| f.exists());
    for (file, required) in system.map(|f| (f, false)).into_iter().chain(npm.ca_file.clone().map(|f| (f, true))) {
        let fail = |detail: String| RegistryError::Ca { path: file.display().to_string(), detail };
        let pem = match fs::read(&file) {
            Ok(pem) => pem,
            Err(e) if required => return Err(fail(e.to_string())),
            Err(_) => continue,
        };
        use rustls::pki_types::pem::PemObject;
        let certificates = rustls::pki_types::CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok);
        let (added, _) = roots.add_parsable_certificates(certificates);
        if added == 0 && required {
            return Err(fail("it holds no certificate that can be used".into()));
        }
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_found_for_their_registry_alone() {
        let npmrc = "registry=https://r.example/npm/\n//r.example/npm/:_authToken=abc\n//other.example/:_auth = \"dXNlcg==\"\n//env.example/:_authToken=${TOKEN}\n";
        let find = |url: &str| authorization(url, npmrc, |name| (name == "TOKEN").then(|| "from-env".to_owned()));
        assert_eq!(find("https://r.example/npm/").as_deref(), Some("Bearer abc"));
        assert_eq!(find("https://other.example/").as_deref(), Some("Basic dXNlcg=="));
        assert_eq!(find("https://env.example/").as_deref(), Some("Bearer from-env"));
        assert_eq!(find("https://r.example/"), None);
        assert_eq!(find("no address"), None);
    }
}
