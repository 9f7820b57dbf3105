"""Prints a bill of materials (CycloneDX 1.5, JSON) of the hearth binary: every crate that is linked into it, with version, licence, checksum
and who depends on whom, from `cargo metadata` and the lock file. Test and build dependencies are left out, since they are not in the binary.

  sbom.py --arch x86_64|aarch64
"""

import argparse
import json
import subprocess
import tomllib
import uuid

BINARY = "hearth-cli"


def metadata(arch):
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", f"{arch}-unknown-linux-gnu"]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def linked(nodes, root):
    """Ids of what is linked into the binary: reached through dependencies of the normal kind."""
    seen, left = {root}, [root]
    while left:
        for dependency in nodes[left.pop()]["deps"]:
            is_linked = any(kind["kind"] is None for kind in dependency["dep_kinds"])
            if is_linked and dependency["pkg"] not in seen:
                seen.add(dependency["pkg"])
                left.append(dependency["pkg"])
    return seen


def component(package, checksums):
    name, version = package["name"], package["version"]
    entry = {"type": "library", "bom-ref": f"pkg:cargo/{name}@{version}", "name": name, "version": version}
    entry["purl"] = entry["bom-ref"]
    if package.get("license"):
        entry["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
    if checksums.get((name, version)):
        entry["hashes"] = [{"alg": "SHA-256", "content": checksums[name, version]}]
    return entry


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", required=True)
    found = metadata(parser.parse_args().arch)
    packages = {package["id"]: package for package in found["packages"]}
    nodes = {node["id"]: node for node in found["resolve"]["nodes"]}
    root = next(package["id"] for package in found["packages"] if package["name"] == BINARY)
    with open("Cargo.lock", "rb") as file:
        locked = tomllib.load(file)["package"]
    checksums = {(package["name"], package["version"]): package.get("checksum") for package in locked}
    ids = sorted(linked(nodes, root), key=lambda i: (packages[i]["name"], packages[i]["version"]))
    components = {i: component(packages[i], checksums) for i in ids}
    application = {**components.pop(root), "type": "application", "name": "hearth"}
    dependencies = [
        {
            "ref": f"pkg:cargo/{packages[i]['name']}@{packages[i]['version']}",
            "dependsOn": sorted({components[d["pkg"]]["bom-ref"] for d in nodes[i]["deps"] if d["pkg"] in components}),
        }
        for i in ids
    ]
    # The same content has the same number, so that two builds of one commit are equal.
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(sorted(c["bom-ref"] for c in components.values())))
    bom = {"bomFormat": "CycloneDX", "specVersion": "1.5", "serialNumber": f"urn:uuid:{serial}", "version": 1}
    bom["metadata"] = {"component": application}
    bom["components"] = list(components.values())
    bom["dependencies"] = dependencies
    print(json.dumps(bom, indent=1))


main()
