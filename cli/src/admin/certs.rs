//! `hearth admin certs`: a certificate authority and what it signs, so that routers, nodes and etcd know each other. For development and
//! small clusters: keys lie in files, and nothing is revoked. It never overwrites a file, since a key that is gone cannot be had back;
//! run again with other names it signs those with the authority that is there.
//!
//! A certificate's role is a name in it (`router`, `node`, `etcd`, `client`), beside `NAME.ROLE.hearth` and the addresses: a node lets in
//! whom the authority calls a router, and etcd's users are the subjects' common names (`ROLE-NAME`).

use anyhow::{Context, Result, bail};
use clap::Args;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Certificates begin to hold this long ago, so that a machine whose clock is behind accepts them.
const BACKDATED: Duration = Duration::from_secs(24 * 3_600);
/// What a certificate authority may promise at most: ten years.
const VALIDITY_MAX: Duration = Duration::from_secs(3_653 * 24 * 3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// Arguments; each certificate is `NAME` or `NAME=ADDRESS,ADDRESS`, where an address is an IP or a host name.
#[derive(Args)]
pub struct Certs {
    /// The folder they are put into.
    #[arg(long, default_value = "certs")]
    out: PathBuf,
    /// A router.
    #[arg(long = "router", value_name = "NAME[=ADDRESS,..]")]
    routers: Vec<String>,
    /// A node; the name is its `cluster.node_name`.
    #[arg(long = "node", value_name = "NAME[=ADDRESS,..]")]
    nodes: Vec<String>,
    /// A member of etcd.
    #[arg(long = "etcd", value_name = "NAME[=ADDRESS,..]")]
    etcd: Vec<String>,
    /// A builder or an operator's tool.
    #[arg(long = "client", value_name = "NAME")]
    clients: Vec<String>,
    /// How long they hold, in days.
    #[arg(long, default_value_t = 365)]
    valid_days: u32,
}

/// What a certificate is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Router,
    Node,
    Etcd,
    Client,
}

impl Role {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Router => "router",
            Self::Node => "node",
            Self::Etcd => "etcd",
            Self::Client => "client",
        }
    }
}

struct Wanted {
    role: Role,
    name: String,
    addresses: Vec<String>,
}

impl Wanted {
    fn parse(role: Role, text: &str) -> Result<Self> {
        let (name, addresses) = text.split_once('=').unwrap_or((text, ""));
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > 63 || !name.chars().all(valid) || name.starts_with('-') {
            bail!("--{}: {name:?} is no name; names are up to 63 of a-z, 0-9 and -, and do not begin with -", role.as_str());
        }
        let addresses: Vec<String> = addresses.split(',').filter(|a| !a.is_empty()).map(str::to_owned).collect();
        if role == Role::Client && !addresses.is_empty() {
            bail!("--client {name}: a client serves nothing and takes no addresses");
        }
        Ok(Self { role, name: name.to_owned(), addresses })
    }

    fn file(&self, out: &Path, extension: &str) -> PathBuf {
        out.join(format!("{}-{}.{extension}", self.role.as_str(), self.name))
    }

    fn params(&self, valid: Duration) -> Result<CertificateParams> {
        let role = self.role.as_str();
        let mut names = vec![role.to_owned(), format!("{}.{role}.hearth", self.name)];
        names.extend(self.addresses.iter().cloned());
        let mut params = CertificateParams::new(names).with_context(|| format!("an address of {role} {}", self.name))?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("{role}-{}", self.name));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match self.role {
            // Members of etcd are clients of each other, routers serve the public and call nodes, nodes call nodes for their logs.
            Role::Router | Role::Node | Role::Etcd => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
            Role::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        hold(&mut params, valid);
        Ok(params)
    }
}

fn hold(params: &mut CertificateParams, valid: Duration) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    params.not_before = date_time_ymd(1970, 1, 1) + now.saturating_sub(BACKDATED);
    params.not_after = date_time_ymd(1970, 1, 1) + now + valid;
}

impl Certs {
    /// Makes what is asked for, all or nothing as far as names that are taken go.
    ///
    /// # Errors
    /// When a file is there already, a name is none, or the folder cannot be written.
    pub fn run(self) -> Result<()> {
        let valid = DAY.saturating_mul(self.valid_days);
        if self.valid_days == 0 || valid > VALIDITY_MAX {
            bail!("--valid-days {}: from 1 to {}", self.valid_days, VALIDITY_MAX.as_secs() / DAY.as_secs());
        }
        let all =
            [(Role::Router, &self.routers), (Role::Node, &self.nodes), (Role::Etcd, &self.etcd), (Role::Client, &self.clients)];
        let wanted: Vec<Wanted> =
            all.iter().flat_map(|(role, names)| names.iter().map(|n| Wanted::parse(*role, n))).collect::<Result<_>>()?;
        for each in &wanted {
            for file in [each.file(&self.out, "crt"), each.file(&self.out, "key")] {
                if file.exists() {
                    bail!("{} is there already and is not overwritten; remove it, or choose another --out", file.display());
                }
            }
        }
        fs::create_dir_all(&self.out).with_context(|| self.out.display().to_string())?;
        let issuer = authority(&self.out, valid)?;
        for each in &wanted {
            let key = KeyPair::generate()?;
            let certificate = each.params(valid)?.signed_by(&key, &issuer)?;
            write(&each.file(&self.out, "key"), &key.serialize_pem(), 0o600)?;
            write(&each.file(&self.out, "crt"), &certificate.pem(), 0o644)?;
            eprintln!("{}", each.file(&self.out, "crt").display());
        }
        eprintln!(
            "{} signed them; keep {} away from the machines of the cluster",
            authority_file(&self.out, "crt").display(),
            authority_file(&self.out, "key").display()
        );
        Ok(())
    }
}

fn authority_file(out: &Path, extension: &str) -> PathBuf {
    out.join(format!("ca.{extension}"))
}

/// The authority of this folder; the first call makes it.
fn authority(out: &Path, valid: Duration) -> Result<Issuer<'static, KeyPair>> {
    let (certificate, key) = (authority_file(out, "crt"), authority_file(out, "key"));
    if certificate.exists() != key.exists() {
        bail!("{} has one of ca.crt and ca.key, but not both: put back the other, or choose another --out", out.display());
    }
    if certificate.exists() {
        let key = KeyPair::from_pem(&fs::read_to_string(&key)?).with_context(|| format!("{} is no key", key.display()))?;
        let pem = fs::read_to_string(&certificate)?;
        return Issuer::from_ca_cert_pem(&pem, key).with_context(|| format!("{} is no authority", certificate.display()));
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "hearth cluster");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    hold(&mut params, VALIDITY_MAX.max(valid));
    let pair = KeyPair::generate()?;
    write(&key, &pair.serialize_pem(), 0o600)?;
    write(&certificate, &params.self_signed(&pair)?.pem(), 0o644)?;
    Ok(Issuer::new(params, pair))
}

/// Writes a new file; one that is there stays as it is.
fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = file.with_context(|| format!("{} cannot be made", path.display()))?;
    Ok(file.write_all(text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn certs(out: &Path, nodes: &[&str]) -> Certs {
        let nodes = nodes.iter().map(|n| (*n).to_owned()).collect();
        Certs { out: out.to_owned(), routers: vec![], nodes, etcd: vec![], clients: vec![], valid_days: 30 }
    }

    #[test]
    fn files_are_never_overwritten_and_the_authority_is_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("certs");
        certs(&out, &["a=127.0.0.1,node-a.example"]).run().unwrap();
        let authority = fs::read_to_string(out.join("ca.crt")).unwrap();
        let first = fs::read_to_string(out.join("node-a.crt")).unwrap();
        assert_eq!(fs::metadata(out.join("node-a.key")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(out.join("ca.key")).unwrap().permissions().mode() & 0o777, 0o600);

        let error = certs(&out, &["b", "a"]).run().unwrap_err().to_string();
        assert!(error.contains("not overwritten"), "{error}");
        assert!(!out.join("node-b.crt").exists(), "refused before anything is made");
        certs(&out, &["b"]).run().unwrap();
        assert_eq!(fs::read_to_string(out.join("ca.crt")).unwrap(), authority);
        assert_eq!(fs::read_to_string(out.join("node-a.crt")).unwrap(), first);
    }

    #[test]
    fn half_an_authority_and_bad_names_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        certs(dir.path(), &["a"]).run().unwrap();
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        assert!(certs(dir.path(), &["b"]).run().unwrap_err().to_string().contains("not both"));
        for name in ["", "A", "-a", "a b", "a/../b", "=127.0.0.1"] {
            assert!(Wanted::parse(Role::Node, name).is_err(), "{name}");
        }
        assert!(Wanted::parse(Role::Client, "ops=127.0.0.1").is_err());
        assert!(Certs { valid_days: 0, ..certs(dir.path(), &[]) }.run().is_err());
        assert!(Certs { valid_days: 4_000, ..certs(dir.path(), &[]) }.run().is_err());
    }
}
