//! What is weak about this machine's containers, each with its remedy.

use super::{config::Config, engine::Engine, slot_dir::is_root};
use crate::{
    Description, Finding, Purpose, SandboxError, Severity, cgroup,
    cpus::{CpuSet, CpuSplit},
    net,
};
use bollard::models::{SystemInfo, SystemVersion};
use std::{collections::BTreeMap, path::Path};

pub(super) async fn describe(
    config: &Config,
    engine: &Engine,
    hierarchy: Option<&cgroup::Hierarchy>,
    egress: bool,
    split: Option<&CpuSplit>,
    found: &[String],
) -> Result<Description, SandboxError> {
    let docker = engine.docker();
    let version = engine.quick("version", docker.version()).await?;
    let info = engine.quick("info", docker.info()).await?;
    let runc = component(&version, "runc");
    let cgroup = hierarchy.map_or("cgroup unknown".to_owned(), |h| format!("cgroup {}", h.version()));
    let text = format!(
        "docker {}, API {}, {}, {cgroup}{}{}",
        version.version.as_deref().unwrap_or("unknown"),
        docker.client_version(),
        runc.as_deref().map_or("runc unknown".to_owned(), |r| format!("runc {r}")),
        split.map(|split| format!(", background CPUs {}", split.background)).unwrap_or_default(),
        match (config.egress.mode, egress) {
            (net::Mode::Public, true) => ", egress public",
            _ => ", egress none",
        },
    );
    let (mounts_propagate, mount_warning) = propagation(&config.socket);
    let mut warnings = found.to_vec();
    warnings.extend(mount_warning);
    let mut findings = of_engine(config, &info, runc.as_deref(), split.map(|split| &split.background));
    findings.extend(of_machine(config, mounts_propagate));
    warnings.extend(findings.iter().filter(|f| !f.passed).map(|f| f.detail.clone()));
    Ok(Description { engine: text, cpu_split: split.cloned(), mounts_propagate, warnings, findings, images: images(config) })
}

fn images(config: &Config) -> BTreeMap<String, String> {
    [("runtime", Purpose::Runtime), ("build", Purpose::Build)]
        .into_iter()
        .map(|(name, p)| (name.to_owned(), config.image(p)))
        .collect()
}

fn component(version: &SystemVersion, name: &str) -> Option<String> {
    version.components.iter().flatten().find(|c| c.name == name).map(|c| c.version.clone())
}

fn finding(id: &'static str, severity: Severity, title: &'static str, passed: bool, detail: String) -> Finding {
    Finding { id, title, severity, passed, detail: if passed { String::new() } else { detail } }
}

fn of_engine(config: &Config, info: &SystemInfo, runc: Option<&str>, background_cpus: Option<&CpuSet>) -> Vec<Finding> {
    let default_runtime = config.oci_runtime.as_deref().or(info.default_runtime.as_deref()).unwrap_or("runc");
    let runtimes: Vec<&String> = config.oci_runtime.iter().chain(&config.oci_runtimes).collect();
    let unknown: Vec<&str> = runtimes
        .into_iter()
        .filter(|wanted| !info.runtimes.as_ref().is_some_and(|known| known.contains_key(*wanted)))
        .map(String::as_str)
        .collect();
    let security: Vec<&str> = info.security_options.iter().flatten().map(String::as_str).collect();
    let unlimited: Vec<&str> =
        [(info.memory_limit, "memory"), (info.swap_limit, "swap"), (info.pids_limit, "processes"), (info.cpu_cfs_quota, "CPU")]
            .into_iter()
            .filter_map(|(have, what)| (have == Some(false)).then_some(what))
            .collect();
    vec![
        finding(
            "engine.runc",
            Severity::Unsafe,
            "runc has no known way out of a container",
            default_runtime != "runc" || runc.is_some_and(runc_is_mended),
            format!(
                "runc {} has known ways out of a container (CVE-2025-31133, -52565, -52881) unless the distribution has mended it under the old number: install runc 1.2.8, 1.3.3 or newer",
                runc.unwrap_or("of unknown version")
            ),
        ),
        finding(
            "engine.runtimes",
            Severity::Unsafe,
            "the engine knows the configured OCI runtimes",
            unknown.is_empty(),
            format!(
                "the engine does not know the runtime {unknown:?}: add it to the engine's daemon.json, or take it out of docker.oci_runtime and docker.oci_runtimes"
            ),
        ),
        finding(
            "engine.seccomp",
            Severity::Unsafe,
            "system calls are filtered",
            security.iter().any(|s| s.starts_with("name=seccomp") && !s.contains("unconfined")),
            "the engine filters no system calls (seccomp): use a kernel and an engine with its default profile".to_owned(),
        ),
        finding(
            "engine.limits",
            Severity::Unsafe,
            "memory, swap, processes and CPU of containers are limited",
            unlimited.is_empty(),
            format!("the kernel or engine does not limit {} of containers: enable these control group controllers", unlimited.join(", ")),
        ),
        finding(
            "engine.userns",
            Severity::Weak,
            "user ids inside containers are not those of the machine",
            security.iter().any(|s| s.starts_with("name=userns") || s.starts_with("name=rootless")),
            "user ids inside containers are those of this machine (each slot has its own, none is root): set \"userns-remap\" in the engine's daemon.json for one more wall, where slot directories allow it".to_owned(),
        ),
        finding(
            "engine.mac",
            Severity::Weak,
            "containers are confined by AppArmor or SELinux",
            security.iter().any(|s| s.starts_with("name=apparmor") || s.starts_with("name=selinux")),
            "the engine uses neither AppArmor nor SELinux: enable one in the kernel, so that a hole in one wall meets another".to_owned(),
        ),
        finding(
            "engine.live-restore",
            Severity::Weak,
            "containers outlive a restart of the engine",
            info.live_restore_enabled == Some(true),
            "a restart of the engine ends all containers: set \"live-restore\": true in its daemon.json".to_owned(),
        ),
        finding(
            "engine.cpus",
            Severity::Weak,
            "the engine leaves CPUs to requests",
            background_cpus.is_none_or(|aside| info.ncpu.is_some_and(|cpus| usize::try_from(cpus).is_ok_and(|cpus| cpus <= aside.len()))),
            format!(
                "the engine may use every CPU, so that making and removing containers slows requests: keep it to docker.background_cpus (systemctl set-property docker.service AllowedCPUs={}; docs/operations/latency.md)",
                background_cpus.map(CpuSet::to_string).unwrap_or_default()
            ),
        ),
    ]
}

/// What the kernel's settings say, and who this process is.
fn of_machine(config: &Config, mounts_propagate: bool) -> Vec<Finding> {
    let sysctl = |name: &str| std::fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default().trim().parse::<i64>().ok();
    let socket_mode = {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(&config.socket).map_or(0, |m| m.permissions().mode() & 0o777)
    };
    vec![
        finding(
            "host.root",
            Severity::Weak,
            "this process is root and can bound containers' files",
            is_root(),
            "this process is not root: a tenant can fill the disk through its run directory, and slots' directories are open to every user who can reach them; run as root".to_owned(),
        ),
        finding(
            "host.mounts",
            Severity::Weak,
            "a container sees only the modules of its own functions",
            mounts_propagate,
            "every container sees the whole module cache, read-only: run as root, in the engine's mount namespace".to_owned(),
        ),
        finding(
            "host.socket",
            Severity::Unsafe,
            "only root and its group reach the engine",
            socket_mode & 0o007 == 0,
            format!("{} has mode {socket_mode:o}: whoever reaches it is root; chmod 660 it", config.socket.display()),
        ),
        finding(
            "host.bpf",
            Severity::Weak,
            "users may not load BPF programs",
            sysctl("kernel/unprivileged_bpf_disabled").is_none_or(|v| v != 0),
            "every user may load BPF programs: sysctl -w kernel.unprivileged_bpf_disabled=1".to_owned(),
        ),
        finding(
            "host.dmesg",
            Severity::Weak,
            "users may not read the kernel's log and addresses",
            sysctl("kernel/dmesg_restrict").is_none_or(|v| v != 0) && sysctl("kernel/kptr_restrict").is_none_or(|v| v != 0),
            "the kernel shows its log or addresses to every user: sysctl -w kernel.dmesg_restrict=1 kernel.kptr_restrict=1".to_owned(),
        ),
        finding(
            "egress.filter",
            Severity::Weak,
            "containers' connections can be filtered",
            config.egress.mode == net::Mode::None || (is_root() && sysctl("net/ipv4/ip_forward") == Some(1)),
            "egress does not work here: it needs root and net.ipv4.ip_forward=1, or egress.mode = \"none\"".to_owned(),
        ),
    ]
}

/// Whether runc is one of those that were mended: 1.2.8, 1.3.3, or anything newer.
fn runc_is_mended(version: &str) -> bool {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    let (Some(major), Some(minor), patch) = (numbers.next(), numbers.next(), numbers.next().unwrap_or(0)) else {
        return false;
    };
    match (major, minor) {
        (1, 2) => patch >= 8,
        (1, 3) => patch >= 3,
        // The first candidates of 1.4 were still open.
        (1, 4) if patch == 0 => {
            !version.contains("rc.1") && !version.contains("rc.2") && !version.contains("rc1") && !version.contains("rc2")
        }
        _ => (major, minor) > (1, 3),
    }
}

/// Mounts made by this process reach running containers if it may mount and shares the engine's view of mounts.
fn propagation(socket: &Path) -> (bool, Option<String>) {
    if !is_root() {
        let remedy = "modules cannot be mounted into running containers: run as root; until then every container sees the whole module cache, read-only";
        return (false, Some(remedy.to_owned()));
    }
    match engine_shares_mounts(socket) {
        Some(true) | None => (true, None),
        Some(false) => {
            let remedy = "the engine runs in another mount namespace, so modules cannot be mounted into running containers: run both in the same one";
            (false, Some(remedy.to_owned()))
        }
    }
}

fn engine_shares_mounts(socket: &Path) -> Option<bool> {
    let stream = std::os::unix::net::UnixStream::connect(socket).ok()?;
    let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
    let namespace = |pid: String| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    Some(namespace(peer.pid.as_raw_nonzero().to_string())? == namespace("self".to_owned())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mended_versions_of_runc() {
        for good in ["1.2.8", "1.2.9", "1.3.3", "1.3.4+ds1", "1.4.0", "1.4.0-rc.3", "1.10.0", "2.0.0"] {
            assert!(runc_is_mended(good), "{good}");
        }
        for bad in ["1.1.5+ds1", "1.2.7", "1.3.2", "1.4.0-rc.2", "1.0.0-rc93", "", "unknown"] {
            assert!(!runc_is_mended(bad), "{bad}");
        }
    }

    #[test]
    fn a_weak_engine_is_described() {
        let aside = CpuSet::parse("2-3").unwrap();
        let weak = SystemInfo { swap_limit: Some(false), ..SystemInfo::default() };
        let config = Config { oci_runtime: Some("runsc".to_owned()), ..Config::default() };
        let failed = |findings: Vec<Finding>| findings.into_iter().filter(|f| !f.passed).map(|f| f.detail).collect::<Vec<_>>();
        let text = failed(of_engine(&config, &weak, None, Some(&aside))).join("\n");
        for word in ["\"runsc\"", "seccomp", "live-restore", "swap", "background_cpus"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        let strong = SystemInfo {
            security_options: Some(vec![
                "name=seccomp,profile=default".to_owned(),
                "name=userns".to_owned(),
                "name=apparmor".to_owned(),
            ]),
            live_restore_enabled: Some(true),
            ncpu: Some(2),
            ..SystemInfo::default()
        };
        assert_eq!(failed(of_engine(&Config::default(), &strong, Some("1.3.3"), Some(&aside))), Vec::<String>::new());
    }
}
