# Read by the other scripts: runs steps by `docker run`, all on one volume, as an orchestrator would.
#
#   REGISTRY, TAG   which images (default: mlcore/<step>:latest, as `docker buildx bake` makes them)
#   VOLUME          the volume for everything that the steps write (default: mlcore-<name of the script>); it is kept
#   STEP_USER       uid[:gid] in place of the images' own 10001:0
set -eu
REGISTRY=${REGISTRY:-mlcore}
TAG=${TAG:-latest}
name=mlcore-$(basename "$0" .sh)
VOLUME=${VOLUME:-$name}
network=$VOLUME-$$
server=$VOLUME-server-$$

# An orchestrator's hardening; a step needs none of what is taken away.
hardened="--rm --read-only --tmpfs=/tmp --cap-drop=ALL --security-opt=no-new-privileges"

# step NAME FLAGS...: no network unless NETWORK is set.
step() {
  step=$1
  shift
  printf '\n$ docker run %s/%s:%s %s\n' "$REGISTRY" "$step" "$TAG" "$*"
  # shellcheck disable=SC2086
  docker run $hardened --volume="$VOLUME:/data" --network="${NETWORK:-none}" ${STEP_USER:+--user="$STEP_USER"} \
    "$REGISTRY/$step:$TAG" "$@"
}

# serve OPTION...: a web server in a container, at http://<server>:8000; the options say which folder is its /source.
serve() {
  docker network create "$network" >/dev/null
  # shellcheck disable=SC2064
  trap "docker rm --force $server >/dev/null 2>&1 || true; docker network rm $network >/dev/null 2>&1 || true" EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  # shellcheck disable=SC2086
  docker run $hardened --detach --name="$server" --network="$network" "$@" --workdir=/source --entrypoint=python \
    "$REGISTRY/download:$TAG" -m http.server 8000 >/dev/null
}
