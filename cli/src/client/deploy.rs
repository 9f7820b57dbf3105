//! `hearth deploy`: reads a file or a folder, puts it as a new version, and shows the builds until the version serves.

use super::{
    function_url,
    http::{Client, Connection},
    show,
};
use anyhow::{Context, Result, bail};
use clap::Args;
use hearth_model::{FunctionPath, limits};
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

#[derive(Args)]
pub struct Deploy {
    /// `tenant/container/function`.
    path: FunctionPath,
    /// A file, or a folder (with package.json, if it has dependencies).
    source: PathBuf,
    /// npm module: `lodash@^4`; may be given several times.
    #[arg(long = "dependency", value_name = "NAME@RANGE")]
    dependencies: Vec<String>,
    /// `KEY=value`, `KEY=@file`, `KEY=-` (standard input), or `KEY` alone to keep the value that is there.
    #[arg(long = "secret", value_name = "KEY=VALUE")]
    secrets: Vec<String>,
    /// `KEY=value`.
    #[arg(long = "env", value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// `webtask`, `fetch`, `node` or `lambda`; found from the exports where absent.
    #[arg(long)]
    model: Option<String>,
    /// Deadline of one call.
    #[arg(long)]
    timeout_ms: Option<u64>,
    /// Memory of the function's container, in MiB.
    #[arg(long)]
    memory_mb: Option<u64>,
    /// Requests that the function's container serves at once.
    #[arg(long)]
    concurrency: Option<u32>,
    /// Do not wait for the modules.
    #[arg(long)]
    no_wait: bool,
    /// How long to wait for the modules.
    #[arg(long, default_value = "600")]
    wait_s: u64,
    #[command(flatten)]
    connection: Connection,
}

impl Deploy {
    pub async fn run(self) -> Result<()> {
        let client = Client::new(&self.connection)?;
        let body = self.body()?;
        let began = Instant::now();
        let request = client.request(reqwest::Method::PUT, &function_url(&self.path)).timeout(Duration::from_secs(120));
        // A short wait inside the call: what is built already needs no second look.
        let request = if self.no_wait { request } else { request.header("prefer", "wait=1") };
        let (_, mut function) = client.value(client.perform(request.json(&body)).await?).await?;
        let version = function["version"].as_u64().or(function["latest"].as_u64()).unwrap_or(0);
        if function["status"] == "building" && !self.no_wait {
            function = self.watch(&client, version, began).await?;
        }
        let status = function["status"].as_str().unwrap_or("-");
        let line = match status {
            "ready" => {
                format!("{} serves version {version} at {}/run/{}", self.path, self.connection.url.trim_end_matches('/'), self.path)
            }
            _ => format!("{} version {version} is {status}; `hearth versions {}` tells when it serves", self.path, self.path),
        };
        show::done(&function, self.connection.json, &line)
    }

    /// Waits for the version, telling of each module when its state changes.
    async fn watch(&self, client: &Client, version: u64, began: Instant) -> Result<Value> {
        let url = format!("{}/versions/{version}", function_url(&self.path));
        let mut told: BTreeMap<String, String> = BTreeMap::new();
        loop {
            let current = client.get(&url).await?;
            let modules: BTreeSet<String> =
                current["modules"].as_array().into_iter().flatten().filter_map(|m| m.as_str().map(str::to_owned)).collect();
            for module in &modules {
                let builds = client.get(&format!("/v1/modules/{}", module.replace('/', "%2f"))).await.unwrap_or(Value::Null);
                let Some(build) = builds.as_array().and_then(|b| b.last()) else { continue };
                let state = build["state"].as_str().unwrap_or("-").to_owned();
                if told.get(module) != Some(&state) {
                    let more = match state.as_str() {
                        "ready" => format!(" in {} ms", build["build_ms"]),
                        "failed" => format!(": {}", show::printable_line(build["reason"].as_str().unwrap_or("-"))),
                        _ => String::new(),
                    };
                    eprintln!("{:>6.1} s  {module} {state}{more}", began.elapsed().as_secs_f32());
                    told.insert(module.clone(), state);
                }
            }
            match current["status"].as_str() {
                Some("building") => {}
                Some("failed") => bail!("version {version} cannot serve: {}", current["reason"].as_str().unwrap_or("-")),
                _ => return client.get(&function_url(&self.path)).await,
            }
            if began.elapsed() > Duration::from_secs(self.wait_s) {
                bail!(
                    "version {version} is still building after {} s; it will serve when it is done, `hearth versions {}` tells",
                    self.wait_s,
                    self.path
                );
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    fn body(&self) -> Result<Value> {
        let mut body = Map::new();
        let metadata = fs::metadata(&self.source).with_context(|| format!("{} cannot be read", self.source.display()))?;
        if metadata.is_dir() {
            body.insert("files".into(), json!(read_folder(&self.source)?));
        } else if metadata.len() as usize > limits::BUNDLE_BYTES_MAX {
            bail!("{} has {} bytes, {} are allowed", self.source.display(), metadata.len(), limits::BUNDLE_BYTES_MAX);
        } else {
            let text = read_text(&self.source)?;
            match self.source.extension().and_then(|e| e.to_str()) {
                Some(kind @ ("mjs" | "cjs")) => body.insert("files".into(), json!({ (format!("index.{kind}")): text })),
                _ => body.insert("code".into(), text.into()),
            };
        }
        let mut dependencies = Map::new();
        for text in &self.dependencies {
            let at = text.get(1..).and_then(|rest| rest.find('@')).map(|at| at + 1);
            let (name, range) = at.map_or((text.as_str(), "latest"), |at| (&text[..at], &text[at + 1..]));
            dependencies.insert(name.into(), range.into());
        }
        body.insert("dependencies".into(), dependencies.into());
        body.insert("env".into(), self.env.iter().map(|e| pair("--env", e)).collect::<Result<Map<_, _>>>()?.into());
        body.insert("secrets".into(), self.secrets.iter().map(|s| secret(s)).collect::<Result<Map<_, _>>>()?.into());
        let numbers =
            [("timeout_ms", self.timeout_ms), ("memory_mb", self.memory_mb), ("concurrency", self.concurrency.map(u64::from))];
        for (key, value) in numbers.into_iter().filter_map(|(k, v)| Some((k, v?))) {
            body.insert(key.into(), value.into());
        }
        if let Some(model) = &self.model {
            body.insert("model".into(), model.clone().into());
        }
        Ok(Value::Object(body))
    }
}

fn pair(flag: &str, text: &str) -> Result<(String, Value)> {
    let (name, value) = text.split_once('=').with_context(|| format!("{flag} takes KEY=value, not {text:?}"))?;
    Ok((name.to_owned(), value.into()))
}

fn secret(text: &str) -> Result<(String, Value)> {
    let Some((name, value)) = text.split_once('=') else { return Ok((text.to_owned(), Value::Null)) };
    let value = match value {
        "-" => {
            let mut input = String::new();
            std::io::stdin().read_to_string(&mut input)?;
            input.trim_end_matches('\n').to_owned()
        }
        file if file.starts_with('@') => read_text(Path::new(&file[1..]))?.trim_end_matches('\n').to_owned(),
        value => value.to_owned(),
    };
    Ok((name.to_owned(), value.into()))
}

fn read_text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8 text", path.display()))
}

/// All text files of a folder, without what never belongs to a function.
fn read_folder(root: &Path) -> Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    let mut bytes = 0;
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            let path = entry?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
            if name.starts_with('.') || name == "node_modules" {
                continue;
            }
            if fs::symlink_metadata(&path)?.is_dir() {
                open.push(path);
                continue;
            }
            let relative = path.strip_prefix(root)?.to_string_lossy().into_owned();
            let text = read_text(&path)?;
            bytes += text.len();
            files.insert(relative, text);
            if files.len() > limits::BUNDLE_FILES_MAX || bytes > limits::BUNDLE_BYTES_MAX {
                bail!(
                    "{} holds more than {} files or {} bytes; what comes from npm belongs into package.json's dependencies",
                    root.display(),
                    limits::BUNDLE_FILES_MAX,
                    limits::BUNDLE_BYTES_MAX
                );
            }
        }
    }
    Ok(files)
}
