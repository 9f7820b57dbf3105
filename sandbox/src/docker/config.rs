//! What an operator may set about containers. Nothing here comes from a tenant.

use crate::{Purpose, SandboxError, image, net};
use serde::{Deserialize, Deserializer, Serialize};
use std::{path::PathBuf, time::Duration};

/// Settings of [`super::DockerSandbox`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Names this node's containers among others of the same engine (the label `hearth.instance`): lower-case letters, digits and
    /// hyphens, at most 32. A node that restarts under the same name adopts what it finds; two nodes on one engine need two names.
    pub instance: String,
    /// The engine's unix socket.
    pub socket: PathBuf,
    /// The OCI runtime the engine is to use, as `runsc`; none for the engine's default.
    pub oci_runtime: Option<String>,
    /// Other OCI runtimes that tenants may be given one by one or by class.
    pub oci_runtimes: Vec<String>,
    /// Start although `hearth doctor` finds something unsafe: for development, or where the distribution has mended runc under an old
    /// number.
    pub accept_unsafe: bool,
    /// CPUs for what no request waits for and for containers that keep a CPU busy, so that others' requests have the rest: a list as
    /// `2-3,5`, `auto` for the half with the higher numbers, or `none` for letting every container use every CPU. The engine itself
    /// belongs there, too (docs/operations/latency.md).
    #[serde(deserialize_with = "list_of_cpus")]
    pub background_cpus: String,
    /// User and group id of slot 0; slot N runs as `uid_base + N`. The image has names for 60000 to 64999.
    pub uid_base: u32,
    /// Image of tenants' containers; none for the one that this version builds.
    pub runtime_image: Option<String>,
    /// Image of builds; none for the one that this version builds.
    pub build_image: Option<String>,
    /// How long any call to the engine may take.
    #[serde(with = "humantime_serde")]
    pub call_timeout: Duration,
    /// How long creating, starting or removing a container may take.
    #[serde(with = "humantime_serde")]
    pub create_timeout: Duration,
    /// Whether and how containers reach the public internet.
    pub egress: net::Config,
}

/// A list of one CPU looks like a number where values have no quotes, as in environment variables.
fn list_of_cpus<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum List {
        Number(u32),
        Text(String),
    }
    Ok(match List::deserialize(deserializer)? {
        List::Number(cpu) => cpu.to_string(),
        List::Text(list) => list,
    })
}

impl Default for Config {
    fn default() -> Self {
        Self {
            instance: "default".to_owned(),
            socket: PathBuf::from("/var/run/docker.sock"),
            oci_runtime: None,
            oci_runtimes: Vec::new(),
            accept_unsafe: false,
            background_cpus: "auto".to_owned(),
            uid_base: 60_000,
            runtime_image: None,
            build_image: None,
            call_timeout: Duration::from_secs(10),
            create_timeout: Duration::from_secs(30),
            egress: net::Config::default(),
        }
    }
}

/// Longest [`Config::instance`]: it is part of container names and packet filter tables.
pub const INSTANCE_BYTES_MAX: usize = 32;
/// Lowest [`Config::uid_base`]: below it are people's and services' accounts of usual distributions.
pub const UID_BASE_MIN: u32 = 10_000;

impl Config {
    /// Refuses what cannot work, naming the key and the remedy.
    pub fn validate(&self) -> Result<(), SandboxError> {
        let refuse = |detail: String| Err(SandboxError::Failed { call: "read configuration", detail });
        let name = &self.instance;
        let is_name = !name.is_empty()
            && name.len() <= INSTANCE_BYTES_MAX
            && !name.starts_with('-')
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !is_name {
            return refuse(format!(
                "instance {name:?} is no name: use lower-case letters, digits and hyphens, at most {INSTANCE_BYTES_MAX}"
            ));
        }
        if self.uid_base < UID_BASE_MIN {
            return refuse(format!(
                "uid_base {} is too low: tenants must not share an id with accounts of this machine; use {UID_BASE_MIN} or more",
                self.uid_base
            ));
        }
        if self.call_timeout.is_zero() || self.create_timeout.is_zero() {
            return refuse("call_timeout and create_timeout must be above zero".to_owned());
        }
        self.egress.validate().map_err(|e| SandboxError::Failed { call: "read configuration", detail: e.to_string() })
    }

    /// The image of `purpose`.
    #[must_use]
    pub fn image(&self, purpose: Purpose) -> String {
        let configured = match purpose {
            Purpose::Runtime => &self.runtime_image,
            Purpose::Build => &self.build_image,
        };
        configured.clone().unwrap_or_else(|| image::tag(purpose))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_bad_names_are_not() {
        Config::default().validate().unwrap();
        for bad in ["", "-a", "A", "a b", "a/b", &"a".repeat(INSTANCE_BYTES_MAX + 1)] {
            let config = Config { instance: bad.to_owned(), ..Config::default() };
            assert!(config.validate().is_err(), "{bad:?}");
        }
        let longest = Config { instance: "a".repeat(INSTANCE_BYTES_MAX), ..Config::default() };
        longest.validate().unwrap();
    }

    #[test]
    fn ids_of_accounts_are_refused() {
        assert!(Config { uid_base: UID_BASE_MIN - 1, ..Config::default() }.validate().is_err());
        Config { uid_base: UID_BASE_MIN, ..Config::default() }.validate().unwrap();
    }

    #[test]
    fn unknown_keys_are_refused() {
        let parsed: Result<Config, _> = serde_json::from_str(r#"{"privileged": true}"#);
        assert!(parsed.is_err());
        let parsed: Config = serde_json::from_str(r#"{"call_timeout": "3s", "egress": {"mode": "none"}}"#).unwrap();
        assert_eq!(parsed.call_timeout, Duration::from_secs(3));
        assert_eq!(parsed.egress.mode, net::Mode::None);
        for (text, list) in [("{}", "auto"), (r#"{"background_cpus": 1}"#, "1"), (r#"{"background_cpus": "2-3"}"#, "2-3")] {
            assert_eq!(serde_json::from_str::<Config>(text).unwrap().background_cpus, list);
        }
    }
}
