#!/bin/sh
# Runs torchrun on two nodes, which have a network and a host name of their own and nothing else:
#     two_nodes.sh PYTHON ARGUMENT...
# Ends with 77 where no such namespaces may be made.  They are gone once their processes are.
set -e

node() {  # NUMBER PYTHON ARGUMENT...
    number=$1
    python=$2
    shift 2
    export GLOO_SOCKET_IFNAME="eth$number"
    exec "$python" -W ignore -m torch.distributed.run --nnodes 2 --nproc-per-node 1 --node-rank "$number" \
        --master-addr 10.77.0.1 --master-port 29500 "$@"
}

case $1 in
first)
    shift
    hostname node-a
    ip link set lo up
    unshare --net --uts "$0" second "$@" &
    other=$!
    own=$(readlink /proc/$$/ns/net)
    while [ "$(readlink /proc/$other/ns/net)" = "$own" ]; do sleep 0.05; done
    ip link add eth0 type veth peer name eth1 netns "$other"
    ip address add 10.77.0.1/24 dev eth0
    ip link set eth0 up
    (node 0 "$@") || code=$?
    wait "$other"
    exit "${code:-0}"
    ;;
second)
    shift
    hostname node-b
    ip link set lo up
    until ip link show eth1 >/dev/null 2>&1; do sleep 0.05; done
    ip address add 10.77.0.2/24 dev eth1
    ip link set eth1 up
    node 1 "$@"
    ;;
*)
    probe='hostname node-a && ip link add eth0 type veth peer name eth1'
    for user in "" "--user --map-root-user"; do
        # shellcheck disable=SC2086 # no option, or two
        if unshare $user --net --uts sh -c "$probe" >/dev/null 2>&1; then
            exec unshare $user --net --uts "$0" first "$@"
        fi
    done
    exit 77
    ;;
esac
