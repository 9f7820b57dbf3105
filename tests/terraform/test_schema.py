"""Every resource, argument and block of terraform/ is one that the AWS provider has, and nothing that it requires is missing."""

import re
import unittest

import support


def blocks(body):
    """(name, body) of nested blocks, dynamic ones by what they make."""
    for key, value in body.items():
        if key == "dynamic":
            for entry in value:
                for name, inner in entry.items():
                    for content in inner["content"]:
                        yield support.unquoted(name), content
        elif key not in support.META and isinstance(value, list):
            for inner in value:
                if isinstance(inner, dict) and inner.get("__is_block__"):
                    yield key, inner


def arguments(body):
    nested = {name for name, _ in blocks(body)}
    return {key for key in body if not key.startswith("__") and key not in support.META and key not in nested}


def problems(interfaces, interface, body, where):
    known = interfaces[interface]
    nested = list(blocks(body))
    given = arguments(body) | {name for name, _ in nested}
    for name in sorted(given - set(known)):
        yield f"{where}: no argument or block {name} in {interface}"
    for name, (is_required, _) in known.items():
        if is_required and name not in given:
            yield f"{where}: {name} is missing, {interface} requires it"
    for name, inner in nested:
        if name not in known:
            continue
        of_block = next((word for word in re.findall(r"\w+", known[name][1]) if word in interfaces), None)
        if of_block is None:
            yield f"{where}.{name}: is an argument, not a block"
        else:
            yield from problems(interfaces, of_block, inner, f"{where}.{name}")
    for name in arguments(body):
        has_interface = any(word in interfaces for word in re.findall(r"\w+", known.get(name, ("", ""))[1]))
        if has_interface:
            yield f"{where}: {name} is a block, not an argument"


def found_in(kind, type_, body, where):
    interfaces, outermost = support.schema(kind, type_)
    if interfaces is None:
        return [f"{where}: the provider has no {kind} {type_}"]
    return list(problems(interfaces, outermost, body, where))


class Schema(unittest.TestCase):
    def test_the_provider_knows_all_of_it(self):
        checked, wrong = 0, []
        for kind in ("resource", "data"):
            for path, type_, name, body in support.labelled(kind):
                if type_.startswith("aws_"):
                    wrong += found_in(kind, type_, body, f"{path}: {type_}.{name}")
                    checked += 1
        self.assertEqual(wrong, [])
        self.assertGreater(checked, 60)

    def test_the_check_sees_what_is_wrong(self):
        queue = support.resource("aws_sqs_queue", "builds")
        self.assertEqual(found_in("resource", "aws_sqs_queue", queue, "q"), [])
        self.assertIn("no argument or block colour", found_in("resource", "aws_sqs_queue", {**queue, "colour": "red"}, "q")[0])
        table = support.resource("aws_dynamodb_table", "records")
        nameless = {key: value for key, value in table.items() if key != "name"}
        self.assertIn("name is missing", found_in("resource", "aws_dynamodb_table", nameless, "t")[0])
        self.assertIn("is a block", found_in("resource", "aws_dynamodb_table", {**table, "ttl": '"ttl"'}, "t")[0])
        block = [{"kind": "S", "__is_block__": True}]
        self.assertEqual(len(found_in("resource", "aws_dynamodb_table", {**table, "attribute": block}, "t")), 3)
        self.assertIn("no resource", found_in("resource", "aws_dynamo_table", table, "t")[0])


if __name__ == "__main__":
    unittest.main()
