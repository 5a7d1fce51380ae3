# shellcheck shell=bash
# Commands that run beside a script's own; to be sourced.
#   lane NAME COMMAND…   starts one in the background and keeps its output
#   wait_for_lanes       shows the output of each lane with its seconds, in the order started; status 1 if one failed
#   timed NAME COMMAND…  runs one in the foreground, between two lines that name it; the last has its seconds. A function
#                        as COMMAND must check what it runs by itself: bash ignores `set -e` within it
# When the script ends early, its lanes get SIGTERM and are waited for, so that what they started (servers, containers)
# ends with them.
lanes_folder=$(mktemp -d)
lanes=()
trap end_lanes EXIT
# an interrupted script ends by its EXIT trap
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
    # job control gives the lane a process group of its own; its shell outlives the command that it waits for
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
