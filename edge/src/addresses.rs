//! Who connects: how an address is counted, and how many connections one may have open, so that a single host cannot hold them all.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How often it is said in the log that connections are being refused.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// What addresses are counted by: of IPv6, a customer has a whole /64.
#[must_use]
pub fn counted(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() & (u128::MAX << 64)).into()),
        ip => ip,
    }
}

/// Open connections by address.
#[derive(Debug)]
pub struct Addresses {
    open: Mutex<Open>,
    max: usize,
}

#[derive(Debug, Default)]
struct Open {
    by_address: HashMap<IpAddr, usize>,
    /// Of all addresses, since it was last said.
    refused: u64,
    said: Option<Instant>,
}

impl Addresses {
    /// At most so many from one address; one at least.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { open: Mutex::default(), max: max.max(1) }
    }

    /// A place for one more connection of this address; none when it has as many as it may. This machine's own are not counted.
    #[must_use]
    pub fn take(self: &Arc<Self>, ip: IpAddr) -> Option<Place> {
        if ip.to_canonical().is_loopback() {
            return Some(Place(None));
        }
        let address = counted(ip);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.by_address.get(&address).copied().unwrap_or(0);
        if count >= self.max {
            open.refused += 1;
            if open.said.is_none_or(|said| said.elapsed() >= SAY_EVERY) {
                open.said = Some(Instant::now());
                let closed = std::mem::take(&mut open.refused);
                drop(open);
                tracing::warn!(%address, max = self.max, closed, "too many connections from one address, such as this one; more are closed");
            }
            return None;
        }
        open.by_address.insert(address, count + 1);
        Some(Place(Some((Arc::clone(self), address))))
    }
}

/// One connection's place among those of its address.
#[derive(Debug)]
pub struct Place(Option<(Arc<Addresses>, IpAddr)>);

impl Drop for Place {
    fn drop(&mut self) {
        let Some((addresses, address)) = self.0.take() else { return };
        let mut open = addresses.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.by_address.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                open.by_address.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_the_bound_of_an_address_and_one_past_it() {
        let addresses = Arc::new(Addresses::new(2));
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = addresses.take(ip("192.0.2.1")).unwrap();
        let _second = addresses.take(ip("::ffff:192.0.2.1")).unwrap();
        assert!(addresses.take(ip("192.0.2.1")).is_none(), "however it is written");
        assert!(addresses.take(ip("192.0.2.2")).is_some(), "another one has its own");
        drop(first);
        assert!(addresses.take(ip("192.0.2.1")).is_some());
        let _network = (addresses.take(ip("2001:db8::1")).unwrap(), addresses.take(ip("2001:db8::2")).unwrap());
        assert!(addresses.take(ip("2001:db8::3")).is_none(), "a /64 is one customer's");
        assert!(addresses.take(ip("2001:db8:0:1::3")).is_some());
        let own: Vec<_> = (0..10).map(|_| addresses.take(ip("127.0.0.1"))).collect();
        assert!(own.iter().all(Option::is_some), "this machine's own are not counted");
    }

    #[test]
    fn an_address_without_connections_takes_no_room() {
        let addresses = Arc::new(Addresses::new(2));
        for n in 0..1_000_u32 {
            drop(addresses.take(IpAddr::V4((0x0a00_0000 + n).into())));
        }
        assert!(addresses.open.lock().unwrap().by_address.is_empty());
    }
}
