#!/bin/sh
# Phoenix into a virtual environment of its own, Prometheus from the system's package, the Collector and Jaeger from their
# Go modules: `install.sh PYTHON VENV`.  What cannot be had is said in one sentence each.
python=$1 venv=$2 lacking=0
cd "$(dirname "$0")" || exit 3

if [ ! -e "$venv/.ready" ] || [ phoenix.txt -nt "$venv/.ready" ]; then
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "Phoenix needs Python 3.11 or later; \`make PYTHON=python3.12 ...\` takes another one." >&2
        lacking=1
    elif "$python" -m venv "$venv" &&
        "$venv/bin/pip" install --quiet --disable-pip-version-check -r phoenix.txt 2>"$venv/pip.log"; then
        touch "$venv/.ready"
    else
        echo "Phoenix could not be installed into $venv: $(grep -i error "$venv/pip.log" 2>/dev/null | tail -n 1)" >&2
        lacking=1
    fi
fi

if ! command -v prometheus >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        log=$(mktemp)
        { apt-get update && apt-get install -y --no-install-recommends prometheus; } >"$log" 2>&1 ||
            { apt-get install -y --no-install-recommends prometheus >>"$log" 2>&1; } ||
            echo "apt-get could not install Prometheus: $(grep '^E:' "$log" | tail -n 1)" >&2
        rm -f "$log"
    fi
    if ! command -v prometheus >/dev/null; then
        echo "Prometheus is not installed: \`apt-get install prometheus\` as root," \
            "or https://prometheus.io/download with the folder in PATH." >&2
        lacking=1
    fi
fi

"$python" programs.py || lacking=1
exit $lacking
