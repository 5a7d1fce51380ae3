#!/usr/bin/env bash
# Replaces a key or password of the production platform in .env, and deploys it. Each step is safe to repeat: after an
# interruption, run the same command again.
# usage: scripts/rotate_keys.sh [--dry-run] WHAT <ec2-host> [<path-to-ssh-key.pem>]     as for ec2_deploy.sh
#   fernet     the key that encrypts connections and variables in Airflow's database: deploys the new and the old key,
#              encrypts everything with the new one, and then deploys the new key alone
#   session    the key that signs web sessions; everybody logs in again
#   redis      the password of the broker
#   admin      the password of the first admin, which is only in .env
#   --dry-run  only print what would be done
# The database's password: change it in RDS and in .env or in the secret that DB_PASSWORD_SECRET names, and deploy.
set -euo pipefail
usage() { sed -n '2,12s/^# \{0,1\}//p' "$0"; }
dry=
while (($#)); do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --dry-run) dry=1; shift ;;
        -*) usage >&2; exit 2 ;;
        *) break ;;
    esac
done
if (($# != 2 && $# != 3)); then usage >&2; exit 2; fi
what=$1
host=$2
key=${3:+$(readlink -f "$3")}
given=(${key:+"$key"})
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib/env.sh
. scripts/lib/env.sh
# shellcheck source=scripts/lib/ssh.sh
. scripts/lib/ssh.sh
case $what in
    fernet) name=AIRFLOW__CORE__FERNET_KEY ;;
    session) name=AIRFLOW__WEBSERVER__SECRET_KEY ;;
    redis) name=REDIS_PASSWORD ;;
    admin) name=AIRFLOW_ADMIN_PASSWORD ;;
    *) usage >&2; exit 2 ;;
esac
check_env
old=$(env_get "$name")
if [[ -z $old ]]; then
    echo "$name is not set in .env; if it is a secret in Secrets Manager or SSM, change it there, and restart the services" >&2
    exit 1
fi

# set_value VALUE: replaces the variable in .env
set_value() {
    local scratch line target
    target=$(readlink -f .env)
    scratch=$(mktemp "$(dirname "$target")/.env.XXXXXX")
    while IFS= read -r line || [[ -n $line ]]; do
        if env_line "$line" && [[ $env_name == "$name" ]]; then line=$name=$1; fi
        printf '%s\n' "$line"
    done <.env >"$scratch"
    chmod 600 "$scratch"
    mv "$scratch" "$target"
}

if [[ -n $dry ]]; then
    case $what in
        fernet) echo "would deploy the new and the old $name, encrypt the database's connections and variables with the new one, and deploy the new one alone" ;;
        *) echo "would deploy a new $name" ;;
    esac
    exit 0
fi
if [[ -z $key ]] && ! is_instance "$host"; then
    echo "give the path of the SSH key; only the id of an EC2 instance needs none" >&2
    exit 2
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
find_login "$host" "$key"
# The code stays: a key must be replaceable at any time, and whatever is checked out here. So the release is made from the
# commit that is deployed
release=$(remote "sudo readlink /opt/busco/current" || true)
if [[ $release != releases/*-* ]]; then
    echo "nothing is deployed on $login" >&2
    exit 1
fi
version=${release#releases/}
version=${version%-*}
commit=${version#dev-}
commit=${commit%%-*}
if ! git cat-file -e "$commit^{commit}" 2>/dev/null; then
    echo "the commit $commit, which is deployed on $login, is not in this clone; fetch it: git fetch" >&2
    exit 1
fi
worktree=$scratch/worktree
trap 'git worktree remove --force "$worktree" 2>/dev/null; rm -rf "$scratch"' EXIT
git worktree add --quiet --detach "$worktree" "$commit"
project=$(env_get COMPOSE_PROJECT_NAME)
project=${project:-busco}
deploy() {
    cp --dereference --preserve=mode .env "$worktree/.env"
    "$worktree/scripts/ec2_deploy.sh" --version "$version" "$host" ${given[@]+"${given[@]}"}
}
if [[ $what != fernet ]]; then
    set_value "$(openssl rand -hex 24)"
    deploy
    exit
fi
# an interrupted rotation left both keys in .env
if [[ $old != *,* ]]; then set_value "$(openssl rand -base64 32 | tr '+/' '-_'),$old"; fi
deploy
echo "encrypt connections and variables with the new key"
remote "sudo docker exec \$(sudo docker ps --quiet --filter label=com.docker.compose.project=$project --filter label=com.docker.compose.service=airflow-scheduler --filter label=com.docker.compose.oneoff=False) python -m busco.orchestration.rotation"
both=$(env_get "$name")
set_value "${both%%,*}"
deploy
echo "back up the database, since earlier backups need the old key"
remote "sudo busco-backup --quiet"
