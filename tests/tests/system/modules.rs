//! Functions with npm modules: built once, shared, mounted into running containers, refused where they should be. The catalogue of
//! real modules is in `make test-modules`.

use futures_util::future::join_all;
use hearth_tests::{Answer, Hearth, Options};
use reqwest::Method;
use serde_json::json;

async fn start() -> Hearth {
    Hearth::with(Options { registry: true, ..Options::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_is_built_once_for_all_who_want_it() {
    let hearth = start().await;
    let code = "const i = require('is-number'); module.exports = cb => cb(null, { yes: i(5), no: i('x') });";
    let body = json!({ "code": code, "dependencies": { "is-number": "7.0.0" } });
    let deploys = (0..20).map(|n| {
        let (hearth, body) = (&hearth, body.clone());
        async move { hearth.deploy(&format!("t{n}/main/f"), body).await }
    });
    for made in join_all(deploys).await {
        assert_eq!((&made["status"], &made["modules"]), (&json!("ready"), &json!(["is-number@7.0.0"])));
    }
    let module = Answer::of(hearth.api(Method::GET, "/modules/is-number@7.0.0")).await.expect(200).json();
    assert_eq!(
        (module.as_array().unwrap().len(), &module[0]["attempts"], &module[0]["functions"]),
        (1, &json!(1), &json!(20)),
        "{module}"
    );
    for n in 0..3 {
        assert_eq!(hearth.get(&format!("t{n}/main/f")).await.expect(200).json(), json!({ "yes": true, "no": false }));
    }
    let modules = &hearth.status().await["modules"];
    assert_eq!((&modules["fetches"], &modules["artifacts"]), (&json!(1), &json!(1)), "fetched once on this machine: {modules}");
    // A container sees the modules of its own functions and cannot change them.
    let probe = "const fs = require('fs'), p = require('path'); module.exports = cb => { const f = require.resolve('is-number'), d = p.dirname(f); const tried = [() => fs.writeFileSync(f, 'x'), () => fs.appendFileSync(f, 'x'), () => fs.truncateSync(f), () => fs.chmodSync(f, 0o777), () => fs.utimesSync(f, 1, 1), () => fs.renameSync(f, f + '2'), () => fs.unlinkSync(f), () => fs.linkSync(f, d + '/l'), () => fs.symlinkSync(f, d + '/s'), () => fs.mkdirSync(d + '/d'), () => fs.chownSync(f, process.getuid(), 0)].map(t => { try { t(); return 'done' } catch (e) { return e.code } }); const { uid, mode } = fs.statSync(f); cb(null, { tried: tried.join(' '), uid, written: mode & 0o022, m: fs.readdirSync('/hearth/m').length }); };";
    hearth.deploy("probe/main/f", json!({ "code": probe, "dependencies": { "is-number": "7.0.0" } })).await;
    assert_eq!(
        hearth.get("probe/main/f").await.expect(200).json(),
        json!({ "tried": "EROFS EACCES EACCES EROFS EROFS EROFS EROFS EROFS EROFS EROFS EROFS", "uid": 0, "written": 0, "m": 1 })
    );
    hearth
        .deploy_code("plain/main/f", "module.exports = cb => cb(null, { m: require('fs').readdirSync('/hearth/m').length });")
        .await;
    assert_eq!(hearth.get("plain/main/f").await.expect(200).json(), json!({ "m": 0 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_are_the_functions_own_copy() {
    let hearth = start().await;
    let code = "const R = require('react'), D = require('react-dom/server'); module.exports = cb => cb(null, { h: D.renderToString(R.createElement(() => R.useId() && 'one React')) });";
    let made =
        hearth.deploy("acme/main/f", json!({ "code": code, "dependencies": { "react": "19.0.0", "react-dom": "19.0.0" } })).await;
    assert_eq!(made["modules"], json!(["react@19.0.0", "react-dom@19.0.0"]));
    assert_eq!(hearth.get("acme/main/f").await.expect(200).json(), json!({ "h": "one React" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_had_is_told_by_name_and_harms_nothing() {
    let hearth = start().await;
    hearth.deploy_code("acme/main/f", "module.exports = cb => cb(null, { v: 1 });").await;
    let put = async |dependencies: serde_json::Value| {
        let body = json!({ "code": "module.exports = cb => cb(null, { v: 2 });", "dependencies": dependencies });
        Answer::of(hearth.api(Method::PUT, &Hearth::function("acme/main/f")).header("prefer", "wait=60").json(&body)).await
    };
    for (dependencies, word) in [
        (json!({ "hearth-no-such-module-here": "1" }), "there is no module"),
        (json!({ "is-number": "99.0.0" }), "no version"),
        (json!({ "is-number": "github:a/b" }), "git"),
        (json!({ "is-number": "file:../x" }), "file"),
        (json!({ "is-number": "npm:is-odd@1" }), "alias"),
        (json!({ "clearbit": "1.3.4" }), "could not be built"),
    ] {
        let problem = put(dependencies.clone()).await.expect_problem(400, "client", "invalid-request");
        assert!(problem["detail"].as_str().unwrap().contains(word), "{dependencies}: {problem}");
    }
    let again = put(json!({ "clearbit": "1.3.4" })).await;
    assert!(again.took.as_secs() < 3, "a known failure is told at once");
    assert_eq!(hearth.get("acme/main/f").await.expect(200).json()["v"], 1, "the version before serves on");
}
