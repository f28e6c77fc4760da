package main

import (
	"context"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"
)

// discard is a connection to a host in the world that takes everything and never answers.
type discard struct {
	net.Conn
	closed chan struct{}
}

func (d discard) Write(data []byte) (int, error)  { return len(data), nil }
func (d discard) Read([]byte) (int, error)        { <-d.closed; return 0, net.ErrClosed }
func (d discard) Close() error                    { return nil }
func (d discard) SetReadDeadline(time.Time) error { return nil }

// establishedFlow opens a UDP flow from a guest to the world and returns what sends its next packet.
// Sockets and gVisor are left out.
func establishedFlow(t testing.TB) (n *network, send func()) {
	t.Helper()
	n, err := newNetwork(config{vpc: netip.MustParsePrefix("172.31.0.0/16"), domain: "ec2.internal", allowEgress: true})
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan struct{})
	t.Cleanup(func() { close(closed); n.close() })
	n.egress.dial = func(context.Context, string, string) (net.Conn, error) { return discard{closed: closed}, nil }
	setGroups(t, n, map[string][]rule{"sg": {allEgress}})
	if err := n.setPort(portConfig{
		ID: "eni-1", Socket: filepath.Join(t.TempDir(), "nic"), MAC: "02:00:00:00:00:01", Address: "172.31.1.10",
		Subnet: "172.31.0.0/20", Public: publicAddress, Metadata: "testdata/metadata.json", Groups: []string{"sg"},
	}); err != nil {
		t.Fatal(err)
	}
	from, to := netip.MustParseAddrPort("172.31.1.10:4000"), netip.MustParseAddrPort("8.8.8.8:443")
	data := etherFrame(gatewayMAC, hardwareAddr{2, 0, 0, 0, 0, 1}, etherTypeIP, buildUDP(from, to, make([]byte, 1200)))
	parsed, ok := parseIP(data[etherHeader:])
	if !ok {
		t.Fatal("unreadable packet")
	}
	send = func() { n.route(n.ports["eni-1"], parsed, data) }
	send()
	return n, send
}

func TestAnEstablishedFlowDoesNotListTheHostsAddresses(t *testing.T) {
	n, send := establishedFlow(t)
	calls := 0
	n.egress.addresses = func() ([]net.Addr, error) {
		calls++
		return nil, nil
	}
	for range 100 {
		send()
	}
	if calls > 0 {
		t.Errorf("100 packets of one flow listed the host's addresses %d times", calls)
	}
}

// BenchmarkEgressPacket is one packet of an established flow from a guest to the world, up to the host's socket.
func BenchmarkEgressPacket(b *testing.B) {
	_, send := establishedFlow(b)
	b.ReportAllocs()
	for b.Loop() {
		send()
	}
}
