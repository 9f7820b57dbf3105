//! From ranges to builds: resolves a version's dependencies, asks for the builds that are missing, waits for them.

use super::{Api, problem::ApiError};
use hearth_model::{
    BuildState, ContainerPath, Function, FunctionPath, FunctionVersion, ModuleRecord, ProblemKind, ResolvedModule, Tenant,
    Timestamp, VersionNumber, VersionStatus, function::NodeVersion, module::BuildInputs,
};
use hearth_store::BuildJob;
use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

/// How soon a waiting call looks again; the pause grows, since each look reads the store.
const LOOK_FIRST: Duration = Duration::from_millis(50);
const LOOK_MAX: Duration = Duration::from_millis(500);

const FAILURE_KEPT: Duration = Duration::from_secs(hearth_model::limits::BUILD_FAILURE_KEPT_S);

fn now() -> Timestamp {
    SystemTime::now().into()
}

impl Api {
    /// Exact versions of all modules that the function needs, peers that nobody listed included.
    pub(super) async fn resolve(
        &self,
        container: &ContainerPath,
        dependencies: &BTreeMap<String, String>,
    ) -> Result<Vec<ResolvedModule>, ApiError> {
        if dependencies.is_empty() {
            return Ok(Vec::new());
        }
        let node = self.deps.functions.get_container(container).await?.map(|c| c.node).unwrap_or_default();
        let registry = &self.deps.registry;
        let resolved = registry.resolve(dependencies, now()).await?;
        let with_key = resolved.into_iter().map(|module| {
            let scripts = registry.scripts().allows(&module.spec);
            let build =
                BuildInputs { spec: &module.spec, node, arch: self.deps.arch, scripts, image: &self.deps.build_image }.key();
            ResolvedModule { build, peers: module.peers, direct: module.direct, spec: module.spec }
        });
        Ok(with_key.collect())
    }

    /// Asks for the builds that nobody has asked for. Returns whether all are done already. A build that failed and waits for its next
    /// try is told at once.
    pub(super) async fn request_builds(
        &self,
        tenant: &Tenant,
        modules: &[ResolvedModule],
        node: NodeVersion,
    ) -> Result<bool, ApiError> {
        let mut ready = true;
        for module in modules {
            let field = || format!("dependencies.{}", module.spec.name);
            match self.deps.functions.get_module(&module.build).await?.map(|r| r.state) {
                Some(BuildState::Ready { .. }) => {}
                Some(BuildState::Queued | BuildState::Building { .. }) => ready = false,
                // Given up long enough ago: whoever asks starts it anew.
                Some(BuildState::Failed { retry_at: None, failed_at, .. }) if now().since(failed_at) >= FAILURE_KEPT => {
                    ready = false;
                    self.check_build_quota(tenant)?;
                    self.request_again(tenant, module).await?;
                }
                Some(BuildState::Failed { reason, retry_at, .. }) => {
                    let when = match retry_at {
                        Some(at) => format!("; it is tried again in {} s", at.since(now()).as_secs()),
                        None => "; it is not tried again by itself, but by a deployment ten minutes later".to_owned(),
                    };
                    return Err(ApiError::invalid(field(), format!("{} could not be built: {reason}{when}", module.spec)));
                }
                None => {
                    ready = false;
                    self.check_build_quota(tenant)?;
                    self.request_build(tenant, module, node).await?;
                }
            }
        }
        Ok(ready)
    }

    /// Builds run one after another for everybody: no tenant may fill the queue alone.
    /// Counted is who writes the record, so that many creates of one new module are one build.
    fn check_build_quota(&self, tenant: &Tenant) -> Result<(), ApiError> {
        let per_hour = tenant.limits.builds_per_hour;
        if self.deps.usage.of(&tenant.name).may_build(per_hour) {
            return Ok(());
        }
        let detail = format!(
            "this tenant may ask for {per_hour} builds of modules per hour that nobody asked for before; what is built already stays usable"
        );
        Err(ApiError::new(ProblemKind::RateLimited, detail))
    }

    async fn request_build(&self, tenant: &Tenant, module: &ResolvedModule, node: NodeVersion) -> Result<(), ApiError> {
        let scripts = self.deps.registry.scripts().allows(&module.spec);
        let record = ModuleRecord {
            key: module.build.clone(),
            spec: module.spec.clone(),
            node,
            scripts,
            state: BuildState::Queued,
            epoch: 0,
            attempts: 0,
            created_at: now(),
            integrity: None,
            log: String::new(),
        };
        // Of many who ask at once one writes the record, and that one sends the job. If it ends in between, the builder's sweep finds
        // a queued record without a job.
        if self.deps.functions.put_module(record, None).await? {
            let job = BuildJob { key: module.build.clone(), spec: module.spec.clone(), node, scripts };
            self.deps.usage.of(&tenant.name).note_build();
            self.deps.queue.send(&job, Duration::ZERO).await?;
        }
        Ok(())
    }

    async fn request_again(&self, tenant: &Tenant, module: &ResolvedModule) -> Result<(), ApiError> {
        let functions = &self.deps.functions;
        let Some(found) = functions.get_module(&module.build).await? else { return Ok(()) };
        let mut queued = found.clone();
        // It waits since now: as old as its first asking it would be taken for a build that has lost its job.
        (queued.state, queued.attempts, queued.created_at) = (BuildState::Queued, 0, now());
        if functions.put_module(queued, Some(&found)).await? {
            self.deps.usage.of(&tenant.name).note_build();
            let job = BuildJob { key: found.key, spec: found.spec, node: found.node, scripts: found.scripts };
            self.deps.queue.send(&job, Duration::ZERO).await?;
        }
        Ok(())
    }

    pub(super) async fn settle_if_built(
        &self,
        path: &FunctionPath,
        version: FunctionVersion,
    ) -> Result<(Function, FunctionVersion), ApiError> {
        let functions = &self.deps.functions;
        for module in &version.modules {
            match functions.get_module(&module.build).await?.map(|r| r.state) {
                Some(BuildState::Ready { .. }) => {}
                _ => return self.current(path, version.version).await,
            }
        }
        functions.settle_version(path, version.version, VersionStatus::Ready).await?;
        self.deps.catalog.invalidate(path);
        self.current(path, version.version).await
    }

    async fn current(&self, path: &FunctionPath, version: VersionNumber) -> Result<(Function, FunctionVersion), ApiError> {
        let functions = &self.deps.functions;
        let function = functions.get_function(path).await?.ok_or_else(|| ApiError::not_found("function"))?;
        let version = functions.get_version(path, version).await?.ok_or_else(|| ApiError::not_found("version"))?;
        Ok((function, version))
    }

    /// Waits until the version is ready or failed, at most so long.
    pub(super) async fn wait_until_settled(
        &self,
        path: &FunctionPath,
        version: VersionNumber,
        wait: Duration,
    ) -> Result<(Function, FunctionVersion), ApiError> {
        let until = tokio::time::Instant::now() + wait;
        let mut pause = LOOK_FIRST;
        loop {
            let (function, current) = self.current(path, version).await?;
            if current.status != VersionStatus::Building || tokio::time::Instant::now() >= until {
                if current.status == VersionStatus::Ready {
                    self.deps.catalog.invalidate(path);
                }
                return Ok((function, current));
            }
            tokio::time::sleep(pause).await;
            pause = pause.mul_f64(1.5).min(LOOK_MAX);
        }
    }
}
