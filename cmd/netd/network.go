package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"instantenv/internal/imds"
)

var (
	// gatewayMAC is the VPC's router to every guest; 0a: as EC2's, locally administered.
	gatewayMAC = hardwareAddr{0x0a, 0xec, 0x20, 0, 0, 1}

	imdsAddress     = netip.AddrFrom4([4]byte{169, 254, 169, 254})
	resolverAddress = netip.AddrFrom4([4]byte{169, 254, 169, 253})
	timeAddress     = netip.AddrFrom4([4]byte{169, 254, 169, 123})
)

// isService reports whether EC2 itself serves an address. Security groups do not apply to these.
func isService(address netip.Addr) bool {
	return address == imdsAddress || address == resolverAddress || address == timeAddress
}

// config does not change for the life of a network; vpc is each network's own.
type config struct {
	vpc         netip.Prefix
	domain      string // of private host names
	allowEgress bool   // whether guests with a public address reach the internet
	portOffset  int    // a guest's port below 1024 is this much higher on the host
}

// network is one VPC: its interfaces, its security groups, its services.
type network struct {
	config
	resolver netip.Addr // the VPC's base address + 2
	tracker  *tracker
	stack    *hostStack
	upstream *upstream
	clients  *clients
	egress   *egress
	onUp     func(*port) // a guest has sent its first packet since it booted

	mu         sync.RWMutex
	ports      map[string]*port
	byAddress  map[netip.Addr]*port
	groups     map[string][]rule
	servers    map[string]*imds.Server // by metadata file: the interfaces of one instance share it
	generation int                     // counts changes that may open or close forwarded ports
}

func newNetwork(c config) (*network, error) {
	n := &network{
		config: c, resolver: c.vpc.Masked().Addr().Next().Next(), tracker: newTracker(time.Now),
		ports: map[string]*port{}, byAddress: map[netip.Addr]*port{}, servers: map[string]*imds.Server{},
		upstream: newUpstream("/etc/resolv.conf"), clients: newClients(),
	}
	n.egress, n.onUp = newEgress(), func(*port) {}
	var err error
	n.stack, err = newHostStack(n.toAddress, n.handleSegment)
	return n, err
}

func (n *network) metadataServer(file string) *imds.Server {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.servers[file] == nil {
		n.servers[file] = imds.NewServer(file)
	}
	return n.servers[file]
}

// setPort adds an interface, or changes its public address and groups when it is known.
func (n *network) setPort(c portConfig) error {
	n.mu.RLock()
	known := n.ports[c.ID]
	n.mu.RUnlock()
	if known != nil && known.socket == c.Socket && known.address.String() == c.Address {
		err := known.change(c)
		n.changed()
		return err
	}
	if known != nil {
		n.removePort(c.ID)
	}
	p, err := newPort(n, c)
	if err != nil {
		return err
	}
	n.mu.Lock()
	if other := n.byAddress[p.address]; other != nil {
		n.mu.Unlock()
		p.close()
		return fmt.Errorf("%s is the address of %s", p.address, other.id)
	}
	n.ports[p.id], n.byAddress[p.address] = p, p
	n.generation++
	n.mu.Unlock()
	go p.serve()
	return nil
}

func (n *network) removePort(id string) {
	n.mu.Lock()
	p := n.ports[id]
	if p != nil {
		delete(n.ports, id)
		delete(n.byAddress, p.address)
		n.generation++
		n.forgetMetadata(p)
	}
	n.mu.Unlock()
	if p != nil {
		p.close()
	}
}

// forgetMetadata drops the metadata service of an interface's instance when no other interface uses it; n.mu is
// held.
func (n *network) forgetMetadata(p *port) {
	for _, other := range n.ports {
		if other.metadata == p.metadata {
			return
		}
	}
	for file, server := range n.servers {
		if server == p.metadata {
			delete(n.servers, file)
		}
	}
}

// parseRanges reads the ranges of all rules, once for all networks: they share the rules.
func parseRanges(groups map[string][]rule) error {
	for id, rules := range groups {
		for i := range rules {
			prefix, err := netip.ParsePrefix(rules[i].CIDR)
			if rules[i].CIDR != "" && err != nil {
				return fmt.Errorf("%s: %w", id, err)
			}
			if prefix.IsValid() && prefix.Addr().Is4() {
				rules[i].prefix = prefix.Masked()
			}
		}
	}
	return nil
}

// setGroups replaces all security groups; their ranges have been read.
func (n *network) setGroups(groups map[string][]rule) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.groups = groups
	n.generation++
}

func (n *network) changed() {
	n.mu.Lock()
	n.generation++
	n.mu.Unlock()
}

func (n *network) portOf(address netip.Addr) *port {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.byAddress[address]
}

// toAddress sends a packet of netd's own TCP stack to a guest.
func (n *network) toAddress(to netip.Addr, packet []byte) {
	if p := n.portOf(to); p != nil {
		p.packetToGuest(packet)
	}
}

// fromGuest handles one Ethernet frame of a guest, and may change it.
func (n *network) fromGuest(p *port, data []byte) {
	if len(data) < etherHeader || hardwareAddr(data[6:12]) != p.mac {
		return
	}
	payload := data[etherHeader:]
	switch binary.BigEndian.Uint16(data[12:]) {
	case etherTypeARP:
		if reply := n.answerARP(p, payload); reply != nil {
			p.toGuest(reply)
		}
	case etherTypeIP:
		packet, ok := parseIP(payload)
		if !ok {
			return
		}
		if packet.proto == protoUDP && packet.dstPort == dhcpServerPort && !packet.fragment {
			n.dhcp(p, packet.payload[udpHeader:])
			return
		}
		if packet.src != p.address { // EC2's source check
			return
		}
		if !p.up.Swap(true) {
			n.onUp(p)
		}
		n.route(p, packet, data[:etherHeader+len(packet.ip)])
	}
}

func (n *network) dhcp(p *port, message []byte) {
	if p.dropsDHCP() {
		return
	}
	reply := n.answerDHCP(p, message)
	if reply == nil {
		return
	}
	if options, _ := dhcpOptions(message); options[optType][0] == dhcpDiscover {
		p.up.Store(false) // it has just booted, so nothing listens yet
		p.forwards.closeAll()
	}
	p.toGuest(reply)
}

// route decides where a packet of a guest goes.
func (n *network) route(p *port, packet packet, data []byte) {
	to := packet.dst
	switch {
	case isService(to) || to == n.resolver:
		n.service(p, packet)
	case to == probeAddress:
		p.forwards.handleProbeReply(packet)
	case clientRange.Contains(to):
		n.stack.inject(packet.ip) // admitted when the client's connection was accepted
	case n.vpc.Contains(to):
		n.between(p, packet, data)
	case to.IsMulticast() || to == broadcastAddress:
	default:
		n.egressPacket(p, packet)
	}
}

var broadcastAddress = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// between passes a packet from one guest to another when both sides' security groups admit it.
func (n *network) between(p *port, packet packet, data []byte) {
	peer := n.portOf(packet.dst)
	if peer == nil || peer == p {
		return
	}
	admitted := n.tracker.pass(packet, func() bool {
		ours, theirs := p.memberships(), peer.memberships()
		n.mu.RLock()
		defer n.mu.RUnlock()
		return n.admits(ours, true, packet, packet.dst, peer) && n.admits(theirs, false, packet, packet.src, p)
	})
	if !admitted {
		return
	}
	from := gatewayMAC
	if p.subnet == peer.subnet {
		from = p.mac
	}
	copy(data, peer.mac[:])
	copy(data[6:], from[:])
	peer.toGuest(data)
}

// service answers at the addresses that EC2 serves itself.
func (n *network) service(p *port, packet packet) {
	switch {
	case packet.fragment:
	case packet.dstPort == dnsPort && p.silentDNS():
	case packet.proto == protoTCP:
		n.stack.inject(packet.ip)
	case packet.proto == protoUDP:
		data := packet.payload[udpHeader:]
		answer := func(reply []byte) {
			source := netip.AddrPortFrom(packet.dst, packet.dstPort)
			p.packetToGuest(buildUDP(source, netip.AddrPortFrom(packet.src, packet.srcPort), reply))
		}
		switch {
		case packet.dstPort == dnsPort && (packet.dst == n.resolver || packet.dst == resolverAddress):
			if !p.queries.tryAcquire() {
				return // its resolver is busy with its own queries; it asks again
			}
			go func() { // it may have to ask the host's resolvers
				defer p.queries.release()
				if reply := n.resolve(data, "udp", &p.resolvers); reply != nil {
					answer(reply)
				}
			}()
		case packet.dstPort == ntpPort && packet.dst == timeAddress:
			if reply := answerNTP(data, time.Now()); reply != nil {
				answer(reply)
			}
		default:
			p.packetToGuest(buildUnreachable(packet.dst, packet, codePort))
		}
	}
}

func (n *network) close() {
	n.mu.RLock()
	ids := make([]string, 0, len(n.ports))
	for id := range n.ports {
		ids = append(ids, id)
	}
	n.mu.RUnlock()
	for _, id := range ids {
		n.removePort(id)
	}
	n.stack.stack.Close()
}
