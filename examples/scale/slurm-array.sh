#!/usr/bin/env bash
# A Slurm job array: each task is one worker with one GPU, and any of them may be lost.
#
#     mkdir -p logs && sbatch slurm-array.sh
#     sbatch --array=0-7 --export=ALL,STORE=/shared/store slurm-array.sh
#
# Needs `pip install 'teachonce[torch,remote]'` in the environment of the nodes; without object stores 'teachonce[torch]'.
#
# A task does its own part of the work, and then what is missing of the others' parts; so the array is done although
# some tasks never started. After a time limit the same sbatch again does what is missing.
#SBATCH --job-name=teachonce-extract
#SBATCH --array=0-63
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:1
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%A-%a.log
# A minute before the time limit the worker gets SIGTERM, as it does when a task is preempted.
#SBATCH --signal=TERM@60
set -euo pipefail
: "${DATA:=s3://bucket/imagenet}" "${STORE:=s3://bucket/stores/resnet50}"
: "${TEACHER:=timm:resnet50}" "${VIEWS:=10}"

# --worker auto reads SLURM_ARRAY_TASK_ID; srun makes the worker a step, which is what Slurm signals. Since Slurm 22.05 a
# step has one core unless srun is told, too.
srun --cpus-per-task "${SLURM_CPUS_PER_TASK:-8}" teachonce extract --data "$DATA" --teacher "$TEACHER" --policy crop --views "$VIEWS" --out "$STORE" \
    --worker auto --decode-threads "${SLURM_CPUS_PER_TASK:-8}" --grace-seconds 25
