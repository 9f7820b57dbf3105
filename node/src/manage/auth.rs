//! Who calls, and whether they may. The tenant comes from the token; what belongs to another tenant does not exist for it.

use super::{Api, ClientIp, Shared, audit::Actor, problem::ApiError};
use axum::{
    extract::FromRequestParts,
    http::{header, request::Parts},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hearth_edge::addresses;
use hearth_model::{ProblemKind, Scope, TenantName, Timestamp, Token, TokenHash};
use hearth_store::FunctionStore;
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use std::{
    collections::HashMap,
    fs,
    io::Write,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

/// How long a token that was found is believed without asking the store; a deleted one works no longer than this.
const BELIEVED_FOR: Duration = Duration::from_secs(3);
const TOKENS_KNOWN_MAX: usize = 10_000;
/// Addresses whose wrong tokens are counted.
const ADDRESSES_MAX: usize = 10_000;
const PREFIX: &str = "hth_";

/// A call's authenticated sender.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    token: Arc<Token>,
}

impl Caller {
    /// The one authorization rule: whether this caller may do what needs `scope` to things of `tenant`.
    pub fn require(&self, tenant: &TenantName, scope: Scope) -> Result<(), ApiError> {
        match &self.token.tenant {
            None if self.token.scope == Scope::Admin => Ok(()),
            Some(own) if own != tenant => Err(ApiError::not_found("thing")),
            Some(_) if self.token.scope.allows(scope) && self.token.scope != Scope::Admin => Ok(()),
            _ => Err(ApiError::new(
                ProblemKind::Forbidden,
                format!("this needs a token of scope {}, yours has {}", scope.as_str(), self.token.scope.as_str()),
            )),
        }
    }

    /// What concerns the whole installation.
    pub fn require_admin(&self) -> Result<(), ApiError> {
        if self.is_admin() {
            return Ok(());
        }
        Err(ApiError::new(ProblemKind::Forbidden, "this needs an operator's token (scope admin)"))
    }

    pub fn is_admin(&self) -> bool {
        self.token.tenant.is_none() && self.token.scope == Scope::Admin
    }

    pub fn tenant(&self) -> Option<&TenantName> {
        self.token.tenant.as_ref()
    }

    pub fn scope(&self) -> Scope {
        self.token.scope
    }
}

type Believed = (Arc<Token>, Instant);

/// Found tokens for a moment, and wrong ones by address.
pub(crate) struct Guard {
    known: Cache<[u8; 32], Believed>,
    wrong: Mutex<HashMap<IpAddr, (u32, Instant)>>,
    wrong_max: u32,
}

impl Guard {
    pub fn new(wrong_max: u32) -> Self {
        Self { known: Cache::new(TOKENS_KNOWN_MAX), wrong: Mutex::default(), wrong_max }
    }

    pub fn forget(&self) {
        self.known.clear();
    }

    fn is_blocked(&self, ip: IpAddr) -> bool {
        let wrong = self.wrong.lock();
        wrong
            .get(&addresses::counted(ip))
            .is_some_and(|(count, since)| *count >= self.wrong_max && since.elapsed() < Duration::from_secs(60))
    }

    fn note_wrong(&self, ip: IpAddr) {
        let ip = addresses::counted(ip);
        let mut wrong = self.wrong.lock();
        if wrong.len() >= ADDRESSES_MAX && !wrong.contains_key(&ip) {
            wrong.retain(|_, (_, since)| since.elapsed() < Duration::from_secs(60));
            if wrong.len() >= ADDRESSES_MAX {
                wrong.clear();
            }
        }
        let entry = wrong.entry(ip).or_insert((0, Instant::now()));
        if entry.1.elapsed() >= Duration::from_secs(60) {
            *entry = (0, Instant::now());
        }
        entry.0 += 1;
    }
}

impl Api {
    async fn authenticate(&self, text: &str) -> Result<Arc<Token>, ApiError> {
        let wrong = || ApiError::new(ProblemKind::Unauthenticated, "the token is not known here or has expired");
        // The store is asked by the token's hash, and equality of hashes is all that decides: the time of a look-up tells nothing
        // about how much of a guess was right.
        let hash = TokenHash::of(text);
        let token = match self.guard.known.get(&hash.0) {
            Some((token, at)) if at.elapsed() < BELIEVED_FOR => token,
            _ => {
                let token = Arc::new(self.deps.functions.get_token(&hash).await?.ok_or_else(wrong)?);
                self.guard.known.insert(hash.0, (Arc::clone(&token), Instant::now()));
                token
            }
        };
        if token.expires_at.is_some_and(|at| at <= Timestamp::from_system(SystemTime::now())) {
            return Err(wrong());
        }
        Ok(token)
    }
}

impl FromRequestParts<Shared> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, ApiError> {
        let missing = || ApiError::new(ProblemKind::Unauthenticated, "send `authorization: Bearer hth_...`");
        let ip = parts.extensions.get::<ClientIp>().map(|ip| ip.0);
        if ip.is_some_and(|ip| api.guard.is_blocked(ip)) {
            return Err(ApiError::new(ProblemKind::RateLimited, "too many wrong tokens from this address; wait a minute"));
        }
        let text = parts.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        let text = text.and_then(|v| v.strip_prefix("Bearer ").or_else(|| v.strip_prefix("bearer "))).ok_or_else(missing)?;
        match api.authenticate(text.trim()).await {
            Ok(token) => {
                if let Some(actor) = parts.extensions.get::<Actor>() {
                    actor.set(&token.id, token.tenant.as_ref().map(TenantName::as_str));
                }
                Ok(Self { token })
            }
            Err(error) => {
                if let (ProblemKind::Unauthenticated, Some(ip)) = (error.kind, ip) {
                    api.guard.note_wrong(ip);
                }
                Err(error)
            }
        }
    }
}

/// A fresh token: its text, which is shown once, and what is kept.
pub(crate) fn new_token(
    tenant: Option<TenantName>,
    scope: Scope,
    expires_in: Option<Duration>,
    note: String,
) -> (String, TokenHash, Token) {
    let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()));
    let now = Timestamp::from_system(SystemTime::now());
    let token = Token {
        id: format!("tok-{:016x}", rand::random::<u64>()),
        tenant,
        scope,
        created_at: now,
        expires_at: expires_in.map(|d| now.plus(d)),
        note,
    };
    let hash = TokenHash::of(&text);
    (text, hash, token)
}

/// Why there is no admin token.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The store does not answer.
    #[error("reading or writing the admin token")]
    Store(#[from] hearth_store::StoreError),
    /// The file cannot be used.
    #[error("admin token file {path}: {detail}")]
    File {
        /// Which.
        path: String,
        /// What is wrong and what to do.
        detail: String,
    },
}

/// At the first start makes an admin token and writes it to `file` (mode 0600); later checks that the file's token is still known.
///
/// # Errors
/// [`BootstrapError`] when the file holds a token that the store does not know: it belongs to other data.
pub async fn bootstrap_admin_token(functions: &dyn FunctionStore, file: &Path) -> Result<(), BootstrapError> {
    let fail = |detail: String| BootstrapError::File { path: file.display().to_string(), detail };
    match fs::read_to_string(file) {
        Ok(text) => match functions.get_token(&TokenHash::of(text.trim())).await? {
            Some(token) if token.scope == Scope::Admin => Ok(()),
            _ => Err(fail("the store does not know its token: it belongs to other data; remove the file to get a new one".into())),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let (text, hash, token) = new_token(None, Scope::Admin, None, "made at the first start".into());
            let mut new =
                fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).map_err(|e| fail(e.to_string()))?;
            // The file first: a token that nobody can read would stay behind otherwise, one that is not stored is found out above.
            new.write_all(text.as_bytes())
                .and_then(|()| new.write_all(b"\n"))
                .and_then(|()| new.sync_all())
                .map_err(|e| fail(e.to_string()))?;
            functions.put_token(hash, token).await?;
            Ok(())
        }
        Err(error) => Err(fail(error.to_string())),
    }
}
