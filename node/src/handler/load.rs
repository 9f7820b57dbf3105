//! Getting one version of a function into a container: files, modules, secrets, then the runtime's word that it is loaded.

use super::{
    AcquireError,
    container::{EndReason, Loaded, LiveContainer, VersionState, Versions},
    control::{Answer, ControlError},
    files,
    lifecycle::Gate,
    routes::Route,
    shared::{Shared, blocking, host},
    slot::{function_dir, make_dir},
    status::add,
};
use futures_util::future::try_join_all;
use hearth_model::{
    FunctionVersion,
    protocol::{ToRuntime, paths},
};
use hearth_sandbox::Exit;
use hearth_store::Servable;
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

/// How long the engine may take to tell how a container ended whose connection broke.
const EXIT_NEWS_TIMEOUT: Duration = Duration::from_millis(500);
/// Longest message of a failed load that is passed on.
const MESSAGE_BYTES_MAX: usize = 8 * 1024;

/// The right to load one version. When it is dropped without a word, whoever waits tries again.
struct LoadTurn {
    container: Arc<LiveContainer>,
    servable: Arc<Servable>,
    _end: watch::Sender<()>,
}

impl LoadTurn {
    fn version(&self) -> Option<&FunctionVersion> {
        self.servable.live.as_ref()
    }

    fn decide(&self, version: &FunctionVersion, state: VersionState) {
        self.container.versions.lock().set(version.path.function.clone(), version.version, version.created_at, state);
    }
}

impl Drop for LoadTurn {
    fn drop(&mut self) {
        if let Some(version) = self.version() {
            let key = (version.path.function.clone(), version.version);
            let mut versions = self.container.versions.lock();
            if matches!(versions.get(&key), Some(VersionState::Loading(_))) {
                versions.remove(&key);
            }
        }
    }
}

impl Shared {
    /// Begins to load a version that is not there. The channel closes when it is decided. With `claimed` the container gets its
    /// tenant's limits at the same time.
    pub(super) fn begin_load(
        self: &Arc<Self>,
        container: &Arc<LiveContainer>,
        versions: &mut Versions,
        servable: &Arc<Servable>,
        version: &FunctionVersion,
        claimed: bool,
    ) -> watch::Receiver<()> {
        let (end, receiver) = watch::channel(());
        versions.set(version.path.function.clone(), version.version, version.created_at, VersionState::Loading(receiver.clone()));
        let turn = LoadTurn { container: Arc::clone(container), servable: Arc::clone(servable), _end: end };
        let shared = Arc::clone(self);
        self.spawn(async move {
            // A container that is being retired meanwhile loads nothing more.
            if turn.container.gate.hold().is_ok() {
                shared.load(&turn, claimed).await;
                turn.container.release();
            }
        });
        receiver
    }

    async fn load(self: &Arc<Self>, turn: &LoadTurn, claimed: bool) {
        let (Some(version), container) = (turn.version(), &turn.container) else { return };
        match self.try_load(container, version, claimed).await {
            Ok((modules_ms, load_ms)) => {
                add(&self.counters.loads);
                let loaded = Arc::new(Loaded {
                    function: version.path.function.clone(),
                    version: version.version,
                    created_at: version.created_at,
                    gate: Gate::new(),
                    superseded: AtomicBool::new(false),
                    modules_ms,
                    load_ms,
                });
                turn.decide(version, VersionState::Loaded(Arc::clone(&loaded)));
                if container.versions.lock().is_live(&loaded.function, loaded.version) {
                    self.routes.set(version.path.clone(), Route { container: Arc::clone(container), loaded });
                }
                self.note_state(container);
            }
            Err(error) => {
                add(&self.counters.load_failures);
                tracing::debug!(function = %version.path, version = version.version.0, %error, "a version did not load");
                let dir = container.slot.tree().join(function_dir(version.path.function.as_str(), version.version.0));
                let _ = blocking(move || std::fs::remove_dir_all(dir)).await;
                turn.decide(version, VersionState::Failed(Instant::now(), error));
            }
        }
    }

    async fn try_load(self: &Arc<Self>, container: &Arc<LiveContainer>, version: &FunctionVersion, claimed: bool) -> Result<(f32, f32), AcquireError> {
        let began = Instant::now();
        container.owner.admit(&version.path.function, version.version);
        let dir = function_dir(version.path.function.as_str(), version.version.0);
        // All of it at once: none of it needs the other, and the runtime needs all of it.
        let limits = async {
            if !claimed {
                return Ok(());
            }
            let limits = self.limits(container.shape.memory_mb, true);
            self.sandbox.resize(&container.sandbox_id, &limits).await.map_err(AcquireError::from)
        };
        let prepared = tokio::try_join!(limits, self.place(container, version, &dir), self.open_secrets(version));
        let secrets = match prepared {
            Ok(((), (), secrets)) => secrets,
            Err(error) => {
                if claimed && matches!(error, AcquireError::Sandbox(_)) {
                    self.end(container, EndReason::Broken, None);
                }
                return Err(error);
            }
        };
        let placed = Instant::now();
        self.ask_to_load(container, version, &dir, secrets).await?;
        let ms = |duration: Duration| duration.as_secs_f32() * 1_000.0;
        Ok((ms(placed - began), ms(placed.elapsed())))
    }

    /// Puts files and modules where the container sees them.
    async fn place(&self, container: &LiveContainer, version: &FunctionVersion, dir: &Path) -> Result<(), AcquireError> {
        let files = self.bundles.read(&version.code).await?;
        if !files.contains_key(&version.main) {
            return Err(AcquireError::Load { message: format!("the function has no file {:?}", version.main) });
        }
        let tree = container.slot.tree();
        let at = tree.join(dir);
        // One directory on the local disk: quicker than handing it to another thread.
        fresh_dir(&at).map_err(host("making the function's directory"))?;
        let written = async { blocking(move || files::write(&at, &files)).await.map_err(host("writing the function's files")) };
        let attached = async {
            if version.modules.is_empty() {
                return Ok(());
            }
            match self.modules.attach(container.slot.number, &tree, dir, &version.modules).await {
                Ok(_) => Ok(()),
                Err(failure) => Err(AcquireError::Modules { module: failure.module, detail: failure.detail }),
            }
        };
        tokio::try_join!(written, attached).map(|_| ())
    }

    async fn open_secrets(&self, version: &FunctionVersion) -> Result<BTreeMap<String, String>, AcquireError> {
        let open = version.secrets.iter().map(|(name, sealed)| async move {
            let value = self.keyring.open(&version.path, name, sealed).await?;
            Ok::<_, hearth_store::KeyringError>((name.clone(), value.as_str().to_owned()))
        });
        let opened = try_join_all(open).await;
        opened.map(BTreeMap::from_iter).map_err(|e| AcquireError::Fetch { what: "secrets", detail: e.to_string() })
    }

    async fn ask_to_load(
        self: &Arc<Self>,
        container: &Arc<LiveContainer>,
        version: &FunctionVersion,
        dir: &Path,
        secrets: BTreeMap<String, String>,
    ) -> Result<(), AcquireError> {
        let patience = self.config.load_timeout;
        let ask = || {
            container.control.ask(patience, |id| ToRuntime::Load {
                id,
                function: version.path.function.clone(),
                version: version.version,
                dir: format!("{}/{}", paths::SLOT, dir.display()),
                main: version.main.clone(),
                model: version.model,
                env: version.env.clone(),
                secrets: secrets.clone(),
            })
        };
        let mut answer = ask().await;
        if answer == Err(ControlError::Broken) {
            if let Ok(exit) = timeout(EXIT_NEWS_TIMEOUT, container.exited()).await {
                return Err(ended(exit));
            }
            // It lives, and its connection has been opened again: what is loaded already is not loaded twice.
            answer = ask().await;
        }
        match answer {
            Ok(Answer::Loaded { error: None, .. }) => Ok(()),
            Ok(Answer::Loaded { error: Some(message), .. }) => Err(AcquireError::Load { message: shortened(message) }),
            Ok(_) => Err(AcquireError::Load { message: "the runtime answered something else".into() }),
            Err(ControlError::Deadline(_)) => {
                self.end(container, EndReason::LoadTimeout, None);
                Err(AcquireError::Load { message: format!("the code did not load within {patience:?}") })
            }
            Err(ControlError::TooLong(bytes)) => {
                Err(AcquireError::Load { message: format!("env and secrets are too large together: {bytes} bytes") })
            }
            Err(ControlError::Busy) => Err(AcquireError::NoCapacity { detail: "too many versions of the container load at once".into() }),
            Err(ControlError::Broken) => {
                Err(AcquireError::NoCapacity { detail: "the connection to the container broke while the function was loaded".into() })
            }
        }
    }

    /// Forgets loaded versions that are not live and that no request uses.
    pub(super) fn unload_superseded(self: &Arc<Self>, container: &Arc<LiveContainer>) {
        let mut versions = container.versions.lock();
        versions.forget_failures(self.config.load_retry_after);
        let is_over = |loaded: &&Arc<Loaded>| loaded.superseded.load(std::sync::atomic::Ordering::Relaxed) && loaded.gate.retire_idle();
        let over: Vec<_> = versions.loaded().filter(is_over).cloned().collect();
        for loaded in over {
            let (end, receiver) = watch::channel(());
            versions.set(loaded.function.clone(), loaded.version, loaded.created_at, VersionState::Unloading(receiver));
            let (shared, container) = (Arc::clone(self), Arc::clone(container));
            self.spawn(async move {
                shared.unload(&container, &loaded).await;
                drop(end);
            });
        }
    }

    async fn unload(self: &Arc<Self>, container: &Arc<LiveContainer>, loaded: &Arc<Loaded>) {
        self.routes.remove_version(&container.path().function(loaded.function.clone()), loaded);
        let _ = container.control.send(ToRuntime::Unload { function: loaded.function.clone(), version: loaded.version }).await;
        let dir = container.slot.tree().join(function_dir(loaded.function.as_str(), loaded.version.0));
        let _ = blocking(move || std::fs::remove_dir_all(dir)).await;
        container.owner.dismiss(&loaded.function, loaded.version);
        container.versions.lock().remove(&(loaded.function.clone(), loaded.version));
        self.note_state(container);
    }
}

/// The container ended over it.
fn ended(exit: Exit) -> AcquireError {
    let detail = match exit {
        Exit { out_of_memory: true, .. } => "the function ran out of memory while it was loaded".into(),
        Exit { code: Some(code), .. } => format!("the function's process ended with code {code} while it was loaded"),
        Exit { code: None, .. } => "the function's process ended while it was loaded".into(),
    };
    AcquireError::Crashed { detail, out_of_memory: exit.out_of_memory }
}

/// An empty directory; what an unfinished load left there is removed.
fn fresh_dir(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    make_dir(path)
}

fn shortened(mut message: String) -> String {
    if message.len() > MESSAGE_BYTES_MAX {
        let end = (0..=MESSAGE_BYTES_MAX).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
        message.truncate(end);
    }
    message
}
