//! The cache against the embedded stores: one fetch for all, a disk that is full, no rights to mount.

use super::*;
use hearth_model::{BuildState, ModuleRecord, Timestamp, function::NodeVersion};
use hearth_store::Stores;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

struct Place {
    dir: tempfile::TempDir,
    stores: Stores,
}

impl Place {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let stores = hearth_store::open(&hearth_store::Config::embedded(&dir.path().join("store"))).await.unwrap();
        Self { dir, stores }
    }

    /// Stores an artifact of one file, and its record. Names with the same first letter have the same content.
    async fn module(&self, name: &str, bytes: usize) -> ResolvedModule {
        let mut builder = tar::Builder::new(zstd::Encoder::new(Vec::new(), 1).unwrap());
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes as u64);
        header.set_mode(0o644);
        // Bytes that do not pack to nothing, and differ by name.
        let content: Vec<u8> = (0..bytes).map(|i| (i as u8).wrapping_mul(31) ^ name.as_bytes()[0]).collect();
        builder.append_data(&mut header, format!("node_modules/{name}/index.js"), content.as_slice()).unwrap();
        let packed = builder.into_inner().unwrap().finish().unwrap();
        let length = packed.len() as u64;
        let (sha256, _) = self.stores.artifacts.put_bytes(packed.into()).await.unwrap();
        let artifact = ArtifactRef { sha256, bytes: length, unpacked_bytes: bytes as u64, files: 1, lock_sha256: String::new() };
        let module = ResolvedModule {
            spec: format!("{name}@1.0.0").parse().unwrap(),
            build: BuildKey(name.into()),
            peers: Vec::new(),
            direct: true,
        };
        let record = ModuleRecord {
            key: module.build.clone(),
            spec: module.spec.clone(),
            node: NodeVersion::V24,
            scripts: false,
            state: BuildState::Ready { artifact, finished_at: Timestamp(0), build_ms: 1 },
            epoch: 1,
            attempts: 1,
            created_at: Timestamp(0),
            integrity: None,
            log: String::new(),
        };
        assert!(self.stores.functions.put_module(record, None).await.unwrap());
        module
    }

    async fn cache(&self, data_dir: &Path, may_mount: bool) -> Arc<ModuleCache> {
        let (functions, artifacts) = (Arc::clone(&self.stores.functions), Arc::clone(&self.stores.artifacts));
        let mut cache = ModuleCache::open(Config::default(), data_dir, functions, artifacts).await.unwrap();
        if !may_mount {
            leave(&cache);
            Arc::get_mut(&mut cache).unwrap().read_only = None;
        }
        cache
    }
}

fn leave(cache: &ModuleCache) {
    if let Some(view) = &cache.read_only {
        unmount(view, UnmountFlags::DETACH).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_is_fetched_once_for_all_who_want_it() {
    let place = Place::new().await;
    let module = place.module("a", 100_000).await;
    let cache = place.cache(&place.dir.path().join("node"), false).await;
    let mut tasks = tokio::task::JoinSet::new();
    for slot in 0..50 {
        let (cache, module) = (Arc::clone(&cache), module.clone());
        tasks.spawn(async move {
            let artifact = cache.artifact(&module.spec, &module.build).await.unwrap();
            cache.ensure(&module.spec, &artifact, slot).await.unwrap();
        });
    }
    tasks.join_all().await;
    let status = cache.status();
    assert_eq!((status.fetches, status.artifacts, status.mounts, status.failed), (1, 1, 50, 0));
    assert!(status.bytes >= 100_000 && status.bytes < 200_000, "{} bytes on the disk", status.bytes);
    // Another process finds it, and removes what was left half-done.
    fs::create_dir_all(cache.dir.join("tmp/half/node_modules")).unwrap();
    fs::create_dir_all(cache.dir.join("0".repeat(64))).unwrap();
    let again = place.cache(&place.dir.path().join("node"), false).await;
    assert_eq!((again.status().artifacts, again.status().bytes), (1, status.bytes), "a directory without its size is no artifact");
    assert!(!again.dir.join("tmp/half").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_two_modules_both_hold_takes_room_once_and_goes_with_the_last() {
    use std::os::unix::fs::MetadataExt;
    let place = Place::new().await;
    let (a, b) = (place.module("a", 100_000).await, place.module("another", 100_000).await);
    let data_dir = place.dir.path().join("node");
    let cache = place.cache(&data_dir, false).await;
    let mut files = vec![];
    for (slot, module) in [&a, &b].into_iter().enumerate() {
        let artifact = cache.artifact(&module.spec, &module.build).await.unwrap();
        cache.ensure(&module.spec, &artifact, slot as u32).await.unwrap();
        files.push(cache.dir.join(&artifact.sha256).join("node_modules").join(module.spec.name.as_str()).join("index.js"));
    }
    let inodes: Vec<u64> = files.iter().map(|file| fs::metadata(file).unwrap().ino()).collect();
    assert_eq!(inodes[0], inodes[1]);
    cache.detach_slot(0, Path::new("/nowhere")).await;
    assert_eq!(cache.evict_unused().await, 1);
    assert_eq!(fs::read(&files[1]).unwrap().len(), 100_000, "what the other one needs stays");
    cache.detach_slot(1, Path::new("/nowhere")).await;
    assert_eq!(cache.evict_unused().await, 1);
    let left = walk(&cache.dir.join(fetch::FILES_DIR));
    assert_eq!(left, 0, "files of no module are left");
}

fn walk(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).map(|p| if p.is_dir() { walk(&p) } else { 1 }).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_mount_files_are_linked() {
    let place = Place::new().await;
    let module = place.module("a", 10).await;
    let data_dir = place.dir.path().join("node");
    let cache = place.cache(&data_dir, false).await;
    let tree = data_dir.join("tree");
    fs::create_dir_all(tree.join("f/x@1")).unwrap();
    for _ in 0..2 {
        let attached = cache.attach(7, &tree, Path::new("f/x@1"), std::slice::from_ref(&module)).await.unwrap();
        let inside = attached.packages[0].strip_prefix("/hearth/").unwrap();
        assert_eq!(fs::read(tree.join(inside).join("index.js")).unwrap().len(), 10);
    }
    assert!(fs::read_link(tree.join("f/x@1/node_modules/a")).unwrap().starts_with("/hearth/m/"));
    assert_eq!(cache.status().mode, "links");
    // The container is gone: nobody uses it any more.
    cache.detach_slot(7, &tree).await;
    assert_eq!((cache.status().mounts, cache.evict_unused().await), (0, 1));
    assert_eq!(cache.status().artifacts, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_and_what_nobody_uses_makes_room() {
    let place = Place::new().await;
    let (a, b) = (place.module("a", 1_200_000).await, place.module("b", 1_200_000).await);
    let disk = place.dir.path().join("disk");
    fs::create_dir_all(&disk).unwrap();
    mount("hearth-test", &disk, "tmpfs", MountFlags::empty(), Some(c"size=2m")).expect("this test mounts: run it as root");
    let cache = place.cache(&disk, false).await;
    let ensure = async |module: &ResolvedModule, slot| {
        let artifact = cache.artifact(&module.spec, &module.build).await.unwrap();
        cache.ensure(&module.spec, &artifact, slot).await.map_err(|e| e.to_string())
    };
    ensure(&a, 1).await.unwrap();
    let error = ensure(&b, 2).await.unwrap_err();
    assert!(error.contains("b@1.0.0") && error.contains("disk is full"), "{error}");
    let status = cache.status();
    assert_eq!((status.artifacts, status.failed, status.refused, status.evictions), (1, 1, 0, 0), "what is used stays");
    assert_eq!(fs::read_dir(cache.dir.join("tmp")).unwrap().count(), 0, "nothing half-done is left");
    cache.detach_slot(1, Path::new("/nowhere")).await;
    ensure(&b, 2).await.unwrap();
    assert_eq!((cache.status().artifacts, cache.status().evictions), (1, 1));
    assert_eq!(cache.reserved.load(Relaxed), 0, "all room that was held is given back");
    unmount(&disk, UnmountFlags::DETACH).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_holds_also_while_fetches_run() {
    let place = Place::new().await;
    let (a, b) = (place.module("a", 100_000).await, place.module("b", 100_000).await);
    let data_dir = place.dir.path().join("node");
    let mut cache = place.cache(&data_dir, false).await;
    Arc::get_mut(&mut cache).unwrap().config.disk_limit = ByteSize::b(150_000);
    let ensure = async |module: &ResolvedModule, slot| {
        let artifact = cache.artifact(&module.spec, &module.build).await.unwrap();
        cache.ensure(&module.spec, &artifact, slot).await.map_err(|e| e.to_string())
    };
    let (first, second) = tokio::join!(ensure(&a, 1), ensure(&b, 2));
    let refused = first.and(second).unwrap_err();
    assert!(refused.contains("module cache is full"), "{refused}");
    assert_eq!(cache.status().artifacts, 1, "one of the two came");
}
