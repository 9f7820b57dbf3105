//! The API over a store of records that fails, is late and loses answers by a seed: callers are told when to come back, what was
//! acknowledged is there, and nothing is half-written.

use super::{Answer, Api};
use axum::http::StatusCode;
use hearth_model::{CodeRef, FunctionPath};
use hearth_store::{FunctionStore, aws::faulty::Faults, faulty::Faulty};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

/// A fifth of all calls; none is made twice, since a store that does so is no [`FunctionStore`].
const FAULTS: Faults =
    Faults { refuse: 70, lose_answer: 70, duplicate: 0, truncate: 0, delay: 60, delay_max: Duration::from_millis(2) };

impl Api {
    async fn failing(seed: u64) -> Self {
        let wrap = |records| Arc::new(Faulty::<dyn FunctionStore>::new(records, FAULTS, seed)) as Arc<dyn FunctionStore>;
        Self::over(1_000_000, wrap).await
    }

    /// As a client that does what it is told: on a 503 it comes again. Returns what came in the end, and how often it had to.
    async fn insist(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<Value>) -> (Answer, u32) {
        for again in 0..100 {
            let answer = self.call(Some(&self.admin), method, path, headers, body.clone()).await;
            if answer.status != StatusCode::SERVICE_UNAVAILABLE {
                return (answer, again);
            }
            let problem = answer.json();
            assert_eq!(problem["fault"], "platform", "{problem}");
            assert!(answer.headers.contains_key("retry-after"), "{problem}");
            assert!(!answer.text.contains("faulty records"), "the store's own words are for the log: {problem}");
        }
        panic!("{method} {path} was refused a hundred times");
    }
}

#[tokio::test]
async fn what_is_acknowledged_over_a_failing_store_is_there() {
    let mut refused = 0;
    for seed in 0..4 {
        let api = Api::failing(seed).await;
        for function in 0..6 {
            let name = format!("/v1/tenants/acme/containers/main/functions/f{function}");
            let path: FunctionPath = format!("acme/main/f{function}").parse().unwrap();
            for version in 0..4 {
                let code = format!("module.exports = cb => cb(null, {version})");
                let (answer, again) = api.insist("PUT", &name, &[], Some(json!({ "code": code }))).await;
                refused += again;
                assert!(answer.status.is_success(), "seed {seed}: {}", answer.text);
                let number = answer.json()["version"].as_u64().unwrap();
                let live = api.records.get_servable(&path).await.unwrap().unwrap().live.unwrap();
                assert_eq!(live.version.0, number, "what was acknowledged is live, seed {seed}");
                assert!(matches!(live.code, CodeRef::Inline(files) if files["index.js"] == code));
            }
            // A guarded change whose answer was lost is seen as a change on the next try, and never done twice.
            let (read, _) = api.insist("GET", &name, &[], None).await;
            let etag = read.headers["etag"].to_str().unwrap().to_owned();
            let before = api.records.get_function(&path).await.unwrap().unwrap().latest.0;
            let (answer, again) =
                api.insist("PUT", &name, &[("if-match", &etag)], Some(json!({ "code": "module.exports = 1" }))).await;
            let after = api.records.get_function(&path).await.unwrap().unwrap().latest.0;
            assert_eq!(after, before + 1, "seed {seed}: once, whatever was answered: {}", answer.text);
            assert!(answer.status.is_success() || (again > 0 && answer.status == StatusCode::PRECONDITION_FAILED));
        }
        let (answer, _) = api.insist("DELETE", "/v1/tenants/acme/containers/main/functions/f0", &[], None).await;
        assert!(matches!(answer.status, StatusCode::NO_CONTENT | StatusCode::NOT_FOUND), "{}", answer.text);
        assert_eq!(api.records.get_function(&"acme/main/f0".parse().unwrap()).await.unwrap(), None);
    }
    assert!(refused > 20, "the store failed: {refused} times");
}
