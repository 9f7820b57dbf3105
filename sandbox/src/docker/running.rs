//! What is done with a container that runs: through the kernel where that is in reach, because it is on a request's path or too
//! slow through the engine, otherwise through the engine.

use super::{Inner, OUTPUT_BYTES_MAX, blocking, host_failed};
use crate::{Exit, Limits, SandboxError, SandboxId, Usage, cgroup, cpus::CpuSet};
use bollard::{
    errors::Error as EngineError,
    models::ContainerUpdateBody,
    query_parameters::{LogsOptionsBuilder, WaitContainerOptionsBuilder},
};
use futures_util::{StreamExt, TryStreamExt};
use std::{io, os::fd::OwnedFd};
use tokio::io::{Interest, unix::AsyncFd};

/// Lines asked of the engine for the output; a build prints fewer long ones or many short ones.
const OUTPUT_LINES_MAX: usize = 2_000;
/// How a process that aborts ends: by SIGABRT, or where it is the first of its namespace, which ignores SIGABRT, by SIGSEGV (x86) or
/// SIGTRAP (arm64).
const ABORTED: [i64; 3] = [128 + 6, 128 + 11, 128 + 5];
/// What Node.js writes when its heap is full and the container's memory is not.
const HEAP_IS_FULL: &str = "JavaScript heap out of memory";

impl Inner {
    /// Through the control group, or where that is out of reach through the engine.
    pub(super) async fn set_frozen(&self, id: &SandboxId, frozen: bool) -> Result<(), SandboxError> {
        let known = self.find(id).await?;
        let call = if frozen { "freeze" } else { "thaw" };
        if let Some(group) = known.group {
            let written = blocking(call, move || Ok(if frozen { group.freeze() } else { group.thaw() })).await?;
            match written {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(SandboxError::NotFound { id: id.0.clone() });
                }
                Err(error) => return Err(host_failed(call)(error)),
            }
        }
        let docker = self.engine.docker();
        let done = if frozen {
            self.engine.quick(call, docker.pause_container(&id.0)).await
        } else {
            self.engine.quick(call, docker.unpause_container(&id.0)).await
        };
        match done {
            Err(SandboxError::Failed { detail, .. }) if detail.contains("already paused") || detail.contains("is not paused") => {
                Ok(())
            }
            other => other,
        }
    }

    pub(super) async fn resize(&self, id: &SandboxId, limits: &Limits) -> Result<(), SandboxError> {
        let call = "resize";
        if limits.memory_mb == 0 || limits.cpu_millis == 0 {
            return Err(SandboxError::Failed { call, detail: format!("a limit of zero would mean no limit: {limits:?}") });
        }
        let known = self.find(id).await?;
        if let Some(group) = known.group {
            let (wanted, cpus) = (*limits, self.split.as_ref().and_then(|split| split.of(limits.cpus)).cloned());
            // Lowering the memory limit may make the kernel write pages back first.
            match blocking(call, move || Ok(group.resize(&wanted, cpus.as_ref()))).await? {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(SandboxError::NotFound { id: id.0.clone() });
                }
                Err(error) => return Err(host_failed(call)(error)),
            }
        }
        let usable = || self.hierarchy.as_ref().and_then(|h| h.usable_cpus().ok());
        let cpus = self.split.as_ref().and_then(|split| split.of(limits.cpus)).cloned().or_else(usable);
        let memory = i64::try_from(limits.memory_mb.saturating_mul(1024 * 1024)).unwrap_or(i64::MAX);
        let body = ContainerUpdateBody {
            memory: Some(memory),
            memory_swap: Some(memory),
            cpu_period: Some(cgroup::CPU_PERIOD_US),
            cpu_quota: Some(cgroup::cpu_quota_us(limits.cpu_millis)),
            cpu_shares: Some(i64::from(limits.cpu_shares)),
            cpuset_cpus: cpus.as_ref().map(CpuSet::to_string),
            ..ContainerUpdateBody::default()
        };
        self.engine.quick(call, self.engine.docker().update_container(&id.0, body)).await
    }

    pub(super) async fn wait(&self, id: &SandboxId) -> Result<Exit, SandboxError> {
        let known = self.find(id).await?;
        if let Some(process) = &known.process {
            ended(process).await.map_err(host_failed("wait"))?;
        }
        // The group goes when the engine has noticed the end; this reads it before.
        let killed = known.group.as_ref().is_some_and(cgroup::Group::out_of_memory);
        let code = match self.exit_code(id, known.process.is_some()).await {
            Ok(code) => code,
            Err(SandboxError::NotFound { .. }) => {
                return Ok(Exit { code: None, out_of_memory: killed });
            }
            Err(error) => return Err(error),
        };
        let by_engine = match self.inspect(&id.0).await {
            Ok(inspected) => inspected.state.and_then(|s| s.oom_killed).unwrap_or(false),
            Err(SandboxError::NotFound { .. }) => false,
            Err(error) => return Err(error),
        };
        let by_itself = ABORTED.contains(&code) && self.output(id).await.is_ok_and(|text| text.contains(HEAP_IS_FULL));
        Ok(Exit { code: Some(code), out_of_memory: killed || by_engine || by_itself })
    }

    /// The engine's word on how it ended: at once where the process is known to be gone, otherwise whenever that happens.
    async fn exit_code(&self, id: &SandboxId, ended: bool) -> Result<i64, SandboxError> {
        loop {
            let options = WaitContainerOptionsBuilder::default().condition("not-running").build();
            let mut answers = self.engine.docker().wait_container(&id.0, Some(options));
            let answer = self.engine.quick("wait", async {
                match answers.next().await {
                    Some(Ok(answer)) => Ok(answer.status_code),
                    Some(Err(EngineError::DockerContainerWaitError { code, .. })) => Ok(code),
                    Some(Err(error)) => Err(error),
                    None => Err(EngineError::RequestTimeoutError),
                }
            });
            match answer.await {
                Err(SandboxError::Deadline { .. }) if !ended => {}
                other => return other,
            }
        }
    }

    pub(super) async fn usage(&self, id: &SandboxId) -> Result<Usage, SandboxError> {
        let known = self.find(id).await?;
        // A container that has ended uses nothing.
        let Some(group) = known.group else {
            return Ok(Usage::default());
        };
        match group.usage() {
            Ok(usage) => Ok(usage),
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) =>
            {
                Ok(Usage::default())
            }
            Err(error) => Err(host_failed("usage")(error)),
        }
    }

    pub(super) async fn output(&self, id: &SandboxId) -> Result<String, SandboxError> {
        self.find(id).await?;
        let tail = OUTPUT_LINES_MAX.to_string();
        let options = LogsOptionsBuilder::default().stdout(true).stderr(true).tail(&tail).build();
        let read = async {
            let mut lines = self.engine.docker().logs(&id.0, Some(options));
            let mut kept: Vec<u8> = Vec::new();
            while let Some(line) = lines.try_next().await? {
                kept.extend_from_slice(line.as_ref());
                // Cut in large steps, so that a long log is not moved about for each of its lines.
                if kept.len() > 2 * OUTPUT_BYTES_MAX {
                    kept.drain(..kept.len() - OUTPUT_BYTES_MAX);
                }
            }
            Ok(kept)
        };
        let kept = self.engine.quick("read output", read).await?;
        Ok(tail_text(&kept))
    }
}

/// Waits until the process has ended. Works on a copy, because one descriptor can be waited for only once at a time; dropping the
/// future drops the copy.
async fn ended(process: &OwnedFd) -> io::Result<()> {
    let copy = process.try_clone()?;
    #[expect(deprecated, reason = "sound here: the descriptor is owned, so it stays open and the same until it is deregistered")]
    let watched = AsyncFd::with_interest(copy, Interest::READABLE)?;
    watched.readable().await.map(drop)
}

/// The last bytes as text, from the beginning of a line where the beginning was cut off.
fn tail_text(bytes: &[u8]) -> String {
    let tail = &bytes[bytes.len().saturating_sub(OUTPUT_BYTES_MAX)..];
    let text = String::from_utf8_lossy(tail);
    if tail.len() == bytes.len() {
        return text.into_owned();
    }
    text.split_once('\n').map_or_else(|| text.clone().into_owned(), |(_, rest)| rest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_cut_at_a_line() {
        assert_eq!(tail_text(b"one\ntwo\n"), "one\ntwo\n");
        let exact = vec![b'x'; OUTPUT_BYTES_MAX];
        assert_eq!(tail_text(&exact).len(), OUTPUT_BYTES_MAX);
        let mut long = b"first line\n".repeat(OUTPUT_BYTES_MAX / 11 + 2);
        long.extend_from_slice(b"the end\n");
        let text = tail_text(&long);
        assert!(text.len() <= OUTPUT_BYTES_MAX && text.starts_with("first line\n") && text.ends_with("the end\n"));
    }
}
