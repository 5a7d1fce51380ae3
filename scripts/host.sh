#!/usr/bin/env bash
# Runs on the production host, as root: deploys the release that scripts/ec2_deploy.sh has uploaded, and keeps the platform
# running. Only one deployment, backup or restore runs at a time. A command that was interrupted can be run again.
# usage: busco-host COMMAND
#   deploy FOLDER [--dry-run]          deploy the files in FOLDER; a failed health check brings the old release back
#   rollback [--release NAME] [--restore-database] [--dry-run]
#                                      deploy the previous release, or the named one; over a migration only with
#                                      --restore-database, which also restores the backup from before the migration
#   start, stop                        start or stop all services; systemd runs this (busco.service)
#   status                             print the releases, the services and the newest backup
#   renew                              renew the certificate if it is due; cron runs this
#   check                              check the certificate, the renewals, the backups and the disk, and send an alert
#                                      about what is wrong; systemd runs this daily (busco-check.timer)
#   heal                               restart services that are unhealthy; cron runs this
#   firewall [--closed]                keep containers other than Airflow's from the machine's metadata, and so from its
#                                      role; systemd runs this before Docker starts (busco-firewall.service)
set -euo pipefail
usage() { sed -n '2,19s/^# \{0,1\}//p' "$0"; }
self=$(readlink -f "$0")
cd "$(dirname "$self")/.."
# shellcheck source=scripts/lib/env.sh
. scripts/lib/env.sh
# shellcheck source=scripts/lib/host.sh
. scripts/lib/host.sh
# shellcheck source=scripts/lib/postgres.sh
. scripts/lib/postgres.sh
min_free=$((${BUSCO_MIN_FREE_GB:-5} * 1000000000))
began=$SECONDS
step() { printf '==> %s (%s s)\n' "$*" $((SECONDS - began)); }

# -- what a deployment checks ------------------------------------------------------------------------------------------

check_system() {
    local ID='' VERSION_ID='' PRETTY_NAME=''
    # shellcheck source=/dev/null
    . /etc/os-release
    case $ID-$VERSION_ID in
        debian-13 | ubuntu-24.04) packages=(docker.io ca-certificates cron curl openssl) ;;
        amzn-2023) packages=() ;;
        *) die "${PRETTY_NAME:-this system} is not supported; use Debian 13 (tested), Ubuntu 24.04 or Amazon Linux 2023" ;;
    esac
    case $ID in
        debian) packages+=(docker-cli docker-compose) ;;
        ubuntu) packages+=(docker-compose-v2) ;;
    esac
}

has_docker() { docker compose version >/dev/null 2>&1 && type crontab curl openssl >/dev/null 2>&1; }

install_packages() {
    if ! has_docker; then install_docker; fi
    # an automatic upgrade of containerd or Docker would stop all services
    if type apt-mark >/dev/null 2>&1; then
        # dpkg-query also lists packages that are not installed, and fails if it doesn't know one of them
        { dpkg-query --show --showformat '${db:Status-Abbrev} ${Package}\n' docker.io docker-ce containerd containerd.io runc 2>/dev/null || true; } |
            awk '$1 ~ /^.i/ { print $2 }' | xargs --no-run-if-empty apt-mark hold >/dev/null ||
            say "Docker's packages could not be held; an automatic upgrade may restart all services"
    fi
    systemctl enable --quiet docker || true
}

install_docker() {
    if ((${#packages[@]} == 0)); then
        die "Docker, Compose, cron, curl or openssl is missing; install them as docs/deploying.md describes for this system"
    fi
    step "install ${packages[*]}"
    # another program, such as the first boot's updates, may be using apt
    export DEBIAN_FRONTEND=noninteractive
    apt-get -o DPkg::Lock::Timeout=300 -qq update
    apt-get -o DPkg::Lock::Timeout=300 -qq install --yes --no-install-recommends "${packages[@]}" >/dev/null
    systemctl enable --now docker cron >/dev/null 2>&1
    has_docker || die "Docker Compose can't be run; see: docker compose version"
}

check_disk() {
    local free folder
    folder=$(docker info --format '{{.DockerRootDir}}')
    free=$(df --output=avail --block-size=1 "$folder" | tail -n 1)
    if ((free < min_free)); then
        docker system df >&2 || true
        die "only $((free / 1000000)) MB are free in $folder, but a deployment needs $((min_free / 1000000)) MB; enlarge the disk, or delete what is not needed (docker system df)"
    fi
}

# vpc_ranges: the VPC's IPv4 ranges; if there is no instance metadata, the networks to which this machine is attached
vpc_ranges() {
    local imds=http://169.254.169.254/latest token mac
    token=$(curl -fsS --noproxy '*' --max-time 2 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$imds/api/token" 2>/dev/null) || token=
    if [[ -n $token ]]; then
        mac=$(curl -fsS --noproxy '*' --max-time 5 -H "X-aws-ec2-metadata-token: $token" "$imds/meta-data/mac") || return 1
        curl -fsS --noproxy '*' --max-time 5 -H "X-aws-ec2-metadata-token: $token" \
            "$imds/meta-data/network/interfaces/macs/$mac/vpc-ipv4-cidr-blocks" || return 1
        echo
    else
        ip -4 -o route show scope link | awk '$3 !~ /^(docker|br-|veth)/ && $1 ~ /\// { print $1 }'
    fi
}

# docker_ranges: `NETWORK RANGE` for each network of Docker on this machine
docker_ranges() {
    # shellcheck disable=SC2016 # the dollar signs are Docker's
    docker network ls --filter driver=bridge --quiet | xargs --no-run-if-empty docker network inspect \
        --format '{{$n := .Name}}{{range .IPAM.Config}}{{$n}} {{.Subnet}}{{"\n"}}{{end}}' | grep -F . || true
}

check_networks() {
    local vpc ranges network range
    ranges=$(vpc_ranges) && [[ -n $ranges ]] || die "the VPC's address ranges can't be read from the instance metadata"
    for vpc in $ranges; do
        while read -r network range; do
            if overlap "$vpc" "$range"; then
                die "Docker's network $network ($range) overlaps the VPC's range $vpc, so the database may be unreachable" \
                    "choose other ranges in /etc/docker/daemon.json (default-address-pools, bip), restart Docker, and remove the network"
            fi
        done < <(docker_ranges)
    done
}

# check_settings STATE [OPTION…]: runs `busco doctor` in a container of the worker, which has all settings. The broker's
# workers may not run yet. In a database of this release, the connections must be readable with the given key
check_settings() {
    local report skipped=(--skip broker "${@:2}")
    if [[ $1 != current ]]; then skipped+=(--skip database); fi
    if ! report=$(compose run --rm --no-deps -T airflow-worker busco doctor "${skipped[@]}" 2>&1); then
        die "$report" "the settings are not right; fix .env, or the resources that it names, and deploy again"
    fi
}

# -- starting a release ------------------------------------------------------------------------------------------------

# network_id: the id of Airflow's network; nothing if it does not exist
network_id() { timeout 20 docker network ls --no-trunc --quiet --filter "name=^$(project)_default\$"; }

# firewall [--closed]: lets only containers in Airflow's network reach the instance metadata, from which they get the
# credentials of the machine's role. Docker creates its chain DOCKER-USER if it is missing, never changes it, and applies
# it first (its documentation, "Packet filtering and firewalls"). With --closed, which does not need Docker, or before the
# network exists, nobody gets through. If Docker doesn't answer, the present rules stay.
firewall() {
    local network='' allowed=''
    type iptables-restore >/dev/null 2>&1 || { say "iptables is missing, so all containers can reach the machine's role" >&2; return 1; }
    if [[ ${1:-} != --closed ]]; then network=$(network_id) || return 1; fi
    if [[ -n $network ]]; then allowed="-A BUSCO-METADATA -i br-${network:0:12} -j RETURN"; fi
    iptables --wait 10 -N DOCKER-USER 2>/dev/null || true
    # one transaction, so that no moment is without the rules
    iptables-restore --wait 10 --noflush <<RULES || return 1
*filter
:BUSCO-METADATA - [0:0]
$allowed
-A BUSCO-METADATA -j REJECT --reject-with icmp-port-unreachable
COMMIT
RULES
    has_firewall || iptables --wait 10 -I DOCKER-USER -d 169.254.169.254/32 -j BUSCO-METADATA
}

has_firewall() { iptables --wait 10 -C DOCKER-USER -d 169.254.169.254/32 -j BUSCO-METADATA 2>/dev/null; }

# open_firewall: creates Airflow's network if it is missing, and lets its containers reach the machine's role. Whatever
# uses the role in a container comes after this
open_firewall() {
    if [[ -z $(network_id) ]]; then compose up --no-start --no-deps --no-recreate airflow-scheduler >/dev/null 2>&1 || true; fi
    firewall || die "the rules for the instance metadata can't be set; see: iptables -S DOCKER-USER"
}

# changed_services: the services of the release in the working directory that are not running as it describes them
changed_services() {
    local service hash
    declare -A running=()
    while read -r service hash _; do running[$service]=$hash; done < <(
        containers --all --format '{{.Label "com.docker.compose.service"}} {{.Label "com.docker.compose.config-hash"}} {{.State}}' |
            awk '$3 == "running" || $1 == "airflow-init"'
    )
    while read -r service hash; do
        if [[ ${running[$service]:-} != "$hash" ]]; then echo "$service"; fi
    done < <(compose config --hash '*' | sort)
}

# up SECONDS SERVICE…: starts services of the release in the working directory, and waits until they are healthy
up() {
    local limit=$1 printed
    shift
    if ! printed=$(compose up --detach --no-deps --wait --wait-timeout "$limit" "$@" 2>&1); then
        printf '%s\n' "$printed" >&2
        return 1
    fi
}

# own_services: the services that only the operator's override.yml has
own_services() {
    comm -23 <(compose config --services | sort) <(
        docker compose --project-directory "$PWD" --file docker-compose.prod.yml config --services | sort
    )
}

# up_needed: starts what the checks may need, such as the operator's own services, the broker, and what answers meanwhile.
# Those that exist already are not replaced: a release does that later. If one of them is broken, this goes on, since the
# release may be its correction
up_needed() {
    local own
    mapfile -t own < <(own_services)
    up 240 --no-recreate redis letsencrypt nginx-proxy ${own[@]+"${own[@]}"} || true
}

# run_init: migrates the database, and sets up roles and the admin
run_init() {
    local before container status printed
    before=$(compose ps --all --quiet airflow-init)
    if ! printed=$(compose up --detach --no-deps --force-recreate airflow-init 2>&1); then
        printf '%s\n' "$printed" >&2
        return 1
    fi
    container=$(compose ps --all --quiet airflow-init)
    if [[ -z $container || $container == "$before" ]]; then
        printf 'airflow-init was not started\n%s\n' "$printed" >&2
        return 1
    fi
    status=$(timeout "${BUSCO_MIGRATION_SECONDS:-900}" docker wait "$container") || {
        docker kill "$container" >/dev/null 2>&1 || true
        echo "airflow-init has not ended within ${BUSCO_MIGRATION_SECONDS:-900} s" >&2
        return 1
    }
    if [[ $status != 0 ]]; then
        docker logs --tail 40 "$container" >&2
        return 1
    fi
}

# start_services: brings every service to the release in the working directory. One that has not changed keeps running,
# and one that has is replaced alone, so that the others keep working. The worker is the last, because it finishes its
# tasks before it stops.
start_services() {
    local service own known
    mapfile -t own < <(own_services)
    up 240 redis letsencrypt nginx-proxy ${own[@]+"${own[@]}"} || return 1
    step "set up the database (airflow-init)"
    run_init || return 1
    known=$(compose config --services)
    for service in airflow-webserver airflow-scheduler airflow-triggerer events metrics flower; do
        # an older release may lack it
        grep -qx "$service" <<<"$known" || continue
        step "start $service"
        up 240 "$service" || return 1
    done
    step "start airflow-worker, after its running tasks have ended"
    up 900 airflow-worker || return 1
    # containers of services that this release no longer has
    compose up --detach --no-recreate --no-deps --remove-orphans redis >/dev/null 2>&1
}

# check_health: whether Airflow answers through nginx, and all its parts are healthy
check_health() {
    local domain answer='' deadline=$((SECONDS + 120))
    domain=$(env_get BUSCO_DOMAIN)
    while ((SECONDS < deadline)); do
        answer=$(curl -fsS --insecure --noproxy '*' --max-time 10 --resolve "$domain:443:127.0.0.1" "https://$domain/health" 2>&1) &&
            (($(grep -o '"status": *"healthy"' <<<"$answer" | wc -l) >= 3)) && return
        sleep 2
    done
    printf 'https://%s/health answers: %s\n' "$domain" "$answer" >&2
    return 1
}

# database_state: empty, current, behind or ahead (src/busco/orchestration/revision.py)
database_state() {
    local found
    found=$(python_in_airflow -m busco.orchestration.revision) || die "Airflow's database can't be used; see the message above"
    printf '%s' "${found##*$'\n'}"
}

show_unhealthy() {
    containers --all --format '{{.Names}}: {{.Status}}' | grep -vF -e '(healthy)' -e 'Exited (0)' >&2 || true
    local name
    for name in $(containers --all --filter health=unhealthy --format '{{.Names}}'); do
        printf -- '-- the end of the log of %s\n' "$name" >&2
        docker logs --tail 20 "$name" >&2 2>&1 || true
    done
}

# stop_airflow: stops the services that use the database. From here on, a script that fails starts the current release
# again (on_exit)
stop_airflow() {
    stopped=1
    compose stop "${airflow_services[@]}" >/dev/null 2>&1
}

stopped=
# the backup of the present database, once an older one has been restored over it
present_backup=

on_exit() {
    local status=$?
    if ((status)) && [[ -n $stopped && -n $(linked current) ]]; then
        step "start $(linked current) again" || true
        cd -P "$busco/current"
        if [[ -n $present_backup ]]; then scripts/restore.sh --yes --no-start "$present_backup" || true; fi
        scripts/host.sh start || say "it did not start; see docs/deploying.md, \"If a deployment fails\"" || true
    fi
    exit "$status"
}
trap on_exit EXIT
signals_are_failures

# restore_for_this_release [BACKUP]: if a newer release has migrated the database, restores the backup from before that
# for the release in the working directory. Without a BACKUP that was made just before the migration, backs up the
# present database first, since people may have changed it since. On the way back from such a restore, restores that
restore_for_this_release() {
    local backup=${1:-} state
    state=$(database_state)
    if [[ $state == behind && -n $present_backup ]]; then
        stop_airflow
        step "restore the database from $present_backup"
        scripts/restore.sh --yes --no-start "$present_backup"
        present_backup=
        return
    fi
    if [[ $state != ahead ]]; then return; fi
    stop_airflow
    if [[ -z $backup ]]; then
        backup=$(scripts/restore.sh --newest "$(python_in_airflow -m busco.orchestration.revision --newest)")
        if [[ -z $backup ]]; then
            die "the database was migrated, and there is no backup from before that for $(basename "$PWD")"
        fi
        step "back up the present database"
        present_backup=$(scripts/backup.sh --quiet)
        say "    $present_backup"
    fi
    step "restore the database from $backup"
    scripts/restore.sh --yes --no-start "$backup"
}

# activate BACKUP: starts the release in the working directory and makes it the current one; if it does not get healthy,
# brings the current one back, with a backup if the database was migrated
activate() {
    local backup=$1 release old
    release=$(basename "$PWD")
    old=$(linked current)
    if start_services && check_health; then
        if [[ $old != "$release" ]]; then
            if [[ -n $old ]]; then switch_link previous "$old"; fi
            switch_link current "$release"
        fi
        # prune keeps the newest of these
        touch .healthy
        stopped=
        present_backup=
        return
    fi
    show_unhealthy
    if [[ -z $old || $old == "$release" ]]; then
        die "the release $release did not become healthy, and there is no other to go back to; fix the cause, and deploy again"
    fi
    step "the release did not become healthy: back to $old"
    cd "$busco/releases/$old"
    restore_for_this_release "$backup"
    if start_services && check_health; then
        stopped=
        die "the release $release did not become healthy; $old runs again. The reason is above"
    fi
    show_unhealthy
    die "the release $release did not become healthy, and neither did $old; see docs/deploying.md, \"If a deployment fails\""
}

# migrate_and_activate STATE: activates the release in the working directory, after a backup and with everything stopped
# if it migrates the database
migrate_and_activate() {
    local backup=''
    case $1 in
        ahead)
            die "a newer Airflow has migrated the database, and this release can't run on it" \
                "to go back over the migration, restore the backup that was made before it: ec2_deploy.sh --rollback --restore-database" ;;
        behind)
            step "stop Airflow, because the database must be migrated"
            stop_airflow
            step "back up the database"
            backup=$(scripts/backup.sh --quiet)
            say "    $backup" ;;
    esac
    activate "$backup"
}

# -- commands ----------------------------------------------------------------------------------------------------------

deploy() {
    local upload=$1 release version state
    check_system
    install_packages
    # uploads whose deployment never started
    find "$busco/uploads" -mindepth 1 -maxdepth 1 -not -path "$upload" -mmin +60 -exec rm -rf {} +
    cd "$upload"
    check_env
    version=$(env_get BUSCO_VERSION)
    release=$version-$(find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -c 1-12)
    step "release $release"
    if [[ -d $busco/releases/$release ]]; then
        rm -rf "$upload"
    else
        mkdir -p "$busco/releases"
        mv -T "$upload" "$busco/releases/$release"
    fi
    cd "$busco/releases/$release"
    # what failed deployments have left may fill the disk
    if [[ -z $dry ]]; then prune; fi
    check_disk
    check_networks
    pull
    if [[ -n $dry ]]; then
        if [[ -z $(linked current) ]]; then
            say "this is the first deployment: it would start everything"
            return
        fi
        state=$(database_state)
        say "would replace: $(changed_services | tr '\n' ' ')"
        say "the database is: $state"
        return
    fi
    if [[ $(linked current) == "$release" && -z $(changed_services) ]]; then
        step "nothing has changed"
        check_health || { show_unhealthy; die "the platform is not healthy"; }
        scripts/setup_systemd.sh >/dev/null
        return
    fi
    step "check the settings and the database from inside a container"
    open_firewall
    up_needed
    check_networks
    state=$(database_state)
    check_settings "$state"
    migrate_and_activate "$state"
    finish
}

rollback() {
    local restore=$1 target=$2 backup state newer
    if [[ -z $target ]]; then target=$(linked previous); fi
    if [[ -z $target ]]; then die "there is no previous release on this host"; fi
    if [[ ! -d $busco/releases/$target ]]; then
        die "there is no release $target on this host; it has:" "$(find "$busco/releases" -mindepth 1 -maxdepth 1 -printf '%f\n')"
    fi
    cd "$busco/releases/$target"
    step "release $target"
    pull
    if [[ -z $dry ]]; then
        open_firewall
        up_needed
    fi
    state=$(database_state)
    if [[ $state == ahead ]]; then
        backup=$(scripts/restore.sh --newest "$(python_in_airflow -m busco.orchestration.revision --newest)")
        if [[ -z $backup ]]; then
            die "the database was migrated since $target, and there is no backup from before that"
        fi
        say "$target can't run on the migrated database. The backup from before the migration is $backup"
        newer=$(cd -P "$busco/current" && scripts/restore.sh --newer "$backup")
        say "newer than this backup: $newer"
        if [[ -z $restore ]]; then die "to lose what is newer, and go back: ec2_deploy.sh --rollback --restore-database"; fi
    fi
    if [[ -n $dry ]]; then
        say "would replace: $(changed_services | tr '\n' ' ')"
        return
    fi
    # its keys and passwords may have been replaced since. The bucket's notification is no reason to stay on a release
    check_settings "$state" --skip queue
    restore_for_this_release
    state=$(database_state)
    migrate_and_activate "$state"
    finish
}

# pull: fetches those images of the release in the working directory that this host doesn't have; tags never change
pull() {
    local image images
    step "pull the images"
    images=$(images_of "$(basename "$PWD")") || die "the Compose files of this release can't be read: docker compose config"
    for image in $images; do
        if docker image inspect "$image" >/dev/null 2>&1; then continue; fi
        log_in
        docker pull --quiet "$image" >/dev/null ||
            die "the image $image can't be pulled; was it pushed (scripts/ecr_push.sh)?"
    done
}

finish() {
    step "install the units and cron's jobs"
    scripts/setup_systemd.sh >/dev/null
    prune
    step "healthy: https://$(env_get BUSCO_DOMAIN)"
}

# prune: removes all releases but the one in the working directory, those that are linked, and the newest five that were
# healthy; and the images that only the removed ones use
prune() {
    local name kept image images
    local -a names
    local -A keep used
    mapfile -t names < <(find "$busco/releases" -mindepth 1 -maxdepth 1 -printf '%f\n')
    for name in $(healthy_releases | head -n 5) "$(linked current)" "$(linked previous)" "$(basename "$PWD")"; do
        if [[ -n $name ]]; then keep[$name]=1; fi
    done
    for kept in "${!keep[@]}"; do
        # without this list, images of a kept release could be removed
        images=$(images_of "$kept") || return 0
        while read -r image; do used[$image]=1; done <<<"$images"
    done
    for name in "${names[@]}"; do
        if [[ -n ${keep[$name]:-} ]]; then continue; fi
        while read -r image; do
            if [[ -z ${used[$image]:-} ]]; then docker image rm "$image" >/dev/null 2>&1 || true; fi
        done < <(images_of "$name")
        rm -rf "${busco:?}/releases/$name"
    done
}

# healthy_releases: the releases that were healthy, the newest first
healthy_releases() {
    find "$busco/releases" -mindepth 2 -maxdepth 2 -name .healthy -printf '%T@ %P\n' | sort -rn | cut -d ' ' -f 2- | cut -d / -f 1
}

# images_of RELEASE: the images that a release names
images_of() { (cd "$busco/releases/$1" && compose config --images 2>/dev/null && postgres_image); }

# log_in: logs in to the registries in stdin, a line `registry user password` for each. The login is kept in memory
log_in() {
    local registry user password
    export DOCKER_CONFIG=/run/busco/docker
    install -d -m 700 /run/busco "$DOCKER_CONFIG"
    while read -r registry user password; do
        if [[ -z $registry ]]; then continue; fi
        docker login --username "$user" --password-stdin "$registry" <<<"$password" >/dev/null 2>&1 ||
            die "the login to $registry failed"
    done <<<"${logins:-}"
    logins=
}

start() {
    local state services
    cd -P "$busco/current"
    check_env
    if [[ -n ${1:-} ]]; then return; fi
    try_lock "start of the services" 1200 || die "another operation is running: $(cat "$lock_file")"
    open_firewall
    up_needed
    state=$(database_state)
    if [[ $state != current ]]; then
        die "the database is not that of this release ($state): a deployment or a restore did not end; run ec2_deploy.sh again"
    fi
    # airflow-init runs only in a deployment
    mapfile -t services < <(compose config --services | grep -vx airflow-init)
    compose up --detach --no-deps "${services[@]}"
}

# The worker first: to end its tasks, it needs the others. Something else may hold the lock, but a shutdown can't wait
stop() {
    cd -P "$busco/current"
    try_lock "stop of the services" 5 || say "another operation is running; stopping nevertheless"
    compose stop airflow-worker
    compose stop
}

status() {
    local name
    for name in current previous; do say "$name: $(linked "$name")"; done
    if [[ -z $(linked current) ]]; then return; fi
    say "releases, the newest first: $(healthy_releases | tr '\n' ' ')"
    cd -P "$busco/current"
    if [[ -e $lock_file ]] && ! (flock --nonblock 9) 9>>"$lock_file"; then say "running: $(cat "$lock_file")"; fi
    containers --all --format 'table {{.Label "com.docker.compose.service"}}\t{{.Status}}\t{{.Image}}'
    say "newest backup: $(find "$backups" -name '*.dump' -printf '%f\n' 2>/dev/null | sort | tail -n 1)"
}

renew() {
    # not all machines at once (Let's Encrypt's documentation, "Integration Guide")
    if [[ ${1:-} == --wait ]]; then sleep $((RANDOM % 3600)); fi
    cd -P "$busco/current"
    printf '%s ' "$(date -u '+%Y-%m-%d %H:%M:%S UTC')"
    if compose run --rm --no-deps -T letsencrypt renew; then
        touch "$logs/renewed"
    else
        return 1
    fi
}

check() {
    local problems='' domain age
    # during a deployment, services are stopped on purpose
    try_lock check 1800 || true
    cd -P "$busco/current"
    domain=$(env_get BUSCO_DOMAIN)
    problems+=$(deploy/aws/check_ssl.sh --connect 127.0.0.1 "$domain" 2>&1 >/dev/null || true)
    age=$((($(date +%s) - $(stat -c %Y "$logs/renewed" 2>/dev/null || stat -c %Y "$busco/current/.env")) / 3600))
    if ((age > 48)); then
        problems+=$'\n'"the last successful renewal job was $age hours ago: is cron running (systemctl status cron)? Its log is $logs/renew.log"
    fi
    if ! systemctl is-active --quiet cron 2>/dev/null && ! systemctl is-active --quiet crond 2>/dev/null; then
        problems+=$'\n'"cron is not running, so neither renewals nor backups are made: systemctl enable --now cron"
    fi
    # a new host has no backup before its first night; an unknown birth time is 0
    if (($(date +%s) - $(stat -c %W "$busco") > 129600)) && [[ -z $(find "$backups" -name '*.dump' -mmin -2160 2>/dev/null) ]]; then
        problems+=$'\n'"there is no backup of the last 36 hours; its log is $logs/backup.log"
    fi
    problems+=$'\n'$(check_disk 2>&1 || true)
    problems+=$'\n'$(check_health 2>&1 || true)
    problems+=$'\n'$(not_running)
    has_firewall || problems+=$'\n'"all containers can reach the machine's role: sudo busco-host firewall"
    problems=$(sed '/^$/d' <<<"$problems")
    if [[ -n $problems ]]; then
        alert "the platform on $domain needs attention" <<<"$problems"
        return 1
    fi
    say "all is well"
}

# not_running: a sentence for each service that should run but doesn't
not_running() {
    local service
    for service in $(compose config --services | grep -vx airflow-init); do
        if [[ -z $(containers --filter "label=com.docker.compose.service=$service" --filter status=running --quiet) ]]; then
            say "the service $service is not running; its log: sudo docker compose -p $(project) logs $service"
        fi
    done
}

# Docker restarts what exits, but not what hangs. A service gets three checks in a row before it is unhealthy, and is
# restarted at most every ten minutes. If several are unhealthy, a restart of each would not help, since what they share
# is the cause: the broker, which is then restarted, or the database or AWS, which are not ours to restart.
heal() {
    local name unhealthy
    cd -P "$busco/current"
    # a deployment or backup is at work, or the check of the minute before
    try_lock heal 0 || return 0
    # Airflow's network may have been created again
    firewall || alert_at_most_hourly "the machine's role may be open" <<<"the rules for the instance metadata can't be set; see $logs/heal.log"
    # the operator's own services are not ours to restart
    mapfile -t unhealthy < <(containers --filter health=unhealthy --format '{{.Label "com.docker.compose.service"}} {{.Names}}' |
        awk 'NR == FNR { own[$1]; next } !($1 in own)' <(own_services; echo) -)
    if ((${#unhealthy[@]} == 0)); then return; fi
    if ((${#unhealthy[@]} > 1)); then
        mapfile -t unhealthy < <(printf '%s\n' "${unhealthy[@]}" | grep '^redis ')
        if ((${#unhealthy[@]} == 0)); then
            alert_at_most_hourly "several services are unhealthy" <<<"$(containers --filter health=unhealthy --format '{{.Names}}: {{.Status}}')
they share the database and AWS: are these reachable? See: sudo busco-host status"
            return
        fi
    fi
    name=${unhealthy[0]#* }
    if (($(date +%s) - $(date --date "$(docker inspect --format '{{.State.StartedAt}}' "$name")" +%s) < 600)); then return; fi
    alert_at_most_hourly "restarting $name" <<<"$name was unhealthy. The last output of its check: $(docker inspect --format '{{with .State.Health}}{{range .Log}}{{.Output}}{{"\n"}}{{end}}{{end}}' "$name" 2>/dev/null | tail -c 500)"
    docker restart "$name" >/dev/null
}

# alert_at_most_hourly SUBJECT: sends an alert, unless one with this subject was sent within the last hour
alert_at_most_hourly() {
    local sent
    sent=/run/busco/alerted-$(tr -c 'a-z0-9\n' - <<<"$1")
    if [[ -n $(find "$sent" -mmin -60 2>/dev/null) ]]; then return; fi
    alert "$1"
    touch "$sent"
}

# detached COMMAND…: runs a command so that it continues if the connection is lost, and prints its log until it ends
detached() {
    local log pid
    install -d -m 700 "$logs" "$busco" "$busco/uploads"
    log=$logs/$1-$(date -u +%Y%m%dT%H%M%SZ)-$$.log
    : >"$log"
    BUSCO_LOG=$log setsid "$self" --detached "$@" >"$log" 2>&1 </dev/null &
    pid=$!
    tail --pid="$pid" --lines=+1 --follow "$log" 2>/dev/null || true
    wait "$pid"
}

dry=
case ${1:-} in
    -h | --help) usage; exit 0 ;;
    '') usage >&2; exit 2 ;;
esac
require_root
case $1 in
    deploy | rollback)
        logins=
        if [[ ! -t 0 ]]; then logins=$(cat); fi
        export logins
        detached "$@"
        exit ;;
    --detached) shift ;;
esac
command=$1
shift
restore=
release_name=
folder=
option=
while (($#)); do
    case $1 in
        --dry-run) dry=1 ;;
        --restore-database) restore=1 ;;
        --release) release_name=${2:?--release needs a name}; shift ;;
        --wait | --check | --closed) option=$1 ;;
        -*) usage >&2; exit 2 ;;
        *) folder=$1 ;;
    esac
    shift
done
case $command in
    deploy)
        lock "deployment of $(basename "${folder:?deploy needs a folder}")"
        deploy "$folder" ;;
    rollback)
        lock rollback
        rollback "$restore" "$release_name" ;;
    start) start "$option" ;;
    stop) stop ;;
    status) status ;;
    renew) renew "$option" ;;
    check) check ;;
    heal) heal ;;
    firewall)
        cd -P "$busco/current"
        firewall "$option" ;;
    *) usage >&2; exit 2 ;;
esac
