package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"instantenv/internal/imds"
)

const (
	maxFrame = 1 << 16
	// A guest that does not take its frames loses them beyond this, as with a full ring of a real card.
	maxQueued = 1024
)

// portConfig describes one network interface, as the server sends it.
type portConfig struct {
	ID       string   `json:"id"`
	VPC      string   `json:"vpc"`
	VPCCIDR  string   `json:"vpc_cidr"`
	Socket   string   `json:"socket"` // where QEMU connects to
	MAC      string   `json:"mac"`
	Address  string   `json:"address"`
	Subnet   string   `json:"subnet"`
	Public   string   `json:"public"` // its loopback address on the host, or none
	HostName string   `json:"host_name"`
	Metadata string   `json:"metadata"` // the file that its IMDS serves
	Groups   []string `json:"groups"`
}

// port is one network interface of a guest: QEMU at the other end of a Unix socket, which carries Ethernet
// frames, each behind its length (4 bytes, big endian).
type port struct {
	id       string
	socket   string
	mac      hardwareAddr
	address  netip.Addr
	subnet   netip.Prefix
	gateway  netip.Addr
	hostName string
	metadata *imds.Server

	net      *network
	listener *net.UnixListener
	forwards *portForwards

	// What the guest can have of what all share (bounds.go).
	serviceHandshakes, egressHandshakes *tcp.Forwarder
	serviceConns, egressConns           *slots
	queries                             semaphore
	clients                             semaphore // of the host, at forwarded ports
	udp                                 *udpFlows
	resolvers                           rests

	mu     sync.Mutex // over what follows; taken after network.mu
	public netip.Addr
	groups []string
	faults faults
	out    chan frame // of the present connection
	// closers are closed when the guest is gone: forwarded connections, flows to the internet.
	closers map[io.Closer]struct{}

	up atomic.Bool // the guest has used its address since QEMU connected or since its last DHCPDISCOVER
}

type frame struct {
	data []byte
	due  time.Time
}

func newPort(n *network, c portConfig) (*port, error) {
	mac, err := net.ParseMAC(c.MAC)
	if err != nil || len(mac) != 6 {
		return nil, fmt.Errorf("%s: bad hardware address %q", c.ID, c.MAC)
	}
	address, err := netip.ParseAddr(c.Address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.ID, err)
	}
	subnet, err := netip.ParsePrefix(c.Subnet)
	if err != nil || !subnet.Addr().Is4() || !subnet.Contains(address) {
		return nil, fmt.Errorf("%s: %s is not in the subnet %q", c.ID, address, c.Subnet)
	}
	p := &port{
		id: c.ID, socket: c.Socket, mac: hardwareAddr(mac), address: address, subnet: subnet.Masked(),
		gateway: subnet.Masked().Addr().Next(), hostName: c.HostName, net: n,
		metadata: n.metadataServer(c.Metadata), closers: map[io.Closer]struct{}{},
	}
	p.forwards = newPortForwards(p)
	share := descriptorShare()
	p.serviceHandshakes = tcp.NewForwarder(n.stack.stack, 0, maxHandshakes, p.acceptService)
	p.egressHandshakes = tcp.NewForwarder(n.stack.stack, 0, maxHandshakes, p.acceptEgress)
	p.serviceConns, p.egressConns = newSlots(maxServiceConns), newSlots(share)
	p.queries, p.udp = make(semaphore, min(maxDNSQueries, share)), newUDPFlows(share)
	p.resolvers.since = map[string]time.Time{}
	p.clients = make(semaphore, 4*share)
	if err := p.change(c); err != nil {
		return nil, err
	}
	if err := os.Remove(c.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	p.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: c.Socket, Net: "unix"})
	return p, err
}

// change sets the public address and the groups, which may change while the guest runs.
func (p *port) change(c portConfig) error {
	public := netip.Addr{}
	if c.Public != "" {
		var err error
		if public, err = netip.ParseAddr(c.Public); err != nil || !public.IsLoopback() {
			return fmt.Errorf("%s: %q is not a loopback address", c.ID, c.Public)
		}
	}
	p.mu.Lock()
	p.public, p.groups = public, slices.Clone(c.Groups)
	p.mu.Unlock()
	return nil
}

func (p *port) memberships() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.groups
}

func (p *port) isMember(group string) bool { return slices.Contains(p.memberships(), group) }

func (p *port) publicAddress() netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.public
}

// serve accepts QEMU's connections, one after the other, until the port is closed.
func (p *port) serve() {
	acceptLoop(p.id, p.listener.AcceptUnix, p.connection)
}

func (p *port) connection(conn *net.UnixConn) {
	out, inbound := make(chan frame, maxQueued), make(chan frame, maxQueued)
	p.mu.Lock()
	p.out = out
	p.closers[conn] = struct{}{}
	p.mu.Unlock()
	var done sync.WaitGroup
	done.Add(2)
	go func() {
		defer done.Done()
		write(conn, out)
	}()
	go func() {
		defer done.Done()
		for f := range inbound { // only frames that a fault delays come this way
			time.Sleep(time.Until(f.due))
			p.net.fromGuest(p, f.data)
		}
	}()
	reader := bufio.NewReaderSize(conn, maxFrame)
	for {
		data, err := readFrame(reader)
		if err != nil {
			break
		}
		drop, delay := p.fault()
		switch {
		case drop:
		case delay > 0:
			select {
			case inbound <- frame{data, time.Now().Add(delay)}:
			default:
			}
		default:
			p.net.fromGuest(p, data)
		}
	}
	p.mu.Lock()
	p.out = nil
	p.mu.Unlock()
	close(out)
	close(inbound)
	p.unplugged()
	done.Wait()
}

func readFrame(reader io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(reader, head[:]); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint32(head[:])
	if length > maxFrame {
		return nil, fmt.Errorf("a frame of %d bytes", length)
	}
	data := make([]byte, length)
	_, err := io.ReadFull(reader, data)
	return data, err
}

// write sends frames until the channel is closed; after an error it only empties it.
func write(conn net.Conn, out <-chan frame) {
	defer conn.Close()
	writer := bufio.NewWriterSize(conn, 4*maxFrame)
	for f := range out {
		if !f.due.IsZero() {
			writer.Flush()
			time.Sleep(time.Until(f.due))
		}
		writer.Write(binary.BigEndian.AppendUint32(nil, uint32(len(f.data)))) // an error shows in Flush
		writer.Write(f.data)
		if len(out) == 0 && writer.Flush() != nil {
			conn.Close()
		}
	}
}

// toGuest queues a frame; it never waits.
func (p *port) toGuest(data []byte) {
	drop, delay := p.fault()
	if drop {
		return
	}
	f := frame{data: data}
	if delay > 0 {
		f.due = time.Now().Add(delay)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.out == nil {
		return
	}
	select {
	case p.out <- f:
	default:
	}
}

// packetToGuest sends an IP packet as from the gateway.
func (p *port) packetToGuest(packet []byte) {
	p.toGuest(etherFrame(p.mac, gatewayMAC, etherTypeIP, packet))
}

// hold registers what is closed when the guest is gone; call release when it has ended by itself.
func (p *port) hold(c io.Closer) (release func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closers[c] = struct{}{}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.closers, c)
	}
}

// unplugged closes everything that depends on a guest that is gone or reboots.
func (p *port) unplugged() {
	p.up.Store(false)
	p.forwards.closeAll()
	p.mu.Lock()
	closers := p.closers
	p.closers = map[io.Closer]struct{}{}
	p.mu.Unlock()
	for c := range closers {
		c.Close()
	}
	p.net.tracker.forget(p.address)
}

func (p *port) close() {
	p.listener.Close() // removes the socket, too
	p.unplugged()
}
