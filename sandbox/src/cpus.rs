//! Sets of CPUs, written as Linux writes them (`0-1,4`), and which of a machine's are set aside for background work: what no request
//! waits for, and containers that keep a CPU busy.

use std::{collections::BTreeSet, fs, io};

const ONLINE: &str = "/sys/devices/system/cpu/online";
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

    /// This machine's.
    pub(crate) fn online() -> io::Result<Self> {
        Self::parse(&fs::read_to_string(ONLINE)?).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("{ONLINE}: {e}")))
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The half with the higher numbers, the smaller one of an odd number; none of a single CPU.
    fn upper_half(&self) -> Option<Self> {
        let upper: BTreeSet<u32> = self.0.iter().skip(self.len().div_ceil(2)).copied().collect();
        (!upper.is_empty()).then_some(Self(upper))
    }
}

impl std::fmt::Display for CpuSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list: Vec<String> = self.0.iter().map(u32::to_string).collect();
        f.write_str(&list.join(","))
    }
}

/// What `docker.background_cpus` means on a machine with the CPUs `online`.
pub(crate) fn background(setting: &str, online: &CpuSet) -> Result<Option<CpuSet>, String> {
    match setting {
        "none" => Ok(None),
        "auto" => Ok(online.upper_half()),
        list => {
            let cpus = CpuSet::parse(list)?;
            if cpus.0.is_subset(&online.0) {
                Ok(Some(cpus))
            } else {
                Err(format!("this machine has the CPUs {online}, not all of {list}"))
            }
        }
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
        assert!(CpuSet::online().unwrap().len() >= 1);
    }

    #[test]
    fn the_upper_half_is_set_aside_unless_told_otherwise() {
        let on =
            |online: &str, setting: &str| background(setting, &CpuSet::parse(online).unwrap()).map(|c| c.map(|c| c.to_string()));
        assert_eq!(on("0", "auto"), Ok(None));
        assert_eq!(on("0-1", "auto"), Ok(Some("1".to_owned())));
        assert_eq!(on("0-4", "auto"), Ok(Some("3,4".to_owned())));
        assert_eq!(on("0-3", "none"), Ok(None));
        assert_eq!(on("0-3", "1-2"), Ok(Some("1,2".to_owned())));
        assert!(on("0-3", "3-4").unwrap_err().contains("0,1,2,3"));
    }
}
