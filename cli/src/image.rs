//! `hearth image`: assembles and imports the images of this version, with progress.

use anyhow::{Context, Result};
use hearth_sandbox::{Purpose, docker, image};
use std::path::PathBuf;

/// Makes both images unless they are there.
pub async fn ensure(cache_dir: Option<PathBuf>) -> Result<()> {
    let cache_dir = cache_dir.unwrap_or_else(image::default_cache_dir);
    let sandbox = docker::DockerSandbox::look(docker::Config::default())
        .await
        .context("Docker cannot be used: start it (`make up` does) and look at its log")?;
    for purpose in [Purpose::Runtime, Purpose::Build] {
        let say = |line: &str| eprintln!("image: {line}");
        sandbox.ensure_image(&cache_dir, purpose, &say).await.with_context(|| format!("making the image for {purpose:?}"))?;
        println!("{}", image::tag(purpose));
    }
    Ok(())
}
