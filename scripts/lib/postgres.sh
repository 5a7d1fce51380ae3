# shellcheck shell=bash
# PostgreSQL's own tools on the production host, in containers of the image POSTGRES_IMAGE. Source lib/host.sh first.

# open_postgres: fetches the database's password, in memory and readable only by root, until this script ends
open_postgres() {
    postgres_secrets=$(mktemp -d /run/busco-XXXXXX)
    trap close_postgres EXIT
    from_airflow "$postgres_secrets" pgpass pgpass
}

# from_airflow FOLDER FILE COMMAND…: has a command of busco.orchestration.backups write a file into a folder of root's.
# It is not passed through the container's output, which Docker logs.
from_airflow() {
    # the containers' user belongs to the group root
    chmod 770 "$1"
    compose run --rm --no-deps -T --volume "$1:/run/busco" airflow-triggerer \
        python -m busco.orchestration.backups --output "/run/busco/$2" "${@:3}"
    chmod 700 "$1"
    chown 0:0 "$1/$2"
}

close_postgres() {
    rm -rf "$postgres_secrets"
    docker rm --force --volumes busco-verify >/dev/null 2>&1 || true
}

postgres_image() {
    local image
    image=$(env_get POSTGRES_IMAGE)
    printf '%s\n' "${image:-postgres:16.3-alpine}"
}

# postgres COMMAND…: runs psql, pg_dump or pg_restore for Airflow's database, in its network; stdin and stdout are the
# caller's, and Docker logs nothing of them
postgres() {
    docker run --rm --interactive --log-driver none --network "$(project)_default" --read-only --cap-drop ALL \
        --security-opt no-new-privileges:true --entrypoint "$1" \
        --volume "$postgres_secrets/pgpass:/run/pgpass:ro" --env PGPASSFILE=/run/pgpass \
        --volume "$PWD/deploy/rds/global-bundle.pem:/run/rds.pem:ro" \
        --env PGSSLMODE=verify-full --env PGSSLROOTCERT=/run/rds.pem --env PGCONNECT_TIMEOUT=10 \
        --env "PGHOST=$(env_get DB_HOST)" --env "PGPORT=$(default "$(env_get DB_PORT)" 5432)" \
        --env "PGUSER=$(env_get DB_USER)" --env "PGDATABASE=$(env_get DB_NAME)" \
        "$(postgres_image)" "${@:2}"
}

default() { printf '%s' "${1:-$2}"; }

# restore_statements: the SQL that restores the dump in stdin
restore_statements() {
    docker run --rm --interactive --log-driver none --network none --read-only --cap-drop ALL --entrypoint pg_restore "$(postgres_image)" \
        --no-owner --no-privileges --file -
}

# replace_database DUMP: replaces all tables of Airflow's database with those of a dump, or changes nothing
replace_database() {
    {
        # With --single-transaction, psql commits at the end of its input, also if pg_restore has died halfway. So the
        # transaction is explicit, and its end is sent only after everything else
        echo 'begin;'
        # the tables of a newer revision, which the backup doesn't have, must not stay either
        cat scripts/lib/drop_tables.sql
        restore_statements <"$1" && echo 'commit;'
    } | postgres psql --quiet --set ON_ERROR_STOP=1 --file - >/dev/null
}

# verify DUMP REVISION: restores a dump into a temporary PostgreSQL without a network, and checks the revision and the
# number of tables. Its data is in a volume of its own, on the disk: the database may be larger than the memory
verify() {
    local dump=$1 revision=$2 name=busco-verify found tables expected deadline=$((SECONDS + 60))
    # of a backup that was killed; the lock admits one at a time
    docker rm --force --volumes "$name" >/dev/null 2>&1 || true
    docker run --detach --name "$name" --network none --env POSTGRES_HOST_AUTH_METHOD=trust --memory 512m \
        --log-driver none "$(postgres_image)" -c fsync=off -c wal_level=minimal -c max_wal_senders=0 \
        -c max_wal_size=64MB >/dev/null
    # the image's first start ends with a restart; only the second server listens on TCP
    until docker exec "$name" pg_isready --quiet --host 127.0.0.1 --username postgres; do
        if ((SECONDS > deadline)); then die "the temporary database did not start"; fi
        sleep 1
    done
    docker exec --interactive "$name" pg_restore --username postgres --dbname postgres --no-owner --no-privileges \
        --exit-on-error --single-transaction <"$dump" || die "the backup can't be restored"
    found=$(docker exec "$name" psql --username postgres --tuples-only --no-align --command 'select version_num from alembic_version')
    tables=$(docker exec "$name" psql --username postgres --tuples-only --no-align --command "select count(*) from pg_tables where schemaname = 'public'")
    expected=$(docker exec --interactive "$name" pg_restore --list <"$dump" | grep -c ' TABLE DATA ')
    docker rm --force --volumes "$name" >/dev/null
    if [[ $found != "$revision" || $tables != "$expected" ]]; then
        die "the restored backup has revision $found and $tables tables, but should have $revision and $expected"
    fi
}
