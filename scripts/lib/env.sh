# shellcheck shell=bash
# Reads lines of .env as Docker Compose does (compose-go, dotenv/parser.go). Source this from the repository's root.

# env_line LINE: splits `export NAME = "value" # comment` into $env_before (`export NAME = "`), $env_name, $env_value and
# $env_after (`" # comment`); returns 1 unless LINE by itself sets a variable. Nothing is expanded.
env_line() {
    local rest bom=$'\xEF\xBB\xBF'
    local name='^[[:space:]]*(export[[:space:]]+)?([A-Za-z0-9_.-]+)[[:space:]]*[=:][[:space:]]*'
    local quoted='^("((\\.|[^"\\])*)"|'\''((\\.|[^'\''\\])*)'\'')[[:space:]]*(#.*)?$'
    env_name=
    if [[ ! ${1#"$bom"} =~ $name ]]; then return 1; fi
    env_before=${1%"${1#"$bom"}"}${BASH_REMATCH[0]}
    env_name=${BASH_REMATCH[2]}
    rest=${1#"$env_before"}
    if [[ $rest == [\"\']* ]]; then
        if [[ ! $rest =~ $quoted ]]; then return 1; fi
        env_value=${BASH_REMATCH[2]}${BASH_REMATCH[4]}
        env_before+=${rest:0:1}
        rest=${rest:1}
    else
        env_value=${rest%% #*}
        env_value=${env_value%"${env_value##*[![:space:]]}"}
    fi
    # shellcheck disable=SC2034 # used by scripts that source this
    env_after=${rest#"$env_value"}
}

# env_get NAME: prints the value that .env sets, or nothing
env_get() {
    local line value=
    while IFS= read -r line || [[ -n $line ]]; do
        if env_line "$line" && [[ $env_name == "$1" ]]; then value=$env_value; fi
    done <.env
    printf '%s' "$value"
}

# check_env [FILE]: exits with a message unless .env exists, only its owner can read it, and it accepts no local AWS
check_env() {
    local file=${1:-.env} mode
    if [[ ! -f $file ]]; then
        echo "$file does not exist; create it: scripts/make_env.sh --production" >&2
        exit 1
    fi
    mode=$(stat -L -c %a "$file")
    if [[ $mode != ?00 ]]; then
        echo "others may read $file, which contains secrets (mode $mode); fix it: chmod 600 $file" >&2
        exit 1
    fi
    if grep -qE '^[[:space:]]*(export[[:space:]]+)?BUSCO_TEST_ENDPOINT_ACCEPTED[[:space:]]*[=:]' "$file"; then
        echo "$file sets BUSCO_TEST_ENDPOINT_ACCEPTED, which is for tests only; remove it" >&2
        exit 1
    fi
}
