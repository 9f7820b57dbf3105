//! What every public listener of Hearth needs, whether a router's or a node's: an accept loop that bounds and deals out connections,
//! HTTP/1.1 and HTTP/2 with a deadline on every wait for the other side, header hygiene, TLS with certificates that are read again
//! when they change; and links, over which routers send requests to nodes and nodes to runtimes. It knows nothing of functions, nodes or routes.

pub mod addresses;
pub mod corpus;
mod framing;
pub mod headers;
pub mod ids;
pub mod link;
pub mod listen;
pub mod patience;
pub mod respond;
pub mod serve;
pub mod tls;
pub mod upgrade;

/// What a body may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
