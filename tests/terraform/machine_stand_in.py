"""Inside a machine of the tests: what EC2 puts at 169.254.169.254 (metadata, version 2 only), and the calls of auto scaling and CloudWatch,
which are written down.

  machine_stand_in.py FACTS CALLS

FACTS is a JSON file of metadata by path, read anew for each request; each call becomes a line of CALLS.
"""

import http.server
import json
import sys
import urllib.parse

FACTS, CALLS = sys.argv[1:]
TOKEN = "token-of-the-stand-in"
NAMESPACES = {"CompleteLifecycleAction": "http://autoscaling.amazonaws.com/doc/2011-01-01/", "PutMetricData": "http://monitoring.amazonaws.com/doc/2010-08-01/"}


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status, text=""):
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        # The SDK reads how long the token holds from the answer.
        self.send_header("x-aws-ec2-metadata-token-ttl-seconds", "60")
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self):
        asked = self.path == "/latest/api/token" and self.headers.get("x-aws-ec2-metadata-token-ttl-seconds")
        self.answer(*((200, TOKEN) if asked else (400,)))

    def do_GET(self):
        if self.headers.get("x-aws-ec2-metadata-token") != TOKEN:
            return self.answer(401)
        with open(FACTS, encoding="utf-8") as file:
            found = json.load(file).get(self.path.removeprefix("/latest/meta-data/"))
        return self.answer(404) if found is None else self.answer(200, found)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        call = dict(urllib.parse.parse_qsl(body))
        if call.get("Action") not in NAMESPACES:
            return self.answer(400, "<ErrorResponse><Error><Code>InvalidAction</Code></Error></ErrorResponse>")
        with open(CALLS, "a", encoding="utf-8") as file:
            file.write(json.dumps(call) + "\n")
        name, space = call["Action"], NAMESPACES[call["Action"]]
        self.answer(200, f'<{name}Response xmlns="{space}"><{name}Result/><ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></{name}Response>')


http.server.ThreadingHTTPServer(("169.254.169.254", 80), Handler).serve_forever()
