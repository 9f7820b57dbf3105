//! Sealing of secrets at rest: XChaCha20-Poly1305 with a data key from a file, bound to tenant, container, function and name, so that
//! a sealed value moved to another place does not open.

use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use hearth_model::{FunctionPath, function::SealedSecret};
use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};
use zeroize::Zeroizing;

/// Why a secret could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The key file is not usable.
    #[error("key file {path}: {detail}")]
    KeyFile {
        /// Which file.
        path: String,
        /// What is wrong and what to do.
        detail: String,
    },
    /// Sealed with a key that this keyring does not have.
    #[error("secret {name} of {path} is sealed with key {key_id}, which the key file does not hold")]
    UnknownKey {
        /// Whose secret.
        path: String,
        /// Its name.
        name: String,
        /// The key.
        key_id: String,
    },
    /// The service that holds the keys did not answer, or refused.
    #[error("{call} on {resource}: {detail}")]
    Unavailable {
        /// The call that failed.
        call: &'static str,
        /// Which key.
        resource: String,
        /// The service's words, and what to do.
        detail: String,
    },
    /// Altered, or moved here from elsewhere.
    #[error("secret {name} of {path} does not open: it was altered or belongs elsewhere")]
    Refused {
        /// Whose secret.
        path: String,
        /// Its name.
        name: String,
    },
}

/// Seals and opens secrets.
#[async_trait]
pub trait Keyring: Send + Sync + 'static {
    /// Seals `value` for this place.
    async fn seal(&self, path: &FunctionPath, name: &str, value: &str) -> Result<SealedSecret, KeyringError>;
    /// Opens what was sealed for this place.
    async fn open(&self, path: &FunctionPath, name: &str, sealed: &SealedSecret) -> Result<Zeroizing<String>, KeyringError>;
}

/// Keys from a file of lines `{id} {64 hexadecimal digits}`. The first line's key seals; all of them open, so that a key is rotated by
/// putting a new line first.
pub struct FileKeyring {
    active: String,
    keys: BTreeMap<String, XChaCha20Poly1305>,
}

impl FileKeyring {
    /// Reads the file, or makes one with a fresh key.
    ///
    /// # Errors
    /// [`KeyringError::KeyFile`] for a file that others may read, an empty one, or a key that is too short: it never goes on
    /// without a key.
    pub fn open_or_create(path: &Path) -> Result<Self, KeyringError> {
        let fail = |detail: String| KeyringError::KeyFile { path: path.display().to_string(), detail };
        match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Ok(mut file) => {
                let key: Zeroizing<[u8; 32]> = Zeroizing::new(rand::random());
                let line = Zeroizing::new(format!("k1 {}\n", hex::encode(key.as_slice())));
                file.write_all(line.as_bytes()).and_then(|()| file.sync_all()).map_err(|e| fail(e.to_string()))?;
                if let Some(dir) = path.parent() {
                    fs::File::open(dir).and_then(|d| d.sync_all()).map_err(|e| fail(e.to_string()))?;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(fail(e.to_string())),
        }
        Self::open_existing(path)
    }

    /// Reads the file, which must be there: where several nodes share their records, a fresh key on one of them would seal secrets that the
    /// others cannot open.
    ///
    /// # Errors
    /// [`KeyringError::KeyFile`], as for [`FileKeyring::open_or_create`].
    pub fn open_existing(path: &Path) -> Result<Self, KeyringError> {
        let fail = |detail: String| KeyringError::KeyFile { path: path.display().to_string(), detail };
        if !path.exists() {
            return Err(fail(
                "there is no such file: copy it from another node, or let `hearth admin init-aws` make the first one; or use store.keys.backend = \"kms\"".into(),
            ));
        }
        let mode = fs::metadata(path).map_err(|e| fail(e.to_string()))?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(fail(format!("its mode is {mode:o}, so that others may read it: chmod 600 it")));
        }
        let text = Zeroizing::new(fs::read_to_string(path).map_err(|e| fail(e.to_string()))?);
        Self::parse(&text).map_err(fail)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut active = None;
        let mut keys = BTreeMap::new();
        for (n, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
            let bad = || format!("line {}: expected a key's id and 64 hexadecimal digits", n + 1);
            let (id, key) = line.trim().split_once(' ').ok_or_else(bad)?;
            if id.is_empty() || id.contains(':') {
                return Err(bad());
            }
            let key = Zeroizing::new(hex::decode(key.trim()).map_err(|_| bad())?);
            if key.len() != 32 {
                return Err(bad());
            }
            active.get_or_insert_with(|| id.to_owned());
            let cipher = XChaCha20Poly1305::new_from_slice(&key).map_err(|_| bad())?;
            if keys.insert(id.to_owned(), cipher).is_some() {
                return Err(format!("line {}: key {id} stands there twice", n + 1));
            }
        }
        let active = active.ok_or("it holds no key: restore it from a backup, or remove it if no secret was ever sealed")?;
        Ok(Self { active, keys })
    }
}

/// Length-prefixed, so that no two places have the same associated data.
pub(crate) fn associated_data(path: &FunctionPath, name: &str) -> Vec<u8> {
    let mut data = b"hearth-secret-1".to_vec();
    for part in [path.tenant.as_str(), path.container.as_str(), path.function.as_str(), name] {
        data.extend((part.len() as u64).to_be_bytes());
        data.extend(part.as_bytes());
    }
    data
}

#[async_trait]
impl Keyring for FileKeyring {
    async fn seal(&self, path: &FunctionPath, name: &str, value: &str) -> Result<SealedSecret, KeyringError> {
        let refused = || KeyringError::Refused { path: path.to_string(), name: name.to_owned() };
        let cipher = self.keys.get(&self.active).ok_or_else(refused)?;
        let nonce: [u8; 24] = rand::random();
        let aad = associated_data(path, name);
        let sealed =
            cipher.encrypt(XNonce::from_slice(&nonce), Payload { msg: value.as_bytes(), aad: &aad }).map_err(|_| refused())?;
        Ok(SealedSecret(format!("v1:{}:{}", self.active, STANDARD_NO_PAD.encode([nonce.as_slice(), &sealed].concat()))))
    }

    async fn open(&self, path: &FunctionPath, name: &str, sealed: &SealedSecret) -> Result<Zeroizing<String>, KeyringError> {
        let refused = || KeyringError::Refused { path: path.to_string(), name: name.to_owned() };
        let (key_id, data) = sealed.0.strip_prefix("v1:").and_then(|s| s.split_once(':')).ok_or_else(refused)?;
        let cipher = self.keys.get(key_id).ok_or_else(|| KeyringError::UnknownKey {
            path: path.to_string(),
            name: name.to_owned(),
            key_id: key_id.chars().take(40).collect(),
        })?;
        let data = STANDARD_NO_PAD.decode(data).map_err(|_| refused())?;
        let (nonce, ciphertext) = data.split_at_checked(24).ok_or_else(refused)?;
        let aad = associated_data(path, name);
        let value = cipher.decrypt(XNonce::from_slice(nonce), Payload { msg: ciphertext, aad: &aad }).map_err(|_| refused())?;
        String::from_utf8(value).map(Zeroizing::new).map_err(|_| refused())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> String {
        hex::encode([n; 32])
    }

    #[tokio::test]
    async fn a_sealed_value_opens_only_in_its_place() {
        let keyring = FileKeyring::parse(&format!("k1 {}", key(1))).unwrap();
        let a: FunctionPath = "acme/main/a".parse().unwrap();
        let sealed = keyring.seal(&a, "KEY", "canary").await.unwrap();
        assert!(!sealed.0.contains("canary"));
        assert_eq!(keyring.open(&a, "KEY", &sealed).await.unwrap().as_str(), "canary");
        // Another tenant, container and function, and a path that only reads alike.
        for elsewhere in ["other/main/a", "acme/other/a", "acme/main/b", "acmem/ain/a"] {
            let opened = keyring.open(&elsewhere.parse().unwrap(), "KEY", &sealed).await;
            assert!(matches!(opened, Err(KeyringError::Refused { .. })), "{elsewhere}");
        }
        assert!(matches!(keyring.open(&a, "OTHER", &sealed).await, Err(KeyringError::Refused { .. })));
        let mut altered = sealed.clone();
        let at = altered.0.len() - 8;
        let other = if altered.0.as_bytes()[at] == b'A' { "B" } else { "A" };
        altered.0.replace_range(at..=at, other);
        assert!(matches!(keyring.open(&a, "KEY", &altered).await, Err(KeyringError::Refused { .. })), "{}", altered.0);
    }

    #[tokio::test]
    async fn a_rotated_key_still_opens_and_no_longer_seals() {
        let path: FunctionPath = "acme/main/a".parse().unwrap();
        let old = FileKeyring::parse(&format!("k1 {}", key(1))).unwrap();
        let sealed = old.seal(&path, "KEY", "v").await.unwrap();
        let both = FileKeyring::parse(&format!("k2 {}\nk1 {}", key(2), key(1))).unwrap();
        assert_eq!(both.open(&path, "KEY", &sealed).await.unwrap().as_str(), "v");
        let new = both.seal(&path, "KEY", "v").await.unwrap();
        assert!(matches!(old.open(&path, "KEY", &new).await, Err(KeyringError::UnknownKey { .. })));
    }

    #[test]
    fn empty_short_and_readable_key_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        assert!(FileKeyring::open_or_create(&path).is_ok());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(FileKeyring::open_or_create(&path).is_err());
        for bad in ["", "\n", "k1", "k1 00", "k1 zz", &format!("k1 {}\nk1 {}", key(1), key(2))] {
            assert!(FileKeyring::parse(bad).is_err(), "{bad:?}");
        }
    }
}
