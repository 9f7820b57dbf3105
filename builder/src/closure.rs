//! Which of the installed packages belong to an artifact: what the module reaches by its dependencies, without the peers that the
//! function provides. And whether everything came from where it should.

use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// npm's lock file, as far as it matters.
#[derive(Debug, Deserialize)]
pub struct Lock {
    packages: BTreeMap<String, Package>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Package {
    #[serde(default)]
    version: Option<String>,
    #[serde(default)]
    resolved: Option<String>,
    #[serde(default)]
    integrity: Option<String>,
    #[serde(default)]
    link: bool,
    #[serde(default)]
    in_bundle: bool,
    #[serde(default)]
    dependencies: BTreeMap<String, String>,
    #[serde(default)]
    optional_dependencies: BTreeMap<String, String>,
    #[serde(default)]
    peer_dependencies: BTreeMap<String, String>,
}

/// Why what npm installed is refused; for the tenant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClosureError {
    /// The lock file cannot be read.
    #[error("npm left no lock file that can be read: {0}")]
    Lock(String),
    /// The module is not in it.
    #[error("npm did not install {0}")]
    Missing(String),
    /// Something came from elsewhere than the registry.
    #[error("{package} does not come from the registry: git, file and URL dependencies are refused, also inside modules")]
    Foreign {
        /// Where it lies.
        package: String,
    },
    /// Something has no strong hash.
    #[error("{package} has no sha512 integrity in the registry")]
    Unhashed {
        /// Where it lies.
        package: String,
    },
}

/// What belongs to an artifact.
#[derive(Debug, PartialEq, Eq)]
pub struct Closure {
    /// Paths of packages below the root, as `node_modules/a/node_modules/b`.
    pub keep: BTreeSet<String>,
    /// Paths of packages that npm installed and the artifact does not hold.
    pub drop: BTreeSet<String>,
    /// SHA-256 over paths, versions and integrity hashes of what is kept.
    pub lock_sha256: String,
    /// The module's own integrity.
    pub integrity: Option<String>,
}

/// Reads the lock file and decides.
///
/// # Errors
/// [`ClosureError`] when something in it is not from the registry (`origin` is the relay's address) or has no hash.
pub fn closure(lock: &[u8], name: &str, origin: &str) -> Result<Closure, ClosureError> {
    let lock: Lock = serde_json::from_slice(lock).map_err(|e| ClosureError::Lock(e.to_string()))?;
    let top = format!("node_modules/{name}");
    let top_package = lock.packages.get(&top).ok_or_else(|| ClosureError::Missing(name.to_owned()))?;
    let provided: BTreeSet<&str> = top_package.peer_dependencies.keys().map(String::as_str).collect();
    let mut keep = BTreeSet::new();
    let mut open = vec![top.clone()];
    while let Some(at) = open.pop() {
        let Some(package) = lock.packages.get(&at) else { continue };
        if !keep.insert(at.clone()) {
            continue;
        }
        let own = package.dependencies.keys().chain(package.optional_dependencies.keys());
        let peers = package.peer_dependencies.keys().filter(|peer| at != top && !provided.contains(peer.as_str()));
        open.extend(own.chain(peers).filter_map(|dependency| find(&lock, &at, dependency)));
    }
    let mut hash = Sha256::new();
    for at in &keep {
        let package = &lock.packages[at];
        check(at, package, origin)?;
        for field in [Some(at), package.version.as_ref(), package.integrity.as_ref()] {
            let text = field.map_or("", String::as_str);
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
    }
    let drop = lock.packages.keys().filter(|at| at.starts_with("node_modules/") && !keep.contains(*at)).cloned().collect();
    Ok(Closure { drop, lock_sha256: hex::encode(hash.finalize()), integrity: top_package.integrity.clone(), keep })
}

fn check(at: &str, package: &Package, origin: &str) -> Result<(), ClosureError> {
    let foreign = || ClosureError::Foreign { package: at.to_owned() };
    if at.split('/').any(|part| matches!(part, "" | "." | "..")) || !at.starts_with("node_modules/") || package.link {
        return Err(foreign());
    }
    // What is bundled came inside another package's file, under that one's hash.
    if package.in_bundle {
        return Ok(());
    }
    if !package.resolved.as_ref().is_some_and(|url| url.starts_with(origin)) {
        return Err(foreign());
    }
    match &package.integrity {
        Some(integrity) if integrity.split_whitespace().any(|h| h.starts_with("sha512-")) => Ok(()),
        // Packages published before 2017 have only a sha1 in the registry.
        Some(integrity) if integrity.starts_with("sha1-") => Ok(()),
        _ => Err(ClosureError::Unhashed { package: at.to_owned() }),
    }
}

/// Node's climb: the nearest `node_modules` above that has it.
fn find(lock: &Lock, from: &str, name: &str) -> Option<String> {
    let mut at = from;
    loop {
        let candidate = format!("{at}/node_modules/{name}");
        if lock.packages.contains_key(&candidate) {
            return Some(candidate);
        }
        at = match at.rfind("/node_modules/") {
            Some(end) => &at[..end],
            None => {
                let top = format!("node_modules/{name}");
                return lock.packages.contains_key(&top).then_some(top);
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const ORIGIN: &str = "http://127.0.0.1:";

    fn package(more: Value) -> Value {
        let mut base =
            json!({ "version": "1.0.0", "resolved": "http://127.0.0.1:1/-/file/x/-/1.0.0.tgz", "integrity": "sha512-x" });
        base.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        base
    }

    fn lock(packages: Value) -> Vec<u8> {
        serde_json::to_vec(&json!({ "lockfileVersion": 3, "packages": packages })).unwrap()
    }

    #[test]
    fn peers_that_the_function_provides_are_left_out() {
        let lock = lock(json!({
            "": {},
            "node_modules/dom": package(json!({ "dependencies": { "scheduler": "1", "hook": "1" }, "peerDependencies": { "react": "1" } })),
            "node_modules/scheduler": package(json!({})),
            "node_modules/hook": package(json!({ "peerDependencies": { "react": "1", "other": "1" } })),
            "node_modules/other": package(json!({ "peer": true })),
            "node_modules/react": package(json!({ "dependencies": { "loose": "1" } })),
            "node_modules/loose": package(json!({})),
        }));
        let closure = closure(&lock, "dom", ORIGIN).unwrap();
        let keep: Vec<_> = closure.keep.iter().map(|k| k.trim_start_matches("node_modules/")).collect();
        assert_eq!(keep, ["dom", "hook", "other", "scheduler"]);
        assert_eq!(closure.drop.len(), 2);
    }

    #[test]
    fn nested_packages_are_found_as_node_finds_them() {
        let lock = lock(json!({
            "node_modules/a": package(json!({ "dependencies": { "b": "2", "c": "1" } })),
            "node_modules/a/node_modules/b": package(json!({ "dependencies": { "c": "1" } })),
            "node_modules/b": package(json!({})),
            "node_modules/c": package(json!({})),
        }));
        let closure = closure(&lock, "a", ORIGIN).unwrap();
        assert!(closure.keep.contains("node_modules/a/node_modules/b") && !closure.keep.contains("node_modules/b"));
    }

    #[test]
    fn what_is_not_from_the_registry_is_refused() {
        for bad in [
            json!({ "resolved": "git+ssh://git@h/x.git" }),
            json!({ "resolved": "https://elsewhere/x.tgz" }),
            json!({ "link": true }),
            json!({ "resolved": null }),
        ] {
            let lock = lock(
                json!({ "node_modules/a": package(json!({ "dependencies": { "b": "1" } })), "node_modules/b": package(bad.clone()) }),
            );
            assert!(matches!(closure(&lock, "a", ORIGIN), Err(ClosureError::Foreign { .. })), "{bad}");
        }
        let unhashed = lock(json!({ "node_modules/a": package(json!({ "integrity": null })) }));
        assert!(matches!(closure(&unhashed, "a", ORIGIN), Err(ClosureError::Unhashed { .. })));
        let climbing = lock(
            json!({ "node_modules/a": package(json!({ "dependencies": { "../../etc": "1" } })), "node_modules/../../etc": package(json!({})) }),
        );
        assert!(closure(&climbing, "a", ORIGIN).is_err());
        assert!(matches!(closure(b"{", "a", ORIGIN), Err(ClosureError::Lock(_))));
    }

    #[test]
    fn the_lock_digest_depends_on_what_is_kept_alone() {
        let one = lock(json!({ "node_modules/a": package(json!({})), "node_modules/z": package(json!({ "version": "9.0.0" })) }));
        let two = lock(json!({ "node_modules/a": package(json!({ "resolved": "http://127.0.0.1:2/other" })) }));
        let three = lock(json!({ "node_modules/a": package(json!({ "integrity": "sha512-other" })) }));
        let digest = |l: &[u8]| closure(l, "a", ORIGIN).unwrap().lock_sha256;
        assert_eq!(digest(&one), digest(&two));
        assert_ne!(digest(&one), digest(&three));
    }
}
