//! What an operator may get wrong on AWS: a start that is refused says which resource, which call and what to do; what a newer Hearth has
//! written is refused by request, and left as it is.

use hearth_tests::{Answer, AwsWorld, Hearth, Role, StubService};
use reqwest::Method;
use serde_json::{Value, json};

/// As the services word it: DynamoDB, SQS and KMS in JSON, S3 in XML.
const DENIED_JSON: &str = r#"{"__type":"com.amazon.coral.service#AccessDeniedException","message":"User: node is not authorized"}"#;
const DENIED_XML: &str = "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>";
const MOVED_XML: &str = "<Error><Code>PermanentRedirect</Code><Message>another endpoint</Message></Error>";

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_is_refused_names_resource_call_and_remedy() {
    let world = AwsWorld::start();
    let denied = StubService::start(400, DENIED_JSON).await;
    let denied_bucket = StubService::start(403, DENIED_XML).await;
    let moved = StubService::start(301, MOVED_XML).await;
    let endpoint = |section: &str, stub: &StubService| (format!("store__{section}__endpoint_url"), stub.url.clone());
    let key = |section: &str, key: &str, value: &str| (format!("store__{section}__{key}"), value.to_owned());
    let policy = "allow it in the role's policy";
    for (role, (name, value), words) in [
        (Role::Node, endpoint("records", &denied), ["table hearth", "dynamodb:DescribeTable", policy]),
        (Role::Builder, endpoint("records", &denied), ["table hearth", "dynamodb:DescribeTable", policy]),
        (Role::Node, endpoint("artifacts", &denied_bucket), ["bucket hearth", "s3:HeadBucket", policy]),
        (Role::Builder, endpoint("queue", &denied), ["queue builds", "sqs:GetQueueUrl", policy]),
        (Role::Node, endpoint("artifacts", &moved), ["bucket hearth", "another region", "set `region` of its section"]),
        (Role::Node, key("records", "table", "hearht"), ["table hearht", "DescribeTable", "init-aws"]),
        (Role::Node, key("artifacts", "bucket", "hearht"), ["bucket hearht", "HeadBucket", "init-aws"]),
        (Role::Builder, key("queue", "queue", "biulds"), ["queue biulds", "GetQueueUrl", "init-aws"]),
    ] {
        let mut process = world.process(role, "refused").set(&name, &value);
        let said = process.refused();
        for word in words {
            assert!(said.contains(word), "{name}={value}: {word:?} is not in: {said}");
        }
        assert!(!said.contains("panicked"), "{said}");
    }

    let kms = "[store.keys]\nbackend = \"kms\"\nkey_id = \"alias/hearth\"\n";
    let said = world.process(Role::Node, "refused").with_keys(&format!("{kms}endpoint_url = \"{}\"\n", denied.url)).refused();
    assert!(said.contains("key alias/hearth") && said.contains("kms:GenerateDataKey") && said.contains(policy), "{said}");

    // A bucket that something else uses, and one that belongs to other data.
    for (marker, words) in
        [("a picture", "used by something else"), (r#"{"schema":1,"installation":"other"}"#, "they hold different data")]
    {
        world.put_object("hearth/hearth.json", marker).await;
        let said = world.process(Role::Node, "refused").refused();
        assert!(said.contains("bucket hearth") && said.contains(words), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_newer_hearth_wrote_is_refused_by_name_and_left_as_it_is() {
    let world = AwsWorld::start();
    let mut node = world.process(Role::Node, "node");
    node.run();
    let function = Hearth::function("acme/main/hello");
    let code = json!({ "code": "module.exports = cb => cb(null, {});" });
    let made = Answer::of(node.api(Method::PUT, &function).json(&code)).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let key = json!({ "pk": { "S": "T#acme" }, "sk": { "S": "#" } });
    let get = json!({ "TableName": "hearth", "Key": key });
    let mut item = world.ask("dynamodb", "DynamoDB_20120810.GetItem", get.clone()).await["Item"].clone();
    item["schema"] = json!({ "N": "2" });
    world.ask("dynamodb", "DynamoDB_20120810.PutItem", json!({ "TableName": "hearth", "Item": item })).await;
    let refused = |answer: Answer| {
        assert_eq!(answer.status, 500, "{}", answer.text);
        let problem: Value = answer.json();
        assert_eq!(problem["fault"], "platform", "{problem}");
    };
    // The tenant is told that it is the platform's fault; which item and what to do is for the operator, in the log.
    refused(Answer::of(node.api(Method::PUT, "/tenants/acme").json(&json!({}))).await);
    refused(Answer::of(node.api(Method::PUT, &Hearth::function("acme/main/other")).json(&code)).await);
    let log = node.log();
    assert!(log.contains("T#acme") && log.contains("schema 2") && log.contains("upgrade"), "{log}");
    assert_eq!(world.ask("dynamodb", "DynamoDB_20120810.GetItem", get).await["Item"], item, "it is as it was");
}
