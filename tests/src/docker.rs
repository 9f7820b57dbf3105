//! What Docker says about one node's containers, through its command line: independent of the program under test.

use serde_json::Value;
use std::process::Command;

/// One node's view of the engine, by its label.
pub struct Docker {
    instance: String,
}

/// A container as `docker inspect` shows it.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its main process on this machine; 0 when it has ended.
    pub pid: u32,
    /// Everything that `docker inspect` says.
    pub inspected: Value,
}

/// Runs a program that must succeed and gives its output.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Docker {
    /// The containers with the label `hearth.instance={instance}`.
    #[must_use]
    pub fn of(instance: &str) -> Self {
        Self { instance: instance.to_owned() }
    }

    fn ids(&self, all: bool) -> Vec<String> {
        let label = format!("label=hearth.instance={}", self.instance);
        let flags = if all { "-aq" } else { "-q" };
        run("docker", &["ps", flags, "--no-trunc", "--filter", &label]).lines().map(str::to_owned).collect()
    }

    /// Those that run, oldest first. One that ends while this looks is left out.
    #[must_use]
    pub fn running(&self) -> Vec<Container> {
        let mut found: Vec<Container> = self.ids(false).iter().filter_map(|id| Container::inspect(id)).collect();
        found.sort_by_key(|c| c.inspected["Created"].as_str().unwrap_or_default().to_owned());
        found
    }

    /// How many there are, ended ones included.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ids(true).len()
    }

    /// The container on a slot of this node.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn on_slot(&self, slot: u64) -> Container {
        let label = slot.to_string();
        let found = self.running().into_iter().find(|c| c.inspected["Config"]["Labels"]["hearth.slot"] == *label);
        found.unwrap_or_else(|| panic!("no container on slot {slot} of {}", self.instance))
    }

    /// Removes what a process that did not start has left.
    pub fn sweep(&self) {
        self.remove_all();
    }

    /// Removes what is left, whatever its state, with the packet filter's table.
    pub(crate) fn remove_all(&self) {
        for id in self.ids(true) {
            let _ = Command::new("docker").args(["rm", "-f", "-v", &id]).output();
        }
        self.remove_filter();
    }

    /// A process that was killed, or whose containers were to outlive it, has left its rules: each packet of the machine would be asked by
    /// them for ever.
    fn remove_filter(&self) {
        let table = format!("hearth_{}", self.instance.replace('-', "_"));
        let Ok(listed) = Command::new("nft").args(["list", "table", "inet", &table]).output() else { return };
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        let Some(interfaces) = text.split("iifname \"").nth(1).and_then(|rest| rest.split('*').next()) else { return };
        let rules = Command::new("iptables").args(["-w", "5", "-S", "DOCKER-USER"]).output().map(|o| o.stdout).unwrap_or_default();
        for rule in String::from_utf8_lossy(&rules).lines().filter(|rule| rule.contains(interfaces)) {
            let _ = Command::new("iptables").args(["-w", "5", "-D"]).args(rule.split_whitespace().skip(1)).output();
        }
        let _ = Command::new("nft").args(["delete", "table", "inet", &table]).output();
    }
}

impl Container {
    fn inspect(id: &str) -> Option<Self> {
        let output = Command::new("docker").args(["inspect", id]).output().ok()?;
        // An empty list when it has gone meanwhile.
        let inspected: Value = serde_json::from_slice::<Vec<Value>>(&output.stdout).ok()?.into_iter().next()?;
        let pid = u32::try_from(inspected["State"]["Pid"].as_u64()?).ok()?;
        Some(Self { id: id.to_owned(), pid, inspected })
    }
}
