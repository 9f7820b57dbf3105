//! Slots: the numbered host directories of containers. A number is handed out again only when nothing of its last container is left:
//! no process, no mount, no file.

use parking_lot::Mutex;
use rustix::{
    io::Errno,
    mount::{UnmountFlags, unmount},
};
use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Sockets of the runtime, below a slot.
const RUN: &str = "run";
/// What the container sees at `/hearth`, below a slot.
const TREE: &str = "tree";
/// Functions, below the tree.
const FUNCTIONS: &str = "f";
/// Modules, below the tree.
const MODULES: &str = "m";
/// What the next process needs to adopt the container, below a slot.
const STATE: &str = "state.json";
/// Mounts that are taken away per cleaning; a slot has one for its sockets and one per module.
const UNMOUNTS_MAX: usize = 10_000;

/// One slot's directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slot {
    /// Its number.
    pub number: u32,
    /// Its directory.
    pub dir: PathBuf,
}

impl Slot {
    /// Where the runtime's sockets are.
    pub(super) fn run(&self) -> PathBuf {
        self.dir.join(RUN)
    }

    /// What the container sees at `/hearth`.
    pub(super) fn tree(&self) -> PathBuf {
        self.dir.join(TREE)
    }

    /// What the next process needs to adopt the container.
    pub(super) fn state(&self) -> PathBuf {
        self.dir.join(STATE)
    }

    /// Makes the directories of a slot that is clean. Blocks.
    pub(super) fn prepare(&self) -> io::Result<()> {
        // Only this process looks inside a slot; the container gets `run` and `tree` mounted and needs no way through.
        fs::DirBuilder::new().mode(0o700).create(&self.dir)?;
        make_dir(&self.run())?;
        let tree = self.tree();
        for dir in [&tree, &tree.join(FUNCTIONS), &tree.join(MODULES)] {
            make_dir(dir)?;
        }
        Ok(())
    }

    /// Takes away all that is mounted below the slot, then its files. Nothing there is no error. Blocks.
    pub(super) fn clean(&self) -> io::Result<()> {
        unmount_below(&self.dir)?;
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Whatever the umask says, the container's user must be able to read it.
pub(super) fn make_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(0o755)),
    }
}

/// A function version's directory, relative to the tree.
pub(super) fn function_dir(function: &str, version: u64) -> PathBuf {
    Path::new(FUNCTIONS).join(format!("{function}@{version}"))
}

/// Unmounts what lies below `dir`, the deepest and latest first.
fn unmount_below(dir: &Path) -> io::Result<()> {
    let Ok(dir) = fs::canonicalize(dir) else { return Ok(()) };
    let points = mounts_below(&fs::read_to_string("/proc/self/mountinfo")?, &dir);
    for point in points.iter().take(UNMOUNTS_MAX) {
        match unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // Gone with its parent, or somebody else was quicker.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Mount points strictly below `dir` by the lines of `mountinfo`, in the order in which they can be taken away.
fn mounts_below(mountinfo: &str, dir: &Path) -> Vec<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut points: Vec<PathBuf> = points.filter(|p| p.starts_with(dir) && p != dir).collect();
    // Later lines are later mounts: a stable sort by depth of the reversed list keeps the latest of equals in front.
    points.reverse();
    points.sort_by_key(|p| std::cmp::Reverse(p.components().count()));
    points
}

/// The kernel writes space, tab, newline and backslash in paths as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        match rest.get(at + 1..at + 4).and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    PathBuf::from(out)
}

/// Hands out numbers, the lowest first.
#[derive(Debug)]
pub(super) struct Slots {
    dir: PathBuf,
    free: Mutex<BTreeSet<u32>>,
}

impl Slots {
    /// Numbers below `count`, in directories below `dir`.
    pub(super) fn new(dir: PathBuf, count: u32) -> Self {
        Self { dir, free: Mutex::new((0..count).collect()) }
    }

    /// A slot that nobody has; none when all are taken.
    pub(super) fn take(&self) -> Option<Slot> {
        self.free.lock().pop_first().map(|n| self.slot(n))
    }

    /// Takes a certain number, for a container that has it already.
    pub(super) fn take_number(&self, number: u32) -> Option<Slot> {
        self.free.lock().remove(&number).then(|| self.slot(number))
    }

    /// Gives a slot back whose container and files are gone.
    pub(super) fn give_back(&self, slot: &Slot) {
        let fresh = self.free.lock().insert(slot.number);
        debug_assert!(fresh, "slot {} was given back twice", slot.number);
    }

    /// Whether nobody has this number.
    pub(super) fn is_free(&self, number: u32) -> bool {
        self.free.lock().contains(&number)
    }

    /// How many are free.
    pub(super) fn free(&self) -> usize {
        self.free.lock().len()
    }

    /// The slot of that number, whoever has it.
    pub(super) fn slot(&self, number: u32) -> Slot {
        Slot { number, dir: self.dir.join(number.to_string()) }
    }

    /// Slots whose directory exists. Blocks.
    pub(super) fn existing(&self) -> io::Result<Vec<Slot>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            if let Some(number) = entry?.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) {
                found.push(self.slot(number));
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_bounded_and_come_back_only_when_given_back() {
        let slots = Slots::new("/s".into(), 2);
        let (a, b) = (slots.take().unwrap(), slots.take().unwrap());
        assert_eq!((a.number, b.number), (0, 1));
        assert!(slots.take().is_none(), "one past the bound");
        slots.give_back(&a);
        assert_eq!(slots.take(), Some(a));
        assert_eq!(slots.take_number(1), None, "somebody has it");
    }

    #[test]
    fn directories_are_readable_for_the_container_and_vanish() {
        let dir = tempfile::tempdir().unwrap();
        let slots = Slots::new(dir.path().to_owned(), 1);
        let slot = slots.take().unwrap();
        slot.prepare().unwrap();
        assert!(slot.prepare().is_err(), "a slot that is not clean is refused");
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(slot.dir.clone()), mode(slot.tree().join("f")), mode(slot.tree().join("m"))), (0o700, 0o755, 0o755));
        assert_eq!(slots.existing().unwrap(), [slot.clone()]);
        slot.clean().unwrap();
        slot.clean().unwrap();
        assert!(!slot.dir.exists());
    }

    #[test]
    fn mounts_go_the_deepest_first_and_others_stay() {
        let info = "1 0 8:1 / / rw\n2 1 8:1 / /d rw\n3 2 8:1 / /d/0/run rw\n4 2 8:1 / /d/0/tree/m/a/a rw\n5 2 8:1 / /d/01/run rw\n\
            6 3 8:1 / /d/0/run rw\n7 2 8:1 / /d/0/a\\040b rw\n";
        let below = mounts_below(info, Path::new("/d/0"));
        assert_eq!(below.len(), 4);
        assert_eq!(below[0], Path::new("/d/0/tree/m/a/a"));
        assert!(below.contains(&PathBuf::from("/d/0/a b")) && !below.contains(&PathBuf::from("/d/01/run")));
    }
}
