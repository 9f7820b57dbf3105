"""The release and its install script on a machine made of Debian packages: a router is installed, upgraded and gone back from, units are valid,
and what does not fit is refused before anything is placed. Nothing is started here: that needs an init system.
"""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

import support

HEARTH = os.environ.get("BINARY_UNDER_TEST", str(support.ROOT / "target/debug/hearth"))
BASE = support.TOOLS / "machine.tar"
ENV = "HEARTH_CLUSTER_NAME=trial\nHEARTH_AWS_REGION=eu-central-1\nHEARTH_ETCD_ENDPOINTS=http://127.0.0.1:2379,http://127.0.0.2:2379\n"


def run(*command, **more):
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **more)


class Install(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if not BASE.exists():
            new = BASE.with_suffix(".new")
            done = run("mmdebstrap", "--quiet", "--variant=minbase", "--include=systemd,python3", "--format=tar", "bookworm", str(new))
            assert done.returncode == 0, done.stderr
            new.rename(BASE)
        cls.dir = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.root = cls.dir / "root"
        cls.root.mkdir()
        assert run("tar", "-xf", str(BASE), "-C", str(cls.root), "--exclude=./dev/*").returncode == 0
        script = str(support.ROOT / "scripts/release.sh")
        done = run("bash", script, "--debug-binary", HEARTH, "--without-images", str(cls.dir / "release"))
        assert done.returncode == 0, done.stderr
        shutil.copytree(cls.dir / "release", cls.root / "release")
        run("tar", "-xzf", str(next((cls.root / "release").glob("hearth-*.tar.gz"))), "-C", str(cls.root / "release"))
        (cls.root / "cluster.env").write_text(ENV)

    def install(self, *arguments):
        facts = ["HEARTH_NODE_NAME=one", "HEARTH_ZONE=z", "HEARTH_ADDRESS=10.0.0.1", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
        script = ["/release/hearth/install.sh", "--from", "/release", "--env", "/cluster.env", "--no-start", *arguments]
        return run("chroot", str(self.root), "/usr/bin/env", "-i", *facts, *script)

    def read(self, path):
        return (self.root / path).read_text()

    def test_a_router_is_installed_upgraded_and_gone_back_from(self):
        versions = self.read("release/hearth/VERSION").strip(), "9.9.9"
        for version in (versions[0], versions[1], versions[0]):
            (self.root / "release/hearth/VERSION").write_text(version + "\n")
            done = self.install("--role", "router")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(os.readlink(self.root / "opt/hearth/current"), version)
        config = self.read("etc/hearth/hearth.toml")
        self.assertIn('endpoints = ["http://127.0.0.1:2379", "http://127.0.0.2:2379"]', config)
        self.assertNotIn("@", config)
        self.assertIn("HEARTH_ROLE=router\n", self.read("etc/hearth/cluster.env"))
        self.assertIn("HEARTH_CLUSTER__NODE_NAME=one\n", self.read("etc/hearth/instance.env"))
        done = run("chroot", str(self.root), "/usr/local/bin/hearth", "--version")
        self.assertEqual(done.returncode, 0, done.stderr)
        units = [f"/etc/systemd/system/{name}" for name in ("hearth-router.service", "hearth-lifecycle.service", "hearth-metrics.service")]
        done = run("chroot", str(self.root), "systemd-analyze", "verify", "--man=no", *units)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_what_does_not_fit_is_refused_with_the_remedy(self):
        for arguments, remedy in (
            (["--role", "king"], "router, node or builder"),
            (["--role", "router", "--standalone"], "finds its nodes through etcd"),
            (["--role", "node"], "install it with this machine's package manager"),
            (["--role", "router", "--colour"], "unknown argument --colour"),
        ):
            done = self.install(*arguments)
            self.assertNotEqual(done.returncode, 0, arguments)
            self.assertIn(remedy, done.stderr)
        sums = self.root / "release/SHA256SUMS"
        good = sums.read_text()
        sums.write_text("0" * 64 + good[64:])
        done = self.install("--role", "router")
        sums.write_text(good)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("is not what SHA256SUMS says", done.stderr)


if __name__ == "__main__":
    unittest.main()
