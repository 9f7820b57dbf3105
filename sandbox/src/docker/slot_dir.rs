//! The host's side of a slot's directories. With root, `run/` becomes a tiny file system of its own, so that a tenant can neither
//! fill the host's disk through it nor use up its inodes; without root its permissions are opened as far as they must be.

use super::{config::Config, options};
use crate::{Purpose, SandboxError, SandboxSpec};
use rustix::{
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change, unmount},
};
use std::{
    ffi::CString,
    fs,
    io::{self, ErrorKind},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
};

/// Two sockets need no bytes; a page or two is slack for the kernel's own book-keeping.
const RUN_SIZE: &str = "64k";
/// The root directory, two sockets, and room for a runtime that replaces them.
const RUN_INODES: u32 = 32;
/// A slot whose `run/` was left mounted several times over is broken in a way that more tries do not mend.
const UNMOUNTS_MAX: u32 = 8;

/// Whether this process may mount and give files away.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Makes `dir` a mount of its own from which mounts below it propagate into containers, unless it lies on such a mount already. On
/// many machines `/` is shared, on others (and in most containers) it is not, and then the engine refuses to start a container.
/// Without root nothing happens. The mount stays: containers that outlive this process depend on it.
pub fn share_mounts(dir: &Path) -> Result<(), SandboxError> {
    if !is_root() {
        return Ok(());
    }
    // Two that look simultaneously would both mount, and what lies below the second would be cut off from the first.
    static ONE_AT_A_TIME: parking_lot::Mutex<()> = parking_lot::Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock();
    let dir = fs::canonicalize(dir).map_err(|e| failed(dir, "find", &e))?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|e| failed(&dir, "find the mount of", &e))?;
    if is_shared(&mounts, &dir) {
        return Ok(());
    }
    // With what is mounted below it already, which would be hidden otherwise.
    mount_bind_recursive(&dir, &dir).map_err(|e| failed(&dir, "mount", &e.into()))?;
    let flags = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    mount_change(&dir, flags).map_err(|e| failed(&dir, "share mounts of", &e.into()))
}

/// Takes away every mount below `dir` (and on it), for a node that leaves nothing behind. The deepest first, since one may lie on another.
///
/// # Errors
/// The system's words about the first mount that stays; the others are tried all the same.
pub fn unmount_below(dir: &Path) -> io::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mut points: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| Some(PathBuf::from(line.split(' ').nth(4)?.replace("\\040", " "))))
        .filter(|point| point.starts_with(dir))
        .collect();
    points.reverse();
    let mut failed = None;
    for point in points {
        if let Err(error) = unmount(&point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            && error != Errno::INVAL
        {
            failed.get_or_insert(io::Error::from(error));
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Whether the mount that `dir` lies on is shared, by the lines of `mountinfo`: later mounts cover earlier ones.
fn is_shared(mountinfo: &str, dir: &Path) -> bool {
    let mut found: Option<(usize, bool)> = None;
    for line in mountinfo.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let Some(point) = fields.get(4) else { continue };
        // The kernel writes a space in a path as \040.
        let point = PathBuf::from(point.replace("\\040", " "));
        let depth = point.components().count();
        if dir.starts_with(&point) && found.is_none_or(|(deepest, _)| depth >= deepest) {
            let shared = fields.iter().skip(6).take_while(|f| **f != "-").any(|f| f.starts_with("shared:"));
            found = Some((depth, shared));
        }
    }
    found.is_some_and(|(_, shared)| shared)
}

/// Readies the directories for a container; what an earlier one left in `run/` is gone afterwards.
pub(crate) fn prepare(config: &Config, spec: &SandboxSpec) -> Result<(), SandboxError> {
    let uid = options::uid(config, spec.slot)?;
    let run = spec.slot_dir.join("run");
    for dir in [&run, &spec.slot_dir.join("tree"), &spec.runtime_dir] {
        require_dir(dir)?;
    }
    if is_root() {
        release(&run).map_err(|e| failed(&run, "unmount what an earlier container left", &e))?;
        empty(&run)?;
        let data = format!("size={RUN_SIZE},nr_inodes={RUN_INODES},mode=0700,uid={uid},gid={uid}");
        let data = CString::new(data).map_err(|e| failed(&run, "mount", &e.into()))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("hearth-run", &run, "tmpfs", flags, Some(data.as_c_str()))
            .map_err(|e| failed(&run, "mount a tmpfs at", &e.into()))?;
    } else {
        empty(&run)?;
        open_to_all(&run)?;
    }
    let etc = spec.slot_dir.join(options::ETC_DIR);
    fs::create_dir_all(&etc).map_err(|e| failed(&etc, "make", &e))?;
    for file in [options::RESOLV_CONF, options::HOSTS] {
        let path = etc.join(file.name);
        fs::write(&path, file.text).map_err(|e| failed(&path, "write", &e))?;
    }
    if spec.purpose == Purpose::Build {
        let out = spec.slot_dir.join("out");
        require_dir(&out)?;
        if is_root() {
            chown(&out, Some(uid), Some(uid)).map_err(|e| failed(&out, "give to the build", &e))?;
        } else {
            open_to_all(&out)?;
        }
    }
    Ok(())
}

/// Unmounts `run`; what is not mounted is no error.
pub(crate) fn release(run: &Path) -> io::Result<()> {
    if !is_root() {
        return Ok(());
    }
    for _ in 0..UNMOUNTS_MAX {
        match unmount(run, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other(format!("mounted more than {UNMOUNTS_MAX} times over")))
}

fn require_dir(path: &Path) -> Result<(), SandboxError> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => Err(failed(path, "use", &ErrorKind::NotADirectory.into())),
        Err(error) => Err(failed(path, "use", &error)),
    }
}

/// Removes stale sockets: a container must not seem ready because one before it was.
fn empty(run: &Path) -> Result<(), SandboxError> {
    let entries: Vec<PathBuf> = fs::read_dir(run)
        .and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect())
        .map_err(|e| failed(run, "read", &e))?;
    for entry in entries {
        match fs::remove_file(&entry) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(failed(&entry, "remove", &e)),
            _ => {}
        }
    }
    Ok(())
}

/// The container's user is another than ours and we may not give files away. The slot's parent directory keeps others out.
fn open_to_all(path: &Path) -> Result<(), SandboxError> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o777)).map_err(|e| failed(path, "open to the container's user", &e))
}

fn failed(path: &Path, what: &str, error: &io::Error) -> SandboxError {
    SandboxError::Failed { call: "prepare slot", detail: format!("cannot {what} {}: {error}", path.display()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_that_counts_is_the_deepest_and_latest() {
        let mounts = "1 0 8:1 / / rw - ext4 /dev/a rw\n\
            2 1 8:1 /d /d rw shared:7 - ext4 /dev/a rw\n\
            3 1 8:1 /e /e rw shared:8 - ext4 /dev/a rw\n\
            4 3 8:1 /e /e rw master:8 - ext4 /dev/a rw\n\
            5 1 8:1 /f /with\\040space rw master:1 shared:9 - ext4 /dev/a rw\n";
        let shared = |path: &str| is_shared(mounts, Path::new(path));
        assert!(!shared("/x") && shared("/d") && shared("/d/x/y") && !shared("/dx") && !shared("/e/x") && shared("/with space/x"));
        assert!(!is_shared("", Path::new("/")));
    }
}
