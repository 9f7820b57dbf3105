//! Sets of CPUs, written as Linux writes them (`0-1,4`), and which of a machine's are set aside for background work: what no request
//! waits for, and containers that keep a CPU busy.

use std::{collections::BTreeSet, fs};

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
    pub(crate) fn affinity(&self) -> rustix::thread::CpuSet {
        let mut set = rustix::thread::CpuSet::new();
        // The kernel knows more CPUs than this type does; those are left out.
        for cpu in self.0.iter().map(|cpu| *cpu as usize).filter(|cpu| *cpu < rustix::thread::CpuSet::MAX_CPU) {
            set.set(cpu);
        }
        set
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
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

/// The CPUs that are threads of the same core; none where the machine does not say.
pub(crate) fn siblings(cpu: u32) -> BTreeSet<u32> {
    let file = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    fs::read_to_string(file).ok().and_then(|list| CpuSet::parse(&list).ok()).map(|cpus| cpus.0).unwrap_or_default()
}

/// What `docker.background_cpus` means where containers may use the CPUs `usable`.
pub(crate) fn background(setting: &str, usable: &CpuSet, core_of: impl Fn(u32) -> BTreeSet<u32>) -> Result<Option<CpuSet>, String> {
    if setting == "auto" {
        return Ok(usable.upper_half(core_of));
    }
    let cpus = CpuSet::parse(setting)?;
    if cpus.0.is_subset(&usable.0) {
        Ok(Some(cpus))
    } else {
        Err(format!("containers have the CPUs {usable}, not all of {setting}"))
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
            background(setting, &CpuSet::parse(usable).unwrap(), threads(cores)).map(|c| c.map(|c| c.to_string()))
        };
        assert_eq!(on("0", 8, "auto"), Ok(None));
        assert_eq!(on("0-1", 8, "auto"), Ok(Some("1".to_owned())));
        assert_eq!(on("0-4", 8, "auto"), Ok(Some("3,4".to_owned())));
        assert_eq!(on("0-3", 2, "auto"), Ok(Some("1,3".to_owned())), "whole cores");
        assert_eq!(on("0-1", 1, "auto"), Ok(Some("1".to_owned())), "the threads of the only core");
        assert_eq!(on("3,7", 8, "auto"), Ok(Some("7".to_owned())));
        assert_eq!(on("0-3", 8, "1-2"), Ok(Some("1,2".to_owned())));
        assert!(on("0-3", 8, "3-4").unwrap_err().contains("0,1,2,3"));
        assert!(on("0-3", 8, "half").is_err());
    }
}
