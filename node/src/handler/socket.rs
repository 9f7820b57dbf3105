//! Connecting to a unix socket in a directory that hostile code may write to: no link is followed, and nothing but a socket is
//! connected to.

use rustix::fs::{FileType, Mode, OFlags, fstat, open, openat};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};
use tokio::net::UnixStream;

/// A directory that hostile code writes to. The directory itself lies where only this process writes.
#[derive(Debug)]
pub(super) struct SocketDir(OwnedFd);

impl SocketDir {
    /// Takes hold of the directory.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?))
    }

    /// Connects to the socket `name` in it. The name is one of ours, never a tenant's.
    pub(super) async fn connect(&self, name: &str) -> io::Result<UnixStream> {
        let file = openat(&self.0, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::Socket {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is not a socket")));
        }
        // The descriptor names what was just looked at, whatever the name in the directory means by now.
        UnixStream::connect(format!("/proc/self/fd/{}", file.as_raw_fd())).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use tokio::net::UnixListener;

    #[tokio::test]
    async fn only_sockets_are_connected_to_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let _secret = UnixListener::bind(elsewhere.path().join("docker.sock")).unwrap();
        let _own = UnixListener::bind(dir.path().join("http.sock")).unwrap();
        symlink(elsewhere.path().join("docker.sock"), dir.path().join("link.sock")).unwrap();
        std::fs::write(dir.path().join("file.sock"), "").unwrap();
        let sockets = SocketDir::open(dir.path()).unwrap();
        sockets.connect("http.sock").await.unwrap();
        for bad in ["link.sock", "file.sock", "none.sock"] {
            assert!(sockets.connect(bad).await.is_err(), "{bad}");
        }
        symlink(elsewhere.path(), dir.path().join("run")).unwrap();
        assert!(SocketDir::open(&dir.path().join("run")).is_err());
    }
}
