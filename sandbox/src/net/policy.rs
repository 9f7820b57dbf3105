//! Which containers may reach less than the public internet. Kept in this process and in the kernel's sets at once: a process that
//! starts anew reads them back, so that no container is ever let out while rules are replaced.

use hearth_model::{
    Egress,
    egress::{Destination, Host},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

/// Addresses that one name may stand for; more are left out.
const ADDRESSES_PER_NAME_MAX: usize = 16;
/// Entries for all ports are in a set of their own: the kernel refuses elements of one set that overlap.
const SETS: [&str; 4] = ["silent", "listed", "allowed", "allowed_all_ports"];

/// What one container's address may reach, as far as it is not the whole public internet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Policy {
    Silent,
    /// Elements of the sets `allowed` and `allowed_all_ports` without the container's own address, as `203.0.113.0/24 . 443`.
    Listed(BTreeSet<String>),
}

/// By container address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Policies(BTreeMap<Ipv4Addr, Policy>);

impl Policies {
    /// Elements of the sets, in their order in `SETS`, as nft wants them.
    pub fn sets(&self) -> [String; 4] {
        let mut sets: [Vec<String>; 4] = Default::default();
        for (address, policy) in &self.0 {
            match policy {
                Policy::Silent => sets[0].push(address.to_string()),
                Policy::Listed(allowed) => {
                    sets[1].push(address.to_string());
                    for to in allowed {
                        // With a port an element has a second part.
                        let at = if to.contains(" . ") { 2 } else { 3 };
                        sets[at].push(format!("{address} . {to}"));
                    }
                }
            }
        }
        sets.map(|elements| elements.join(", "))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Notes the policy and returns the commands that bring the kernel's sets from the one before to it, in one transaction. None
    /// where nothing changes.
    pub fn set(&mut self, table: &str, address: Ipv4Addr, policy: Option<Policy>) -> Option<String> {
        let before = match &policy {
            Some(policy) => self.0.insert(address, policy.clone()),
            None => self.0.remove(&address),
        };
        if before == policy {
            return None;
        }
        let elements = |policy: &Policy| {
            let mut one = Self::default();
            one.0.insert(address, policy.clone());
            one.sets()
        };
        let mut commands = String::new();
        for (verb, policy) in [("delete", before), ("add", policy)] {
            let Some(policy) = policy else { continue };
            for (set, elements) in SETS.iter().zip(elements(&policy)).filter(|(_, elements)| !elements.is_empty()) {
                commands.push_str(&format!("{verb} element inet {table} {set} {{ {elements} }}\n"));
            }
        }
        Some(commands)
    }

    /// What an earlier process left in the kernel, from `nft -j list table`. What cannot be read as a list leaves its container
    /// silent rather than free.
    pub fn of_table(json: &str) -> Self {
        let mut policies = Self::default();
        let Ok(table) = serde_json::from_str::<serde_json::Value>(json) else { return policies };
        let sets = table["nftables"].as_array().into_iter().flatten().filter_map(|object| object.get("set"));
        let mut elements: BTreeMap<&str, Vec<&serde_json::Value>> = BTreeMap::new();
        for set in sets {
            let name = set["name"].as_str().unwrap_or_default();
            elements.entry(name).or_default().extend(set["elem"].as_array().into_iter().flatten());
        }
        let address = |value: &serde_json::Value| value.as_str()?.parse::<Ipv4Addr>().ok();
        for silent in elements.get("silent").into_iter().flatten().filter_map(|v| address(v)) {
            policies.0.insert(silent, Policy::Silent);
        }
        for listed in elements.get("listed").into_iter().flatten().filter_map(|v| address(v)) {
            policies.0.insert(listed, Policy::Listed(BTreeSet::new()));
        }
        for element in ["allowed", "allowed_all_ports"].iter().filter_map(|set| elements.get(set)).flatten() {
            let parts: Vec<&serde_json::Value> = element["concat"].as_array().into_iter().flatten().collect();
            let (source, to) = match parts[..] {
                [source, to] => (address(source), network(to)),
                [source, to, port] => (address(source), network(to).zip(port.as_u64()).map(|(to, port)| format!("{to} . {port}"))),
                _ => continue,
            };
            if let (Some(source), Some(to)) = (source, to)
                && let Some(Policy::Listed(allowed)) = policies.0.get_mut(&source)
            {
                allowed.insert(to);
            }
        }
        policies
    }
}

fn network(value: &serde_json::Value) -> Option<String> {
    match value.get("prefix") {
        None => Some(value.as_str()?.parse::<Ipv4Addr>().ok()?.to_string()),
        Some(prefix) => Some(format!("{}/{}", prefix["addr"].as_str()?.parse::<Ipv4Addr>().ok()?, prefix["len"].as_u64()?)),
    }
}

/// Packets by address of a set with counters, from `nft -j list set`.
pub(super) fn counters(json: &str) -> BTreeMap<Ipv4Addr, u64> {
    let Ok(listed) = serde_json::from_str::<serde_json::Value>(json) else { return BTreeMap::new() };
    let sets = listed["nftables"].as_array().into_iter().flatten().filter_map(|object| object.get("set"));
    let elements = sets.filter_map(|set| set["elem"].as_array()).flatten();
    elements
        .filter_map(|element| {
            let element = &element["elem"];
            Some((element["val"].as_str()?.parse().ok()?, element["counter"]["packets"].as_u64()?))
        })
        .collect()
}

/// A tenant's policy with its names resolved.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Resolved {
    /// For the kernel; none for the public internet.
    pub policy: Option<Policy>,
    /// Lines for the container's table of hosts.
    pub hosts: String,
    /// Names that did not resolve.
    pub unresolved: Vec<String>,
}

/// Makes a policy out of what names resolve to now.
pub(super) fn resolved(egress: &Egress, addresses: &BTreeMap<String, Vec<Ipv4Addr>>) -> Resolved {
    let to = match egress {
        Egress::Public => return Resolved::default(),
        Egress::None => return Resolved { policy: Some(Policy::Silent), ..Resolved::default() },
        Egress::Allow { to } => to,
    };
    let mut resolved = Resolved::default();
    let mut allowed = BTreeSet::new();
    for Destination { host, port } in to {
        let with_port = |network: String| match port {
            Some(port) => format!("{network} . {port}"),
            None => network,
        };
        match host {
            Host::Network(address, 32) => drop(allowed.insert(with_port(address.to_string()))),
            Host::Network(address, prefix) => drop(allowed.insert(with_port(format!("{address}/{prefix}")))),
            Host::Name(name) => {
                let found = addresses.get(name).map(Vec::as_slice).unwrap_or_default();
                if found.is_empty() {
                    resolved.unresolved.push(name.clone());
                }
                for address in found.iter().take(ADDRESSES_PER_NAME_MAX) {
                    allowed.insert(with_port(address.to_string()));
                    let line = format!("{address} {name}\n");
                    // The same name may be listed with several ports.
                    if !resolved.hosts.contains(&line) {
                        resolved.hosts.push_str(&line);
                    }
                }
            }
        }
    }
    resolved.policy = Some(Policy::Listed(without_overlaps(allowed)));
    resolved
}

/// The kernel refuses overlapping intervals in one set: what is inside another entry with the same port adds nothing and goes.
fn without_overlaps(allowed: BTreeSet<String>) -> BTreeSet<String> {
    let parse = |text: &str| -> Option<(u32, u32, Option<String>)> {
        let (network, port) = text.split_once(" . ").map_or((text, None), |(n, p)| (n, Some(p.to_owned())));
        let (address, prefix) = network.split_once('/').unwrap_or((network, "32"));
        Some((address.parse::<Ipv4Addr>().ok()?.into(), prefix.parse().ok()?, port))
    };
    let all: Vec<_> = allowed.iter().filter_map(|text| parse(text)).collect();
    let inside = |a: &(u32, u32, Option<String>), b: &(u32, u32, Option<String>)| {
        let mask = u32::MAX.checked_shl(32 - b.1).unwrap_or(0);
        a != b && a.1 >= b.1 && a.0 & mask == b.0 & mask && a.2 == b.2
    };
    allowed.into_iter().filter(|text| parse(text).is_some_and(|a| !all.iter().any(|b| inside(&a, b)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(to: &[&str]) -> Egress {
        Egress::Allow { to: to.iter().map(|t| t.parse().unwrap()).collect() }
    }

    const CONTAINER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 7);

    #[test]
    fn a_list_becomes_elements_and_host_names() {
        let names = BTreeMap::from([("a.example.com".to_owned(), vec![Ipv4Addr::new(203, 0, 113, 1)])]);
        let list = allow(&["a.example.com:443", "a.example.com:80", "gone.example.com", "192.0.2.0/24:25", "192.0.2.9:25"]);
        let made = resolved(&list, &names);
        assert_eq!(made.hosts, "203.0.113.1 a.example.com\n");
        assert_eq!(made.unresolved, ["gone.example.com"]);
        let expected = ["192.0.2.0/24 . 25", "203.0.113.1 . 443", "203.0.113.1 . 80"].map(str::to_owned);
        assert_eq!(made.policy, Some(Policy::Listed(expected.into())), "what lies inside another entry is left out");
        assert_eq!(resolved(&Egress::Public, &names), Resolved::default());
    }

    #[test]
    fn changes_are_the_difference_and_nothing_for_the_same() {
        let mut policies = Policies::default();
        let listed = resolved(&allow(&["192.0.2.1:25"]), &BTreeMap::new()).policy;
        let added = policies.set("t", CONTAINER, listed.clone()).unwrap();
        assert_eq!(added, "add element inet t listed { 198.18.0.7 }\nadd element inet t allowed { 198.18.0.7 . 192.0.2.1 . 25 }\n");
        assert_eq!(policies.set("t", CONTAINER, listed), None);
        let removed = policies.set("t", CONTAINER, None).unwrap();
        assert!(removed.starts_with("delete element inet t listed"), "{removed}");
        assert!(policies.is_empty());
    }

    #[test]
    fn an_earlier_process_policies_come_back() {
        let json = r#"{"nftables": [{"metainfo": {}}, {"set": {"name": "silent", "elem": ["198.18.0.9"]}},
            {"set": {"name": "listed", "elem": ["198.18.0.7"]}},
            {"set": {"name": "allowed", "elem": [{"concat": ["198.18.0.7", {"prefix": {"addr": "192.0.2.0", "len": 24}}, 25]}]}},
            {"set": {"name": "allowed_all_ports", "elem": [{"concat": ["198.18.0.7", "203.0.113.1"]}]}}]}"#;
        let policies = Policies::of_table(json);
        assert_eq!(
            policies.sets(),
            ["198.18.0.9", "198.18.0.7", "198.18.0.7 . 192.0.2.0/24 . 25", "198.18.0.7 . 203.0.113.1"].map(str::to_owned)
        );
        assert_eq!(Policies::of_table("no json"), Policies::default());
    }
}
