//! npm modules: one name at one exact version is a module; built with its closure it is an artifact.

use crate::{Timestamp, function::NodeVersion};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{fmt, str::FromStr, sync::Arc};

/// Why a dependency is refused before anything is asked of the registry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModuleError {
    /// Not a name of the registry.
    #[error("{text:?} is not an npm module name: use name or @scope/name, lower case, at most 214 characters")]
    Name {
        /// What was given, cut to 80 characters.
        text: String,
    },
    /// Not one exact version.
    #[error("{text:?} is not an exact version such as 4.17.21")]
    Version {
        /// What was given, cut to 80 characters.
        text: String,
    },
    /// Something npm accepts that Hearth does not.
    #[error(
        "{name}: {kind} dependencies are refused, because what they install can change and runs unreviewed; name a version range of the registry such as ^1.2.0"
    )]
    Source {
        /// The dependency.
        name: String,
        /// `git`, `file`, `url` or `alias`.
        kind: &'static str,
    },
    /// Not a range.
    #[error("{name}: {text:?} is not a version range; use one such as ^1.2.0, 1.x or 1.2.3")]
    Range {
        /// The dependency.
        name: String,
        /// What was given, cut to 80 characters.
        text: String,
    },
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

/// An npm package name, `name` or `@scope/name`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModuleName(Arc<str>);

impl ModuleName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_part(part: &str) -> bool {
    !part.is_empty()
        && !part.starts_with(['.', '_', '-'])
        && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.' | b'~'))
}

impl FromStr for ModuleName {
    type Err = ModuleError;
    fn from_str(text: &str) -> Result<Self, ModuleError> {
        let parts_ok = match text.strip_prefix('@') {
            Some(scoped) => scoped.split_once('/').is_some_and(|(scope, name)| is_part(scope) && is_part(name)),
            None => is_part(text),
        };
        if parts_ok && text.len() <= 214 && text != "node_modules" && text != "favicon.ico" {
            Ok(Self(text.into()))
        } else {
            Err(ModuleError::Name { text: cut(text) })
        }
    }
}

impl TryFrom<String> for ModuleName {
    type Error = ModuleError;
    fn try_from(text: String) -> Result<Self, ModuleError> {
        text.parse()
    }
}
impl From<ModuleName> for String {
    fn from(name: ModuleName) -> String {
        name.0.as_ref().to_owned()
    }
}
impl fmt::Display for ModuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for ModuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One module at one exact version, written `name@version`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModuleSpec {
    /// The package's name.
    pub name: ModuleName,
    /// One exact version, as semver prints it.
    pub version: String,
}

impl FromStr for ModuleSpec {
    type Err = ModuleError;
    fn from_str(text: &str) -> Result<Self, ModuleError> {
        let at = text.get(1..).and_then(|rest| rest.rfind('@')).map(|i| i + 1);
        let Some((name, version)) = at.map(|at| (&text[..at], &text[at + 1..])) else {
            return Err(ModuleError::Version { text: cut(text) });
        };
        let name = name.parse()?;
        match nodejs_semver::Version::parse(version) {
            Ok(parsed) if parsed.to_string() == version && version.len() <= 128 => Ok(Self { name, version: version.to_owned() }),
            _ => Err(ModuleError::Version { text: cut(version) }),
        }
    }
}
impl TryFrom<String> for ModuleSpec {
    type Error = ModuleError;
    fn try_from(text: String) -> Result<Self, ModuleError> {
        text.parse()
    }
}
impl From<ModuleSpec> for String {
    fn from(spec: ModuleSpec) -> String {
        spec.to_string()
    }
}
impl fmt::Display for ModuleSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

/// Refuses what is not a version range or tag of the registry. `latest` and other tags pass, as npm takes them.
///
/// # Errors
/// [`ModuleError::Source`] for git, file, URL and alias dependencies, [`ModuleError::Range`] for what is no range.
pub fn check_range(name: &ModuleName, text: &str) -> Result<(), ModuleError> {
    let refuse = |kind| Err(ModuleError::Source { name: name.to_string(), kind });
    let lower = text.trim().to_ascii_lowercase();
    if lower.starts_with("npm:") {
        return refuse("alias");
    }
    if ["file:", "link:", "workspace:", "portal:", "./", "../", "/", "~/"].iter().any(|p| lower.starts_with(p)) {
        return refuse("file");
    }
    if lower.starts_with("git") || lower.starts_with("github:") || lower.contains("git@") || lower.contains(".git") {
        return refuse("git");
    }
    if lower.contains("://") {
        return refuse("url");
    }
    if lower.contains('/') || lower.contains('#') || lower.contains(':') {
        return refuse("git");
    }
    // The parser passes over what it does not know.
    let is_written_as_one = text.bytes().all(|b| b.is_ascii_alphanumeric() || b" \t.-+*<>=^~|".contains(&b));
    let is_tag = !lower.is_empty() && lower.len() <= 64 && lower.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if is_tag || is_written_as_one && nodejs_semver::Range::parse(text).is_ok() {
        Ok(())
    } else {
        Err(ModuleError::Range { name: name.to_string(), text: cut(text) })
    }
}

/// Names one build before it has run: SHA-256 in hexadecimal over what decides its outcome, except the lock, which the
/// build itself fixes. Exactly one build is done per key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
pub struct BuildKey(pub String);

/// The inputs of a [`BuildKey`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildInputs<'a> {
    /// What is built.
    pub spec: &'a ModuleSpec,
    /// For which Node.js.
    pub node: NodeVersion,
    /// `x86_64` or `aarch64`.
    pub arch: &'a str,
    /// Whether its lifecycle scripts run.
    pub scripts: bool,
    /// Digest of the build image.
    pub image: &'a str,
}

impl BuildInputs<'_> {
    /// The key: length-prefixed fields under a version tag, so that no two inputs collide.
    #[must_use]
    pub fn key(&self) -> BuildKey {
        let mut hash = Sha256::new();
        let fields = [
            "hearth-build-3",
            self.spec.name.as_str(),
            &self.spec.version,
            self.node.abi(),
            self.arch,
            if self.scripts { "scripts" } else { "no-scripts" },
            self.image,
        ];
        for field in fields {
            hash.update((field.len() as u64).to_be_bytes());
            hash.update(field.as_bytes());
        }
        BuildKey(hex::encode(hash.finalize()))
    }
}

/// A module as one function version uses it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedModule {
    /// What.
    pub spec: ModuleSpec,
    /// Which build of it.
    pub build: BuildKey,
    /// Peers of it that the function provides: names of other entries of the same version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<ModuleName>,
    /// Whether the tenant asked for it (otherwise it is here as a peer of another).
    pub direct: bool,
}

/// A finished artifact in the artifact store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ArtifactRef {
    /// SHA-256 of the compressed archive, hexadecimal; also its name in the store.
    pub sha256: String,
    /// Length of the compressed archive.
    pub bytes: u64,
    /// Length of the files once unpacked.
    pub unpacked_bytes: u64,
    /// Number of files.
    pub files: u64,
    /// SHA-256 of the lock file with its integrity hashes.
    pub lock_sha256: String,
}

/// How far a build is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum BuildState {
    /// In the queue.
    Queued,
    /// A worker has it.
    Building {
        /// Which.
        worker: String,
        /// Since when.
        since: Timestamp,
    },
    /// Done.
    Ready {
        /// What came out.
        artifact: ArtifactRef,
        /// When.
        finished_at: Timestamp,
        /// How long the build took, in milliseconds.
        build_ms: u64,
    },
    /// Did not work; tried again from `retry_at` on, when there is one.
    Failed {
        /// For the tenant: what and why.
        reason: String,
        /// When.
        failed_at: Timestamp,
        /// When it is tried again; none when it was given up (dead-lettered).
        retry_at: Option<Timestamp>,
    },
}

/// What the system knows of one build of one module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleRecord {
    /// Which build.
    pub key: BuildKey,
    /// Of what.
    pub spec: ModuleSpec,
    /// For which Node.js.
    pub node: NodeVersion,
    /// Whether its lifecycle scripts run.
    pub scripts: bool,
    /// How far it is.
    #[serde(flatten)]
    pub state: BuildState,
    /// Grows by one each time a worker takes it: a worker with a lower one may not write.
    pub epoch: u64,
    /// How often it was tried.
    pub attempts: u32,
    /// When somebody asked, last if it had failed before.
    pub created_at: Timestamp,
    /// The integrity of the top package as the registry gives it (`sha512-...`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub integrity: Option<String>,
    /// The end of the build's output.
    #[serde(default)]
    pub log: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_exact() {
        for good in ["lodash@4.17.21", "@aws-sdk/client-s3@3.726.1", "a@1.0.0-rc.1"] {
            assert_eq!(good.parse::<ModuleSpec>().unwrap().to_string(), good);
        }
        for bad in [
            "lodash",
            "lodash@",
            "lodash@^4",
            "lodash@4",
            "lodash@latest",
            "@a@1.0.0",
            "@a/b",
            "Lodash@1.0.0",
            "../x@1.0.0",
            "a/b@1.0.0",
            "lodash@v1.0.0",
            "lodash@1.0.0 || 2.0.0",
            "lodash@npm:x@1.0.0",
            "lodash@1.0.0\n",
            ".x@1.0.0",
            "node_modules@1.0.0",
            "_x@1.0.0",
            "@/x@1.0.0",
            "@x/@1.0.0",
            "x y@1.0.0",
            "lodash@=1.0.0",
        ] {
            assert!(bad.parse::<ModuleSpec>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ranges_of_other_sources_are_refused_by_kind() {
        let name: ModuleName = "x".parse().unwrap();
        for good in ["^1.2.0", "1.x", "*", "latest", ">=1 <3", "1 || 2", "~1.2.3-beta.1"] {
            assert_eq!(check_range(&name, good), Ok(()), "{good}");
        }
        for (bad, kind) in [
            ("git+https://h/x", "git"),
            ("github:a/b", "git"),
            ("a/b", "git"),
            ("git@h:a/b", "git"),
            ("git+ssh://git@h/a/b.git#v1", "git"),
            ("git://h/a/b", "git"),
            ("https://h/a/b.git", "git"),
            ("gitlab:a/b", "git"),
            ("bitbucket:a/b", "git"),
            ("gist:0123456789abcdef", "git"),
            ("a/b#semver:^1", "git"),
            ("file:../x", "file"),
            ("./x", "file"),
            ("../x.tgz", "file"),
            ("/etc/passwd", "file"),
            ("~/x", "file"),
            ("FILE:../x", "file"),
            ("https://h/x.tgz", "url"),
            ("http://h/x.tgz", "url"),
            ("npm:y@1.0.0", "alias"),
            (" NPM:@s/y@^1", "alias"),
            ("link:x", "file"),
            ("portal:../x", "file"),
            ("workspace:*", "file"),
        ] {
            match check_range(&name, bad) {
                Err(ModuleError::Source { kind: found, .. }) => assert_eq!(found, kind, "{bad}"),
                other => panic!("{bad}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_build_key_is_stable() {
        let spec: ModuleSpec = "lodash@4.17.21".parse().unwrap();
        let inputs = BuildInputs { spec: &spec, node: NodeVersion::V24, arch: "x86_64", scripts: false, image: "sha256:0" };
        let key = inputs.key();
        assert_eq!(key.0.len(), 64);
        assert_ne!(key, BuildInputs { scripts: true, ..inputs.clone() }.key());
        assert_ne!(key, BuildInputs { node: NodeVersion::V22, ..inputs.clone() }.key());
    }
}
