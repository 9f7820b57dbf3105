//! An IPv4 network, as `198.18.0.0/15`.

use serde::{Deserialize, Serialize};
use std::{fmt, net::Ipv4Addr, str::FromStr};

/// Why a text is no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an IPv4 network such as 198.18.0.0/15")]
pub struct CidrError {
    /// What was given.
    pub text: String,
}

/// An IPv4 network; its bits below the prefix are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    network: u32,
    prefix: u8,
}

impl Cidr {
    /// The network of `address`; a prefix above 32 counts as 32.
    #[must_use]
    pub fn new(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self { network: u32::from(address) & mask(prefix), prefix }
    }

    /// Length of the prefix in bits.
    #[must_use]
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    /// How many addresses hosts may have: all but the first and the last, at least one.
    #[must_use]
    pub fn hosts(self) -> u32 {
        (!mask(self.prefix)).saturating_sub(1).max(1)
    }

    /// The host's address number `index`, counted from zero and around.
    #[must_use]
    pub fn host(self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.network + (1 + index % self.hosts()).min(!mask(self.prefix)))
    }
}

const fn mask(prefix: u8) -> u32 {
    match prefix {
        0 => 0,
        _ => u32::MAX << (32 - prefix as u32),
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.network), self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;
    fn from_str(text: &str) -> Result<Self, CidrError> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            let cidr = Self::new(address.parse().ok()?, prefix.parse().ok().filter(|p| *p <= 32)?);
            // Bits below the prefix are a slip of the pen that should not silently become another network.
            (cidr.to_string() == text).then_some(cidr)
        };
        parse().ok_or_else(|| CidrError { text: text.to_owned() })
    }
}

impl TryFrom<String> for Cidr {
    type Error = CidrError;
    fn try_from(text: String) -> Result<Self, CidrError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for text in ["0.0.0.0/0", "198.18.0.0/15", "10.0.0.1/32"] {
            assert_eq!(text.parse::<Cidr>().unwrap().to_string(), text);
        }
        for bad in ["", "10.0.0.0", "10.0.0.1/24", "10.0.0.0/33", "10.0.0/8", "::/0", "10.0.0.0/8x"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn hosts_leave_out_the_ends_and_go_around() {
        let small: Cidr = "10.0.0.0/30".parse().unwrap();
        assert_eq!(small.hosts(), 2);
        let hosts: Vec<String> = (0..3).map(|i| small.host(i).to_string()).collect();
        assert_eq!(hosts, ["10.0.0.1", "10.0.0.2", "10.0.0.1"]);
        assert_eq!("10.0.0.1/32".parse::<Cidr>().unwrap().host(5).to_string(), "10.0.0.1");
    }
}
