//! [`Keyring`] over KMS: each secret is sealed under a data key of its own, which KMS makes and which is kept beside the secret, itself
//! sealed by the master key that never leaves KMS. The encryption context is tenant, container, function and name: KMS opens a data key
//! only for that very place, and its trail says for which.

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
use std::collections::HashMap;
use zeroize::Zeroizing;

/// A master key in KMS.
#[derive(Debug)]
pub struct KmsKeyring {
    client: Client,
    key_id: String,
    caller: Caller,
    timeouts: Timeouts,
}

fn context(path: &FunctionPath, name: &str) -> HashMap<String, String> {
    HashMap::from([
        ("hearth:tenant".to_owned(), path.tenant.to_string()),
        ("hearth:container".to_owned(), path.container.to_string()),
        ("hearth:function".to_owned(), path.function.to_string()),
        ("hearth:name".to_owned(), name.to_owned()),
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
    async fn data_key(&self, context: HashMap<String, String>) -> Result<(Zeroizing<Vec<u8>>, Vec<u8>), KeyringError> {
        let request = || {
            let make = self.client.generate_data_key().key_id(&self.key_id).key_spec(DataKeySpec::Aes256);
            make.set_encryption_context(Some(context.clone())).send()
        };
        let answer = self.caller.repeat("GenerateDataKey", self.deadlines(), request).await;
        let answer = answer.map_err(|e| self.failed("GenerateDataKey", &e))?;
        match (answer.plaintext, answer.ciphertext_blob) {
            (Some(plain), Some(sealed)) => Ok((Zeroizing::new(plain.into_inner()), sealed.into_inner())),
            _ => Err(KeyringError::Unavailable {
                call: "GenerateDataKey",
                resource: format!("key {}", self.key_id),
                detail: "the answer has no key".into(),
            }),
        }
    }
}

#[async_trait]
impl Keyring for KmsKeyring {
    async fn seal(&self, path: &FunctionPath, name: &str, value: &str) -> Result<SealedSecret, KeyringError> {
        let refused = || KeyringError::Refused { path: path.to_string(), name: name.to_owned() };
        let (key, sealed_key) = self.data_key(context(path, name)).await?;
        let cipher = XChaCha20Poly1305::new_from_slice(&key).map_err(|_| refused())?;
        let nonce: [u8; 24] = rand::random();
        let aad = associated_data(path, name);
        let payload = Payload { msg: value.as_bytes(), aad: &aad };
        let sealed = cipher.encrypt(XNonce::from_slice(&nonce), payload).map_err(|_| refused())?;
        let data = STANDARD_NO_PAD.encode([nonce.as_slice(), &sealed].concat());
        Ok(SealedSecret(format!("kms1:{}:{data}", STANDARD_NO_PAD.encode(sealed_key))))
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
        let request = || {
            let decrypt = self.client.decrypt().ciphertext_blob(Blob::new(sealed_key.clone()));
            decrypt.set_encryption_context(Some(context(path, name))).send()
        };
        let answer = match self.caller.repeat("Decrypt", self.deadlines(), request).await {
            Ok(answer) => answer,
            // Sealed for another place, or altered.
            Err(error) if error.code().is_some_and(|c| c.contains("InvalidCiphertext") || c.contains("IncorrectKey")) => {
                return Err(refused());
            }
            Err(error) => return Err(self.failed("Decrypt", &error)),
        };
        let key = Zeroizing::new(answer.plaintext.ok_or_else(refused)?.into_inner());
        let cipher = XChaCha20Poly1305::new_from_slice(&key).map_err(|_| refused())?;
        let aad = associated_data(path, name);
        let value = cipher.decrypt(XNonce::from_slice(nonce), Payload { msg: ciphertext, aad: &aad }).map_err(|_| refused())?;
        String::from_utf8(value).map(Zeroizing::new).map_err(|_| refused())
    }
}
