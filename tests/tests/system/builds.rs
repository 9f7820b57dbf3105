//! Builds, from a registry of this test's own: one for all who ask, through kills and outages; hostile packages; what nodes make of
//! artifacts. Nothing here needs the world's registry.

use futures_util::future::join_all;
use hearth_tests::{Answer, Hearth, Options, Package, Registry, until};
use reqwest::Method;
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
    time::Duration,
};

fn options(registry: &Registry) -> Options {
    // Everything that a test publishes is young.
    Options { registry: true, pool_size: 1, ..Options::default() }
        .set("registry__url", &registry.url)
        .set("registry__min_release_age", "0s")
}

async fn put(hearth: &Hearth, path: &str, code: &str, dependencies: Value, wait_s: u64) -> Answer {
    let body = json!({ "code": code, "dependencies": dependencies });
    Answer::of(hearth.api(Method::PUT, &Hearth::function(path)).header("prefer", format!("wait={wait_s}")).json(&body)).await
}

async fn module(hearth: &Hearth, spec: &str) -> Value {
    Answer::of(hearth.api(Method::GET, &format!("/modules/{}", spec.replace('/', "%2f")))).await.json()[0].take()
}

/// Waits until a module's build has ended, for good or bad.
async fn settled(hearth: &Hearth, spec: &str) -> Value {
    until(&format!("the build of {spec}"), async || {
        let module = module(hearth, spec).await;
        matches!(module["state"].as_str(), Some("ready" | "failed")).then_some(module)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_creates_lead_to_one_build() {
    let registry = Registry::start().await;
    registry.publish(Package::new("wanted-by-all", "1.0.0")).await;
    let hearth = Hearth::with(options(&registry)).await;
    let body = json!({
        "code": "module.exports = cb => cb(null, require('wanted-by-all'));", "dependencies": { "wanted-by-all": "^1.0.0" },
    });
    let creates = (0..1_000).map(|n| {
        let request = hearth.api(Method::PUT, &Hearth::function(&format!("t{}/main/f{n}", n % 10))).json(&body);
        async move { Answer::of(request).await.status }
    });
    let answers = join_all(creates).await;
    assert!(answers.iter().all(|status| matches!(status, 200..=202)), "{answers:?}");
    let module = until("all thousand to be live", async || {
        let module = module(&hearth, "wanted-by-all@1.0.0").await;
        (module["functions"] == 1_000).then_some(module)
    })
    .await;
    assert_eq!((&module["attempts"], &module["state"]), (&json!(1), &json!("ready")), "{module}");
    assert_eq!(hearth.log().matches("building module=wanted-by-all@1.0.0").count(), 1, "one build");
    assert_eq!(module["saved_bytes"].as_u64(), module["artifact"]["unpacked_bytes"].as_u64().map(|bytes| bytes * 999));
    for n in [0, 517, 999] {
        assert_eq!(hearth.get(&format!("t{}/main/f{n}", n % 10)).await.expect(200).json()["name"], "wanted-by-all");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_builder_killed_again_and_again_builds_in_the_end() {
    let registry = Registry::start().await;
    let sleeping = Package::new("takes-a-while", "1.0.0").script("install", "setTimeout(() => {}, 1500);");
    registry.publish(sleeping).await;
    let options = options(&registry).set("registry__scripts_allow", r#"["takes-a-while"]"#).set("builder__visibility", "2s");
    let mut hearth = Hearth::with(options).await;
    let code = "module.exports = cb => cb(null, require('takes-a-while'));";
    put(&hearth, "acme/main/f", code, json!({ "takes-a-while": "1.0.0" }), 0).await.expect(202);
    // While npm works, while the script runs, and right after the job was taken.
    for after_ms in [900, 2_000, 50] {
        until("a build under way", async || (module(&hearth, "takes-a-while@1.0.0").await["state"] == "building").then_some(()))
            .await;
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        hearth.kill().await;
        hearth.run().await;
    }
    let module = settled(&hearth, "takes-a-while@1.0.0").await;
    assert_eq!(module["state"], "ready", "{module}");
    until("the version to go live", async || (hearth.get("acme/main/f").await.status == 200).then_some(())).await;
    assert_eq!(hearth.get("acme/main/f").await.json()["version"], "1.0.0");
    until("the builds' containers to be gone", async || (hearth.docker().count() <= 2).then_some(())).await;
}

/// What a package's install script finds out about where it runs.
const NOSY: &str = r#"
const fs = require('fs'), os = require('os'), net = require('net'), http = require('http'), { spawn, execSync } = require('child_process');
const attempt = (work) => { try { work(); return 'worked'; } catch (error) { return error.code || String(error.message).slice(0, 80); } };
const dial = (host, port) => new Promise((resolve) => {
  const socket = net.connect({ host, port, timeout: 2000 });
  socket.on('connect', () => { socket.destroy(); resolve('worked'); });
  socket.on('timeout', () => { socket.destroy(); resolve('timeout'); });
  socket.on('error', (error) => resolve(error.code));
});
const ask = (method, path) => new Promise((resolve) => {
  const url = new URL(process.env.npm_config_registry);
  http.request({ host: url.hostname, port: url.port, method, path }, (res) => { res.resume(); resolve(res.statusCode); })
    .on('error', (error) => resolve(error.code)).end();
});
(async () => {
  const written = {};
  for (const dir of ['/', '/etc', '/opt/hearth', '/opt/npm', '/hearth', '/usr/bin', '/proc/sys/kernel', '/sys/fs/cgroup']) {
    written[dir] = attempt(() => fs.writeFileSync(dir + '/left-by-nosy', 'x'));
  }
  spawn(process.execPath, ['-e', 'setTimeout(() => {}, 6e5)', 'left-behind-by-nosy'], { detached: true, stdio: 'ignore' }).unref();
  const report = {
    environment: process.env,
    environments: fs.readdirSync('/proc').filter(Number).map((pid) => { try { return fs.readFileSync(`/proc/${pid}/environ`, 'utf8'); } catch { return ''; } }),
    files: attempt(() => fs.readFileSync('/root/.npmrc')),
    written,
    interfaces: Object.keys(os.networkInterfaces()),
    dialed: await Promise.all(PORTS.map((port) => dial('127.0.0.1', port))),
    relay: await Promise.all([ask('GET', '/-/whoami'), ask('PUT', '/nosy'), ask('GET', '/-/npm/v1/tokens'), ask('GET', '/../etc/passwd'), ask('DELETE', '/nosy')]),
    mount: attempt(() => execSync('mount -t tmpfs x /tmp', { stdio: 'pipe' })),
    device: attempt(() => execSync('mknod device c 1 3', { stdio: 'pipe' })),
    hardLink: attempt(() => fs.linkSync('/etc/passwd', 'hard')),
  };
  attempt(() => fs.symlinkSync('/etc/passwd', 'soft'));
  attempt(() => fs.symlinkSync('../../../../..', 'up'));
  attempt(() => execSync('mkfifo pipe'));
  fs.writeFileSync('special', 'x');
  attempt(() => fs.chmodSync('special', 0o6777));
  fs.writeFileSync('report.json', JSON.stringify(report));
})();
"#;

/// A module that, when it is loaded to make its code cache, puts a link to the host's files in the place of what was built.
const SHAPESHIFTER: &str = r"
const fs = require('fs');
try { fs.renameSync('/build/root', '/build/gone'); fs.symlinkSync(BAIT, '/build/root'); } catch {}
module.exports = { shape: 'shifted' };
";

async fn publish_hostile(registry: &Registry, hearth: &Hearth, bait: &Path) {
    use tar::EntryType as Kind;
    let port = |url: &str| url.trim_end_matches('/').rsplit(':').next().unwrap_or_default().to_owned();
    let ports = format!("[{}, {}, {}]", port(&hearth.url), port(&hearth.ops_url), port(&registry.url));
    let nosy = Package::new("nosy", "1.0.0").script("preinstall", &NOSY.replace("PORTS", &ports));
    let filler =
        "const fs = require('fs'); const f = fs.openSync('/build/tmp/fill', 'w'); for (;;) fs.writeSync(f, Buffer.alloc(1 << 20));";
    let escapee = Package::new("escapee", "1.0.0")
        .entry("../../escaped.js", Kind::Regular, 0o644, "", b"out")
        .entry("/tmp/escaped.js", Kind::Regular, 0o644, "", b"out")
        .entry("package/soft", Kind::Symlink, 0o777, "/etc", b"")
        .entry("package/soft/escaped.js", Kind::Regular, 0o644, "", b"out")
        .entry("package/hard", Kind::Link, 0o644, "/etc/passwd", b"")
        .entry("package/device", Kind::Char, 0o666, "", b"")
        .entry("package/pipe", Kind::Fifo, 0o666, "", b"")
        .entry("package/special.js", Kind::Regular, 0o6777, "", b"x");
    let many = (0..4_000).fold(Package::new("many-files", "1.0.0"), |package, n| {
        package.entry(&format!("package/f{n}"), Kind::Regular, 0o644, "", b"")
    });
    let sneaky = || Package::new("sneaky", "1.0.0").script("postinstall", "require('fs').writeFileSync('ran', '')");
    let packages = [
        nosy,
        Package::new("filler", "1.0.0").script("install", filler),
        escapee,
        many,
        Package::new("bomb", "1.0.0").file("zeros", vec![0_u8; 70 * 1024 * 1024]),
        sneaky(),
        Package::new("chaperone", "1.0.0").script("install", "").depends(json!({ "sneaky": "1.0.0" })),
        Package::new("shapeshifter", "1.0.0").file("index.js", SHAPESHIFTER.replace("BAIT", &format!("{bait:?}"))),
        Package::new("exiter", "1.0.0").file("index.js", "process.exit(3);"),
        Package::new("git-dependent", "1.0.0").depends(json!({ "sneaky": "git+https://127.0.0.1:1/sneaky.git" })),
        Package::new("url-dependent", "1.0.0").depends(json!({ "sneaky": "http://127.0.0.1:1/sneaky.tgz" })),
        Package::new("file-dependent", "1.0.0").depends(json!({ "sneaky": "file:../../../etc" })),
    ];
    for package in packages {
        registry.publish(package).await;
    }
}

/// All files below `dir`, without following links.
fn walk(dir: &Path, found: &mut Vec<(std::path::PathBuf, fs::Metadata)>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            walk(&entry.path(), found);
        }
        found.push((entry.path(), metadata));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_packages_stay_in_their_container_and_their_artifact() {
    const CANARY: &str = "canary-3f9a71";
    let registry = Registry::start().await;
    let options = options(&registry)
        .set("registry__scripts_allow", r#"["nosy", "filler", "chaperone"]"#)
        .set("builder__output_max", "60MiB")
        .set("builder__output_files_max", 3_000)
        .set("token", CANARY);
    let hearth = Hearth::with(options).await;
    let bait = hearth.scratch().join("bait");
    fs::create_dir_all(bait.join(".hearth-cache")).unwrap();
    fs::write(bait.join(".hearth-cache/of-the-host"), CANARY).unwrap();
    publish_hostile(&registry, &hearth, &bait).await;
    hearth.deploy_code("good/main/f", "module.exports = cb => cb(null, { good: true });").await;

    let deploy = async |name: &str, code: &str| put(&hearth, &format!("{name}/main/f"), code, json!({ name: "1.0.0" }), 50).await;
    for (name, words) in [
        ("filler", "wrote more than"),
        ("many-files", "wrote more than"),
        ("bomb", "wrote more than"),
        ("git-dependent", "git"),
        ("url-dependent", "could not be built"),
        ("file-dependent", "could not be built"),
    ] {
        let problem = deploy(name, "module.exports = cb => cb();").await.expect_problem(400, "client", "invalid-request");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(name) && detail.contains(words), "{name}: {detail}");
        let module = module(&hearth, &format!("{name}@1.0.0")).await;
        assert!(module["log"].as_str().is_some_and(|log| !log.is_empty()), "the log is kept: {module}");
    }

    deploy("nosy", "module.exports = cb => cb(null, require('nosy/report.json'));").await.expect(201);
    let answer = hearth.get("nosy/main/f").await;
    let report = answer.expect(200).json();
    assert!(
        !answer.text.contains(CANARY) && !answer.text.contains(&hearth.token),
        "nothing of this machine's environment: {report}"
    );
    for (dir, outcome) in report["written"].as_object().unwrap() {
        assert_ne!(outcome, "worked", "{dir}");
    }
    assert_eq!(report["interfaces"], json!(["lo"]));
    assert!(report["dialed"].as_array().unwrap().iter().all(|outcome| outcome == "ECONNREFUSED"), "{}", report["dialed"]);
    assert!(report["relay"].as_array().unwrap().iter().all(|status| status == 404), "{}", report["relay"]);
    for forbidden in ["mount", "device", "hardLink", "files"] {
        assert_ne!(report[forbidden], "worked", "{forbidden}");
    }
    let processes = fs::read_dir("/proc").unwrap().flatten().filter_map(|p| fs::read(p.path().join("cmdline")).ok());
    let left = processes.filter(|line| String::from_utf8_lossy(line).contains("left-behind-by-nosy")).count();
    assert_eq!(left, 0, "no process outlives its build");

    let ran = "module.exports = cb => cb(null, { ran: require('fs').existsSync(require('path').dirname(require.resolve('sneaky')) + '/ran') });";
    deploy("sneaky", ran).await.expect(201);
    assert_eq!(hearth.get("sneaky/main/f").await.expect(200).json(), json!({ "ran": false }), "it is not on the list");
    let through = "const path = require('path').dirname(require('fs').realpathSync(require.resolve('chaperone'))); module.exports = cb => cb(null, { ran: require('fs').existsSync(path + '/../sneaky/ran'), there: require('fs').existsSync(path + '/../sneaky/index.js') });";
    deploy("chaperone", through).await.expect(201);
    assert_eq!(
        hearth.get("chaperone/main/f").await.expect(200).json(),
        json!({ "ran": false, "there": true }),
        "nor as a dependency of one that is"
    );

    deploy("shapeshifter", "module.exports = cb => cb(null, require('shapeshifter'));").await.expect(201);
    assert_eq!(hearth.get("shapeshifter/main/f").await.expect(200).json(), json!({ "shape": "shifted" }));
    assert!(bait.join(".hearth-cache/of-the-host").exists(), "what it pointed at is as it was");
    deploy("exiter", "module.exports = cb => cb(null, { there: !!require.resolve('exiter') });").await.expect(201);
    assert_eq!(hearth.get("exiter/main/f").await.expect(200).json(), json!({ "there": true }));
    let escaped = deploy("escapee", "module.exports = cb => cb(null, { there: !!require.resolve('escapee') });").await;
    assert!(matches!(escaped.status, 201 | 400), "{}", escaped.text);
    if escaped.status == 201 {
        assert_eq!(hearth.get("escapee/main/f").await.expect(200).json(), json!({ "there": true }));
    }

    let mut found = Vec::new();
    walk(&hearth.data_dir().join("modules"), &mut found);
    assert!(found.len() > 20, "modules were unpacked");
    for (path, metadata) in &found {
        let kind = metadata.file_type();
        assert!(kind.is_file() || kind.is_dir() || kind.is_socket(), "{} is something else", path.display());
        assert_eq!(metadata.permissions().mode() & 0o7022, 0, "{} has bits that it should not", path.display());
        for name in ["of-the-host", "hard", "pipe", "device"] {
            assert!(path.file_name().is_none_or(|n| n != name), "{}", path.display());
        }
        // npm takes the root off an absolute path and makes a directory where a link was to lead out: what was meant for elsewhere lies
        // in the package's own directory, as plain files, and nowhere else.
        let inside = path.to_string_lossy().contains("/node_modules/escapee/");
        assert!(path.file_name().is_none_or(|n| n != "escaped.js" && n != "soft") || inside, "{}", path.display());
    }
    assert!(!Path::new("/tmp/escaped.js").exists() && !hearth.scratch().join("escaped.js").exists());
    assert_eq!(hearth.get("good/main/f").await.expect(200).json(), json!({ "good": true }), "others serve on");
}

#[tokio::test(flavor = "multi_thread")]
async fn young_versions_wait_and_an_absent_registry_is_told_apart() {
    let registry = Registry::start().await;
    registry.publish(Package::new("young", "1.0.0")).await;
    registry.publish(Package::new("excepted", "1.0.0")).await;
    registry.publish(Package::new("on-young", "1.0.0").depends(json!({ "young": "^1.0.0" }))).await;
    let mut settings = options(&registry)
        .set("registry__min_release_age_except", r#"["excepted", "on-young"]"#)
        .set("registry__request_timeout", "2s")
        .set("builder__retry_after", "1s");
    settings.env.retain(|(key, _)| key != "REGISTRY__MIN_RELEASE_AGE");
    let hearth = Hearth::with(settings).await;
    let code = |name: &str| format!("module.exports = cb => cb(null, require({name:?}));");

    let young = put(&hearth, "acme/main/f", &code("young"), json!({ "young": "*" }), 30).await;
    let detail = young.expect_problem(400, "client", "invalid-request")["detail"].to_string();
    assert!(detail.contains("young@1.0.0") && detail.contains("less than 3 days ago"), "{detail}");
    let below = put(&hearth, "acme/main/f", &code("on-young"), json!({ "on-young": "*" }), 50).await;
    let detail = below.expect_problem(400, "client", "invalid-request")["detail"].to_string();
    assert!(detail.contains("on-young@1.0.0") && detail.contains("minimum release age"), "{detail}");

    // The description is known, and then the registry hangs: the build fails for now, is told at once, and works later by itself.
    registry.publish(Package::new("other", "1.0.0")).await;
    assert_eq!(put(&hearth, "acme/main/x", &code("other"), json!({ "excepted": "99" }), 0).await.status, 400);
    registry.hang(true);
    let unknown = put(&hearth, "acme/main/f", &code("other"), json!({ "other": "*" }), 30).await;
    let detail = unknown.expect_problem(503, "platform", "dependency-unavailable")["detail"].to_string();
    assert!(detail.contains("other") && detail.contains("did not answer in time"), "{detail}");
    put(&hearth, "acme/main/f", &code("excepted"), json!({ "excepted": "*" }), 0).await.expect(202);
    let failed = settled(&hearth, "excepted@1.0.0").await;
    assert!(failed["state"] == "failed" && !failed["retry_at"].is_null() && failed["log"].as_str() != Some(""), "{failed}");
    registry.hang(false);
    until("the next try to work and the version to go live", async || {
        (hearth.get("acme/main/f").await.status == 200).then_some(())
    })
    .await;
    assert!(module(&hearth, "excepted@1.0.0").await["attempts"].as_u64().unwrap() >= 2);
    drop(registry);
    let gone = put(&hearth, "acme/main/f", &code("nothing"), json!({ "nothing-known": "*" }), 30).await;
    let detail = gone.expect_problem(503, "platform", "dependency-unavailable")["detail"].to_string();
    assert!(detail.contains("cannot be reached"), "{detail}");
    assert_eq!(hearth.get("acme/main/f").await.expect(200).json()["name"], "excepted", "what runs runs on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_cache_evicts_what_nobody_uses_and_an_altered_artifact_is_refused() {
    let registry = Registry::start().await;
    let hearth_options = options(&registry).set("node__modules__disk_limit", "600KiB");
    for name in ["ma", "mb", "mc", "md"] {
        registry.publish(Package::new(name, "1.0.0").file("ballast", vec![7_u8; 200 * 1024])).await;
    }
    let mut hearth = Hearth::with(Options { keep_containers: true, ..hearth_options }).await;
    for name in ["ma", "mb", "mc", "md"] {
        let code = format!("module.exports = cb => cb(null, require({name:?}));");
        put(&hearth, &format!("{name}/main/f"), &code, json!({ name: "1" }), 50).await.expect(201);
    }
    let modules = async |hearth: &Hearth| hearth.status().await["modules"].clone();
    hearth.get("ma/main/f").await.expect(200);
    hearth.get("mb/main/f").await.expect(200);
    // Both are in use: there is no room for a third, and those that run do not notice.
    hearth.get("mc/main/f").await.expect_problem(503, "platform", "dependency-unavailable");
    assert!(hearth.log().contains("module cache is full"), "the operator is told");
    hearth.get("ma/main/f").await.expect(200);
    assert_eq!((&modules(&hearth).await["evictions"], &modules(&hearth).await["refused"]), (&json!(0), &json!(0)));

    // A restart keeps what is there, clears what is half done, and counts what adopted containers use.
    let half = hearth.data_dir().join("modules/tmp/half");
    fs::create_dir_all(&half).unwrap();
    hearth.kill().await;
    hearth.run().await;
    assert!(!half.exists());
    hearth.get("mb/main/f").await.expect(200);
    hearth.get("mc/main/f").await.expect(503);
    assert_eq!((&modules(&hearth).await["fetches"], &modules(&hearth).await["artifacts"]), (&json!(0), &json!(2)));

    // Once nobody uses the first any more, it makes room.
    let slot = hearth.container("ma/main").await["slot"].as_u64().unwrap();
    let container = hearth.docker().on_slot(slot).id;
    let killed = std::process::Command::new("docker").args(["kill", &container]).output().unwrap();
    assert!(killed.status.success());
    until("the third to come", async || (hearth.get("mc/main/f").await.status == 200).then_some(())).await;
    assert_eq!(modules(&hearth).await["evictions"], 1);

    // The fourth is not what was built.
    let artifact = module(&hearth, "md@1.0.0").await["artifact"]["sha256"].as_str().unwrap().to_owned();
    let file = hearth.data_dir().join("artifacts").join(&artifact[..2]).join(&artifact);
    let good = fs::read(&file).unwrap();
    let mut altered = good.clone();
    let middle = altered.len() / 2;
    altered[middle] ^= 1;
    let slot = hearth.container("mb/main").await["slot"].as_u64().unwrap();
    let killed = std::process::Command::new("docker").args(["kill", &hearth.docker().on_slot(slot).id]).output().unwrap();
    assert!(killed.status.success());
    fs::write(&file, &altered).unwrap();
    until("the altered one to be refused", async || {
        hearth.get("md/main/f").await.expect_problem(503, "platform", "dependency-unavailable");
        (modules(&hearth).await["refused"].as_u64() >= Some(1)).then_some(())
    })
    .await;
    assert!(hearth.log().contains("an artifact was refused"), "the operator is told");
    assert!(!hearth.data_dir().join("modules").join(&artifact).exists(), "nothing of it is there");
    fs::write(&file, &good).unwrap();
    assert_eq!(hearth.get("md/main/f").await.expect(200).json()["name"], "md");
    hearth.options().keep_containers = false;
    assert!(hearth.stop().await.success());
    hearth.run().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn popular_modules_are_loaded_ahead_and_only_for_those_who_want_them() {
    let registry = Registry::start().await;
    let popular = |version: &str| {
        Package::new("popular", version)
            .file("index.js", format!("globalThis.popular = (globalThis.popular || 0) + 1; exports.version = {version:?};"))
    };
    registry.publish(popular("1.0.0")).await;
    registry.publish(popular("2.0.0")).await;
    let hearth = Hearth::with(Options { pool_size: 4, ..options(&registry) }).await;
    let code = "const before = globalThis.popular || 0; const p = require('popular'); module.exports = cb => cb(null, { before, version: p.version, count: globalThis.popular });";
    for tenant in ["a", "b", "c", "d"] {
        put(&hearth, &format!("{tenant}/main/f"), code, json!({ "popular": "1.0.0" }), 50).await.expect(201);
    }
    put(&hearth, "newer/main/f", code, json!({ "popular": "2.0.0" }), 50).await.expect(201);
    hearth.deploy_code("plain/main/f", "module.exports = cb => cb(null, { popular: globalThis.popular || 0 });").await;
    for tenant in ["a", "b", "c"] {
        assert_eq!(hearth.get(&format!("{tenant}/main/f")).await.expect(200).json()["count"], 1);
    }
    until("a container with popular modules", async || {
        let pool = &hearth.status().await["handler"]["pool"];
        (pool["preloaded"].as_u64()? >= 1 && pool["level"].as_u64()? >= 3).then_some(())
    })
    .await;
    assert_eq!(hearth.get("plain/main/f").await.expect(200).json(), json!({ "popular": 0 }));
    let newer = hearth.get("newer/main/f").await.expect(200).json();
    assert_eq!((&newer["before"], &newer["version"]), (&json!(0), &json!("2.0.0")), "another version is another module");
    let ahead = hearth.get("d/main/f").await.expect(200).json();
    assert_eq!(ahead, json!({ "before": 1, "version": "1.0.0", "count": 1 }), "loaded before its function was");
}
