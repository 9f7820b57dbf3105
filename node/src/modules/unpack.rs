//! Unpacks an artifact (tar in zstd) into a fresh directory. The archive is taken for hostile, although a builder of ours made it: only
//! regular files and directories, only below the directory, each name once, and no more of anything than allowed.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Component, Path, PathBuf},
};

/// Bytes of all files together.
pub const UNPACKED_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Files and directories.
pub const ENTRIES_MAX: u64 = 200_000;
/// Components of a path.
pub const DEPTH_MAX: usize = 64;

/// Why an archive was refused.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// Something that no artifact of ours holds.
    #[error("the archive holds {what}: {path}")]
    Forbidden {
        /// What.
        what: &'static str,
        /// Where.
        path: PathBuf,
    },
    /// More than allowed.
    #[error("the archive has more than {limit} {what}")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// It cannot be read, or its content not be written.
    #[error("unpacking: {0}")]
    Io(#[from] io::Error),
}

/// Unpacks into `dir`, which must not exist. Returns the bytes of all files. On an error what is there is the caller's to remove.
///
/// # Errors
/// [`UnpackError`].
pub fn unpack(compressed: impl Read, dir: &Path) -> Result<u64, UnpackError> {
    fs::create_dir(dir)?;
    // One more than allowed can be read, so that going over is seen and not taken for the end.
    let decoder = zstd::Decoder::new(compressed)?.take(UNPACKED_BYTES_MAX + ENTRIES_MAX * 1_024 + 1);
    let mut archive = tar::Archive::new(decoder);
    let (mut bytes, mut entries) = (0_u64, 0_u64);
    for entry in archive.entries()? {
        let mut entry = entry?;
        entries += 1;
        if entries > ENTRIES_MAX {
            return Err(UnpackError::TooMuch { what: "entries", limit: ENTRIES_MAX });
        }
        let name = entry.path()?.into_owned();
        let forbidden = |what| UnpackError::Forbidden { what, path: name.clone() };
        let normal = name.components().all(|c| matches!(c, Component::Normal(_)));
        if !normal || name.components().next().is_none() {
            return Err(forbidden("a path that leads elsewhere"));
        }
        if name.components().count() > DEPTH_MAX {
            return Err(UnpackError::TooMuch { what: "levels", limit: DEPTH_MAX as u64 });
        }
        let target = dir.join(&name);
        match entry.header().entry_type() {
            tar::EntryType::Directory => create_dir(&target)?,
            tar::EntryType::Regular => {
                let mode = if entry.header().mode()? & 0o111 == 0 { 0o644 } else { 0o755 };
                if let Some(parent) = target.parent() {
                    create_dir(parent)?;
                }
                let mut file = File::options().write(true).create_new(true).mode(mode).open(&target)?;
                bytes += io::copy(&mut (&mut entry).take(UNPACKED_BYTES_MAX - bytes + 1), &mut file)?;
                if bytes > UNPACKED_BYTES_MAX {
                    return Err(UnpackError::TooMuch { what: "bytes", limit: UNPACKED_BYTES_MAX });
                }
            }
            _ => return Err(forbidden("something that is neither file nor directory")),
        }
    }
    // To the very end, so that whoever hashes the stream has seen all of it.
    let mut rest = archive.into_inner();
    io::copy(&mut rest, &mut io::sink())?;
    Ok(bytes)
}

fn create_dir(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn pack(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        zstd::encode_all(builder.into_inner().unwrap().as_slice(), 1).unwrap()
    }

    /// A header whose name is written as it stands, past the checks of the library.
    fn header(name: &[u8], kind: tar::EntryType, size: u64) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o6777);
        header.set_cksum();
        header
    }

    fn try_unpack(archive: &[u8]) -> (tempfile::TempDir, Result<u64, UnpackError>) {
        let root = tempfile::tempdir().unwrap();
        let result = unpack(archive, &root.path().join("m"));
        (root, result)
    }

    #[test]
    fn files_and_directories_come_out_without_special_bits() {
        let archive = pack(|b| {
            b.append(&header(b"node_modules/", tar::EntryType::Directory, 0), io::empty()).unwrap();
            b.append(&header(b"node_modules/x/index.js", tar::EntryType::Regular, 3), &b"abc"[..]).unwrap();
        });
        let (root, result) = try_unpack(&archive);
        assert_eq!(result.unwrap(), 3);
        let file = root.path().join("m/node_modules/x/index.js");
        assert_eq!(fs::read(&file).unwrap(), b"abc");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o755);
    }

    #[test]
    fn hostile_archives_write_nothing_outside() {
        use tar::EntryType as T;
        for name in [&b"../x"[..], b"/tmp/x", b"a/../../x", b"./../x", b""] {
            let archive = pack(|b| b.append(&header(name, T::Regular, 1), &b"x"[..]).unwrap());
            let (root, result) = try_unpack(&archive);
            assert!(result.is_err(), "{name:?}");
            assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "{name:?}");
        }
        for kind in [T::Symlink, T::Link, T::Char, T::Block, T::Fifo] {
            let archive = pack(|b| {
                let mut h = header(b"link", kind, 0);
                h.set_link_name("/etc/passwd").unwrap();
                h.set_cksum();
                b.append(&h, io::empty()).unwrap();
                b.append(&header(b"link", T::Regular, 1), &b"x"[..]).unwrap();
            });
            assert!(matches!(try_unpack(&archive).1, Err(UnpackError::Forbidden { .. })), "{kind:?}");
        }
        let twice = pack(|b| {
            for _ in 0..2 {
                b.append(&header(b"same", T::Regular, 1), &b"x"[..]).unwrap();
            }
        });
        assert!(try_unpack(&twice).1.is_err());
        let deep = format!("{}x", "a/".repeat(DEPTH_MAX));
        let archive = pack(|b| {
            let mut h = tar::Header::new_gnu();
            h.set_size(0);
            b.append_data(&mut h, &deep, io::empty()).unwrap();
        });
        assert!(matches!(try_unpack(&archive).1, Err(UnpackError::TooMuch { .. })));
    }

    #[test]
    fn a_bomb_ends_at_the_limit() {
        struct Zeros;
        impl Read for Zeros {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                buf.fill(0);
                Ok(buf.len())
            }
        }
        let size = UNPACKED_BYTES_MAX + 2;
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.write_all(header(b"zeros", tar::EntryType::Regular, size).as_bytes()).unwrap();
        io::copy(&mut Zeros.take(size), &mut encoder).unwrap();
        let archive = encoder.finish().unwrap();
        assert!(archive.len() < 1024 * 1024);
        assert!(matches!(try_unpack(&archive).1, Err(UnpackError::TooMuch { what: "bytes", .. })));
    }

    #[test]
    fn a_cut_archive_is_an_error() {
        let archive = pack(|b| b.append(&header(b"x", tar::EntryType::Regular, 4096), &[7; 4096][..]).unwrap());
        assert!(try_unpack(&archive[..archive.len() - 4]).1.is_err());
    }
}
