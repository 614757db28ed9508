#!/usr/bin/env bash
# On AWS nothing signals a process when a spot machine is about to be taken back: the metadata service says so, two
# minutes before. This asks it every few seconds and then sends SIGTERM to the worker.
#
#     teachonce extract ... & bash aws-notice.sh $!
#
# It ends with the process that it watches over.
set -euo pipefail
: "${METADATA:=http://169.254.169.254}" "${PAUSE:=5}"
notice=$METADATA/latest/meta-data/spot/instance-action
target=${1:?the process that is to be told}

while kill -0 "$target" 2>/dev/null; do
    token=$(curl -fsS -m 2 -X PUT "$METADATA/latest/api/token" -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' || true)
    # 404 until there is a notice.
    if curl -fs -m 2 -o /dev/null -H "X-aws-ec2-metadata-token: $token" "$notice"; then
        echo "aws-notice: this machine is going to be taken back; SIGTERM to process $target" >&2
        kill -TERM "$target"
        exit 0
    fi
    sleep "$PAUSE"
done
