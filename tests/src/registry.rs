//! A local npm registry (verdaccio) and packages made on the spot, hostile ones too: what tests of builds install comes from here, and
//! nothing goes to the registry of the world.

use crate::{http_client, until};
use base64::Engine;
use flate2::{Compression, write::GzEncoder};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// A package to be published.
pub struct Package {
    name: String,
    version: String,
    manifest: Map<String, Value>,
    files: Vec<(String, Vec<u8>)>,
    raw: Vec<(tar::Header, Vec<u8>)>,
}

impl Package {
    /// `name` at `version`, with an `index.js` that exports both until it is replaced.
    #[must_use]
    pub fn new(name: &str, version: &str) -> Self {
        let package =
            Self { name: name.to_owned(), version: version.to_owned(), manifest: Map::new(), files: Vec::new(), raw: Vec::new() };
        package.file("index.js", format!("module.exports = {{ name: {name:?}, version: {version:?} }};"))
    }

    /// Adds or replaces a file.
    #[must_use]
    pub fn file(mut self, path: &str, text: impl AsRef<[u8]>) -> Self {
        self.files.retain(|(name, _)| name != path);
        self.files.push((path.to_owned(), text.as_ref().to_vec()));
        self
    }

    /// Sets a member of `package.json`.
    #[must_use]
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.manifest.insert(key.to_owned(), value);
        self
    }

    /// Depends on these.
    #[must_use]
    pub fn depends(self, on: Value) -> Self {
        self.with("dependencies", on)
    }

    /// Has an install script that runs `script.js`.
    #[must_use]
    pub fn script(self, when: &str, code: &str) -> Self {
        self.with("scripts", json!({ when: "node script.js" })).file("script.js", code)
    }

    /// Adds an entry to its archive as it stands: past all checks of the library, any kind, any name.
    ///
    /// # Panics
    /// When the name or the target has more than 100 bytes.
    #[must_use]
    pub fn entry(mut self, name: &str, kind: tar::EntryType, mode: u32, target: &str, content: &[u8]) -> Self {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.raw.push((header, content.to_vec()));
        self
    }

    fn package_json(&self) -> Value {
        let mut manifest = self.manifest.clone();
        manifest.insert("name".into(), self.name.clone().into());
        manifest.insert("version".into(), self.version.clone().into());
        Value::Object(manifest)
    }

    fn archive(&self) -> Vec<u8> {
        let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        let manifest = ("package.json".to_owned(), self.package_json().to_string().into_bytes());
        for (path, content) in std::iter::once(&manifest).chain(&self.files) {
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o644);
            header.set_size(content.len() as u64);
            archive.append_data(&mut header, format!("package/{path}"), content.as_slice()).expect("memory");
        }
        for (header, content) in &self.raw {
            archive.append(header, content.as_slice()).expect("memory");
        }
        archive.into_inner().and_then(GzEncoder::finish).expect("memory")
    }
}

/// A registry of its own on loopback; it ends with this.
pub struct Registry {
    child: Child,
    dir: tempfile::TempDir,
    http: reqwest::Client,
    /// Its address, with a slash at its end.
    pub url: String,
}

const CONFIG: &str = r"
storage: ./storage
auth: { htpasswd: { file: ./htpasswd, max_users: -1 } }
uplinks: {}
packages: { '**': { access: $all, publish: $all } }
web: { enable: false }
log: { type: stdout, format: json, level: warn }
max_body_size: 64mb
";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a parent").to_owned()
}

impl Registry {
    /// Starts one without packages.
    ///
    /// # Panics
    /// When it is not installed (`scripts/setup.sh test` does that) or does not answer.
    pub async fn start() -> Self {
        let program = repository().join("target/registry/node_modules/verdaccio/bin/verdaccio");
        assert!(program.exists(), "{} is missing: scripts/setup.sh test installs it", program.display());
        let node = crate::docker::run("bash", &[repository().join("scripts/node.sh").to_str().expect("UTF-8"), "24"]);
        let dir = tempfile::Builder::new().prefix("hearth-registry-").tempdir().expect("a directory");
        fs::write(dir.path().join("config.yaml"), CONFIG).expect("a file");
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
        let log = fs::File::create(dir.path().join("log")).expect("a file");
        let child = Command::new(node.trim())
            .arg(program)
            .args(["--config", "config.yaml", "--listen", &format!("127.0.0.1:{port}")])
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .expect("a process");
        let http = http_client().build().expect("a client");
        let registry = Self { child, dir, http, url: format!("http://127.0.0.1:{port}/") };
        until("the local registry", async || {
            let ping = registry.http.get(format!("{}-/ping", registry.url)).send().await;
            ping.is_ok_and(|answer| answer.status().is_success()).then_some(())
        })
        .await;
        registry
    }

    /// Publishes a package.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn publish(&self, package: Package) {
        let (name, version) = (&package.name, &package.version);
        let archive = package.archive();
        let file = format!("{}-{version}.tgz", name.rsplit('/').next().unwrap_or(name));
        let mut manifest = package.package_json();
        manifest["dist"] = json!({
            "integrity": format!("sha512-{}", base64(&Sha512::digest(&archive))),
            "tarball": format!("{}{name}/-/{file}", self.url),
        });
        let body = json!({
            "_id": name, "name": name, "dist-tags": { "latest": version }, "versions": { version: manifest },
            "_attachments": { file: { "content_type": "application/octet-stream", "data": base64(&archive), "length": archive.len() } },
        });
        let url = format!("{}{}", self.url, name.replace('/', "%2f"));
        let answer = self.http.put(url).json(&body).send().await.expect("an answer");
        let (status, text) = (answer.status(), answer.text().await.unwrap_or_default());
        assert!(status.is_success(), "{name}@{version}: {status} {text}\n{}", self.log());
    }

    /// Stops answering, as a machine that hangs.
    ///
    /// # Panics
    /// When it has ended.
    pub fn hang(&self, hanging: bool) {
        use rustix::process::{Pid, Signal, kill_process};
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process");
        kill_process(pid, if hanging { Signal::STOP } else { Signal::CONT }).expect("a process");
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
