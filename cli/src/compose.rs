//! The composition root: one function builds every role out of its parts; only the configuration differs.

use crate::{
    config::{Config, Role, Settings},
    coordination::Coordination,
    doctor, runtime_files,
};
use anyhow::{Context, Result, bail};
use hearth_builder::Builder;
use hearth_model::FunctionPath;
use hearth_node::{Node, manage};
use hearth_placement::{ChangeNotice, Notices};
use hearth_registry::Registry;
use hearth_router::Router;
use hearth_sandbox::{Purpose, Sandbox, docker::DockerSandbox, image};
use std::{
    fs::{self, File},
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::TcpListener,
    runtime::Handle,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

/// Runs the role until it is told to leave.
pub async fn run(config: Config) -> Result<()> {
    raise_descriptor_limit();
    let data_dir = prepare_data_dir(&config.settings.data_dir)?;
    let _lock = lock(&data_dir)?;
    let coordination = Coordination::start(&config.settings, &data_dir, config.role).await?;
    match config.role {
        Role::Router => route(config, coordination).await,
        Role::Up | Role::Node | Role::Builder => work(config, coordination, data_dir).await,
    }
}

/// A router; the one of them that is elected plans where containers go.
async fn route(config: Config, coordination: Coordination) -> Result<()> {
    let settings = config.settings;
    let deps = hearth_router::Deps { routes: Arc::new(coordination.table.clone()) };
    let router = Router::start(settings.router.clone(), deps).await.context("starting the router")?;
    let planning = CancellationToken::new();
    let planner = tokio::spawn(coordination.planner(&settings, planning.clone())?);
    announce(&config.announce, router.addr(), router.ops_addr(), serde_json::json!({}))?;
    wait_for_signal().await?;
    tracing::info!("leaving; a second signal ends this at once");
    let leave = async {
        planning.cancel();
        router.shutdown(settings.grace).await;
        let _ = planner.await;
    };
    tokio::select! {
        () = leave => Ok(()),
        again = wait_for_signal() => { again?; bail!("ended by a second signal") }
    }
}

/// A machine with containers: node, builder, or both.
async fn work(config: Config, coordination: Coordination, data_dir: PathBuf) -> Result<()> {
    let settings = config.settings;
    let runtime_dir = runtime_files::write(&data_dir)?;

    let docker = Arc::new(connect_docker(&settings, &data_dir).await?);
    let description = docker.describe().await.context("asking Docker what it is")?;
    for warning in &description.warnings {
        tracing::warn!("{warning}");
    }
    // `up` is for trying and for a single machine whose operator reads the warnings; a machine of a cluster has nobody who looks.
    if config.role != Role::Up
        && let Err(refused) = doctor::require_safe(&settings.docker, &description)
    {
        // Nothing of this process stays on a machine that it does not want.
        docker.close().await.context("taking the packet filter away again")?;
        return Err(refused);
    }
    let stores = hearth_store::open(&settings.store.clone().unwrap_or_else(|| hearth_store::Config::embedded(&data_dir))).await?;
    let registry = Arc::new(Registry::new(settings.registry.clone())?);
    let sandbox: Arc<dyn Sandbox> = Arc::clone(&docker) as _;

    let token_file = data_dir.join("admin.token");
    if config.role == Role::Up {
        manage::bootstrap_admin_token(&*stores.functions, &token_file).await?;
    }
    let node = match config.role {
        Role::Router | Role::Builder => None,
        Role::Up | Role::Node => {
            let deps = hearth_node::Deps {
                stores: stores.clone(),
                sandbox: Arc::clone(&sandbox),
                description,
                registry: Arc::clone(&registry),
                data_dir: data_dir.clone(),
                runtime_dir: runtime_dir.clone(),
                build_image: image::digest(Purpose::Build),
                oci_runtimes: settings.docker.oci_runtimes.clone(),
                cluster: coordination.link(&settings)?,
            };
            Some(Node::start(settings.node.clone(), deps).await?)
        }
    };
    // Before a job is taken that nobody would finish if it cannot be bound.
    let ops_listener = match config.role {
        Role::Builder => Some(bind_ops(settings.builder.ops_listen).await?),
        Role::Up | Role::Node | Role::Router => None,
    };
    let builder = match config.role {
        Role::Router | Role::Node => None,
        Role::Up | Role::Builder => {
            let catalog = node.as_ref().map(|n| Arc::clone(n.catalog()));
            let notices = coordination.notices.clone();
            let deps = hearth_builder::Deps {
                functions: Arc::clone(&stores.functions),
                artifacts: Arc::clone(&stores.artifacts),
                queue: Arc::clone(&stores.queue),
                sandbox,
                registry,
                data_dir: data_dir.clone(),
                code_cache_dir: runtime_dir,
                beside_requests: config.role == Role::Up,
                on_settled: Arc::new(move |path| match &catalog {
                    Some(catalog) => catalog.invalidate(path),
                    None => tell(&notices, path),
                }),
            };
            // Its tasks run where it is started.
            let _beside_requests = docker.background().filter(|_| config.role == Role::Up).map(Handle::enter);
            Some(Builder::start(settings.builder.clone(), deps).context("starting the builder")?)
        }
    };
    // Nodes that share a store without etcd hear nothing of each other: each looks for itself.
    if let Some(node) = &node
        && node.control_addr().is_none()
        && settings.store.as_ref().is_some_and(hearth_store::Config::is_shared)
    {
        node.catalog().set_news(false);
    }
    match (&node, &builder, ops_listener) {
        (Some(node), ..) => announce_node(node, &config.announce, &token_file, config.role)?,
        (None, Some(builder), Some(listener)) => {
            let ops = builder.serve_ops(listener, &stores.calls)?;
            say(&config.announce, &serde_json::json!({ "ops_url": format!("http://{ops}") }))?;
            eprintln!("metrics and health http://{ops}/metrics");
        }
        _ => {}
    }

    let asked_to_leave = node.as_ref().map(Node::asked_to_leave).unwrap_or_default();
    tokio::select! {
        signal = wait_for_signal() => signal?,
        () = asked_to_leave.cancelled() => {}
    }
    tracing::info!("leaving; a second signal ends this at once");
    let leave = async {
        if let Some(builder) = builder {
            builder.shutdown().await;
        }
        if let Some(node) = node {
            node.shutdown(settings.grace, !config.destroy_containers).await;
        }
        if let Err(error) = docker.close().await {
            tracing::warn!(%error, "the packet filter could not be removed");
        }
        // Nothing that a next process would adopt depends on them then.
        for part in ["slots", "modules-ro", "builds"].iter().filter(|_| config.destroy_containers) {
            if let Err(error) = hearth_sandbox::docker::unmount_below(&data_dir.join(part)) {
                tracing::warn!(%error, part, "mounts below the data directory stay");
            }
        }
    };
    tokio::select! {
        () = leave => Ok(()),
        again = wait_for_signal() => { again?; bail!("ended by a second signal; containers of this node stay until it starts again") }
    }
}

async fn bind_ops(listen: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(listen).await.with_context(|| format!("builder.ops_listen {listen}: cannot be bound; give it a free port"))
}

fn prepare_data_dir(dir: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir_all(dir).with_context(|| format!("data_dir {}: cannot be made", dir.display()))?;
    // Containers' users pass through it to the directories that are mounted; they must not list it.
    fs::set_permissions(dir, fs::Permissions::from_mode(0o711))
        .with_context(|| format!("data_dir {}: is not ours", dir.display()))?;
    Ok(dir.canonicalize()?)
}

/// One process on a data directory at a time; the lock goes with the process, however it ends. Its file says which process that is.
fn lock(data_dir: &Path) -> Result<File> {
    let path = data_dir.join("lock");
    let mut file =
        File::options().create(true).truncate(false).write(true).open(&path).with_context(|| path.display().to_string())?;
    if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("another hearth runs on {}; end it, or give this one another --data-dir", data_dir.display());
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).with_context(|| path.display().to_string())?;
    Ok(file)
}

fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Each connection and each container takes some; staying low is no reason not to start.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

async fn connect_docker(settings: &Settings, data_dir: &Path) -> Result<DockerSandbox> {
    let mut config = settings.docker.clone();
    if config.instance == hearth_sandbox::docker::Config::default().instance {
        config.instance = instance_name(data_dir)?;
    }
    let docker = DockerSandbox::connect(config).await.context(
        "Docker cannot be used; is it installed and running? `make up` sees to both, `docker.socket` says where it listens",
    )?;
    for purpose in [Purpose::Runtime, Purpose::Build] {
        docker.ensure_image(&image::default_cache_dir(), purpose, &|line| tracing::info!("image: {line}")).await?;
    }
    Ok(docker)
}

/// Names this node's containers: random, and kept, so that a restart finds its own.
fn instance_name(data_dir: &Path) -> Result<String> {
    let path = data_dir.join("instance");
    if let Ok(name) = fs::read_to_string(&path) {
        return Ok(name.trim().to_owned());
    }
    let mut bytes = [0_u8; 4];
    use std::io::Read;
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let name = format!("n{}", hex::encode(bytes));
    fs::write(&path, &name)?;
    Ok(name)
}

/// Writes the file of `--announce`: whole or not at all.
fn say(file: &Option<PathBuf>, text: &serde_json::Value) -> Result<()> {
    if let Some(file) = file {
        let aside = file.with_extension("new");
        fs::write(&aside, text.to_string())?;
        fs::rename(aside, file)?;
    }
    Ok(())
}

fn announce(file: &Option<PathBuf>, addr: SocketAddr, ops: SocketAddr, more: serde_json::Value) -> Result<()> {
    let mut text = more;
    text["url"] = format!("http://{addr}").into();
    text["ops_url"] = format!("http://{ops}").into();
    say(file, &text)?;
    eprintln!("hearth serves at   http://{addr}");
    eprintln!("metrics and health http://{ops}/metrics");
    Ok(())
}

fn announce_node(node: &Node, file: &Option<PathBuf>, token_file: &Path, role: Role) -> Result<()> {
    let addr = node.addr();
    announce(file, addr, node.ops_addr(), serde_json::json!({ "token_file": token_file, "control_addr": node.control_addr() }))?;
    if role == Role::Up {
        eprintln!("admin token        {}", token_file.display());
        eprintln!("\nA first function:\n");
        eprintln!("  echo 'module.exports = (context, cb) => cb(null, {{ hello: context.query.name }});' > hello.js");
        eprintln!("  HEARTH_URL=http://{addr} HEARTH_TOKEN=$(cat {}) hearth deploy acme/main/hello hello.js", token_file.display());
        eprintln!("  curl 'http://{addr}/run/acme/main/hello?name=world'\n");
    }
    Ok(())
}

/// A builder by itself tells the nodes that a version went live; where that fails they see it when they look again.
fn tell(notices: &Notices, path: &FunctionPath) {
    let (notices, path) = (notices.clone(), path.to_string());
    tokio::spawn(async move {
        if let Err(error) = notices.publish(&ChangeNotice { path, origin: "builder".into() }).await {
            tracing::warn!(%error, "nodes cannot be told that a version went live");
        }
    });
}

async fn wait_for_signal() -> Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    // A repeat within this moment is the same wish (a terminal and make both pass it on).
    tokio::time::sleep(Duration::from_millis(100)).await;
    Ok(())
}
