#!/usr/bin/env bash
# The job on one machine, with one GPU or with several: plan, extract, check, train.
#
#     DATA=records STORE=store RUN=run bash one-machine.sh      # one GPU, local folders
#     GPUS=8 bash one-machine.sh                                # eight: a teacher process a GPU, a rank a GPU
#
# Needs `pip install 'teachonce[train,remote]'`; without object stores 'teachonce[train]'.
set -euo pipefail
: "${DATA:=s3://bucket/imagenet}" "${STORE:=s3://bucket/stores/resnet50}" "${RUN:=s3://bucket/runs/resnet18}"
: "${TEACHER:=timm:resnet50}" "${STUDENT:=timm:resnet18}" "${VIEWS:=10}" "${EPOCHS:=100}" "${WARMUP:=5}" "${GPUS:=1}"
: "${CACHE:=/var/tmp/teachonce}" "${CACHE_SIZE:=}" "${DEVICE:=auto}"

# Hours, money and bytes first: nothing is written.
teachonce plan --data "$DATA" --teacher "$TEACHER" --policy crop --views "$VIEWS" --devices "$GPUS" \
    --device "$DEVICE"

# May be killed at any moment; the same line again does what is missing.
teachonce extract --data "$DATA" --teacher "$TEACHER" --policy crop --views "$VIEWS" --out "$STORE" \
    --num-workers "$GPUS" --device "$DEVICE"
teachonce status "$STORE"
teachonce verify "$STORE" --data "$DATA" --device "$DEVICE"

# Data and store at an address are kept on this machine's disk; local ones are read where they are.
cache=(--device "$DEVICE")  # never empty, which is an error to older versions of bash
if [[ "$DATA$STORE" == *://* ]]; then
    cache+=(--cache "$CACHE")
    # Without a size the cache takes 50GB, or half of the free disk where that is less.
    if [[ -n "$CACHE_SIZE" ]]; then cache+=(--cache-size "$CACHE_SIZE"); fi
fi

teachonce train --data "$DATA" --student "$STUDENT" --store "$STORE" --kd-temp 1 --out "$RUN" --devices "$GPUS" \
    --epochs "$EPOCHS" --lr-batch 256 --warmup-epochs "$WARMUP" "${cache[@]}"
teachonce status "$RUN"
