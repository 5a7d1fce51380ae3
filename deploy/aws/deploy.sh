#!/usr/bin/env bash
# Deploys the CloudFormation templates in this folder, in order, and writes their outputs for scripts/make_env.sh.
# The work is done by deploy.py; `deploy.sh --help` describes the options.
exec python3 "$(dirname "$(readlink -f "$0")")/deploy.py" "$@"
