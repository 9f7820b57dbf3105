//! The runtime's program travels inside this binary and is written below the data directory, by its digest: containers of an older
//! version keep the files that they were started with.

use anyhow::{Context, Result};
use include_dir::{Dir, include_dir};
use sha2::{Digest, Sha256};
use std::{
    fs,
    path::{Path, PathBuf},
};

static RUNTIME: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../runtime");

fn files() -> Vec<(&'static Path, &'static [u8])> {
    let mut found = Vec::new();
    let mut open = vec![&RUNTIME];
    while let Some(dir) = open.pop() {
        open.extend(dir.dirs().filter(|d| d.path() != Path::new("test") && d.path() != Path::new("bench")));
        let scripts = dir.files().filter(|f| f.path().extension().is_some_and(|e| e == "js" || e == "json"));
        found.extend(scripts.map(|f| (f.path(), f.contents())));
    }
    found.sort_unstable();
    found
}

/// Writes the files unless they are there; returns their directory.
pub fn write(data_dir: &Path) -> Result<PathBuf> {
    let files = files();
    let mut hash = Sha256::new();
    for (path, contents) in &files {
        hash.update(path.as_os_str().as_encoded_bytes());
        hash.update((contents.len() as u64).to_be_bytes());
        hash.update(contents);
    }
    let digest = &hex::encode(hash.finalize())[..16];
    let target = data_dir.join("runtime").join(digest);
    if target.exists() {
        return Ok(target);
    }
    let aside = data_dir.join("runtime").join(format!("{digest}.new"));
    let _ = fs::remove_dir_all(&aside);
    for (path, contents) in files {
        let file = aside.join(path);
        let dir = file.parent().unwrap_or(&aside);
        fs::create_dir_all(dir).and_then(|()| fs::write(&file, contents)).with_context(|| format!("writing {}", file.display()))?;
    }
    fs::rename(&aside, &target).with_context(|| format!("writing {}", target.display()))?;
    Ok(target)
}
