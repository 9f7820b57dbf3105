"""checkov finds nothing in terraform/ but what is skipped in place, with a reason."""

import json
import re
import subprocess
import unittest

import support

CHECKOV = support.TOOLS / "checkov/bin/checkov"
REASON_LETTERS_MIN = 20


class Checkov(unittest.TestCase):
    def test_nothing_fails(self):
        command = [CHECKOV, "-d", support.TERRAFORM, "--framework", "terraform", "--skip-download", "--quiet", "--compact", "-o", "json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        report = json.loads(done.stdout)
        failed = {f"{c['check_id']} {c['resource']} {c['file_path']}" for c in report.get("results", {}).get("failed_checks", [])}
        self.assertEqual(failed, set())
        self.assertEqual(report["summary"]["parsing_errors"], 0)
        self.assertGreater(report["summary"]["passed"], 300)

    def test_every_skip_has_a_reason(self):
        for path in support.files():
            for skip in re.findall(r"checkov:skip=(.*)", path.read_text()):
                self.assertRegex(skip, r"^CKV\w+:.{%d,}\.$" % REASON_LETTERS_MIN, path)


if __name__ == "__main__":
    unittest.main()
