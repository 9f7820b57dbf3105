//! Real etcd for a test: one member or three, each a process that can be stopped, killed and started again.

use crate::{
    process::{Process, free_port},
    until,
};
use rustix::process::Signal;
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// One member's fixed properties.
struct Member {
    name: String,
    client_url: String,
    peer_url: String,
    data_dir: PathBuf,
    log: PathBuf,
    process: Option<Process>,
    /// Its network namespace, where it has one of its own.
    namespace: Option<String>,
}

/// Certificates of members and of whoever asks them.
#[derive(Debug, Clone)]
pub struct EtcdTls {
    /// The folder of `hearth admin certs`, with `etcd-m.crt` for all members.
    pub certs: PathBuf,
}

/// A cluster of etcd.
pub struct Etcd {
    members: Vec<Member>,
    cluster: String,
    tls: Option<EtcdTls>,
}

impl Etcd {
    /// Starts so many members below `dir`, and waits until they answer.
    ///
    /// # Panics
    /// When there is no etcd on this machine: `scripts/setup.sh test` installs it.
    pub async fn start(dir: &Path, members: usize) -> Self {
        Self::start_at(dir, &vec![("127.0.0.1".to_owned(), None); members], None).await
    }

    /// As [`Self::start`], a member for each address (and network namespace), with certificates where they are given.
    pub async fn start_at(dir: &Path, places: &[(String, Option<String>)], tls: Option<EtcdTls>) -> Self {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let members: Vec<Member> = places
            .iter()
            .enumerate()
            .map(|(n, (host, namespace))| Member {
                name: format!("m{n}"),
                client_url: format!("{scheme}://{host}:{}", free_port()),
                peer_url: format!("http://{host}:{}", free_port()),
                data_dir: dir.join(format!("etcd-{n}")),
                log: dir.join(format!("etcd-{n}.log")),
                process: None,
                namespace: namespace.clone(),
            })
            .collect();
        let cluster = members.iter().map(|m| format!("{}={}", m.name, m.peer_url)).collect::<Vec<_>>().join(",");
        let mut etcd = Self { members, cluster, tls };
        for n in 0..etcd.members.len() {
            etcd.run(n);
        }
        etcd.answers().await;
        etcd
    }

    /// Where clients find it.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|m| m.client_url.clone()).collect()
    }

    /// Starts a member that does not run; it keeps what it had.
    pub fn run(&mut self, n: usize) {
        let member = &mut self.members[n];
        let mut command = crate::process::inside(member.namespace.as_deref(), "etcd");
        if let Some(EtcdTls { certs }) = &self.tls {
            let file = |name: &str| certs.join(name);
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(file("ca.crt"));
            command.arg("--cert-file").arg(file("etcd-m.crt")).arg("--key-file").arg(file("etcd-m.key"));
        }
        command
            .args(["--name", &member.name, "--initial-cluster", &self.cluster, "--initial-cluster-state", "new"])
            .args(["--listen-client-urls", &member.client_url, "--advertise-client-urls", &member.client_url])
            .args(["--listen-peer-urls", &member.peer_url, "--initial-advertise-peer-urls", &member.peer_url])
            // A busy machine must not make members elect again and again; a test measures Hearth, not etcd.
            .args(["--heartbeat-interval", "200", "--election-timeout", "2000", "--logger", "zap"])
            .arg("--data-dir")
            .arg(&member.data_dir);
        member.process = Some(Process::start(&format!("etcd {}", member.name), command, &member.log));
    }

    /// Kills a member.
    pub fn kill(&mut self, n: usize) {
        if let Some(mut process) = self.members[n].process.take() {
            process.kill();
        }
    }

    /// Stops all members where they are (SIGSTOP): connections stay, nothing answers.
    pub fn pause(&self) {
        self.members.iter().filter_map(|m| m.process.as_ref()).for_each(|p| p.signal(Signal::STOP));
    }

    /// Lets all members go on.
    pub fn resume(&self) {
        self.members.iter().filter_map(|m| m.process.as_ref()).for_each(|p| p.signal(Signal::CONT));
    }

    /// Waits until a majority answers.
    pub async fn answers(&self) {
        if self.tls.is_some() {
            until("etcd to answer", async || self.try_ctl("etcd-m", &["endpoint", "health"]).ok()).await;
            return;
        }
        let http = crate::http_client().timeout(Duration::from_secs(2)).build().expect("a client");
        until("etcd to answer", async || {
            for url in self.endpoints() {
                let answer = http.get(format!("{url}/health")).send().await;
                if let Ok(answer) = answer
                    && answer.text().await.is_ok_and(|t| t.contains("true"))
                {
                    return Some(());
                }
            }
            None
        })
        .await;
    }

    /// Runs `etcdctl` against it and gives what it prints.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn ctl(&self, args: &[&str]) -> String {
        self.try_ctl("etcd-m", args).unwrap_or_else(|said| panic!("etcdctl {args:?}: {said}"))
    }

    /// Runs `etcdctl` with a certificate (`node-a`), where members have certificates: what it prints, or how it fails.
    ///
    /// # Errors
    /// What it says.
    pub fn try_ctl(&self, who: &str, args: &[&str]) -> Result<String, String> {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", self.endpoints().join(","));
        if let Some(EtcdTls { certs }) = &self.tls {
            command.env("ETCDCTL_CACERT", certs.join("ca.crt"));
            command.env("ETCDCTL_CERT", certs.join(format!("{who}.crt"))).env("ETCDCTL_KEY", certs.join(format!("{who}.key")));
        }
        let output = command.args(args).output().expect("etcdctl");
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(said(&output.stdout)) } else { Err(said(&output.stderr)) }
    }
}
