//! The packet filter as text for `nft -f`: a pure function, so that what is allowed can be read and tested in one place.

use super::{Cidr, GATEWAY, policy::Policies};
use std::net::Ipv4Addr;

/// Everything that is not the public internet: this host, private networks, carrier networks, link-local with cloud metadata,
/// protocol assignments, 6to4 relays, benchmarking (where other nodes' containers may be), multicast, and what is reserved.
const DENIED: [&str; 12] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// What the rules depend on.
#[derive(Debug, Clone)]
pub(super) struct Ruleset {
    pub table: String,
    /// Containers' interfaces on the host start with it.
    pub prefix: String,
    pub cidr: Cidr,
    pub resolvers: Vec<Ipv4Addr>,
    pub denied: Vec<Cidr>,
    pub connections_max: u32,
    /// Bytes per second that one container may send, and as many that it may receive.
    pub bytes_per_s_max: u64,
}

impl Ruleset {
    /// Replaces the table as a whole, in one transaction: no packet meets half of it.
    pub(super) fn text(&self, policies: &Policies) -> String {
        let Self { table, prefix, cidr, connections_max, bytes_per_s_max, .. } = self;
        let [silent, listed, allowed, allowed_all_ports] = policies.sets().map(|elements| match elements.as_str() {
            "" => String::new(),
            elements => format!("\n\t\telements = {{ {elements} }}"),
        });
        let mut denied: Vec<String> = DENIED.iter().map(|&d| d.to_owned()).collect();
        denied.push(cidr.to_string());
        denied.extend(self.denied.iter().map(Cidr::to_string));
        let denied = denied.join(", ");
        let dns = self.dns();
        format!(
            r#"table inet {table}
delete table inet {table}
table inet {table} {{
	set denied {{
		type ipv4_addr
		flags interval
		auto-merge
		elements = {{ {denied} }}
	}}
	set connections {{
		type ipv4_addr
		size 65535
		flags dynamic
	}}
	# Connections that each container has opened, for the tenant's account.
	set opened {{
		type ipv4_addr
		size 65535
		flags dynamic
		counter
	}}
	set sending {{
		type ipv4_addr
		size 65535
		flags dynamic
	}}
	set receiving {{
		type ipv4_addr
		size 65535
		flags dynamic
	}}
	# Containers of tenants that may reach nothing, containers that have an allow list, and the lists.
	set silent {{
		type ipv4_addr{silent}
	}}
	set listed {{
		type ipv4_addr{listed}
	}}
	set allowed {{
		type ipv4_addr . ipv4_addr . inet_service
		flags interval{allowed}
	}}
	set allowed_all_ports {{
		type ipv4_addr . ipv4_addr
		flags interval{allowed_all_ports}
	}}
	# Before anything else: only IPv4, and only from the address that the interface was given. Every packet of the machine, the proxy's own
	# over loopback included, passes the base chains: each asks only whether the packet is a container's.
	chain guard {{
		type filter hook prerouting priority -310; policy accept;
		iifname "{prefix}*" jump arriving
	}}
	chain arriving {{
		meta nfproto != ipv4 drop
		fib saddr . iif oif missing drop
	}}
	chain resolve {{
		type nat hook prerouting priority -110; policy accept;
{dns}	}}
	# Ahead of other programs' filters: what is denied here stays denied whatever they accept.
	chain forward {{
		type filter hook forward priority -10; policy accept;
		iifname "{prefix}*" jump leaving
		oifname "{prefix}*" update @receiving {{ ip daddr limit rate over {bytes_per_s_max} bytes/second burst {bytes_per_s_max} bytes }} drop
		oifname "{prefix}*" ct state established,related accept
		oifname "{prefix}*" drop
	}}
	chain leaving {{
		ct state invalid drop
		update @sending {{ ip saddr limit rate over {bytes_per_s_max} bytes/second burst {bytes_per_s_max} bytes }} drop
		oifname "{prefix}*" goto refuse
		ip saddr @silent goto refuse
		ip saddr @listed jump by_list
		ct status dnat ct original ip daddr {GATEWAY} meta l4proto {{ tcp, udp }} th dport 53 accept
		ip daddr @denied goto refuse
		ct state established,related accept
		add @connections {{ ip saddr ct count over {connections_max} }} goto refuse
		ct state new update @opened {{ ip saddr }}
		accept
	}}
	# A list takes the resolver away as well: what is listed by name stands in the container's own table of hosts, and a question
	# about any other name would be a way out.
	chain by_list {{
		ct status dnat goto refuse
		# A name may come to stand for other addresses while connections to the former ones live.
		ct state established,related return
		meta l4proto {{ tcp, udp }} ip saddr . ip daddr . th dport @allowed return
		ip saddr . ip daddr @allowed_all_ports return
		goto refuse
	}}
	# At once rather than after a timeout, for the sake of functions; the kernel sends few ICMP errors per second, so a reset first.
	chain refuse {{
		meta l4proto tcp reject with tcp reset
		reject with icmp type admin-prohibited
	}}
	# Nothing of the host itself, but its resolver where that is on one of its own addresses.
	chain input {{
		type filter hook input priority -10; policy accept;
		iifname "{prefix}*" goto for_host
	}}
	chain for_host {{
		ip saddr @silent goto refuse
		ip saddr @listed goto refuse
		ct status dnat ct original ip daddr {GATEWAY} meta l4proto {{ tcp, udp }} th dport 53 accept
		goto refuse
	}}
	chain leave {{
		type nat hook postrouting priority 100; policy accept;
		ip saddr {cidr} oifname != "{prefix}*" masquerade
	}}
}}
"#
        )
    }

    fn dns(&self) -> String {
        let target = match self.resolvers.as_slice() {
            [] => return String::new(),
            [one] => one.to_string(),
            // Each new question goes to the next one, so that a client's second try finds a resolver that lives.
            many => {
                let map: Vec<String> = many.iter().enumerate().map(|(i, r)| format!("{i} : {r}")).collect();
                format!("numgen inc mod {} map {{ {} }}", many.len(), map.join(", "))
            }
        };
        let rule =
            |protocol| format!("\t\tiifname \"{}*\" ip daddr {GATEWAY} {protocol} dport 53 dnat ip to {target}\n", self.prefix);
        rule("udp") + &rule("tcp")
    }

    /// Arguments for `iptables -I`, `-C` and `-D`: lets containers' packets pass the engine's own filter.
    pub(super) fn engine_rules(&self) -> Vec<Vec<String>> {
        let interface = format!("{}+", self.prefix);
        let rule = |args: &[&str]| args.iter().map(|&a| a.to_owned()).collect();
        vec![
            rule(&["DOCKER-USER", "-i", &interface, "-j", "ACCEPT"]),
            rule(&["DOCKER-USER", "-o", &interface, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"]),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ruleset(resolvers: &[Ipv4Addr]) -> Ruleset {
        Ruleset {
            table: "hearth_n1".to_owned(),
            prefix: "hv12345x".to_owned(),
            cidr: "198.18.0.0/15".parse().unwrap(),
            resolvers: resolvers.to_vec(),
            denied: vec!["192.0.2.0/24".parse().unwrap()],
            connections_max: 1024,
            bytes_per_s_max: 1_000_000,
        }
    }

    /// By an interface or an address of theirs, or by standing in a chain that only such rules lead to.
    #[test]
    fn every_rule_is_bound_to_containers() {
        let text = ruleset(&[Ipv4Addr::new(10, 0, 0, 2)]).text(&Policies::default());
        let mut chain = "";
        for line in text.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix("chain ") {
                chain = name;
            }
            let verdict = ["accept", "drop", "masquerade", "goto refuse", "goto for_host", "jump leaving", "jump arriving"]
                .iter()
                .any(|v| line.ends_with(v))
                || line.contains("dnat ip to");
            let bound = line.contains(r#"ifname "hv12345x*""#)
                || line.starts_with("ip saddr 198.18.0.0/15")
                || ["leaving", "by_list", "arriving", "for_host"].iter().any(|c| chain.starts_with(c));
            assert!(!verdict || bound, "this rule would meet other traffic of the machine: {line}");
        }
    }

    #[test]
    fn what_is_denied_comes_before_what_is_accepted() {
        let text = ruleset(&[]).text(&Policies::default());
        let at = |needle: &str| text.find(needle).unwrap_or_else(|| panic!("{needle} is missing"));
        assert!(at("ip daddr @denied goto refuse") < at("ct state established,related accept\n\t\tadd @connections"));
        assert!(
            at("ip saddr @silent goto refuse\n\t\tip saddr @listed jump by_list") < at("th dport 53 accept"),
            "a list comes before the resolver"
        );
        for range in ["10.0.0.0/8", "169.254.0.0/16", "192.0.2.0/24", "198.18.0.0/15"] {
            assert!(text.contains(range), "{range}");
        }
        assert!(!text.contains("dnat ip to"), "no resolver, no rule");
    }

    #[test]
    fn several_resolvers_take_turns() {
        let text = ruleset(&[Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 3)]).text(&Policies::default());
        assert!(text.contains("dnat ip to numgen inc mod 2 map { 0 : 10.0.0.2, 1 : 10.0.0.3 }"));
    }
}
