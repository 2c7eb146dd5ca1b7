# Sourced by the demo with agents: hosts made of network namespaces on one bridge.

# make_network NAME... : namespaces $NETWORK-NAME with the addresses 10.84.0.10, .11 and so on
make_network() {
    NETWORK=demo$$
    local hub=$NETWORK-hub host number=10
    ip netns add "$hub"
    NAMESPACES+=("$hub")
    ip -n "$hub" link add bridge type bridge
    ip -n "$hub" link set bridge up
    for host in "$@"; do
        ip netns add "$NETWORK-$host"
        NAMESPACES+=("$NETWORK-$host")
        ip -n "$NETWORK-$host" link set lo up
        ip -n "$NETWORK-$host" link add eth0 type veth peer name "$host" netns "$hub"
        ip -n "$hub" link set "$host" master bridge up
        ip -n "$NETWORK-$host" address add "10.84.0.$number/24" dev eth0
        ip -n "$NETWORK-$host" link set eth0 up
        number=$((number + 1))
    done
}
