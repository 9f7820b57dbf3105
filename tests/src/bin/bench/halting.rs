//! Whether CPUs with nothing to do ask for more for a while before they halt (Linux's `haltpoll`, of virtual machines). Where they halt at
//! once, each waking of a process on an idle CPU goes through the hypervisor, and latency at a low rate shows little else.

use std::{fs, io, path::PathBuf, time::Duration};

/// Longer than nearly all pauses between requests, of 250/s and more: a CPU that serves them does not halt.
const POLL: Duration = Duration::from_millis(20);
const PARAMETERS: &str = "/sys/module/haltpoll/parameters";

/// How long CPUs of this machine poll before they halt; none where its kernel has no such setting, or this process may not change it.
pub fn poll_ns() -> Option<u64> {
    let governor = fs::read_to_string("/sys/devices/system/cpu/cpuidle/current_governor").ok()?;
    let file = PathBuf::from(PARAMETERS).join("guest_halt_poll_ns");
    fs::OpenOptions::new().write(true).open(&file).ok()?;
    (governor.trim() == "haltpoll").then(|| fs::read_to_string(file).ok()?.trim().parse().ok())?
}

/// While it lives, CPUs poll before they halt; then all is as it was.
pub struct Polling(Vec<(PathBuf, String)>);

impl Polling {
    /// Begins.
    pub fn start() -> io::Result<Self> {
        let ns = POLL.as_nanos().to_string();
        let wanted =
            [("guest_halt_poll_ns", ns.as_str()), ("guest_halt_poll_grow_start", &ns), ("guest_halt_poll_allow_shrink", "N")];
        let mut before = Self(vec![]);
        for (name, value) in wanted {
            let file = PathBuf::from(PARAMETERS).join(name);
            let was = fs::read_to_string(&file)?;
            fs::write(&file, value)?;
            before.0.push((file, was));
        }
        Ok(before)
    }
}

impl Drop for Polling {
    fn drop(&mut self) {
        for (file, was) in &self.0 {
            // It was written a moment ago; and there is nobody to tell.
            let _ = fs::write(file, was.trim());
        }
    }
}
