//! [`Keyring`] over KMS: secrets are sealed under data keys, which KMS makes and which are kept beside the secrets, themselves sealed by the
//! master key that never leaves KMS. The encryption context is tenant, container and function: KMS opens a data key only for that function,
//! and its trail says for which. The secret's name is bound by the seal itself.
//!
//! Secrets of one function that are sealed within a minute share a data key, and an opened data key is remembered as long, so that a cold
//! start with many secrets makes one call.

use super::{
    Connector, Place, Timeouts,
    call::{CallError, Caller, Deadlines},
};
use crate::keyring::{Keyring, KeyringError, associated_data};
use async_trait::async_trait;
use aws_sdk_kms::{Client, error::ProvideErrorMetadata, primitives::Blob, types::DataKeySpec};
use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use hearth_model::{FunctionPath, function::SealedSecret};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use zeroize::Zeroizing;

/// How long a data key is remembered.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);
/// Data keys remembered at once.
const REMEMBERED_MAX: usize = 1_000;

/// A data key in the clear, and as KMS has sealed it.
#[derive(Clone)]
struct DataKey {
    plain: Zeroizing<Vec<u8>>,
    sealed: Vec<u8>,
    since: Instant,
}

/// Data keys by what they are for.
#[derive(Default)]
struct Remembered(Mutex<HashMap<Vec<u8>, DataKey>>);

impl Remembered {
    fn get(&self, key: &[u8]) -> Option<DataKey> {
        let keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        keys.get(key).filter(|k| k.since.elapsed() < REMEMBERED_FOR).cloned()
    }

    fn put(&self, key: Vec<u8>, data_key: DataKey) {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.len() >= REMEMBERED_MAX {
            keys.retain(|_, k| k.since.elapsed() < REMEMBERED_FOR);
        }
        if keys.len() < REMEMBERED_MAX {
            keys.insert(key, data_key);
        }
    }
}

/// A master key in KMS.
pub struct KmsKeyring {
    client: Client,
    key_id: String,
    caller: Caller,
    timeouts: Timeouts,
    /// By function.
    sealing: Remembered,
    /// By function and sealed key.
    opened: Remembered,
}

fn context(path: &FunctionPath) -> HashMap<String, String> {
    HashMap::from([
        ("hearth:tenant".to_owned(), path.tenant.to_string()),
        ("hearth:container".to_owned(), path.container.to_string()),
        ("hearth:function".to_owned(), path.function.to_string()),
    ])
}

impl KmsKeyring {
    /// Uses the key of this id, ARN or alias. Makes one data key, so that a wrong key or a missing permission shows at the start.
    ///
    /// # Errors
    /// [`KeyringError::Unavailable`] names key, call and remedy.
    pub async fn open(connector: &Connector, place: &Place, key_id: &str) -> Result<Self, KeyringError> {
        let keyring = Self {
            client: Client::new(&connector.sdk(place).await),
            key_id: key_id.to_owned(),
            caller: connector.caller("kms"),
            timeouts: connector.timeouts,
            sealing: Remembered::default(),
            opened: Remembered::default(),
        };
        keyring.data_key(HashMap::from([("hearth:check".to_owned(), "start".to_owned())])).await?;
        Ok(keyring)
    }

    fn deadlines(&self) -> Deadlines {
        Deadlines { total: self.timeouts.read, attempt: self.timeouts.attempt }
    }

    fn failed<E>(&self, call: &'static str, error: &CallError<E>) -> KeyringError
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let resource = format!("key {}", self.key_id);
        let detail = error.explain("kms", call, &resource);
        KeyringError::Unavailable { call, resource, detail }
    }

    /// A fresh data key and its sealed form.
    async fn data_key(&self, context: HashMap<String, String>) -> Result<DataKey, KeyringError> {
        let request = || {
            let make = self.client.generate_data_key().key_id(&self.key_id).key_spec(DataKeySpec::Aes256);
            make.set_encryption_context(Some(context.clone())).send()
        };
        let answer = self.caller.repeat("GenerateDataKey", self.deadlines(), request).await;
        let answer = answer.map_err(|e| self.failed("GenerateDataKey", &e))?;
        match (answer.plaintext, answer.ciphertext_blob) {
            (Some(plain), Some(sealed)) => {
                Ok(DataKey { plain: Zeroizing::new(plain.into_inner()), sealed: sealed.into_inner(), since: Instant::now() })
            }
            _ => Err(KeyringError::Unavailable {
                call: "GenerateDataKey",
                resource: format!("key {}", self.key_id),
                detail: "the answer has no key".into(),
            }),
        }
    }
}

impl KmsKeyring {
    /// None when it was sealed for another function, or altered.
    async fn open_data_key(&self, path: &FunctionPath, sealed: Vec<u8>) -> Result<Option<Zeroizing<Vec<u8>>>, KeyringError> {
        // The function is part of what it is remembered by: what was opened for one must not open for another.
        let of = [path.to_string().as_bytes(), b"\0", &sealed].concat();
        if let Some(key) = self.opened.get(&of) {
            return Ok(Some(key.plain));
        }
        let request = || {
            let decrypt = self.client.decrypt().ciphertext_blob(Blob::new(sealed.clone()));
            decrypt.set_encryption_context(Some(context(path))).send()
        };
        match self.caller.repeat("Decrypt", self.deadlines(), request).await {
            Ok(answer) => Ok(answer.plaintext.map(|plain| {
                let plain = Zeroizing::new(plain.into_inner());
                self.opened.put(of, DataKey { plain: plain.clone(), sealed, since: Instant::now() });
                plain
            })),
            Err(error) if error.code().is_some_and(|c| c.contains("InvalidCiphertext") || c.contains("IncorrectKey")) => Ok(None),
            Err(error) => Err(self.failed("Decrypt", &error)),
        }
    }
}

#[async_trait]
impl Keyring for KmsKeyring {
    async fn seal(&self, path: &FunctionPath, name: &str, value: &str) -> Result<SealedSecret, KeyringError> {
        let refused = || KeyringError::Refused { path: path.to_string(), name: name.to_owned() };
        let of = path.to_string().into_bytes();
        let key = match self.sealing.get(&of) {
            Some(key) => key,
            None => {
                let key = self.data_key(context(path)).await?;
                self.sealing.put(of, key.clone());
                key
            }
        };
        let cipher = XChaCha20Poly1305::new_from_slice(&key.plain).map_err(|_| refused())?;
        let nonce: [u8; 24] = rand::random();
        let aad = associated_data(path, name);
        let payload = Payload { msg: value.as_bytes(), aad: &aad };
        let sealed = cipher.encrypt(XNonce::from_slice(&nonce), payload).map_err(|_| refused())?;
        let data = STANDARD_NO_PAD.encode([nonce.as_slice(), &sealed].concat());
        Ok(SealedSecret(format!("kms1:{}:{data}", STANDARD_NO_PAD.encode(&key.sealed))))
    }

    async fn open(&self, path: &FunctionPath, name: &str, sealed: &SealedSecret) -> Result<Zeroizing<String>, KeyringError> {
        let refused = || KeyringError::Refused { path: path.to_string(), name: name.to_owned() };
        if sealed.0.starts_with("v1:") {
            return Err(KeyringError::UnknownKey { path: path.to_string(), name: name.to_owned(), key_id: "of a key file".into() });
        }
        let (sealed_key, data) = sealed.0.strip_prefix("kms1:").and_then(|s| s.split_once(':')).ok_or_else(refused)?;
        let sealed_key = STANDARD_NO_PAD.decode(sealed_key).map_err(|_| refused())?;
        let data = STANDARD_NO_PAD.decode(data).map_err(|_| refused())?;
        let (nonce, ciphertext) = data.split_at_checked(24).ok_or_else(refused)?;
        let key = self.open_data_key(path, sealed_key).await?.ok_or_else(refused)?;
        let cipher = XChaCha20Poly1305::new_from_slice(&key).map_err(|_| refused())?;
        let aad = associated_data(path, name);
        let value = cipher.decrypt(XNonce::from_slice(nonce), Payload { msg: ciphertext, aad: &aad }).map_err(|_| refused())?;
        String::from_utf8(value).map(Zeroizing::new).map_err(|_| refused())
    }
}
