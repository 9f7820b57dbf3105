"""What a release installs, on machines with systemd: units start the roles, the roles answer, and a group rolls from one version to the next and
back without losing a request. Long, and in need of 4 GB of disk: `make test-machines`. `make test` has the router's part.
"""

import json
import os
import pathlib
import ssl
import unittest
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import machines
import support

LONG = os.environ.get("TEST_MACHINES") == "all"
HELLO = "module.exports = (context, cb) => cb(null, { hello: process.env.WHO, node: process.version });"
TEMPLATE = support.TERRAFORM / "modules/group/user-data.sh.tftpl"
NAMES = {"table": "trial", "artifacts_bucket": "trial-artifacts", "queue": "trial-builds", "dead_letter_queue": "trial-builds-dead"}


class Router(unittest.TestCase):
    def test_the_unit_starts_a_router_that_answers_and_is_confined(self):
        world = machines.World("machine")
        self.addCleanup(world.close)
        release, router = world.release("0.1.0"), world.machine("router")
        for name, text in world.secret("router").items():
            router.put(f"/etc/hearth/tls/{name}", text, mode="0640")
        router.put("/root/cluster.env", f"HEARTH_CLUSTER_NAME=trial\nHEARTH_AWS_REGION=eu-central-1\nHEARTH_ETCD_ENDPOINTS={world.etcd}\n")
        router.sh(f"mkdir /root/release && cp /world/{release.name}/* /root/release/ && tar -xzf /root/release/hearth-*.tar.gz -C /root/release")
        # Certificates come from Secrets Manager elsewhere; here the operator has put them.
        router.sh("groupadd --system hearth && useradd --system --gid hearth --home-dir /var/lib/hearth hearth && chgrp -R hearth /etc/hearth/tls")
        router.sh("/root/release/hearth/install.sh --role router --from /root/release --env /root/cluster.env")
        router.until_ready(wanted=503)
        self.assertEqual(router.get("/healthz"), (200, "ok\n\n"))
        self.assertIn("no node is known", router.get("/readyz")[1])
        self.assertIn("HEARTH_CLUSTER__NODE_NAME=i-router\n", router.read("/etc/hearth/instance.env"))
        unit = "hearth-router.service"
        status = dict(line.split(":\t", 1) for line in router.read(f"/proc/{router.property(unit, 'MainPID')}/status").splitlines())
        user = router.sh("id --user hearth").stdout.strip()
        self.assertEqual((status["Uid"].split()[0], status["NoNewPrivs"], status["CapBnd"], status["Seccomp"]), (user, "1", "0" * 16, "2"))
        # A crash is mended, a stop is clean.
        router.sh(f"systemctl kill --signal KILL {unit}")
        machines.until("the restart", lambda: router.property(unit, "NRestarts") == "1")
        router.until_ready(wanted=503)
        router.sh(f"systemctl stop {unit}")
        self.assertEqual((router.property(unit, "ActiveState"), router.property(unit, "Result")), ("inactive", "success"), router.log())


@unittest.skipUnless(LONG, "machines with Docker in them take minutes: make test-machines")
class Roles(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.world = machines.World("machine-with-docker")
        cls.addClassCleanup(cls.world.close)
        cls.releases = {version: cls.world.release(version, images=True) for version in ("0.1.0", "0.1.1")}
        cls.make_state()

    @classmethod
    def make_state(cls):
        """What Terraform and the operator make: resources, the key, the roles' secrets, releases in their bucket."""
        stores = cls.world.dir / "stores.toml"
        at = f'region = "eu-central-1"\nendpoint_url = "{cls.world.aws}"\n'
        stores.write_text(
            f'[store.records]\nbackend = "dynamodb"\ntable = "trial"\n{at}[store.artifacts]\nbackend = "s3"\nbucket = "trial-artifacts"\n{at}'
            f'[store.queue]\nbackend = "sqs"\nqueue = "trial-builds"\ndead_letter_queue = "trial-builds-dead"\n{at}'
            f'[store.keys]\nbackend = "file"\npath = "{cls.world.dir}/unused.key"\n'
        )
        credentials = {**os.environ, "AWS_ACCESS_KEY_ID": "operator", "AWS_SECRET_ACCESS_KEY": "x"}
        machines.run(machines.HEARTH, "admin", "init-aws", "--config", str(stores), env=credentials)
        cls.operator = operator = cls.world.machine("operator")
        cls.with_commands(operator)
        operator.sh("aws kms create-alias --alias-name alias/trial --target-key-id $(aws kms create-key --query KeyMetadata.KeyId --output text)")
        operator.sh("aws s3 mb s3://trial-releases")
        for version, release in cls.releases.items():
            operator.sh(f"aws s3 cp --only-show-errors --recursive --exclude '*.tfvars.json' /world/{release.name} s3://trial-releases/hearth/{version}/")
        for role in ("router", "node", "builder"):
            operator.put(f"/run/{role}.json", json.dumps(cls.world.secret(role)))
            operator.sh(f"aws secretsmanager create-secret --name trial/tls/{role} --secret-string file:///run/{role}.json")

    @classmethod
    def with_commands(cls, machine):
        """The AWS command line finds its services at stand-ins; packages are there already."""
        wrapper = f'#!/bin/sh\ncase $1 in autoscaling | cloudwatch) at=http://{machines.METADATA} ;; *) at={cls.world.aws} ;; esac\n'
        machine.put("/usr/local/bin/aws", wrapper + 'export AWS_DEFAULT_REGION=eu-central-1\nexec /usr/bin/aws --endpoint-url "$at" "$@"\n', mode="0755")
        machine.put("/usr/local/bin/dnf", "#!/bin/sh\n", mode="0755")

    def install(self, name, role, version):
        """A machine as its group starts it: with Terraform's user data."""
        machine = self.world.machine(name)
        self.with_commands(machine)
        sums = machines.run("sha256sum", str(self.releases[version] / "SHA256SUMS")).stdout.split()[0]
        cluster = {
            "region": "eu-central-1",
            "hearth_version": version,
            "hearth_sha256": sums,
            "releases_bucket": {"name": "trial-releases"},
            "secrets_key": {"alias": "alias/trial"},
            "etcd_endpoints": [self.world.etcd],
            # No module is built here: nothing listens there.
            "npm_registry": "http://127.0.0.1:9/",
            **{what: {"name": named} for what, named in NAMES.items()},
        }
        values = {"role": role, "name": "trial", "cluster": cluster, "secret": f"trial/tls/{role}", "log_group": "none", "drain_s": 1020}
        script = machines.rendered(TEMPLATE.read_text(), values)
        # The one thing that a region does not need: where its services are. And Debian keeps runc under an old number.
        script = script.replace("\nENV\nexec", f"\nHEARTH_AWS_ENDPOINT_URL={self.world.aws}\nENV\nexec")
        machine.put(f"/etc/systemd/system/hearth-{role}.service.d/trial.conf", "[Service]\nEnvironment=HEARTH_DOCKER__ACCEPT_UNSAFE=true\n")
        machine.put("/root/user-data.sh", script)
        done = machine.sh("bash /root/user-data.sh", check=False)
        self.assertEqual(done.returncode, 0, f"{name}: {done.stdout}{done.stderr}\n{machine.log()}")
        if role != "router":
            machine.until_ready()
        return machine

    def call(self, method, path, body=None, status=(200, 201)):
        context = ssl.create_default_context(cafile=str(self.world.certs / "ca.crt"))
        context.check_hostname = False
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json", "prefer": "wait=120"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"https://{self.router.address}:8443{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=150, context=context) as answer:
            text = answer.read()
            self.assertIn(answer.status, status, text)
            return json.loads(text)

    def leave(self, machine):
        """The group ends a machine: its metadata says so, the hook drains it, and lets the group go on."""
        machine.say({"autoscaling/target-lifecycle-state": "Terminated"})
        machines.until("the drain", lambda: [c for c in machine.calls("CompleteLifecycleAction") if c["LifecycleHookName"] == "drain"])
        self.assertEqual(machine.property("hearth-node.service", "ActiveState"), "inactive")
        self.assertEqual(machine.property("hearth-node.service", "Result"), "success", machine.log())
        machine.remove()

    def test_the_roles_answer_roll_and_go_back(self):
        with ThreadPoolExecutor(3) as pool:
            started = [pool.submit(self.install, name, role, "0.1.0") for name, role in (("b1", "builder"), ("n1", "node"), ("r1", "router"))]
            builder, node, self.router = [each.result() for each in started]
        self.router.until_ready()
        for machine, group in ((builder, "trial-builder"), (node, "trial-node"), (self.router, "trial-router")):
            ready = machines.until("the hook", lambda machine=machine: machine.calls("CompleteLifecycleAction"))[0]
            self.assertEqual((ready["LifecycleHookName"], ready["LifecycleActionResult"]), ("ready", "CONTINUE"))
            self.assertEqual((ready["AutoScalingGroupName"], ready["InstanceId"]), (group, f"i-{machine.name}"))
        node.sh("hearth admin token --config /etc/hearth/hearth.toml --file /root/admin.token")
        self.token = node.read("/root/admin.token").strip()
        self.call("PUT", "/v1/tenants/acme/containers/main/functions/hello", {"code": HELLO, "secrets": {"WHO": "world"}})
        self.assertEqual(self.call("GET", "/run/acme/main/hello")["hello"], "world", "the secret was sealed and opened under KMS")
        self.metrics(builder, node)
        load = machines.Load(self.world, self.router, "/run/acme/main/hello")
        try:
            second = self.install("n2", "node", "0.1.1")
            self.leave(node)
            there = load.served
            third = self.install("n3", "node", "0.1.0")
            self.leave(second)
            back = load.served
            machines.until("requests on the old version", lambda: load.served > back + 50)
        finally:
            served, lost = load.stop()
        print(f"\nrolled from 0.1.0 to 0.1.1 and back under load: {served} POST requests ({there} by the end of the first roll), lost: {len(lost)}")
        self.assertEqual(lost, [], third.log())

    def metrics(self, builder, node):
        for machine, wanted in ((builder, "hearth_builder_queue_depth"), (node, "hearth_handler_pool_level")):
            machine.sh("systemctl start hearth-metrics.service")
            sent = {}
            for call in machine.calls("PutMetricData"):
                self.assertEqual(call["Namespace"], "Hearth/trial")
                sent |= {call[f"MetricData.member.{n}.MetricName"]: float(call[f"MetricData.member.{n}.Value"]) for n in range(1, 40) if f"MetricData.member.{n}.MetricName" in call}
            self.assertEqual(sent["up"], 1.0)
            self.assertIn(wanted, sent)


if __name__ == "__main__":
    unittest.main()
