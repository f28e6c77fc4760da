package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

const (
	egressTimeout = 30 * time.Second // for a TCP connect to the internet
	udpIdle       = 60 * time.Second
)

// unroutable are the destinations that no internet gateway carries, or that are a cloud's own: what IANA's registry of
// special-purpose addresses (RFC 6890) does not call globally reachable, and where clouds serve metadata to their
// machines. Refusing them keeps guests off the host's loopback, its link-local services, its local networks and the
// credentials of the machine that it is. Guests have no IPv6, so fd00:ec2::254 and its like cannot be reached at all.
var unroutable = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"), // carriers' own; Alibaba's metadata at 100.100.100.200
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("168.63.129.16/32"), // Azure's WireServer, an address like any other
	netip.MustParsePrefix("169.254.0.0/16"),   // metadata of AWS, Google, Azure, Tencent and most others
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.0.0.0/24"), // Oracle's metadata at 192.0.0.192
	netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("192.31.196.0/24"), // AS112
	netip.MustParsePrefix("192.52.193.0/24"), // AMT
	netip.MustParsePrefix("192.88.99.0/24"),  // 6to4 relays
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("192.175.48.0/24"), // AS112
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("224.0.0.0/3"),
}

// egress is the way to the internet; what a guest has open there is its port's.
type egress struct {
	addresses func() ([]net.Addr, error)
	dial      func(ctx context.Context, network, address string) (net.Conn, error)
}

func newEgress() *egress {
	return &egress{addresses: net.InterfaceAddrs, dial: (&net.Dialer{}).DialContext}
}

type udpFlow struct{ from, to netip.AddrPort }

// udpFlows are one guest's.
type udpFlows struct {
	mu    sync.Mutex
	open  map[udpFlow]*udpSocket
	slots *slots
}

type udpSocket struct {
	net.Conn
	slot slot
}

func newUDPFlows(most int) *udpFlows {
	return &udpFlows{open: map[udpFlow]*udpSocket{}, slots: newSlots(most)}
}

// isRoutable reports whether an internet gateway would carry a packet to this address.
func isRoutable(to netip.Addr) bool {
	for _, prefix := range unroutable {
		if prefix.Contains(to) {
			return false
		}
	}
	return true
}

// isOwnAddress reports whether an address is one of this host's, or could be because they cannot be listed.
// It asks the kernel, which takes tens of microseconds: it is for the first packet of a flow.
func (e *egress) isOwnAddress(to netip.Addr) bool {
	own, err := e.addresses()
	if err != nil {
		return true
	}
	for _, address := range own {
		if network, ok := address.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(network.IP); ok && ip.Unmap() == to {
				return true
			}
		}
	}
	return false
}

// egressPacket sends a packet towards the internet, or answers at once that the network is unreachable. EC2 stays silent
// there; a guest that waits for nothing would only make every measurement of it slower.
func (n *network) egressPacket(p *port, packet packet) {
	if !n.allowEgress || !p.publicAddress().IsValid() || !isRoutable(packet.dst) {
		n.sendUnreachable(p, packet)
		return
	}
	toHost := false
	admitted := n.tracker.pass(packet, func() bool {
		if toHost = n.egress.isOwnAddress(packet.dst); toHost {
			return false
		}
		groups := p.memberships()
		n.mu.RLock()
		defer n.mu.RUnlock()
		return n.admits(groups, true, packet, packet.dst, nil)
	})
	switch {
	case toHost:
		n.sendUnreachable(p, packet)
	case !admitted:
	case packet.fragment || packet.moreFragments:
	case packet.proto == protoTCP:
		n.stack.inject(packet.ip)
	case packet.proto == protoUDP:
		n.egressUDP(p, packet)
	default: // raw sockets need privileges
		n.sendUnreachable(p, packet)
	}
}

// sendUnreachable answers anything but an ICMP error (RFC 1122, 3.2.2).
func (n *network) sendUnreachable(p *port, packet packet) {
	if !packet.fragment && (packet.proto != protoICMP || packet.payload[0] == icmpEchoRequest) {
		p.packetToGuest(buildUnreachable(p.gateway, packet, codeNet))
	}
}

func (n *network) egressUDP(p *port, packet packet) {
	flow := udpFlow{netip.AddrPortFrom(packet.src, packet.srcPort), netip.AddrPortFrom(packet.dst, packet.dstPort)}
	socket := n.udpSocket(p, flow)
	if socket == nil {
		n.sendUnreachable(p, packet)
		return
	}
	socket.slot.use()
	socket.SetReadDeadline(time.Now().Add(udpIdle))
	if _, err := socket.Write(packet.payload[udpHeader:]); err != nil && !errors.Is(err, net.ErrClosed) {
		p.packetToGuest(buildUnreachable(packet.dst, packet, codePort))
	}
}

// udpSocket returns the socket of a flow, which it opens when there is none; nil when it cannot be opened.
func (n *network) udpSocket(p *port, flow udpFlow) *udpSocket {
	flows := p.udp
	flows.mu.Lock()
	defer flows.mu.Unlock()
	if socket := flows.open[flow]; socket != nil {
		return socket
	}
	conn, err := n.egress.dial(context.Background(), "udp", flow.to.String()) // sends nothing: it does not wait
	if err != nil {
		return nil
	}
	socket := &udpSocket{Conn: conn}
	socket.slot = flows.slots.add(conn)
	flows.open[flow] = socket
	go n.receiveUDP(p, flow, socket)
	return socket
}

func (n *network) receiveUDP(p *port, flow udpFlow, socket *udpSocket) {
	release := p.hold(socket)
	defer func() {
		release()
		p.udp.mu.Lock()
		delete(p.udp.open, flow)
		p.udp.mu.Unlock()
		socket.slot.release()
		socket.Close()
	}()
	buffer := make([]byte, guestMTU-ipHeader-udpHeader)
	for {
		length, err := socket.Read(buffer)
		if err != nil {
			return
		}
		p.packetToGuest(buildUDP(flow.to, flow.from, buffer[:length]))
	}
}

// handleSegment gives a guest's segment without a connection to what accepts that guest's connections. Each guest has
// its own: the handshakes that wait are its own, too.
func (n *network) handleSegment(id stack.TransportEndpointID, segment *stack.PacketBuffer) bool {
	p := n.portOf(address(id.RemoteAddress))
	if p == nil {
		return true
	}
	if to := address(id.LocalAddress); isService(to) || to == n.resolver {
		return p.serviceHandshakes.HandlePacket(id, segment)
	}
	return p.egressHandshakes.HandlePacket(id, segment)
}

// acceptService handles the guest's connection to a service.
func (p *port) acceptService(request *tcp.ForwarderRequest) {
	id, n := request.ID(), p.net
	to := netip.AddrPortFrom(address(id.LocalAddress), id.LocalPort)
	var serve func(*guestConn)
	switch {
	case to == netip.AddrPortFrom(imdsAddress, 80) && !p.metadata.Refuses():
		serve = func(conn *guestConn) { p.metadata.ServeConn(conn) }
	case to.Port() == dnsPort && (to.Addr() == n.resolver || to.Addr() == resolverAddress):
		serve = func(conn *guestConn) { n.serveDNS(p, conn) }
	default:
		request.Complete(true)
		return
	}
	conn, err := complete(request)
	if err != nil {
		return
	}
	place, release := p.serviceConns.add(conn), p.hold(conn)
	defer place.release()
	defer release()
	serve(conn)
}

// acceptEgress handles the guest's connection to the internet.
func (p *port) acceptEgress(request *tcp.ForwarderRequest) {
	id, n := request.ID(), p.net
	to := netip.AddrPortFrom(address(id.LocalAddress), id.LocalPort)
	if !n.allowEgress || n.vpc.Contains(to.Addr()) || !isRoutable(to.Addr()) || n.egress.isOwnAddress(to.Addr()) {
		request.Complete(true)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), egressTimeout)
	defer cancel()
	place := p.egressConns.add(&canceller{cancel})
	conn, err := n.egress.dial(ctx, "tcp", to.String())
	place.release()
	if err != nil {
		request.Complete(true)
		return
	}
	guest, err := complete(request)
	if err != nil {
		conn.Close()
		return
	}
	host := conn.(*net.TCPConn)
	pair := ender{host, guest}
	place, release := p.egressConns.add(pair), p.hold(pair)
	defer place.release()
	defer release()
	splice(host, guest)
}
