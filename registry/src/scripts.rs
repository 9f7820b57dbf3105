//! Which modules may run install scripts. Everything that is not listed installs with scripts off, since that is how worms spread.

use hearth_model::{ModuleName, ModuleSpec};
use std::collections::BTreeSet;

const SHIPPED: &str = include_str!("../data/scripts-allowed.txt");

/// The allow list: the shipped one and what the operator adds.
#[derive(Debug, Clone)]
pub struct ScriptPolicy {
    allowed: BTreeSet<String>,
}

impl ScriptPolicy {
    /// The shipped list and these.
    #[must_use]
    pub fn new(more: &BTreeSet<String>) -> Self {
        let shipped = SHIPPED.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self { allowed: shipped.map(str::to_owned).chain(more.iter().cloned()).collect() }
    }

    /// Whether this module's scripts may run.
    #[must_use]
    pub fn allows(&self, spec: &ModuleSpec) -> bool {
        self.allows_name(&spec.name)
    }

    /// Whether scripts of modules with this name may run, also where they are installed as a dependency of another.
    #[must_use]
    pub fn allows_name(&self, name: &ModuleName) -> bool {
        self.allowed.contains(name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_listed_runs_scripts() {
        let policy = ScriptPolicy::new(&BTreeSet::from(["mine".to_owned()]));
        for (spec, allowed) in [("bcrypt@5.1.1", true), ("mine@1.0.0", true), ("lodash@4.17.21", false), ("bcrypt-evil@1.0.0", false)] {
            assert_eq!(policy.allows(&spec.parse().unwrap()), allowed, "{spec}");
        }
    }

    #[test]
    fn the_shipped_list_is_of_names() {
        let policy = ScriptPolicy::new(&BTreeSet::new());
        assert!(policy.allowed.len() > 10);
        for name in &policy.allowed {
            name.parse::<ModuleName>().unwrap();
        }
    }
}
