//! [`ArtifactStore`]: immutable bytes, named by their SHA-256.

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream::BoxStream};
use sha2::{Digest, Sha256};

/// Whether a put stored something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It is new.
    Created,
    /// It was there already, with the same content.
    Exists,
}

/// Why a call to the artifact store failed.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// There is none with this name.
    #[error("artifact {sha256} does not exist")]
    NotFound {
        /// Its name.
        sha256: String,
    },
    /// The bytes are not those of the name.
    #[error("artifact {sha256} does not have the content of its name (found {found}): it was altered or cut short")]
    Mismatch {
        /// Its name.
        sha256: String,
        /// What the bytes hash to.
        found: String,
    },
    /// The backend did not answer, or refused.
    #[error("{call} on {resource}: {detail}")]
    Unavailable {
        /// The call that failed.
        call: &'static str,
        /// Which directory or bucket.
        resource: String,
        /// The backend's words.
        detail: String,
    },
}

/// Chunks of an artifact as they arrive.
pub type ArtifactStream = BoxStream<'static, Result<Bytes, ArtifactError>>;

/// Immutable bytes by SHA-256 (64 lower-case hexadecimal digits; anything else is `NotFound` or a panic-free refusal).
/// Creation is atomic and create-only; what is acknowledged survives a crash.
#[async_trait]
pub trait ArtifactStore: Send + Sync + 'static {
    /// A cheap call that fails when the backend is out of reach.
    async fn ping(&self) -> Result<(), ArtifactError>;
    /// Stores the file at `path`, whose SHA-256 the caller has computed; checked again while it is read.
    async fn put_file(&self, sha256: &str, path: &std::path::Path) -> Result<Put, ArtifactError>;
    /// Stores bytes that are at hand; returns their name.
    async fn put_bytes(&self, bytes: Bytes) -> Result<(String, Put), ArtifactError>;
    /// The bytes as a stream, with their total length. The stream ends with `Mismatch` when they do not fit the name, so
    /// that a reader must not use what it got before the stream's end.
    async fn get(&self, sha256: &str) -> Result<(u64, ArtifactStream), ArtifactError>;
    /// Length of an artifact; none when it does not exist.
    async fn head(&self, sha256: &str) -> Result<Option<u64>, ArtifactError>;
    /// Removes it; removing what is not there is no error.
    async fn delete(&self, sha256: &str) -> Result<(), ArtifactError>;
}

/// Passes chunks through and ends with [`ArtifactError::Mismatch`] when all of them together are not what the name says.
pub(crate) fn verified(sha256: String, chunks: ArtifactStream) -> ArtifactStream {
    let state = (Some((chunks, Sha256::new())), sha256);
    futures_util::stream::unfold(state, |(state, sha256)| async move {
        let (mut chunks, mut hash) = state?;
        match chunks.next().await {
            Some(Ok(chunk)) => {
                hash.update(&chunk);
                Some((Ok(chunk), (Some((chunks, hash)), sha256)))
            }
            Some(Err(error)) => Some((Err(error), (None, sha256))),
            None => {
                let found = hex::encode(hash.finalize());
                (found != sha256).then(|| (Err(ArtifactError::Mismatch { sha256: sha256.clone(), found }), (None, sha256)))
            }
        }
    })
    .boxed()
}
