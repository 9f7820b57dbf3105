//! placeholder until the worker is written
use std::sync::Arc;
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Config {}
pub struct Deps {
    pub functions: Arc<dyn hearth_store::FunctionStore>,
    pub artifacts: Arc<dyn hearth_store::ArtifactStore>,
    pub queue: Arc<dyn hearth_store::BuildQueue>,
    pub sandbox: Arc<dyn hearth_sandbox::Sandbox>,
    pub registry: Arc<hearth_registry::Registry>,
    pub data_dir: std::path::PathBuf,
    pub code_cache_dir: std::path::PathBuf,
    pub on_settled: Arc<dyn Fn(&hearth_model::FunctionPath) + Send + Sync>,
}
pub struct Builder;
impl Builder {
    pub fn start(_: Config, _: Deps) -> anyhow::Result<Arc<Self>> { Ok(Arc::new(Self)) }
    pub async fn shutdown(&self) {}
}
