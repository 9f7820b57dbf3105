//! Talking to a server: where it is, who we are, and what its refusals mean for a person and for an exit code.

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;
use std::{fmt, fs, path::PathBuf, sync::Arc, time::Duration};

/// Where and as whom.
#[derive(Args, Clone, Debug)]
pub struct Connection {
    /// The server.
    #[arg(long, env = "HEARTH_URL", default_value = "http://127.0.0.1:8080")]
    pub url: String,
    /// The token; where absent, that of a local `hearth up` (`.hearth/admin.token`).
    #[arg(long, env = "HEARTH_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// JSON for programs instead of text for people.
    #[arg(long)]
    pub json: bool,
}

/// A refusal that has an exit code of its own.
#[derive(Debug)]
pub struct Refused {
    code: u8,
    text: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Refused {}

/// The exit code of an error.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    error.downcast_ref::<Refused>().map_or(1, |refused| refused.code)
}

fn unreachable(url: &str, error: &reqwest::Error) -> anyhow::Error {
    let text = format!(
        "{url} cannot be reached: {error}\nIs `hearth up` running there? Where another server is meant, say --url or HEARTH_URL"
    );
    Refused { code: 5, text }.into()
}

/// The server's address without what a path would double.
///
/// # Errors
/// What is wrong with it, and how one looks.
fn server(text: &str) -> Result<String> {
    let wrong = match reqwest::Url::parse(text) {
        Err(error) if !text.contains("://") => format!("it does not begin with http:// or https:// ({error})"),
        Err(error) => error.to_string(),
        Ok(url) if !matches!(url.scheme(), "http" | "https") => format!("{}:// is neither http:// nor https://", url.scheme()),
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            "it holds a name or a password; a token goes into --token or HEARTH_TOKEN".to_owned()
        }
        Ok(url) if url.query().is_some() || url.fragment().is_some() => "it has a query or a fragment".to_owned(),
        Ok(_) => return Ok(text.trim_end_matches('/').to_owned()),
    };
    // Not the text itself where it may hold a password.
    let shown = if text.contains('@') { "the server's URL" } else { text };
    Err(anyhow::anyhow!("{shown} is no server's URL: {wrong}\nSay --url or HEARTH_URL as in http://127.0.0.1:8080"))
}

/// A server.
pub struct Client {
    http: reqwest::Client,
    url: String,
    token: Option<String>,
}

fn local_token() -> Option<String> {
    let text = fs::read_to_string(PathBuf::from(".hearth/admin.token")).ok()?;
    Some(text.trim().to_owned())
}

impl Client {
    pub fn new(connection: &Connection) -> Result<Self> {
        let url = server(&connection.url)?;
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots())
            .with_no_client_auth();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(Duration::from_secs(5))
            .user_agent(concat!("hearth-cli/", env!("CARGO_PKG_VERSION")))
            .build()?;
        let token = connection.token.clone().filter(|t| !t.is_empty()).or_else(local_token);
        Ok(Self { http, url, token })
    }

    /// A request without the token.
    pub fn raw(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    /// A request with the token.
    pub fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.raw(method, path);
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub async fn perform(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response> {
        request.send().await.map_err(|e| unreachable(&self.url, &e))
    }

    /// Sends JSON, expects JSON or nothing; a problem becomes an error with its words.
    pub async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let mut request = self.request(method.parse()?, path).timeout(Duration::from_secs(120));
        if let Some(body) = body {
            request = request.json(body);
        }
        self.value(self.perform(request).await?).await.map(|(_, value)| value)
    }

    /// The status and the JSON of an answer that is no problem.
    pub async fn value(&self, response: reqwest::Response) -> Result<(u16, Value)> {
        let status = response.status().as_u16();
        let text = response.text().await.context("the answer broke off")?;
        let value: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        if status < 400 {
            return Ok((status, value));
        }
        let detail = value["detail"].as_str().map_or_else(|| text.chars().take(500).collect(), str::to_owned);
        let field = value["field"].as_str().map(|f| format!("{f}: ")).unwrap_or_default();
        let (code, hint) = match status {
            404 => (3, ""),
            401 => (4, "\nSay --token or HEARTH_TOKEN; a local `hearth up` keeps its admin token in {data_dir}/admin.token"),
            403 => (4, ""),
            _ => (1, ""),
        };
        let id = value["instance"].as_str().map(|id| format!(" (request {id})")).unwrap_or_default();
        Err(Refused { code, text: format!("{field}{detail}{hint}{id}") }.into())
    }

    pub async fn get(&self, path: &str) -> Result<Value> {
        self.send("GET", path, None).await
    }

    /// All pages of a list.
    pub async fn all(&self, path: &str) -> Result<Vec<Value>> {
        let (mut items, mut cursor) = (Vec::new(), None::<String>);
        loop {
            let cursor_part = cursor.map(|c| format!("&cursor={c}")).unwrap_or_default();
            let page = self.get(&format!("{path}?limit=1000{cursor_part}")).await?;
            items.extend(page["items"].as_array().cloned().unwrap_or_default());
            cursor = page["next"].as_str().map(str::to_owned);
            if cursor.is_none() {
                return Ok(items);
            }
        }
    }
}

fn roots() -> rustls::RootCertStore {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let mut roots = rustls::RootCertStore::empty();
    let usual = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
    let files = usual.iter().map(PathBuf::from).chain(std::env::var_os("SSL_CERT_FILE").map(PathBuf::from));
    for file in files {
        if let Ok(pem) = fs::read(file) {
            roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok));
        }
    }
    roots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_none_is_refused_with_what_is_wrong() {
        assert_eq!(server("http://127.0.0.1:8080/").unwrap(), "http://127.0.0.1:8080");
        assert_eq!(server("https://hearth.example.com/below").unwrap(), "https://hearth.example.com/below");
        for (text, word) in [
            ("nonsense", "http://"),
            ("", "http://"),
            ("localhost:8080", "localhost://"),
            ("ftp://a", "ftp://"),
            ("http://", "host"),
            ("http://a:99999", "port"),
            ("http://a?b", "query"),
            ("http://me:secret@a", "--token"),
        ] {
            let said = server(text).unwrap_err().to_string();
            assert!(said.contains(word) && said.contains("HEARTH_URL") && !said.contains("secret"), "{text:?}: {said}");
        }
    }
}
