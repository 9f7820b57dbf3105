//! Equal files of different artifacts are one file on the disk: closures repeat their small dependencies. A directory beside the
//! artifacts (`files`) holds one more hard link to each file, named by the SHA-256 of its mode and content; what has no other link left
//! belongs to no artifact and is swept away.
//!
//! All of it is owned by the node and mounted read-only into containers, so that no tenant can alter what another reads.

use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Replaces every file of an artifact's `tree` that `index` knows already by a link to it, and adds those that it does not know.
///
/// # Errors
/// What the file system says; the tree is whole whatever it says.
pub fn share(tree: &Path, index: &Path) -> io::Result<()> {
    // Beside the tree, where no name of the artifact's can be in the way.
    let beside = tree.with_extension("link");
    each_file(tree, |file| share_file(file, &named(file, index)?, &beside))
}

/// Removes an artifact's `tree`, and from `index` what no other one has.
///
/// # Errors
/// What the file system says.
pub fn remove(tree: &Path, index: &Path) -> io::Result<()> {
    let mut known = Vec::new();
    each_file(tree, |file| {
        known.push(named(file, index)?);
        Ok(())
    })?;
    fs::remove_dir_all(tree)?;
    known.iter().try_for_each(|entry| remove_alone(entry).map(drop))
}

/// Calls `each` with every file that has content.
fn each_file(tree: &Path, mut each: impl FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    let mut open = vec![tree.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                open.push(entry.path());
            } else if metadata.len() > 0 {
                each(&entry.path())?;
            }
        }
    }
    Ok(())
}

fn named(file: &Path, index: &Path) -> io::Result<PathBuf> {
    let mut hash = Sha256::new();
    let mut content = File::open(file)?;
    hash.update(content.metadata()?.permissions().mode().to_be_bytes());
    io::copy(&mut content, &mut hash)?;
    let name = hex::encode(hash.finalize());
    Ok(index.join(&name[..2]).join(name))
}

fn share_file(file: &Path, known: &Path, beside: &Path) -> io::Result<()> {
    // Renamed over the file, so that there is no moment without it.
    match fs::hard_link(known, beside) {
        Ok(()) => {
            fs::rename(beside, file)?;
            // Renaming a file over itself leaves both names.
            match fs::remove_file(beside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = known.parent() {
                fs::create_dir_all(parent)?;
            }
            match fs::hard_link(file, known) {
                // Somebody else was quicker: the two copies stay two.
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
                _ => Ok(()),
            }
        }
        // As many links as the file system allows: this artifact keeps a copy of its own.
        Err(error) if error.kind() == io::ErrorKind::TooManyLinks => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes an entry of the index that has no other link; says whether it did. A file that somebody links meanwhile only leaves the index;
/// what is gone already was somebody else's to remove.
fn remove_alone(entry: &Path) -> io::Result<bool> {
    let removed = fs::symlink_metadata(entry).and_then(|metadata| match metadata.nlink() {
        1 => fs::remove_file(entry).map(|()| true),
        _ => Ok(false),
    });
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        removed => removed,
    }
}

/// Removes what belongs to no artifact any more, after a process that was killed; returns how many files that were.
///
/// # Errors
/// What the file system says.
pub fn sweep(index: &Path) -> io::Result<usize> {
    let mut removed = 0;
    let dirs = match fs::read_dir(index) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        dirs => dirs?,
    };
    for dir in dirs {
        for entry in fs::read_dir(dir?.path())? {
            removed += usize::from(remove_alone(&entry?.path())?);
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(root: &Path, name: &str, files: &[(&str, &str, u32)]) -> PathBuf {
        let tree = root.join(name);
        for (path, content, mode) in files {
            let file = tree.join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, content).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(*mode)).unwrap();
        }
        tree
    }

    fn inode(file: &Path) -> u64 {
        fs::metadata(file).unwrap().ino()
    }

    #[test]
    fn equal_files_are_one_and_go_with_the_last_artifact() {
        let root = tempfile::tempdir().unwrap();
        let index = root.path().join("files");
        let a = artifact(root.path(), "a", &[("ms/index.js", "same", 0o644), ("own.js", "a", 0o644), ("empty", "", 0o644)]);
        let b = artifact(root.path(), "b", &[("x/ms/index.js", "same", 0o644), ("run", "same", 0o755), ("empty", "", 0o644)]);
        share(&a, &index).unwrap();
        share(&b, &index).unwrap();
        assert_eq!(inode(&a.join("ms/index.js")), inode(&b.join("x/ms/index.js")));
        assert_ne!(inode(&a.join("ms/index.js")), inode(&b.join("run")), "another mode is another file");
        assert_eq!(fs::metadata(b.join("run")).unwrap().permissions().mode() & 0o777, 0o755);
        assert_ne!(inode(&a.join("empty")), inode(&b.join("empty")), "nothing is saved by sharing nothing");
        assert_eq!(sweep(&index).unwrap(), 0, "everything is in use");
        remove(&a, &index).unwrap();
        assert_eq!(sweep(&index).unwrap(), 0, "what was a's alone is gone");
        assert_eq!(fs::read_to_string(b.join("x/ms/index.js")).unwrap(), "same");
        fs::remove_dir_all(&b).unwrap();
        assert_eq!(sweep(&index).unwrap(), 2);
        assert_eq!(sweep(&root.path().join("none")).unwrap(), 0);
    }

    #[test]
    fn sharing_twice_changes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let index = root.path().join("files");
        let a = artifact(root.path(), "a", &[("x.js", "x", 0o644), ("y.js", "x", 0o644)]);
        for _ in 0..2 {
            share(&a, &index).unwrap();
            assert!(!root.path().join("a.link").exists());
            let names: Vec<_> = fs::read_dir(&a).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert_eq!(names.len(), 2, "nothing is left beside them: {names:?}");
        }
        assert_eq!(fs::metadata(a.join("x.js")).unwrap().nlink(), 3, "twice in the tree, once in the index");
    }
}
