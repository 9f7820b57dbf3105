//! Hearth itself as the bench uses it: the release binary on a data directory of its own, spoken to over HTTP.

use super::reference::{Process, start};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// A running `hearth up`.
pub struct Platform {
    process: Process,
    http: reqwest::Client,
    token: String,
    /// `http://127.0.0.1:port`.
    pub url: String,
    /// Its data directory.
    pub data_dir: PathBuf,
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Platform {
    /// Starts the binary with a pool of `pool_size` and waits until the pool is full.
    pub async fn start(binary: &Path, dir: &Path, pool_size: usize) -> Result<Self> {
        let data_dir = dir.join("data");
        let (port, ops) = (free_port()?, free_port()?);
        let process = start(
            dir,
            "hearth",
            Command::new(binary)
                .args(["up", "--listen", &format!("127.0.0.1:{port}"), "--ops-listen", &format!("127.0.0.1:{ops}"), "--data-dir"])
                .arg(&data_dir)
                .args(["--pool-size", &pool_size.to_string()])
                .env("HEARTH_DESTROY_CONTAINERS", "true"),
        )?;
        let url = format!("http://127.0.0.1:{port}");
        let http = hearth_tests::http_client().timeout(Duration::from_secs(120)).build()?;
        let until = Instant::now() + Duration::from_secs(60);
        let token = loop {
            if let (Ok(token), Ok(_)) = (std::fs::read_to_string(data_dir.join("admin.token")), http.get(&url).send().await) {
                break token.trim().to_owned();
            }
            if Instant::now() > until {
                bail!("hearth did not come up; see {}/hearth.log", dir.display());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let platform = Self { process, http, token, url, data_dir };
        platform.wait_for_pool(pool_size).await?;
        Ok(platform)
    }

    /// The admin token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Puts one function and waits until it is ready. `path` is `tenant/container/function`.
    pub async fn deploy(&self, path: &str, body: &Value) -> Result<Value> {
        let [tenant, container, function] = path.split('/').collect::<Vec<_>>()[..] else { bail!("bad path {path}") };
        let url = format!("{}/v1/tenants/{tenant}/containers/{container}/functions/{function}", self.url);
        let response = self.http.put(url).bearer_auth(&self.token).header("prefer", "wait=60").json(body).send().await?;
        let status = response.status();
        let answer: Value = response.json().await?;
        if status != 200 && status != 201 {
            bail!("deploying {path}: {status} {answer}");
        }
        Ok(answer)
    }

    /// Puts something below `/v1` that must be taken.
    pub async fn put(&self, path: &str, body: &Value) -> Result<Value> {
        match self.put_any(path, body).await? {
            (200..=299, answer) => Ok(answer),
            (status, answer) => bail!("PUT {path}: {status} {answer}"),
        }
    }

    /// Puts something below `/v1`, whatever is answered.
    pub async fn put_any(&self, path: &str, body: &Value) -> Result<(u16, Value)> {
        let request = self.http.put(format!("{}/v1{path}", self.url)).bearer_auth(&self.token).json(body);
        let response = request.send().await?;
        Ok((response.status().as_u16(), response.json().await.unwrap_or_default()))
    }

    /// Calls a function; its answer's body only where it is JSON, and without keeping more than a problem has.
    pub async fn get(&self, path: &str) -> Result<(u16, Value)> {
        let mut response = self.http.get(format!("{}{path}", self.url)).send().await?;
        let status = response.status().as_u16();
        let mut body = Vec::new();
        while let Ok(Some(chunk)) = response.chunk().await {
            if body.len() < 64 * 1024 {
                body.extend_from_slice(&chunk);
            }
        }
        Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Files that the process has open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }

    /// One source file as a function.
    pub async fn deploy_code(&self, path: &str, code: &str) -> Result<()> {
        self.deploy(path, &json!({ "code": code })).await.map(|_| ())
    }

    /// What the node says of itself.
    pub async fn status(&self) -> Result<Value> {
        Ok(self
            .http
            .get(format!("{}/v1/status", self.url))
            .bearer_auth(&self.token)
            .send()
            .await?
            .error_for_status()?
            .json()
            .await?)
    }

    /// Containers that wait in the pool.
    pub async fn pool_level(&self) -> Result<usize> {
        let status = self.status().await?;
        let level = status.pointer("/handler/pool/level");
        let level = level.and_then(Value::as_u64).with_context(|| format!("no pool level in {status}"))?;
        Ok(usize::try_from(level)?)
    }

    /// Waits until the pool has `level` containers and nothing has been made for it for a while, so that a request has the machine to
    /// itself, as a bare process that it is compared with has.
    pub async fn wait_until_quiet(&self, level: usize) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(60);
        let mut quiet = 0;
        while quiet < 10 {
            let status = self.status().await?;
            let number =
                |name: &str| status.pointer(&format!("/handler/pool/{name}")).and_then(Value::as_u64).unwrap_or(0) as usize;
            quiet = if number("level") >= level && number("creating") == 0 { quiet + 1 } else { 0 };
            if Instant::now() > until {
                bail!("the pool was not quiet within 60 s: {status}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Waits until a container with popular modules loaded waits in the pool.
    pub async fn wait_for_preloaded(&self) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let status = self.status().await?;
            if status.pointer("/handler/pool/preloaded").and_then(Value::as_u64).unwrap_or(0) > 0 {
                return Ok(());
            }
            if Instant::now() > until {
                bail!("no container with popular modules within 60 s");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends it, its containers included. What it has mounted into its own directories it leaves to its next start, of which there is none here; as long as that is
    /// mounted the directories cannot be removed, and `du` counts modules twice.
    pub fn stop(self) {
        self.process.terminate();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points =
            mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|point| Path::new(point).starts_with(&self.data_dir));
        // The last mounted first, since it may lie in an earlier one.
        for point in points.collect::<Vec<_>>().into_iter().rev() {
            let _ = Command::new("umount").args(["--lazy", point]).stderr(std::process::Stdio::null()).status();
        }
    }

    /// Waits until so many containers wait in the pool.
    pub async fn wait_for_pool(&self, level: usize) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(60);
        while self.pool_level().await? < level {
            if Instant::now() > until {
                bail!("the pool did not reach {level} within 60 s");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}
