#!/bin/sh
# Runs the tracking server or one of its chores; see mlflow/README.md. Settings are MLflow's own variables and libpq's
# (PGHOST, PGPORT, PGUSER, PGDATABASE, PGSSLMODE), so that no password is ever part of an address or a command line.
set -eu

fail() {
  echo "mlflow: $1" >&2
  exit 64
}

# NAME from the file that NAME_FILE names, as secrets are mounted.
from_file() {
  eval "file=\${$1_FILE:-}"
  [ -n "$file" ] || return 0
  [ -r "$file" ] || fail "$1_FILE: $file cannot be read; mount the secret there or unset $1_FILE"
  value=$(cat "$file")
  export "$1=$value"
  unset "$1_FILE"
}

database() {
  from_file PGPASSWORD
  from_file MLFLOW_BACKEND_STORE_URI
  if [ -z "${MLFLOW_BACKEND_STORE_URI:-}" ]; then
    [ -n "${PGHOST:-}" ] || fail "no database: set PGHOST, PGUSER, PGDATABASE and PGPASSWORD (or PGPASSWORD_FILE)"
    [ -n "${PGPASSWORD:-}${PGPASSFILE:-}" ] || fail "PGPASSWORD is empty: give the password of $PGHOST's database"
    export MLFLOW_BACKEND_STORE_URI=postgresql+psycopg2://  # everything else is libpq's
  fi
}

artifacts() {
  case "${MLFLOW_ARTIFACTS_DESTINATION:-}" in
    s3://?*) ;;
    *) fail "MLFLOW_ARTIFACTS_DESTINATION must be a bucket (s3://name), found '${MLFLOW_ARTIFACTS_DESTINATION:-}'" ;;
  esac
}

# Basic authentication: users and permissions are kept in the same database.
basic_auth() {
  for name in MLFLOW_AUTH_ADMIN_USERNAME MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY; do
    from_file "$name"
    eval "[ -n \"\${$name:-}\" ]" || fail "$name is empty: with MLFLOW_BASIC_AUTH=true it must be set (or ${name}_FILE)"
  done
  export MLFLOW_AUTH_CONFIG_PATH="${TMPDIR:-/tmp}/basic_auth.ini"
  uri=$(printf %s "$MLFLOW_BACKEND_STORE_URI" | sed 's/%/%%/g')  # the file's own escape
  (
    umask 077
    cat > "$MLFLOW_AUTH_CONFIG_PATH" << INI
[mlflow]
default_permission = ${MLFLOW_AUTH_DEFAULT_PERMISSION:-READ}
database_uri = $uri
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
INI
  )
  set -- --app-name basic-auth
  exec_server "$@"
}

exec_server() {
  exec mlflow server --host "${MLFLOW_HOST:-0.0.0.0}" --port "${MLFLOW_PORT:-5000}" --workers "${MLFLOW_WORKERS:-2}" \
    --serve-artifacts --artifacts-destination "$MLFLOW_ARTIFACTS_DESTINATION" \
    --allowed-hosts "$MLFLOW_SERVER_ALLOWED_HOSTS${POD_IP:+,$POD_IP:${MLFLOW_PORT:-5000}}" \
    --expose-prometheus "${TMPDIR:-/tmp}/metrics" "$@"
}

server() {
  database
  artifacts
  [ -n "${MLFLOW_SERVER_ALLOWED_HOSTS:-}" ] ||
    fail "MLFLOW_SERVER_ALLOWED_HOSTS is empty: name the hosts that clients use, e.g. mlflow.whence:5000,localhost:5000"
  if [ "${MLFLOW_BASIC_AUTH:-false}" = true ]; then basic_auth; fi
  exec_server
}

# Deletes for good what was deleted in the UI MLFLOW_GC_OLDER_THAN ago, its files in the bucket included.
gc() {
  database
  artifacts
  [ -n "${MLFLOW_TRACKING_URI:-}" ] || fail "MLFLOW_TRACKING_URI is empty: files are deleted through the server"
  from_file MLFLOW_TRACKING_PASSWORD
  # `mlflow gc` takes the database from the command line only, where everybody would see a password in it.
  exec python -c 'import os, sys; from mlflow.cli import cli
cli(["gc", "--backend-store-uri", os.environ["MLFLOW_BACKEND_STORE_URI"], *sys.argv[1:]])' \
    --older-than "${MLFLOW_GC_OLDER_THAN:-30d}" --tracking-uri "$MLFLOW_TRACKING_URI" \
    --artifacts-destination "$MLFLOW_ARTIFACTS_DESTINATION"
}

# Ends the runs of pipelines that have ended in Kubeflow.
settle() {
  [ -n "${MLFLOW_TRACKING_URI:-}" ] || fail "MLFLOW_TRACKING_URI is empty: name the server whose runs are meant"
  [ -n "${KF_PIPELINES_ENDPOINT:-}" ] || fail "KF_PIPELINES_ENDPOINT is empty: name the API of Kubeflow Pipelines"
  from_file MLFLOW_TRACKING_PASSWORD
  exec python /opt/mlflow/settle.py
}

# After a new version of MLflow, with the server stopped and a backup made.
upgrade() {
  database
  exec python -c 'import os; from mlflow.store.db import utils
engine = utils.create_sqlalchemy_engine(os.environ["MLFLOW_BACKEND_STORE_URI"]); utils._upgrade_db(engine)'
}

export MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true
# Background jobs and the gateway serve language model applications; they cost eight processes and are not used here.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION="${MLFLOW_SERVER_ENABLE_JOB_EXECUTION:-false}"
export MLFLOW_ENABLE_AI_GATEWAY="${MLFLOW_ENABLE_AI_GATEWAY:-false}"
case "${1:-server}" in
  server | gc | settle | upgrade) "${1:-server}" ;;
  *) exec "$@" ;;
esac
