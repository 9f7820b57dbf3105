//! Membership, ring, planner and route table of a cluster.
