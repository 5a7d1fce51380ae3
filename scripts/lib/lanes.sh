# shellcheck shell=bash
# Runs commands in parallel with those of the script that sources this file.
#   lane NAME COMMAND…   starts a command in the background and captures its output
#   wait_for_lanes       prints the output and duration of each lane, in the order started; status 1 if one failed
#   timed NAME COMMAND…  runs a command in the foreground and prints its name before it, and name and duration after it.
#                        If COMMAND is a function, it must check its own commands: bash ignores `set -e` within it
# If the script exits early, its lanes receive SIGTERM and the script waits for them, so that the servers and containers
# that they started are stopped too.
lanes_folder=$(mktemp -d)
lanes=()
trap end_lanes EXIT
# run the EXIT trap when the script is interrupted
trap 'exit 130' INT
trap 'exit 143' TERM

timed() {
    local name=$1 began=$SECONDS status=0
    shift
    printf '\n==> %s\n' "$name"
    "$@" || status=$?
    printf '<== %s: %s in %s s\n' "$name" "$( ((status)) && echo FAILED || echo ok)" $((SECONDS - began))
    return "$status"
}

lane() {
    # job control gives the lane its own process group; its shell exits only after the command that it waits for
    set -m
    (
        trap 'exit 143' TERM
        timed "$@"
    ) >"$lanes_folder/${#lanes[@]}" 2>&1 </dev/null &
    set +m
    lanes+=($!)
}

wait_for_lanes() {
    local failed=0 number
    for number in "${!lanes[@]}"; do
        wait "${lanes[number]}" || failed=1
        cat "$lanes_folder/$number"
    done
    lanes=()
    return "$failed"
}

end_lanes() {
    local pid
    for pid in ${lanes[@]+"${lanes[@]}"}; do kill -TERM -- "-$pid" 2>/dev/null || true; done
    for pid in ${lanes[@]+"${lanes[@]}"}; do wait "$pid" 2>/dev/null || true; done
    rm -rf "$lanes_folder"
}
