//! The way out, tried from real containers inside a world that the test makes of network namespaces: a router, in which the sandbox
//! works, and an internet with one listener on a public address, many on private ones, and a resolver. Nothing leaves the machine.
//! Needs root, an engine, `ip`, `nft`, `iptables` and `nsenter`. The engine itself may run in any network namespace.

#![allow(clippy::print_stderr, reason = "building the image takes a while and says so")]

mod support;

use hearth_model::Egress;
use hearth_sandbox::{
    Purpose, Running, Sandbox,
    docker::{Config, DockerSandbox},
    image,
    net::{self, Mode},
};
use serde_json::{Value, json};
use std::{
    net::Ipv4Addr,
    process::{Child, Command, Stdio},
    time::Duration,
};
use support::{Cleanup, Slots, eval, run};

/// Set in the process that runs inside the router.
const INSIDE: &str = "HEARTH_TEST_INSIDE_ROUTER";
const PUBLIC: &str = "203.0.113.10";
/// The router's own addresses: towards the internet, and a public one that is nobody's neighbour.
const ROUTER: [&str; 2] = ["198.51.100.1", "203.0.113.77"];
const RESOLVER: &str = "10.77.0.53";
/// One of each kind that a container must not reach; all have a listener that the router itself does reach.
const PRIVATE: [&str; 12] = [
    RESOLVER,
    "10.77.0.10",
    "172.16.9.10",
    "172.31.9.10",
    "192.168.77.10",
    "169.254.169.254",
    "169.254.170.2",
    "100.64.7.10",
    "192.0.0.8",
    "198.18.200.200",
    "198.51.100.2",
    "203.0.113.200",
];
/// Denied by the configuration, though public.
const DENIED: &str = "203.0.113.192/26";
const CONNECTIONS_MAX: u32 = 20;

/// Answers every connection with the address it came from, and HTTP on port 81, where `?to=` is redirected to. Answers a DNS question with
/// the address that the name begins with (`10-77-0-10.example.org`), with the public and a private one by turns for `rebind.`, and with
/// the public one otherwise.
const INTERNET: &str = r"
const net = require('node:net'), dgram = require('node:dgram');
const serve = (port) => net.createServer((s) => { s.on('error', () => {}); s.write(s.remoteAddress + '\n'); }).listen(port, '0.0.0.0');
serve(80); serve(53);
require('node:http').createServer((q, r) => {
  const to = new URL(q.url, 'http://x').searchParams.get('to');
  if (to) r.writeHead(302, { location: to }).end(); else r.end('reached');
}).listen(81, '0.0.0.0');
let turns = 0;
const addressOf = (label) => {
  if (/^(\d+-){3}\d+$/.test(label)) return label.split('-').map(Number);
  return label === 'rebind' && turns++ % 2 ? [10, 77, 0, 10] : [203, 0, 113, 10];
};
const udp = dgram.createSocket('udp4');
udp.on('message', (q, from) => {
  const end = q.indexOf(0, 12) + 5;
  const head = Buffer.from(q.subarray(0, 12));
  head.writeUInt16BE(0x8180, 2); head.writeUInt16BE(1, 4); head.writeUInt16BE(0, 6); head.writeUInt16BE(0, 8); head.writeUInt16BE(0, 10);
  const isA = q.readUInt16BE(end - 4) === 1;
  if (isA) head.writeUInt16BE(1, 6);
  const answer = () => Buffer.from([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, ...addressOf(q.toString('latin1', 13, 13 + q[12]))]);
  udp.send(Buffer.concat([head, q.subarray(12, end), ...(isA ? [answer()] : [])]), from.port, from.address);
});
// On its own address, because an answer has to come from the address that was asked.
const has = Object.values(require('node:os').networkInterfaces()).flat().some((a) => a.address === '10.77.0.53');
udp.bind(53, has ? '10.77.0.53' : '127.0.0.1', () => console.log('ready'));
";

struct World {
    router: String,
    internet: String,
    listeners: Vec<Child>,
}

impl World {
    fn new() -> Self {
        let pid = std::process::id();
        let mut world = Self { router: format!("hearth-r{pid}"), internet: format!("hearth-i{pid}"), listeners: Vec::new() };
        let (router, internet) = (world.router.clone(), world.internet.clone());
        for namespace in [&router, &internet] {
            run("ip", &["netns", "add", namespace]);
            run("ip", &["-n", namespace, "link", "set", "lo", "up"]);
        }
        let (a, b) = (format!("ra{pid}"), format!("rb{pid}"));
        run("ip", &["-n", &router, "link", "add", &a, "type", "veth", "peer", "name", &b, "netns", &internet]);
        for (namespace, link, address) in [(&router, &a, ROUTER[0]), (&internet, &b, "198.51.100.2")] {
            run("ip", &["-n", namespace, "addr", "add", &format!("{address}/30"), "dev", link]);
            run("ip", &["-n", namespace, "link", "set", link, "up"]);
        }
        run("ip", &["-n", &router, "addr", "add", &format!("{}/32", ROUTER[1]), "dev", "lo"]);
        run("ip", &["-n", &router, "route", "add", "default", "via", "198.51.100.2"]);
        // A way back to containers, so that only the filter keeps the internet from calling them.
        run("ip", &["-n", &internet, "route", "add", "198.18.0.0/15", "via", ROUTER[0]]);
        for address in PRIVATE.iter().chain([&PUBLIC]).filter(|a| **a != "198.51.100.2") {
            run("ip", &["-n", &internet, "addr", "add", &format!("{address}/32"), "dev", "lo"]);
        }
        let inside = format!("--net=/run/netns/{router}");
        run("nsenter", &[&inside, "sysctl", "-w", "net.ipv4.ip_forward=1"]);
        // What Docker does to a machine that it runs on.
        for rule in ["-P FORWARD DROP", "-N DOCKER-USER", "-A FORWARD -j DOCKER-USER"] {
            run("nsenter", &[[inside.as_str(), "iptables"].as_slice(), &rule.split(' ').collect::<Vec<_>>()].concat());
        }
        for namespace in [&router, &internet] {
            world.listeners.push(listen(namespace));
        }
        world
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for listener in &mut self.listeners {
            let _ = listener.kill();
            let _ = listener.wait();
        }
        for namespace in [&self.router, &self.internet] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).output();
        }
    }
}

fn listen(namespace: &str) -> Child {
    let mut child = Command::new("nsenter")
        .args([&format!("--net=/run/netns/{namespace}"), "node", "-e", INTERNET])
        .stdout(Stdio::piped())
        .spawn()
        .expect("nsenter");
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.as_mut().expect("piped")), &mut line).expect("node");
    assert_eq!(line, "ready\n");
    child
}

/// Makes the world and runs itself again inside its router, where it does the checks.
#[test]
fn containers_reach_the_public_internet_and_nothing_else() {
    if let Ok(internet) = std::env::var(INSIDE) {
        tokio::runtime::Runtime::new().unwrap().block_on(inside_the_router(internet));
        return;
    }
    let world = World::new();
    let inside = format!("--net=/run/netns/{}", world.router);
    let status = Command::new("nsenter")
        .arg(inside)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "containers_reach_the_public_internet_and_nothing_else", "--nocapture"])
        .env(INSIDE, &world.internet)
        .status()
        .expect("nsenter");
    assert!(status.success(), "a check inside the router failed, see above");
}

async fn inside_the_router(internet: String) {
    let config = Config {
        instance: format!("t{}-egress", std::process::id()),
        egress: net::Config {
            mode: Mode::Public,
            resolvers: vec![RESOLVER.parse().unwrap()],
            deny: vec![DENIED.parse().unwrap()],
            connections_max: CONNECTIONS_MAX,
            ..net::Config::default()
        },
        oci_runtimes: vec!["runsc".to_owned()],
        ..Config::default()
    };
    let _cleanup = Cleanup::new(&config.instance);
    let slots = Slots::new();
    let sandbox = DockerSandbox::connect(config.clone()).await.expect("an engine, and egress");
    sandbox.ensure_image(&image::default_cache_dir(), Purpose::Runtime, &|line| eprintln!("{line}")).await.expect("image");
    let described = sandbox.describe().await.unwrap();
    assert!(described.engine.ends_with("egress public"), "{described:?}");
    assert!(described.warnings.iter().all(|w| !w.starts_with("egress")), "{described:?}");

    let first = sandbox.create(&slots.eval_spec(1)).await.unwrap();
    let second = sandbox.create(&slots.eval_spec(2)).await.unwrap();
    let mut world = Containers { slots: &slots, internet };
    world.reaches_the_public_and_resolves().await;
    world.reaches_nothing_private().await;
    world.reaches_nothing_private_by_a_name_a_spelling_or_a_redirect().await;
    world.reach_neither_each_other_nor_are_reached().await;
    world.have_one_address_and_no_ipv6().await;
    world.connections_are_bounded().await;
    gvisor_is_filtered_alike(&sandbox, &world).await;
    let sandbox = policies_restrict_and_survive_a_restart(sandbox, &config, &world, &first, &second).await;
    what_passed_is_counted(&sandbox).await;
    a_slot_can_be_used_again(&sandbox, &slots, second).await;
    rules_come_back_after_a_flush(&mut world).await;
    rules_stay_while_a_container_lives(&sandbox, &config, &first).await;
}

struct Containers<'a> {
    slots: &'a Slots,
    internet: String,
}

/// A function body that connects and gives the first line that comes back.
fn connect(host: &str, port: u16) -> String {
    format!(
        "return await new Promise((done, fail) => {{ const s = require('net').connect({{ host: '{host}', port: {port}, family: 4 }}); s.setTimeout(1500, () => {{ s.destroy(); fail(new Error('timeout')); }}); s.on('data', (d) => {{ done(String(d).trim()); s.destroy(); }}); s.on('error', fail); }})"
    )
}

/// A function body that gives what an HTTP request is answered, after redirects.
fn fetch(url: &str) -> String {
    format!("return await (await fetch('{url}', {{ signal: AbortSignal.timeout(3000) }})).text()")
}

impl Containers<'_> {
    async fn ask(&self, slot: u32, code: &str) -> Result<Value, String> {
        eval(&self.slots.dir(slot), code).await
    }

    async fn address(&self, slot: u32) -> Ipv4Addr {
        let found = self.ask(slot, "return require('os').networkInterfaces().eth0.map((a) => a.address)").await.unwrap();
        found[0].as_str().unwrap().parse().unwrap()
    }

    async fn reaches_the_public_and_resolves(&self) {
        for slot in [1, 2] {
            // The internet sees the router's address, not the container's.
            assert_eq!(self.ask(slot, &connect(PUBLIC, 80)).await.expect("the public address"), json!(ROUTER[0]));
            let resolved =
                self.ask(slot, "return await require('dns/promises').lookup('www.example.org', { family: 4 })").await.unwrap();
            assert_eq!(resolved["address"], json!(PUBLIC));
            assert_eq!(self.ask(slot, &connect("www.example.org", 80)).await.unwrap(), json!(ROUTER[0]));
        }
    }

    async fn reaches_nothing_private(&self) {
        let mut cases: Vec<(String, u16)> = PRIVATE.iter().chain(&ROUTER).map(|a| ((*a).to_owned(), 80)).collect();
        for (address, port) in &cases {
            let listening =
                std::net::TcpStream::connect_timeout(&format!("{address}:{port}").parse().unwrap(), Duration::from_secs(2));
            listening.unwrap_or_else(|e| panic!("the test's own listener on {address}:{port} does not answer: {e}"));
        }
        // Only questions to the gateway reach the resolver, and only on port 53.
        cases.extend([
            (RESOLVER.to_owned(), 53),
            (net::GATEWAY.to_string(), 80),
            ("127.0.0.1".to_owned(), 80),
            ("0.0.0.0".to_owned(), 80),
        ]);
        cases.push((ROUTER[0].to_owned(), 53));
        for (address, port) in cases {
            let answer = self.ask(1, &connect(&address, port)).await;
            assert!(answer.is_err(), "a container has reached {address}:{port}: {answer:?}");
        }
    }

    /// Names, spellings and redirects say the address in another way; the same ones reach the public address.
    async fn reaches_nothing_private_by_a_name_a_spelling_or_a_redirect(&self) {
        for address in [PUBLIC, "10.77.0.10", "169.254.169.254"] {
            let listening = std::net::TcpStream::connect_timeout(&format!("{address}:81").parse().unwrap(), Duration::from_secs(2));
            listening.unwrap_or_else(|e| panic!("the test's own listener on {address}:81 does not answer: {e}"));
        }
        let resolve = |name: &str| format!("return (await require('dns/promises').lookup('{name}', {{ family: 4 }})).address");
        assert_eq!(
            self.ask(1, &resolve("10-77-0-10.example.org")).await.unwrap(),
            json!("10.77.0.10"),
            "the resolver hides nothing"
        );
        for reached in [
            "http://203-0-113-10.example.org:81/".to_owned(),
            "http://0xcb.0.113.10:81/".to_owned(),
            "http://0xcb00710a:81/".to_owned(),
            "http://3405803786:81/".to_owned(),
            "http://0313.0.0161.012:81/".to_owned(),
            "http://203.0.28938:81/".to_owned(),
            format!("http://{PUBLIC}:81/?to=http://{PUBLIC}:81/"),
        ] {
            assert_eq!(self.ask(1, &fetch(&reached)).await, Ok(json!("reached")), "{reached}");
        }
        for private in [
            "http://10-77-0-10.example.org:81/".to_owned(),
            "http://169-254-169-254.example.org:81/".to_owned(),
            "http://0xa.77.0.10:81/".to_owned(),
            "http://0x0a4d000a:81/".to_owned(),
            "http://172818442:81/".to_owned(),
            "http://2852039166:81/".to_owned(),
            "http://012.0115.0.012:81/".to_owned(),
            "http://10.77.10:81/".to_owned(),
            "http://[::ffff:10.77.0.10]:81/".to_owned(),
            format!("http://{PUBLIC}:81/?to=http://10.77.0.10:81/"),
            format!("http://{PUBLIC}:81/?to=http://169-254-169-254.example.org:81/"),
        ] {
            let answer = self.ask(1, &fetch(&private)).await;
            assert!(answer.is_err(), "a container has reached {private}: {answer:?}");
        }
        // What was asked first and found public has another address when it is dialled.
        assert_eq!(self.ask(1, &resolve("rebind.example.org")).await.unwrap(), json!(PUBLIC));
        let answer = self.ask(1, &fetch("http://rebind.example.org:81/")).await;
        assert!(answer.is_err(), "a container has reached a private address by rebinding: {answer:?}");
        assert_eq!(self.ask(1, &resolve("rebind.example.org")).await.unwrap(), json!(PUBLIC), "each was one question");
    }

    async fn reach_neither_each_other_nor_are_reached(&self) {
        self.ask(2, "await new Promise((r) => require('net').createServer((s) => s.end('hello\\n')).listen(8080, '0.0.0.0', r))")
            .await
            .unwrap();
        let address = self.address(2).await;
        assert_eq!(self.ask(2, &connect(&address.to_string(), 8080)).await.unwrap(), json!("hello"), "its own listener");
        let from_first = self.ask(1, &connect(&address.to_string(), 8080)).await;
        assert!(from_first.is_err(), "one container has reached another: {from_first:?}");
        let from_internet = Command::new("nsenter")
            .args([&format!("--net=/run/netns/{}", self.internet), "node", "-e"])
            .arg(format!("const s = require('net').connect(8080, '{address}'); s.setTimeout(1500, () => process.exit(3)); s.on('data', () => process.exit(0)); s.on('error', () => process.exit(3))"))
            .status()
            .unwrap();
        assert_eq!(from_internet.code(), Some(3), "the internet has reached a container");
    }

    async fn have_one_address_and_no_ipv6(&self) {
        let (a, b) = (self.address(1).await, self.address(2).await);
        assert_ne!(a, b);
        assert!([a, b].iter().all(|x| x.octets()[..2] == [198, 18] || x.octets()[..2] == [198, 19]), "{a} {b}");
        let families = self.ask(1, "return require('os').networkInterfaces().eth0.map((a) => a.family)").await.unwrap();
        assert_eq!(families, json!(["IPv4"]));
    }

    async fn connections_are_bounded(&self) {
        let code = format!(
            "const net = require('net'); const open = await Promise.all(Array.from({{ length: 40 }}, () => new Promise((r) => {{ const s = net.connect(80, '{PUBLIC}'); s.setTimeout(1500, () => r(null)); s.on('data', () => r(s)); s.on('error', () => r(null)); }}))); const n = open.filter(Boolean).length; for (const s of open) s?.destroy(); return n"
        );
        let open = self.ask(2, &code).await.unwrap().as_u64().unwrap();
        // Those of earlier checks may still count while the kernel lets them go.
        assert!(open > 0 && open <= u64::from(CONNECTIONS_MAX), "{open} connections were open");
    }
}

/// Its connections are the machine's, in the container's own network namespace, so that the same filter sees them.
async fn gvisor_is_filtered_alike(sandbox: &DockerSandbox, world: &Containers<'_>) {
    let spec = hearth_sandbox::SandboxSpec { oci_runtime: Some("runsc".to_owned()), ..world.slots.eval_spec(3) };
    let made = sandbox.create(&spec).await.unwrap();
    assert_eq!(world.ask(3, &connect(PUBLIC, 80)).await.expect("the public address"), json!(ROUTER[0]));
    let neighbour = world.address(2).await.to_string();
    assert_eq!(world.ask(2, &connect(&neighbour, 8080)).await.unwrap(), json!("hello"), "its listener is still there");
    let private = PRIVATE.iter().chain(&ROUTER).map(|address| (*address, 80));
    for (address, port) in private.chain([(neighbour.as_str(), 8080)]) {
        let answer = world.ask(3, &connect(address, port)).await;
        assert!(answer.is_err(), "a container under gVisor has reached {address}:{port}: {answer:?}");
    }
    assert_eq!(world.ask(3, &connect(PUBLIC, 80)).await.expect("the public address"), json!(ROUTER[0]), "it still works");
    sandbox.destroy(&made.id).await.unwrap();
}

/// A tenant with an allow list reaches what is on it and nothing else, not even the resolver; a tenant without egress reaches nothing.
async fn policies_restrict_and_survive_a_restart(
    sandbox: DockerSandbox,
    config: &Config,
    world: &Containers<'_>,
    first: &Running,
    second: &Running,
) -> DockerSandbox {
    let allow = |to: &[&str]| Egress::Allow { to: to.iter().map(|t| t.parse().unwrap()).collect() };
    let public = connect(PUBLIC, 80);
    sandbox.restrict(&first.id, &allow(&["203.0.113.0/28:80"])).await.unwrap();
    assert_eq!(world.ask(1, &public).await.unwrap(), json!(ROUTER[0]), "what is listed is reached");
    assert!(world.ask(1, &connect(PUBLIC, 53)).await.is_err(), "another port is not");
    let lookup = "return await require('dns/promises').resolve4('www.example.org')";
    assert!(world.ask(1, lookup).await.is_err(), "questions to the resolver would be a way out");
    sandbox.restrict(&first.id, &allow(&["192.0.2.0/24", RESOLVER])).await.unwrap();
    assert!(world.ask(1, &public).await.is_err(), "what is no longer listed is not reached");
    assert!(world.ask(1, &connect(RESOLVER, 80)).await.is_err(), "a list opens nothing private");
    assert_eq!(world.ask(2, &public).await.unwrap(), json!(ROUTER[0]), "the neighbour keeps its own policy");
    sandbox.restrict(&second.id, &Egress::None).await.unwrap();
    assert!(world.ask(2, &public).await.is_err() && world.ask(2, lookup).await.is_err(), "nothing at all");
    // The next process replaces the rules, and lets nobody out while it does.
    drop(sandbox);
    let restarted = DockerSandbox::connect(config.clone()).await.unwrap();
    assert!(world.ask(1, &public).await.is_err() && world.ask(2, &public).await.is_err(), "a restart has let containers out");
    for id in [&first.id, &second.id] {
        restarted.restrict(id, &Egress::Public).await.unwrap();
    }
    assert_eq!(world.ask(1, &public).await.unwrap(), json!(ROUTER[0]));
    assert_eq!(world.ask(2, &public).await.unwrap(), json!(ROUTER[0]));
    restarted
}

async fn what_passed_is_counted(sandbox: &DockerSandbox) {
    let traffic = sandbox.traffic().await.unwrap();
    for slot in [1, 2] {
        let seen = traffic[&slot];
        assert!(seen.sent_bytes > 500 && seen.received_bytes > 100 && seen.connections >= 1, "slot {slot}: {seen:?}");
    }
}

async fn a_slot_can_be_used_again(sandbox: &DockerSandbox, slots: &Slots, second: Running) {
    // At once: the kernel has not cleared away the former container's interface yet.
    sandbox.destroy(&second.id).await.unwrap();
    let again = sandbox.create(&slots.eval_spec(2)).await.unwrap();
    assert_eq!(eval(&slots.dir(2), &connect(PUBLIC, 80)).await.unwrap(), json!(ROUTER[0]));
    sandbox.destroy(&again.id).await.unwrap();
}

async fn rules_come_back_after_a_flush(world: &mut Containers<'_>) {
    run("nft", &["flush", "ruleset"]);
    run("iptables", &["-P", "FORWARD", "ACCEPT"]);
    let back = tokio::time::timeout(Duration::from_secs(30), async {
        while !run("nft", &["list", "tables"]).contains("hearth_") {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    back.await.expect("the rules do not come back");
    world.reaches_nothing_private().await;
    assert_eq!(world.ask(1, &connect(PUBLIC, 80)).await.unwrap(), json!(ROUTER[0]));
}

async fn rules_stay_while_a_container_lives(sandbox: &DockerSandbox, config: &Config, first: &Running) {
    sandbox.close().await.unwrap();
    assert!(run("nft", &["list", "tables"]).contains("hearth_"), "a living container is unfiltered");
    let restarted = DockerSandbox::connect(config.clone()).await.unwrap();
    restarted.destroy(&first.id).await.unwrap();
    restarted.close().await.unwrap();
    assert!(!run("nft", &["list", "tables"]).contains("hearth_"), "the rules outlive their last container");
}
