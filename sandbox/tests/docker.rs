//! The Docker backend: the suite, and what only a real engine can show. Fails without an engine; builds the image where it is missing.

#![allow(clippy::print_stderr, reason = "building the image takes a while and says so")]

mod support;

use hearth_sandbox::{
    Cpus, Exit, Limits, Purpose, Sandbox, SandboxError,
    conformance::{self, Fixture},
    docker::{Config, DockerSandbox},
    image, net,
};
use serde_json::{Value, json};
use std::{path::PathBuf, time::Duration};
use support::{Cleanup, Slots, eval, run};

const PURPOSES: [Purpose; 2] = [Purpose::Runtime, Purpose::Build];

fn config(test: &str) -> Config {
    let egress = net::Config { mode: net::Mode::None, ..net::Config::default() };
    Config { instance: format!("t{}-{test}", std::process::id()), egress, ..Config::default() }
}

/// A sandbox of its own for a test, the images at hand, and what removes its containers when the test fails.
async fn sandbox(test: &str) -> (DockerSandbox, Cleanup) {
    let config = config(test);
    let cleanup = Cleanup::new(&config.instance);
    let sandbox = DockerSandbox::connect(config).await.expect("a Docker engine");
    for purpose in PURPOSES {
        sandbox.ensure_image(&image::default_cache_dir(), purpose, &|line| eprintln!("{line}")).await.expect("image");
    }
    (sandbox, cleanup)
}

#[tokio::test]
async fn conforms() {
    let (sandbox, _cleanup) = sandbox("suite").await;
    let slots = Slots::new();
    conformance::all(&Fixture { sandbox: &sandbox, spec: &|slot, behaviour| slots.spec(slot, &behaviour) }).await;
    sandbox.close().await.unwrap();
}

#[tokio::test]
async fn nothing_is_left_to_a_tenant() {
    let (sandbox, _cleanup) = sandbox("isolation").await;
    let slots = Slots::new();
    let made = sandbox.create(&slots.eval_spec(5)).await.unwrap();
    let dir = slots.dir(5);

    let status = eval(&dir, "return require('fs').readFileSync('/proc/self/status', 'utf8')").await.unwrap();
    let field = |name: &str| {
        let line = status.as_str().unwrap().lines().find(|l| l.starts_with(name)).unwrap_or_default();
        line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!((field("Uid:"), field("Gid:")), (vec!["60005".to_owned(); 4], vec!["60005".to_owned(); 4]));
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), ["0000000000000000"], "{set}");
    }
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), (vec!["1".to_owned()], vec!["2".to_owned()]));
    let host_uid = std::fs::read_to_string(format!("/proc/{}/status", made.pid)).unwrap();
    assert!(host_uid.contains("Uid:\t60005\t60005"), "the host sees the slot's own user");

    for path in [
        "/x",
        "/etc/passwd",
        "/opt/hearth/main.js",
        "/hearth/x",
        "/opt/node24/x",
        "/sys/fs/cgroup/x",
        "/proc/sys/kernel/core_pattern",
    ] {
        let written = eval(&dir, &format!("require('fs').writeFileSync('{path}', 'x')")).await;
        let code = written.expect_err(path);
        assert!(["EROFS", "EACCES", "EPERM"].contains(&code.as_str()), "{path}: {code}");
    }
    let env = eval(&dir, "return Object.keys(process.env).sort()").await.unwrap();
    assert_eq!(env, json!(["HEARTH_RUN_DIR", "HOME", "HOSTNAME", "LANG", "MALLOC_ARENA_MAX", "PATH", "TZ"]));
    let resolver = eval(&dir, "return require('fs').readFileSync('/etc/resolv.conf', 'utf8')").await.unwrap();
    assert_eq!(resolver, "nameserver 169.254.1.1\noptions ndots:0\n", "the host's own resolvers are none of a tenant's business");
    let interfaces = eval(&dir, "return Object.keys(require('os').networkInterfaces())").await.unwrap();
    assert_eq!(interfaces, json!(["lo"]));
    for program in ["/bin/sh", "/bin/bash", "/usr/bin/python3", "/bin/mount"] {
        let spawned = eval(&dir, &format!("require('child_process').execFileSync('{program}')")).await;
        assert_eq!(spawned.expect_err(program), "ENOENT");
    }
    // Other processes of the machine are not there to be seen.
    let pids = eval(&dir, "return require('fs').readdirSync('/proc').filter((n) => /^\\d+$/.test(n))").await.unwrap();
    assert_eq!(pids, json!(["1"]));
    sandbox.destroy(&made.id).await.unwrap();
}

#[tokio::test]
async fn both_versions_of_node_are_there() {
    let (sandbox, _cleanup) = sandbox("versions").await;
    let slots = Slots::new();
    for node in [hearth_model::function::NodeVersion::V22, hearth_model::function::NodeVersion::V24] {
        let mut spec = slots.eval_spec(1);
        spec.node = node;
        let made = sandbox.create(&spec).await.unwrap();
        assert_eq!(made.image, image::tag(Purpose::Runtime));
        let versions = eval(&slots.dir(1), "return [process.version, process.versions.modules, require('os').userInfo().username]")
            .await
            .unwrap();
        assert!(versions[0].as_str().unwrap().starts_with(&format!("v{}.", node.as_str())), "{versions}");
        assert_eq!((&versions[1], &versions[2]), (&json!(node.abi()), &json!("slot1")));
        sandbox.destroy(&made.id).await.unwrap();
    }
}

#[tokio::test]
async fn files_are_bounded() {
    let (sandbox, _cleanup) = sandbox("files").await;
    let slots = Slots::new();
    let made = sandbox.create(&slots.eval_spec(1)).await.unwrap();
    let dir = slots.dir(1);
    let fill = |at: &str, bytes: u32| format!("require('fs').writeFileSync('{at}/big', Buffer.alloc({bytes}))");
    eval(&dir, &fill("/tmp", 7 << 20)).await.expect("what fits /tmp");
    assert_eq!(eval(&dir, &fill("/tmp", 9 << 20)).await.unwrap_err(), "ENOSPC");
    assert_eq!(eval(&dir, &fill("/run/hearth", 128 << 10)).await.unwrap_err(), "ENOSPC");
    for (at, most) in [("/run/hearth", 32), ("/tmp", 2_048)] {
        let code = format!(
            "const fs = require('fs'); fs.rmSync('{at}/big', {{force: true}}); let n = 0; try {{ for (;; n++) fs.writeFileSync('{at}/f' + n, ''); }} catch (e) {{ return [n, e.code]; }}"
        );
        let answer = eval(&dir, &code).await.unwrap();
        assert!(answer[0].as_u64().unwrap() <= most && answer[1] == "ENOSPC", "{at}: {answer}");
    }
    sandbox.destroy(&made.id).await.unwrap();
    assert!(std::fs::read_dir(dir.join("run")).unwrap().next().is_none(), "the run directory is still mounted");
}

#[tokio::test]
async fn processes_are_bounded() {
    let (sandbox, _cleanup) = sandbox("pids").await;
    let slots = Slots::new();
    let made = sandbox.create(&slots.eval_spec(1)).await.unwrap();
    let bomb = "const { spawn } = require('child_process'); let failed = 0; for (let i = 0; i < 40; i++) { try { spawn('/opt/node24/bin/node', ['-e', 'setInterval(() => {}, 1e9)']).on('error', () => failed++); } catch { failed++; } } await new Promise((r) => setTimeout(r, 200)); return failed";
    let failed = eval(&slots.dir(1), bomb).await.unwrap();
    assert!(failed.as_u64().unwrap() > 0, "40 processes were started against a limit of 32");
    assert!(sandbox.usage(&made.id).await.unwrap().pids <= 32);
    sandbox.destroy(&made.id).await.unwrap();
}

#[tokio::test]
async fn memory_is_bounded_and_its_end_is_told() {
    let (sandbox, _cleanup) = sandbox("memory").await;
    let slots = Slots::new();
    let made = sandbox.create(&slots.eval_spec(1)).await.unwrap();
    let dir = slots.dir(1);
    let bomb = "const kept = []; for (let mb = 0; mb < 512; mb++) kept.push(Buffer.alloc(1 << 20, 1)); return kept.length";
    let outcome = eval(&dir, bomb).await;
    assert!(outcome.is_err(), "{outcome:?} MB in a container of 128");
    assert_eq!(sandbox.wait(&made.id).await.unwrap(), Exit { code: Some(137), out_of_memory: true });
    sandbox.destroy(&made.id).await.unwrap();
}

#[tokio::test]
async fn memory_can_be_given_while_it_runs() {
    let (sandbox, _cleanup) = sandbox("resize").await;
    let slots = Slots::new();
    let spec = slots.eval_spec(1);
    let made = sandbox.create(&spec).await.unwrap();
    let mut limits = spec.limits;
    limits.memory_mb = 512;
    sandbox.resize(&made.id, &limits).await.unwrap();
    let kept = eval(&slots.dir(1), "globalThis.kept = Buffer.alloc(200 << 20, 1); return kept.length").await.unwrap();
    assert_eq!(kept, json!(200 << 20), "more than the container was made with");
    assert!(sandbox.usage(&made.id).await.unwrap().memory_bytes > 200 << 20);
    limits.memory_mb = 0;
    assert!(matches!(sandbox.resize(&made.id, &limits).await, Err(SandboxError::Failed { .. })));
    sandbox.destroy(&made.id).await.unwrap();
}

#[tokio::test]
async fn frozen_is_stopped() {
    let (sandbox, _cleanup) = sandbox("freeze").await;
    let slots = Slots::new();
    let made = sandbox.create(&slots.eval_spec(1)).await.unwrap();
    let dir = slots.dir(1);
    eval(&dir, "globalThis.n = 0; setInterval(() => { for (let i = 0; i < 1e5; i++) n++; }, 1)").await.unwrap();
    sandbox.freeze(&made.id).await.unwrap();
    let before = sandbox.usage(&made.id).await.unwrap().cpu;
    let asked = tokio::time::timeout(Duration::from_millis(300), eval(&dir, "return n")).await;
    assert!(asked.is_err(), "a frozen container has answered");
    assert_eq!(sandbox.usage(&made.id).await.unwrap().cpu, before, "a frozen container has used CPU");
    sandbox.thaw(&made.id).await.unwrap();
    assert!(eval(&dir, "return n").await.unwrap().as_u64().unwrap() > 0);
    sandbox.destroy(&made.id).await.unwrap();
}

/// The CPUs that a process may use, as the kernel says.
fn cpus_of(pid: u32) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_owned()
}

#[tokio::test]
async fn background_containers_keep_to_their_cpus() {
    let _cleanup = Cleanup::new("it-cpus");
    let background_cpus = "0".to_owned();
    let sandbox = DockerSandbox::connect(Config { background_cpus, ..config("cpus") }).await.unwrap();
    assert!(sandbox.describe().await.unwrap().engine.contains(", background CPUs 0,"));
    let slots = Slots::new();
    let plain = slots.eval_spec(1);
    let mut spec = slots.eval_spec(2);
    spec.limits.cpus = Cpus::Background;
    let (anywhere, kept) = (sandbox.create(&plain).await.unwrap(), sandbox.create(&spec).await.unwrap());
    let all = cpus_of(anywhere.pid);
    let cpus = std::thread::available_parallelism().unwrap().get();
    assert!(all != "0" || cpus == 1, "nothing to tell apart");
    assert_eq!(cpus_of(kept.pid), "0");
    sandbox.resize(&kept.id, &plain.limits).await.unwrap();
    assert_eq!(cpus_of(kept.pid), all);
    sandbox.resize(&kept.id, &spec.limits).await.unwrap();
    assert_eq!(cpus_of(kept.pid), "0");
    sandbox.resize(&kept.id, &Limits { cpus: Cpus::Foreground, ..plain.limits }).await.unwrap();
    let others = cpus_of(kept.pid);
    assert!(cpus == 1 || others != "0" && !others.starts_with("0-"), "{others}");
    for made in [anywhere, kept] {
        sandbox.destroy(&made.id).await.unwrap();
    }
    let missing = DockerSandbox::connect(Config { background_cpus: "8191".to_owned(), ..config("cpus") }).await;
    assert!(missing.err().unwrap().to_string().contains("background_cpus: containers have the CPUs 0"));
}

#[tokio::test]
async fn mounts_reach_a_running_container() {
    let (sandbox, _cleanup) = sandbox("mounts").await;
    assert!(sandbox.describe().await.unwrap().mounts_propagate, "needs root and the engine's mount namespace");
    let slots = Slots::new();
    let made = sandbox.create(&slots.eval_spec(1)).await.unwrap();
    let dir = slots.dir(1);
    let module = dir.join("tree/m");
    std::fs::create_dir_all(&module).unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=64k", "hearth-test", module.to_str().unwrap()]);
    std::fs::write(module.join("file"), "from the host").unwrap();
    let read = "return require('fs').readFileSync('/hearth/m/file', 'utf8')";
    assert_eq!(eval(&dir, read).await.unwrap(), "from the host");
    run("umount", &[module.to_str().unwrap()]);
    assert_eq!(eval(&dir, read).await.unwrap_err(), "ENOENT");
    sandbox.destroy(&made.id).await.unwrap();
}

#[tokio::test]
async fn a_restarted_node_adopts_what_runs_and_nothing_else() {
    let (first, _cleanup) = sandbox("adopt").await;
    let slots = Slots::new();
    let made = first.create(&slots.eval_spec(3)).await.unwrap();
    drop(first);
    let again = DockerSandbox::connect(config("adopt")).await.unwrap();
    let stranger = DockerSandbox::connect(config("adopt2")).await.unwrap();
    assert!(stranger.list().await.unwrap().is_empty());
    assert!(matches!(stranger.freeze(&made.id).await, Err(SandboxError::NotFound { .. })), "another node's container");
    stranger.destroy(&made.id).await.unwrap();
    let found = again.list().await.unwrap();
    assert_eq!(
        found.iter().map(|r| (&r.id, r.slot, r.pid, r.purpose, r.node)).collect::<Vec<_>>(),
        [(&made.id, 3, made.pid, made.purpose, made.node)]
    );
    let dir = slots.dir(3);
    let (exit, _) = tokio::join!(again.wait(&made.id), eval(&dir, "process.exit(9)"));
    assert_eq!(exit.unwrap().code, Some(9));
    again.destroy(&made.id).await.unwrap();
    assert!(std::fs::read_dir(dir.join("run")).unwrap().next().is_none(), "the run directory is still mounted");
}

#[tokio::test]
async fn a_container_nobody_waits_for_is_destroyed() {
    let (sandbox, _cleanup) = sandbox("cancel").await;
    let slots = Slots::new();
    let spec = slots.eval_spec(1);
    let cancelled = tokio::time::timeout(Duration::from_millis(20), sandbox.create(&spec)).await;
    assert!(cancelled.is_err(), "the engine was faster than this test can cancel");
    // The slot is free again when the abandoned container is gone.
    let made = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            if let Ok(made) = sandbox.create(&spec).await {
                break made;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let made = made.await.expect("the slot stays taken");
    assert_eq!(sandbox.list().await.unwrap().len(), 1);
    sandbox.destroy(&made.id).await.unwrap();
}

#[tokio::test]
async fn a_build_has_a_compiler_and_no_network() {
    let (sandbox, _cleanup) = sandbox("build").await;
    let slots = Slots::new();
    let mut spec = slots.eval_spec(1);
    spec.purpose = Purpose::Build;
    spec.args = vec!["/opt/hearth/build.js".to_owned(), "argument".to_owned()];
    spec.limits.memory_mb = 512;
    spec.limits.pids = 128;
    spec.limits.tmp_mb = 64;
    let script = r##"
        const { execFileSync } = require('child_process'), fs = require('fs');
        fs.writeFileSync('a.cc', '#include <node.h>\nextern "C" int answer() { return NODE_MODULE_VERSION; }');
        execFileSync('g++', ['-std=c++20', '-shared', '-fPIC', '-I' + process.env.npm_config_nodedir + '/include/node', 'a.cc', '-o', 'a.so']);
        const npm = execFileSync('npm', ['--version'], { encoding: 'utf8' }).trim();
        const python = execFileSync('python3', ['-c', 'print(6 * 7)'], { encoding: 'utf8' }).trim();
        fs.writeFileSync('result.json', JSON.stringify({ npm, python, argument: process.argv[2],
          compiled: fs.statSync('a.so').size > 0, network: Object.keys(require('os').networkInterfaces()) }));
        console.log('built');
    "##;
    std::fs::write(spec.runtime_dir.join("build.js"), script).unwrap();
    let made = sandbox.create(&spec).await.unwrap();
    let exit = sandbox.wait(&made.id).await.unwrap();
    assert_eq!(exit.code, Some(0), "{}", sandbox.output(&made.id).await.unwrap());
    assert_eq!(sandbox.output(&made.id).await.unwrap(), "built\n");
    let result: Value = serde_json::from_slice(&std::fs::read(slots.dir(1).join("out/result.json")).unwrap()).unwrap();
    assert!(result["npm"].as_str().unwrap().starts_with("11."), "{result}");
    assert_eq!((&result["python"], &result["argument"], &result["compiled"]), (&json!("42"), &json!("argument"), &json!(true)));
    assert_eq!(result["network"], json!(["lo"]));
    sandbox.destroy(&made.id).await.unwrap();
}

#[tokio::test]
async fn what_the_engine_refuses_leaves_nothing() {
    let (plain, _cleanup) = sandbox("refused").await;
    let slots = Slots::new();
    let spec = slots.eval_spec(1);
    let no_image = Config { runtime_image: Some("hearth-absent:1".to_owned()), ..config("refused") };
    let no_image = DockerSandbox::connect(no_image).await.unwrap();
    let error = no_image.create(&spec).await.unwrap_err();
    assert!(matches!(&error, SandboxError::ImageMissing { image } if image.starts_with("hearth-absent")), "{error}");
    let no_runtime = DockerSandbox::connect(Config { oci_runtime: Some("absent".to_owned()), ..config("refused") }).await.unwrap();
    assert!(matches!(no_runtime.create(&spec).await, Err(SandboxError::Failed { .. })));
    let described = no_runtime.describe().await.unwrap();
    assert!(described.warnings.iter().any(|w| w.contains("\"absent\"")), "{described:?}");
    assert!(plain.list().await.unwrap().is_empty());
    assert!(std::fs::read_dir(slots.dir(1).join("run")).unwrap().next().is_none());
    let made = plain.create(&spec).await.unwrap();
    plain.destroy(&made.id).await.unwrap();
}

#[tokio::test]
async fn a_silent_engine_runs_into_deadlines() {
    let dir = tempfile::tempdir().unwrap();
    let socket: PathBuf = dir.path().join("docker.sock");
    // Accepts and never answers, as a stopped daemon does.
    let _silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let config = Config { socket, call_timeout: Duration::from_millis(200), ..config("silent") };
    let error = DockerSandbox::connect(config).await.err().expect("no engine answers");
    assert!(matches!(error, SandboxError::Deadline { .. }), "{error}");
}

#[tokio::test]
async fn describes_this_machine() {
    let (sandbox, _cleanup) = sandbox("describe").await;
    let described = sandbox.describe().await.unwrap();
    assert!(described.engine.starts_with("docker ") && described.engine.contains("cgroup v"), "{}", described.engine);
    assert_eq!(described.images["runtime"], image::tag(Purpose::Runtime));
}
