//! The two images, assembled without a container registry by `image/build.sh`, which is part of this program. An image is named by
//! a digest over that script, so it is built once and again only when what goes in changes.

use crate::{
    Purpose, SandboxError,
    docker::{connect, within},
};
use bollard::{Docker, query_parameters::ImportImageOptions};
use futures_util::{StreamExt, TryStreamExt};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};
use std::{
    collections::VecDeque,
    fs::File,
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};
use tokio_util::io::ReaderStream;

const SCRIPT: &str = include_str!("../image/build.sh");
/// Downloads 200 MB and unpacks 900: 25 s on a fast line.
const BUILD_TIMEOUT: Duration = Duration::from_secs(900);
/// Reads up to 600 MB into the engine's storage: 9 s on a slow disk.
const IMPORT_TIMEOUT: Duration = Duration::from_secs(300);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Characters of the digest in tags and file names.
const TAG_DIGITS: usize = 12;
/// The script's last words that an error repeats.
const WORDS_LINES_MAX: usize = 20;

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The engine did not do its part.
    #[error(transparent)]
    Engine(#[from] SandboxError),
    /// An image named in the configuration is missing.
    #[error(
        "image {image} is set in the configuration but the engine does not have it: load it, or unset the key to have one built"
    )]
    Configured {
        /// Its name.
        image: String,
    },
    /// The cache directory cannot be used.
    #[error("image cache {path}: {source}", path = path.display())]
    Cache {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The script failed; it names a missing tool itself.
    #[error("the image could not be assembled: {words}")]
    Build {
        /// Its last words.
        words: String,
    },
}

fn purpose_name(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Runtime => "runtime",
        Purpose::Build => "build",
    }
}

/// Debian's word for this program's architecture.
const fn arch() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// The digest of everything that goes into the image of `purpose`, in hexadecimal; `build.sh --digest` prints the same.
#[must_use]
pub fn digest(purpose: Purpose) -> String {
    let mut hash = Sha256::new();
    for part in [SCRIPT, "\0", purpose_name(purpose), "\0", arch()] {
        hash.update(part);
    }
    hex::encode(hash.finalize())
}

/// The image's name, `hearth-runtime:<digest>`.
#[must_use]
pub fn tag(purpose: Purpose) -> String {
    format!("hearth-{}:{}", purpose_name(purpose), &digest(purpose)[..TAG_DIGITS])
}

/// The archive's path below `cache_dir`.
#[must_use]
pub fn archive(cache_dir: &Path, purpose: Purpose) -> PathBuf {
    cache_dir.join(format!("hearth-{}-{}.tar", purpose_name(purpose), &digest(purpose)[..TAG_DIGITS]))
}

/// Where archives are kept unless told otherwise: `$XDG_CACHE_HOME/hearth/images`, else `/var/cache/hearth/images`.
#[must_use]
pub fn default_cache_dir() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    base.unwrap_or_else(|| PathBuf::from("/var/cache")).join("hearth/images")
}

/// A client for the engine behind `socket`, for callers that only want images.
pub async fn engine(socket: &Path) -> Result<Docker, SandboxError> {
    connect(socket, CALL_TIMEOUT).await
}

/// Whether the engine has `image`.
pub async fn present(docker: &Docker, image: &str) -> Result<bool, SandboxError> {
    match within("inspect image", CALL_TIMEOUT, docker.inspect_image(image)).await {
        Ok(_) => Ok(true),
        Err(SandboxError::ImageMissing { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes sure that the engine has the image of `purpose`, from the cache or by assembling it, and gives back its name. Several
/// processes may ask for it simultaneously: one of them works.
pub async fn ensure(
    docker: &Docker,
    cache_dir: &Path,
    purpose: Purpose,
    progress: &(dyn Fn(&str) + Send + Sync),
) -> Result<String, ImageError> {
    let tag = tag(purpose);
    if present(docker, &tag).await? {
        return Ok(tag);
    }
    let cache = |source| ImageError::Cache { path: cache_dir.to_owned(), source };
    tokio::fs::create_dir_all(cache_dir).await.map_err(cache)?;
    // Held until the end of this function, and by the kernel for no longer than this process lives.
    let _lock = lock(cache_dir).await.map_err(cache)?;
    if present(docker, &tag).await? {
        return Ok(tag);
    }
    let archive = archive(cache_dir, purpose);
    if !tokio::fs::try_exists(&archive).await.map_err(cache)? {
        progress(&format!("assembling {tag} (about half a minute)"));
        assemble(cache_dir, progress).await?;
    }
    progress(&format!("loading {tag}"));
    import(docker, &archive).await?;
    if present(docker, &tag).await? { Ok(tag) } else { Err(SandboxError::ImageMissing { image: tag }.into()) }
}

async fn lock(cache_dir: &Path) -> io::Result<File> {
    let path = cache_dir.join(".lock");
    let wait = move || {
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    };
    tokio::task::spawn_blocking(wait).await.map_err(io::Error::other)?
}

/// Runs the script, which makes both archives.
async fn assemble(cache_dir: &Path, progress: &(dyn Fn(&str) + Send + Sync)) -> Result<(), ImageError> {
    let failed = |words: String| ImageError::Build { words };
    let script = cache_dir.join(".build.sh");
    tokio::fs::write(&script, SCRIPT).await.map_err(|source| ImageError::Cache { path: script.clone(), source })?;
    let work = async {
        // From its own directory, so that no project's npm settings get mixed in; the machine's own stay in force.
        let mut child = Command::new("bash")
            .arg(&script)
            .arg(cache_dir)
            .current_dir(cache_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| failed(format!("bash: {e}")))?;
        let mut words = VecDeque::new();
        if let Some(stderr) = child.stderr.take() {
            let mut lines = BufReader::new(stderr).lines();
            while let Some(line) = lines.next_line().await.map_err(|e| failed(e.to_string()))? {
                progress(line.trim_start_matches("image: "));
                if words.len() == WORDS_LINES_MAX {
                    words.pop_front();
                }
                words.push_back(line);
            }
        }
        let status = child.wait().await.map_err(|e| failed(e.to_string()))?;
        if status.success() { Ok(()) } else { Err(failed(format!("{status}\n{}", Vec::from(words).join("\n")))) }
    };
    tokio::time::timeout(BUILD_TIMEOUT, work).await.map_err(|_| failed(format!("no end within {BUILD_TIMEOUT:?}")))?
}

/// Streams an archive into the engine.
async fn import(docker: &Docker, archive: &Path) -> Result<(), ImageError> {
    let file = tokio::fs::File::open(archive).await.map_err(|source| ImageError::Cache { path: archive.to_owned(), source })?;
    let options = ImportImageOptions { quiet: true, ..ImportImageOptions::default() };
    let progress = docker.import_image_stream(options, ReaderStream::with_capacity(file, 1024 * 1024), None);
    within("import image", IMPORT_TIMEOUT, progress.map(|r| r.map(|_| ())).try_collect::<()>()).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_agrees_on_the_digest() {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/image/build.sh");
        for purpose in [Purpose::Runtime, Purpose::Build] {
            let output = std::process::Command::new("bash").args([script, "--digest", purpose_name(purpose)]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), digest(purpose));
        }
        assert_ne!(digest(Purpose::Runtime), digest(Purpose::Build));
    }

    #[test]
    fn the_image_has_names_for_the_users_of_slots() {
        assert!(SCRIPT.contains(&format!("\nUID_FIRST={}\n", crate::docker::Config::default().uid_base)));
    }

    #[test]
    fn tags_and_archives_carry_the_digest() {
        let tag = tag(Purpose::Runtime);
        let short = tag.strip_prefix("hearth-runtime:").unwrap();
        assert_eq!(short.len(), TAG_DIGITS);
        assert!(archive(Path::new("/c"), Purpose::Runtime).ends_with(format!("hearth-runtime-{short}.tar")));
    }
}
