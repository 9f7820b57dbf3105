//! One line of JSON per call that changes something, or tried to: who, what, on what, with what result. Append-only, mode 0600; a line
//! is one line whatever it holds.

use super::{ClientIp, RequestId};
use axum::extract::Request;
use hearth_model::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;
use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::SystemTime,
};

/// Who called; filled in when the token has been looked up.
#[derive(Debug, Clone, Default)]
pub(crate) struct Actor(Arc<OnceLock<(String, Option<String>)>>);

impl Actor {
    pub fn set(&self, token_id: &str, tenant: Option<&str>) {
        let _ = self.0.set((token_id.to_owned(), tenant.map(str::to_owned)));
    }
}

/// What a request is about, noted before it is handled.
pub(crate) struct Subject {
    pub mutating: bool,
    method: String,
    target: String,
    request_id: String,
    client_ip: Option<String>,
}

impl Subject {
    pub fn of(request: &Request) -> Self {
        Self {
            mutating: !matches!(request.method().as_str(), "GET" | "HEAD" | "OPTIONS"),
            method: request.method().to_string(),
            target: request.uri().path().to_owned(),
            request_id: request.extensions().get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default(),
            client_ip: request.extensions().get::<ClientIp>().map(|ip| ip.0.to_string()),
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    at: Timestamp,
    actor: Option<&'a str>,
    tenant: Option<&'a str>,
    action: &'a str,
    target: &'a str,
    result: u16,
    request_id: &'a str,
    client_ip: Option<&'a str>,
}

/// The audit log.
pub(crate) struct Audit {
    path: PathBuf,
    size_max: u64,
    file: Mutex<Option<(File, u64)>>,
}

impl Audit {
    pub fn new(path: PathBuf, size_max: u64) -> Self {
        Self { path, size_max, file: Mutex::new(None) }
    }

    /// Writes one line. A log that cannot be written is reported as an error of the system, and the call stands.
    pub fn write(&self, subject: &Subject, actor: &Actor, result: u16) {
        let actor = actor.0.get();
        let line = Line {
            at: SystemTime::now().into(),
            actor: actor.map(|(id, _)| id.as_str()),
            tenant: actor.and_then(|(_, tenant)| tenant.as_deref()),
            action: &subject.method,
            target: &subject.target,
            result,
            request_id: &subject.request_id,
            client_ip: subject.client_ip.as_deref(),
        };
        let mut text = serde_json::to_string(&line).unwrap_or_default();
        text.push('\n');
        if let Err(error) = self.append(text.as_bytes()) {
            tracing::error!(path = %self.path.display(), %error, line = text.trim_end(), "the audit log cannot be written");
        }
    }

    fn append(&self, line: &[u8]) -> std::io::Result<()> {
        let mut slot = self.file.lock();
        if slot.as_ref().is_some_and(|(_, size)| size + line.len() as u64 > self.size_max) {
            *slot = None;
            fs::rename(&self.path, self.path.with_extension("jsonl.1"))?;
        }
        if slot.is_none() {
            let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path)?;
            let size = file.metadata()?.len();
            *slot = Some((file, size));
        }
        if let Some((file, size)) = slot.as_mut() {
            file.write_all(line)?;
            *size += line.len() as u64;
        }
        Ok(())
    }
}
