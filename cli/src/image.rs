//! `hearth image`: assembles and imports the images of this version, with progress.

use anyhow::{Context, Result};
use hearth_sandbox::{Purpose, docker, image};
use std::path::PathBuf;

/// Makes both images unless they are there.
pub async fn ensure(cache_dir: Option<PathBuf>) -> Result<()> {
    let cache_dir = cache_dir.unwrap_or_else(image::default_cache_dir);
    let config = docker::Config {
        egress: hearth_sandbox::net::Config { mode: hearth_sandbox::net::Mode::None, ..Default::default() },
        ..Default::default()
    };
    let sandbox = docker::DockerSandbox::connect(config)
        .await
        .context("Docker cannot be used: start it (`make up` does) and look at its log")?;
    for purpose in [Purpose::Runtime, Purpose::Build] {
        let say = |line: &str| eprintln!("image: {line}");
        sandbox.ensure_image(&cache_dir, purpose, &say).await.with_context(|| format!("making the image for {purpose:?}"))?;
        println!("{}", image::tag(purpose));
    }
    Ok(())
}
