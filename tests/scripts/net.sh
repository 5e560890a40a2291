#!/usr/bin/env bash
# Runs the tests over an adverse network if the machine meets the requirements: root, network namespaces, `ip` and `nft`.
# Otherwise prints a clear notice and succeeds.
#
# usage: net.sh TEST COMMAND
set -euo pipefail

skip() {
    printf '\n    !!!!  make net: NOT RUN on this machine: %s  !!!!\n\n' "$*" >&2
    exit 0
}

[ "$(uname)" = Linux ] || skip "it has no network namespaces"
[ "$(id -u)" = 0 ] || skip "network namespaces need root"
command -v ip >/dev/null || skip "\`ip\` is missing (Debian: iproute2)"
command -v nft >/dev/null || skip "\`nft\` is missing (Debian: nftables)"

namespace="swl-probe-$$"
ip netns add "$namespace" 2>/dev/null || skip "network namespaces are not allowed"
trap 'ip netns del "$namespace"' EXIT
ip netns exec "$namespace" sh -ec '
    ip link add near type veth peer name far
    echo 1 > /proc/sys/net/ipv4/ip_forward
    nft add table ip t
    nft add chain ip t f "{ type filter hook forward priority 0; }"
    nft add rule ip t f numgen random mod 100 "<" 5 drop
    nft add rule ip t f ct state new drop
    nft add chain ip t n "{ type nat hook postrouting priority 100; }"
    nft add rule ip t n oifname near masquerade fully-random
' >/dev/null || skip "the kernel lacks the required routing features"

"$@"
