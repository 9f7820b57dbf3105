"""The module `state` applied for real, to the AWS stand-in: what it makes is what the code prints, a node serves on it, and a destroy deletes no
data unless told twice. Where Terraform or a provider is missing this is skipped, which the run says.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.request

import support
from test_names import HEARTH
from test_terraform import MIRROR, provider_version

SERVICES = ("dynamodb", "iam", "kms", "s3", "secretsmanager", "sqs", "sts")
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_REGION": "eu-central-1", "AWS_EC2_METADATA_DISABLED": "true"}
CODE = "module.exports = cb => cb(null, { who: process.env.WHO });"
ROOT_MODULE = """
terraform {{
  required_providers {{
    aws = {{ source = "hashicorp/aws", version = "{version}" }}
  }}
}}
variable "data_loss_confirmed" {{ default = "" }}
provider "aws" {{
  region                      = "eu-central-1"
  access_key                  = "none"
  secret_key                  = "none"
  s3_use_path_style           = true
  skip_credentials_validation = true
  skip_requesting_account_id  = true
  skip_metadata_api_check     = true
  endpoints {{
{endpoints}
  }}
}}
module "state" {{
  source              = "{source}"
  name                = "trial"
  account_id          = "123456789012"
  data_loss_confirmed = var.data_loss_confirmed
}}
output "state" {{ value = module.state }}
"""


def waited_for(what, look, within_s=120):
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        found = look()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"still waiting for {what}")


class Apply(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        version = provider_version()
        if version is None:
            raise unittest.SkipTest(f"no terraform, or no AWS provider below {MIRROR}: nothing is applied")
        cls.dir = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.start_stand_in()
        source = cls.dir / "modules/state"
        shutil.copytree(support.TERRAFORM / "modules/state", source)
        # The provider that can be had may be of the major before the one that is pinned.
        versions = source / "versions.tf"
        versions.write_text(versions.read_text().replace('version = "~> 6.0"', f'version = "{version}"'))
        endpoints = "\n".join(f'    {service} = "{cls.url}"' for service in SERVICES)
        (cls.dir / "main.tf").write_text(ROOT_MODULE.format(version=version, endpoints=endpoints, source="./modules/state"))
        (cls.dir / "rc").write_text(f'provider_installation {{\n  filesystem_mirror {{\n    path = "{MIRROR}"\n  }}\n}}\n')
        cls.terraform("init", "-input=false")

    @classmethod
    def start_stand_in(cls):
        announced = cls.dir / "aws.url"
        script = str(support.ROOT / "scripts/aws-stand-in.sh")
        child = subprocess.Popen([script, "--announce", str(announced), "--until-stdin-ends"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)

        def end():
            child.stdin.close()
            child.wait(30)

        cls.addClassCleanup(end)
        waited_for("the AWS stand-in", announced.exists)
        cls.url = announced.read_text()

    @classmethod
    def terraform(cls, *arguments, succeeds=True):
        environment = {**os.environ, "TF_CLI_CONFIG_FILE": str(cls.dir / "rc"), "CHECKPOINT_DISABLE": "1"}
        command = ["terraform", arguments[0], *([] if arguments[0] == "output" else ["-no-color"]), *arguments[1:]]
        done = subprocess.run(command, cwd=cls.dir, env=environment, capture_output=True, text=True, timeout=300)
        assert (done.returncode == 0) is succeeds, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    def hearth(self, *arguments):
        return subprocess.run([HEARTH, *arguments], env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=120)

    def configuration(self, state):
        """As install.sh fills the release's own default, with the names that Terraform gives."""
        values = {
            "TABLE": state["table"]["name"],
            "BUCKET": state["buckets"]["artifacts"]["name"],
            "QUEUE": state["queue"]["name"],
            "DEAD_LETTER_QUEUE": state["dead_letter_queue"]["name"],
            "KMS_KEY": state["secrets_key"]["alias"],
            "NPM_REGISTRY": "http://127.0.0.1:9/",
            "AWS_REGION": "eu-central-1",
            "ENDPOINT_URL": f'endpoint_url = "{self.url}"',
        }
        text = (support.ROOT / "packaging/config/store.toml").read_text()
        for key, value in values.items():
            text = text.replace(f"@{key}@", value)
        self.assertNotIn("@", re.sub(r"#.*", "", text))
        path = self.dir / "hearth.toml"
        path.write_text(text.replace('"/var/lib/hearth"', f'"{self.dir}/data"'))
        return str(path)

    def test_what_is_applied_serves_and_outlives_a_destroy_that_was_told_once(self):
        self.terraform("apply", "-auto-approve", "-input=false")
        state = json.loads(self.terraform("output", "-json"))["state"]["value"]
        config = self.configuration(state)
        # Names, keys and attributes: the code finds the resources it would have made.
        again = self.hearth("admin", "init-aws", "--config", config)
        self.assertIn("exists already", again.stderr)
        self.serve(config)

        refused = self.terraform("destroy", "-auto-approve", "-input=false", succeeds=False)
        self.assertRegex(refused, r"deletion protection|protected against deletion|DeletionProtection", refused)
        self.assertIn("BucketNotEmpty", refused)
        # What it took down meanwhile holds no data, and comes back.
        self.terraform("apply", "-auto-approve", "-input=false")
        self.serve(config, deploy=False)

        self.terraform("apply", "-auto-approve", "-input=false", "-var=data_loss_confirmed=trial")
        self.terraform("destroy", "-auto-approve", "-input=false", "-var=data_loss_confirmed=trial")
        gone = self.hearth("admin", "token", "--config", config, "--file", str(self.dir / "late.token"))
        self.assertIn("does not exist", gone.stderr)

    def serve(self, config, deploy=True):
        """A node (and, the first time, a builder) on what Terraform made: a function with a secret, which KMS seals, is deployed and called."""
        token = self.dir / "admin.token"
        if deploy:
            done = self.hearth("admin", "token", "--config", config, "--file", str(token))
            self.assertEqual(done.returncode, 0, done.stderr)
        for role in ("builder", "node") if deploy else ("node",):
            announced = self.dir / f"{role}.json"
            announced.unlink(missing_ok=True)
            log = self.dir / f"{role}.log"
            command = [HEARTH, role, "--config", config, "--data-dir", str(self.dir / role), "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"]
            more = {"HEARTH_DOCKER__ACCEPT_UNSAFE": "true", "HEARTH_DESTROY_CONTAINERS": "true", "HEARTH_DOCKER__INSTANCE": f"terraform-{os.getpid()}-{role}"}
            with open(log, "wb") as file:
                child = subprocess.Popen([*command, "--announce", str(announced), "--pool-size", "1"], env={**os.environ, **ENVIRONMENT, **more}, stderr=file)
            try:
                waited_for(f"the {role}", lambda: announced.exists() or child.poll() is not None)
                self.assertIsNone(child.poll(), log.read_text())
                addresses = json.loads(announced.read_text())
                if role == "builder":
                    with urllib.request.urlopen(addresses["ops_url"] + "/readyz", timeout=10) as answer:
                        self.assertEqual(answer.status, 200)
                else:
                    self.call(addresses["url"], token.read_text().strip(), deploy)
            finally:
                child.terminate()
                child.wait(60)

    def call(self, url, token, deploy):
        if deploy:
            body = json.dumps({"code": CODE, "secrets": {"WHO": "terraform"}}).encode()
            headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
            request = urllib.request.Request(f"{url}/v1/tenants/acme/containers/main/functions/who", body, headers, method="PUT")
            with urllib.request.urlopen(request, timeout=60) as answer:
                self.assertEqual(answer.status, 201)
        with urllib.request.urlopen(f"{url}/run/acme/main/who", timeout=60) as answer:
            self.assertEqual(json.loads(answer.read()), {"who": "terraform"})


if __name__ == "__main__":
    unittest.main()
