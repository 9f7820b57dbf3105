"""What Terraform itself says, where it and a provider are on this machine: format, validate, a plan of both examples, and what bad variables are
answered. Without Terraform the format is checked by rules of our own and the rest is skipped, which the run says; test_schema has
checked each argument then.

The provider that can be had may be of the major before the one that is pinned; the copy that is planned then pins that one. The plan calls
nothing: credentials are made up and every endpoint is a closed port.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

import support

MIRROR = pathlib.Path(os.environ.get("HEARTH_TERRAFORM_MIRROR", "/opt/tf-plugins"))
NOWHERE = "http://127.0.0.1:9"
SERVICES = "acm autoscaling cloudwatch dynamodb ec2 elbv2 iam kms logs route53 s3 secretsmanager sqs ssm sts".split()
VARIABLES = {
    "region": "eu-central-1",
    "account_id": "123456789012",
    "ami_id": "ami-0123456789abcdef0",
    "certificate_arn": "arn:aws:acm:eu-central-1:123456789012:certificate/11111111-2222-3333-4444-555555555555",
    "hearth_version": "0.1.0",
    "hearth_sha256": "a" * 64,
    "etcd_sha256": "b" * 64,
    "npm_registry": "https://registry.example.com/",
}
ZONES = {"small": {"zone": "eu-central-1a"}, "production": {"zones": ["eu-central-1a", "eu-central-1b", "eu-central-1c"]}}
# (example, variables, words of the remedy)
REFUSED = [
    ("small", {"certificate_arn": ""}, "aws acm request-certificate"),
    ("small", {"hearth_sha256": "abc"}, "make release"),
    ("small", {"etcd_sha256": ""}, "SHA256SUMS of the etcd release"),
    ("small", {"data_loss_confirmed": "yes"}, "exactly the installation's name"),
    ("small", {"npm_registry": "registry.example.com"}, "npm config get registry"),
    ("small", {"account_id": "12"}, "aws sts get-caller-identity"),
    ("production", {"zones": ["eu-central-1a"]}, "examples/small"),
    ("production", {"node_size": {"min": 3, "max": 3}}, "starts a new machine before it ends an old one"),
]
# The same by changing the example's own text: (what, by what, words).
CHANGED = [
    ("member_count           = 1", "member_count           = 2", "Use 3, or 1 for a trial"),
    ('"10.40.0.0/16"', '"10.40.0.0/24"', "give a /20 or larger"),
]


def provider_version():
    found = sorted(MIRROR.glob("*/hashicorp/aws/*"))
    return found[-1].name if found and shutil.which("terraform") else None


def own_format_problems(text):
    """The rules of `terraform fmt` that a slip breaks most often: indentation by two, no tabs, aligned `=` of neighbouring arguments."""
    depth, heredoc, group = 0, None, []
    for number, line in enumerate([*text.split("\n"), ""], 1):
        if "\t" in line or line != line.rstrip():
            yield f"{number}: tab or space at the end"
        bare = re.sub(r'"(?:\\.|[^"\\])*"', '""', line.split(" # ")[0]).strip()
        if bare.startswith("#"):
            bare = ""
        closing = len(bare) - len(bare.lstrip("}])"))
        if bare and len(line) - len(line.lstrip()) != 2 * max(0, depth - (1 if closing else 0)) and not heredoc:
            yield f"{number}: indentation"
        argument = re.match(r"^(\s*[\w.-]+)(\s*)= (?!=)", line)
        opens = bare.count("{") + bare.count("[") + bare.count("(") - bare.count("}") - bare.count("]") - bare.count(")")
        if argument and opens <= 0:
            group.append((number, len(argument[1]) + len(argument[2]), len(argument[1])))
        if not argument or opens > 0:
            if group and len({column for _, column, _ in group}) > 1:
                yield f"{group[0][0]}: = not aligned"
            group = []
        depth += (1 if opens > 0 else -1 if opens < 0 else 0)


class Format(unittest.TestCase):
    def test_the_format(self):
        if shutil.which("terraform"):
            done = subprocess.run(["terraform", "fmt", "-check", "-recursive", str(support.TERRAFORM)], capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stdout), (0, ""))
        wrong = [f"{p.relative_to(support.ROOT)}:{what}" for p in support.files() for what in own_format_problems(p.read_text())]
        self.assertEqual(wrong, [])

    def test_the_own_rules_see_slips(self):
        self.assertEqual(list(own_format_problems('a "b" {\n  x = 1\n\n  yy = 2\n}\n')), [])
        for slip in ('a "b" {\n x = 1\n}\n', "a {\n\tx = 1\n}\n", "a {\n  x = 1\n  yy = 2\n}\n", "x = 1 \n"):
            self.assertNotEqual(list(own_format_problems(slip)), [], slip)


class Terraform(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.version = provider_version()
        if cls.version is None:
            raise unittest.SkipTest(f"no terraform, or no AWS provider below {MIRROR}: nothing is validated, planned or applied")
        cls.dir = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        shutil.copytree(support.TERRAFORM, cls.dir / "terraform", ignore=shutil.ignore_patterns(".terraform*"))
        for path in (cls.dir / "terraform").rglob("*.tf"):
            path.write_text(path.read_text().replace('version = "~> 6.0"', f'version = "{cls.version}"'))
        (cls.dir / "rc").write_text(f'provider_installation {{\n  filesystem_mirror {{\n    path = "{MIRROR}"\n  }}\n}}\n')
        endpoints = "\n".join(f'    {service} = "{NOWHERE}"' for service in SERVICES)
        for example in ZONES:
            (cls.dir / "terraform/examples" / example / "stand_in_override.tf").write_text(
                'provider "aws" {\n  access_key = "none"\n  secret_key = "none"\n  allowed_account_ids = null\n'
                "  skip_credentials_validation = true\n  skip_requesting_account_id = true\n  skip_metadata_api_check = true\n"
                f"  endpoints {{\n{endpoints}\n  }}\n}}\n"
            )
            cls.run_terraform(example, "init", "-input=false")

    @classmethod
    def run_terraform(cls, example, *arguments):
        environment = {**os.environ, "TF_CLI_CONFIG_FILE": str(cls.dir / "rc"), "CHECKPOINT_DISABLE": "1"}
        where = cls.dir / "terraform/examples" / example
        command = ["terraform", arguments[0], "-no-color", *arguments[1:]]
        return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=300)

    def plan(self, example, **changed):
        values = {**VARIABLES, **ZONES[example], **changed}
        (self.dir / "terraform/examples" / example / "terraform.tfvars.json").write_text(json.dumps(values))
        return self.run_terraform(example, "plan", "-input=false", "-refresh=false", "-lock=false", "-out=planned")

    def test_both_examples_validate_and_plan(self):
        for example, at_least in (("small", 90), ("production", 110)):
            done = self.run_terraform(example, "validate")
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            done = self.plan(example)
            self.assertEqual(done.returncode, 0, done.stdout[-2000:] + done.stderr)
            count = int(re.search(r"Plan: (\d+) to add, 0 to change, 0 to destroy", done.stdout)[1])
            self.assertGreater(count, at_least)
            print(f"\n{example}: terraform validate and plan with the AWS provider {self.version}: {count} resources")

    def test_bad_variables_are_answered_with_the_remedy(self):
        for example, changed, remedy in REFUSED:
            self.refused(self.plan(example, **changed), remedy)
        main = self.dir / "terraform/examples/small/main.tf"
        good = main.read_text()
        for what, by, remedy in CHANGED:
            self.assertIn(what, good)
            main.write_text(good.replace(what, by))
            self.refused(self.plan("small"), remedy)
        main.write_text(good)

    def refused(self, done, remedy):
        self.assertNotEqual(done.returncode, 0, remedy)
        words = " ".join(re.sub(r"[│╷╵]", " ", done.stderr).split())
        self.assertIn(remedy, words)


if __name__ == "__main__":
    unittest.main()
