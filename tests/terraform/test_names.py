"""Names, keys and permissions of the infrastructure against the code that uses them: the store's design as the binary prints it, the SDK calls
in its sources, the commands in scripts, the metrics, the ports, the runbooks that alarms name."""

import json
import os
import re
import subprocess
import unittest

import support
from support import ROOT, unquoted

HEARTH = os.environ.get("BINARY_UNDER_TEST", str(ROOT / "target/debug/hearth"))
STORE = ROOT / "store/src/aws"
# Calls of development and of tests, which no role makes.
NOT_IN_A_ROLE = {"init.rs", "tests.rs", "faulty.rs"}
# The permissions that a call needs where they are not its own name.
PERMISSIONS_OF = {
    "dynamodb:TransactWriteItems": {"dynamodb:PutItem", "dynamodb:UpdateItem", "dynamodb:DeleteItem", "dynamodb:ConditionCheckItem"},
    "s3:HeadBucket": {"s3:ListBucket"},
    "s3:HeadObject": {"s3:GetObject"},
    "s3:CreateMultipartUpload": {"s3:PutObject"},
    "s3:UploadPart": {"s3:PutObject"},
    "s3:CompleteMultipartUpload": {"s3:PutObject"},
}
SERVICES = {"dynamo": "dynamodb", "s3.rs": "s3", "sqs.rs": "sqs", "kms.rs": "kms"}
# What no script and no source calls, but agents of the machine do.
AGENTS = {
    "logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams",
    "ssm:UpdateInstanceInformation", "ssmmessages:CreateControlChannel", "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel", "ssmmessages:OpenDataChannel",
}  # fmt: skip


def pascal(snake):
    return "".join(part.capitalize() for part in snake.split("_"))


def sdk_calls():
    """Calls in the sources of the store as IAM writes them: `.get_item().table_name(..)...send()` is dynamodb:GetItem."""
    calls = set()
    for path in STORE.rglob("*.rs"):
        if path.name in NOT_IN_A_ROLE:
            continue
        service = SERVICES.get(path.name) or SERVICES.get(path.parent.name)
        text = re.sub(r"//.*", "", path.read_text(encoding="utf-8"))
        found = re.findall(r"client\s*\.(\w+)\(\)", text)
        if found:
            assert service, f"{path} calls AWS, and this test does not know which service"
        calls |= {f"{service}:{pascal(name)}" for name in found}
    return calls


def needed(calls):
    return set().union(*(PERMISSIONS_OF.get(call, {call}) for call in calls))


def command_calls(paths):
    """Calls by the AWS command line in scripts: `aws s3 cp` reads or writes objects."""
    calls = set()
    for path in paths:
        text = path.read_text(encoding="utf-8")
        for service, verb in re.findall(r'"?aws"?,? "?(secretsmanager|autoscaling|cloudwatch)"?,? "?([a-z-]+)', text):
            calls.add(f"{service}:{pascal(verb.replace('-', '_'))}")
        if re.search(r'aws s3 cp [^\n]*"s3://', text):
            calls |= {"s3:GetObject", "s3:PutObject"}
    return calls


def statements(type_name):
    body = next(body for _, t, n, body in support.labelled("data") if t == "aws_iam_policy_document" and n == type_name)
    return [
        {
            "sid": unquoted(statement.get("sid", "")),
            "actions": {unquoted(action) for action in statement["actions"]},
            "resources": [unquoted(r).replace("${", "").replace("}", "") for r in statement["resources"]],
        }
        for statement in body["statement"]
    ]


RESOURCES = {
    "var.cluster.table.arn": "table",
    "var.cluster.artifacts_bucket.arn": "bucket",
    "var.cluster.queue.arn": "queue",
    "var.cluster.dead_letter_queue.arn": "dead_letter_queue",
    "var.cluster.secrets_key.arn": "key",
}


def allowed(role):
    """Pairs of resource and action, with the names that the code's design has for resources."""
    pairs = set()
    for statement in statements(role):
        for resource in statement["resources"]:
            arn, slash, prefix = resource.partition("/")
            pairs |= {(RESOURCES[arn] + slash + prefix, action) for action in statement["actions"]}
    return pairs


def actions(type_name):
    return set().union(*(statement["actions"] for statement in statements(type_name)))


class Design(unittest.TestCase):
    def setUp(self):
        done = subprocess.run([HEARTH, "admin", "init-aws", "--print"], capture_output=True, text=True, timeout=30, check=True)
        self.design = json.loads(done.stdout)

    def test_the_table(self):
        table, wanted = support.resource("aws_dynamodb_table", "records"), self.design["table"]
        self.assertEqual(unquoted(table["hash_key"]), wanted["hash_key"])
        self.assertEqual(unquoted(table["range_key"]), wanted["range_key"])
        self.assertEqual(unquoted(table["billing_mode"]), wanted["billing_mode"])
        given = [[unquoted(a["name"]), unquoted(a["type"])] for a in table["attribute"]]
        self.assertEqual(given, [list(pair) for pair in wanted["attributes"]])
        self.assertEqual(unquoted(table["ttl"][0]["attribute_name"]), wanted["ttl_attribute"])
        self.assertIs(table["ttl"][0]["enabled"], True)
        self.assertEqual(table["point_in_time_recovery"][0]["enabled"], wanted["point_in_time_recovery"])
        self.assertEqual(len(table.get("global_secondary_index", [])), len(wanted["global_secondary_indexes"]))

    def test_the_queues(self):
        for name, wanted in (("builds", self.design["queue"]), ("builds_dead", self.design["dead_letter_queue"])):
            queue = support.resource("aws_sqs_queue", name)
            self.assertEqual(queue["message_retention_seconds"], wanted["message_retention_seconds"])
            self.assertEqual(queue["visibility_timeout_seconds"], wanted["visibility_timeout_seconds"])
            self.assertEqual(queue.get("receive_wait_time_seconds", 0), wanted["receive_wait_time_seconds"])
            self.assertEqual(queue.get("fifo_queue", False), wanted["fifo"])
            receives = re.search(r"maxReceiveCount\s*[=:]\s*(\d+)", str(queue.get("redrive_policy", "")))
            self.assertEqual(receives and int(receives[1]), wanted.get("max_receive_count"))

    def test_the_bucket(self):
        wanted = self.design["bucket"]
        rules = support.resource("aws_s3_bucket_lifecycle_configuration", "artifacts")["rule"]
        days = [rule["abort_incomplete_multipart_upload"][0]["days_after_initiation"] for rule in rules]
        self.assertEqual(days, [wanted["abort_incomplete_multipart_days"]])
        self.assertNotIn("expiration", rules[0], "artifacts live as long as a record names them")
        block = support.resource("aws_s3_bucket_public_access_block", "this")
        for key in ("block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets"):
            self.assertEqual(block[key], wanted["public_access_blocked"])


class Permissions(unittest.TestCase):
    def test_each_sdk_call_of_the_store_is_allowed_to_a_role(self):
        calls = sdk_calls()
        self.assertGreater(len(calls), 15)
        self.assertEqual(needed(calls) - (actions("node") | actions("builder")), set())

    def test_no_role_has_an_action_that_nobody_calls(self):
        for role in ("node", "builder"):
            self.assertEqual(actions(role) - needed(sdk_calls()) - {"s3:AbortMultipartUpload"}, set(), role)
        modules = ROOT / "terraform/modules"
        machine = [*(ROOT / "packaging/bin").iterdir(), modules / "group/user-data.sh.tftpl"]
        self.assertEqual(actions("machine") - command_calls(machine) - AGENTS, set())
        self.assertLessEqual(command_calls(machine) - {"s3:PutObject"}, actions("machine"))
        etcd = [modules / "etcd/etcd-snapshot.sh", modules / "etcd/user-data.sh.tftpl"]
        self.assertEqual(actions("etcd") - command_calls(etcd) - AGENTS, set())
        self.assertLessEqual(command_calls(etcd), actions("etcd"))

    def test_each_role_may_call_on_each_resource_what_the_code_says_and_nothing_else(self):
        done = subprocess.run([HEARTH, "admin", "init-aws", "--print"], capture_output=True, text=True, timeout=30, check=True)
        design = json.loads(done.stdout)
        for role in ("node", "builder"):
            said = {(p["resource"], action) for p in design["permissions"] if role in p["roles"] for action in p["actions"]}
            self.assertEqual(allowed(role), said, role)
        self.assertEqual({action for role in ("node", "builder") for _, action in allowed(role)}, needed(sdk_calls()) | {"s3:AbortMultipartUpload"})
        # The prefixes are those under which the code keeps its objects.
        prefixes = {design["bucket"][f"{kind}_prefix"] + "*" for kind in ("artifacts", "bundles", "documents")}
        self.assertEqual({r.partition("/")[2] for r, _ in allowed("node") if r.startswith("bucket/")}, prefixes | {"hearth.json"})

    def test_objects_are_written_by_the_role_that_makes_them(self):
        writes = {(role, resource) for role in ("node", "builder") for resource, action in allowed(role) if action == "s3:PutObject"}
        self.assertNotIn(("node", "bucket/artifacts/*"), writes, "a node cannot write what other nodes will run")
        self.assertNotIn(("builder", "bucket/bundles/*"), writes)
        self.assertFalse({(r, a) for r, a in allowed("builder") if r.startswith("bucket/bundles")}, "a builder sees no tenant's code")

    def test_what_roles_must_not(self):
        self.assertNotIn("kms:Decrypt", actions("builder"), "a builder opens no secret")
        for role in ("node", "builder"):
            for statement in statements(role):
                if not all("documents/*" in r for r in statement["resources"]):
                    self.assertNotIn("s3:DeleteObject", statement["actions"], f"{role} cannot delete artifacts and bundles")
                for resource in statement["resources"]:
                    self.assertNotEqual(resource, "*", f"{role} {statement['sid']}")
        self.assertNotIn("sqs:ReceiveMessage", actions("node"), "a node takes no builds")
        everything = [a for _, t, n, _ in support.labelled("data") if t == "aws_iam_policy_document" for a in actions_or_none(n)]
        self.assertEqual({a for a in everything if a.endswith(":*")}, {"kms:*", "s3:*"}, "the key's administration and the denial of plain HTTP")

    def test_artifacts_are_create_only_for_everybody(self):
        text = (ROOT / "terraform/modules/state/buckets.tf").read_text(encoding="utf-8")
        self.assertRegex(text, r's3:if-none-match"\n\s+values\s+= \["true"\]')
        for named in ("artifacts/*", "bundles/*", "hearth.json"):
            self.assertIn("${each.value}/" + named, text)


def actions_or_none(name):
    try:
        return actions(name)
    except KeyError:
        return set()


class Machines(unittest.TestCase):
    def test_metadata_is_version_2_one_hop_and_nothing_has_a_public_address(self):
        for type_, name in (("aws_launch_template", "this"), ("aws_instance", "member")):
            options = support.resource(type_, name)["metadata_options"][0]
            self.assertEqual(unquoted(options["http_tokens"]), "required")
            self.assertEqual(options["http_put_response_hop_limit"], 1)
        template = support.resource("aws_launch_template", "this")
        self.assertIs(template["network_interfaces"][0]["associate_public_ip_address"], False)
        self.assertNotIn("key_name", template)

    def test_a_target_leaves_later_than_the_longest_request(self):
        longest_ms = int(re.search(r"TIMEOUT_MS_MAX: u64 = ([\d_]+)", (ROOT / "model/src/limits.rs").read_text())[1].replace("_", ""))
        variables = (ROOT / "terraform/modules/router/variables.tf").read_text()
        default_s = int(re.search(r'"request_timeout_max_s".*?default\s+= (\d+)', variables, re.S)[1])
        self.assertGreaterEqual(default_s * 1000, longest_ms)
        delay = support.resource("aws_lb_target_group", "router")["deregistration_delay"]
        self.assertEqual(delay, "${var.request_timeout_max_s + 60}")
        for role in ("router", "node"):
            unit = (ROOT / f"packaging/systemd/hearth-{role}.service").read_text()
            stop_s = int(re.search(r"TimeoutStopSec=(\d+)", unit)[1])
            self.assertGreater(stop_s, default_s + 60, role)
            module = (ROOT / f"terraform/modules/{role}/main.tf").read_text()
            extra_s = int(re.search(r"drain_timeout_s\s+= var.request_timeout_max_s \+ (\d+)", module)[1])
            self.assertGreater(default_s + extra_s, default_s + 60)

    def test_ports_are_those_of_the_default_configuration(self):
        text = (ROOT / "terraform/modules/network/security.tf").read_text()
        ports = dict(re.findall(r"^    (\w+)\s+= (\d+)$", text, re.M))
        config = ROOT / "packaging/config"
        self.assertIn(f'listen = "0.0.0.0:{ports["node"]}"', (config / "node.toml").read_text())
        self.assertIn(f'control_listen = "0.0.0.0:{ports["control"]}"', (config / "node-cluster.toml").read_text())
        router = (config / "router.toml").read_text()
        self.assertIn(f'listen = "0.0.0.0:{ports["router"]}"', router)
        self.assertIn(f'ops_listen = "0.0.0.0:{ports["ops"]}"', router)
        instance = (ROOT / "packaging/bin/hearth-instance").read_text()
        self.assertIn(f":{ports['node']}", instance)
        self.assertIn(f":{ports['control']}", instance)

    def test_units_start_subcommands_with_the_configuration_that_the_script_installs(self):
        for role in ("router", "node", "builder"):
            unit = (ROOT / f"packaging/systemd/hearth-{role}.service").read_text()
            self.assertIn(f"ExecStart=/opt/hearth/current/hearth {role} --config /etc/hearth/hearth.toml\n", unit)
            self.assertTrue((ROOT / f"packaging/config/{role}-cluster.toml").is_file())


class Observability(unittest.TestCase):
    def test_metrics_are_sent_under_the_names_that_alarms_and_scaling_use(self):
        sent = (ROOT / "packaging/bin/hearth-metrics").read_text() + (ROOT / "terraform/modules/etcd/etcd-snapshot.sh").read_text()
        hcl = "".join(path.read_text() for path in support.files())
        of_alarms = re.findall(r"namespace = local\.space, metric = \"(\w+)\"", hcl)
        of_scaling = re.findall(r"{ metric = \"(\w+)\", target", hcl)
        of_groups = re.findall(r'metric_name\s+= "(hearth_\w+)"', hcl)
        self.assertEqual(len(of_groups), 3)
        of_dashboard = re.findall(r'\["(\w+)", "Group"', hcl)
        self.assertGreater(len(of_alarms), 4)
        self.assertEqual(len(of_scaling), 2)
        for name in {*of_alarms, *of_scaling, *of_groups, *of_dashboard}:
            self.assertRegex(sent, rf'["\s]{name}"', name)

    def test_each_alarm_names_a_runbook_that_is_there(self):
        alarms = (ROOT / "terraform/modules/observability/main.tf").read_text()
        self.assertGreater(alarms.count("docs/operations/"), 10)
        for path in support.files():
            for named in re.findall(r"docs/operations/[\w-]+\.md", path.read_text()):
                self.assertTrue((ROOT / named).is_file(), f"{path}: {named}")

    def test_every_log_group_has_a_retention(self):
        groups = [body for _, t, _, body in support.labelled("resource") if t == "aws_cloudwatch_log_group"]
        self.assertGreaterEqual(len(groups), 2)
        for body in groups:
            self.assertIn("retention_in_days", body)


if __name__ == "__main__":
    unittest.main()
