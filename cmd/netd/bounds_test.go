package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// flakyListener has no descriptors left for a while.
type flakyListener struct {
	failures int
	conns    chan net.Conn
}

func (l *flakyListener) accept() (net.Conn, error) {
	if l.failures > 0 {
		l.failures--
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	conn, open := <-l.conns
	if !open {
		return nil, &net.OpError{Op: "accept", Err: net.ErrClosed}
	}
	return conn, nil
}

func TestAnAcceptLoopOutlivesAMomentWithoutDescriptors(t *testing.T) {
	l := &flakyListener{failures: 3, conns: make(chan net.Conn, 1)}
	here, there := net.Pipe()
	defer there.Close()
	l.conns <- here
	done, handled := make(chan struct{}), make(chan net.Conn, 1)
	go func() {
		defer close(done)
		acceptLoop("test", l.accept, func(conn net.Conn) { handled <- conn })
	}()
	select {
	case <-handled:
	case <-time.After(30 * time.Second):
		t.Fatal("no connection is accepted any more")
	}
	close(l.conns)
	<-done
}

// A real listener that has lost its descriptors: the guest's port 22 is there again afterwards.
func TestAForwardedPortOutlivesAMomentWithoutDescriptors(t *testing.T) {
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	n := testNetwork(t, config{})
	setGroups(t, n, map[string][]rule{"sg": {allow("tcp", 2200, 2200, "127.0.0.0/8")}})
	g := newGuest(t, n, 10, "127.126.125.21", "sg")
	listener := g.listen(2200)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.Write([]byte("SSH-2.0-x\r\n"))
			conn.Close()
		}
	}()
	g.speak()
	banner := func() error {
		conn, err := net.DialTimeout("tcp", "127.126.125.21:2200", 5*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		_, err = io.ReadFull(conn, make([]byte, 4))
		return err
	}
	eventually(t, "a banner", func() bool { return banner() == nil })
	// Connect first: the client's descriptor is in this process, too.
	client, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	var taken []int
	low := syscall.Rlimit{Cur: uint64(client) + 64, Max: before.Max}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	restore := func() {
		syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before)
		for _, fd := range taken {
			syscall.Close(fd)
		}
		taken = nil
	}
	defer restore()
	for {
		fd, err := syscall.Dup(client)
		if err != nil {
			break
		}
		taken = append(taken, fd)
	}
	at := &syscall.SockaddrInet4{Port: 2200, Addr: [4]byte{127, 126, 125, 21}}
	if err := syscall.Connect(client, at); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * acceptPause) // the accept loop meets EMFILE; were it too late to, the test would pass for nothing
	restore()
	syscall.Close(client)
	eventually(t, "a banner once more", func() bool { return banner() == nil })
}

// silentWorld has every destination take a guest's packets and never answer, and no TCP connection be made.
func silentWorld(t *testing.T, n *network) (dials *atomic.Int64) {
	dials = new(atomic.Int64)
	closed := make(chan struct{})
	t.Cleanup(func() { close(closed) })
	n.egress.addresses = func() ([]net.Addr, error) { return nil, nil }
	n.egress.dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		dials.Add(1)
		if network == "tcp" {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return newSilentConn(), nil
	}
	return dials
}

// silentConn is a UDP socket to nowhere.
type silentConn struct {
	discard
	closed chan struct{}
	done   atomic.Bool
}

func newSilentConn() *silentConn {
	closed := make(chan struct{})
	return &silentConn{discard: discard{closed: closed}, closed: closed}
}

func (c *silentConn) Close() error {
	if !c.done.Swap(true) {
		close(c.closed)
	}
	return nil
}

// crowd is two guests that may reach the world: one that floods, and one that has other things to do.
func crowd(t *testing.T) (n *network, flooder, other *testGuest) {
	n = testNetwork(t, config{allowEgress: true})
	setGroups(t, n, map[string][]rule{"sg": {allEgress, allow("-1", 0, 65535, "0.0.0.0/0")}})
	flooder = newGuest(t, n, 10, "127.126.125.31", "sg")
	other = newGuest(t, n, 11, "127.126.125.32", "sg")
	go func() { // what comes back to the flooder is not looked at
		for range flooder.frames {
		}
	}()
	return n, flooder, other
}

func imdsAnswers(g *testGuest) error {
	conn, err := g.dial("169.254.169.254:80")
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := conn.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")); err != nil {
		return err
	}
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 ") {
		return fmt.Errorf("%q, %w", answer, err)
	}
	return nil
}

func TestSYNsToSilentAddressesKeepNobodyFromIMDS(t *testing.T) {
	n, flooder, other := crowd(t)
	dials := silentWorld(t, n)
	for i := range 1200 {
		from := netip.AddrPortFrom(flooder.address, uint16(10000+i))
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{8, 8, byte(i >> 8), byte(i)}), 80)
		flooder.sendFrom(flooder.address, buildTCP(from, to, 1, 0, flagSYN))
	}
	eventually(t, "handshakes under way", func() bool { return dials.Load() >= maxHandshakes })
	for name, g := range map[string]*testGuest{"the other guest": other, "the flooder": flooder} {
		if err := imdsAnswers(g); err != nil {
			t.Errorf("IMDS for %s: %v", name, err)
		}
	}
	if dials.Load() > 2*maxHandshakes {
		t.Errorf("%d connections were begun for one guest", dials.Load())
	}
}

func TestUDPFlowsOfOneGuestAreItsOwn(t *testing.T) {
	n, flooder, other := crowd(t)
	silentWorld(t, n)
	send := func(g *testGuest, from uint16, to string) {
		source := netip.AddrPortFrom(g.address, from)
		g.sendFrom(g.address, buildUDP(source, netip.MustParseAddrPort(to), []byte("x")))
	}
	send(other, 5000, "8.8.8.8:443")
	flows := func(g *testGuest) *udpFlows { return n.portOf(g.address).udp }
	count := func(g *testGuest) int {
		flows(g).mu.Lock()
		defer flows(g).mu.Unlock()
		return len(flows(g).open)
	}
	eventually(t, "the other guest's flow", func() bool { return count(other) == 1 })
	share := descriptorShare()
	for i := range 3 * share {
		send(flooder, uint16(10000+i), "8.8.8.8:443")
	}
	newest := udpFlow{
		netip.AddrPortFrom(flooder.address, uint16(10000+3*share-1)), netip.MustParseAddrPort("8.8.8.8:443"),
	}
	eventually(t, "the flooder's newest flow", func() bool {
		flows(flooder).mu.Lock()
		defer flows(flooder).mu.Unlock()
		return flows(flooder).open[newest] != nil
	})
	eventually(t, "no more than its share", func() bool { return count(flooder) <= share })
	send(other, 5001, "8.8.4.4:443")
	eventually(t, "the other guest has both", func() bool { return count(other) == 2 })
}

func TestTrackedConnectionsOfOneGuestAreItsOwn(t *testing.T) {
	tracker := newTracker(time.Now)
	yes, no := func() bool { return true }, func() bool { return false }
	datagram := func(from, to string) packet {
		p, ok := parseIP(buildUDP(netip.MustParseAddrPort(from), netip.MustParseAddrPort(to), nil))
		if !ok {
			t.Fatal("unreadable packet")
		}
		return p
	}
	if !tracker.pass(datagram("172.31.1.11:1", "172.31.1.12:1"), yes) {
		t.Fatal("the other's connection")
	}
	for i := range 70_000 {
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{8, 8, byte(i >> 8), byte(i)}), uint16(1+i>>16))
		if !tracker.pass(datagram("172.31.1.10:7", to.String()), yes) {
			t.Fatalf("packet %d of the flooder", i)
		}
	}
	if len(tracker.tables[netip.MustParseAddr("172.31.1.10")].flows) > maxFlows {
		t.Error("no bound")
	}
	if !tracker.pass(datagram("172.31.1.12:1", "172.31.1.11:1"), no) {
		t.Error("the answer to the other's connection is not known any more")
	}
	if !tracker.pass(datagram("172.31.1.13:1", "172.31.1.12:1"), yes) {
		t.Error("a third guest cannot begin a connection")
	}
	if tracker.pass(datagram("8.8.0.0:1", "172.31.1.10:7"), no) {
		t.Error("the flooder's oldest connection is still there")
	}
	if !tracker.pass(datagram("8.8.17.111:2", "172.31.1.10:7"), no) {
		t.Error("the flooder's newest connection is not there") // 69,999 is 1*65536 + 17*256 + 111
	}
}

func TestQueriesToASilentResolverAreBounded(t *testing.T) {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	n, flooder, other := crowd(t)
	n.upstream.servers = []string{silent.LocalAddr().String()}
	query := func(g *testGuest, id int, name string) {
		message := append([]byte{byte(id >> 8), byte(id), 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, encodeName(name)...)
		message = append(message, 0, typeA, 0, classIN)
		source := netip.AddrPortFrom(g.address, uint16(20000+id%40000))
		g.sendFrom(g.address, buildUDP(source, netip.AddrPortFrom(n.resolver, dnsPort), message))
	}
	before, most := runtime.NumGoroutine(), 0
	for i := range 3000 {
		query(flooder, i, "example.com")
		most = max(most, runtime.NumGoroutine())
	}
	if most > before+2*maxDNSQueries {
		t.Errorf("%d goroutines for one guest's queries", most-before)
	}
	query(other, 1, "ip-172-31-1-11.ec2.internal")
	if other.frame() == nil {
		t.Error("another guest's query is not answered")
	}
}

func TestANameThatNobodyAnswersForIsNobodyElsesLoss(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		buffer := make([]byte, 1500)
		for {
			length, from, err := server.ReadFrom(buffer)
			if err != nil {
				return
			}
			if q, ok := parseQuestion(buffer[:length]); ok && q.name != "silent.example" {
				server.WriteTo(q.reply(buffer[:length], codeOK, []byte{192, 0, 2, 1}), from)
			}
		}
	}()
	n, flooder, other := crowd(t)
	n.upstream.servers = []string{server.LocalAddr().String()}
	ask := func(g *testGuest, name string) byte {
		p := n.portOf(g.address)
		return n.resolve(dnsQuery(name, typeA), "udp", &p.resolvers)[3] & 15
	}
	if code := ask(flooder, "silent.example"); code != codeServFail {
		t.Fatalf("an answer with code %d", code)
	}
	if code := ask(other, "good.example"); code != codeOK {
		t.Errorf("the other guest's name: code %d", code)
	}
}

func TestASlotEndsWhatWasUsedLeastRecently(t *testing.T) {
	ended := map[string]int{}
	s := newSlots(2)
	a := s.add(closer(func() { ended["a"]++ }))
	b := s.add(closer(func() { ended["b"]++ }))
	a.use()
	c := s.add(closer(func() { ended["c"]++ }))
	b.use()
	b.release()
	c.release()
	s.add(closer(func() { ended["d"]++ }))
	if ended["b"] != 1 || len(ended) != 1 {
		t.Errorf("ended: %v", ended)
	}
}

type closer func()

func (c closer) Close() error { c(); return nil }

func TestAddressesThatNoGuestReaches(t *testing.T) {
	for _, address := range []string{
		"0.0.0.0", "10.0.0.1", "100.64.0.1", "100.100.100.200", "100.127.255.255", "127.0.0.1", "168.63.129.16",
		"169.254.0.23", "169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.255", "192.0.0.192",
		"192.31.196.1", "192.52.193.1", "192.88.99.1", "192.168.1.1", "192.175.48.1", "198.18.0.1", "224.0.0.1",
		"240.0.0.1", "255.255.255.255",
	} {
		if isRoutable(netip.MustParseAddr(address)) {
			t.Errorf("%s is reached", address)
		}
	}
	for _, address := range []string{"8.8.8.8", "100.63.255.255", "100.128.0.1", "168.63.129.15", "172.32.0.1"} {
		if !isRoutable(netip.MustParseAddr(address)) {
			t.Errorf("%s is not reached", address)
		}
	}
}

// openSlots is how many a guest has open of a kind.
func openSlots(s *slots) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open.Len()
}

func TestServiceConnectionsOfOneGuestAreItsOwn(t *testing.T) {
	n, flooder, other := crowd(t)
	open := n.portOf(flooder.address).serviceConns
	for range maxServiceConns + 8 {
		conn, err := flooder.dial("169.254.169.254:80")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if most := openSlots(open); most > maxServiceConns {
			t.Fatalf("%d connections of one guest", most)
		}
	}
	eventually(t, "the flood", func() bool { return openSlots(open) >= maxServiceConns })
	for name, g := range map[string]*testGuest{"the other guest": other, "the flooder": flooder} {
		if err := imdsAnswers(g); err != nil {
			t.Errorf("IMDS for %s: %v", name, err)
		}
	}
}

func TestConnectionsToTheWorldOfOneGuestAreItsOwn(t *testing.T) {
	n, flooder, other := crowd(t)
	n.egress.addresses = func() ([]net.Addr, error) { return nil, nil }
	world, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer world.Close()
	var ended atomic.Int64
	go acceptLoop("world", world.Accept, func(conn net.Conn) {
		go func() {
			io.Copy(io.Discard, conn)
			conn.Close()
			ended.Add(1)
		}()
	})
	n.egress.dial = func(_ context.Context, network, _ string) (net.Conn, error) {
		return net.Dial(network, world.Addr().String())
	}
	open, share := n.portOf(flooder.address).egressConns, descriptorShare()
	kept, err := other.dial("9.9.9.9:80")
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	for i := range share + 8 {
		conn, err := flooder.dial(fmt.Sprintf("8.8.%d.%d:80", i>>8, i&255))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if most := openSlots(open); most > share {
			t.Fatalf("%d connections of one guest", most)
		}
	}
	eventually(t, "the eight oldest are ended", func() bool { return ended.Load() == 8 })
	if openSlots(n.portOf(other.address).egressConns) != 1 {
		t.Error("the other guest's connection is not there any more")
	}
}

// A guest that never answers the second packet of a handshake: each takes a goroutine until it is given up.
func TestHalfOpenConnectionsToServicesAreBounded(t *testing.T) {
	_, flooder, other := crowd(t)
	flooder.deaf.Store(true)
	before, most := runtime.NumGoroutine(), 0
	for i := range 12 * maxHandshakes {
		from := netip.AddrPortFrom(flooder.address, uint16(10000+i))
		flooder.sendFrom(flooder.address, buildTCP(from, netip.MustParseAddrPort("169.254.169.254:80"), 1, 0, flagSYN))
		most = max(most, runtime.NumGoroutine()-before)
	}
	if err := imdsAnswers(other); err != nil { // it is asked behind all of the flood's packets
		t.Errorf("IMDS for the other guest: %v", err)
	}
	if most = max(most, runtime.NumGoroutine()-before); most > 4*maxHandshakes {
		t.Errorf("%d goroutines for one guest's handshakes", most)
	}
	if most < maxHandshakes/2 {
		t.Errorf("a flood of %d handshakes", most)
	}
}

func TestFragmentsOfOneGuestAreItsOwn(t *testing.T) {
	tracker := newTracker(time.Now)
	yes, no := func() bool { return true }, func() bool { return false }
	fragment := func(from string, id int, offset uint16) packet {
		raw := buildUDP(netip.MustParseAddrPort(from), netip.MustParseAddrPort("172.31.1.12:1"), make([]byte, 16))
		binary.BigEndian.PutUint16(raw[4:], uint16(id))
		binary.BigEndian.PutUint16(raw[6:], offset)
		p, ok := parseIP(raw)
		if !ok {
			t.Fatal("unreadable packet")
		}
		return p
	}
	const first, later = 0x2000, 1
	if !tracker.pass(fragment("172.31.1.11:1", 7, first), yes) {
		t.Fatal("the other's first fragment")
	}
	for id := range 3 * maxFragments {
		if !tracker.pass(fragment("172.31.1.10:1", id, first), yes) {
			t.Fatalf("fragment %d of the flooder", id)
		}
		if count := len(tracker.tables[netip.MustParseAddr("172.31.1.10")].fragments); count > maxFragments {
			t.Fatalf("%d packets are awaited of one guest", count)
		}
	}
	if !tracker.pass(fragment("172.31.1.11:1", 7, later), no) {
		t.Error("the rest of the other's packet is not known any more")
	}
	if !tracker.pass(fragment("172.31.1.10:1", 3*maxFragments-1, later), no) {
		t.Error("the rest of the flooder's newest packet is not known")
	}
}

// A guest that does not read: what is sent to it is dropped, and nobody waits for it.
func TestFramesToAGuestThatDoesNotReadAreBounded(t *testing.T) {
	n := testNetwork(t, config{})
	g := newGuest(t, n, 10, "")
	p := n.portOf(g.address)
	queued := func() int {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.out)
	}
	most := 0
	for range 8 * maxQueued { // it takes a thousand, and what its socket holds
		p.toGuest(make([]byte, 4096))
		most = max(most, queued())
	}
	if most != maxQueued {
		t.Errorf("at most %d frames are queued, not %d", most, maxQueued)
	}
}

// Whoever connects to a guest's forwarded ports is a client of that guest alone: beyond its share they are turned away.
func TestClientsOfOneGuestAreItsOwn(t *testing.T) {
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	n := testNetwork(t, config{})
	setGroups(t, n, map[string][]rule{"sg": {allow("tcp", 2200, 2200, "127.0.0.0/8")}})
	// As on a machine with few descriptors, for as long as the shares are worked out.
	low := syscall.Rlimit{Cur: 512, Max: before.Max}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	share := descriptorShare()
	flooded, other := newGuest(t, n, 10, "127.126.125.41", "sg"), newGuest(t, n, 11, "127.126.125.42", "sg")
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	for _, g := range []*testGuest{flooded, other} {
		listener := g.listen(2200)
		go acceptLoop("guest", listener.Accept, func(conn net.Conn) { conn.Write([]byte("SSH-2.0-x\r\n")) })
		g.speak()
	}
	banner := func(address string) (net.Conn, error) {
		conn, err := net.DialTimeout("tcp", address, longEnough)
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(longEnough))
		_, err = io.ReadFull(conn, make([]byte, 4))
		return conn, err
	}
	eventually(t, "a banner", func() bool { _, err := banner("127.126.125.42:2200"); return err == nil })
	eventually(t, "a banner of the flooded one", func() bool {
		conn, err := banner("127.126.125.41:2200")
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	served := 0
	for range 4*share + 16 {
		if _, err := banner("127.126.125.41:2200"); err == nil {
			served++
		}
	}
	if served > 4*share || served < 2*share {
		t.Errorf("%d clients of one guest are served at once, with a share of %d", served, share)
	}
	if _, err := banner("127.126.125.42:2200"); err != nil {
		t.Errorf("the other guest: %v", err)
	}
}
