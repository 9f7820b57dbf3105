//! Sets of CPUs, written as Linux writes them (`0-1,4`), and the split of a machine's: those that are set aside for background work, which
//! is what no request waits for and containers that keep a CPU busy, and the others.

use crate::Cpus;
pub(crate) use rustix::thread::CpuSet as Affinity;
use std::{collections::BTreeSet, fs, io, time::Duration};

/// Highest number of a CPU; Linux is built for no more.
const NUMBER_MAX: u32 = 8_191;

/// Some of a machine's CPUs, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuSet(BTreeSet<u32>);

impl CpuSet {
    /// From a list of numbers and ranges.
    pub(crate) fn parse(list: &str) -> Result<Self, String> {
        let number = |text: &str| match text.parse::<u32>() {
            Ok(number) if number <= NUMBER_MAX => Ok(number),
            _ => Err(format!("{list:?} is no list of CPUs: write it as 2-3,5")),
        };
        let mut cpus = BTreeSet::new();
        for part in list.trim().split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(format!("{part:?} in {list:?} runs backwards"));
            }
            cpus.extend(first..=last);
        }
        Ok(Self(cpus))
    }

    /// As a thread's affinity.
    pub(crate) fn affinity(&self) -> Affinity {
        let mut set = Affinity::new();
        // The kernel knows more CPUs than this type does; those are left out.
        for cpu in self.0.iter().map(|cpu| *cpu as usize).filter(|cpu| *cpu < Affinity::MAX_CPU) {
            set.set(cpu);
        }
        set
    }

    /// How many; never 0.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "none is empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn contains(&self, cpu: u32) -> bool {
        self.0.contains(&cpu)
    }

    /// Those that are not in `other`.
    fn without(&self, other: &Self) -> Option<Self> {
        let rest: BTreeSet<u32> = self.0.difference(&other.0).copied().collect();
        (!rest.is_empty()).then_some(Self(rest))
    }

    /// The half with the higher numbers, the smaller one of an odd number: of cores where there are several, since what runs on one
    /// thread of a core slows the other, otherwise of CPUs. None of a single CPU.
    fn upper_half(&self, core_of: impl Fn(u32) -> BTreeSet<u32>) -> Option<Self> {
        let mut cores: Vec<BTreeSet<u32>> = Vec::new();
        for cpu in &self.0 {
            if !cores.iter().any(|core| core.contains(cpu)) {
                cores.push(core_of(*cpu).intersection(&self.0).copied().chain([*cpu]).collect());
            }
        }
        if cores.len() == 1 {
            cores = self.0.iter().map(|cpu| BTreeSet::from([*cpu])).collect();
        }
        let upper: BTreeSet<u32> = cores.iter().skip(cores.len().div_ceil(2)).flatten().copied().collect();
        (!upper.is_empty()).then_some(Self(upper))
    }
}

impl std::fmt::Display for CpuSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list: Vec<String> = self.0.iter().map(u32::to_string).collect();
        f.write_str(&list.join(","))
    }
}

/// A machine's CPUs where some are set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuSplit {
    /// Set aside for background work.
    pub background: CpuSet,
    /// The others that containers may use; none where all are set aside.
    pub foreground: Option<CpuSet>,
}

impl CpuSplit {
    /// Those that `cpus` means; none for all.
    pub(crate) fn of(&self, cpus: Cpus) -> Option<&CpuSet> {
        match cpus {
            Cpus::Any => None,
            Cpus::Background => Some(&self.background),
            Cpus::Foreground => self.foreground.as_ref(),
        }
    }

    /// What all of this machine's programs have used since it started.
    pub fn used(&self) -> io::Result<UsedTime> {
        self.used_of(&fs::read_to_string("/proc/stat")?)
    }

    /// `/proc/stat` has a line for each CPU with its ticks: user, nice, system, idle, waiting for a disk, interrupts, those put off,
    /// stolen by the host.
    fn used_of(&self, text: &str) -> io::Result<UsedTime> {
        let malformed =
            |line: &str| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/stat: {line:?} is not what is expected"));
        let (mut background, mut foreground, mut seen) = (0, 0, 0);
        for line in text.lines() {
            let Some((cpu, fields)) = line.strip_prefix("cpu").and_then(|rest| rest.split_once(' ')) else { continue };
            let Ok(cpu) = cpu.parse::<u32>() else { continue };
            let ticks: Option<Vec<u64>> = fields.split_ascii_whitespace().take(8).map(|field| field.parse().ok()).collect();
            let ticks = ticks.filter(|ticks| ticks.len() >= 4).ok_or_else(|| malformed(line))?;
            let of_programs: u64 = ticks.iter().take(3).sum();
            if self.background.contains(cpu) {
                background += of_programs;
                seen += 1;
            } else if self.foreground.as_ref().is_some_and(|cpus| cpus.contains(cpu)) {
                foreground += of_programs + ticks.iter().skip(5).sum::<u64>();
                seen += 1;
            }
        }
        if seen < self.background.len() + self.foreground.as_ref().map_or(0, CpuSet::len) {
            let detail = format!("/proc/stat does not know all of the CPUs {self:?}");
            return Err(io::Error::new(io::ErrorKind::NotFound, detail));
        }
        let per_s = u32::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(u32::MAX);
        let time = |ticks: u64| Duration::from_secs(ticks) / per_s;
        Ok(UsedTime { background: time(background), foreground: time(foreground) })
    }
}

/// CPU time since the machine started.
#[derive(Debug, Clone, Copy)]
pub struct UsedTime {
    /// Of the background CPUs, by programs.
    pub background: Duration,
    /// Of the foreground CPUs, by programs, interrupts and the host of a virtual machine.
    pub foreground: Duration,
}

/// The CPUs that are threads of the same core; none where the machine does not say.
pub(crate) fn siblings(cpu: u32) -> BTreeSet<u32> {
    let file = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    fs::read_to_string(file).ok().and_then(|list| CpuSet::parse(&list).ok()).map(|cpus| cpus.0).unwrap_or_default()
}

/// What `docker.background_cpus` means where containers may use the CPUs `usable`.
pub(crate) fn split(setting: &str, usable: &CpuSet, core_of: impl Fn(u32) -> BTreeSet<u32>) -> Result<Option<CpuSplit>, String> {
    let background = match setting {
        "auto" => usable.upper_half(core_of),
        list => Some(CpuSet::parse(list)?),
    };
    match background {
        Some(cpus) if !cpus.0.is_subset(&usable.0) => Err(format!("containers have the CPUs {usable}, not all of {setting}")),
        Some(background) => Ok(Some(CpuSplit { foreground: usable.without(&background), background })),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_linux_writes_them() {
        for (list, plain) in [("0", "0"), ("0-1\n", "0,1"), ("2-3,5", "2,3,5"), ("5,2-3,3", "2,3,5")] {
            assert_eq!(CpuSet::parse(list).unwrap().to_string(), plain, "{list:?}");
        }
        for bad in ["", "a", "1-", "-1", "3-2", "0,,1", "0-8192", "4294967296", "0 1"] {
            assert!(CpuSet::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_upper_half_is_set_aside_unless_told_otherwise() {
        let threads = |each: u32| move |cpu: u32| (0..8).filter(|other| other % each == cpu % each).collect::<BTreeSet<_>>();
        let on = |usable: &str, cores: u32, setting: &str| {
            let list =
                |half: CpuSplit| (half.background.to_string(), half.foreground.map(|cpus| cpus.to_string()).unwrap_or_default());
            split(setting, &CpuSet::parse(usable).unwrap(), threads(cores)).map(|half| half.map(list))
        };
        let half = |background: &str, foreground: &str| Ok(Some((background.to_owned(), foreground.to_owned())));
        assert_eq!(on("0", 8, "auto"), Ok(None));
        assert_eq!(on("0-1", 8, "auto"), half("1", "0"));
        assert_eq!(on("0-4", 8, "auto"), half("3,4", "0,1,2"));
        assert_eq!(on("0-3", 2, "auto"), half("1,3", "0,2"), "whole cores");
        assert_eq!(on("0-1", 1, "auto"), half("1", "0"), "the threads of the only core");
        assert_eq!(on("3,7", 8, "auto"), half("7", "3"));
        assert_eq!(on("0-3", 8, "1-2"), half("1,2", "0,3"));
        assert_eq!(on("0-1", 8, "0-1"), half("0,1", ""));
        assert!(on("0-3", 8, "3-4").unwrap_err().contains("0,1,2,3"));
        assert!(on("0-3", 8, "half").is_err());
    }

    #[test]
    fn what_cpus_are_used_for_is_read_as_linux_writes_it() {
        let split = |background: &str, foreground: &str| CpuSplit {
            background: CpuSet::parse(background).unwrap(),
            foreground: CpuSet::parse(foreground).ok(),
        };
        let text =
            "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 100 10 20 5000 700 1 2 3 90 0\ncpu1 200 0 5 9 9 7 7 7 0 0\ncpu2 1 1 1 1\nintr 5 6\n";
        let per_s = rustix::param::clock_ticks_per_second() as f64;
        let used = split("1", "0").used_of(text).unwrap();
        assert!((used.background.as_secs_f64() - 205.0 / per_s).abs() < 1e-6, "{used:?}");
        assert!((used.foreground.as_secs_f64() - 136.0 / per_s).abs() < 1e-6, "{used:?}");
        assert!(split("1", "0").used_of("cpu0 1 2 x 4 5\ncpu1 1 2 3 4 5\n").is_err());
        assert!(split("1", "0").used_of("cpu0 1 2 3\ncpu1 1 2 3 4 5\n").is_err());
        assert!(split("3", "0-2").used_of(text).is_err(), "a CPU that is away");
        assert!(split("0", "").used().unwrap().background > Duration::ZERO);
    }
}
