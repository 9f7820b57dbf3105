//! Ranges to exact versions, as npm picks them, but none that is too young; peers that nobody listed are added.

use crate::{
    Registry,
    packument::{Manifest, Packument},
};
use hearth_model::{Fault, ModuleName, ModuleSpec, Timestamp, module::ModuleError};
use nodejs_semver::{Range, Version};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Modules of one function, peers included.
const MODULES_MAX: usize = 200;

/// Why dependencies could not be resolved. Each names the module.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ResolveError {
    /// A name or a range that is refused.
    #[error(transparent)]
    Refused(#[from] ModuleError),
    /// The registry does not know the module.
    #[error("there is no module {module} in the registry; check the spelling")]
    UnknownModule {
        /// Which.
        module: String,
    },
    /// No version fits.
    #[error("{module} has no version that satisfies {range:?}{hint}")]
    NoVersion {
        /// Which.
        module: String,
        /// What was asked for.
        range: String,
        /// What there is.
        hint: String,
    },
    /// What fits is younger than allowed.
    #[error(
        "{module}@{version} was published less than {min_age_days} days ago; it can be used in {wait_hours} h, or sooner if the operator makes an exception"
    )]
    TooYoung {
        /// Which.
        module: String,
        /// The version that would have been picked.
        version: String,
        /// The minimum age.
        min_age_days: u64,
        /// Until it is old enough.
        wait_hours: u64,
    },
    /// Two modules want different versions of a third, and the function does not decide.
    #[error(
        "{module} is wanted as {first:?} and as {second:?} by modules of this function; list {module} in its dependencies with a version that suits both"
    )]
    PeerConflict {
        /// The peer.
        module: String,
        /// One range.
        first: String,
        /// The other.
        second: String,
    },
    /// Too many modules.
    #[error("the function needs more than {limit} modules, beginning with {module}")]
    TooMany {
        /// The first that is too much.
        module: String,
        /// The limit.
        limit: usize,
    },
    /// The registry does not answer.
    #[error("the registry could not be asked for {module}: {detail}; try again")]
    Registry {
        /// Which.
        module: String,
        /// Why.
        detail: String,
    },
}

impl ResolveError {
    /// The module that it is about.
    #[must_use]
    pub fn module(&self) -> Option<&str> {
        match self {
            Self::Refused(ModuleError::Source { name, .. } | ModuleError::Range { name, .. }) => Some(name),
            Self::Refused(_) => None,
            Self::UnknownModule { module }
            | Self::NoVersion { module, .. }
            | Self::TooYoung { module, .. }
            | Self::PeerConflict { module, .. }
            | Self::TooMany { module, .. }
            | Self::Registry { module, .. } => Some(module),
        }
    }

    /// Who can mend it.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Registry { .. } => Fault::Platform,
            _ => Fault::Client,
        }
    }
}

/// One module that a function needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// What, exactly.
    pub spec: ModuleSpec,
    /// Peers of it that are among the resolved.
    pub peers: Vec<ModuleName>,
    /// Whether it was asked for; otherwise it is a peer that nobody listed.
    pub direct: bool,
    /// As the registry gives it.
    pub integrity: Option<String>,
}

struct Picked {
    version: String,
    manifest: Manifest,
    range: String,
    direct: bool,
}

impl Registry {
    /// Exact versions for these ranges and for peers that nobody listed.
    ///
    /// # Errors
    /// [`ResolveError`] names the module and who can mend it.
    pub async fn resolve(&self, dependencies: &BTreeMap<String, String>, now: Timestamp) -> Result<Vec<Resolved>, ResolveError> {
        let mut picked: BTreeMap<ModuleName, Picked> = BTreeMap::new();
        let mut open: Vec<(ModuleName, String, bool)> = Vec::new();
        for (name, range) in dependencies {
            open.push((name.parse()?, range.clone(), true));
        }
        // Listed modules first: what the function decides is never decided by a peer's wish.
        open.reverse();
        while let Some((name, range, direct)) = open.pop() {
            if let Some(before) = picked.get(&name) {
                check_peer(&name, &range, before)?;
                continue;
            }
            if picked.len() >= MODULES_MAX {
                return Err(ResolveError::TooMany { module: name.to_string(), limit: MODULES_MAX });
            }
            let packument = self.packument(&name).await?;
            let (version, manifest) = self.pick(&name, &range, &packument, now)?;
            let wanted: Vec<_> = manifest.peers.iter().filter(|(peer, _)| !manifest.is_optional_peer(peer)).collect();
            for (peer, range) in wanted {
                // Behind everything that is listed.
                open.insert(0, (peer.parse()?, range.clone(), false));
            }
            picked.insert(name, Picked { version, manifest, range, direct });
        }
        let names: BTreeSet<ModuleName> = picked.keys().cloned().collect();
        let resolved = picked.into_iter().map(|(name, p)| Resolved {
            peers: p
                .manifest
                .peers
                .keys()
                .filter_map(|peer| peer.parse().ok())
                .filter(|peer| names.contains(peer) && *peer != name)
                .collect(),
            spec: ModuleSpec { name, version: p.version },
            direct: p.direct,
            integrity: p.manifest.dist.integrity,
        });
        Ok(resolved.collect())
    }

    /// As npm picks: the tag's version; the exact version; `latest` if it satisfies the range; else the highest that is not deprecated.
    fn pick(
        &self,
        name: &ModuleName,
        range: &str,
        packument: &Arc<Packument>,
        now: Timestamp,
    ) -> Result<(String, Manifest), ResolveError> {
        let range_text = if range.trim().is_empty() { "*" } else { range.trim() };
        let min_age_s =
            if self.config.min_release_age_except.contains(name.as_str()) { 0 } else { self.config.min_release_age.as_secs() };
        let age_s = |version: &str| packument.published_s(version).map_or(u64::MAX, |at| (now.0 / 1_000).saturating_sub(at));
        let found = |version: &str| packument.versions.get(version).map(|m| (version.to_owned(), m.clone()));
        let too_young = |version: &str| ResolveError::TooYoung {
            module: name.to_string(),
            version: version.to_owned(),
            min_age_days: min_age_s / 86_400,
            wait_hours: (min_age_s.saturating_sub(age_s(version))).div_ceil(3_600),
        };
        let none = || ResolveError::NoVersion { module: name.to_string(), range: range_text.to_owned(), hint: hint(packument) };
        let satisfying: Vec<(Version, &String)> =
            match (packument.tags.get(range_text), Version::parse(range_text), Range::parse(range_text)) {
                (_, Ok(_), _) if packument.versions.contains_key(range_text) => {
                    let version = range_text;
                    return if age_s(version) < min_age_s { Err(too_young(version)) } else { found(version).ok_or_else(none) };
                }
                // A tag that points to something too young means the newest old enough below it.
                (Some(tagged), _, _) => {
                    let Ok(top) = Version::parse(tagged) else { return Err(none()) };
                    versions(packument).filter(|(v, _)| *v <= top && (v.pre_release().is_empty() || *v == top)).collect()
                }
                (None, _, Ok(range)) => versions(packument).filter(|(v, _)| range.satisfies(v)).collect(),
                (None, _, Err(_)) => return Err(none()),
            };
        let latest = packument.tags.get("latest");
        let newest = satisfying.iter().max_by(|a, b| a.0.cmp(&b.0)).map(|(_, text)| (*text).clone());
        let old_enough = satisfying.into_iter().filter(|(_, text)| age_s(text) >= min_age_s);
        let rank = |(version, text): &(Version, &String)| {
            let deprecated = packument.versions.get(*text).is_some_and(Manifest::is_deprecated);
            (latest == Some(*text), !deprecated, version.clone())
        };
        let best = old_enough.max_by(|a, b| rank(a).cmp(&rank(b))).map(|(_, text)| text.clone());
        match (best, newest) {
            (Some(version), _) => found(&version).ok_or_else(none),
            (None, Some(young)) => Err(too_young(&young)),
            (None, None) => Err(none()),
        }
    }
}

fn versions(packument: &Packument) -> impl Iterator<Item = (Version, &String)> {
    packument.versions.keys().filter_map(|text| Some((Version::parse(text).ok()?, text)))
}

fn hint(packument: &Packument) -> String {
    packument.tags.get("latest").map(|latest| format!("; the latest is {latest}")).unwrap_or_default()
}

/// A peer's wish against what is picked already: what the function lists wins, two wishes must agree.
fn check_peer(name: &ModuleName, range: &str, before: &Picked) -> Result<(), ResolveError> {
    let satisfied = match (Range::parse(range), Version::parse(&before.version)) {
        (Ok(range), Ok(version)) => range.satisfies(&version),
        _ => true,
    };
    if satisfied || before.direct {
        return Ok(());
    }
    Err(ResolveError::PeerConflict { module: name.to_string(), first: before.range.clone(), second: range.to_owned() })
}
