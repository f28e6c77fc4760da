package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// testGuest is the other end of an interface's socket: a machine without QEMU, with a TCP of its own (another
// gVisor stack) and a view of every frame that reaches it.
type testGuest struct {
	t       *testing.T
	conn    net.Conn
	mac     hardwareAddr
	address netip.Addr
	stack   *hostStack
	frames  chan []byte // what is not TCP
	mu      sync.Mutex
	ttls    []byte // of the TCP packets that carried data, in order
	probes  int    // half-open connects of netd
	deaf    atomic.Bool
}

// longEnough is for what must happen, and happens within milliseconds unless the machine stands still.
const longEnough = 30 * time.Second

func testNetwork(t *testing.T, c config) *network {
	t.Helper()
	n := networkWithoutProbes(t, c)
	done := make(chan struct{})
	go n.probeGuests(done)
	t.Cleanup(func() { close(done) })
	return n
}

func networkWithoutProbes(t *testing.T, c config) *network {
	t.Helper()
	if !c.vpc.IsValid() {
		c.vpc = netip.MustParsePrefix("172.31.0.0/16")
	}
	if c.domain == "" {
		c.domain = "ec2.internal"
	}
	n, err := newNetwork(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.close)
	return n
}

func allow(protocol string, from, to int, cidr string) rule {
	return rule{Protocol: protocol, From: from, To: to, CIDR: cidr}
}

var allEgress = rule{Egress: true, Protocol: "-1", From: 0, To: 65535, CIDR: "0.0.0.0/0"}

func setGroups(t testing.TB, n *network, groups map[string][]rule) {
	t.Helper()
	if err := parseRanges(groups); err != nil {
		t.Fatal(err)
	}
	n.setGroups(groups)
}

// newGuest plugs in an interface with this last octet in 172.31.0.0/20 and connects to it.
func newGuest(t *testing.T, n *network, octet byte, public string, groups ...string) *testGuest {
	t.Helper()
	address := netip.AddrFrom4([4]byte{172, 31, 1, octet})
	mac := hardwareAddr{2, 0, 0, 0, 0, octet}
	c := portConfig{
		ID: "eni-" + address.String(), Socket: filepath.Join(t.TempDir(), "nic"),
		MAC: net.HardwareAddr(mac[:]).String(), Address: address.String(), Subnet: "172.31.0.0/20",
		Public: public, HostName: privateName(address), Metadata: "testdata/metadata.json", Groups: groups,
	}
	if err := n.setPort(c); err != nil {
		t.Fatal(err)
	}
	return connectGuest(t, n, c)
}

// connectGuest makes a guest behind an interface that is plugged in.
func connectGuest(t *testing.T, n *network, c portConfig) *testGuest {
	t.Helper()
	address := netip.MustParseAddr(c.Address)
	hardware, err := net.ParseMAC(c.MAC)
	if err != nil {
		t.Fatal(err)
	}
	mac := hardwareAddr(hardware)
	conn, err := net.Dial("unix", c.Socket)
	if err != nil {
		t.Fatal(err)
	}
	g := &testGuest{t: t, conn: conn, mac: mac, address: address, frames: make(chan []byte, 1000)}
	if g.stack, err = newHostStack(g.sendFrom, nil); err != nil {
		t.Fatal(err)
	}
	g.stack.stack.SetTransportProtocolHandler(6, nil) // a closed port of a guest answers by RST
	if err := g.stack.stack.SetPromiscuousMode(nicID, false); err != nil {
		t.Fatal(err)
	}
	if err := g.stack.stack.AddProtocolAddress(nicID, protocolAddress(address), stackProperties); err != nil {
		t.Fatal(err)
	}
	go g.receive()
	n.mu.RLock()
	plugged := n.ports[c.ID]
	n.mu.RUnlock()
	eventually(t, "plugged in", func() bool {
		plugged.mu.Lock()
		defer plugged.mu.Unlock()
		return plugged.out != nil
	})
	t.Cleanup(func() { conn.Close() })
	return g
}

// sendFrom sends an IP packet by the gateway.
func (g *testGuest) sendFrom(_ netip.Addr, packet []byte) { g.send(gatewayMAC, etherTypeIP, packet) }

func (g *testGuest) send(to hardwareAddr, kind uint16, payload []byte) {
	data := etherFrame(to, g.mac, kind, payload)
	g.conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(data))), data...))
}

func (g *testGuest) receive() {
	reader := bufio.NewReader(g.conn)
	for {
		data, err := readFrame(reader)
		if err != nil {
			return
		}
		if g.deaf.Load() {
			continue
		}
		p, ok := parseIP(data[etherHeader:])
		if !ok || p.proto != protoTCP {
			g.frames <- data
			continue
		}
		g.mu.Lock()
		if header := int(p.payload[12]>>4) * 4; len(p.payload) > header {
			g.ttls = append(g.ttls, p.ip[8])
		}
		if p.src == probeAddress && p.tcpFlags == flagSYN {
			g.probes++
		}
		g.mu.Unlock()
		g.stack.inject(p.ip)
	}
}

func (g *testGuest) probeCount() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.probes
}

// frame is the next one that is not TCP, nil when none comes.
func (g *testGuest) frame() []byte { return g.frameWithin(longEnough) }

func (g *testGuest) frameWithin(limit time.Duration) []byte {
	select {
	case data := <-g.frames:
		return data
	case <-time.After(limit):
		return nil
	}
}

// settled returns the frames that have come when netd has handled all that this guest sent so far. Netd handles a guest's
// frames in order (all but DNS queries, and what faults delay or drop), so the answer to one more request is the last.
func (g *testGuest) settled() [][]byte {
	g.t.Helper()
	g.requestARP(timeAddress)
	var frames [][]byte
	for {
		data := g.frame()
		if data == nil {
			g.t.Fatal("no answer to the last request")
		}
		if binary.BigEndian.Uint16(data[12:]) == etherTypeARP && netip.AddrFrom4([4]byte(data[etherHeader+14:])) == timeAddress {
			return frames
		}
		frames = append(frames, data)
	}
}

// answer is the one frame that came since the last call, nil when there was none.
func (g *testGuest) answer() []byte {
	g.t.Helper()
	switch frames := g.settled(); len(frames) {
	case 0:
		return nil
	case 1:
		return frames[0]
	default:
		g.t.Fatalf("%d frames: % x", len(frames), frames)
		return nil
	}
}

func (g *testGuest) requestARP(wanted netip.Addr) {
	request := []byte{0, 1, 8, 0, 6, 4, 0, arpRequest}
	request = append(append(request, g.mac[:]...), g.address.AsSlice()...)
	request = append(append(request, make([]byte, 6)...), wanted.AsSlice()...)
	g.send(broadcast, etherTypeARP, request)
}

// speak sends a first packet, which shows that the guest is up.
func (g *testGuest) speak() {
	source := netip.AddrPortFrom(g.address, 1)
	g.sendFrom(g.address, buildUDP(source, netip.AddrPortFrom(imdsAddress, 9), nil))
	if g.frame() == nil {
		g.t.Fatal("no answer to the first packet")
	}
}

func (g *testGuest) listen(port uint16) *gonet.TCPListener {
	g.t.Helper()
	at := tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom4(g.address.As4()), Port: port}
	listener, err := gonet.ListenTCP(g.stack.stack, at, ipv4.ProtocolNumber)
	if err != nil {
		g.t.Fatal(err)
	}
	return listener
}

func (g *testGuest) dial(to string) (*guestConn, error) { return g.dialWithin(longEnough, to) }

func (g *testGuest) dialWithin(limit time.Duration, to string) (*guestConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return g.stack.dial(ctx, g.address, netip.MustParseAddrPort(to))
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(longEnough); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if condition() {
			return
		}
	}
	t.Fatalf("not within %s: %s", longEnough, what)
}

var stackProperties = stack.AddressProperties{}

func protocolAddress(a netip.Addr) tcpip.ProtocolAddress {
	return tcpip.ProtocolAddress{
		Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddrFrom4(a.As4()).WithPrefix(),
	}
}
