"""A stand-in for DynamoDB, S3, SQS and KMS on this machine: moto's server, made atomic.

  aws-stand-in.py --announce FILE [--port N] [--until-stdin-ends]

Writes its URL to FILE once it answers. State is in memory and ends with it.

Where moto differs from AWS and it matters here:
- moto checks a condition and then writes, with other requests in between; and a transaction that fails puts back a copy of the whole table,
  undoing what others wrote meanwhile. Here every call of a service runs alone, so that conditions and transactions hold as they do on AWS.
- moto copies a table item by item for each transaction. Here the copy is of references, which is as good, since items are replaced, not changed.
- moto takes no client request tokens: a transaction that is sent twice is done twice. Hearth's own marker of each write covers that.
- moto names the answer to CompleteMultipartUpload differently, which the SDK does not take.
- Signatures and permissions are not checked, nothing is throttled, and a receive without a wait always finds what is there.
"""

import argparse
import copy
import os
import sys
import threading
import time
from collections import defaultdict

from moto.dynamodb.models import DynamoDBBackend
from moto.dynamodb.models.dynamo_type import DynamoType
from moto.dynamodb.models.table import Table
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.responses import S3Response
from moto.sqs.models import SQSBackend
from werkzeug.serving import WSGIRequestHandler, make_server


def alone(lock, function):
    def run(*args, **kwargs):
        with lock:
            return function(*args, **kwargs)

    return run


def snapshot(self, _memo):
    table = copy.copy(self)
    table.items = defaultdict(dict, {key: dict(items) for key, items in self.items.items()})
    return table


def make_dynamodb_atomic():
    lock = threading.RLock()
    update = DynamoDBBackend.update_item

    def update_a_copy(self, table_name, key, *args, **kwargs):
        table = self.get_table(table_name)
        rows = table.items.get(DynamoType(key[table.hash_key_attr]), {})
        sort = DynamoType(key[table.range_key_attr])
        if sort in rows:
            rows[sort] = copy.deepcopy(rows[sort])
        return update(self, table_name, key, *args, **kwargs)

    Table.__deepcopy__ = snapshot
    DynamoDBBackend.update_item = update_a_copy
    for name in ("put_item", "get_item", "query", "scan", "update_item", "delete_item", "transact_write_items"):
        setattr(DynamoDBBackend, name, alone(lock, getattr(DynamoDBBackend, name)))


def make_s3_atomic():
    post = S3Response._key_response_post

    def as_aws_names_it(self, *args, **kwargs):
        status, headers, body = post(self, *args, **kwargs)
        if isinstance(body, bytes):
            body = body.decode()
        body = body.replace("CompleteMultipartUploadResponse", "CompleteMultipartUploadResult")
        return status, {name: value for name, value in headers.items() if name.lower() != "content-length"}, body

    S3Response._key_response_post = as_aws_names_it
    S3Response._key_response = alone(threading.RLock(), S3Response._key_response)


def make_sqs_atomic():
    lock = threading.RLock()
    receive = SQSBackend.receive_message

    def receive_alone(self, queue_name, count, wait_seconds_timeout, visibility_timeout, message_attribute_names=None):
        until = time.monotonic() + (wait_seconds_timeout or 0)
        while True:
            with lock:
                found = receive(self, queue_name, count, 0, visibility_timeout, message_attribute_names)
            if found or time.monotonic() >= until:
                return found
            time.sleep(0.05)

    SQSBackend.receive_message = receive_alone
    for name in ("delete_message", "change_message_visibility", "send_message"):
        setattr(SQSBackend, name, alone(lock, getattr(SQSBackend, name)))


class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_request(self, *_args, **_kwargs):
        pass


def end_with_stdin():
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(0)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--announce", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--until-stdin-ends", action="store_true")
    args = parser.parse_args()
    make_dynamodb_atomic()
    make_s3_atomic()
    make_sqs_atomic()
    if args.until_stdin_ends:
        threading.Thread(target=end_with_stdin, daemon=True).start()
    application = DomainDispatcherApplication(create_backend_app)
    server = make_server(args.host, args.port, application, threaded=True, request_handler=Quiet)
    aside = args.announce + ".new"
    with open(aside, "w", encoding="utf-8") as file:
        file.write(f"http://{args.host}:{server.server_port}")
    os.rename(aside, args.announce)
    server.serve_forever()


main()
