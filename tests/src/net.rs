//! A network of this machine's own making: a namespace for each member, joined by a bridge in one more, and ways to cut members off from
//! each other without anybody being told. Nothing of it is reachable from elsewhere, and all of it goes with the value.

use std::{
    io::Write,
    net::Ipv4Addr,
    process::{Command, Stdio},
};

/// Where members are; a range that nothing else here uses.
const SUBNET: [u8; 3] = [10, 213, 7];

/// One network at a time in a process.
pub struct Net {
    tag: String,
    /// Interface of this process's own namespace.
    own: String,
    members: Vec<String>,
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Net {
    /// A network with this process in it, at [`Net::own_address`].
    ///
    /// # Panics
    /// Without root or `ip`.
    #[must_use]
    pub fn new(tag: &str) -> Self {
        let own = format!("hc{}", std::process::id() % 1_000_000);
        let net = Self { tag: tag.to_owned(), own: own.clone(), members: Vec::new() };
        let switch = net.namespace("switch");
        run("ip", &["netns", "add", &switch]);
        run("ip", &["-n", &switch, "link", "add", "br0", "type", "bridge"]);
        run("ip", &["-n", &switch, "link", "set", "br0", "up"]);
        run("ip", &["link", "add", &own, "type", "veth", "peer", "name", "own", "netns", &switch]);
        run("ip", &["-n", &switch, "link", "set", "own", "master", "br0", "up"]);
        run("ip", &["addr", "add", &format!("{}/24", Self::own_address()), "dev", &own]);
        run("ip", &["link", "set", &own, "up"]);
        net
    }

    /// Where this process is.
    #[must_use]
    pub fn own_address() -> Ipv4Addr {
        Ipv4Addr::new(SUBNET[0], SUBNET[1], SUBNET[2], 1)
    }

    fn namespace(&self, name: &str) -> String {
        format!("hearth-{}-{name}", self.tag)
    }

    /// Adds a member and gives its address.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn join(&mut self, name: &str) -> Ipv4Addr {
        let (switch, namespace) = (self.namespace("switch"), self.namespace(name));
        self.members.push(name.to_owned());
        let (port, address) = (format!("p{}", self.members.len()), self.address(name));
        run("ip", &["netns", "add", &namespace]);
        run("ip", &["-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &namespace]);
        run("ip", &["-n", &switch, "link", "set", &port, "master", "br0", "up"]);
        run("ip", &["-n", &namespace, "addr", "add", &format!("{address}/24"), "dev", "eth0"]);
        run("ip", &["-n", &namespace, "link", "set", "eth0", "up"]);
        run("ip", &["-n", &namespace, "link", "set", "lo", "up"]);
        address
    }

    /// A member's address.
    ///
    /// # Panics
    /// When there is no such member.
    #[must_use]
    pub fn address(&self, name: &str) -> Ipv4Addr {
        let at = self.members.iter().position(|member| member == name).unwrap_or_else(|| panic!("{name} is not in the network"));
        Ipv4Addr::new(SUBNET[0], SUBNET[1], SUBNET[2], u8::try_from(at + 10).expect("few members"))
    }

    /// The file that stands for a member's namespace.
    #[must_use]
    pub fn file(&self, name: &str) -> String {
        format!("/run/netns/{}", self.namespace(name))
    }

    fn filter(&self, name: &str, rules: &str) {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.file(name))).args(["nft", "-f", "-"]).stdin(Stdio::piped());
        let mut child = command.spawn().expect("nsenter");
        child.stdin.take().expect("a pipe").write_all(rules.as_bytes()).expect("nft reads");
        assert!(child.wait().expect("nft").success(), "nft: {rules}");
    }

    /// From now on nothing passes between `one` and the others, in either direction, and nobody is told.
    pub fn cut(&self, one: &str, others: &[&str]) {
        let table = "add table inet cut\nadd chain inet cut i { type filter hook input priority 0; }\n";
        let drop = |from: Ipv4Addr| format!("add rule inet cut i ip saddr {from} drop\n");
        let from_others: String = others.iter().map(|other| drop(self.address(other))).collect();
        self.filter(one, &format!("{table}{from_others}"));
        for other in others {
            self.filter(other, &format!("{table}{}", drop(self.address(one))));
        }
    }

    /// All cuts are mended.
    pub fn heal(&self) {
        for member in &self.members {
            self.filter(member, "add table inet cut\ndelete table inet cut\n");
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", &self.own]).status();
        for name in self.members.iter().map(String::as_str).chain(["switch"]) {
            let _ = Command::new("ip").args(["netns", "delete", &self.namespace(name)]).status();
        }
    }
}
