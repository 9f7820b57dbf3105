//! What a tenant's native code gets from the kernel, under the engine's own runtime and under gVisor, and that everything else works under
//! gVisor too. Fails without either of them: `scripts/dockerd.sh gvisor` gives the engine its runtime.

#![allow(clippy::print_stderr, reason = "building the image takes a while and says so")]

mod support;

use hearth_sandbox::{
    Exit, Purpose, Sandbox,
    conformance::{self, Fixture},
    docker::{Config, DockerSandbox},
    image, net,
};
use serde_json::json;
use std::{collections::BTreeMap, path::Path};
use support::{Cleanup, Slots, eval, run};

/// What gVisor's own kernel grants, where it reaches nothing but that kernel: namespaces and device nodes of its making, and its own log.
const GVISOR_GRANTS: [&str; 6] = ["unshare_user", "unshare_mounts", "unshare_net", "mknod_disk", "syslog", "io_uring_setup"];

async fn sandbox(test: &str, oci_runtime: Option<&str>) -> (DockerSandbox, Cleanup) {
    let egress = net::Config { mode: net::Mode::None, ..net::Config::default() };
    let instance = format!("t{}-{test}", std::process::id());
    let config = Config { instance, egress, oci_runtime: oci_runtime.map(str::to_owned), ..Config::default() };
    let cleanup = Cleanup::new(&config.instance);
    let sandbox = DockerSandbox::connect(config).await.expect("a Docker engine");
    sandbox.ensure_image(&image::default_cache_dir(), Purpose::Runtime, &|line| eprintln!("{line}")).await.expect("the image");
    (sandbox, cleanup)
}

/// Compiles the program that makes the calls; without libraries, since the image has none for it.
fn program(at: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/calls.c");
    run("cc", &["-static", "-O1", "-o", at.to_str().unwrap(), source.to_str().unwrap()]);
}

/// The error number of each call that the program makes in a container.
async fn errors(test: &str, oci_runtime: Option<&str>) -> BTreeMap<String, i32> {
    let (sandbox, _cleanup) = sandbox(test, oci_runtime).await;
    let slots = Slots::new();
    let spec = slots.eval_spec(1);
    program(&slots.dir(1).join("tree/calls"));
    let made = sandbox.create(&spec).await.unwrap();
    let said = eval(&slots.dir(1), "return require('child_process').execFileSync('/hearth/calls').toString()").await.unwrap();
    sandbox.destroy(&made.id).await.unwrap();
    let line = |line: &str| line.split_once(' ').map(|(call, errno)| (call.to_owned(), errno.parse().unwrap()));
    said.as_str().unwrap().lines().filter_map(line).collect()
}

#[tokio::test]
async fn the_kernel_refuses_what_no_tenant_may_have() {
    let errors = errors("calls", None).await;
    assert!(errors.len() >= 35, "{errors:?}");
    let granted: Vec<_> = errors.iter().filter(|(_, errno)| **errno == 0).collect();
    assert!(granted.is_empty(), "{granted:?}");
}

#[tokio::test]
async fn gvisor_refuses_what_no_tenant_may_have() {
    let errors = errors("gvisor-calls", Some("runsc")).await;
    assert!(errors.len() >= 35, "{errors:?}");
    let granted: Vec<_> = errors.iter().filter(|(call, errno)| **errno == 0 && !GVISOR_GRANTS.contains(&call.as_str())).collect();
    assert!(granted.is_empty(), "{granted:?}");
}

#[tokio::test]
async fn conforms_under_gvisor() {
    let (sandbox, _cleanup) = sandbox("gvisor-suite", Some("runsc")).await;
    let slots = Slots::new();
    conformance::all(&Fixture { sandbox: &sandbox, spec: &|slot, behaviour| slots.spec(slot, &behaviour) }).await;
    sandbox.close().await.unwrap();
}

#[tokio::test]
async fn gvisor_shows_its_own_kernel_and_holds_every_limit() {
    let (sandbox, _cleanup) = sandbox("gvisor", Some("runsc")).await;
    let slots = Slots::new();
    let made = sandbox.create(&slots.eval_spec(1)).await.unwrap();
    let dir = slots.dir(1);
    let kernel = eval(&dir, "return require('os').release()").await.unwrap();
    assert_ne!(kernel.as_str().unwrap(), rustix::system::uname().release().to_str().unwrap(), "this machine's own kernel");
    // Modules reach it while it runs.
    let module = dir.join("tree/m");
    std::fs::create_dir_all(&module).unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=64k", "hearth-test", module.to_str().unwrap()]);
    std::fs::write(module.join("file"), "from the host").unwrap();
    let read = "return require('fs').readFileSync('/hearth/m/file', 'utf8')";
    assert_eq!(eval(&dir, read).await.unwrap(), "from the host");
    let written = eval(&dir, "require('fs').writeFileSync('/hearth/m/file', 'x')").await.unwrap_err();
    assert!(["EROFS", "EACCES"].contains(&written.as_str()), "{written}");
    run("umount", &["--lazy", module.to_str().unwrap()]);
    // It stops and goes on.
    eval(&dir, "globalThis.n = 0; setInterval(() => { for (let i = 0; i < 1e5; i++) n++; }, 1)").await.unwrap();
    sandbox.freeze(&made.id).await.unwrap();
    let before = sandbox.usage(&made.id).await.unwrap().cpu;
    let asked = tokio::time::timeout(std::time::Duration::from_millis(300), eval(&dir, "return n")).await;
    assert!(asked.is_err(), "a frozen container has answered");
    assert_eq!(sandbox.usage(&made.id).await.unwrap().cpu, before, "a frozen container has used CPU");
    sandbox.thaw(&made.id).await.unwrap();
    assert!(eval(&dir, "return n").await.unwrap().as_u64().unwrap() > 0);
    // Files and descriptors end where they should.
    let fill = "require('fs').writeFileSync('/tmp/big', Buffer.alloc(9 << 20))";
    assert_eq!(eval(&dir, fill).await.unwrap_err(), "ENOSPC");
    let open = "let n = 0; try { for (; n < 1000; n++) require('fs').openSync('/dev/null'); } catch {} return n";
    assert!(eval(&dir, open).await.unwrap().as_u64().unwrap() < 256);
    // And so does memory, with the sandbox around it.
    let bomb = "const kept = []; for (;;) kept.push(Buffer.alloc(1 << 20, 1))";
    let (exit, _) = tokio::join!(sandbox.wait(&made.id), eval(&dir, bomb));
    let exit: Exit = exit.unwrap();
    assert!(exit.out_of_memory, "{}", json!({ "code": exit.code }));
    sandbox.destroy(&made.id).await.unwrap();
}
