//! Header names of the platform. Everything that starts with `hearth-` is the platform's own: stripped from what a client
//! sends and from what a function answers, but for `hearth-fault`, which the runtime alone may set.

/// The request's id, in every response.
pub const REQUEST_ID: &str = "hearth-request-id";
/// `warm` or `cold`.
pub const START: &str = "hearth-start";
/// Who is at fault, on answers that are a function's error in its own model's format: always `tenant`.
pub const FAULT: &str = "hearth-fault";
/// Platform timings in milliseconds (the `Server-Timing` syntax).
pub const SERVER_TIMING: &str = "server-timing";
/// Node to runtime: which function to call, see [`crate::protocol::CallHeader`].
pub const CALL: &str = "hearth-call";
/// Runtime to node: the function failed and the node is to answer with a problem: `reason` as in [`crate::protocol`].
pub const ERROR: &str = "hearth-error";
/// Node to router, on an answer for which nothing reached a function: another node may be asked. Always `1`.
pub const UNSENT: &str = "hearth-unsent";
/// The name of the node that answered.
pub const NODE: &str = "hearth-node";
/// Router to node: on how many nodes this container runs, by which the node divides the tenant's limits.
pub const SPREAD: &str = "hearth-spread";
/// The prefix that only the platform may use.
pub const PREFIX: &str = "hearth-";
