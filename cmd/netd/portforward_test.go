package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// publicAddress is on the host's loopback; nothing else uses it, another run of these tests included.
var publicAddress = loopbackAddress(10)

func loopbackAddress(last byte) string {
	id := os.Getpid()
	return netip.AddrFrom4([4]byte{127, byte(64 + id>>8%64), byte(id), last}).String()
}

// offset makes port 22 bindable without privileges.
const offset = 30000

func forwardNetwork(t *testing.T, rules ...rule) (*network, *testGuest) {
	t.Helper()
	n := testNetwork(t, config{portOffset: offset})
	setGroups(t, n, map[string][]rule{"sg-1": rules})
	g := newGuest(t, n, 10, publicAddress, "sg-1")
	return n, g
}

func accepts(port string) bool {
	conn, err := net.DialTimeout("tcp", publicAddress+":"+port, time.Second)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

func TestAPortIsOpenWhileTheGuestListens(t *testing.T) {
	_, g := forwardNetwork(t, allow("tcp", 22, 22, "127.0.0.1/32"))
	g.speak()
	time.Sleep(5 * probeInterval)
	if accepts("30022") {
		t.Fatal("it is open though nothing listens")
	}
	listener := g.listen(22)
	eventually(t, "open", func() bool { return accepts("30022") })
	listener.Close()
	eventually(t, "closed", func() bool { return !accepts("30022") })
}

// A closed port opens quickly because it is probed in every interval, and opens by the first answer.
func TestAClosedPortIsProbedInEveryInterval(t *testing.T) {
	n := networkWithoutProbes(t, config{portOffset: offset})
	setGroups(t, n, map[string][]rule{"sg-1": {allow("tcp", 22, 22, "127.0.0.1/32")}})
	g := newGuest(t, n, 10, publicAddress, "sg-1")
	g.speak()
	now := time.Now()
	probe := func() {
		now = now.Add(probeInterval)
		n.ports["eni-172.31.1.10"].forwards.tick(now, n.generation)
	}
	for count := range 20 {
		probe()
		eventually(t, "a probe in each interval", func() bool { return g.probeCount() == count+1 })
	}
	if accepts("30022") {
		t.Fatal("it is open though nothing listens")
	}
	g.listen(22)
	probe()
	eventually(t, "open", func() bool { return accepts("30022") })
	if count := g.probeCount(); count != 21 {
		t.Errorf("open after %d probes, not by the first one that was answered", count-20)
	}
}

func TestProbesDoNotReachTheListener(t *testing.T) {
	_, g := forwardNetwork(t, allow("tcp", 22, 22, "127.0.0.1/32"))
	accepted := acceptAll(g.listen(22))
	g.speak()
	select {
	case conn := <-accepted:
		t.Fatalf("a connection from %v", conn.RemoteAddr())
	case <-time.After(3 * openInterval):
	}
	var client net.Conn
	eventually(t, "open", func() bool {
		var err error
		client, err = net.Dial("tcp", publicAddress+":30022")
		return err == nil
	})
	defer client.Close()
	if conn := <-accepted; !strings.HasPrefix(conn.RemoteAddr().String(), "203.0.113.1:") {
		t.Errorf("the guest sees %v", conn.RemoteAddr())
	}
}

func TestASilentGuestIsProbed(t *testing.T) {
	_, g := forwardNetwork(t, allow("tcp", 22, 22, "127.0.0.1/32"))
	g.listen(22)
	eventually(t, "open", func() bool { return accepts("30022") })
}

func TestForwardsMoveWithThePublicAddress(t *testing.T) {
	n, g := forwardNetwork(t, allow("tcp", 22, 22, "127.0.0.1/32"))
	g.listen(22)
	g.speak()
	eventually(t, "open", func() bool { return accepts("30022") })
	other := loopbackAddress(77)
	c := portConfig{
		ID: "eni-172.31.1.10", Socket: n.ports["eni-172.31.1.10"].socket, Address: "172.31.1.10",
		Public: other, Groups: []string{"sg-1"},
	}
	if err := n.setPort(c); err != nil {
		t.Fatal(err)
	}
	eventually(t, "open at the new address", func() bool {
		conn, err := net.Dial("tcp", other+":30022")
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	if accepts("30022") {
		t.Error("still open at the old one")
	}
}

func TestOnlyAdmittedPortsOpen(t *testing.T) {
	n, g := forwardNetwork(t, allow("tcp", 22, 22, "10.0.0.0/8"), allow("udp", 80, 80, "0.0.0.0/0"))
	g.listen(22)
	g.listen(80)
	g.speak()
	time.Sleep(10 * probeInterval)
	if accepts("30022") || accepts("30080") {
		t.Fatal("open without a rule")
	}
	setGroups(t, n, map[string][]rule{"sg-1": {allow("tcp", 22, 22, "127.0.0.0/8")}})
	eventually(t, "open by a new rule", func() bool { return accepts("30022") })
	setGroups(t, n, map[string][]rule{"sg-1": {}})
	eventually(t, "closed without it", func() bool { return !accepts("30022") })
}

func TestTheRuleIsAboutTheClientsOwnAddress(t *testing.T) {
	_, g := forwardNetwork(t, allow("tcp", 22, 22, "127.9.0.0/16"))
	listener := g.listen(22)
	go listener.Accept()
	g.speak()
	from := func(address string, limit time.Duration) error {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}, Timeout: longEnough}
		conn, err := dialer.Dial("tcp", publicAddress+":30022")
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetReadDeadline(time.Now().Add(limit))
		_, err = conn.Read(make([]byte, 1))
		return err
	}
	const silence = 200 * time.Millisecond
	eventually(t, "open", func() bool { return !errors.Is(from("127.9.0.1", silence), syscall.ECONNREFUSED) })
	if err := from("127.8.0.1", longEnough); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a client outside the range: %v", err)
	}
	var timeout net.Error
	if err := from("127.9.0.1", silence); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("a client inside the range: %v", err)
	}
}

func TestAWideRuleOpensItsFirstAndTheUsualPorts(t *testing.T) {
	n := testNetwork(t, config{})
	setGroups(t, n, map[string][]rule{"sg-1": {{Protocol: "-1", To: 65535, CIDR: "0.0.0.0/0"}}})
	ports := n.wantedPorts([]string{"sg-1"})
	if len(ports) != 37 || ports[0] != 1 || ports[36] != 8443 {
		t.Error(ports)
	}
}

func TestForwardsAndConnectionsEndWithTheGuest(t *testing.T) {
	_, g := forwardNetwork(t, allow("tcp", 22, 22, "127.0.0.1/32"))
	accepted := acceptAll(g.listen(22))
	g.speak()
	var client net.Conn
	eventually(t, "open", func() bool {
		var err error
		client, err = net.Dial("tcp", publicAddress+":30022")
		return err == nil
	})
	defer client.Close()
	client.Write([]byte("x")) // it arrives when the connection is forwarded
	if _, err := io.ReadFull(<-accepted, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	g.conn.Close()
	client.SetReadDeadline(time.Now().Add(longEnough))
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("its connection: %v", err)
	}
	if accepts("30022") {
		t.Error("its port is still forwarded")
	}
}

// acceptAll returns the connections that the guest accepts.
func acceptAll(listener net.Listener) <-chan net.Conn {
	accepted := make(chan net.Conn, 10)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	return accepted
}

// connected opens a connection and returns both ends of it.
func connected(t *testing.T) (*net.TCPConn, *testGuest, net.Conn) {
	t.Helper()
	_, g := forwardNetwork(t, allow("tcp", 2222, 2222, "127.0.0.1/32"))
	accepted := acceptAll(g.listen(2222))
	g.speak()
	var client net.Conn
	eventually(t, "open", func() bool {
		var err error
		client, err = net.Dial("tcp", publicAddress+":2222")
		return err == nil
	})
	t.Cleanup(func() { client.Close() })
	return client.(*net.TCPConn), g, <-accepted
}

func TestHalfClose(t *testing.T) {
	client, _, guest := connected(t)
	client.Write([]byte("question"))
	client.CloseWrite()
	if got, err := io.ReadAll(guest); err != nil || string(got) != "question" {
		t.Fatalf("%q, %v", got, err)
	}
	guest.Write([]byte("answer"))
	guest.Close()
	if got, err := io.ReadAll(client); err != nil || string(got) != "answer" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestResetsPass(t *testing.T) {
	client, _, guest := connected(t)
	client.SetLinger(0)
	client.Close()
	guest.SetReadDeadline(time.Now().Add(longEnough))
	if _, err := guest.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "reset") {
		t.Errorf("the guest saw %v", err)
	}
}

func TestMuchDataPassesUnchanged(t *testing.T) {
	client, _, guest := connected(t)
	data := make([]byte, 64<<20)
	rand.Read(data)
	go func() {
		client.Write(data)
		client.CloseWrite()
	}()
	go func() {
		io.Copy(guest, onlyReader{guest}) // back again
		guest.Close()
	}()
	if got, err := io.ReadAll(client); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d of %d bytes, %v", len(got), len(data), err)
	}
}

func TestClientsKeepTheirAddress(t *testing.T) {
	c := newClients()
	one, other := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.9")
	first, second, again := c.of(one), c.of(other), c.of(one)
	if first != again || first == second || !clientRange.Contains(second) {
		t.Error(first, second, again)
	}
}
