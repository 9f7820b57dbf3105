//! Membership, ring, planner and route table of a cluster.
//!
//! Nodes register under a lease ([`Registration`]), one elected leader plans exceptions ([`plan`], [`Leader`]), and whoever
//! routes keeps a table of both ([`TableWatch`]) in which routing is a pure function ([`RouteTable::candidates`]). All of it
//! stands on a small [`Coordinator`], which is etcd or a model of it in this process.
//!
//! Placement is for efficiency, never for correctness: any node can serve any tenant, so nothing here is a lock, and a table
//! that is old is better than none.

pub mod access;
pub mod config;
pub mod control;
pub mod coordinator;
pub mod election;
pub mod exception;
pub mod hash;
pub mod leader;
pub mod members;
pub mod notice;
pub mod pin;
pub mod planner;
pub mod record;
pub mod registration;
pub mod ring;
pub mod snapshot;
pub mod table;
pub mod watch;

pub use config::{Config, ConnectError, EtcdConfig, connect, connect_lazy};
pub use control::{ControlClient, ControlTls};
pub use coordinator::{Coordinator, CoordinatorError, etcd::EtcdCoordinator, local::LocalCoordinator};
pub use exception::{Exception, Exceptions};
pub use leader::{Eviction, Leader, LeaderConfig, NodeCalls, NodeStats};
pub use notice::{ChangeNotice, Notice, Notices};
pub use planner::{Plan, PlanInput, PlannerConfig, plan};
pub use record::{NodeName, NodeRecord, NodeState};
pub use registration::{Registration, RegistrationError, RegistrationStatus};
pub use ring::RingConfig;
pub use table::{CANDIDATES_MAX, Candidates, RouteTable, TableNode};
pub use watch::{Probe, StartError, TableWatch, WatchConfig};
