#!/usr/bin/env bash
# Training on several machines with several GPUs each; one call of this script on every machine. With Slurm:
#
#     sbatch --nodes=2 --ntasks-per-node=1 --gres=gpu:8 --cpus-per-task=64 --signal=TERM@60 \
#         --wrap 'srun --cpus-per-task "$SLURM_CPUS_PER_TASK" bash torchrun-train.sh'
#
# Without: the same line on each machine, with HEAD the first one's address and NODES their number. Trainings that run at
# once and share that machine need a PORT each.
#
# Needs `pip install 'teachonce[train,remote]'` on each machine; without object stores 'teachonce[train]'.
#
# A checkpoint is saved every 15 minutes and on SIGTERM, within an epoch too; the same call again resumes there. RUN is
# on storage that all machines reach; each machine caches the data once for all of its ranks.
set -euo pipefail
: "${DATA:=s3://bucket/imagenet}" "${STORE:=s3://bucket/stores/resnet50}" "${RUN:=s3://bucket/runs/resnet18}"
: "${STUDENT:=timm:resnet18}" "${GPUS:=8}" "${BATCH:=128}" "${EPOCHS:=100}" "${WARMUP:=5}" "${CACHE:=/var/tmp/teachonce}" "${CACHE_SIZE:=}"
: "${NODES:=${SLURM_NNODES:-1}}" "${PORT:=$((29400 + ${SLURM_JOB_ID:-0} % 1000))}" "${DEVICE:=cuda}" "${MORE:=}"
if [[ -z "${HEAD:-}" ]]; then
    HEAD=localhost
    if [[ -n "${SLURM_JOB_NODELIST:-}" ]]; then HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1); fi
fi

# Data and store at an address are kept on this machine's disk; local ones are read where they are.
cache=(--device "$DEVICE")  # never empty, which is an error to older versions of bash
if [[ "$DATA$STORE" == *://* ]]; then
    cache+=(--cache "$CACHE")
    # Without a size the cache takes 50GB, or half of the free disk where that is less.
    if [[ -n "$CACHE_SIZE" ]]; then cache+=(--cache-size "$CACHE_SIZE"); fi
fi

# torchrun does not restart ranks here: who sees the training end unfinished starts this script again.
# shellcheck disable=SC2086  # MORE holds several words
exec torchrun --nnodes "$NODES" --nproc-per-node "$GPUS" --rdzv-id "teachonce-${SLURM_JOB_ID:-$PORT}" --rdzv-backend c10d \
    --rdzv-endpoint "$HEAD:$PORT" --max-restarts 0 --no-python \
    teachonce train --data "$DATA" --student "$STUDENT" --store "$STORE" --kd-temp 1 --out "$RUN" --batch-size "$BATCH" \
    --epochs "$EPOCHS" --lr-batch 256 --warmup-epochs "$WARMUP" "${cache[@]}" --checkpoint-minutes 15 --grace-seconds 25 $MORE
