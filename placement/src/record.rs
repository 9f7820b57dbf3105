//! What a node says of itself, as it lies in the coordinator.

use hearth_model::Timestamp;
use serde::{Deserialize, Serialize};
use std::{fmt, net::SocketAddr, str::FromStr, sync::Arc};

/// The version of the records that this crate writes, and the only one that it takes for valid.
pub const SCHEMA: u32 = 1;
/// A record longer than this is garbage; a real one takes about 300 bytes.
pub const RECORD_BYTES_MAX: usize = 4096;
/// More nodes than this are refused by the table: node numbers are two bytes there.
pub const NODES_MAX: usize = 4096;
/// The largest capacity, so that one typing error cannot fill the memory of every router with points.
pub const CAPACITY_MAX: u32 = 64;

/// The name of a node: `[a-z0-9][a-z0-9-]{0,62}`, unique in the cluster. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(Arc<str>);

/// Why a text is no node name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "node name {0:?} must match [a-z0-9][a-z0-9-]{{0,62}}: lower-case letters, digits and hyphens, 1 to 63 of them, not starting with a hyphen"
)]
pub struct NodeNameError(String);

impl NodeName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = NodeNameError;
    fn from_str(text: &str) -> Result<Self, NodeNameError> {
        let bytes = text.as_bytes();
        let is_name = matches!(bytes.len(), 1..=63)
            && bytes[0] != b'-'
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
        if is_name { Ok(Self(text.into())) } else { Err(NodeNameError(text.chars().take(80).collect())) }
    }
}

impl TryFrom<String> for NodeName {
    type Error = NodeNameError;
    fn try_from(text: String) -> Result<Self, NodeNameError> {
        text.parse()
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a node wants new containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It serves.
    Active,
    /// It serves what reaches it but is about to leave: routers send to it only when there is no other.
    Draining,
}

/// A node as it lies in `{prefix}/nodes/{name}`, under the node's lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The version of this record.
    pub schema: u32,
    /// The node.
    pub name: NodeName,
    /// A random number for each start of the process: tells a restarted node, or another's, from this one.
    pub incarnation: u64,
    /// Where routers send requests.
    pub data_addr: SocketAddr,
    /// Where control calls go.
    pub control_addr: SocketAddr,
    /// The failure domain; containers with several nodes get them in different zones where they can.
    pub zone: String,
    /// The share of the containers, relative to other nodes: 1 to [`CAPACITY_MAX`].
    pub capacity: u32,
    /// Whether it wants new containers.
    pub state: NodeState,
    /// Whether routers may open links to `data_addr`; earlier versions speak HTTP only.
    #[serde(default)]
    pub links: bool,
    /// For people to read; nothing is decided by it, since clocks differ.
    pub started_at: Timestamp,
}

/// Why bytes in the coordinator are no record of ours.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Longer than a record can be.
    #[error("{bytes} bytes are more than the {max} that a record may have")]
    Size {
        /// What was found.
        bytes: usize,
        /// What is allowed.
        max: usize,
    },
    /// Not the JSON of a record.
    #[error("not a valid record: {0}")]
    Json(#[from] serde_json::Error),
    /// Written by another version of Hearth.
    #[error("written in schema {found}, and this program knows schema {SCHEMA} only")]
    Schema {
        /// The record's schema.
        found: u32,
    },
    /// The record does not belong under this key.
    #[error("the record names {found}, the key names {key:?}")]
    Name {
        /// The name in the record.
        found: NodeName,
        /// The name in the key.
        key: String,
    },
    /// A field that no node would write.
    #[error("{field} is out of bounds")]
    Bounds {
        /// Which.
        field: &'static str,
    },
}

#[derive(Deserialize)]
struct SchemaOnly {
    schema: u32,
}

/// Reads the schema before the rest, so that a record of another version is called that, and not merely malformed.
///
/// # Errors
/// [`RecordError`] if it is another version's or no JSON object with a schema.
pub(crate) fn check_schema(bytes: &[u8]) -> Result<(), RecordError> {
    let SchemaOnly { schema } = serde_json::from_slice(bytes)?;
    if schema == SCHEMA { Ok(()) } else { Err(RecordError::Schema { found: schema }) }
}

impl NodeRecord {
    /// The record in `bytes`, found under a key that ends in `key_name`.
    ///
    /// # Errors
    /// [`RecordError`] says what is wrong; the caller skips the key.
    pub fn decode(key_name: &str, bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(RecordError::Size { bytes: bytes.len(), max: RECORD_BYTES_MAX });
        }
        check_schema(bytes)?;
        let record: Self = serde_json::from_slice(bytes)?;
        if record.name.as_str() != key_name {
            return Err(RecordError::Name { found: record.name, key: key_name.chars().take(80).collect() });
        }
        if !(1..=CAPACITY_MAX).contains(&record.capacity) {
            return Err(RecordError::Bounds { field: "capacity" });
        }
        if record.zone.len() > 63 {
            return Err(RecordError::Bounds { field: "zone" });
        }
        if record.data_addr.port() == 0 {
            return Err(RecordError::Bounds { field: "data_addr" });
        }
        Ok(record)
    }

    /// The bytes to be put under the node's key.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // A struct of plain fields always has a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }
}
