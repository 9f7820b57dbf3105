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
    let bytes = entries(&mut archive, dir)?;
    // To the very end of what was given, so that whoever hashes it has seen all of it: first what the archive holds beyond its last
    // entry, then what lies behind the compressed frame or behind the limit.
    let mut rest = archive.into_inner();
    io::copy(&mut rest, &mut io::sink())?;
    io::copy(&mut rest.into_inner().finish(), &mut io::sink())?;
    Ok(bytes)
}

fn entries(archive: &mut tar::Archive<impl Read>, dir: &Path) -> Result<u64, UnpackError> {
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
    fn entries_are_counted_up_to_the_limit() {
        // The same directory over and over costs no inodes, but counts.
        let many = |count: u64| {
            pack(|b| {
                for _ in 0..count {
                    b.append(&header(b"d/", tar::EntryType::Directory, 0), io::empty()).unwrap();
                }
            })
        };
        assert!(try_unpack(&many(ENTRIES_MAX)).1.is_ok());
        assert!(matches!(try_unpack(&many(ENTRIES_MAX + 1)).1, Err(UnpackError::TooMuch { what: "entries", .. })));
    }

    #[test]
    fn everything_that_was_given_is_read() {
        // Whoever hashes the stream must see what was added behind the archive, however it was added.
        let archive = pack(|b| b.append(&header(b"x", tar::EntryType::Regular, 1), &b"x"[..]).unwrap());
        let limit = UNPACKED_BYTES_MAX + ENTRIES_MAX * 1_024;
        let zeros = zstd::encode_all(io::repeat(0).take(limit + 4096), 1).unwrap();
        for tail in [&b"raw bytes that are no frame"[..], &zeros, &[&zeros[..], b"raw"].concat()] {
            let altered = [&archive[..], tail].concat();
            let mut reader = io::Cursor::new(&altered);
            let root = tempfile::tempdir().unwrap();
            // It may be an error or not: what must not be is success without having read to the end.
            if unpack(&mut reader, &root.path().join("m")).is_ok() {
                assert_eq!(reader.position(), altered.len() as u64);
            }
        }
    }

    /// The names of files in an archive as another program reads it.
    fn read_by(program: &str, args: &[&str], archive: &Path) -> Vec<String> {
        let output = std::process::Command::new(program).args(args).arg(archive).output().unwrap();
        let mut names: Vec<String> =
            String::from_utf8_lossy(&output.stdout).lines().filter(|n| !n.ends_with('/')).map(str::to_owned).collect();
        names.sort();
        names
    }

    fn files_below(dir: &Path, base: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            if entry.metadata().unwrap().is_dir() {
                files_below(&entry.path(), base, found);
            } else {
                found.push(entry.path().strip_prefix(base).unwrap().to_str().unwrap().to_owned());
            }
        }
    }

    /// A PAX header for the entry that follows it.
    fn pax(b: &mut tar::Builder<Vec<u8>>, records: &[(&str, &str)]) {
        let mut text = String::new();
        for (key, value) in records {
            let rest = format!(" {key}={value}\n");
            // The length counts its own digits.
            let length = (1..4).map(|digits| rest.len() + digits).find(|l| l.to_string().len() + rest.len() == *l).unwrap();
            text.push_str(&format!("{length}{rest}"));
        }
        b.append(&header(b"pax", tar::EntryType::XHeader, text.len() as u64), text.as_bytes()).unwrap();
    }

    /// What we accept, GNU tar and Python read the same way: an archive that two programs understand differently is how something is
    /// smuggled past the one that checks.
    #[test]
    fn what_is_accepted_is_read_alike_by_other_programs() {
        use tar::EntryType as T;
        let hidden = {
            let mut content = header(b"hidden.js", T::Regular, 4).as_bytes().to_vec();
            content.extend_from_slice(&[b"evil".to_vec(), vec![0; 508]].concat());
            content
        };
        let plain = |b: &mut tar::Builder<Vec<u8>>, name: &[u8]| b.append(&header(name, T::Regular, 1), &b"x"[..]).unwrap();
        type Build<'a> = Box<dyn Fn(&mut tar::Builder<Vec<u8>>) + 'a>;
        let corpus: Vec<(&str, Build<'_>)> = vec![
            ("plain", Box::new(|b| plain(b, b"a/b.js"))),
            (
                "pax size above the header's",
                Box::new(|b| {
                    pax(b, &[("size", "1024")]);
                    b.append(&header(b"a.js", T::Regular, 1_024), hidden.as_slice()).unwrap();
                }),
            ),
            (
                "pax size that hides an entry",
                Box::new(|b| {
                    pax(b, &[("size", "1024")]);
                    b.append(&header(b"a.js", T::Regular, 0), io::empty()).unwrap();
                    plain(b, b"inside-1.js");
                    plain(b, b"after.js");
                }),
            ),
            (
                "pax size below the header's",
                Box::new(|b| {
                    pax(b, &[("size", "0")]);
                    b.append(&header(b"a.js", T::Regular, 1_024), hidden.as_slice()).unwrap();
                    plain(b, b"after.js");
                }),
            ),
            (
                "pax path that climbs",
                Box::new(|b| {
                    pax(b, &[("path", "../climbed.js")]);
                    plain(b, b"harmless.js");
                }),
            ),
            (
                "pax path",
                Box::new(|b| {
                    pax(b, &[("path", "renamed/by-pax.js")]);
                    plain(b, b"harmless.js");
                }),
            ),
            ("backslashes", Box::new(|b| plain(b, b"a\\..\\b.js"))),
            (
                "twins of unicode",
                Box::new(|b| {
                    plain(b, "e\u{301}.js".as_bytes());
                    plain(b, "\u{e9}.js".as_bytes());
                }),
            ),
            (
                "long name",
                Box::new(|b| {
                    let mut h = tar::Header::new_gnu();
                    h.set_size(1);
                    b.append_data(&mut h, format!("{}x.js", "long-directory-name/".repeat(8)), &b"x"[..]).unwrap();
                }),
            ),
            (
                "link, then a file through it",
                Box::new(|b| {
                    let mut h = header(b"link", T::Symlink, 0);
                    h.set_link_name("..").unwrap();
                    h.set_cksum();
                    b.append(&h, io::empty()).unwrap();
                    plain(b, b"link/through.js");
                }),
            ),
            (
                "file, then a file below it",
                Box::new(|b| {
                    plain(b, b"a");
                    plain(b, b"a/b.js");
                }),
            ),
        ];
        let python = "import sys, tarfile\nfor m in tarfile.open(sys.argv[1]):\n    if m.isfile(): print(m.name)";
        let mut accepted = 0;
        for (what, build) in &corpus {
            let compressed = pack(build);
            let (root, result) = try_unpack(&compressed);
            assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "{what}: something is outside");
            if result.is_err() {
                continue;
            }
            accepted += 1;
            let mut ours = Vec::new();
            files_below(&root.path().join("m"), &root.path().join("m"), &mut ours);
            ours.sort();
            let archive = root.path().join("archive.tar");
            fs::write(&archive, zstd::decode_all(compressed.as_slice()).unwrap()).unwrap();
            assert_eq!(ours, read_by("tar", &["--quoting-style=literal", "-tf"], &archive), "{what}: GNU tar");
            assert_eq!(ours, read_by("python3", &["-c", python], &archive), "{what}: Python");
        }
        assert!(accepted >= 4, "only {accepted} of the corpus were accepted");
    }

    #[test]
    fn a_cut_archive_is_an_error() {
        let archive = pack(|b| b.append(&header(b"x", tar::EntryType::Regular, 4096), &[7; 4096][..]).unwrap());
        assert!(try_unpack(&archive[..archive.len() - 4]).1.is_err());
    }

    /// An archive as an attacker's mutations leave it: names, kinds, sizes and bytes of headers that were right once.
    fn mutated() -> impl proptest::strategy::Strategy<Value = Vec<u8>> {
        use proptest::{collection::vec, prelude::*, sample::select};
        use tar::EntryType as T;
        let names = vec!["a", "a/b", "../x", "/x", "a/../../x", "./a", "a//b", "a\\..\\x", "", "\u{e9}", "node_modules/x/index.js"];
        let kinds = vec![
            T::Regular,
            T::Directory,
            T::Symlink,
            T::Link,
            T::Char,
            T::Fifo,
            T::XHeader,
            T::XGlobalHeader,
            T::GNULongName,
            T::GNUSparse,
        ];
        let entry = (select(names), select(kinds), vec(any::<u8>(), 0..40), prop_oneof![Just(None), any::<u64>().prop_map(Some)]);
        (vec(entry, 0..6), vec((any::<usize>(), any::<u8>()), 0..6), any::<bool>()).prop_map(|(entries, swaps, again)| {
            let mut bytes = Vec::new();
            for (name, kind, content, size) in entries {
                let mut header = header(name.as_bytes(), kind, size.unwrap_or(content.len() as u64));
                let _ = header.set_link_name("../../x");
                header.set_cksum();
                bytes.extend_from_slice(header.as_bytes());
                bytes.extend_from_slice(&content);
                bytes.resize(bytes.len().next_multiple_of(512), 0);
            }
            for (at, byte) in swaps {
                let len = bytes.len().max(1);
                if let Some(place) = bytes.get_mut(at % len) {
                    *place = byte;
                }
            }
            if again {
                // Checksums that are right, so that what was changed gets past them.
                for block in bytes.chunks_exact_mut(512) {
                    block[148..156].fill(b' ');
                    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
                    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
            bytes
        })
    }

    fn only_plain_things(dir: &Path) -> bool {
        fs::read_dir(dir).unwrap().map(Result::unwrap).all(|entry| {
            let metadata = fs::symlink_metadata(entry.path()).unwrap();
            let mode = metadata.permissions().mode() & 0o7777;
            if metadata.is_dir() {
                mode == 0o755 && only_plain_things(&entry.path())
            } else {
                metadata.is_file() && [0o644, 0o755].contains(&mode)
            }
        })
    }

    proptest::proptest! {
        #[test]
        fn whatever_the_bytes_nothing_but_files_and_directories_comes_out(bytes in mutated(), cut in proptest::prelude::any::<u16>()) {
            let mut archive = zstd::encode_all(bytes.as_slice(), 1).unwrap();
            if cut % 4 == 0 {
                archive.truncate(usize::from(cut) % (archive.len() + 1));
            }
            let (root, _) = try_unpack(&archive);
            proptest::prop_assert!(fs::read_dir(root.path()).unwrap().count() <= 1, "something lies beside its directory");
            proptest::prop_assert!(only_plain_things(root.path()));
        }
    }
}
