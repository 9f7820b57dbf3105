//! Packs a built tree into an artifact: regular files and directories only, in a fixed order with fixed times and owners, so that equal
//! trees make equal archives. Nothing is followed, and everything is counted against a limit.

use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// Bytes of all files together.
pub const BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Files and directories.
pub const ENTRIES_MAX: u64 = 200_000;
/// Components of a path.
pub const DEPTH_MAX: usize = 60;
/// Unpacked bytes for each packed one, where there are enough of them to matter: source code packs to a tenth, a bomb to a thousandth.
pub const RATIO_MAX: u64 = 200;
const RATIO_FROM_BYTES: u64 = 16 * 1024 * 1024;
/// A module is packed once and kept for ever: two seconds more for 100 MB of sources, and a fifth fewer bytes than at level 3.
const ZSTD_LEVEL: i32 = 12;

/// Why a tree was not packed; for the tenant.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// More than allowed.
    #[error("the module and what it depends on have more than {limit} {what}")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A path that is no text.
    #[error("a file's name is not UTF-8: {0}")]
    Name(PathBuf),
    /// It cannot be read or written.
    #[error("packing: {0}")]
    Io(#[from] io::Error),
}

/// What was packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// SHA-256 of the archive.
    pub sha256: String,
    /// Length of the archive.
    pub bytes: u64,
    /// Length of all files.
    pub unpacked_bytes: u64,
    /// Number of files.
    pub files: u64,
    /// Links and special files that were left out.
    pub left_out: u64,
}

struct Hashing<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.hash.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[derive(Default)]
struct Count {
    entries: u64,
    files: u64,
    bytes: u64,
    left_out: u64,
}

/// An archive that is being written.
pub struct Packer {
    builder: tar::Builder<zstd::Encoder<'static, Hashing<BufWriter<File>>>>,
    count: Count,
}

impl Packer {
    /// Begins an archive in `target` with a `manifest`.
    ///
    /// # Errors
    /// [`PackError::Io`].
    pub fn create(target: &Path, manifest: &[u8]) -> Result<Self, PackError> {
        let out = Hashing { inner: BufWriter::new(File::create(target)?), hash: Sha256::new(), bytes: 0 };
        let mut builder = tar::Builder::new(zstd::Encoder::new(out, ZSTD_LEVEL)?);
        builder.mode(tar::HeaderMode::Deterministic);
        append(&mut builder, "hearth-module.json", false, manifest.len() as u64, manifest)?;
        Ok(Self { builder, count: Count::default() })
    }

    /// Adds what lies at `member` of `root`, where that is a directory. Neither may be a link: whoever wrote the tree is not trusted, but
    /// must not be at work any more.
    ///
    /// # Errors
    /// [`PackError`].
    pub fn add(&mut self, root: &Path, member: &str) -> Result<(), PackError> {
        if is_real_dir(root) && is_real_dir(&root.join(member)) {
            walk(&mut self.builder, root, Path::new(member), 1, &mut self.count)?;
        }
        Ok(())
    }

    /// Ends the archive, on disk.
    ///
    /// # Errors
    /// [`PackError`].
    pub fn finish(self) -> Result<Packed, PackError> {
        let Self { builder, count } = self;
        let mut out = builder.into_inner()?.finish()?;
        out.flush()?;
        out.inner.get_ref().sync_all()?;
        if count.bytes > RATIO_FROM_BYTES && count.bytes / out.bytes.max(1) > RATIO_MAX {
            return Err(PackError::TooMuch { what: "bytes for each one that is left when they are packed", limit: RATIO_MAX });
        }
        Ok(Packed {
            sha256: hex::encode(out.hash.finalize()),
            bytes: out.bytes,
            unpacked_bytes: count.bytes,
            files: count.files,
            left_out: count.left_out,
        })
    }
}

/// Whether a directory is here itself, not by a link.
pub(crate) fn is_real_dir(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

fn append(builder: &mut tar::Builder<impl Write>, name: &str, executable: bool, size: u64, data: impl io::Read) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(if executable { 0o755 } else { 0o644 });
    header.set_size(size);
    header.set_mtime(0);
    builder.append_data(&mut header, name, data)
}

fn walk(builder: &mut tar::Builder<impl Write>, root: &Path, dir: &Path, depth: usize, count: &mut Count) -> Result<(), PackError> {
    if depth > DEPTH_MAX {
        return Err(PackError::TooMuch { what: "levels of directories", limit: DEPTH_MAX as u64 });
    }
    let mut entries = fs::read_dir(root.join(dir))?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        count.entries += 1;
        if count.entries > ENTRIES_MAX {
            return Err(PackError::TooMuch { what: "files", limit: ENTRIES_MAX });
        }
        let name = dir.join(entry.file_name());
        let text = name.to_str().ok_or_else(|| PackError::Name(name.clone()))?;
        // Of the entry itself: a link is a link, wherever it leads.
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            walk(builder, root, &name, depth + 1, count)?;
        } else if metadata.is_file() {
            count.files += 1;
            count.bytes += metadata.len();
            if count.bytes > BYTES_MAX {
                return Err(PackError::TooMuch { what: "bytes", limit: BYTES_MAX });
            }
            let file = rustix::fs::open(
                root.join(&name),
                rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NOFOLLOW,
                rustix::fs::Mode::empty(),
            );
            let file = File::from(file.map_err(io::Error::from)?);
            let executable = metadata.permissions().mode() & 0o111 != 0;
            append(builder, text, executable, metadata.len(), io::Read::take(file, metadata.len()))?;
        } else {
            count.left_out += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("node_modules/x/lib");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("b.js"), "b").unwrap();
        fs::write(dir.join("a.js"), "aa").unwrap();
        fs::set_permissions(dir.join("a.js"), fs::Permissions::from_mode(0o6777)).unwrap();
        root
    }

    fn pack(root: &Path, members: &[&str], manifest: &[u8], target: &Path) -> Result<Packed, PackError> {
        let mut packer = Packer::create(target, manifest)?;
        for member in members {
            packer.add(root, member)?;
        }
        packer.finish()
    }

    fn names(archive: &Path) -> Vec<(String, u32)> {
        let mut archive = tar::Archive::new(zstd::Decoder::new(File::open(archive).unwrap()).unwrap());
        let entries = archive.entries().unwrap().map(|e| e.unwrap());
        entries.map(|e| (e.path().unwrap().to_string_lossy().into_owned(), e.header().mode().unwrap())).collect()
    }

    #[test]
    fn equal_trees_make_equal_archives_without_special_bits() {
        let (a, b, out) = (tree(), tree(), tempfile::tempdir().unwrap());
        let one = pack(a.path(), &["node_modules"], b"{}", &out.path().join("1")).unwrap();
        let two = pack(b.path(), &["node_modules"], b"{}", &out.path().join("2")).unwrap();
        assert_eq!(one, two);
        assert_eq!((one.files, one.unpacked_bytes), (2, 3));
        let expected = [("hearth-module.json", 0o644), ("node_modules/x/lib/a.js", 0o755), ("node_modules/x/lib/b.js", 0o644)];
        assert_eq!(names(&out.path().join("1")), expected.map(|(n, m)| (n.to_owned(), m)));
    }

    #[test]
    fn links_and_special_files_stay_out() {
        let (root, out) = (tree(), tempfile::tempdir().unwrap());
        let dir = root.path().join("node_modules/x");
        symlink("/etc/passwd", dir.join("passwd")).unwrap();
        symlink("/etc", dir.join("etc")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
        let packed = pack(root.path(), &["node_modules"], b"{}", &out.path().join("1")).unwrap();
        assert_eq!((packed.files, packed.left_out), (2, 3));
        // A member that is a link itself is not entered either.
        symlink("/etc", root.path().join("elsewhere")).unwrap();
        assert_eq!(pack(root.path(), &["elsewhere"], b"{}", &out.path().join("2")).unwrap().files, 0);
        // Nor is a root that has become one.
        let link = out.path().join("root");
        symlink(root.path(), &link).unwrap();
        assert_eq!(pack(&link, &["node_modules"], b"{}", &out.path().join("3")).unwrap().files, 0);
    }

    #[test]
    fn what_packs_too_well_is_a_bomb() {
        let (root, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(root.path().join("node_modules/x")).unwrap();
        let file = |bytes: u64| File::create(root.path().join("node_modules/x/zeros")).and_then(|f| f.set_len(bytes)).unwrap();
        file(RATIO_FROM_BYTES);
        assert!(pack(root.path(), &["node_modules"], b"{}", &out.path().join("1")).is_ok());
        file(RATIO_FROM_BYTES + 1);
        let bomb = pack(root.path(), &["node_modules"], b"{}", &out.path().join("2"));
        assert!(matches!(bomb, Err(PackError::TooMuch { limit: RATIO_MAX, .. })));
    }

    #[test]
    fn what_is_packed_is_read_alike_by_other_programs() {
        let (root, out) = (tree(), tempfile::tempdir().unwrap());
        let dir = root.path().join("node_modules/x");
        for name in ["back\\slash.js", "\u{e9}.js", "e\u{301}.js", " space .js", &format!("{}.js", "long".repeat(50)), "-rf"] {
            fs::write(dir.join(name), "x").unwrap();
        }
        let packed = out.path().join("packed");
        pack(root.path(), &["node_modules"], b"{}", &packed).unwrap();
        let mut ours: Vec<String> = names(&packed).into_iter().map(|(name, _)| name).collect();
        ours.sort();
        assert_eq!(ours.len(), 9);
        let plain = out.path().join("plain.tar");
        fs::write(&plain, zstd::decode_all(File::open(&packed).unwrap()).unwrap()).unwrap();
        let python = "import sys, tarfile\nfor m in tarfile.open(sys.argv[1]):\n    print(m.name)";
        for (program, args) in [("tar", ["--quoting-style=literal", "-tf"]), ("python3", ["-c", python])] {
            let output = std::process::Command::new(program).args(args).arg(&plain).env("LC_ALL", "C.UTF-8").output().unwrap();
            let mut theirs: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
            theirs.sort();
            assert_eq!(ours, theirs, "{program}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let (root, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(root.path().join("node_modules").join("d/".repeat(DEPTH_MAX))).unwrap();
        assert!(matches!(pack(root.path(), &["node_modules"], b"{}", &out.path().join("1")), Err(PackError::TooMuch { .. })));
    }
}
