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
mod rules;

pub use cidr::{Cidr, CidrError};

use rules::Ruleset;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{io, net::Ipv4Addr, path::Path, process::Stdio, sync::Arc, time::Duration};
use tokio::{io::AsyncWriteExt, process::Command, task::JoinHandle};

/// What containers see as their router and resolver. Link-local, so that it clashes with nothing on any machine; no interface
/// carries it, the packet filter sends what goes to its port 53 on to the node's resolvers.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// How long `nft` and `iptables` may take.
const TOOL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take until the rules are back after another program has flushed them.
const WATCH_INTERVAL: Duration = Duration::from_secs(10);
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
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            cidr: Cidr::new(Ipv4Addr::new(198, 18, 0, 0), 15),
            resolvers: Vec::new(),
            deny: Vec::new(),
            connections_max: 1_024,
        }
    }
}

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
}

struct Shared {
    ruleset: Ruleset,
    text: String,
}

impl Drop for Egress {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl Egress {
    /// Applies the rules of `instance` in this process's network namespace and keeps them in place.
    pub async fn start(config: &Config, instance: &str) -> Result<Start, NetError> {
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
        };
        let shared = Arc::new(Shared { text: ruleset.text(), ruleset });
        run("nft", &["-f", "-"], Some(&shared.text)).await?;
        warnings.extend(shared.pass_engine_filter().await);
        let watch = tokio::spawn(watch(Arc::clone(&shared)));
        Ok(Start::Running(Self { shared, links, watch }, warnings))
    }

    /// Gives the container with process `pid` its interface, address and routes.
    pub async fn attach(&self, slot: u32, pid: u32) -> Result<Ipv4Addr, NetError> {
        if slot > SLOT_MAX {
            return Err(NetError::Config {
                detail: format!("slot {slot} is above {SLOT_MAX}, the most that fits an interface's name"),
            });
        }
        self.links.attach(slot, pid).await
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
async fn watch(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(WATCH_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        if !shared.in_place().await {
            match run("nft", &["-f", "-"], Some(&shared.text)).await {
                Ok(_) => tracing::error!(
                    table = shared.ruleset.table,
                    "the packet filter of containers had been removed and is back; find out by whom"
                ),
                Err(error) => {
                    tracing::error!(table = shared.ruleset.table, %error, "containers are not filtered: the packet filter is gone and cannot be put back")
                }
            }
        }
        if let Some(warning) = shared.pass_engine_filter().await {
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
