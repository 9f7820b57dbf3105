//! A tenant whose containers have a kernel of their own between them and the machine's: functions work as anywhere else.

use hearth_tests::{Answer, Hearth, Options, until};
use reqwest::Method;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_under_gvisor_is_served_like_any_other() {
    let options = Options::default().set("docker__oci_runtimes", r#"["runsc"]"#).set("node__handler__freeze_after", "1s");
    let hearth = Hearth::with(options).await;
    Answer::of(hearth.api(Method::PUT, "/tenants/strange").json(&json!({ "limits": { "oci_runtime": "runsc" } })))
        .await
        .expect(201);
    let code = "let n = 0; export default async (r) => { if (r.url.includes('spin')) for (;;); const kernel = (await import('os')).release(); return Response.json({ n: ++n, kernel, body: await r.text() }); }";
    for tenant in ["strange", "usual"] {
        hearth.deploy(&format!("{tenant}/main/f"), json!({ "code": code, "timeout_ms": 5_000 })).await;
    }
    let machine = rustix::system::uname();
    let usual = hearth.post("usual/main/f", "x").await.expect(200).json();
    assert_eq!(usual["kernel"], machine.release().to_str().unwrap());
    let first = hearth.post("strange/main/f", "x".repeat(100_000)).await;
    assert_eq!(first.expect(200).header("hearth-start"), "cold");
    assert_ne!(first.json()["kernel"], usual["kernel"], "the machine's own kernel");
    assert_eq!((&first.json()["n"], first.json()["body"].as_str().unwrap().len()), (&json!(1), 100_000));
    until("the container to be frozen", async || (hearth.container("strange/main").await["state"] == "frozen").then_some(())).await;
    let thawed = hearth.post("strange/main/f", "x").await;
    assert_eq!((thawed.expect(200).header("hearth-start"), &thawed.json()["n"]), ("warm", &json!(2)), "the same process goes on");
    hearth.get("strange/main/f?spin").await.expect_problem(504, "tenant", "function-timeout");
    until("a fresh container", async || (hearth.post("strange/main/f", "x").await.status == 200).then_some(())).await;
    assert_eq!(hearth.status().await["handler"]["ended"]["stuck"], 1);
}
