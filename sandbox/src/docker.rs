//! Containers of a Docker engine. The engine makes and removes them; what is on a request's path or too slow through the engine
//! (freezing, limits, use, waiting for the end) is done through the kernel directly, with the engine as the fallback.
//!
//! What the caller prepares: a slot's directory with `run/`, `tree/` and for a build `out/`; `etc/` is added. With root, what is
//! mounted below `tree/` appears in the running container; the directory that holds the slots is made a shared mount for that
//! ([`share_mounts`]) when the first container is made in it, if it is not on one already.

mod config;
mod describe;
mod engine;
mod options;
mod running;
mod seccomp;
mod slot_dir;

pub use config::{Config, INSTANCE_BYTES_MAX, UID_BASE_MIN};
pub(crate) use engine::{connect, within};
pub use options::{BUILD_DIR, LABEL_INSTANCE, LABEL_NODE, LABEL_PURPOSE, LABEL_SLOT};
pub use slot_dir::{share_mounts, unmount_below};

use crate::{
    Description, Exit, Limits, Purpose, Running, Sandbox, SandboxError, SandboxId, SandboxSpec, Usage,
    background::Background,
    cgroup,
    cpus::{self, CpuSplit},
    image,
    net::{self, Egress, NetError},
};
use async_trait::async_trait;
use bollard::{
    models::{ContainerCreateBody, ContainerInspectResponse},
    query_parameters::{
        CreateContainerOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
        StartContainerOptions,
    },
};
use engine::Engine;
use futures_util::{StreamExt, TryStreamExt, stream};
use hearth_model::{function::NodeVersion, protocol::paths};
use parking_lot::Mutex;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::runtime::Handle;

/// Most bytes that [`Sandbox::output`] gives back.
pub const OUTPUT_BYTES_MAX: usize = 64 * 1024;
/// Containers that are looked at simultaneously when a node starts.
const INSPECTIONS_MAX: usize = 8;

/// Containers of one node through a Docker engine. Dropping it leaves the containers as they are.
pub struct DockerSandbox {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    engine: Engine,
    hierarchy: Option<cgroup::Hierarchy>,
    /// The machine's CPUs, where some are set aside for background work.
    split: Option<CpuSplit>,
    background: Option<Background>,
    egress: Option<Egress>,
    /// Weaknesses found while connecting.
    warnings: Vec<String>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Containers that run or have ended and are not removed; as many as there are slots.
    known: HashMap<String, Known>,
    /// Slots whose container is being made, so that `list` does not take it for a leftover.
    pending: HashSet<u32>,
    /// Directories of slots from which mounts propagate; one, but for tests.
    shared: HashSet<PathBuf>,
}

/// What is kept of a container so that the engine need not be asked.
#[derive(Clone)]
struct Known {
    running: Running,
    run_dir: Option<PathBuf>,
    group: Option<cgroup::Group>,
    /// Refers to the process itself, whatever becomes of its number.
    process: Option<Arc<OwnedFd>>,
}

impl DockerSandbox {
    /// Connects to the engine and starts egress where the configuration asks for it.
    pub async fn connect(config: Config) -> Result<Self, SandboxError> {
        Self::open(config, true).await
    }

    /// Connects to look around, for `describe` and images: no rule of the packet filter is touched, so that a node with the same
    /// configuration may be running.
    pub async fn look(config: Config) -> Result<Self, SandboxError> {
        Self::open(config, false).await
    }

    async fn open(config: Config, with_egress: bool) -> Result<Self, SandboxError> {
        config.validate()?;
        let engine = Engine::connect(&config).await?;
        let mut warnings = Vec::new();
        let hierarchy = cgroup::Hierarchy::detect()
            .inspect_err(|e| {
                warnings.push(format!("control groups are not readable ({e}): freezing goes through the engine and is slow"))
            })
            .ok();
        let split = split(&config, hierarchy.as_ref(), &mut warnings)?;
        let background = split.as_ref().map(|split| Background::start(&split.background)).transpose();
        let background = background.map_err(|e| SandboxError::Failed { call: "start threads", detail: e.to_string() })?;
        let aside = background.as_ref().and_then(Background::handle).cloned().unwrap_or_else(Handle::current);
        let egress = match config.egress.mode {
            _ if !with_egress => None,
            net::Mode::None => None,
            net::Mode::Public => {
                match Egress::start(&config.egress, &config.instance, aside).await.map_err(|e| egress_failed(&e))? {
                    net::Start::Running(egress, weak) => {
                        warnings.extend(weak);
                        Some(egress)
                    }
                    net::Start::Unavailable(reason) => {
                        warnings.push(reason);
                        None
                    }
                }
            }
        };
        let state = Mutex::new(State::default());
        Ok(Self { inner: Arc::new(Inner { config, engine, hierarchy, split, background, egress, warnings, state }) })
    }

    /// Makes sure that the engine has the image of `purpose`, building it where needed; `progress` gets lines for people. Images
    /// named in the configuration are only looked for.
    pub async fn ensure_image(
        &self,
        cache_dir: &Path,
        purpose: Purpose,
        progress: &(dyn Fn(&str) + Send + Sync),
    ) -> Result<String, image::ImageError> {
        let configured = match purpose {
            Purpose::Runtime => &self.inner.config.runtime_image,
            Purpose::Build => &self.inner.config.build_image,
        };
        let docker = self.inner.engine.docker();
        match configured {
            Some(image) if image::present(docker, image).await? => Ok(image.clone()),
            Some(image) => Err(image::ImageError::Configured { image: image.clone() }),
            None => image::ensure(docker, cache_dir, purpose, progress).await,
        }
    }

    /// Where to run what no request waits for, on a machine that serves requests: on the CPUs for background work, if some are set aside.
    #[must_use]
    pub fn background(&self) -> Option<&Handle> {
        self.inner.background.as_ref()?.handle()
    }

    /// For the end of a node's life: takes the packet filter away if no container of the instance is left that it would protect.
    pub async fn close(&self) -> Result<(), SandboxError> {
        let Some(egress) = &self.inner.egress else {
            return Ok(());
        };
        if self.list().await?.is_empty() { egress.close().await.map_err(|e| egress_failed(&e)) } else { Ok(()) }
    }
}

/// The machine's CPUs, some of them set aside. A machine that cannot keep containers to some CPUs does without, unless it was told which.
fn split(
    config: &Config,
    hierarchy: Option<&cgroup::Hierarchy>,
    warnings: &mut Vec<String>,
) -> Result<Option<CpuSplit>, SandboxError> {
    let wrong = |detail: String| SandboxError::Failed { call: "read configuration", detail: format!("background_cpus: {detail}") };
    if config.background_cpus == "none" {
        return Ok(None);
    }
    let missing = || io::Error::new(io::ErrorKind::NotFound, "control groups are not readable");
    match hierarchy.ok_or_else(missing).and_then(cgroup::Hierarchy::usable_cpus) {
        Ok(usable) => cpus::split(&config.background_cpus, &usable, cpus::siblings).map_err(wrong),
        Err(error) if config.background_cpus == "auto" => {
            warnings.push(format!(
                "no CPUs are set aside for background work ({error}): a container that keeps the CPUs busy slows the others' requests; have the kernel's cpuset controller, or set docker.background_cpus to \"none\""
            ));
            Ok(None)
        }
        Err(error) => Err(wrong(format!("{error}; have the kernel's cpuset controller, or set it to \"none\""))),
    }
}

fn egress_failed(error: &NetError) -> SandboxError {
    SandboxError::Failed { call: "egress", detail: format!("{error}; to run without, set egress.mode = \"none\"") }
}

fn host_failed(call: &'static str) -> impl Fn(io::Error) -> SandboxError {
    move |error| SandboxError::Failed { call, detail: error.to_string() }
}

/// Runs what may block for longer than a task should.
async fn blocking<T: Send + 'static>(
    call: &'static str,
    work: impl FnOnce() -> Result<T, SandboxError> + Send + 'static,
) -> Result<T, SandboxError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| SandboxError::Failed { call, detail: e.to_string() })?
}

impl Inner {
    async fn create(&self, spec: &SandboxSpec) -> Result<Running, SandboxError> {
        let body = options::container(&self.config, spec, slot_dir::is_root(), self.split.as_ref())?;
        self.prepare(spec).await?;
        let image = body.image.clone().unwrap_or_default();
        let name = options::name(&self.config, spec.slot);
        let id = match self.make(&name, &body).await {
            Err(SandboxError::Failed { detail, .. }) if detail.contains("is already in use by container") => {
                // A creation that was given up while the engine stalled, and that the engine has finished since.
                match self.remove_leftover(&name).await {
                    Ok(()) => self.make(&name, &body).await,
                    Err(error) => Err(error),
                }
            }
            made => made,
        };
        let id = match id {
            Ok(id) => id,
            Err(error) => {
                let _ = slot_dir::release(&spec.slot_dir.join("run"));
                return Err(error);
            }
        };
        match self.start(spec, &id, image).await {
            Ok(known) => {
                let running = known.running.clone();
                self.state.lock().known.insert(id, known);
                Ok(running)
            }
            Err(error) => {
                if let Err(left) = self.remove(&id).await {
                    tracing::warn!(container = id, slot = spec.slot, %left, "a container that could not be started could not be removed either");
                }
                let _ = slot_dir::release(&spec.slot_dir.join("run"));
                Err(error)
            }
        }
    }

    async fn make(&self, name: &str, body: &ContainerCreateBody) -> Result<String, SandboxError> {
        let named = CreateContainerOptionsBuilder::default().name(name).build();
        let made = self.engine.docker().create_container(Some(named), body.clone());
        Ok(self.engine.slow("create container", made).await?.id)
    }

    /// Removes the container that has this name, if it is this instance's and nobody here knows of it.
    async fn remove_leftover(&self, name: &str) -> Result<(), SandboxError> {
        let inspected = match self.inspect(name).await {
            Ok(inspected) => inspected,
            Err(SandboxError::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let labels = inspected.config.as_ref().and_then(|c| c.labels.as_ref());
        let ours = labels.and_then(|l| l.get(LABEL_INSTANCE)) == Some(&self.config.instance);
        let id = inspected.id.unwrap_or_default();
        if !ours || self.state.lock().known.contains_key(&id) {
            return Err(SandboxError::Failed {
                call: "create container",
                detail: format!("the name {name} is in use by container {id}"),
            });
        }
        tracing::info!(container = id, name, "removing a container whose creation was given up");
        self.remove(&id).await
    }

    async fn prepare(&self, spec: &SandboxSpec) -> Result<(), SandboxError> {
        let slots = spec.slot_dir.parent().unwrap_or(&spec.slot_dir).to_owned();
        let unshared = !self.state.lock().shared.contains(&slots);
        let (config, spec, dir) = (self.config.clone(), spec.clone(), slots.clone());
        let work = move || {
            if unshared {
                share_mounts(&dir)?;
            }
            slot_dir::prepare(&config, &spec)
        };
        blocking("prepare slot", work).await?;
        self.state.lock().shared.insert(slots);
        Ok(())
    }

    async fn start(&self, spec: &SandboxSpec, id: &str, image: String) -> Result<Known, SandboxError> {
        self.engine.slow("start container", self.engine.docker().start_container(id, None::<StartContainerOptions>)).await?;
        let inspected = self.inspect(id).await?;
        let running = Running {
            id: SandboxId(id.to_owned()),
            slot: spec.slot,
            pid: pid_of(&inspected),
            purpose: spec.purpose,
            node: spec.node,
            image,
        };
        let known = self.know(running, Some(spec.slot_dir.join("run")));
        if known.process.is_some() {
            net::require_own_namespace(known.running.pid).map_err(|e| egress_failed(&e))?;
        }
        // A container that ended at once has no network namespace any more, and needs none.
        if let (Some(egress), Purpose::Runtime, Some(_)) = (&self.egress, spec.purpose, &known.process) {
            egress.attach(spec.slot, known.running.pid).await.map_err(|e| egress_failed(&e))?;
        }
        Ok(known)
    }

    async fn restrict(&self, id: &SandboxId, policy: &hearth_model::Egress) -> Result<(), SandboxError> {
        let Some(egress) = &self.egress else { return Ok(()) };
        let known = self.find(id).await?;
        let run = known.run_dir.ok_or_else(|| SandboxError::NotFound { id: id.0.clone() })?;
        let hosts = run.with_file_name(options::ETC_DIR).join(options::HOSTS.name);
        egress.restrict(known.running.slot, policy, hosts).await.map_err(|e| egress_failed(&e))
    }

    /// Takes hold of the container's process and control group.
    fn know(&self, running: Running, run_dir: Option<PathBuf>) -> Known {
        let pid = i32::try_from(running.pid).ok().and_then(Pid::from_raw);
        let process = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()).map(Arc::new);
        // Read after the process was taken hold of: a path with the container's id proves that the number was still its own.
        let group = self.hierarchy.as_ref().zip(pid).and_then(|(h, _)| h.group(&running.id.0, running.pid).ok());
        let process = process.filter(|_| group.is_some());
        Known { running, run_dir, group, process }
    }

    async fn inspect(&self, id: &str) -> Result<ContainerInspectResponse, SandboxError> {
        self.engine.quick("inspect container", self.engine.docker().inspect_container(id, None::<InspectContainerOptions>)).await
    }

    /// From memory, or for a container of an earlier life from the engine. Others' containers do not exist.
    async fn find(&self, id: &SandboxId) -> Result<Known, SandboxError> {
        if let Some(known) = self.state.lock().known.get(&id.0) {
            return Ok(known.clone());
        }
        let inspected = self.inspect(&id.0).await?;
        let known = self.adopt(&inspected).ok_or_else(|| SandboxError::NotFound { id: id.0.clone() })?;
        Ok(self.state.lock().known.entry(known.running.id.0.clone()).or_insert(known).clone())
    }

    /// What the engine says of a container of this instance.
    fn adopt(&self, inspected: &ContainerInspectResponse) -> Option<Known> {
        let config = inspected.config.as_ref()?;
        let labels = config.labels.as_ref()?;
        if labels.get(LABEL_INSTANCE)? != &self.config.instance {
            return None;
        }
        let running = Running {
            id: SandboxId(inspected.id.clone()?),
            slot: labels.get(LABEL_SLOT)?.parse().ok()?,
            pid: pid_of(inspected),
            purpose: [Purpose::Runtime, Purpose::Build]
                .into_iter()
                .find(|p| Some(options::purpose_label(*p)) == labels.get(LABEL_PURPOSE).map(String::as_str))?,
            node: [NodeVersion::V22, NodeVersion::V24]
                .into_iter()
                .find(|n| Some(n.as_str()) == labels.get(LABEL_NODE).map(String::as_str))?,
            image: config.image.clone()?,
        };
        let mounts = inspected.mounts.iter().flatten();
        let run_dir =
            mounts.filter(|m| m.destination.as_deref() == Some(paths::RUN)).find_map(|m| m.source.clone().map(PathBuf::from));
        Some(self.know(running, run_dir))
    }

    async fn remove(&self, id: &str) -> Result<(), SandboxError> {
        let force = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        match self.engine.slow("remove container", self.engine.docker().remove_container(id, Some(force))).await {
            Ok(()) | Err(SandboxError::NotFound { .. }) => Ok(()),
            // Someone else is at it; it is gone when they are done.
            Err(SandboxError::Failed { detail, .. }) if detail.contains("already in progress") => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn destroy(&self, id: &SandboxId) -> Result<(), SandboxError> {
        let known = match self.find(id).await {
            Ok(known) => known,
            Err(SandboxError::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        // First the kill, then the thaw: a frozen process takes no signal until it is thawed, and must not run once more.
        if let Some(process) = &known.process {
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
        if let Some(group) = &known.group {
            let _ = group.thaw();
        }
        // While the route still tells the address. What stays restricted by a failure is restricted once too often.
        if let Some(egress) = &self.egress
            && let Err(error) = egress.forget(known.running.slot).await
        {
            tracing::warn!(slot = known.running.slot, %error, "a container's egress policy could not be removed");
        }
        self.remove(&id.0).await?;
        if let Some(run) = known.run_dir {
            blocking("unmount", move || slot_dir::release(&run).map_err(host_failed("unmount"))).await?;
        }
        self.state.lock().known.remove(&id.0);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Running>, SandboxError> {
        let label = format!("{LABEL_INSTANCE}={}", self.config.instance);
        let filters = HashMap::from([("label".to_owned(), vec![label])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let found = self.engine.quick("list containers", self.engine.docker().list_containers(Some(options))).await?;
        let ids: Vec<String> = found
            .into_iter()
            .filter(|c| {
                let slot = c.labels.as_ref().and_then(|l| l.get(LABEL_SLOT)?.parse().ok());
                slot.is_none_or(|slot: u32| !self.state.lock().pending.contains(&slot))
            })
            .filter_map(|c| c.id)
            .collect();
        let listed: Vec<Option<Running>> =
            stream::iter(ids).map(|id| self.list_one(id)).buffer_unordered(INSPECTIONS_MAX).try_collect().await?;
        let mut running: Vec<Running> = listed.into_iter().flatten().collect();
        running.sort_by_key(|r| r.slot);
        Ok(running)
    }

    async fn list_one(&self, id: String) -> Result<Option<Running>, SandboxError> {
        let inspected = match self.inspect(&id).await {
            Ok(inspected) => inspected,
            Err(SandboxError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let runs = inspected.state.as_ref().and_then(|s| s.running).unwrap_or(false);
        match self.adopt(&inspected) {
            Some(known) if runs => {
                let running = known.running.clone();
                self.state.lock().known.entry(id).or_insert(known);
                Ok(Some(running))
            }
            _ => {
                self.destroy(&SandboxId(id)).await?;
                Ok(None)
            }
        }
    }
}

fn pid_of(inspected: &ContainerInspectResponse) -> u32 {
    inspected.state.as_ref().and_then(|s| s.pid).and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0)
}

/// Marks a slot as being made until it is dropped.
struct Pending {
    inner: Arc<Inner>,
    slot: u32,
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.inner.state.lock().pending.remove(&self.slot);
    }
}

#[async_trait]
impl Sandbox for DockerSandbox {
    async fn describe(&self) -> Result<Description, SandboxError> {
        describe::describe(
            &self.inner.config,
            &self.inner.engine,
            self.inner.hierarchy.as_ref(),
            self.inner.egress.is_some(),
            self.inner.split.as_ref(),
            &self.inner.warnings,
        )
        .await
    }

    /// Runs to its end even if the caller goes away, because the engine does so too; a container nobody waits for is destroyed.
    async fn create(&self, spec: &SandboxSpec) -> Result<Running, SandboxError> {
        if !self.inner.state.lock().pending.insert(spec.slot) {
            return Err(SandboxError::Failed {
                call: "create container",
                detail: format!("slot {} is being made already", spec.slot),
            });
        }
        let pending = Pending { inner: Arc::clone(&self.inner), slot: spec.slot };
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let spec = spec.clone();
        tokio::spawn(async move {
            let created = pending.inner.create(&spec).await;
            if let Err(Ok(unwanted)) = sender.send(created)
                && let Err(error) = pending.inner.destroy(&unwanted.id).await
            {
                tracing::warn!(container = unwanted.id.0, slot = spec.slot, %error, "a container nobody waited for could not be removed");
            }
        });
        receiver
            .await
            .map_err(|_| SandboxError::Failed { call: "create container", detail: "the attempt was given up".to_owned() })?
    }

    async fn destroy(&self, id: &SandboxId) -> Result<(), SandboxError> {
        self.inner.destroy(id).await
    }

    async fn freeze(&self, id: &SandboxId) -> Result<(), SandboxError> {
        self.inner.set_frozen(id, true).await
    }

    async fn thaw(&self, id: &SandboxId) -> Result<(), SandboxError> {
        self.inner.set_frozen(id, false).await
    }

    async fn resize(&self, id: &SandboxId, limits: &Limits) -> Result<(), SandboxError> {
        self.inner.resize(id, limits).await
    }

    async fn wait(&self, id: &SandboxId) -> Result<Exit, SandboxError> {
        self.inner.wait(id).await
    }

    async fn restrict(&self, id: &SandboxId, egress: &hearth_model::Egress) -> Result<(), SandboxError> {
        self.inner.restrict(id, egress).await
    }

    async fn traffic(&self) -> Result<HashMap<u32, net::Traffic>, SandboxError> {
        match &self.inner.egress {
            Some(egress) => egress.traffic().await.map_err(|e| egress_failed(&e)),
            None => Ok(HashMap::new()),
        }
    }

    async fn usage(&self, id: &SandboxId) -> Result<Usage, SandboxError> {
        self.inner.usage(id).await
    }

    async fn output(&self, id: &SandboxId) -> Result<String, SandboxError> {
        self.inner.output(id).await
    }

    async fn list(&self) -> Result<Vec<Running>, SandboxError> {
        self.inner.list().await
    }
}
