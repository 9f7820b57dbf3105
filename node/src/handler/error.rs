//! What can go wrong between a request and its container, and whose fault it is.

use hearth_model::ProblemKind;
use hearth_sandbox::SandboxError;
use std::{io, path::PathBuf, sync::Arc};

/// Why a handler did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Contradictory configuration.
    #[error("configuration of the handler: {remedy}")]
    Config {
        /// Which key, and what to do.
        remedy: String,
    },
    /// A directory cannot be used.
    #[error("cannot use {path}: {source}")]
    Directory {
        /// Which one.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The container engine does not answer, or the host refuses to share mounts.
    #[error("preparing containers")]
    Sandbox(#[from] SandboxError),
}

/// Why a request got no container. Cheap to clone: all requests that wait for one thing get the same answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AcquireError {
    /// The container serves as many requests as it may.
    #[error("the container serves {limit} requests at once, which is its limit")]
    Concurrency {
        /// Its limit.
        limit: u32,
    },
    /// Too many requests wait for the container to start.
    #[error("{waiting} requests wait for the container already")]
    QueueFull {
        /// The bound.
        waiting: u32,
    },
    /// No container could be had in time.
    #[error("no container: {detail}")]
    NoCapacity {
        /// Why.
        detail: String,
    },
    /// The function has no version that can serve.
    #[error("the function has no version that is ready")]
    NotReady,
    /// The function's code did not load.
    #[error("{message}")]
    Load {
        /// What the runtime said, for the tenant.
        message: String,
    },
    /// The container ended, or ends again and again.
    #[error("{detail}")]
    Crashed {
        /// How.
        detail: String,
        /// Whether it was killed for memory.
        out_of_memory: bool,
    },
    /// A module cannot be had.
    #[error("module {module}: {detail}")]
    Modules {
        /// Which.
        module: String,
        /// Why.
        detail: String,
    },
    /// The function's code or secrets cannot be had.
    #[error("{what}: {detail}")]
    Fetch {
        /// Code or secret.
        what: &'static str,
        /// Why.
        detail: String,
    },
    /// The container engine failed.
    #[error(transparent)]
    Sandbox(Arc<SandboxError>),
    /// The node's own disk failed.
    #[error("{call}: {detail}")]
    Host {
        /// What was attempted.
        call: &'static str,
        /// The system's words.
        detail: String,
    },
    /// This node is leaving.
    #[error("this node is leaving")]
    Draining,
}

impl AcquireError {
    /// What this is for the caller of a function.
    #[must_use]
    pub fn problem_kind(&self) -> ProblemKind {
        match self {
            Self::Concurrency { .. } => ProblemKind::ConcurrencyLimited,
            Self::QueueFull { .. } | Self::NoCapacity { .. } => ProblemKind::NoCapacity,
            Self::NotReady => ProblemKind::FunctionNotReady,
            Self::Load { .. } => ProblemKind::FunctionLoadFailed,
            Self::Crashed { out_of_memory: true, .. } => ProblemKind::FunctionOutOfMemory,
            Self::Crashed { .. } => ProblemKind::FunctionCrashed,
            Self::Modules { .. } | Self::Fetch { .. } => ProblemKind::DependencyUnavailable,
            Self::Sandbox(_) => ProblemKind::NoCapacity,
            Self::Host { .. } => ProblemKind::Internal,
            Self::Draining => ProblemKind::Draining,
        }
    }

    /// What the caller may read: nothing of the node's insides.
    #[must_use]
    pub fn public_detail(&self) -> String {
        match self {
            Self::Concurrency { .. } | Self::QueueFull { .. } | Self::NotReady | Self::Load { .. } | Self::Crashed { .. } | Self::Draining => {
                self.to_string()
            }
            Self::NoCapacity { .. } | Self::Sandbox(_) => "no container is free at the moment; try again".into(),
            Self::Modules { module, .. } => format!("module {module} cannot be had at the moment; try again"),
            Self::Fetch { what, .. } => format!("the function's {what} cannot be had at the moment; try again"),
            Self::Host { .. } => "the node could not prepare the container".into(),
        }
    }
}

impl From<SandboxError> for AcquireError {
    fn from(error: SandboxError) -> Self {
        Self::Sandbox(Arc::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_model::Fault;

    #[test]
    fn faults_are_told_apart_and_insides_stay_inside() {
        let cases = [
            (AcquireError::Concurrency { limit: 3 }, Fault::Client),
            (AcquireError::Load { message: "SyntaxError".into() }, Fault::Tenant),
            (AcquireError::Crashed { detail: "ended".into(), out_of_memory: true }, Fault::Tenant),
            (AcquireError::NoCapacity { detail: "/var/secret".into() }, Fault::Platform),
            (AcquireError::Host { call: "write", detail: "/var/secret".into() }, Fault::Platform),
            (AcquireError::Sandbox(Arc::new(SandboxError::ImageMissing { image: "/var/secret".into() })), Fault::Platform),
        ];
        for (error, fault) in cases {
            assert_eq!(error.problem_kind().fault(), fault, "{error}");
            assert!(!error.public_detail().contains("/var/secret"), "{error}");
        }
    }
}
