"""Machines for the tests of what a release installs: containers whose root is made of Debian packages and whose first process is systemd, on a
network of their own, with a real etcd (TLS, client certificates) and the AWS stand-in at that network's gateway. Everything carries a label and goes
when the world is closed.
"""

import contextlib
import http.client
import json
import os
import pathlib
import re
import secrets
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time

import support

HEARTH = os.environ.get("BINARY_UNDER_TEST", str(support.ROOT / "target/debug/hearth"))
IMAGES = pathlib.Path(os.environ.get("HEARTH_IMAGE_CACHE", "/var/cache/hearth/images"))
SUITE = "bookworm"
# What each kind of machine has besides Debian's minimum; Amazon Linux has the like.
PACKAGES = {
    "machine": ["systemd", "python3"],
    "machine-with-docker": ["systemd", "python3", "docker.io", "nftables", "iptables", "ca-certificates", "awscli"],
}
CAPABILITIES = ["SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE"]
METADATA = "169.254.169.254"
READY_S = 180


def run(*command, check=True, **more):
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, **more)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done


def until(what, condition, within_s=READY_S):
    deadline, found = time.monotonic() + within_s, None
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(f"still waiting for {what} after {within_s} s: {found!r}")


def base(kind):
    """The archive of a machine's root, made once and kept below target."""
    path = support.TOOLS / f"{kind}.tar"
    listed = path.with_suffix(".packages")
    wanted = ",".join(PACKAGES[kind])
    if not path.exists() or (listed.exists() and listed.read_text() != wanted):
        new = path.with_suffix(".new")
        run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={wanted}", "--format=tar", SUITE, str(new))
        listed.write_text(wanted)
        new.rename(path)
    return path


def rendered(template, values):
    """Terraform's `templatefile` as far as the user data goes: `%{ if x == "y" ~}`, else, endif, and `${a.b}`."""
    lines, shown = [], [True]
    for line in template.splitlines():
        directive = re.fullmatch(r"%\{ (if|else|endif)(?: (\w+) (==|!=) \"(\w+)\")? ~\}", line)
        if not directive:
            if all(shown):
                lines.append(line)
        elif directive[1] == "if":
            shown.append((values[directive[2]] == directive[4]) == (directive[3] == "=="))
        elif directive[1] == "else":
            shown[-1] = not shown[-1]
        else:
            shown.pop()

    def value(found):
        name = found[1]
        if name == 'join(",", cluster.etcd_endpoints)':
            return ",".join(values["cluster"]["etcd_endpoints"])
        here = values
        for part in name.split("."):
            here = here[part]
        return str(here)

    return re.sub(r"(?<!\$)\$\{([^}]+)\}", value, "\n".join(lines)) + "\n"


class World:
    """Network, etcd, AWS stand-in, certificates, a release; machines are added."""

    def __init__(self, kind):
        self.kind, self.stack = kind, contextlib.ExitStack()
        self.name = f"machines-{secrets.token_hex(3)}"
        try:
            self.make()
        except BaseException:
            self.close()
            raise

    def make(self):
        self.dir = pathlib.Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.image = f"hearth-{self.kind}:{self.name}"
        run("docker", "import", "--change", f"LABEL hearth.instance={self.name}", str(base(self.kind)), self.image)
        self.stack.callback(lambda: run("docker", "rmi", self.image, check=False))
        run("docker", "network", "create", "--label", f"hearth.instance={self.name}", self.name)
        self.stack.callback(lambda: run("docker", "network", "rm", self.name, check=False))
        self.gateway = run("docker", "network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", self.name).stdout.strip()
        self.certs = self.dir / "certs"
        names = ["--router", "cluster", "--node", "cluster", "--client", "builder", "--etcd", f"cluster={self.gateway}"]
        run(HEARTH, "admin", "certs", "--out", str(self.certs), *names)
        self.etcd = self.start_etcd()
        self.aws = self.start_aws()

    def close(self):
        self.stack.close()

    def daemon(self, *command):
        with open(self.dir / f"{pathlib.Path(command[0]).name}.log", "wb") as log:
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)

        def end():
            child.stdin.close()
            child.terminate()
            child.wait(30)

        self.stack.callback(end)
        return child

    def start_etcd(self):
        url, peer = f"https://{self.gateway}:{free_port(self.gateway)}", f"http://127.0.0.1:{free_port('127.0.0.1')}"
        tls = ["--trusted-ca-file", "ca.crt", "--cert-file", "etcd-cluster.crt", "--key-file", "etcd-cluster.key", "--client-cert-auth"]
        tls = [str(self.certs / part) if part.endswith((".crt", ".key")) else part for part in tls]
        addresses = ["--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        self.daemon("etcd", "--data-dir", str(self.dir / "etcd"), "--initial-cluster", f"default={peer}", *addresses, *tls)
        return url

    def start_aws(self):
        announced = self.dir / "aws.url"
        script = str(support.ROOT / "scripts/aws-stand-in.sh")
        self.daemon(script, "--announce", str(announced), "--host", self.gateway, "--until-stdin-ends")
        until("the AWS stand-in", announced.exists)
        return announced.read_text()

    def secret(self, role):
        """What the operator puts into the role's secret."""
        stem = {"router": "router-cluster", "node": "node-cluster", "builder": "client-builder"}[role]
        files = {"ca.crt": "ca.crt", "tls.crt": f"{stem}.crt", "tls.key": f"{stem}.key"}
        return {name: (self.certs / file).read_text() for name, file in files.items()}

    def release(self, version, images=False):
        """A folder as the releases bucket has it."""
        out = self.dir / f"release-{version}"
        run("bash", str(support.ROOT / "scripts/release.sh"), "--debug-binary", HEARTH, "--without-images", "--version", version, str(out))
        if images:
            arch = os.uname().machine
            kept = support.TOOLS / f"images-{arch}.tar.gz"
            names = [path.name for path in newest_images()]
            listed = kept.with_suffix(".names")
            if not kept.exists() or listed.read_text() != str(names):
                run("bash", "-c", f"tar -c -C {IMAGES} {' '.join(names)} | gzip -1 >{kept}.new && mv {kept}.new {kept}")
                listed.write_text(str(names))
            os.link(kept, out / kept.name) if same_disk(kept, out) else shutil.copy(kept, out)
            run("bash", "-c", f"cd {out} && sha256sum -- *.tar.gz *.cdx.json >SHA256SUMS")
        return out

    def machine(self, name):
        return Machine(self, name)


def newest_images():
    digest = lambda purpose: run("bash", str(support.ROOT / "sandbox/image/build.sh"), "--digest", purpose).stdout[:12]
    return [IMAGES / f"hearth-{purpose}-{digest(purpose)}.tar" for purpose in ("runtime", "build")]


def same_disk(one, other):
    return os.stat(one).st_dev == os.stat(other).st_dev


def free_port(host):
    with socket.create_server((host, 0)) as held:
        return held.getsockname()[1]


class Machine:
    def __init__(self, world, name):
        self.world, self.name, self.container = world, name, f"{world.name}-{name}"
        options = ["--hostname", name, "--network", world.name, "--label", f"hearth.instance={world.name}", "--cgroupns", "host"]
        options += [f"--cap-add={capability}" for capability in CAPABILITIES]
        options += ["--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined", "--env", "container=docker"]
        options += ["--tmpfs", "/run", "--tmpfs", "/tmp", "--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw", "--volume", f"{world.dir}:/world:ro"]
        options += ["--volume", "/var/lib/docker", "--volume", "/var/lib/containerd"] if "docker" in world.kind else []
        world.stack.callback(self.remove)
        run("docker", "run", "--detach", "--name", self.container, *options, world.image, "/lib/systemd/systemd")
        facts = run("docker", "inspect", "--format", "{{.State.Pid}} {{(index .NetworkSettings.Networks \"%s\").IPAddress}}" % world.name, self.container)
        pid, self.address = facts.stdout.split()
        until("systemd", lambda: self.sh("systemctl is-system-running", check=False).stdout.strip() in ("running", "degraded"))
        # A machine may set what concerns its own network; the kernel's other settings stay read-only.
        self.sh("mount --bind /proc/sys/net /proc/sys/net && mount -o remount,bind,rw /proc/sys/net")
        # The metadata's address, in this machine's own network namespace.
        run("nsenter", "--target", pid, "--net", "ip", "address", "add", f"{METADATA}/32", "dev", "lo")
        self.facts = {
            "instance-id": f"i-{name}",
            "placement/availability-zone": "eu-central-1a",
            "placement/region": "eu-central-1",
            "local-ipv4": self.address,
            "iam/security-credentials/": "hearth",
            "iam/security-credentials/hearth": json.dumps(
                {"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": "of-the-role", "SecretAccessKey": "x", "Token": "x"}
                | {"LastUpdated": "2026-01-01T00:00:00Z", "Expiration": "2099-01-01T00:00:00Z"}
            ),
        }
        self.say({})
        self.put("/run/stand-in.py", (support.ROOT / "tests/terraform/machine_stand_in.py").read_text())
        run("docker", "exec", "--detach", self.container, "python3", "/run/stand-in.py", "/run/facts.json", "/run/calls")

    def remove(self):
        run("docker", "rm", "--force", "--volumes", self.container, check=False)

    def sh(self, script, check=True, **more):
        return run("docker", "exec", "--interactive", self.container, "/bin/bash", "-c", script, check=check, **more)

    def put(self, path, text, mode="0644"):
        self.sh(f"mkdir -p $(dirname {path}) && cat >{path}.new && chmod {mode} {path}.new && mv {path}.new {path}", input=text)

    def read(self, path):
        return self.sh(f"cat {path}", check=False).stdout

    def say(self, more):
        """What the metadata says from now on."""
        self.facts |= more
        self.put("/run/facts.json", json.dumps(self.facts))

    def calls(self, action):
        return [call for call in map(json.loads, self.read("/run/calls").splitlines()) if call["Action"] == action]

    def log(self):
        return self.sh("journalctl --no-pager --lines 30; tail -n 30 /var/log/hearth/hearth.log", check=False).stdout

    def property(self, unit, name):
        return self.sh(f"systemctl show --value --property {name} {unit}").stdout.strip()

    def get(self, path, port=9090):
        """Status and text of the machine's own address; none while nothing answers."""
        script = f"python3 -c \"import urllib.request as r, urllib.error as e\ntry: a = r.urlopen('http://127.0.0.1:{port}{path}', timeout=5)\nexcept e.HTTPError as x: a = x\nprint(a.status); print(a.read().decode())\""
        done = self.sh(script, check=False)
        if done.returncode != 0:
            return None, done.stderr[-200:]
        status, _, text = done.stdout.partition("\n")
        return int(status), text

    def until_ready(self, wanted=200):
        def answers():
            if self.get("/readyz")[0] == wanted:
                return True
            role = self.read("/etc/hearth/cluster.env").partition("HEARTH_ROLE=")[2].split("\n")[0]
            if role and int(self.property(f"hearth-{role}.service", "NRestarts") or 0) > 3:
                raise AssertionError(f"{self.name} does not stay up:\n{self.log()}")
            return False

        try:
            until(f"{self.name} to be ready", answers)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None


class Load:
    """Requests in a closed loop from several threads until it is stopped; whatever is not a 200 is kept."""

    def __init__(self, world, machine, target, threads=4):
        self.context = ssl.create_default_context(cafile=str(world.certs / "ca.crt"))
        self.context.check_hostname = False
        self.host, self.target, self.lost, self.served, self.over = machine.address, target, [], 0, threading.Event()
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.go, daemon=True) for _ in range(threads)]
        for thread in self.threads:
            thread.start()

    def go(self):
        connection = None
        while not self.over.is_set():
            try:
                connection = connection or http.client.HTTPSConnection(self.host, 8443, timeout=30, context=self.context)
                connection.request("POST", self.target, body=b"{}", headers={"content-type": "application/json"})
                answer = connection.getresponse()
                text, status, closes = answer.read(), answer.status, answer.will_close
                if closes:
                    connection.close()
                    connection = None
            except OSError as error:
                text, status, connection = repr(error), 0, None
            with self.lock:
                self.served += status == 200
                if status != 200:
                    self.lost.append((status, str(text)[:200]))
            time.sleep(0.02)

    def stop(self):
        self.over.set()
        for thread in self.threads:
            thread.join(60)
        return self.served, self.lost
