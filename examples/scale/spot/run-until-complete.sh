#!/usr/bin/env bash
# Runs a command again until it succeeds: for spot machines, and for whatever ends a process now and then.
#
#     bash run-until-complete.sh \
#         teachonce extract --data s3://bucket/imagenet --teacher timm:resnet50 --out s3://bucket/stores/resnet50
#
# It gives up where the command is wrong (exit code 2), and after ATTEMPTS failures in a row of which none took LONG
# seconds. SIGTERM and Ctrl-C reach the command as SIGTERM, and end the script with the command's own exit code; during
# a pause they end it with 143.
set -uo pipefail
: "${ATTEMPTS:=5}" "${LONG:=300}" "${PAUSE:=5}"
child=0 stopping=0
# shellcheck disable=SC2317  # reached by the trap
pass_on() {
    stopping=1
    # Not SIGINT, which a shell has its background processes ignore.
    if [[ $child -ne 0 ]]; then kill -TERM "$child" 2>/dev/null; fi
}
trap pass_on TERM INT

failures=0
while true; do
    start=$SECONDS
    "$@" &
    child=$!
    # A signal between the two lines above found no child to pass it to.
    if ((stopping)); then kill -TERM "$child" 2>/dev/null; fi
    # A trap interrupts wait; the command itself has to end.
    while true; do
        wait "$child"
        code=$?
        if ! kill -0 "$child" 2>/dev/null; then break; fi
    done
    child=0
    if [[ $code -eq 0 || $code -eq 2 || $stopping -eq 1 ]]; then exit "$code"; fi
    if ((SECONDS - start >= LONG)); then failures=0; fi
    failures=$((failures + 1))
    if ((failures >= ATTEMPTS)); then
        echo "run-until-complete: gave up after $failures failures, the last with exit code $code" >&2
        exit "$code"
    fi
    echo "run-until-complete: exit code $code; again in $PAUSE s" >&2
    # In the background, since a trap runs only after a command in the foreground has ended.
    sleep "$PAUSE" &
    pause=$!
    wait "$pause"
    if ((stopping)); then
        kill -TERM "$pause" 2>/dev/null
        exit 143
    fi
done
