#!/usr/bin/env bash
# Waits until the roll of an auto-scaling group ($GROUP in $REGION) is over, and fails when it failed or went back. Needs the AWS command line
# with the credentials that Terraform uses.
set -euo pipefail

DEADLINE_S=7200
SETTLE_S=15
last() {
  aws autoscaling describe-instance-refreshes --region "$REGION" --auto-scaling-group-name "$GROUP" --max-records 1 \
    --query 'InstanceRefreshes[0].[Status,PercentageComplete,StatusReason]' --output text
}

# The roll is asked for in the same apply, a moment before.
sleep "$SETTLE_S"
for ((waited = 0; waited < DEADLINE_S; waited += 15)); do
  read -r status percent reason <<<"$(last)"
  case "$status" in
    None | Successful) exit 0 ;;
    Failed | Cancelled | RollbackSuccessful | RollbackFailed)
      echo "await-roll: the roll of $GROUP ended as $status: $reason. The groups after it were not touched; docs/operations/upgrade.md" >&2
      exit 1
      ;;
  esac
  echo "await-roll: $GROUP $status ${percent}%" >&2
  sleep 15
done
echo "await-roll: the roll of $GROUP is not over after $DEADLINE_S s" >&2
exit 1
