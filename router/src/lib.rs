//! The public edge of a cluster.
