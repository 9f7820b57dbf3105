"""What the tests of the infrastructure share: the HCL as data, and the AWS provider's schema out of the npm package that publishes it.

The schema is read from the package's type declarations: each argument is a property whose comment names it as HCL does, optional ones have a
question mark, and blocks have an interface of their own. The declarations of a resource are parsed once and only when asked for.
"""

import functools
import pathlib
import re
import tarfile

import hcl2

ROOT = pathlib.Path(__file__).resolve().parents[2]
TERRAFORM = ROOT / "terraform"
TOOLS = ROOT / "target" / "terraform-test"
# What Terraform itself understands in every resource.
META = {"count", "for_each", "depends_on", "provider", "lifecycle", "provisioner", "connection", "dynamic", "timeouts"}
PROPERTY = re.compile(r"/\*\*(?P<comment>.*?)\*/\s*readonly (?P<camel>\w+)(?P<optional>\??): (?P<type>[^;]+);", re.S)


def unquoted(text):
    return text[1:-1] if isinstance(text, str) and text.startswith('"') and text.endswith('"') else text


def files():
    return sorted(TERRAFORM.rglob("*.tf"))


@functools.cache
def parsed(path):
    with open(path, encoding="utf-8") as file:
        return hcl2.load(file)


def labelled(kind):
    """(file, type, name, body) of every resource or data source."""
    for path in files():
        for entry in parsed(path).get(kind, []):
            for type_, named in entry.items():
                for name, body in named.items():
                    yield path.relative_to(ROOT), unquoted(type_), unquoted(name), body


def resource(type_, name):
    return next(body for _, t, n, body in labelled("resource") if (t, n) == (type_, name))


@functools.cache
def declarations():
    """Declarations by folder of the package, unpacked once for all that the HCL uses."""
    package = next(TOOLS.glob("cdktf-provider-aws-*.tgz"), None)
    assert package, f"the provider's schema is not in {TOOLS}: run scripts/setup.sh terraform"
    wanted = {folder(kind, type_) for kind in ("resource", "data") for _, type_, _, _ in labelled(kind) if type_.startswith("aws_")}
    found = {}
    with tarfile.open(package) as archive:
        for member in archive:
            parts = member.name.split("/")
            if len(parts) == 4 and parts[3] == "index.d.ts" and parts[2] in wanted:
                found[parts[2]] = archive.extractfile(member).read().decode()
    return found


def folder(kind, type_):
    name = type_.removeprefix("aws_").replace("_", "-")
    return f"data-aws-{name}" if kind == "data" else name


@functools.cache
def schema(kind, type_):
    """Interfaces of a resource: {interface: {argument: (is required, type)}}, and the name of the outermost one."""
    text = declarations().get(folder(kind, type_))
    if text is None:
        return None, None
    interfaces, outermost = {}, None
    for found in re.finditer(r"export interface (\w+)( extends cdktf.TerraformMetaArguments)? \{(.*?)\n\}", text, re.S):
        arguments = {}
        for prop in PROPERTY.finditer(found[3]):
            named = re.search(r"#(\w+) \w+#\w+\}", prop["comment"])
            arguments[named[1] if named else prop["camel"]] = (not prop["optional"], prop["type"])
        interfaces[found[1]] = arguments
        if found[2]:
            outermost = found[1]
    return interfaces, outermost
