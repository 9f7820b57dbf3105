//! The way out for containers: a routed veth pair per container, without a bridge, behind the node's own packet filter.
//!
//! The engine creates containers without a network, because its bridge adds 83 ms to a start. Once a container runs, and while it
//! waits in the pool, the node puts one end of a veth pair into its network namespace (about 2 ms over netlink, with no program
//! started), gives it one address and one route, and adds the route back on the host. Everything a container sends then passes
//! through the host's forwarding, where a table of rules that exists before the first container allows the public internet and
//! nothing else: no private, link-local or metadata address, no network the node itself is on, no other container, and nothing of
//! the host but the resolver, which is reached under [`GATEWAY`]. IPv4 only; IPv6 is off inside and dropped outside.
//!
//! A tunnel over a unix socket to a proxy in the node was the alternative. It needs no root, but works only for programs that know
//! of a proxy, which database drivers and raw sockets do not, and puts the node's process on the path of every byte.
//!
//! It refuses to weaken itself: where it cannot work there is no egress and [`Start::Unavailable`] says why. It must never stop
//! filtering while a container may run, so the rules stay when the node stops, until [`Egress::close`] finds no container left.

mod cidr;
mod link;
mod policy;
mod rules;

pub use cidr::{Cidr, CidrError};

use bytesize::ByteSize;
use futures_util::{StreamExt, stream};
use hearth_model::{Egress as EgressPolicy, egress::Host};
use policy::Policies;
use rules::Ruleset;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};
use tokio::{io::AsyncWriteExt, process::Command, runtime::Handle, task::JoinHandle};

/// What containers see as their router and resolver. Link-local, so that it clashes with nothing on any machine; no interface
/// carries it, the packet filter sends what goes to its port 53 on to the node's resolvers.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// Every container's table of hosts begins with this.
pub(crate) const HOSTS_BASE: &str = "127.0.0.1 localhost hearth\n::1 localhost\n";

/// How long `nft` and `iptables` may take.
const TOOL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take until the rules are back after another program has flushed them.
const WATCH_INTERVAL: Duration = Duration::from_secs(10);
/// How often names of allow lists are looked up again.
const LOOK_UP_INTERVAL: Duration = Duration::from_secs(60);
/// How long one name may take to resolve.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(3);
/// Names that are looked up at the same time.
const LOOK_UPS_MAX: usize = 8;
/// Digits of a slot in an interface's name: Linux allows 15 characters.
const SLOT_MAX: u32 = 9_999_999;

/// Whether containers reach the public internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// No network at all but loopback.
    None,
    /// The public internet, and nothing private. Needs root, `nft` and `net.ipv4.ip_forward = 1`.
    #[default]
    Public,
}

/// Settings of egress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whether there is any.
    pub mode: Mode,
    /// Containers' addresses, seen on this machine only. The default is the range kept for measuring network devices
    /// (198.18.0.0/15): unlike 10/8 or 172.16/12 no office, cloud or virtual network uses it.
    pub cidr: Cidr,
    /// Where containers' DNS questions go; empty for this machine's own resolvers.
    pub resolvers: Vec<Ipv4Addr>,
    /// Networks to deny besides the private ones and those of this machine's interfaces: public ranges that are in fact internal.
    pub deny: Vec<Cidr>,
    /// Connections that one container may have at once; the kernel's table of connections is shared by the whole machine.
    pub connections_max: u32,
    /// Bytes per second that one container may send, and as many that it may receive; what is more is dropped.
    pub bandwidth_max: ByteSize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            cidr: Cidr::new(Ipv4Addr::new(198, 18, 0, 0), 15),
            resolvers: Vec::new(),
            deny: Vec::new(),
            connections_max: 1_024,
            bandwidth_max: ByteSize::mib(50),
        }
    }
}

/// Below this a single burst of full packets would not pass.
const BANDWIDTH_MIN: u64 = 64 * 1024;
/// Smallest network for containers.
pub const PREFIX_MAX: u8 = 24;

impl Config {
    /// Refuses what cannot work.
    pub fn validate(&self) -> Result<(), NetError> {
        if self.cidr.prefix() > PREFIX_MAX || self.cidr.prefix() < 8 {
            return Err(NetError::Config { detail: format!("egress.cidr {} must be from /8 to /{PREFIX_MAX}", self.cidr) });
        }
        if self.connections_max == 0 {
            return Err(NetError::Config {
                detail: "egress.connections_max must be above zero; for no egress set egress.mode".to_owned(),
            });
        }
        if !(BANDWIDTH_MIN..=u64::from(u32::MAX)).contains(&self.bandwidth_max.as_u64()) {
            return Err(NetError::Config {
                detail: format!("egress.bandwidth_max {} must be from 64 KiB to 4 GiB a second", self.bandwidth_max),
            });
        }
        if self.resolvers.iter().any(|r| r.is_loopback() || r.is_unspecified()) {
            return Err(NetError::Config {
                detail: "egress.resolvers must be reachable by forwarded packets: a loopback address is not".to_owned(),
            });
        }
        Ok(())
    }
}

/// Why a container has no way out.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The settings cannot work.
    #[error("{detail}")]
    Config {
        /// Which and why.
        detail: String,
    },
    /// The kernel refused a change to interfaces, addresses or routes.
    #[error("{call}: {detail}")]
    Link {
        /// What was attempted.
        call: &'static str,
        /// The kernel's words.
        detail: String,
    },
    /// `nft` or `iptables` failed.
    #[error("{tool}: {detail}")]
    Tool {
        /// Which.
        tool: &'static str,
        /// Its words.
        detail: String,
    },
    /// No address of the range is free.
    #[error("no address is free in {cidr}: other nodes on this machine use them; give each its own egress.cidr")]
    Exhausted {
        /// The range.
        cidr: Cidr,
    },
}

/// What came of starting egress.
pub enum Start {
    /// Containers can be attached; with weaknesses an operator should know.
    Running(Egress, Vec<String>),
    /// This machine does not allow it, with the reason and the remedy.
    Unavailable(String),
}

/// The packet filter of one node, and the means to attach containers. Dropping it stops the watch over the rules, not the rules.
pub struct Egress {
    shared: Arc<Shared>,
    links: link::Links,
    watch: JoinHandle<()>,
    /// For what nobody waits for.
    aside: Handle,
}

struct Shared {
    ruleset: Ruleset,
    state: tokio::sync::Mutex<State>,
}

/// Guarded as one, so that the kernel's sets change in the order of this.
#[derive(Default)]
struct State {
    policies: Policies,
    /// Containers with an allow list that names hosts.
    listings: HashMap<Ipv4Addr, Listing>,
}

struct Listing {
    egress: EgressPolicy,
    hosts_file: PathBuf,
    addresses: BTreeMap<String, Vec<Ipv4Addr>>,
}

/// What went through one container's interface since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Bytes that the container sent, those that were refused included.
    pub sent_bytes: u64,
    /// Bytes that it received.
    pub received_bytes: u64,
    /// Connections that it opened. The kernel counts them by address, so that a slot's former container may be included.
    pub connections: u64,
}

impl Drop for Egress {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl Egress {
    /// Applies the rules of `instance` in this process's network namespace and keeps them in place. What nobody waits for runs in `aside`.
    pub async fn start(config: &Config, instance: &str, aside: Handle) -> Result<Start, NetError> {
        config.validate()?;
        if !rustix::process::geteuid().is_root() {
            return Ok(Start::Unavailable("egress is off: it needs root; run as root, or set egress.mode = \"none\"".to_owned()));
        }
        let forwarding = tokio::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").await.unwrap_or_default();
        if forwarding.trim() != "1" {
            return Ok(Start::Unavailable(
                "egress is off: this machine does not forward; run `sysctl -w net.ipv4.ip_forward=1`".to_owned(),
            ));
        }
        if let Err(NetError::Tool { detail, .. }) = run("nft", &["--version"], None).await {
            return Ok(Start::Unavailable(format!("egress is off: nft is missing ({detail}); Debian: apt-get install nftables")));
        }
        let mut warnings = Vec::new();
        let links = link::Links::open(config.cidr, prefix(instance), seed(instance)).await?;
        let resolvers = resolvers(config).await;
        if resolvers.is_empty() {
            warnings.push(
                "egress: containers cannot resolve names, because this machine's resolvers are on loopback only; set egress.resolvers".to_owned(),
            );
        }
        let mut denied = config.deny.clone();
        denied.extend(links.own_networks().await?);
        let ruleset = Ruleset {
            table: format!("hearth_{}", instance.replace('-', "_")),
            prefix: prefix(instance),
            cidr: config.cidr,
            resolvers,
            denied,
            connections_max: config.connections_max,
            bytes_per_s_max: config.bandwidth_max.as_u64(),
        };
        // There is no table where no process of this instance ran before.
        let left = run("nft", &["-j", "list", "table", "inet", &ruleset.table], None).await.unwrap_or_default();
        let state = State { policies: Policies::of_table(&left), listings: HashMap::new() };
        let text = ruleset.text(&state.policies);
        let shared = Arc::new(Shared { state: tokio::sync::Mutex::new(state), ruleset });
        run("nft", &["-f", "-"], Some(&text)).await?;
        warnings.extend(shared.pass_engine_filter().await);
        let watch = tokio::spawn(watch(Arc::clone(&shared), aside.clone()));
        Ok(Start::Running(Self { shared, links, watch, aside }, warnings))
    }

    /// Gives the container with process `pid` its interface, address and routes.
    pub async fn attach(&self, slot: u32, pid: u32) -> Result<Ipv4Addr, NetError> {
        if slot > SLOT_MAX {
            return Err(NetError::Config {
                detail: format!("slot {slot} is above {SLOT_MAX}, the most that fits an interface's name"),
            });
        }
        let address = self.links.attach(slot, pid).await?;
        // The address may have been another container's.
        self.shared.set_policy(address, None).await?;
        Ok(address)
    }

    /// Restricts the container of this slot. Names of an allow list are resolved here and now, looked up again every minute, and
    /// written to `hosts_file`, the container's table of hosts.
    pub async fn restrict(&self, slot: u32, egress: &EgressPolicy, hosts_file: PathBuf) -> Result<(), NetError> {
        let Some(address) = self.links.addresses().await?.remove(&slot) else {
            return Err(NetError::Link { call: "restrict", detail: format!("slot {slot} has no address") });
        };
        let addresses = resolve_names(egress, BTreeMap::new()).await;
        let resolved = policy::resolved(egress, &addresses);
        for name in &resolved.unresolved {
            tracing::warn!(name, "a name of an allow list does not resolve");
        }
        if matches!(egress, EgressPolicy::Allow { .. }) {
            write_hosts(&hosts_file, &resolved.hosts).await?;
        }
        self.shared.set_policy(address, resolved.policy).await?;
        let mut state = self.shared.state.lock().await;
        if addresses.is_empty() {
            state.listings.remove(&address);
        } else {
            state.listings.insert(address, Listing { egress: egress.clone(), hosts_file, addresses });
        }
        Ok(())
    }

    /// Forgets the policy of a container that is about to go. Free where nobody has one.
    pub async fn forget(&self, slot: u32) -> Result<(), NetError> {
        if self.shared.state.lock().await.policies.is_empty() {
            return Ok(());
        }
        let Some(address) = self.links.addresses().await?.remove(&slot) else { return Ok(()) };
        self.shared.state.lock().await.listings.remove(&address);
        self.shared.set_policy(address, None).await
    }

    /// What went through each slot's interface.
    pub async fn traffic(&self) -> Result<HashMap<u32, Traffic>, NetError> {
        let mut traffic = self.links.traffic().await?;
        let shared = Arc::clone(&self.shared);
        let opened = self.aside.spawn(async move {
            let listed = run("nft", &["-j", "list", "set", "inet", &shared.ruleset.table, "opened"], None).await?;
            Ok(policy::counters(&listed))
        });
        let opened = opened.await.map_err(|e| NetError::Tool { tool: "nft", detail: e.to_string() })??;
        for (slot, address) in self.links.addresses().await? {
            if let (Some(traffic), Some(connections)) = (traffic.get_mut(&slot), opened.get(&address)) {
                traffic.connections = *connections;
            }
        }
        Ok(traffic)
    }

    /// Removes the rules. Only for when no container of the instance is left: one that still runs would be unfiltered.
    pub async fn close(&self) -> Result<(), NetError> {
        self.watch.abort();
        for rule in self.shared.ruleset.engine_rules() {
            let mut args = vec!["-w", "5", "-D"];
            args.extend(rule.iter().map(String::as_str));
            // The rule is not there where the engine has no packet filter.
            let _ = run("iptables", &args, None).await;
        }
        run("nft", &["delete", "table", "inet", &self.shared.ruleset.table], None).await.map(|_| ())
    }
}

impl Shared {
    async fn set_policy(&self, address: Ipv4Addr, policy: Option<policy::Policy>) -> Result<(), NetError> {
        let mut state = self.state.lock().await;
        let mut policies = state.policies.clone();
        let Some(commands) = policies.set(&self.ruleset.table, address, policy) else { return Ok(()) };
        if let Err(error) = run("nft", &["-f", "-"], Some(&commands)).await {
            // Somebody has changed the sets meanwhile: all of it is put in place anew, in one transaction.
            tracing::warn!(%error, "the packet filter was not as it was left; replacing it");
            run("nft", &["-f", "-"], Some(&self.ruleset.text(&policies))).await?;
        }
        state.policies = policies;
        Ok(())
    }

    /// Follows names that have come to stand for other addresses. A name that does not resolve keeps its last ones.
    async fn look_up_again(&self) {
        let listings: Vec<_> = {
            let state = self.state.lock().await;
            let copy = |(a, l): (&Ipv4Addr, &Listing)| (*a, l.egress.clone(), l.addresses.clone(), l.hosts_file.clone());
            state.listings.iter().map(copy).collect()
        };
        for (address, egress, before, hosts_file) in listings {
            let addresses = resolve_names(&egress, before.clone()).await;
            if addresses == before {
                continue;
            }
            let resolved = policy::resolved(&egress, &addresses);
            // Still the same container: one that is gone meanwhile must not get its policy back.
            let known = match self.state.lock().await.listings.get_mut(&address) {
                Some(listing) if listing.egress == egress => {
                    listing.addresses = addresses;
                    true
                }
                _ => false,
            };
            if !known {
                continue;
            }
            let followed = async {
                self.set_policy(address, resolved.policy).await?;
                write_hosts(&hosts_file, &resolved.hosts).await
            };
            if let Err(error) = followed.await {
                tracing::warn!(%address, %error, "an allow list could not follow its names to their new addresses");
            }
        }
    }

    /// Docker sets the policy of forwarding to drop, and a packet must pass every filter: ours alone cannot let it through. Rules in
    /// the chain Docker keeps for its users do, while our own denials stand whatever the engine's filter says.
    async fn pass_engine_filter(&self) -> Option<String> {
        let forward = match run("iptables", &["-w", "5", "-S", "FORWARD"], None).await {
            Ok(text) => text,
            // No iptables: then Docker has set no policy with it either.
            Err(_) => return None,
        };
        if run("iptables", &["-w", "5", "-S", "DOCKER-USER"], None).await.is_err() {
            return forward.contains("-P FORWARD DROP").then(|| {
                format!(
                    "egress: the machine's packet filter drops forwarded packets (iptables policy of FORWARD), so containers reach nothing; accept those from and to interfaces {}+",
                    self.ruleset.prefix
                )
            });
        }
        for rule in self.ruleset.engine_rules() {
            let with = |verb: &'static str| -> Vec<&str> {
                ["-w", "5", verb].into_iter().chain(rule.iter().map(String::as_str)).collect()
            };
            if run("iptables", &with("-C"), None).await.is_ok() {
                continue;
            }
            if let Err(error) = run("iptables", &with("-I"), None).await {
                return Some(format!(
                    "egress: no rule could be added to Docker's chain DOCKER-USER, so containers may reach nothing: {error}"
                ));
            }
        }
        None
    }

    async fn in_place(&self) -> bool {
        run("nft", &["list", "chain", "inet", &self.ruleset.table, "forward"], None).await.is_ok()
    }
}

/// Puts the rules back when another program (a firewall's restart) has flushed them. The node starts nothing without them, and the
/// time until they are back is bounded by the interval.
async fn watch(shared: Arc<Shared>, aside: Handle) {
    let mut ticks = tokio::time::interval(WATCH_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut looked_up = tokio::time::Instant::now();
    loop {
        ticks.tick().await;
        if looked_up.elapsed() >= LOOK_UP_INTERVAL {
            looked_up = tokio::time::Instant::now();
            // Not aside: claims wait for the lock that it holds.
            shared.look_up_again().await;
        }
        let looking = Arc::clone(&shared);
        let looked = aside.spawn(async move { (looking.in_place().await, looking.pass_engine_filter().await) });
        let (in_place, warning) = match looked.await {
            Ok(looked) => looked,
            Err(error) => {
                tracing::error!(%error, "the packet filter could not be looked at; trying again");
                continue;
            }
        };
        if !in_place {
            let text = shared.ruleset.text(&shared.state.lock().await.policies);
            match run("nft", &["-f", "-"], Some(&text)).await {
                Ok(_) => tracing::error!(
                    table = shared.ruleset.table,
                    "the packet filter of containers had been removed and is back; find out by whom"
                ),
                Err(error) => {
                    tracing::error!(table = shared.ruleset.table, %error, "containers are not filtered: the packet filter is gone and cannot be put back")
                }
            }
        }
        if let Some(warning) = warning {
            tracing::warn!("{warning}");
        }
    }
}

/// Fails if process `pid` is in the network namespace of this process or of the machine. The engine was told otherwise; that a
/// tenant is cut off is worth looking at all the same.
pub(crate) fn require_own_namespace(pid: u32) -> Result<(), NetError> {
    let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/net")).ok();
    let Some(own) = namespace(&pid.to_string()) else {
        // Not ours to see without root, or gone already.
        return Ok(());
    };
    for shared in ["self", "1"] {
        if namespace(shared).as_ref() == Some(&own) {
            return Err(NetError::Link {
                call: "check isolation",
                detail: format!("process {pid} shares the machine's network namespace"),
            });
        }
    }
    Ok(())
}

/// Interfaces of one instance share a prefix that no other instance on the machine has.
fn prefix(instance: &str) -> String {
    format!("hv{}x", &hex::encode(Sha256::digest(instance.as_bytes()))[..5])
}

/// Where an instance starts in the range, so that two on one machine seldom meet.
fn seed(instance: &str) -> u32 {
    let digest = Sha256::digest(instance.as_bytes());
    u32::from_be_bytes([digest[8], digest[9], digest[10], digest[11]])
}

/// What the names of an allow list stand for; `before` where a name does not resolve now. Sorted, because resolvers shuffle.
async fn resolve_names(egress: &EgressPolicy, mut before: BTreeMap<String, Vec<Ipv4Addr>>) -> BTreeMap<String, Vec<Ipv4Addr>> {
    let EgressPolicy::Allow { to } = egress else { return BTreeMap::new() };
    let names: BTreeSet<String> =
        to.iter().filter_map(|d| if let Host::Name(name) = &d.host { Some(name.clone()) } else { None }).collect();
    let found: Vec<(String, Option<Vec<Ipv4Addr>>)> = stream::iter(names)
        .map(|name| async move {
            let looked_up = tokio::time::timeout(LOOK_UP_TIMEOUT, tokio::net::lookup_host((name.as_str(), 0))).await;
            let addresses = looked_up.ok().and_then(Result::ok).map(|found| {
                let v4 = found.filter_map(|a| if let SocketAddr::V4(a) = a { Some(*a.ip()) } else { None });
                v4.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
            });
            (name, addresses)
        })
        .buffer_unordered(LOOK_UPS_MAX)
        .collect()
        .await;
    found
        .into_iter()
        .map(|(name, addresses)| {
            let addresses = addresses.or_else(|| before.remove(&name)).unwrap_or_default();
            (name, addresses)
        })
        .collect()
}

/// Written in place, because the file is mounted into the container.
async fn write_hosts(file: &Path, lines: &str) -> Result<(), NetError> {
    let text = format!("{HOSTS_BASE}{lines}");
    let fail =
        |e: io::Error| NetError::Link { call: "write the container's table of hosts", detail: format!("{}: {e}", file.display()) };
    tokio::fs::write(file, text).await.map_err(fail)
}

async fn resolvers(config: &Config) -> Vec<Ipv4Addr> {
    if !config.resolvers.is_empty() {
        return config.resolvers.clone();
    }
    // systemd's stub listens on loopback, where forwarded packets do not get; the file behind it has the real ones.
    for path in ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"] {
        let found = parse_resolvers(&tokio::fs::read_to_string(Path::new(path)).await.unwrap_or_default());
        if !found.is_empty() {
            return found;
        }
    }
    Vec::new()
}

fn parse_resolvers(text: &str) -> Vec<Ipv4Addr> {
    text.lines()
        .filter_map(|line| line.strip_prefix("nameserver")?.trim().parse::<Ipv4Addr>().ok())
        .filter(|address| !address.is_loopback() && !address.is_unspecified())
        .take(3)
        .collect()
}

async fn run(tool: &'static str, args: &[&str], input: Option<&str>) -> Result<String, NetError> {
    let failed = |detail: String| NetError::Tool { tool, detail };
    let io = |error: io::Error| failed(error.to_string());
    let work = async {
        let mut child = Command::new(tool)
            .args(args)
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(io)?;
        if let (Some(mut stdin), Some(text)) = (child.stdin.take(), input) {
            stdin.write_all(text.as_bytes()).await.map_err(io)?;
        }
        let output = child.wait_with_output().await.map_err(io)?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(failed(format!("{} ({})", String::from_utf8_lossy(&output.stderr).trim(), output.status)))
        }
    };
    tokio::time::timeout(TOOL_TIMEOUT, work).await.map_err(|_| failed(format!("no end within {TOOL_TIMEOUT:?}")))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_in_the_machines_namespace_is_refused() {
        assert!(require_own_namespace(std::process::id()).is_err());
    }

    #[test]
    fn interface_names_fit_and_differ_between_instances() {
        assert!(format!("{}{SLOT_MAX}", prefix("n1")).len() <= 15);
        assert_ne!(prefix("n1"), prefix("n2"));
        assert_ne!(seed("n1"), seed("n2"));
    }

    #[test]
    fn only_resolvers_that_forwarded_packets_reach_are_taken() {
        let text = "search example.org\nnameserver 127.0.0.53\nnameserver 10.0.0.2\nnameserver fd00::1\nnameserver\t192.0.2.1\n";
        assert_eq!(parse_resolvers(text), [Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(192, 0, 2, 1)]);
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        Config::default().validate().unwrap();
        let bad = [
            Config { cidr: Cidr::new(Ipv4Addr::new(198, 18, 0, 0), PREFIX_MAX + 1), ..Config::default() },
            Config { connections_max: 0, ..Config::default() },
            Config { resolvers: vec![Ipv4Addr::LOCALHOST], ..Config::default() },
        ];
        for config in bad {
            assert!(matches!(config.validate(), Err(NetError::Config { .. })), "{config:?}");
        }
    }
}
