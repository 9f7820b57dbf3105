//! Many real npm modules, each built once and used by a function: native ones, large ones, ES modules, peers. Long; `make test-modules`.

use hearth_tests::{Answer, Hearth, Options};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

async fn deploy(hearth: &Hearth, path: &str, body: &Value) -> Answer {
    let until = Instant::now() + Duration::from_secs(400);
    let mut answer = Answer::of(hearth.api(Method::PUT, &Hearth::function(path)).header("prefer", "wait=50").json(body)).await;
    // Longer than one call may wait: the version settles by itself.
    while answer.status == 202 && Instant::now() < until {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let version = Answer::of(hearth.api(Method::GET, &Hearth::function(path))).await;
        match version.json()["status"].as_str() {
            Some("building") => {}
            _ => answer = version,
        }
    }
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn real_modules_build_and_run() {
    let hearth = Hearth::with(Options { registry: true, pool_size: 4, ..Options::default() }).await;
    let cases = [
        (
            "lodash",
            json!({ "lodash": "4.17.21" }),
            "const l = require('lodash'); module.exports = cb => cb(null, { v: l.VERSION })",
            "4.17.21",
        ),
        (
            "express",
            json!({ "express": "4.21.2" }),
            "const a = require('express')(); a.get('/', (q, r) => r.json({ ok: 1 })); module.exports = a",
            "ok",
        ),
        (
            "axios",
            json!({ "axios": "1.7.9" }),
            "const a = require('axios'); module.exports = cb => cb(null, { v: a.VERSION })",
            "1.7.9",
        ),
        (
            "react",
            json!({ "react": "19.0.0", "react-dom": "19.0.0" }),
            "const R = require('react'), D = require('react-dom/server'); module.exports = cb => cb(null, { h: D.renderToString(R.createElement('p', null, 'x')) })",
            "<p>x</p>",
        ),
        (
            "fetch",
            json!({ "node-fetch": "3.3.2" }),
            "import f from 'node-fetch'; export default () => Response.json({ t: typeof f })",
            "function",
        ),
        (
            "sharp",
            json!({ "sharp": "0.33.5" }),
            "const s = require('sharp'); module.exports = async () => s({ create: { width: 4, height: 4, channels: 3, background: 'red' } }).png().toBuffer().then(b => ({ png: b.length }))",
            "png",
        ),
        (
            "s3",
            json!({ "@aws-sdk/client-s3": "3.726.1" }),
            "const { S3Client } = require('@aws-sdk/client-s3'); module.exports = cb => cb(null, { t: typeof S3Client })",
            "function",
        ),
        (
            "octokit",
            json!({ "@octokit/rest": "21.1.0" }),
            "const { Octokit } = require('@octokit/rest'); module.exports = cb => cb(null, { t: typeof Octokit })",
            "function",
        ),
        (
            "openai",
            json!({ "openai": "4.78.1", "zod": "3.24.1" }),
            "const O = require('openai'), z = require('zod'); module.exports = cb => cb(null, { t: typeof O, z: typeof z.object })",
            "function",
        ),
        (
            "stripe",
            json!({ "stripe": "17.5.0" }),
            "const S = require('stripe'); module.exports = cb => cb(null, { t: typeof S })",
            "function",
        ),
        (
            "twilio",
            json!({ "twilio": "5.4.3" }),
            "const S = require('twilio'); module.exports = cb => cb(null, { t: typeof S })",
            "function",
        ),
        (
            "firebase",
            json!({ "firebase-admin": "13.0.2" }),
            "const S = require('firebase-admin'); module.exports = cb => cb(null, { v: S.SDK_VERSION })",
            "13.0.2",
        ),
        (
            "googleapis",
            json!({ "googleapis": "144.0.0" }),
            "const { google } = require('googleapis'); module.exports = cb => cb(null, { t: typeof google.drive })",
            "function",
        ),
        (
            "bcrypt",
            json!({ "bcrypt": "5.1.1" }),
            "const b = require('bcrypt'); module.exports = cb => b.hash('x', 4, (e, h) => cb(e, { same: b.compareSync('x', h) }))",
            "\"same\":true",
        ),
        (
            "sqlite",
            json!({ "better-sqlite3": "11.8.1" }),
            "const D = require('better-sqlite3'); module.exports = cb => cb(null, new D(':memory:').prepare('select 41 + 1 as x').get())",
            "42",
        ),
    ];
    for (name, dependencies, code, expected) in cases {
        let path = format!("mods/{name}/f");
        let answer = deploy(&hearth, &path, &json!({ "code": code, "dependencies": dependencies, "memory_mb": 512 })).await;
        assert!(matches!(answer.status, 200 | 201) && answer.json()["status"] == "ready", "{name}: {}", answer.text);
        for _ in 0..2 {
            let called = hearth.get(&path).await;
            assert!(called.expect(200).text.contains(expected), "{name}: {}", called.text);
        }
    }
    for (name, dependency, word) in
        [("auth0", ("auth0", "4.17.1"), "no version"), ("clearbit", ("clearbit", "1.3.4"), "could not be built")]
    {
        let answer = deploy(
            &hearth,
            &format!("mods/{name}/f"),
            &json!({ "code": "module.exports = cb => cb()", "dependencies": { (dependency.0): dependency.1 } }),
        )
        .await;
        assert!(answer.text.contains(dependency.0) && answer.text.contains(word), "{name}: {}", answer.text);
    }
}
