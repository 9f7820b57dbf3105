//! A sandbox whose containers are tasks of the test: each binds the two sockets in its slot and speaks the control protocol as its
//! script says.

use async_trait::async_trait;
use hearth_model::{FunctionName, ResolvedModule, VersionNumber, protocol::{FromRuntime, ToRuntime}};
use hearth_sandbox::{
    Description, Exit, Limits, Running, Sandbox, SandboxError, SandboxId, SandboxSpec, Usage,
    fake::{Call, FakeSandbox},
};
use parking_lot::Mutex;
use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::mpsc,
    task::JoinHandle,
};

use super::super::attach::{AttachFailure, ModuleAttach};

/// What a runtime was told, by sandbox id.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Told {
    Load(FunctionName, VersionNumber, HashMap<String, String>),
    Unload(FunctionName, VersionNumber),
    Preload(Vec<String>),
    Storage(ToRuntime),
}

/// A sandbox for tests. Containers outlive handlers, as real ones do.
#[derive(Clone)]
pub(crate) struct Scripted(Arc<Inner>);

struct Inner {
    fake: FakeSandbox,
    containers: Mutex<HashMap<String, Script>>,
    told: Mutex<Vec<(String, Told)>>,
}

struct Script {
    slot: u32,
    task: JoinHandle<()>,
    /// Lines to say on the control connection.
    say: mpsc::Sender<String>,
    stuck: Arc<std::sync::atomic::AtomicBool>,
}

#[derive(Default)]
struct Life {
    secret: Option<String>,
    loaded: Vec<String>,
}

impl Scripted {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner { fake: FakeSandbox::in_memory(), containers: Mutex::default(), told: Mutex::default() }))
    }

    pub(crate) fn fake(&self) -> &FakeSandbox {
        &self.0.fake
    }

    pub(crate) fn told(&self) -> Vec<(String, Told)> {
        self.0.told.lock().clone()
    }

    pub(crate) fn count(&self, call: Call) -> u64 {
        self.0.fake.count(call)
    }

    /// How many containers there are.
    pub(crate) fn running(&self) -> usize {
        self.0.containers.lock().len()
    }

    /// From now on the event loop answers nothing.
    pub(crate) fn get_stuck(&self, id: &SandboxId) {
        self.0.containers.lock()[&id.0].stuck.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// Says a line on the control connection.
    pub(crate) async fn say(&self, id: &SandboxId, line: impl Into<String>) {
        let say = self.0.containers.lock()[&id.0].say.clone();
        say.send(line.into()).await.unwrap();
    }

    /// Ends a container as a crash does.
    pub(crate) fn crash(&self, id: &SandboxId, exit: Exit) {
        if let Some(script) = self.0.containers.lock().get(&id.0) {
            script.task.abort();
        }
        let _ = self.0.fake.exit(id, exit);
    }

    pub(crate) fn slot_of(&self, id: &SandboxId) -> u32 {
        self.0.containers.lock()[&id.0].slot
    }

    fn start(&self, running: &Running, spec: &SandboxSpec) {
        let run = spec.slot_dir.join("run");
        let http = UnixListener::bind(run.join("http.sock")).unwrap();
        let control = UnixListener::bind(run.join("control.sock")).unwrap();
        let (say, lines) = mpsc::channel(16);
        let stuck = Arc::default();
        let runtime = Runtime { inner: Arc::clone(&self.0), id: running.id.clone(), life: Life::default(), stuck: Arc::clone(&stuck) };
        let task = tokio::spawn(async move {
            tokio::select! {
                () = runtime.serve(control, lines) => {}
                () = accept_all(http) => {}
            }
        });
        self.0.containers.lock().insert(running.id.0.clone(), Script { slot: spec.slot, task, say, stuck });
    }
}

async fn accept_all(http: UnixListener) {
    while http.accept().await.is_ok() {}
}

struct Runtime {
    inner: Arc<Inner>,
    id: SandboxId,
    life: Life,
    stuck: Arc<std::sync::atomic::AtomicBool>,
}

impl Runtime {
    async fn serve(mut self, control: UnixListener, mut lines: mpsc::Receiver<String>) {
        while let Ok((stream, _)) = control.accept().await {
            self.talk(stream, &mut lines).await;
        }
    }

    async fn talk(&mut self, stream: UnixStream, lines: &mut mpsc::Receiver<String>) {
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader).lines();
        loop {
            let answer = tokio::select! {
                said = lines.recv() => match said {
                    // A test's way to break the connection.
                    Some(line) if line == "BREAK" => return,
                    Some(line) => Some(line),
                    None => return,
                },
                line = reader.next_line() => {
                    let Ok(Some(line)) = line else { return };
                    if self.stuck.load(std::sync::atomic::Ordering::Relaxed) {
                        continue;
                    }
                    match self.answer(serde_json::from_str(&line).unwrap()) {
                        Ok(answer) => answer.map(|a| serde_json::to_string(&a).unwrap()),
                        Err(()) => return,
                    }
                }
            };
            if let Some(answer) = answer
                && writer.write_all(format!("{answer}\n").as_bytes()).await.is_err()
            {
                return;
            }
        }
    }

    fn tell(&self, told: Told) {
        self.inner.told.lock().push((self.id.0.clone(), told));
    }

    fn answer(&mut self, message: ToRuntime) -> Result<Option<FromRuntime>, ()> {
        Ok(match message {
            ToRuntime::Hello { secret } => {
                if *self.life.secret.get_or_insert(secret.clone()) != secret {
                    return Err(());
                }
                Some(FromRuntime::Ready { node: "v24".into(), loaded: self.life.loaded.clone() })
            }
            ToRuntime::Load { id, function, version, secrets, .. } => {
                self.tell(Told::Load(function.clone(), version, secrets.into_iter().collect()));
                match function.as_str() {
                    "hangs" => None,
                    "exits" => {
                        let _ = self.inner.fake.exit(&self.id, Exit { code: Some(3), out_of_memory: false });
                        return Err(());
                    }
                    "bloats" => {
                        let _ = self.inner.fake.exit(&self.id, Exit { code: Some(137), out_of_memory: true });
                        return Err(());
                    }
                    "fails" => Some(FromRuntime::Loaded { id, model: None, error: Some("SyntaxError: no".into()), ms: 0.1 }),
                    _ => {
                        self.life.loaded.push(format!("{function}@{version}"));
                        Some(FromRuntime::Loaded { id, model: None, error: None, ms: 0.1 })
                    }
                }
            }
            ToRuntime::Unload { function, version } => {
                self.life.loaded.retain(|l| *l != format!("{function}@{version}"));
                self.tell(Told::Unload(function, version));
                None
            }
            ToRuntime::Preload { id, modules } => {
                let failed = modules.iter().filter(|m| m.contains("broken")).cloned().collect();
                self.tell(Told::Preload(modules));
                Some(FromRuntime::Preloaded { id, failed })
            }
            ToRuntime::Ping { id } => Some(FromRuntime::Pong { id }),
            message @ ToRuntime::Storage { .. } => {
                self.tell(Told::Storage(message));
                None
            }
        })
    }
}

#[async_trait]
impl Sandbox for Scripted {
    async fn describe(&self) -> Result<Description, SandboxError> {
        self.0.fake.describe().await
    }
    async fn create(&self, spec: &SandboxSpec) -> Result<Running, SandboxError> {
        let running = self.0.fake.create(spec).await?;
        self.start(&running, spec);
        Ok(running)
    }
    async fn destroy(&self, id: &SandboxId) -> Result<(), SandboxError> {
        self.0.fake.destroy(id).await?;
        if let Some(script) = self.0.containers.lock().remove(&id.0) {
            script.task.abort();
        }
        Ok(())
    }
    async fn freeze(&self, id: &SandboxId) -> Result<(), SandboxError> {
        self.0.fake.freeze(id).await
    }
    async fn thaw(&self, id: &SandboxId) -> Result<(), SandboxError> {
        self.0.fake.thaw(id).await
    }
    async fn resize(&self, id: &SandboxId, limits: &Limits) -> Result<(), SandboxError> {
        self.0.fake.resize(id, limits).await
    }
    async fn wait(&self, id: &SandboxId) -> Result<Exit, SandboxError> {
        self.0.fake.wait(id).await
    }
    async fn usage(&self, id: &SandboxId) -> Result<Usage, SandboxError> {
        self.0.fake.usage(id).await
    }
    async fn output(&self, id: &SandboxId) -> Result<String, SandboxError> {
        self.0.fake.output(id).await
    }
    async fn list(&self) -> Result<Vec<Running>, SandboxError> {
        self.0.fake.list().await
    }
}

/// A module cache that notes what it is asked.
#[derive(Default)]
pub(crate) struct Modules {
    pub popular: Mutex<Vec<Vec<ResolvedModule>>>,
    /// Slot, function's directory, modules.
    pub attached: Mutex<Vec<(u32, String, Vec<String>)>>,
    pub detached: Mutex<Vec<u32>>,
    pub adopted: Mutex<Vec<u32>>,
}

#[async_trait]
impl ModuleAttach for Modules {
    async fn attach(&self, slot: u32, tree: &Path, function_dir: &Path, modules: &[ResolvedModule]) -> Result<Vec<String>, AttachFailure> {
        if let Some(module) = modules.iter().find(|m| m.spec.name.as_str() == "missing") {
            return Err(AttachFailure { module: module.spec.to_string(), detail: "it is not there".into() });
        }
        assert!(tree.join(function_dir).is_dir(), "the function's directory is made first");
        let names: Vec<String> = modules.iter().map(|m| m.spec.name.to_string()).collect();
        std::fs::create_dir_all(tree.join(function_dir).join("node_modules")).unwrap();
        self.attached.lock().push((slot, function_dir.display().to_string(), names.clone()));
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok(names.iter().map(|n| format!("/hearth/m/{n}")).collect())
    }
    async fn detach_slot(&self, slot: u32, _: &Path) {
        self.detached.lock().push(slot);
    }
    async fn adopt_slot(&self, slot: u32, _: &Path) {
        self.adopted.lock().push(slot);
    }
    fn note_demand(&self, _: &[ResolvedModule]) {}
    fn popular(&self, max: usize) -> Vec<Vec<ResolvedModule>> {
        self.popular.lock().iter().take(max).cloned().collect()
    }
}
