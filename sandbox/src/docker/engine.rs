//! Calls to the container engine: each with a deadline, each error sorted into what a caller can act on.

use super::config::Config;
use crate::SandboxError;
use bollard::{API_DEFAULT_VERSION, Docker, errors::Error};
use std::{future::Future, path::Path, time::Duration};

/// bollard has a time limit of its own, in whole seconds; ours are shorter, this one only has to be longer than all of them.
const CLIENT_TIMEOUT_S: u64 = 3_600;

/// The engine's API, and how long it may take.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    docker: Docker,
    call_timeout: Duration,
    create_timeout: Duration,
}

impl Engine {
    /// Agrees on an API version with the engine.
    pub(crate) async fn connect(config: &Config) -> Result<Self, SandboxError> {
        let docker = connect(&config.socket, config.call_timeout).await?;
        Ok(Self { docker, call_timeout: config.call_timeout, create_timeout: config.create_timeout })
    }

    pub(crate) fn docker(&self) -> &Docker {
        &self.docker
    }

    /// A call that normally takes milliseconds.
    pub(crate) async fn quick<T>(
        &self,
        name: &'static str,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, SandboxError> {
        within(name, self.call_timeout, call).await
    }

    /// A call that makes or removes a container.
    pub(crate) async fn slow<T>(
        &self,
        name: &'static str,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, SandboxError> {
        within(name, self.create_timeout, call).await
    }
}

/// Connects to the engine behind `socket` and agrees on an API version.
pub(crate) async fn connect(socket: &Path, deadline: Duration) -> Result<Docker, SandboxError> {
    let call = "connect";
    let path =
        socket.to_str().ok_or_else(|| SandboxError::Failed { call, detail: format!("{} is not UTF-8", socket.display()) })?;
    let docker = Docker::connect_with_unix(path, CLIENT_TIMEOUT_S, API_DEFAULT_VERSION).map_err(|e| SandboxError::Unreachable {
        call,
        detail: format!("{e}; is Docker installed and running, and is {path} its socket? (Debian: apt-get install docker.io)"),
    })?;
    within(call, deadline, docker.negotiate_version()).await
}

/// Runs `call` with a deadline.
pub(crate) async fn within<T>(
    name: &'static str,
    deadline: Duration,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, SandboxError> {
    match tokio::time::timeout(deadline, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(sort(name, deadline, error)),
        Err(_) => Err(SandboxError::Deadline { call: name, deadline }),
    }
}

fn sort(call: &'static str, deadline: Duration, error: Error) -> SandboxError {
    match error {
        Error::DockerResponseServerError { status_code: 404, message } => not_found(call, message),
        Error::DockerResponseServerError { status_code, message } => {
            SandboxError::Failed { call, detail: format!("{message} (status {status_code})") }
        }
        Error::RequestTimeoutError => SandboxError::Deadline { call, deadline },
        Error::IOError { .. }
        | Error::HyperLegacyError { .. }
        | Error::HyperResponseError { .. }
        | Error::SocketNotFoundError(_) => SandboxError::Unreachable { call, detail: chain(&error) },
        other => SandboxError::Failed { call, detail: chain(&other) },
    }
}

/// The engine says 404 for a missing image as for a missing container; its words name which.
fn not_found(call: &'static str, message: String) -> SandboxError {
    let name = |prefix: &str| message.split_once(prefix).map(|(_, rest)| rest.trim().trim_matches('"').to_owned());
    if let Some(image) = name("No such image:") {
        return SandboxError::ImageMissing { image };
    }
    match name("No such container:") {
        Some(id) => SandboxError::NotFound { id },
        None => SandboxError::Failed { call, detail: message },
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(status_code: u16, message: &str) -> SandboxError {
        sort("start", Duration::from_secs(1), Error::DockerResponseServerError { status_code, message: message.to_owned() })
    }

    #[test]
    fn errors_are_sorted() {
        assert!(matches!(server(404, "No such container: abc"), SandboxError::NotFound { id } if id == "abc"));
        assert!(
            matches!(server(404, "No such image: hearth-runtime:x"), SandboxError::ImageMissing { image } if image == "hearth-runtime:x")
        );
        assert!(matches!(server(404, "page not found"), SandboxError::Failed { .. }));
        assert!(matches!(server(500, "oci runtime error"), SandboxError::Failed { detail, .. } if detail.contains("500")));
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert!(matches!(sort("x", Duration::from_secs(1), Error::IOError { err: refused }), SandboxError::Unreachable { .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_engine_runs_into_the_deadline() {
        let silent = std::future::pending::<Result<(), Error>>();
        let answer = within("list", Duration::from_secs(7), silent).await;
        assert!(matches!(answer, Err(SandboxError::Deadline { call: "list", deadline }) if deadline == Duration::from_secs(7)));
    }

    #[tokio::test]
    async fn a_missing_socket_says_what_to_do() {
        let error = connect(Path::new("/nonexistent/docker.sock"), Duration::from_secs(1)).await.unwrap_err();
        assert!(matches!(&error, SandboxError::Unreachable { detail, .. } if detail.contains("Docker installed")), "{error}");
    }
}
