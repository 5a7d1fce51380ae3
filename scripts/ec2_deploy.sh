#!/usr/bin/env bash
# Deploys this checkout's release to the production host over SSH: uploads the Compose files, .env and the host's scripts
# into a folder of their own, and runs scripts/host.sh there. The images must have been pushed (scripts/ecr_push.sh). If
# the new release does not become healthy, the old one is started again. Without a change, nothing restarts. It is safe to
# interrupt: the host goes on by itself, and the next call finishes what is left.
# usage: scripts/ec2_deploy.sh [--version TAG] [--dry-run] <ec2-host> [<path-to-ssh-key.pem>]
#        scripts/ec2_deploy.sh --rollback [--release NAME] [--restore-database] [--dry-run] <ec2-host> [<path-to-ssh-key.pem>]
#        scripts/ec2_deploy.sh --status <ec2-host> [<path-to-ssh-key.pem>]
#        scripts/ec2_deploy.sh --get-env <ec2-host> [<path-to-ssh-key.pem>]
#   <ec2-host>           host or user@host; default user: admin (Debian), ubuntu or ec2-user, whichever can log in.
#                        Or the id of the EC2 instance: SSH then goes through Session Manager, and the key can be
#                        omitted: a temporary one is made, which Systems Manager authorizes for two hours
#   --version TAG        deploy images with this tag (a trial version: ecr_push.sh dev); default: the commit
#   --rollback           go back to the previous release; refused if the database was migrated since then
#   --release NAME       with --rollback: go back to this release, one of those that --status lists
#   --restore-database   with --rollback: also restore the backup that was made before the migration. First prints what
#                        is newer than that backup, and would be lost
#   --dry-run            upload, check and pull, and print what would be replaced; change nothing that runs
#   --status             print the releases, the services and the newest backup
#   --get-env            write the .env of the release that runs to .env here, where there must be none
set -euo pipefail
usage() { sed -n '2,23s/^# \{0,1\}//p' "$0"; }
version=
command=deploy
options=()
while (($#)); do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --version) version=${2:?--version needs a tag}; shift ;;
        --rollback) command=rollback ;;
        --status) command=status ;;
        --get-env) command=get-env ;;
        --restore-database | --dry-run) options+=("$1") ;;
        --release) options+=("$1" "${2:?--release needs a name}"); shift ;;
        -*) usage >&2; exit 2 ;;
        *) break ;;
    esac
    shift
done
if (($# != 1 && $# != 2)); then usage >&2; exit 2; fi
host=$1
key=${2-}
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib/env.sh
. scripts/lib/env.sh
# shellcheck source=scripts/lib/images.sh
. scripts/lib/images.sh
# shellcheck source=scripts/lib/ssh.sh
. scripts/lib/ssh.sh
# the lines of .env that a deployment adds
versions='^[[:space:]]*(BUSCO|NGINX|CERTBOT)_VERSION='
for option in --restore-database --release; do
    if [[ " ${options[*]-} " == *" $option "* && $command != rollback ]]; then
        echo "$option needs --rollback" >&2
        exit 2
    fi
done
# registry user password, for each registry in ECR: the host needs no access to AWS of its own to pull
logins() {
    local registry region token
    for registry in $(for name in AIRFLOW NGINX CERTBOT REDIS POSTGRES; do env_get "${name}_IMAGE" | cut -d / -f 1; echo; done | sort -u); do
        if [[ $registry =~ \.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com ]]; then
            region=${BASH_REMATCH[1]}
            token=$(aws ecr get-login-password --region "$region") || return 1
            printf '%s AWS %s\n' "$registry" "$token"
        fi
    done
}
if [[ -z $key ]] && ! is_instance "$host"; then
    echo "give the path of the SSH key; only the id of an EC2 instance needs none" >&2
    exit 2
fi
if [[ $command == get-env && -e .env ]]; then
    echo ".env exists; to replace it with the host's, move it away first" >&2
    exit 1
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
find_login "$host" "$key"
if [[ $command == get-env ]]; then
    # versions are those of a release, not settings
    remote "sudo cat /opt/busco/current/.env" >"$scratch/host.env" || {
        echo "nothing is deployed on $login" >&2
        exit 1
    }
    grep -vE "$versions" "$scratch/host.env" >"$scratch/.env"
    install -m 600 "$scratch/.env" .env
    echo "wrote .env"
    exit
fi
if [[ $command != deploy ]]; then
    remote "sudo test -x $host_program" || {
        echo "nothing is deployed on $login" >&2
        exit 1
    }
    registry_logins=
    # only needed if the host lacks an image
    if [[ $command == rollback && -f .env ]]; then registry_logins=$(logins) || echo "going on without a login to the registry" >&2; fi
    follow "$host_program" "$command" ${options[@]+"${options[@]}"} <<<"$registry_logins"
    exit
fi

check_env
python3 scripts/production_env.py --check
if [[ -z $version ]]; then
    changes=$(git status --porcelain)
    if [[ -n $changes ]]; then
        printf 'there are uncommitted changes, so no commit describes this release:\n%s\ncommit them, or deploy a trial version: --version TAG\n' \
            "$changes" >&2
        exit 1
    fi
    version=$(git rev-parse --short=12 HEAD)
fi
release=$scratch/release
mkdir "$release"
# the release: what the host needs, and nothing else of the checkout
files=(
    docker-compose.common.yml docker-compose.prod.yml docker-compose.prod.letsencrypt.yml docker-compose.prod.logs.yml
    docker-compose.prod.host.yml
    deploy/aws/systemd deploy/aws/check_ssl.sh deploy/rds/global-bundle.pem scripts/host.sh scripts/backup.sh scripts/restore.sh
    scripts/setup_systemd.sh scripts/lib/env.sh scripts/lib/host.sh scripts/lib/postgres.sh scripts/lib/drop_tables.sql
)
cp --parents -r "${files[@]}" "$release"
grep -vE "$versions" .env >"$release/.env"
printf 'BUSCO_VERSION=%s\nNGINX_VERSION=%s\nCERTBOT_VERSION=%s\n' "$version" "$(release_tag nginx "$version")" \
    "$(release_tag certbot "$version")" >>"$release/.env"
chmod -R go= "$release"

registry_logins=$(logins)
printf 'upload release %s to %s\n' "$version" "$login"
upload=$(tar -C "$release" --owner=0 --group=0 -cz . | remote "sudo sh -c 'umask 077 && mkdir -p /opt/busco/uploads && folder=\$(mktemp -d /opt/busco/uploads/XXXXXXXX) && tar -C \$folder -xz && echo \$folder'")
if [[ $upload != /opt/busco/uploads/* ]]; then
    echo "the upload failed: $upload" >&2
    exit 1
fi
follow "$upload/scripts/host.sh" deploy "$upload" ${options[@]+"${options[@]}"} <<<"$registry_logins"
