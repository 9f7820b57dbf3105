//! [`ArtifactStore`] in an S3 bucket. An object appears whole or not at all and is never overwritten (`If-None-Match: *`); "it is there
//! already" is success only after the bytes that are there have been hashed. Large files go up in parts, and all come down as a stream that
//! goes on where it broke off; neither is ever whole in memory.

use super::{
    Connector, Place, Timeouts,
    call::{CallError, Caller, Deadlines},
    design::{ARTIFACTS_PREFIX, BUNDLES_PREFIX, MARKER_OBJECT},
};
use crate::{
    ArtifactError, ArtifactStore, Put,
    artifact::{ArtifactStream, verified},
    directory::is_sha256,
};
use async_trait::async_trait;
use aws_sdk_s3::{
    Client,
    error::ProvideErrorMetadata,
    primitives::ByteStream,
    types::{CompletedMultipartUpload, CompletedPart},
};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use sha2::{Digest, Sha256};
use std::{path::Path, time::Duration};
use tokio::io::AsyncReadExt;

/// Files longer than this go up in parts of this length. S3 wants at least 5 MiB, and at most 10,000 parts (80 GB).
pub const PART_BYTES: usize = 8 * 1024 * 1024;
/// How often a stream that breaks off is taken up again.
const RESUMES_MAX: u32 = 5;
/// Bytes read from a file at a time while it is hashed.
const CHUNK_BYTES: usize = 256 * 1024;

/// Objects of one bucket, of which those named by their hash lie below one prefix.
#[derive(Debug, Clone)]
pub struct S3Store {
    client: Client,
    bucket: String,
    /// Where the objects are that are named by their hash.
    prefix: &'static str,
    /// The account that must own the bucket, so that a bucket of the same name elsewhere is never used.
    owner: Option<String>,
    caller: Caller,
    timeouts: Timeouts,
}

/// Length of the whole object, its bytes, and the id of the request that created it.
type Opened = (u64, ArtifactStream, String);

enum Created {
    Yes,
    Existed,
}

/// Metadata that names the request which created an object: when an answer is lost, it tells whether "exists already" means us.
const REQUEST: &str = "hearth-request";

fn request_id() -> String {
    hex::encode(rand::random::<[u8; 16]>())
}

impl S3Store {
    /// A client of the bucket, for module artifacts; nothing is asked of it yet.
    pub async fn new(connector: &Connector, place: &Place, bucket: &str, owner: Option<String>) -> Self {
        let config = aws_sdk_s3::config::Builder::from(&connector.sdk(place).await)
            // A stand-in has no names for buckets; AWS takes both forms.
            .force_path_style(place.endpoint_url.is_some())
            .build();
        Self {
            client: Client::from_conf(config),
            bucket: bucket.to_owned(),
            prefix: ARTIFACTS_PREFIX,
            owner,
            caller: connector.caller("s3"),
            timeouts: connector.timeouts,
        }
    }

    /// The same bucket for code bundles: apart from artifacts, so that a role may be given one without the other.
    #[must_use]
    pub fn bundles(&self) -> Self {
        Self { prefix: BUNDLES_PREFIX, ..self.clone() }
    }

    /// For messages.
    #[must_use]
    pub fn resource(&self) -> String {
        format!("bucket {}", self.bucket)
    }

    fn failed<E>(&self, call: &'static str, error: &CallError<E>) -> ArtifactError
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let resource = self.resource();
        let detail = error.explain("s3", call, &resource);
        ArtifactError::Unavailable { call, resource, detail }
    }

    fn unclear(&self, call: &'static str, detail: &dyn std::fmt::Display) -> ArtifactError {
        ArtifactError::Unavailable { call, resource: self.resource(), detail: detail.to_string() }
    }

    /// Objects take longer to their first byte than items do.
    fn read(&self) -> Deadlines {
        Deadlines { total: self.timeouts.read * 2, attempt: self.timeouts.attempt * 2 }
    }

    /// For a call that carries so many bytes: a second more for each MiB.
    fn carry(&self, bytes: usize) -> Deadlines {
        let more = Duration::from_secs((bytes / (1024 * 1024)) as u64);
        Deadlines { total: self.timeouts.write + more, attempt: self.timeouts.write / 2 + more }
    }

    /// For a call that carries up to one part.
    fn part(&self) -> Deadlines {
        Deadlines { total: self.timeouts.part, attempt: self.timeouts.part / 2 }
    }

    /// Writes down to which installation the bucket belongs, unless that is written; returns what is written.
    ///
    /// # Errors
    /// [`ArtifactError::Unavailable`] names bucket, call and remedy.
    pub async fn claim(&self, installation: &str) -> Result<String, ArtifactError> {
        if let Some(marker) = self.get_object(MARKER_OBJECT).await? {
            return self.owner_in(&marker);
        }
        let marker = Bytes::from(serde_json::json!({ "schema": super::design::SCHEMA, "installation": installation }).to_string());
        match self.create_object(MARKER_OBJECT, marker, &request_id()).await? {
            Created::Yes => Ok(installation.to_owned()),
            Created::Existed => {
                let marker = self.get_object(MARKER_OBJECT).await?.unwrap_or_default();
                self.owner_in(&marker)
            }
        }
    }

    fn owner_in(&self, marker: &[u8]) -> Result<String, ArtifactError> {
        let marker: serde_json::Value = serde_json::from_slice(marker).map_err(|_| {
            self.unclear("GetObject", &format!("its {MARKER_OBJECT} is not Hearth's: is this bucket used by something else?"))
        })?;
        if marker["schema"].as_u64().is_none_or(|schema| schema > super::design::SCHEMA) {
            return Err(self.unclear("GetObject", &"the bucket was written by a newer Hearth: upgrade this program"));
        }
        Ok(marker["installation"].as_str().unwrap_or_default().to_owned())
    }

    /// Puts an object whose name is unique.
    pub(super) async fn put_object(&self, key: &str, bytes: Bytes) -> Result<(), ArtifactError> {
        let request = || {
            self.client
                .put_object()
                .bucket(&self.bucket)
                .key(key)
                .set_expected_bucket_owner(self.owner.clone())
                .body(ByteStream::from(bytes.clone()))
                .send()
        };
        self.caller
            .repeat("PutObject", self.carry(bytes.len()), request)
            .await
            .map(|_| ())
            .map_err(|e| self.failed("PutObject", &e))
    }

    /// A whole object; only for those that are short by construction. None when there is none.
    pub(super) async fn get_object(&self, key: &str) -> Result<Option<Bytes>, ArtifactError> {
        match self.open_resuming(key.to_owned()).await? {
            None => Ok(None),
            Some((_, mut chunks, _)) => {
                let mut bytes = BytesMut::new();
                while let Some(chunk) = chunks.next().await {
                    bytes.extend_from_slice(&chunk?);
                }
                Ok(Some(bytes.freeze()))
            }
        }
    }

    pub(super) async fn delete_object(&self, key: &str) -> Result<(), ArtifactError> {
        let request = || {
            let delete = self.client.delete_object().bucket(&self.bucket).key(key);
            delete.set_expected_bucket_owner(self.owner.clone()).send()
        };
        let deadlines = Deadlines { total: self.timeouts.write, attempt: self.timeouts.attempt };
        self.caller.repeat("DeleteObject", deadlines, request).await.map(|_| ()).map_err(|e| self.failed("DeleteObject", &e))
    }

    async fn create_object(&self, key: &str, bytes: Bytes, id: &str) -> Result<Created, ArtifactError> {
        let request = || {
            self.client
                .put_object()
                .bucket(&self.bucket)
                .key(key)
                .if_none_match("*")
                .metadata(REQUEST, id)
                .set_expected_bucket_owner(self.owner.clone())
                .body(ByteStream::from(bytes.clone()))
                .send()
        };
        match self.caller.repeat("PutObject", self.carry(bytes.len()), request).await {
            Ok(_) => Ok(Created::Yes),
            Err(error) if existed(&error) => Ok(Created::Existed),
            Err(error) => Err(self.failed("PutObject", &error)),
        }
    }

    async fn create_in_parts(&self, key: &str, path: &Path, id: &str) -> Result<Created, ArtifactError> {
        let small = Deadlines { total: self.timeouts.write, attempt: self.timeouts.attempt };
        let begin = || {
            let begin = self.client.create_multipart_upload().bucket(&self.bucket).key(key).metadata(REQUEST, id);
            begin.set_expected_bucket_owner(self.owner.clone()).send()
        };
        let begun = self.caller.repeat("CreateMultipartUpload", small, begin).await;
        let begun = begun.map_err(|e| self.failed("CreateMultipartUpload", &e))?;
        let upload = begun.upload_id.ok_or_else(|| self.unclear("CreateMultipartUpload", &"the answer names no upload"))?;
        let result = self.send_parts(key, path, &upload).await;
        if !matches!(result, Ok(Created::Yes)) {
            let abort = || {
                let abort = self.client.abort_multipart_upload().bucket(&self.bucket).key(key).upload_id(&upload);
                abort.set_expected_bucket_owner(self.owner.clone()).send()
            };
            // The bucket's life-cycle rule removes what stays.
            let _ = self.caller.repeat("AbortMultipartUpload", small, abort).await;
        }
        result
    }

    async fn send_parts(&self, key: &str, path: &Path, upload: &str) -> Result<Created, ArtifactError> {
        let mut file = tokio::fs::File::open(path).await.map_err(|e| self.unclear("read the file", &e))?;
        let mut parts = Vec::new();
        loop {
            let part = read_part(&mut file).await.map_err(|e| self.unclear("read the file", &e))?;
            if part.is_empty() {
                break;
            }
            let number = i32::try_from(parts.len() + 1).unwrap_or(i32::MAX);
            let request = || {
                self.client
                    .upload_part()
                    .bucket(&self.bucket)
                    .key(key)
                    .upload_id(upload)
                    .part_number(number)
                    .set_expected_bucket_owner(self.owner.clone())
                    .body(ByteStream::from(part.clone()))
                    .send()
            };
            let sent = self.caller.repeat("UploadPart", self.part(), request).await.map_err(|e| self.failed("UploadPart", &e))?;
            parts.push(
                CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag).set_checksum_crc32(sent.checksum_crc32).build(),
            );
        }
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let request = || {
            self.client
                .complete_multipart_upload()
                .bucket(&self.bucket)
                .key(key)
                .upload_id(upload)
                .multipart_upload(parts.clone())
                .if_none_match("*")
                .set_expected_bucket_owner(self.owner.clone())
                .send()
        };
        match self.caller.repeat("CompleteMultipartUpload", self.part(), request).await {
            Ok(_) => Ok(Created::Yes),
            // An earlier sending of this call, whose answer was lost, ends the upload; the hash check tells.
            Err(error) if existed(&error) || error.code() == Some("NoSuchUpload") => Ok(Created::Existed),
            Err(error) => Err(self.failed("CompleteMultipartUpload", &error)),
        }
    }

    /// Opens an object from `offset` on (with its whole length); none when there is none.
    async fn open(&self, key: &str, offset: Option<u64>) -> Result<Option<Opened>, ArtifactError> {
        let request = || {
            self.client
                .get_object()
                .bucket(&self.bucket)
                .key(key)
                .set_expected_bucket_owner(self.owner.clone())
                .set_range(offset.filter(|o| *o > 0).map(|o| format!("bytes={o}-")))
                .send()
        };
        let answer = match self.caller.repeat("GetObject", self.read(), request).await {
            Ok(answer) => answer,
            Err(error) if error.code() == Some("NoSuchKey") => return Ok(None),
            Err(error) => return Err(self.failed("GetObject", &error)),
        };
        let length = answer.content_length.and_then(|l| u64::try_from(l).ok()).unwrap_or(0) + offset.unwrap_or(0);
        let id = answer.metadata.and_then(|mut m| m.remove(REQUEST)).unwrap_or_default();
        let resource = self.resource();
        let unclear = move |detail: String| ArtifactError::Unavailable { call: "GetObject", resource: resource.clone(), detail };
        let patience = self.timeouts.part;
        let chunks = stream::unfold((answer.body, false), move |(mut body, ended)| {
            let unclear = unclear.clone();
            async move {
                if ended {
                    return None;
                }
                match tokio::time::timeout(patience, body.next()).await {
                    Ok(Some(Ok(chunk))) => Some((Ok(chunk), (body, false))),
                    Ok(Some(Err(error))) => Some((Err(unclear(error.to_string())), (body, true))),
                    Ok(None) => None,
                    Err(_) => Some((Err(unclear(format!("nothing came for {} s", patience.as_secs()))), (body, true))),
                }
            }
        });
        Ok(Some((length, chunks.boxed(), id)))
    }

    /// The object as a stream that is taken up again where it breaks off.
    async fn open_resuming(&self, key: String) -> Result<Option<Opened>, ArtifactError> {
        let Some((length, chunks, id)) = self.open(&key, None).await? else { return Ok(None) };
        let state = (self.clone(), key, chunks, 0_u64, 0_u32, false);
        let resumed = stream::unfold(state, move |(store, key, mut chunks, mut at, mut resumes, failed)| async move {
            if failed {
                return None;
            }
            loop {
                let broken = match chunks.next().await {
                    Some(Ok(chunk)) => {
                        at += chunk.len() as u64;
                        return Some((Ok(chunk), (store, key, chunks, at, resumes, false)));
                    }
                    None if at >= length => return None,
                    None => store.unclear("GetObject", &format!("the answer ended after {at} of {length} bytes")),
                    Some(Err(error)) => error,
                };
                resumes += 1;
                if resumes > RESUMES_MAX {
                    return Some((Err(broken), (store, key, chunks, at, resumes, true)));
                }
                tokio::time::sleep(Duration::from_millis(50) * resumes).await;
                store.caller.repeated("GetObject");
                match store.open(&key, Some(at)).await {
                    Ok(Some((_, again, _))) => chunks = again,
                    Ok(None) => return Some((Err(broken), (store, key, chunks, at, resumes, true))),
                    Err(error) => return Some((Err(error), (store, key, chunks, at, resumes, true))),
                }
            }
        });
        Ok(Some((length, resumed.boxed(), id)))
    }

    /// After "it is there already": whether it is what it should be, since anybody with access to the bucket may have put it; and whether it
    /// was this request that created it.
    async fn confirm(&self, sha256: &str, id: &str) -> Result<Put, ArtifactError> {
        let missing = || ArtifactError::NotFound { sha256: sha256.to_owned() };
        let (_, chunks, creator) = self.open_resuming(self.key(sha256)?).await?.ok_or_else(missing)?;
        let mut chunks = verified(sha256.to_owned(), chunks);
        while let Some(chunk) = chunks.next().await {
            chunk?;
        }
        Ok(if creator == id { Put::Created } else { Put::Exists })
    }

    fn key(&self, sha256: &str) -> Result<String, ArtifactError> {
        if is_sha256(sha256) {
            return Ok(format!("{}{}/{sha256}", self.prefix, &sha256[..2]));
        }
        Err(ArtifactError::NotFound { sha256: sha256.chars().take(80).collect() })
    }
}

fn existed<E: ProvideErrorMetadata>(error: &CallError<E>) -> bool {
    error.code() == Some("PreconditionFailed") || matches!(error.status(), Some(412))
}

async fn read_part(file: &mut tokio::fs::File) -> std::io::Result<Bytes> {
    let mut part = BytesMut::with_capacity(PART_BYTES);
    while part.len() < PART_BYTES && file.read_buf(&mut part).await? > 0 {}
    Ok(part.freeze())
}

async fn hash_of(path: &Path) -> std::io::Result<(String, u64)> {
    let mut file = tokio::fs::File::open(path).await?;
    let (mut hash, mut length, mut buffer) = (Sha256::new(), 0, vec![0; CHUNK_BYTES]);
    loop {
        match file.read(&mut buffer).await? {
            0 => return Ok((hex::encode(hash.finalize()), length)),
            n => {
                hash.update(&buffer[..n]);
                length += n as u64;
            }
        }
    }
}

#[async_trait]
impl ArtifactStore for S3Store {
    async fn ping(&self) -> Result<(), ArtifactError> {
        let request = || self.client.head_bucket().bucket(&self.bucket).set_expected_bucket_owner(self.owner.clone()).send();
        self.caller.repeat("HeadBucket", self.read(), request).await.map(|_| ()).map_err(|e| self.failed("HeadBucket", &e))
    }

    async fn put_file(&self, sha256: &str, path: &Path) -> Result<Put, ArtifactError> {
        let key = self.key(sha256)?;
        let (found, length) = hash_of(path).await.map_err(|e| self.unclear("read the file", &e))?;
        if found != sha256 {
            return Err(ArtifactError::Mismatch { sha256: sha256.to_owned(), found });
        }
        if self.head(sha256).await?.is_some() {
            return self.confirm(sha256, "").await;
        }
        let id = request_id();
        let created = if length > PART_BYTES as u64 {
            self.create_in_parts(&key, path, &id).await?
        } else {
            let bytes = tokio::fs::read(path).await.map_err(|e| self.unclear("read the file", &e))?;
            // The file may have changed since it was hashed.
            let found = hex::encode(Sha256::digest(&bytes));
            if found != sha256 {
                return Err(ArtifactError::Mismatch { sha256: sha256.to_owned(), found });
            }
            self.create_object(&key, bytes.into(), &id).await?
        };
        match created {
            Created::Yes => Ok(Put::Created),
            Created::Existed => self.confirm(sha256, &id).await,
        }
    }

    async fn put_bytes(&self, bytes: Bytes) -> Result<(String, Put), ArtifactError> {
        let sha256 = hex::encode(Sha256::digest(&bytes));
        let id = request_id();
        match self.create_object(&self.key(&sha256)?, bytes, &id).await? {
            Created::Yes => Ok((sha256, Put::Created)),
            Created::Existed => {
                let put = self.confirm(&sha256, &id).await?;
                Ok((sha256, put))
            }
        }
    }

    async fn get(&self, sha256: &str) -> Result<(u64, ArtifactStream), ArtifactError> {
        match self.open_resuming(self.key(sha256)?).await? {
            Some((length, chunks, _)) => Ok((length, verified(sha256.to_owned(), chunks))),
            None => Err(ArtifactError::NotFound { sha256: sha256.to_owned() }),
        }
    }

    async fn head(&self, sha256: &str) -> Result<Option<u64>, ArtifactError> {
        let Ok(key) = self.key(sha256) else { return Ok(None) };
        let request = || {
            let head = self.client.head_object().bucket(&self.bucket).key(&key);
            head.set_expected_bucket_owner(self.owner.clone()).send()
        };
        match self.caller.repeat("HeadObject", self.read(), request).await {
            Ok(answer) => Ok(answer.content_length.and_then(|l| u64::try_from(l).ok())),
            // An answer to HEAD has no body and so no code.
            Err(error) if error.status() == Some(404) => Ok(None),
            Err(error) => Err(self.failed("HeadObject", &error)),
        }
    }

    async fn delete(&self, sha256: &str) -> Result<(), ArtifactError> {
        match self.key(sha256) {
            Ok(key) => self.delete_object(&key).await,
            Err(_) => Ok(()),
        }
    }
}
