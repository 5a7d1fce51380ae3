# shellcheck shell=bash
# Runs commands on the production host over SSH. Source this, and call find_login first.
# shellcheck disable=SC2034 # used by the scripts that source this
host_program=/opt/busco/current/scripts/host.sh

# find_login HOST KEY: sets $login to user@host, and checks that the key can log in there
find_login() {
    local host=$1 user tried=()
    key=$2
    if [[ ! -r $key ]]; then
        echo "the key $key can't be read" >&2
        exit 1
    fi
    ssh_options=(
        -i "$key" -o IdentitiesOnly=yes -o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=15
        -o ServerAliveCountMax=4 -o StrictHostKeyChecking=accept-new -o LogLevel=ERROR
    )
    local users=("${host%@*}")
    if [[ $host != *@* ]]; then users=(admin ubuntu ec2-user); fi
    for user in "${users[@]}"; do
        login=$user@${host#*@}
        if said=$(remote true 2>&1); then return; fi
        tried+=("$user")
        # only a refused login is a reason to try another user
        if [[ $said != *"Permission denied"* ]]; then break; fi
    done
    if [[ $said == *"IDENTIFICATION HAS CHANGED"* || $said == *"Host key verification failed"* ]]; then
        printf '%s\n%s\n' "$said" "the host's key has changed: another machine may be answering. If you replaced the host, forget its old key: ssh-keygen -R ${host#*@}" >&2
    elif [[ $said == *"UNPROTECTED PRIVATE KEY"* || $said == *"bad permissions"* ]]; then
        # ssh then also says "Permission denied", since it has no other key
        printf '%s\n' "others can read the key $key; fix it: chmod 600 $key" >&2
    elif [[ $said == *"Permission denied"* ]]; then
        printf '%s\n' "${host#*@} refuses the key $key for $(IFS=,; echo "${tried[*]}"); give the right key, or user@host" >&2
    else
        printf '%s\n%s\n' "$said" "${host#*@} can't be reached over SSH; check the address, and that its security group lets this machine reach port 22" >&2
    fi
    exit 1
}

# remote COMMAND: runs a shell command on the host; stdin and stdout are the caller's
# shellcheck disable=SC2029 # the command is meant to be expanded here
remote() { ssh "${ssh_options[@]}" "$login" "$@"; }

# follow PROGRAM ARGUMENT…: runs a program of the host as root, and prints its output. It continues if this is interrupted
follow() {
    local words
    trap 'echo "interrupted here; the host goes on. To see how it ends: scripts/ec2_deploy.sh --status" >&2; exit 130' INT
    words=$(printf '%q ' "$@")
    remote "sudo BUSCO_OPERATOR=$(printf %q "$(id -un)@$(hostname)") $words"
}
