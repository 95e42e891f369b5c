#!/usr/bin/env bash
# Brings the compose file up for real on each transport named (redis and kafka), tries it, says what it proved, and removes everything.
# Where no image registry can be reached, build stand-ins for the images first; README.md names the variables for them.
set -euo pipefail # so no grep -q behind curl: it ends before curl has written all
cd "$(dirname "$0")/.."
limit=1500 # seconds for everything, cleaning up not counted
[ -n "${TRY_BOUNDED:-}" ] || TRY_BOUNDED=1 exec timeout -k 120 "$limit" "$0" "$@"

project=refinery-try api=http://127.0.0.1:8080 page=http://127.0.0.1:3000
unset PUBLISH PUBLIC_URL REFINERY_URL POSTGRES_DSN REDIS_URL KAFKA_BROKERS WORKER_WEBHOOK_URL
WORKER_TOKEN=try-$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')
export WORKER_TOKEN
log=$(mktemp)

compose() { ${COMPOSE:-podman-compose} -p "$project" -f compose/podman-compose.yml "$@" >>"$log" 2>&1; }
say() { printf '%4ds  %s\n' "$SECONDS" "$*"; }
die() { say "FAILED: $*" >&2; exit 1; }
containers() { podman ps -aq --filter "label=com.docker.compose.project=$project" ${1:+--filter "label=com.docker.compose.service=$1"}; }
within() { # SECONDS COMMAND…: until it succeeds
	local end=$((SECONDS + $1)); shift
	until "$@" >>"$log" 2>&1; do [ "$SECONDS" -lt "$end" ] || return 1; sleep 1; done
}
clean() {
	local code=$?
	trap - EXIT
	if [ "$code" != 0 ]; then
		tail -n 30 "$log"
		for c in $(containers); do podman logs --tail 15 --names "$c" || true; done
	fi >&2
	down || code=1
	rm -f "$log"
	exit "$code"
}
down() { # also what is being started anew just now, which podman-compose leaves
	compose down -v -t 5 || true
	containers | xargs -r podman rm -fv >>"$log" 2>&1 || true
	podman volume ls -q | grep "^${project}_" | xargs -r podman volume rm -f >>"$log" 2>&1 || true
	podman network ls -q --filter "name=${project}_" | xargs -r podman network rm -f >>"$log" 2>&1 || true
	[ -z "$(containers)$(podman volume ls -q | grep "^${project}_")" ] || { say "FAILED: something is left"; return 1; }
}
healthy() { # every container there is; asked here, since not every machine has systemd to ask them
	local c
	for c in $(containers); do podman healthcheck run "$c" || return 1; done
}
live() { [ "$(curl -fsS -H "X-Worker-Token: $WORKER_TOKEN" "$api/workers?state=live" | grep -o '"state":"live"' | wc -l)" = "$1" ]; }
refine() { # REQUIREMENTS MODE
	printf '%s\n' "$1" | timeout 400 podman exec -i "$(containers control)" refinery build -r /dev/stdin --build "$2" 2>>"$log"
}

try() {
	export QUEUE_BACKEND=$1
	compose up -d
	[ "$(containers | wc -l)" = 5 ] || die "not all containers are there"
	within 180 healthy || die "not everything is healthy on $1"
	curl -fsS "$api/ready" | grep "\"detail\":\"$1[^\"]*\",\"name\":\"bus\"" >/dev/null || die "/ready does not name $1: $(curl -sS "$api/ready")"
	curl -fsS "$page/" | grep -i '<!doctype html' >/dev/null || die "no page on :3000"
	say "$1: Postgres, Redis, Redpanda, control plane and worker are healthy; API on :8080, page on :3000"

	[ "$(curl -s -o /dev/null -w '%{http_code}' -X POST "$api/queue/pause")" = 401 ] || die "a write without the token is not refused"
	local control worker
	control=$(containers control) worker=$(containers worker)
	[ "$(podman exec "$control" id -u)" = 10001 ] || die "the control plane is not user 10001"
	! podman exec "$control" touch /x 2>>"$log" || die "the control plane's root can be written"
	podman exec "$worker" curl -fsS -o /dev/null http://control:8080/health || die "the worker does not reach the control plane"
	! podman exec "$worker" getent hosts postgres redis redpanda || die "the worker reaches the servers"
	say "$1: writes need the token; the control plane is no root and its root is read-only; builds do not reach the servers"

	refine "$(cat examples/requirements.txt)" all | tee -a "$log" | grep 'wheels are there' || die "the example does not end well"
	podman run --rm --network "${project}_workers" --entrypoint sh localhost/refinery-worker -c 'python3 -m venv /tmp/v && /tmp/v/bin/pip install -q \
		--no-cache-dir --index-url http://control:8080/simple/ --trusted-host control flask && /tmp/v/bin/python -c "import flask, markupsafe._speedups"' \
		>>"$log" 2>&1 || die "flask is not installed from the index"
	say "$1: examples/requirements.txt is built, and a fresh container installs flask from the index alone"

	podman restart -t 10 "$(containers "$2")" >>"$log" 2>&1
	within 90 healthy || die "not everything is healthy after a restart of $2"
	refine six six | tee -a "$log" | grep 'wheels are there' || die "nothing is built after a restart of $2"
	say "$1: $2 was restarted, and a run after it is built"

	WORKERS=4 compose up -d --scale worker=4 # old versions know one of the two
	within 120 live 4 || die "there are not 4 workers"
	refine cffi cffi | tee -a "$log" | grep 'wheels are there' || die "cffi is not built"
	grep -q 'the apt packages' "$log" || curl -fsS "$api/logs/cffi/$(curl -fsS "$api/packages/cffi" | grep -o '"version":"[^"]*"' | head -n 1 | cut -d '"' -f 4)?format=text" |
		grep 'recipe: installing the apt packages' >/dev/null || die "no hint installed what cffi needs"
	say "$1: 4 workers; a hint installed the headers that cffi needs, and it was built"

	control=$(containers control)
	podman stop -t 10 "$control" >>"$log" 2>&1
	[ "$(podman inspect -f '{{.State.ExitCode}}' "$control")" = 0 ] || die "the control plane does not stop in good order"
	say "$1: the control plane stops in good order"
	down
}

trap clean EXIT
trap 'exit 1' INT TERM
[ -z "$(containers)" ] || down
compose build
say "the images are built"
for backend in "${@:-redis kafka}"; do
	for one in $backend; do
		case $one in
		redis) try redis redis ;;
		kafka) try kafka redpanda ;;
		file) try file postgres ;;
		*) die "no transport $one" ;;
		esac
	done
done
say "all of it on ${*:-redis kafka}"
