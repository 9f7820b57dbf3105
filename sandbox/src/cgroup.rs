//! Control groups, read and written directly: a container is frozen in 0.3 ms this way where the engine takes 10. Knows versions 1
//! and 2. Never touches a group that does not carry the container's own id in its path.

use crate::{Limits, Usage, cpus::CpuSet};
use std::{
    collections::HashMap,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long the kernel may take to stop every process of a group; normally it takes microseconds.
const FREEZE_WAIT_MAX: Duration = Duration::from_secs(2);
/// Over which CPU time is limited.
pub(crate) const CPU_PERIOD_US: i64 = 100_000;
const MIB: u64 = 1024 * 1024;

/// Where this machine's control groups are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hierarchy {
    /// One tree per controller.
    V1(HashMap<String, PathBuf>),
    /// One tree.
    V2(PathBuf),
}

impl Hierarchy {
    /// Reads this process's mounts.
    pub(crate) fn detect() -> io::Result<Self> {
        Self::parse(&fs::read_to_string("/proc/self/mounts")?)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no control group file system is mounted"))
    }

    /// Lines of `/proc/self/mounts`. A hybrid machine counts as version 1: its memory controller is there.
    fn parse(mounts: &str) -> Option<Self> {
        let mut v1 = HashMap::new();
        let mut v2 = None;
        for line in mounts.lines() {
            let mut fields = line.split(' ').skip(1);
            let (Some(at), Some(kind), Some(options)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            match kind {
                "cgroup" => {
                    for controller in options.split(',') {
                        v1.entry(controller.to_owned()).or_insert_with(|| PathBuf::from(at));
                    }
                }
                "cgroup2" => v2 = v2.or_else(|| Some(PathBuf::from(at))),
                _ => {}
            }
        }
        if v1.contains_key("memory") { Some(Self::V1(v1)) } else { v2.map(Self::V2) }
    }

    /// The CPUs that containers may have.
    pub(crate) fn usable_cpus(&self) -> io::Result<CpuSet> {
        let file = match self {
            Self::V1(mounts) => mounts.get("cpuset").map(|mount| mount.join("cpuset.cpus")),
            Self::V2(root) => Some(root.join("cpuset.cpus.effective")),
        };
        let file = file.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the kernel's cpuset controller is missing"))?;
        let list = fs::read_to_string(&file)?;
        CpuSet::parse(&list).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {e}", file.display())))
    }

    /// `v1` or `v2`.
    pub(crate) fn version(&self) -> &'static str {
        match self {
            Self::V1(_) => "v1",
            Self::V2(_) => "v2",
        }
    }

    /// The group of the container `id` whose process is `pid`.
    pub(crate) fn group(&self, id: &str, pid: u32) -> io::Result<Group> {
        self.group_from(id, &fs::read_to_string(format!("/proc/{pid}/cgroup"))?)
    }

    fn group_from(&self, id: &str, lines: &str) -> io::Result<Group> {
        let mut paths = HashMap::new();
        for line in lines.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
                continue;
            };
            // A process that has ended, or another one under its number: not this container.
            if id.is_empty() || !path.contains(id) {
                continue;
            }
            let relative = path.trim_start_matches('/');
            match self {
                Self::V1(mounts) => {
                    for controller in controllers.split(',') {
                        if let Some(mount) = mounts.get(controller) {
                            paths.insert(controller.to_owned(), mount.join(relative));
                        }
                    }
                }
                Self::V2(root) if controllers.is_empty() => {
                    return Ok(Group::V2(root.join(relative)));
                }
                Self::V2(_) => {}
            }
        }
        if paths.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the process is in no control group of the container"));
        }
        Ok(Group::V1(paths))
    }
}

/// CPU time in each period.
pub(crate) fn cpu_quota_us(cpu_millis: u32) -> i64 {
    i64::from(cpu_millis) * CPU_PERIOD_US / 1000
}

/// One container's control group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Group {
    V1(HashMap<String, PathBuf>),
    V2(PathBuf),
}

impl Group {
    fn file(&self, controller: &str, name: &str) -> io::Result<PathBuf> {
        match self {
            Self::V1(paths) => paths
                .get(controller)
                .map(|p| p.join(name))
                .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no {controller} controller"))),
            Self::V2(path) => Ok(path.join(name)),
        }
    }

    /// Stops every process, and returns when they have stopped.
    pub(crate) fn freeze(&self) -> io::Result<()> {
        match self {
            Self::V1(_) => {
                let state = self.file("freezer", "freezer.state")?;
                write(&state, "FROZEN")?;
                wait_until(|| Ok(fs::read_to_string(&state)?.trim() == "FROZEN"), || write(&state, "FROZEN"))
            }
            Self::V2(path) => {
                write(&path.join("cgroup.freeze"), "1")?;
                wait_until(|| Ok(fs::read_to_string(path.join("cgroup.events"))?.contains("frozen 1")), || Ok(()))
            }
        }
        .inspect_err(|_| {
            // Half frozen is worse than running.
            let _ = self.thaw();
        })
    }

    /// Lets them run.
    pub(crate) fn thaw(&self) -> io::Result<()> {
        match self {
            Self::V1(_) => write(&self.file("freezer", "freezer.state")?, "THAWED"),
            Self::V2(path) => write(&path.join("cgroup.freeze"), "0"),
        }
    }

    /// New limits of memory and CPU, and the CPUs that it may use; all that the group above has where none are named.
    pub(crate) fn resize(&self, limits: &Limits, cpus: Option<&CpuSet>) -> io::Result<()> {
        let memory = limits.memory_mb.saturating_mul(MIB).to_string();
        let quota = cpu_quota_us(limits.cpu_millis);
        let kept = cpus.map(CpuSet::to_string);
        match self {
            Self::V1(_) => {
                let limit = self.file("memory", "memory.limit_in_bytes")?;
                let with_swap = self.file("memory", "memory.memsw.limit_in_bytes")?;
                // The kernel keeps memory <= memory and swap at every moment, so the order depends on the direction.
                if read_number(&limit)? < limits.memory_mb.saturating_mul(MIB) {
                    write_if_there(&with_swap, &memory)?;
                    write(&limit, &memory)?;
                } else {
                    write(&limit, &memory)?;
                    write_if_there(&with_swap, &memory)?;
                }
                write(&self.file("cpu", "cpu.cfs_period_us")?, &CPU_PERIOD_US.to_string())?;
                write(&self.file("cpu", "cpu.cfs_quota_us")?, &quota.to_string())?;
                write(&self.file("cpu", "cpu.shares")?, &limits.cpu_shares.to_string())?;
                if let Ok(cpus) = self.file("cpuset", "cpuset.cpus") {
                    // Never more than the group above has, and empty would be none at all.
                    let above = || fs::read_to_string(cpus.parent().and_then(Path::parent).unwrap_or(&cpus).join("cpuset.cpus"));
                    write(&cpus, kept.map_or_else(above, Ok)?.trim())?;
                }
            }
            Self::V2(path) => {
                write(&path.join("memory.max"), &memory)?;
                write_if_there(&path.join("memory.swap.max"), "0")?;
                write(&path.join("cpu.max"), &format!("{quota} {CPU_PERIOD_US}"))?;
                write(&path.join("cpu.weight"), &weight(limits.cpu_shares).to_string())?;
                let cpus = path.join("cpuset.cpus");
                // An empty list means what the group above has, but the kernel lets no group with processes go back to it.
                if let Some(list) = kept {
                    write_if_there(&cpus, &list)?;
                } else if fs::read_to_string(&cpus).is_ok_and(|own| !own.trim().is_empty()) {
                    let above = path.parent().unwrap_or(path).join("cpuset.cpus.effective");
                    write(&cpus, fs::read_to_string(above)?.trim())?;
                }
            }
        }
        Ok(())
    }

    /// What it uses.
    pub(crate) fn usage(&self) -> io::Result<Usage> {
        let pids = read_number(&self.file("pids", "pids.current")?)?;
        match self {
            Self::V1(_) => Ok(Usage {
                memory_bytes: read_number(&self.file("memory", "memory.usage_in_bytes")?)?,
                cpu: Duration::from_nanos(read_number(&self.file("cpuacct", "cpuacct.usage")?)?),
                pids,
            }),
            Self::V2(path) => Ok(Usage {
                memory_bytes: read_number(&path.join("memory.current"))?,
                cpu: Duration::from_micros(read_field(&path.join("cpu.stat"), "usage_usec")?),
                pids,
            }),
        }
    }

    /// Whether the kernel has killed a process of it for memory. False once the group is gone.
    pub(crate) fn out_of_memory(&self) -> bool {
        let file = match self {
            Self::V1(_) => self.file("memory", "memory.oom_control"),
            Self::V2(path) => Ok(path.join("memory.events")),
        };
        file.and_then(|f| read_field(&f, "oom_kill")).is_ok_and(|kills| kills > 0)
    }
}

/// Shares of version 1 (2 to 262144) as a weight of version 2 (1 to 10000), as container runtimes convert them.
fn weight(shares: u32) -> u64 {
    let shares = u64::from(shares.clamp(2, 262_144));
    1 + (shares - 2) * 9_999 / 262_142
}

/// Never creates: a control group's file is there or the kernel lacks the feature.
fn write(path: &Path, value: &str) -> io::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|e| io::Error::new(e.kind(), format!("write {value} to {}: {e}", path.display())))
}

/// Machines without swap accounting, or without cpusets, lack the file, and then there is nothing to limit.
fn write_if_there(path: &Path, value: &str) -> io::Result<()> {
    match write(path, value) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn read_number(path: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    text.trim()
        .parse()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {text:?} is no number", path.display())))
}

fn read_field(path: &Path, name: &str) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{} has no {name}", path.display())))
}

/// The freezer answers at once unless a process sits in the kernel; then it is asked again until the bound.
fn wait_until(done: impl Fn() -> io::Result<bool>, again: impl Fn() -> io::Result<()>) -> io::Result<()> {
    let start = Instant::now();
    while !done()? {
        if start.elapsed() > FREEZE_WAIT_MAX {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the processes did not stop"));
        }
        std::thread::sleep(Duration::from_micros(200));
        again()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cpus;

    const V1_MOUNTS: &str = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
        cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0\n\
        cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
        cgroup /sys/fs/cgroup/freezer cgroup rw,relatime,freezer 0 0\n\
        cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
    const V2_MOUNTS: &str = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";

    #[test]
    fn hierarchies_are_told_apart() {
        assert_eq!(Hierarchy::parse(V1_MOUNTS).unwrap().version(), "v1");
        assert_eq!(Hierarchy::parse(V2_MOUNTS).unwrap(), Hierarchy::V2(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(Hierarchy::parse("proc /proc proc rw 0 0\n"), None);
    }

    #[test]
    fn only_the_containers_own_group_is_taken() {
        let v1 = Hierarchy::parse(V1_MOUNTS).unwrap();
        let Group::V1(paths) = v1.group_from("abc", "5:freezer:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/\n").unwrap() else {
            panic!("not v1");
        };
        assert_eq!(paths["freezer"], Path::new("/sys/fs/cgroup/freezer/docker/abc"));
        assert_eq!(paths["cpuacct"], Path::new("/sys/fs/cgroup/cpu,cpuacct/docker/abc"));
        assert!(v1.group_from("abc", "5:freezer:/\n4:cpu,cpuacct:/user\n").is_err());
        assert!(v1.group_from("", "5:freezer:/docker/abc\n").is_err());

        let v2 = Hierarchy::parse(V2_MOUNTS).unwrap();
        let group = v2.group_from("abc", "0::/system.slice/docker-abc.scope\n").unwrap();
        assert_eq!(group, Group::V2(PathBuf::from("/sys/fs/cgroup/system.slice/docker-abc.scope")));
        assert!(v2.group_from("abc", "0::/\n").is_err());
    }

    #[test]
    fn version_2_is_written_as_the_kernel_expects() {
        let above = tempfile::tempdir().unwrap();
        fs::write(above.path().join("cpuset.cpus.effective"), "0-3\n").unwrap();
        let dir = above.path().join("own");
        fs::create_dir(&dir).unwrap();
        let group = Group::V2(dir.clone());
        for (name, content) in [
            ("cgroup.events", "populated 1\nfrozen 1\n"),
            ("memory.current", "4096\n"),
            ("memory.events", "oom 1\noom_kill 2\noom_group_kill 0\n"),
            ("cpu.stat", "usage_usec 1500\nuser_usec 1000\n"),
            ("pids.current", "3\n"),
            ("memory.swap.max", "max\n"),
            ("memory.max", "max\n"),
            ("cpu.max", "max 100000\n"),
            ("cpu.weight", "100\n"),
            ("pids.max", "max\n"),
            ("cpuset.cpus", "\n"),
            ("cgroup.freeze", "0\n"),
        ] {
            fs::write(dir.join(name), content).unwrap();
        }
        group.freeze().unwrap();
        assert_eq!(fs::read_to_string(dir.join("cgroup.freeze")).unwrap(), "1");
        group.thaw().unwrap();
        assert_eq!(fs::read_to_string(dir.join("cgroup.freeze")).unwrap(), "0");
        assert_eq!(group.usage().unwrap(), Usage { memory_bytes: 4096, cpu: Duration::from_micros(1500), pids: 3 });
        assert!(group.out_of_memory());
        let limits = Limits { memory_mb: 128, cpu_millis: 500, cpu_shares: 1024, cpus: Cpus::Any, pids: 9, nofile: 1, tmp_mb: 1 };
        group.resize(&limits, Some(&CpuSet::parse("2-3").unwrap())).unwrap();
        let read = |name| fs::read_to_string(dir.join(name)).unwrap();
        assert_eq!(
            (read("memory.max"), read("memory.swap.max"), read("cpu.max"), read("cpu.weight"), read("pids.max")),
            ("134217728".into(), "0".into(), "50000 100000".into(), "39".into(), "max\n".into())
        );
        assert_eq!(read("cpuset.cpus"), "2,3");
        group.resize(&limits, None).unwrap();
        assert_eq!(read("cpuset.cpus"), "0-3", "as many as the group above has");
        fs::write(dir.join("cpuset.cpus"), "\n").unwrap();
        group.resize(&limits, None).unwrap();
        assert_eq!(read("cpuset.cpus"), "\n", "what was never kept to some CPUs is left alone");
    }

    #[test]
    fn version_1_is_told_the_cpus_of_the_group_above() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        fs::create_dir(&own).unwrap();
        fs::write(dir.path().join("cpuset.cpus"), "0-3\n").unwrap();
        for name in ["memory.limit_in_bytes", "cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.shares", "cpuset.cpus"] {
            fs::write(own.join(name), "0\n").unwrap();
        }
        let group = Group::V1(["memory", "cpu", "cpuset"].map(|name| (name.to_owned(), own.clone())).into());
        let limits = Limits { memory_mb: 128, cpu_millis: 500, cpu_shares: 1024, cpus: Cpus::Any, pids: 9, nofile: 1, tmp_mb: 1 };
        let aside = CpuSet::parse("2-3").unwrap();
        for (cpus, wanted) in [(Some(&aside), "2,3"), (None, "0-3"), (Some(&aside), "2,3")] {
            group.resize(&limits, cpus).unwrap();
            assert_eq!(fs::read_to_string(own.join("cpuset.cpus")).unwrap(), wanted);
        }
        assert_eq!(fs::read_to_string(own.join("cpu.cfs_quota_us")).unwrap(), "50000");
    }

    #[test]
    fn weights_cover_the_range() {
        assert_eq!((weight(0), weight(2), weight(1024), weight(262_144), weight(u32::MAX)), (1, 1, 39, 10_000, 10_000));
    }
}
