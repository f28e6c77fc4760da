package main

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

const (
	egressTimeout = 30 * time.Second // for a TCP connect to the internet
	udpIdle       = 60 * time.Second
	maxUDPFlows   = 512
)

// unroutable are the destinations that no internet gateway carries: private, shared, test and special ranges.
// Refusing them keeps guests off the host's loopback, its link-local services and its local networks.
var unroutable = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.0.0.0/24"), netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("224.0.0.0/3"),
}

// egress carries guests' UDP to the internet; TCP is spliced in acceptTCP.
type egress struct {
	addresses func() ([]net.Addr, error)
	dial      func(network, address string, timeout time.Duration) (net.Conn, error)

	mu    sync.Mutex
	flows map[udpFlow]net.Conn
}

type udpFlow struct{ from, to netip.AddrPort }

func newEgress() *egress {
	return &egress{addresses: net.InterfaceAddrs, dial: net.DialTimeout, flows: map[udpFlow]net.Conn{}}
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
	e := n.egress
	e.mu.Lock()
	conn := e.flows[flow]
	if conn == nil && len(e.flows) < maxUDPFlows {
		if dialled, err := e.dial("udp", flow.to.String(), time.Second); err == nil { // sends nothing: it does not wait
			conn = dialled
			e.flows[flow] = conn
			go n.receiveUDP(p, flow, conn)
		}
	}
	e.mu.Unlock()
	if conn == nil {
		n.sendUnreachable(p, packet)
		return
	}
	conn.SetReadDeadline(time.Now().Add(udpIdle))
	if _, err := conn.Write(packet.payload[udpHeader:]); err != nil {
		p.packetToGuest(buildUnreachable(packet.dst, packet, codePort))
	}
}

func (n *network) receiveUDP(p *port, flow udpFlow, conn net.Conn) {
	release := p.hold(conn)
	defer func() {
		release()
		n.egress.mu.Lock()
		delete(n.egress.flows, flow)
		n.egress.mu.Unlock()
		conn.Close()
	}()
	buffer := make([]byte, guestMTU-ipHeader-udpHeader)
	for {
		length, err := conn.Read(buffer)
		if err != nil {
			return
		}
		p.packetToGuest(buildUDP(flow.to, flow.from, buffer[:length]))
	}
}

// acceptTCP handles a guest's connection to anything that is not a guest: a service, or the internet.
func (n *network) acceptTCP(request *tcp.ForwarderRequest) {
	id := request.ID()
	to := netip.AddrPortFrom(address(id.LocalAddress), id.LocalPort)
	p := n.portOf(address(id.RemoteAddress))
	switch {
	case p == nil:
		request.Complete(false)
	case to == netip.AddrPortFrom(imdsAddress, 80) && p.metadata.Refuses():
		request.Complete(true)
	case to == netip.AddrPortFrom(imdsAddress, 80):
		if conn, err := complete(request); err == nil {
			release := p.hold(conn)
			p.metadata.ServeConn(conn)
			release()
		}
	case to.Port() == dnsPort && (to.Addr() == n.resolver || to.Addr() == resolverAddress):
		if conn, err := complete(request); err == nil {
			release := p.hold(conn)
			n.serveDNS(conn)
			release()
		}
	case !n.allowEgress || isService(to.Addr()) || n.vpc.Contains(to.Addr()) ||
		!isRoutable(to.Addr()) || n.egress.isOwnAddress(to.Addr()):
		request.Complete(true)
	default:
		n.egressTCP(p, request, to)
	}
}

func (n *network) egressTCP(p *port, request *tcp.ForwarderRequest, to netip.AddrPort) {
	conn, err := n.egress.dial("tcp", to.String(), egressTimeout)
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
	release := p.hold(ender{host, guest})
	defer release()
	splice(host, guest)
}
