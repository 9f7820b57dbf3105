//! Which modules may run install scripts. The list is of native modules that do not work without; everything else installs with scripts
//! off, since that is how worms spread.

use hearth_model::ModuleSpec;
use std::collections::BTreeSet;

/// Native modules that compile, or fetch what they need from the registry, when they are installed.
const SHIPPED: &[&str] = &[
    "argon2",
    "bcrypt",
    "better-sqlite3",
    "bufferutil",
    "canvas",
    "cpu-features",
    "esbuild",
    "farmhash",
    "fsevents",
    "leveldown",
    "libpq",
    "libxmljs2",
    "lz4",
    "msgpackr-extract",
    "node-expat",
    "node-sass",
    "protobufjs",
    "re2",
    "sharp",
    "snappy",
    "sodium-native",
    "sqlite3",
    "ssh2",
    "utf-8-validate",
    "zeromq",
];

/// The allow list.
#[derive(Debug, Clone)]
pub struct ScriptPolicy {
    allowed: BTreeSet<String>,
}

impl ScriptPolicy {
    /// The shipped list and these.
    #[must_use]
    pub fn new(more: &BTreeSet<String>) -> Self {
        Self { allowed: SHIPPED.iter().map(|s| (*s).to_owned()).chain(more.iter().cloned()).collect() }
    }

    /// Whether this module's scripts may run.
    #[must_use]
    pub fn allows(&self, spec: &ModuleSpec) -> bool {
        self.allowed.contains(spec.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_listed_runs_scripts() {
        let policy = ScriptPolicy::new(&BTreeSet::from(["mine".to_owned()]));
        for (spec, allowed) in
            [("bcrypt@5.1.1", true), ("mine@1.0.0", true), ("lodash@4.17.21", false), ("bcrypt-evil@1.0.0", false)]
        {
            assert_eq!(policy.allows(&spec.parse().unwrap()), allowed, "{spec}");
        }
    }
}
