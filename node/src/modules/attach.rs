//! Mounting modules into running containers. A mount below a slot's `tree/` propagates into its container; it is a clone of the
//! read-only view, so that it is read-only there from its first moment.

use super::ModuleCache;
use hearth_model::{ArtifactRef, ModuleName, ModuleSpec, ResolvedModule, protocol::paths};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount_bind, mount_change, mount_remount, unmount};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CString,
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

/// Why modules could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// What the store says of the module is missing.
    #[error("{module}: {detail}")]
    Record {
        /// Which.
        module: ModuleSpec,
        /// Why.
        detail: String,
    },
    /// The artifact could not be had, or was refused.
    #[error("fetching {module}: {detail}")]
    Fetch {
        /// Which.
        module: ModuleSpec,
        /// Why.
        detail: String,
    },
    /// It could not be mounted.
    #[error("mounting {module}: {source}")]
    Mount {
        /// Which.
        module: ModuleSpec,
        /// The system's words.
        source: io::Error,
    },
}

/// What was attached.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attached {
    /// Directories of the packages inside the container.
    pub packages: Vec<String>,
}

/// Makes (or finds) the read-only view of the modules' directory; none without root.
pub(super) fn read_only_view(dir: &Path) -> io::Result<Option<PathBuf>> {
    let view = dir.with_file_name("modules-ro");
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    fs::create_dir_all(&view)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    if mount_points(&mounts).any(|(_, point)| point == view) {
        return Ok(Some(view));
    }
    mount_bind(dir, &view)?;
    mount_change(&view, MountPropagationFlags::PRIVATE)?;
    mount_remount(&view, MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV, CString::default())?;
    Ok(Some(view))
}

/// Root within its file system and mount point of each line of `mountinfo`.
fn mount_points(mountinfo: &str) -> impl Iterator<Item = (&str, PathBuf)> {
    mountinfo.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(3);
        Some((fields.next()?, PathBuf::from(fields.next()?.replace("\\040", " "))))
    })
}

/// Where an artifact is mounted, by what it is and by the peers that it sees: the same in every container, so that what depends on
/// paths (a code cache, modules loaded ahead) fits wherever it is used.
fn contexts(modules: &[ResolvedModule], artifacts: &[Arc<ArtifactRef>]) -> Vec<String> {
    let index: BTreeMap<&ModuleName, usize> = modules.iter().enumerate().map(|(i, m)| (&m.spec.name, i)).collect();
    let context = |start: usize| {
        // All peers that can be reached, since each of them is seen through the others; peers may depend on each other in a circle.
        let (mut seen, mut open) = (BTreeSet::new(), vec![start]);
        while let Some(at) = open.pop() {
            for peer in modules[at].peers.iter().filter_map(|p| index.get(p)) {
                if seen.insert(*peer) {
                    open.push(*peer);
                }
            }
        }
        if seen.is_empty() {
            return artifacts[start].sha256[..32].to_owned();
        }
        let mut hash = Sha256::new();
        hash.update(&artifacts[start].sha256);
        let peers: BTreeSet<(&str, &str)> =
            seen.iter().map(|i| (modules[*i].spec.name.as_str(), artifacts[*i].sha256.as_str())).collect();
        for (name, sha256) in peers {
            hash.update((name.len() as u64).to_be_bytes());
            hash.update(name);
            hash.update(sha256);
        }
        hex::encode(hash.finalize())[..32].to_owned()
    };
    (0..modules.len()).map(context).collect()
}

fn package_dir(context: &str, name: &ModuleName) -> String {
    format!("{}/m/{context}/a/node_modules/{name}", paths::SLOT)
}

/// A link at `dir/node_modules/{name}`; a scope becomes a directory.
fn link(dir: &Path, name: &ModuleName, target: &str) -> io::Result<()> {
    let path = dir.join("node_modules").join(name.as_str());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match symlink(target, &path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// The same files under another directory, by hard links: for a process that may not mount. The container sees them read-only, since all
/// of its tree is, and sees its own modules alone; each file costs a system call, where a mount costs one for all.
fn link_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.metadata()?.is_dir() {
            link_tree(&entry.path(), &target)?;
            continue;
        }
        match fs::hard_link(entry.path(), &target) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

impl ModuleCache {
    /// Makes every module present on this machine, mounts those that the slot lacks, and links them below `function_dir` (relative to
    /// `tree`).
    ///
    /// # Errors
    /// [`AttachError`] names the module; what was mounted before stays until the slot is given up.
    pub async fn attach(
        &self,
        slot: u32,
        tree: &Path,
        function_dir: &Path,
        modules: &[ResolvedModule],
    ) -> Result<Attached, AttachError> {
        let artifacts = futures_util::future::try_join_all(modules.iter().map(|m| self.artifact(&m.spec, &m.build))).await?;
        let ensured = modules.iter().zip(&artifacts).map(|(m, artifact)| self.ensure(&m.spec, artifact, slot));
        futures_util::future::try_join_all(ensured).await?;
        let contexts = contexts(modules, &artifacts);
        let by_name: BTreeMap<&ModuleName, &String> = modules.iter().map(|m| &m.spec.name).zip(&contexts).collect();

        let mut slots = self.slots.lock().await;
        let mounted = slots.entry(slot).or_default();
        let mut attached = Attached::default();
        for ((module, artifact), context) in modules.iter().zip(&artifacts).zip(&contexts) {
            let mount = || -> io::Result<()> {
                let dir = tree.join("m").join(context);
                if !mounted.contains_key(context) {
                    fs::create_dir_all(dir.join("a"))?;
                    for peer in &module.peers {
                        if let Some(peer_context) = by_name.get(peer) {
                            link(&dir, peer, &package_dir(peer_context, peer))?;
                        }
                    }
                    let began = Instant::now();
                    match &self.read_only {
                        Some(view) => mount_bind(view.join(&artifact.sha256), dir.join("a"))?,
                        None => link_tree(&self.dir.join(&artifact.sha256), &dir.join("a"))?,
                    }
                    self.counters.attaches.fetch_add(1, Relaxed);
                    self.counters.attach_us.fetch_add(began.elapsed().as_micros() as u64, Relaxed);
                }
                link(&tree.join(function_dir), &module.spec.name, &package_dir(context, &module.spec.name))
            };
            mount().map_err(|source| AttachError::Mount { module: module.spec.clone(), source })?;
            mounted.insert(context.clone(), artifact.sha256.clone());
            attached.packages.push(package_dir(context, &module.spec.name));
        }
        Ok(attached)
    }

    /// The slot's container is gone: unmounts everything below its tree, and counts it no longer among any artifact's users.
    pub async fn detach_slot(&self, slot: u32, tree: &Path) {
        let mut slots = self.slots.lock().await;
        slots.remove(&slot);
        let below = tree.join("m");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for (_, point) in mount_points(&mounts).filter(|(_, point)| point.starts_with(&below)) {
            if let Err(error) = unmount(&point, UnmountFlags::DETACH) {
                tracing::warn!(path = %point.display(), %error, "a module could not be unmounted");
            }
        }
        for present in self.present.lock().values_mut() {
            present.slots.remove(&slot);
        }
    }

    /// After a restart: counts what is mounted in the slot of a container that was adopted.
    pub async fn adopt_slot(&self, slot: u32, tree: &Path) {
        let below = tree.join("m");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut slots = self.slots.lock().await;
        let mounted = slots.entry(slot).or_default();
        for (root, point) in mount_points(&mounts).filter(|(_, point)| point.starts_with(&below)) {
            let context = point.parent().and_then(Path::file_name).map(|c| c.to_string_lossy().into_owned());
            let sha256 = Path::new(root).file_name().map(|s| s.to_string_lossy().into_owned());
            let (Some(context), Some(sha256)) = (context, sha256) else { continue };
            if let Some(present) = self.present.lock().get_mut(&sha256) {
                present.slots.insert(slot);
            }
            mounted.insert(context, sha256);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_model::BuildKey;

    fn module(name: &str, peers: &[&str]) -> ResolvedModule {
        ResolvedModule {
            spec: format!("{name}@1.0.0").parse().unwrap(),
            build: BuildKey(name.into()),
            peers: peers.iter().map(|p| p.parse().unwrap()).collect(),
            direct: true,
        }
    }

    fn artifact(byte: char) -> Arc<ArtifactRef> {
        let sha256 = byte.to_string().repeat(64);
        Arc::new(ArtifactRef { sha256, bytes: 1, unpacked_bytes: 1, files: 1, lock_sha256: String::new() })
    }

    #[test]
    fn a_context_depends_on_the_artifact_and_its_peers_alone() {
        let react = (module("react", &[]), artifact('a'));
        let dom = (module("react-dom", &["react"]), artifact('b'));
        let other = (module("lodash", &[]), artifact('c'));
        let both = contexts(&[react.0.clone(), dom.0.clone()], &[react.1.clone(), dom.1.clone()]);
        let mixed = contexts(&[other.0, dom.0.clone(), react.0.clone()], &[other.1, dom.1.clone(), react.1]);
        assert_eq!((&both[0], &both[1]), (&mixed[2], &mixed[1]));
        assert_eq!(both[0], "a".repeat(32));
        let newer = contexts(&[react.0, dom.0], &[artifact('d'), dom.1]);
        assert_ne!(newer[1], both[1], "another peer is another context");
    }

    #[test]
    fn peers_in_a_circle_have_contexts() {
        let circle = contexts(&[module("a", &["b"]), module("b", &["a"])], &[artifact('a'), artifact('b')]);
        assert_ne!(circle[0], circle[1]);
    }

    #[test]
    fn scoped_names_make_links_below_their_scope() {
        let dir = tempfile::tempdir().unwrap();
        let name: ModuleName = "@scope/x".parse().unwrap();
        link(dir.path(), &name, "/hearth/m/1/a/node_modules/@scope/x").unwrap();
        link(dir.path(), &name, "/hearth/m/1/a/node_modules/@scope/x").unwrap();
        assert!(fs::read_link(dir.path().join("node_modules/@scope/x")).unwrap().starts_with("/hearth"));
    }

    #[test]
    fn mountinfo_is_read() {
        let text = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n37 35 98:0 / /a\\040b rw - ext3 x rw";
        let points: Vec<_> = mount_points(text).collect();
        assert_eq!(points, [("/mnt1", PathBuf::from("/mnt2")), ("/", PathBuf::from("/a b"))]);
    }
}
