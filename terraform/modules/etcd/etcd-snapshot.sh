#!/bin/bash
# Saves a snapshot of etcd, checks it, puts it into the bucket, and tells CloudWatch whether that worked and how this member does.
# Configuration is in /etc/etcd/snapshot.env.
set -euo pipefail

tls=(--cacert=/etc/etcd/tls/ca.crt --cert=/etc/etcd/tls/tls.crt --key=/etc/etcd/tls/tls.key)
file=$(mktemp -d)/snapshot.db
trap 'rm -rf "$(dirname "$file")"' EXIT

tell() { aws cloudwatch put-metric-data --namespace "Hearth/$NAME" --metric-name "$1" --value "$2" --dimensions "Member=$MEMBER"; }

healthy=0
timeout 10 etcdctl "${tls[@]}" --endpoints="https://$HOST:2379" endpoint health >/dev/null && healthy=1
tell etcd_healthy "$healthy"
[ "${1:-}" != health ] || exit 0

timeout 300 etcdctl "${tls[@]}" --endpoints="https://$HOST:2379" snapshot save "$file" >/dev/null
etcdutl snapshot status "$file" >/dev/null
timeout 300 aws s3 cp --only-show-errors "$file" "s3://$BUCKET/etcd/$MEMBER/$(date -u +%Y-%m-%dT%H-%M-%SZ).db"
tell etcd_snapshot_saved 1
