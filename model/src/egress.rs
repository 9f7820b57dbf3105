//! What a tenant's containers may reach. Whatever a policy allows, private networks, the node and other containers stay out of reach.

use serde::{Deserialize, Serialize};
use std::{fmt, net::Ipv4Addr, str::FromStr};

/// Entries of one allow list.
pub const EGRESS_ALLOWED_MAX: usize = 64;
/// Longest host name (RFC 1035).
const HOST_BYTES_MAX: usize = 253;
/// Widest network of an allow list: wider ones are no list any more.
const NETWORK_PREFIX_MIN: u8 = 8;

/// A tenant's policy for connections out of its containers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase", tag = "mode", try_from = "AnyEgress")]
pub enum Egress {
    /// No network at all but loopback.
    None,
    /// The public internet, and nothing private.
    #[default]
    Public,
    /// Only what is listed, as far as it is public. Names are resolved by the node; no other name resolves.
    Allow {
        /// As `api.example.com:443`, `203.0.113.0/24:443`, or either without a port for all ports. At most 64.
        to: Vec<Destination>,
    },
}

/// As it is written, before it is known whether the parts fit one another.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnyEgress {
    mode: Mode,
    to: Option<Vec<Destination>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    None,
    Public,
    Allow,
}

impl TryFrom<AnyEgress> for Egress {
    type Error = &'static str;

    fn try_from(any: AnyEgress) -> Result<Self, Self::Error> {
        match (any.mode, any.to) {
            (Mode::None, None) => Ok(Self::None),
            (Mode::Public, None) => Ok(Self::Public),
            (Mode::Allow, Some(to)) => Ok(Self::Allow { to }),
            (Mode::Allow, None) => Err("the mode `allow` needs `to`: what may be reached"),
            (_, Some(_)) => Err("`to` goes with the mode `allow` only"),
        }
    }
}

impl Egress {
    /// Refuses an allow list that is empty or too long, with what to do about it.
    ///
    /// # Errors
    /// A text for the person who set it.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Allow { to } if to.is_empty() => Err("an empty allow list reaches nothing: use {\"mode\": \"none\"}".to_owned()),
            Self::Allow { to } if to.len() > EGRESS_ALLOWED_MAX => {
                Err(format!("{} entries are more than {EGRESS_ALLOWED_MAX}: use wider networks, or fewer hosts", to.len()))
            }
            _ => Ok(()),
        }
    }
}

/// One entry of an allow list.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Destination {
    /// Where.
    pub host: Host,
    /// TCP and UDP port; none for all.
    pub port: Option<u16>,
}

/// A name, or an IPv4 network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// A host name, lower case.
    Name(String),
    /// An address and the length of its prefix.
    Network(Ipv4Addr, u8),
}

/// Why a text is no destination.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no destination: write a host name or an IPv4 network from /8 to /32, with a port or without, as api.example.com:443"
)]
pub struct DestinationError {
    /// What was given, cut to 80 characters.
    pub text: String,
}

impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, DestinationError> {
        let parse = || {
            let (host, port) = match text.split_once(':') {
                Some((host, port)) => (host, Some(port.parse::<u16>().ok().filter(|p| *p > 0)?)),
                None => (text, None),
            };
            Some(Self { host: parse_host(host)?, port })
        };
        parse().ok_or_else(|| DestinationError { text: text.chars().take(80).collect() })
    }
}

fn parse_host(text: &str) -> Option<Host> {
    if let Some((address, prefix)) = text.split_once('/') {
        let (address, prefix) = (address.parse::<Ipv4Addr>().ok()?, prefix.parse::<u8>().ok()?);
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
        let is_network = u32::from(address) & !mask == 0;
        return ((NETWORK_PREFIX_MIN..=32).contains(&prefix) && is_network).then_some(Host::Network(address, prefix));
    }
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        return Some(Host::Network(address, 32));
    }
    // A label that is all digits at the end would be an odd spelling of an address (`0x7f.1`, `2130706433`), never a name.
    let labels: Vec<&str> = text.split('.').collect();
    let is_label = |label: &&str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_name = text.len() <= HOST_BYTES_MAX
        && labels.len() >= 2
        && labels.iter().all(is_label)
        && labels.last().is_some_and(|top| top.starts_with(|c: char| c.is_ascii_lowercase()));
    is_name.then(|| Host::Name(text.to_owned()))
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Name(name) => f.write_str(name)?,
            Host::Network(address, 32) => write!(f, "{address}")?,
            Host::Network(address, prefix) => write!(f, "{address}/{prefix}")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl TryFrom<String> for Destination {
    type Error = DestinationError;
    fn try_from(text: String) -> Result<Self, DestinationError> {
        text.parse()
    }
}

impl From<Destination> for String {
    fn from(destination: Destination) -> Self {
        destination.to_string()
    }
}

impl utoipa::PartialSchema for Destination {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .examples(["api.example.com:443"])
            .into()
    }
}
impl utoipa::ToSchema for Destination {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_and_what_is_none() {
        for text in ["api.example.com:443", "example.org", "203.0.113.0/24:443", "203.0.113.7", "198.0.0.0/8"] {
            assert_eq!(text.parse::<Destination>().unwrap().to_string(), text);
        }
        let bad = [
            "",
            "localhost",
            "a..b",
            "-a.b",
            "A.example.com",
            "0x7f.1",
            "2130706433",
            "127.1",
            "203.0.113.1/24",
            "0.0.0.0/0",
            "10.0.0.0/7",
            "a.b:0",
            "a.b:65536",
            "a.b:",
            "[::1]:80",
            "::1",
            "http://a.b",
            "a.b/x",
            "a b.c",
            "a.b\n",
            "*.a.b",
        ];
        for text in bad {
            assert!(text.parse::<Destination>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn policies_as_json() {
        let parse = |text: &str| serde_json::from_str::<Egress>(text);
        assert_eq!(parse(r#"{"mode":"none"}"#).unwrap(), Egress::None);
        let allow = parse(r#"{"mode":"allow","to":["a.example.com:443"]}"#).unwrap();
        assert!(allow.check().is_ok());
        assert_eq!(serde_json::to_string(&allow).unwrap(), r#"{"mode":"allow","to":["a.example.com:443"]}"#);
        assert!(parse(r#"{"mode":"allow","to":[]}"#).unwrap().check().is_err());
        let one: Destination = "a.b".parse().unwrap();
        assert!(Egress::Allow { to: vec![one.clone(); EGRESS_ALLOWED_MAX] }.check().is_ok());
        assert!(Egress::Allow { to: vec![one; EGRESS_ALLOWED_MAX + 1] }.check().is_err());
        for bad in [r#"{"mode":"all"}"#, r#"{"mode":"allow"}"#, r#"{"mode":"public","to":["a.b"]}"#] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
