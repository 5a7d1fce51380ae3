# shellcheck shell=bash
# Runs commands on the production host over SSH. Source this from the repository's root, create the folder $scratch, and
# call find_login first.
# shellcheck disable=SC2034 # used by the scripts that source this
host_program=/opt/busco/current/scripts/host.sh
# minutes for which a temporary key can log in; a connection that exists then goes on
key_minutes=120

# is_instance HOST: whether HOST is, or ends in, the id of an EC2 instance, which is reached through Session Manager
is_instance() { [[ ${1#*@} =~ ^i-[0-9a-f]{8,17}$ ]]; }

# find_login HOST [KEY]: sets $login to user@host, and checks that the key can log in there. Without a key, which only an
# instance id may lack, it makes a temporary one
find_login() {
    local host=$1 user tried=() address=${1#*@} known=StrictHostKeyChecking=accept-new users
    key=${2-}
    if [[ -n $key && ! -r $key ]]; then
        echo "the key $key can't be read" >&2
        exit 1
    fi
    users=("${host%@*}")
    if [[ $host != *@* ]]; then users=(admin ubuntu ec2-user); fi
    ssh_options=(
        -o IdentitiesOnly=yes -o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=15 -o ServerAliveCountMax=4
        -o LogLevel=ERROR
    )
    if is_instance "$host"; then
        if ! command -v session-manager-plugin >/dev/null; then
            echo "$address is reached through Session Manager, which needs the AWS CLI's plugin: https://docs.aws.amazon.com/systems-manager/latest/userguide/session-manager-working-with-install-plugin.html" >&2
            exit 1
        fi
        ssh_options+=(-o "ProxyCommand=aws ssm start-session --target ${address} --document-name AWS-StartSSHSession --parameters portNumber=%p")
        if [[ -z $key ]]; then
            temporary_key "$address" "${users[@]}"
            ssh_options+=(-o "UserKnownHostsFile=${scratch:?}/known_hosts")
            known=StrictHostKeyChecking=yes
        fi
    fi
    ssh_options+=(-i "$key" -o "$known")
    for user in "${users[@]}"; do
        login=$user@$address
        if said=$(remote true 2>&1); then return; fi
        tried+=("$user")
        # only a refused login is a reason to try another user
        if [[ $said != *"Permission denied"* ]]; then break; fi
    done
    if [[ $said == *"IDENTIFICATION HAS CHANGED"* || $said == *"Host key verification failed"* ]]; then
        printf '%s\n%s\n' "$said" "the host's key has changed: another machine may be answering. If you replaced the host, forget its old key: ssh-keygen -R $address" >&2
    elif [[ $said == *"UNPROTECTED PRIVATE KEY"* || $said == *"bad permissions"* ]]; then
        # ssh then also says "Permission denied", since it has no other key
        printf '%s\n' "others can read the key $key; fix it: chmod 600 $key" >&2
    elif [[ $said == *"Permission denied"* ]]; then
        printf '%s\n' "$address refuses the key $key for $(IFS=,; echo "${tried[*]}"); give the right key, or user@host" >&2
    elif is_instance "$host"; then
        printf '%s\n%s\n' "$said" "Session Manager can't reach $address; check that its agent is online: aws ssm describe-instance-information" >&2
    else
        printf '%s\n%s\n' "$said" "$address can't be reached over SSH; check the address, and that its security group lets this machine reach port 22" >&2
    fi
    exit 1
}

# temporary_key INSTANCE USER…: makes a key in $scratch, lets it log in on the instance as the first of these users that
# exists there, by a command that Systems Manager runs as root, and puts the host's keys into $scratch/known_hosts. Sets
# $key, and $users to this user
temporary_key() {
    local instance=$1 command status answer
    shift
    key=$scratch/key
    ssh-keygen -q -t ed25519 -N '' -C busco-temporary -f "$key"
    {
        printf 'set -- %s "%s"' "$key_minutes" "$(<"$key.pub")"
        printf ' %q' "$@"
        printf '\n'
        cat scripts/lib/authorize_key.sh
    } | python3 -c 'import json, sys; print(json.dumps({"commands": [sys.stdin.read()]}))' >"$scratch/command.json"
    printf 'authorize a temporary key on %s\n' "$instance" >&2
    command=$(aws ssm send-command --instance-ids "$instance" --document-name AWS-RunShellScript --comment "a temporary key for SSH" \
        --parameters "file://$scratch/command.json" --query Command.CommandId --output text) || {
        echo "Systems Manager can't reach $instance; check that its agent is online (aws ssm describe-instance-information), or give the path of a key" >&2
        exit 1
    }
    for _ in $(seq 60); do
        # the invocation is not known at once
        status=$(aws ssm get-command-invocation --command-id "$command" --instance-id "$instance" --query Status --output text 2>/dev/null) || status=Pending
        case $status in Pending | InProgress | Delayed) sleep 1 ;; *) break ;; esac
    done
    answer=$(aws ssm get-command-invocation --command-id "$command" --instance-id "$instance" --query StandardOutputContent --output text)
    if [[ $status != Success || $answer != "user "* ]]; then
        printf '%s\n' "the temporary key was not authorized on $instance (status $status):" "$answer" >&2
        aws ssm get-command-invocation --command-id "$command" --instance-id "$instance" --query StandardErrorContent --output text >&2
        exit 1
    fi
    users=("$(sed -n 's/^user //p' <<<"$answer")")
    sed -n "s/^host key /$instance /p" <<<"$answer" >"$scratch/known_hosts"
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
