//! Interfaces, addresses and routes over netlink. A container's side is configured through a netlink socket that a short-lived
//! thread opens inside the container's network namespace; a socket stays in the namespace in which it was made.

use super::{Cidr, GATEWAY, NetError, Traffic};
use futures_util::TryStreamExt;
use rtnetlink::{
    Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder, new_connection,
    packet_route::{
        AddressFamily,
        address::AddressAttribute,
        link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo},
        route::{RouteAddress, RouteAttribute, RouteScope},
    },
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::{
    collections::HashMap,
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::Arc,
    time::Duration,
};
use tokio::task::JoinHandle;

/// The container's name for its interface.
const INSIDE: &str = "eth0";
/// Every pair is a network of its own, so all pairs have the same two hardware addresses; locally administered.
const HOST_MAC: [u8; 6] = [0x02, 0x68, 0x76, 0, 0, 0x01];
const INSIDE_MAC: [u8; 6] = [0x02, 0x68, 0x76, 0, 0, 0x02];
/// How long the kernel may take for one container's interface.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(10);
/// Addresses that are tried for one container: a taken one belongs to another node's container or to one that is just going.
const ADDRESSES_TRIED_MAX: u32 = 64;
/// A step that visits a range of addresses without a pattern that two nodes would share.
const ADDRESS_STEP: u32 = 7_919;
/// An interface's network this wide is a way to everywhere, not a neighbourhood.
const OWN_NETWORK_PREFIX_MIN: u8 = 8;
/// The mtu of Ethernet, where the way out has none of its own.
const MTU_DEFAULT: u32 = 1_500;
const EEXIST: i32 = -17;

/// A netlink socket and the task that serves it.
struct Socket {
    handle: Handle,
    task: JoinHandle<()>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Socket {
    /// In the network namespace of the calling thread.
    fn open() -> io::Result<Self> {
        let (connection, handle, _) = new_connection()?;
        Ok(Self { handle, task: tokio::spawn(connection) })
    }

    /// In the network namespace `namespace`.
    async fn open_in(namespace: Arc<OwnedFd>) -> io::Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        // A thread of its own that ends afterwards: one of the runtime's must never be left in a container's namespace.
        std::thread::Builder::new().name("hearth-netns".to_owned()).spawn(move || {
            let opened = (|| {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                // Interfaces that are made from now on have no IPv6; the files are those of the thread's namespace.
                match std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1") {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                let _entered = runtime.enter();
                Self::open()
            })();
            let _ = sender.send(opened);
        })?;
        receiver.await.map_err(io::Error::other)?
    }

    async fn index(&self, name: &str) -> Result<u32, rtnetlink::Error> {
        let found = self.handle.link().get().match_name(name.to_owned()).execute().try_next().await?;
        found.map(|link| link.header.index).ok_or(rtnetlink::Error::RequestFailed)
    }

    async fn delete(&self, name: &str) -> Result<(), rtnetlink::Error> {
        let index = self.index(name).await?;
        self.handle.link().del(index).execute().await
    }
}

/// The host's end of all pairs of one node.
pub(super) struct Links {
    host: Socket,
    cidr: Cidr,
    prefix: String,
    seed: u32,
    namespace: (u64, u64),
    mtu: u32,
}

fn link_error(call: &'static str) -> impl Fn(rtnetlink::Error) -> NetError {
    move |error| NetError::Link { call, detail: error.to_string() }
}

fn io_error(call: &'static str) -> impl Fn(io::Error) -> NetError {
    move |error| NetError::Link { call, detail: error.to_string() }
}

fn exists(error: &rtnetlink::Error) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == EEXIST)
}

fn identity(namespace: &OwnedFd) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(namespace)?;
    Ok((stat.st_dev, stat.st_ino))
}

impl Links {
    /// Works in the network namespace of the calling thread.
    pub(super) async fn open(cidr: Cidr, prefix: String, seed: u32) -> Result<Self, NetError> {
        let fail = io_error("open netlink");
        let host = Socket::open().map_err(&fail)?;
        let own = OwnedFd::from(File::open("/proc/thread-self/ns/net").map_err(&fail)?);
        let namespace = identity(&own).map_err(&fail)?;
        // Packets that fit a pair must fit the way out. Asked once: the answer's cost grows with the number of routes.
        let mtu = uplink_mtu(&host.handle).await.ok().flatten().unwrap_or(MTU_DEFAULT);
        Ok(Self { host, cidr, prefix, seed, namespace, mtu })
    }

    /// The networks that this machine's interfaces are on: neighbours, not the internet, even where the addresses are public.
    pub(super) async fn own_networks(&self) -> Result<Vec<Cidr>, NetError> {
        let fail = link_error("list addresses");
        let mut found = Vec::new();
        let mut addresses = self.host.handle.address().get().execute();
        while let Some(message) = addresses.try_next().await.map_err(&fail)? {
            let prefix = message.header.prefix_len;
            for attribute in message.attributes {
                if let AddressAttribute::Address(IpAddr::V4(address)) | AddressAttribute::Local(IpAddr::V4(address)) = attribute
                    && prefix >= OWN_NETWORK_PREFIX_MIN
                {
                    found.push(Cidr::new(address, prefix));
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Bytes through each slot's interface. What the host receives from it is what the container sent.
    pub(super) async fn traffic(&self) -> Result<HashMap<u32, Traffic>, NetError> {
        let mut traffic = HashMap::new();
        let mut links = self.host.handle.link().get().execute();
        while let Some(link) = links.try_next().await.map_err(link_error("list interfaces"))? {
            let (mut slot, mut bytes) = (None, Traffic::default());
            for attribute in &link.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => slot = self.slot(name),
                    LinkAttribute::Stats64(stats) => {
                        (bytes.sent_bytes, bytes.received_bytes) = (stats.rx_bytes, stats.tx_bytes);
                    }
                    _ => {}
                }
            }
            if let Some(slot) = slot {
                traffic.insert(slot, bytes);
            }
        }
        Ok(traffic)
    }

    fn slot(&self, interface: &str) -> Option<u32> {
        interface.strip_prefix(&self.prefix)?.parse().ok()
    }

    /// The address of each slot's container: the host's route to it says so.
    pub(super) async fn addresses(&self) -> Result<HashMap<u32, Ipv4Addr>, NetError> {
        let mut slots = HashMap::new();
        let mut links = self.host.handle.link().get().execute();
        while let Some(link) = links.try_next().await.map_err(link_error("list interfaces"))? {
            let name = link.attributes.iter().find_map(|a| if let LinkAttribute::IfName(name) = a { Some(name) } else { None });
            if let Some(slot) = name.and_then(|n| self.slot(n)) {
                slots.insert(link.header.index, slot);
            }
        }
        let mut addresses = HashMap::new();
        let mut routes = self.host.handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
        while let Some(route) = routes.try_next().await.map_err(link_error("list routes"))? {
            let (mut slot, mut to) = (None, None);
            for attribute in &route.attributes {
                match attribute {
                    RouteAttribute::Oif(index) => slot = slots.get(index),
                    RouteAttribute::Destination(RouteAddress::Inet(address)) => to = Some(*address),
                    _ => {}
                }
            }
            if let (Some(slot), Some(to), 32) = (slot, to, route.header.destination_prefix_length) {
                addresses.insert(*slot, to);
            }
        }
        Ok(addresses)
    }

    /// Puts a pair between this namespace and that of process `pid`. When it fails nothing is left behind.
    pub(super) async fn attach(&self, slot: u32, pid: u32) -> Result<Ipv4Addr, NetError> {
        let name = format!("{}{slot}", self.prefix);
        let attach = async {
            let address = self.connect(&name, slot, pid).await;
            if address.is_err() {
                let _ = self.host.delete(&name).await;
            }
            address
        };
        tokio::time::timeout(ATTACH_TIMEOUT, attach).await.map_err(|_| NetError::Link {
            call: "attach",
            detail: format!("no answer from the kernel within {ATTACH_TIMEOUT:?}"),
        })?
    }

    async fn connect(&self, name: &str, slot: u32, pid: u32) -> Result<Ipv4Addr, NetError> {
        let namespace = File::open(format!("/proc/{pid}/ns/net")).map_err(io_error("open the container's network namespace"))?;
        let namespace = Arc::new(OwnedFd::from(namespace));
        if identity(&namespace).map_err(io_error("open the container's network namespace"))? == self.namespace {
            return Err(NetError::Link { call: "attach", detail: format!("process {pid} has no network namespace of its own") });
        }
        let inside = Socket::open_in(Arc::clone(&namespace)).await.map_err(io_error("enter the container's network namespace"))?;
        if let Err(error) = self.add_pair(name, &namespace).await {
            if !exists(&error) {
                return Err(link_error("add interface")(error));
            }
            // The slot's former container is gone, but the kernel has not cleared away its interface yet.
            let _ = self.host.delete(name).await;
            self.add_pair(name, &namespace).await.map_err(link_error("add interface"))?;
        }
        let address = self.configure_host(name, slot).await?;
        configure_inside(&inside, address).await.map_err(link_error("configure the container's interface"))?;
        Ok(address)
    }

    async fn add_pair(&self, name: &str, namespace: &OwnedFd) -> Result<(), rtnetlink::Error> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(INSIDE)
            .address(INSIDE_MAC.to_vec())
            .mtu(self.mtu)
            .setns_by_fd(namespace.as_raw_fd())
            .build();
        let mut pair = LinkMessageBuilder::<LinkVeth>::new(name, INSIDE).address(HOST_MAC.to_vec()).mtu(self.mtu).build();
        for attribute in &mut pair.attributes {
            if let LinkAttribute::LinkInfo(info) = attribute {
                *info = vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer.clone())))];
            }
        }
        self.host.handle.link().add(pair).execute().await
    }

    /// Brings up the host's end and routes the first free address to it: the kernel's own table says which are taken.
    async fn configure_host(&self, name: &str, slot: u32) -> Result<Ipv4Addr, NetError> {
        let fail = link_error("configure the host's interface");
        // The host would send neighbour discovery into every container otherwise; where there is no IPv6 there is no file.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
        let index = self.host.index(name).await.map_err(&fail)?;
        let up = LinkMessageBuilder::<LinkUnspec>::new().index(index).up().build();
        self.host.handle.link().set(up).execute().await.map_err(&fail)?;
        let address = self.route(index, slot).await?;
        self.host
            .handle
            .neighbours()
            .add(index, IpAddr::V4(address))
            .link_layer_address(&INSIDE_MAC)
            .execute()
            .await
            .map_err(&fail)?;
        Ok(address)
    }

    async fn route(&self, index: u32, slot: u32) -> Result<Ipv4Addr, NetError> {
        for attempt in 0..ADDRESSES_TRIED_MAX {
            let number = (self.seed % self.cidr.hosts()).wrapping_add(slot).wrapping_add(attempt.wrapping_mul(ADDRESS_STEP));
            let address = self.cidr.host(number);
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(address, 32)
                .output_interface(index)
                .scope(RouteScope::Link)
                .build();
            match self.host.handle.route().add(route).execute().await {
                Ok(()) => return Ok(address),
                Err(error) if exists(&error) => {}
                Err(error) => return Err(link_error("add the host's route")(error)),
            }
        }
        Err(NetError::Exhausted { cidr: self.cidr })
    }
}

/// The mtu of the machine's default route, if it has one.
async fn uplink_mtu(handle: &Handle) -> Result<Option<u32>, rtnetlink::Error> {
    let mut routes = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    let mut uplink = None;
    while let Some(route) = routes.try_next().await? {
        let is_default = route.header.destination_prefix_length == 0 && route.header.address_family == AddressFamily::Inet;
        if is_default && uplink.is_none() {
            uplink = route.attributes.iter().find_map(|a| if let RouteAttribute::Oif(index) = a { Some(*index) } else { None });
        }
    }
    let Some(index) = uplink else { return Ok(None) };
    let link = handle.link().get().match_index(index).execute().try_next().await?;
    Ok(link.and_then(|l| l.attributes.iter().find_map(|a| if let LinkAttribute::Mtu(mtu) = a { Some(*mtu) } else { None })))
}

async fn configure_inside(inside: &Socket, address: Ipv4Addr) -> Result<(), rtnetlink::Error> {
    let index = inside.index(INSIDE).await?;
    let up = LinkMessageBuilder::<LinkUnspec>::new().index(index).up().build();
    inside.handle.link().set(up).execute().await?;
    inside.handle.address().add(index, IpAddr::V4(address), 32).execute().await?;
    inside.handle.neighbours().add(index, IpAddr::V4(GATEWAY)).link_layer_address(&HOST_MAC).execute().await?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(Ipv4Addr::UNSPECIFIED, 0)
        .gateway(GATEWAY)
        .output_interface(index)
        .onlink()
        .build();
    inside.handle.route().add(route).execute().await
}
