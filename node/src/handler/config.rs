//! What an operator may set about containers and the pool.

use bytesize::ByteSize;
use hearth_model::limits::{MEMORY_MB_DEFAULT, MEMORY_MB_MIN};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Slot numbers end here, whatever is configured: the numbers above belong to builds, and a slot's number decides a user id.
pub const SLOTS_MAX: u32 = 4_000;

/// Settings of the container handler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Containers of this node, the pool included; at most [`SLOTS_MAX`].
    pub containers_max: u32,
    /// Containers that wait in the pool when there is little demand.
    pub pool_size: u32,
    /// Most containers that wait in the pool, however high demand is.
    pub pool_max: u32,
    /// For how much time of recent demand the pool is to last.
    #[serde(with = "humantime_serde")]
    pub pool_cover: Duration,
    /// Whether up to half of the pool is loaded ahead with the modules that are most in demand.
    pub preload: bool,
    /// Containers that are started at once while nothing waits for one.
    pub refill_concurrency: u32,
    /// Containers that are started at once while requests wait for one.
    pub create_concurrency: u32,
    /// Above so many requests per second, or with more requests running than there are processors, the pool is refilled one at a
    /// time, with pauses as long as the starts.
    pub refill_busy_rate: u32,
    /// How long a container may take to come up.
    #[serde(with = "humantime_serde")]
    pub create_timeout: Duration,
    /// First pause after containers could not be made; doubles up to `circuit_pause_max`.
    #[serde(with = "humantime_serde")]
    pub circuit_pause: Duration,
    /// Longest pause after containers could not be made.
    #[serde(with = "humantime_serde")]
    pub circuit_pause_max: Duration,
    /// Requests of one container that wait for it to start, thaw or load.
    pub wait_queue_max: u32,
    /// Containers that requests wait for at once.
    pub claims_waiting_max: u32,
    /// How long a request waits for a container.
    #[serde(with = "humantime_serde")]
    pub claim_timeout: Duration,
    /// How many containers one tenant's container may use up in quick succession, for instance because its process keeps ending.
    pub claim_burst: u32,
    /// After that it gets another one this often.
    #[serde(with = "humantime_serde")]
    pub claim_interval: Duration,
    /// How long a function may take to load; then its container is replaced.
    #[serde(with = "humantime_serde")]
    pub load_timeout: Duration,
    /// How long "it does not load" is believed.
    #[serde(with = "humantime_serde")]
    pub load_retry_after: Duration,
    /// How long a container's event loop may take to answer once one of its requests ran past its deadline.
    #[serde(with = "humantime_serde")]
    pub ping_timeout: Duration,
    /// A container without requests is frozen after this. Whatever it does in the background stops then.
    #[serde(with = "humantime_serde")]
    pub freeze_after: Duration,
    /// A container without requests is destroyed after this.
    #[serde(with = "humantime_serde")]
    pub destroy_after: Duration,
    /// How long requests of a container that is being replaced may take to finish.
    #[serde(with = "humantime_serde")]
    pub retire_timeout: Duration,
    /// Memory of all containers together; seven tenths of the machine's where not given.
    pub memory_limit: Option<ByteSize>,
    /// Memory of a container in the pool, in MiB; a claim gives it what its tenant asked for.
    pub pool_memory_mb: u64,
    /// CPU time of one container per wall time, in thousandths of a core.
    pub cpu_millis: u32,
    /// CPU weight of a container that serves.
    pub cpu_shares: u32,
    /// CPU weight of a container that starts or waits: it must not slow down those that serve.
    pub pool_cpu_shares: u32,
    /// Processes and threads of one container.
    pub pids: u32,
    /// Open files of one process.
    pub nofile: u64,
    /// Size of a container's `/tmp` in MiB; counts as its memory.
    pub tmp_mb: u64,
    /// Log that a container may write per second, on average; more is dropped and counted.
    pub log_rate: ByteSize,
    /// Log that a container may write at once.
    pub log_burst: ByteSize,
    /// Storage calls of one container at once.
    pub storage_calls_max: u32,
    /// How long the store may take for one of them.
    #[serde(with = "humantime_serde")]
    pub storage_timeout: Duration,
    /// Code of functions that is too large for their records, kept in memory.
    pub code_cache: ByteSize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            containers_max: 2_000,
            pool_size: 4,
            pool_max: 16,
            pool_cover: Duration::from_secs(3),
            preload: true,
            refill_concurrency: 2,
            create_concurrency: 4,
            refill_busy_rate: 50,
            create_timeout: Duration::from_secs(15),
            circuit_pause: Duration::from_millis(500),
            circuit_pause_max: Duration::from_secs(30),
            wait_queue_max: 2_048,
            claims_waiting_max: 1_000,
            claim_timeout: Duration::from_secs(10),
            claim_burst: 10,
            claim_interval: Duration::from_secs(1),
            load_timeout: Duration::from_secs(10),
            load_retry_after: Duration::from_secs(1),
            ping_timeout: Duration::from_millis(250),
            freeze_after: Duration::from_secs(60),
            destroy_after: Duration::from_secs(30 * 60),
            retire_timeout: Duration::from_secs(15 * 60),
            memory_limit: None,
            pool_memory_mb: MEMORY_MB_DEFAULT,
            cpu_millis: 1_000,
            cpu_shares: 1_024,
            pool_cpu_shares: 64,
            pids: 128,
            nofile: 8_192,
            tmp_mb: 64,
            log_rate: ByteSize::kib(256),
            log_burst: ByteSize::mib(1),
            storage_calls_max: 16,
            storage_timeout: Duration::from_secs(5),
            code_cache: ByteSize::mib(64),
        }
    }
}

impl Config {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// A sentence that names the key and the remedy.
    pub fn validate(&self) -> Result<(), String> {
        let rules = [
            (self.containers_max == 0 || self.containers_max > SLOTS_MAX, format!("containers_max must be 1 to {SLOTS_MAX}")),
            (self.pool_max < self.pool_size, "pool_max must not be below pool_size".into()),
            (self.pool_max > self.containers_max, "pool_max must not be above containers_max".into()),
            (self.refill_concurrency == 0 || self.create_concurrency == 0, "refill_concurrency and create_concurrency must be above 0".into()),
            (self.wait_queue_max == 0 || self.claims_waiting_max == 0, "wait_queue_max and claims_waiting_max must be above 0".into()),
            (self.claim_burst == 0 || self.claim_interval.is_zero(), "claim_burst and claim_interval must be above 0".into()),
            (self.pool_memory_mb < MEMORY_MB_MIN, format!("pool_memory_mb must be at least {MEMORY_MB_MIN}")),
            (self.destroy_after < self.freeze_after, "destroy_after must not be below freeze_after".into()),
            (self.storage_calls_max == 0, "storage_calls_max must be above 0".into()),
            (self.circuit_pause.is_zero() || self.circuit_pause_max < self.circuit_pause, "circuit_pause must be above 0 and at most circuit_pause_max".into()),
            (
                [self.create_timeout, self.claim_timeout, self.load_timeout, self.ping_timeout, self.storage_timeout].iter().any(Duration::is_zero),
                "create_timeout, claim_timeout, load_timeout, ping_timeout and storage_timeout must be above 0".into(),
            ),
        ];
        rules.into_iter().find(|(broken, _)| *broken).map_or(Ok(()), |(_, remedy)| Err(remedy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_contradictions_are_refused() {
        Config::default().validate().unwrap();
        Config { containers_max: SLOTS_MAX, ..Config::default() }.validate().unwrap();
        for bad in [
            Config { containers_max: SLOTS_MAX + 1, ..Config::default() },
            Config { pool_max: 3, ..Config::default() },
            Config { destroy_after: Duration::from_secs(59), ..Config::default() },
            Config { ping_timeout: Duration::ZERO, ..Config::default() },
        ] {
            assert!(bad.validate().is_err());
        }
    }

    #[test]
    fn unknown_keys_are_refused_and_units_are_read() {
        assert!(serde_json::from_str::<Config>(r#"{"poolsize": 3}"#).is_err());
        let config: Config = serde_json::from_str(r#"{"freeze_after": "5s", "memory_limit": "2 GiB"}"#).unwrap();
        assert_eq!((config.freeze_after, config.memory_limit), (Duration::from_secs(5), Some(ByteSize::gib(2))));
    }
}
