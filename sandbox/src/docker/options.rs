//! The one place where a container's options come from: a pure function of constants, the operator's configuration and a
//! [`SandboxSpec`], which holds nothing that a tenant can choose but sizes. It asks for no capability, no device, no host
//! namespace and no host path but the slot's own directories and the runtime's program.

use super::{config::Config, seccomp};
use crate::{
    Purpose, SandboxError, SandboxSpec, cgroup,
    cpus::{CpuSet, CpuSplit},
};
use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount, MountBindOptions,
    MountBindOptionsPropagationEnum, MountType, ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};
use hearth_model::{
    function::NodeVersion,
    protocol::{RUNTIME_MAIN, paths, runtime_node_options},
};
use std::{collections::HashMap, path::Path};

/// Label with [`Config::instance`].
pub const LABEL_INSTANCE: &str = "hearth.instance";
/// Label with the slot's number.
pub const LABEL_SLOT: &str = "hearth.slot";
/// Label with `runtime` or `build`.
pub const LABEL_PURPOSE: &str = "hearth.purpose";
/// Label with the major version of Node.js.
pub const LABEL_NODE: &str = "hearth.node";

/// Where a build finds `out/`.
pub const BUILD_DIR: &str = "/build";
/// Inodes of `/tmp` for each MiB of it: enough for npm's cache of small files, too few to be an attack on the kernel's memory.
const TMP_INODES_PER_MB: u64 = 256;
/// Most inodes of `/tmp`.
const TMP_INODES_MAX: u64 = 262_144;
/// Above the usual 0, so that the kernel takes a tenant's process before the node's own when the whole machine is short.
const OOM_SCORE_ADJ: i64 = 500;
/// Processes and threads that a runtime with a kernel of its own needs beside the tenant's: they count against the same limit, and where there is
/// no room for them such a container hangs as it starts.
const OWN_KERNEL_PIDS: u32 = 128;
/// Runtimes that run a container's processes on the machine's kernel.
const ON_THIS_KERNEL: [&str; 2] = ["runc", "crun"];
const MIB: u64 = 1024 * 1024;

/// Directory of a slot with files for the container's `/etc`, written by this crate.
pub(crate) const ETC_DIR: &str = "etc";
/// A file for the container's `/etc`.
pub(crate) struct EtcFile {
    pub name: &'static str,
    pub text: &'static str,
}
/// The address is [`crate::net::GATEWAY`], where the packet filter passes questions on to the node's resolvers; without egress it
/// leads nowhere. The host's own resolvers are none of a tenant's business.
pub(crate) const RESOLV_CONF: EtcFile = EtcFile { name: "resolv.conf", text: "nameserver 169.254.1.1\noptions ndots:0\n" };
pub(crate) const HOSTS: EtcFile = EtcFile { name: "hosts", text: crate::net::HOSTS_BASE };

/// The container's name, one per slot: the engine itself refuses a second container on a slot.
pub(crate) fn name(config: &Config, slot: u32) -> String {
    format!("hearth-{}-{slot}", config.instance)
}

pub(crate) fn purpose_label(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Runtime => "runtime",
        Purpose::Build => "build",
    }
}

/// User and group id of a slot.
pub(crate) fn uid(config: &Config, slot: u32) -> Result<u32, SandboxError> {
    // The last ids of 32 bits mean "none" and "overflow" to the kernel and to network file systems.
    config
        .uid_base
        .checked_add(slot)
        .filter(|uid| *uid < u32::MAX - 2)
        .ok_or_else(|| refuse(format!("slot {slot} leaves no user id above uid_base {}", config.uid_base)))
}

/// All options of the container for `spec`. With `propagate` mounts below the slot's tree reach the running container; `split`
/// is this machine's.
pub(crate) fn container(
    config: &Config,
    spec: &SandboxSpec,
    propagate: bool,
    split: Option<&CpuSplit>,
) -> Result<ContainerCreateBody, SandboxError> {
    let uid = uid(config, spec.slot)?;
    Ok(ContainerCreateBody {
        image: Some(config.image(spec.purpose)),
        hostname: Some("hearth".to_owned()),
        user: Some(format!("{uid}:{uid}")),
        working_dir: Some(if spec.purpose == Purpose::Build { BUILD_DIR } else { "/tmp" }.to_owned()),
        env: Some(environment(spec.purpose, spec.node)),
        cmd: Some(command(spec)?),
        labels: Some(labels(config, spec)),
        host_config: Some(host_config(config, spec, uid, propagate, split)?),
        // The container gets a network namespace with nothing in it. Saying so here, and not only by the mode `none`, spares the
        // engine a hook that starts it a second time: half of the time a start takes.
        network_disabled: Some(true),
        ..ContainerCreateBody::default()
    })
}

fn command(spec: &SandboxSpec) -> Result<Vec<String>, SandboxError> {
    let node = format!("/opt/node{}/bin/node", spec.node.as_str());
    match spec.purpose {
        Purpose::Runtime if spec.args.is_empty() => {
            let options = runtime_node_options(spec.node).iter().map(|&option| option.to_owned());
            Ok([node].into_iter().chain(options).chain([format!("{}/{RUNTIME_MAIN}", paths::RUNTIME)]).collect())
        }
        Purpose::Runtime => Err(refuse("a runtime container takes no arguments".to_owned())),
        Purpose::Build if spec.args.is_empty() => Err(refuse("a build needs the path of its script".to_owned())),
        Purpose::Build => Ok([node].into_iter().chain(spec.args.iter().cloned()).collect()),
    }
}

/// Constants. A tenant's own environment reaches its functions in memory, see the protocol.
fn environment(purpose: Purpose, node: NodeVersion) -> Vec<String> {
    let version = node.as_str();
    let mut env = vec![
        format!("PATH=/opt/node{version}/bin:/usr/bin:/bin"),
        "HOME=/tmp".to_owned(),
        "LANG=C.UTF-8".to_owned(),
        "TZ=UTC".to_owned(),
        format!("HEARTH_RUN_DIR={}", paths::RUN),
    ];
    match purpose {
        // One arena of the C library's allocator serves a process whose work is on one thread, and saves a third of a megabyte.
        Purpose::Runtime => env.push("MALLOC_ARENA_MAX=1".to_owned()),
        Purpose::Build => env.push(format!("npm_config_nodedir=/opt/node{version}")),
    }
    env
}

fn labels(config: &Config, spec: &SandboxSpec) -> HashMap<String, String> {
    HashMap::from([
        (LABEL_INSTANCE.to_owned(), config.instance.clone()),
        (LABEL_SLOT.to_owned(), spec.slot.to_string()),
        (LABEL_PURPOSE.to_owned(), purpose_label(spec.purpose).to_owned()),
        (LABEL_NODE.to_owned(), spec.node.as_str().to_owned()),
    ])
}

fn host_config(
    config: &Config,
    spec: &SandboxSpec,
    uid: u32,
    propagate: bool,
    split: Option<&CpuSplit>,
) -> Result<HostConfig, SandboxError> {
    let limits = &spec.limits;
    let memory = to_i64("memory_mb", limits.memory_mb.saturating_mul(MIB))?;
    let nofile = to_i64("nofile", limits.nofile)?;
    let runtime = oci_runtime(config, spec)?;
    let own_kernel = runtime.as_deref().is_some_and(|name| !ON_THIS_KERNEL.contains(&name));
    let pids = if own_kernel { limits.pids.saturating_add(OWN_KERNEL_PIDS) } else { limits.pids };
    if limits.memory_mb == 0 || limits.cpu_millis == 0 || limits.pids == 0 || limits.nofile == 0 || limits.tmp_mb == 0 {
        return Err(refuse(format!("a limit of zero would mean no limit: {limits:?}")));
    }
    Ok(HostConfig {
        // Isolation.
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges".to_owned(), format!("seccomp={}", seccomp::profile())]),
        privileged: Some(false),
        readonly_rootfs: Some(true),
        network_mode: Some("none".to_owned()),
        // Private, and without a shared memory file system that would be one more thing to fill.
        ipc_mode: Some("none".to_owned()),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        runtime,
        // Node.js is process 1. An init process would cost memory in every container, and what it would reap counts against this
        // container's own limit of processes.
        init: Some(false),
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        // Limits.
        memory: Some(memory),
        memory_swap: Some(memory),
        // Not as `nano_cpus`: the engine refuses more of them than the CPUs that it may use itself.
        cpu_period: Some(cgroup::CPU_PERIOD_US),
        cpu_quota: Some(cgroup::cpu_quota_us(limits.cpu_millis)),
        cpu_shares: Some(i64::from(limits.cpu_shares)),
        cpuset_cpus: split.and_then(|split| split.of(limits.cpus)).map(CpuSet::to_string),
        pids_limit: Some(i64::from(pids)),
        oom_score_adj: Some(OOM_SCORE_ADJ),
        // No limit of processes per user: it counts per user id over the whole machine, the container's own limit is enough.
        ulimits: Some(vec![ulimit("nofile", nofile), ulimit("core", 0)]),
        log_config: Some(log_config(spec.purpose)),
        // Files.
        tmpfs: Some(HashMap::from([("/tmp".to_owned(), tmp_options(limits.tmp_mb, uid))])),
        mounts: Some(mounts(spec, propagate)?),
        ..HostConfig::default()
    })
}

/// The runtime of the container; a name that the operator has not configured is refused.
fn oci_runtime(config: &Config, spec: &SandboxSpec) -> Result<Option<String>, SandboxError> {
    match &spec.oci_runtime {
        None => Ok(config.oci_runtime.clone()),
        Some(name) if config.oci_runtimes.contains(name) => Ok(Some(name.clone())),
        Some(name) => Err(refuse(format!("the runtime {name:?} is not among docker.oci_runtimes"))),
    }
}

fn tmp_options(tmp_mb: u64, uid: u32) -> String {
    let inodes = tmp_mb.saturating_mul(TMP_INODES_PER_MB).min(TMP_INODES_MAX);
    // Executable, because modules unpack native code here and because what runs here could as well be JavaScript.
    format!("rw,nosuid,nodev,exec,size={tmp_mb}m,nr_inodes={inodes},mode=1777,uid={uid},gid={uid}")
}

fn mounts(spec: &SandboxSpec, propagate: bool) -> Result<Vec<Mount>, SandboxError> {
    let run = spec.slot_dir.join("run");
    let tree = spec.slot_dir.join("tree");
    // Modules that are mounted below `tree` later on appear in the running container, nothing travels back.
    let inward = if propagate { MountBindOptionsPropagationEnum::RSLAVE } else { MountBindOptionsPropagationEnum::RPRIVATE };
    let mut mounts = vec![
        bind(&run, paths::RUN, false, MountBindOptionsPropagationEnum::RPRIVATE)?,
        bind(&tree, paths::SLOT, true, inward)?,
        bind(&spec.runtime_dir, paths::RUNTIME, true, MountBindOptionsPropagationEnum::RPRIVATE)?,
    ];
    // Without a network the engine leaves both files empty.
    for file in [RESOLV_CONF, HOSTS] {
        let source = spec.slot_dir.join(ETC_DIR).join(file.name);
        mounts.push(bind(&source, &format!("/etc/{}", file.name), true, MountBindOptionsPropagationEnum::RPRIVATE)?);
    }
    if spec.purpose == Purpose::Build {
        mounts.push(bind(&spec.slot_dir.join("out"), BUILD_DIR, false, MountBindOptionsPropagationEnum::RPRIVATE)?);
    }
    Ok(mounts)
}

fn bind(source: &Path, target: &str, read_only: bool, propagation: MountBindOptionsPropagationEnum) -> Result<Mount, SandboxError> {
    let text = source.to_str().ok_or_else(|| refuse(format!("{} is not UTF-8", source.display())))?;
    if !source.is_absolute() {
        return Err(refuse(format!("{text} is not an absolute path")));
    }
    Ok(Mount {
        typ: Some(MountType::BIND),
        source: Some(text.to_owned()),
        target: Some(target.to_owned()),
        read_only: Some(read_only),
        bind_options: Some(MountBindOptions { propagation: Some(propagation), ..MountBindOptions::default() }),
        ..Mount::default()
    })
}

fn ulimit(name: &str, value: i64) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(name.to_owned()), soft: Some(value), hard: Some(value) }
}

/// What the first process prints is kept for diagnosis only, so little is enough; the engine's default driver has no bound.
fn log_config(purpose: Purpose) -> HostConfigLogConfig {
    let (size, files) = match purpose {
        Purpose::Runtime => ("64k", "2"),
        Purpose::Build => ("1m", "2"),
    };
    let config = [("max-size", size), ("max-file", files), ("compress", "false")];
    HostConfigLogConfig {
        typ: Some("local".to_owned()),
        config: Some(config.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()),
    }
}

fn to_i64(key: &'static str, value: u64) -> Result<i64, SandboxError> {
    i64::try_from(value).map_err(|_| refuse(format!("{key} {value} is too large")))
}

fn refuse(detail: String) -> SandboxError {
    SandboxError::Failed { call: "make options", detail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Limits;
    use std::path::PathBuf;

    fn spec(purpose: Purpose) -> SandboxSpec {
        SandboxSpec {
            slot: 7,
            purpose,
            node: NodeVersion::V24,
            oci_runtime: None,
            slot_dir: PathBuf::from("/data/slots/7"),
            runtime_dir: PathBuf::from("/usr/lib/hearth/runtime"),
            limits: Limits {
                memory_mb: 256,
                cpu_millis: 1500,
                cpu_shares: 1024,
                cpus: crate::Cpus::Any,
                pids: 64,
                nofile: 4096,
                tmp_mb: 64,
            },
            args: match purpose {
                Purpose::Runtime => Vec::new(),
                Purpose::Build => vec!["/opt/hearth/build/main.js".to_owned(), "lodash@4.17.21".to_owned()],
            },
        }
    }

    fn config() -> Config {
        Config {
            instance: "n1".to_owned(),
            runtime_image: Some("hearth-runtime:test".to_owned()),
            build_image: Some("hearth-build:test".to_owned()),
            ..Config::default()
        }
    }

    fn json(spec: &SandboxSpec) -> serde_json::Value {
        let split = CpuSplit { background: CpuSet::parse("2-3").unwrap(), foreground: CpuSet::parse("0-1").ok() };
        serde_json::to_value(container(&config(), spec, true, Some(&split)).unwrap()).unwrap()
    }

    /// Every option of a tenant's container, as the engine gets it. A change here is a change of the isolation: review it as one.
    #[test]
    fn golden_runtime() {
        let expected = serde_json::json!({
            "Image": "hearth-runtime:test",
            "Hostname": "hearth",
            "User": "60007:60007",
            "WorkingDir": "/tmp",
            "Env": [
                "PATH=/opt/node24/bin:/usr/bin:/bin", "HOME=/tmp", "LANG=C.UTF-8", "TZ=UTC", "HEARTH_RUN_DIR=/run/hearth",
                "MALLOC_ARENA_MAX=1"
            ],
            "Cmd": ["/opt/node24/bin/node", "--expose-internals", "--v8-pool-size=1", "--single-threaded-gc", "--max-semi-space-size=8", "/opt/hearth/main.js"],
            "Labels": {"hearth.instance": "n1", "hearth.slot": "7", "hearth.purpose": "runtime", "hearth.node": "24"},
            "HostConfig": {
                "CapDrop": ["ALL"],
                "SecurityOpt": ["no-new-privileges", format!("seccomp={}", seccomp::profile())],
                "Privileged": false,
                "ReadonlyRootfs": true,
                "NetworkMode": "none",
                "IpcMode": "none",
                "CgroupnsMode": "private",
                "Init": false,
                "RestartPolicy": {"Name": "no"},
                "Memory": 268_435_456,
                "MemorySwap": 268_435_456,
                "CpuPeriod": 100_000,
                "CpuQuota": 150_000,
                "CpuShares": 1024,
                "PidsLimit": 64,
                "OomScoreAdj": 500,
                "Ulimits": [{"Name": "nofile", "Soft": 4096, "Hard": 4096}, {"Name": "core", "Soft": 0, "Hard": 0}],
                "LogConfig": {"Type": "local", "Config": {"max-size": "64k", "max-file": "2", "compress": "false"}},
                "Tmpfs": {"/tmp": "rw,nosuid,nodev,exec,size=64m,nr_inodes=16384,mode=1777,uid=60007,gid=60007"},
                "Mounts": [
                    {"Type": "bind", "Source": "/data/slots/7/run", "Target": "/run/hearth", "ReadOnly": false, "BindOptions": {"Propagation": "rprivate"}},
                    {"Type": "bind", "Source": "/data/slots/7/tree", "Target": "/hearth", "ReadOnly": true, "BindOptions": {"Propagation": "rslave"}},
                    {"Type": "bind", "Source": "/usr/lib/hearth/runtime", "Target": "/opt/hearth", "ReadOnly": true, "BindOptions": {"Propagation": "rprivate"}},
                    {"Type": "bind", "Source": "/data/slots/7/etc/resolv.conf", "Target": "/etc/resolv.conf", "ReadOnly": true, "BindOptions": {"Propagation": "rprivate"}},
                    {"Type": "bind", "Source": "/data/slots/7/etc/hosts", "Target": "/etc/hosts", "ReadOnly": true, "BindOptions": {"Propagation": "rprivate"}},
                ],
            },
            "NetworkDisabled": true,
        });
        assert_eq!(json(&spec(Purpose::Runtime)), expected);
    }

    #[test]
    fn without_root_only_the_propagation_differs() {
        let private = serde_json::to_value(container(&config(), &spec(Purpose::Runtime), false, None).unwrap()).unwrap();
        let mut expected = json(&spec(Purpose::Runtime));
        expected["HostConfig"]["Mounts"][1]["BindOptions"]["Propagation"] = "rprivate".into();
        assert_eq!(private, expected);
    }

    #[test]
    fn golden_build_differs_only_in_what_a_build_needs() {
        let (runtime, build) = (json(&spec(Purpose::Runtime)), json(&spec(Purpose::Build)));
        let mut expected = runtime;
        expected["Image"] = "hearth-build:test".into();
        expected["WorkingDir"] = "/build".into();
        *expected["Env"].as_array_mut().unwrap().last_mut().unwrap() = "npm_config_nodedir=/opt/node24".into();
        expected["Cmd"] = serde_json::json!(["/opt/node24/bin/node", "/opt/hearth/build/main.js", "lodash@4.17.21"]);
        expected["Labels"]["hearth.purpose"] = "build".into();
        expected["HostConfig"]["LogConfig"]["Config"]["max-size"] = "1m".into();
        expected["HostConfig"]["Mounts"].as_array_mut().unwrap().push(serde_json::json!(
            {"Type": "bind", "Source": "/data/slots/7/out", "Target": "/build", "ReadOnly": false, "BindOptions": {"Propagation": "rprivate"}}
        ));
        assert_eq!(build, expected);
    }

    #[test]
    fn what_cannot_be_isolated_is_refused() {
        let mut with_args = spec(Purpose::Runtime);
        with_args.args.push("--inspect".to_owned());
        let mut without_script = spec(Purpose::Build);
        without_script.args.clear();
        let mut relative = spec(Purpose::Runtime);
        relative.slot_dir = PathBuf::from("slots/7");
        let mut unlimited = spec(Purpose::Runtime);
        unlimited.limits.memory_mb = 0;
        let mut other_runtime = spec(Purpose::Runtime);
        other_runtime.oci_runtime = Some("runsc".to_owned());
        let mut no_uid = spec(Purpose::Runtime);
        no_uid.slot = u32::MAX - 60_000;
        for bad in [with_args, without_script, relative, unlimited, other_runtime, no_uid] {
            assert!(matches!(container(&config(), &bad, true, None), Err(SandboxError::Failed { .. })), "{bad:?}");
        }
    }

    #[test]
    fn a_kernel_of_its_own_has_room_for_its_threads() {
        let config = Config { oci_runtimes: vec!["runsc".to_owned(), "crun".to_owned()], ..config() };
        let pids = |runtime: Option<&str>| {
            let spec = SandboxSpec { oci_runtime: runtime.map(str::to_owned), ..spec(Purpose::Runtime) };
            container(&config, &spec, true, None).unwrap().host_config.unwrap().pids_limit
        };
        assert_eq!((pids(None), pids(Some("crun")), pids(Some("runsc"))), (Some(64), Some(64), Some(64 + 128)));
    }

    #[test]
    fn containers_ask_the_gateway_for_names() {
        assert!(RESOLV_CONF.text.starts_with(&format!("nameserver {}\n", crate::net::GATEWAY)));
    }

    #[test]
    fn slots_have_users_of_their_own() {
        assert_eq!(uid(&config(), 0).unwrap(), 60_000);
        assert_eq!(uid(&config(), 1).unwrap(), 60_001);
    }
}
