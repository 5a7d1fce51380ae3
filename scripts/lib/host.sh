# shellcheck shell=bash
# What the scripts that run on the production host have in common. Source this from the release's folder. Everything is
# below /opt/busco, and only root can read it:
#   releases/<version>-<hash>/   the files of a release: Compose files, .env, scripts. Five are kept
#   current, previous            links to the release that runs, and to the one before it
#   override.yml                 optional: an operator's own Compose file, which is added to each release's
# Deployments log to /var/log/busco; copies of the newest backups are in /var/backups/busco.
# shellcheck disable=SC2034 # used by the scripts that source this
busco=/opt/busco
# shellcheck disable=SC2034
logs=/var/log/busco
# shellcheck disable=SC2034
backups=/var/backups/busco
# in a folder of root's, so that no other user can hold the lock
lock_file=/run/busco/lock
# those that use Airflow's database, in the order in which they start
# shellcheck disable=SC2034
airflow_services=(airflow-webserver airflow-scheduler airflow-triggerer events airflow-worker)

say() { printf '%s\n' "$*"; }

die() {
    printf '%s\n' "$@" >&2
    exit 1
}

# signals_are_failures: gives an EXIT trap a status other than 0 after a signal, such as the one of a lost connection
signals_are_failures() {
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap '' PIPE
}

require_root() {
    if ((EUID != 0)); then die "run this as root: sudo $0"; fi
}

# compose ARGUMENT…: Docker Compose with the files of the release in the working directory
compose() {
    local file files=() logs=
    if [[ -n $(env_get CONTAINER_LOG_GROUP) ]]; then logs=docker-compose.prod.logs.yml; fi
    # an older release may lack a file that later ones have
    for file in docker-compose.prod.yml docker-compose.prod.letsencrypt.yml $logs "$busco/override.yml" docker-compose.prod.host.yml; do
        if [[ -e $file ]]; then files+=(--file "$file"); fi
    done
    docker compose --project-directory "$PWD" "${files[@]}" "$@"
}

# project: the name of the Compose project
project() {
    local name
    name=$(env_get COMPOSE_PROJECT_NAME)
    printf '%s' "${name:-busco}"
}

# containers [OPTION…]: `docker ps` for the containers of the project's services, without those of single commands
containers() {
    docker ps --filter "label=com.docker.compose.project=$(project)" --filter label=com.docker.compose.oneoff=False "$@"
}

# python_in_airflow ARGUMENT…: runs Python in a new container of this release's Airflow image, after waiting for the
# database, with the database's and the platform's settings; stdin and stdout are the caller's. The settings are the
# triggerer's, which don't include the broker: it may be down.
python_in_airflow() { compose run --rm --no-deps -T airflow-triggerer python "$@"; }

# lock WHAT: makes this the only deployment, backup, restore, start or stop on the host until the process ends. Waits for
# at most ten seconds, and then exits with status 75 after naming the process that holds the lock.
lock() {
    case $1 in
        # a start that waits for the database must not keep the deployment waiting that may correct the settings
        deployment* | rollback | restore*)
            if [[ $(systemctl is-active busco.service 2>/dev/null) == activating ]]; then systemctl stop busco.service; fi ;;
    esac
    try_lock "$1" 10 && return
    printf 'another operation is running on this host: %s\nwait until it has ended, and try again\n' \
        "$(cat "$lock_file")" >&2
    exit 75
}

# try_lock WHAT SECONDS: takes the lock if it becomes free within SECONDS. A process that the holder starts has it too
try_lock() {
    if [[ -n ${BUSCO_LOCK_HELD:-} ]]; then return; fi
    install -d -m 700 "$(dirname "$lock_file")"
    exec 9>>"$lock_file"
    flock --timeout "$2" 9 || return 1
    printf '%s, by %s, since %s (process %s)%s\n' "$1" "${BUSCO_OPERATOR:-${SUDO_USER:-root}}" \
        "$(date -u '+%Y-%m-%d %H:%M:%S UTC')" "$$" "${BUSCO_LOG:+, log $BUSCO_LOG}" >"$lock_file"
    export BUSCO_LOCK_HELD=1
}

# switch_link NAME TARGET: makes the link $busco/NAME point to a release, atomically
switch_link() {
    ln -sfn "releases/$2" "$busco/.$1.new"
    mv -T "$busco/.$1.new" "$busco/$1"
}

# linked NAME: the name of the release to which the link points, or nothing
linked() {
    local target
    if target=$(readlink "$busco/$1") && [[ -d $busco/$target ]]; then basename "$target"; fi
}

# alert SUBJECT: sends stdin to the alerts topic, also while the database is down. The text is in the system's log as well,
# in case that sending fails
alert() {
    local text
    text=$(cat)
    logger --tag busco --priority daemon.err -- "$1: $text"
    printf '%s\n%s\n' "$1" "$text"
    compose run --rm --no-deps -T --entrypoint python airflow-triggerer -m busco.orchestration.alerts "$1" <<<"$text" >/dev/null 2>&1 ||
        logger --tag busco --priority daemon.err "the alert could not be sent: $1"
}

# number ADDRESS: an IPv4 address as a number
number() {
    local a b c d
    IFS=. read -r a b c d <<<"$1"
    printf '%s' $(((a << 24) + (b << 16) + (c << 8) + d))
}

# overlap CIDR CIDR: whether two IPv4 ranges have addresses in common
overlap() {
    local bits=$((${1#*/} < ${2#*/} ? ${1#*/} : ${2#*/}))
    local mask=$(((0xffffffff << (32 - bits)) & 0xffffffff))
    ((($(number "${1%/*}") & mask) == ($(number "${2%/*}") & mask)))
}
