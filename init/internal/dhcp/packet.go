package dhcp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Message types (RFC 2132, section 9.6).
const (
	discover = 1
	offer    = 2
	request  = 3
	ack      = 5
	nak      = 6
)

// Option codes (RFC 2132).
const (
	optPad         = 0
	optMask        = 1
	optRouter      = 3
	optDNS         = 6
	optHostname    = 12
	optDomain      = 15
	optMTU         = 26
	optRequestedIP = 50
	optLeaseTime   = 51
	optMessageType = 53
	optServerID    = 54
	optParameters  = 55
	optMaxSize     = 57
	optT1          = 58
	optT2          = 59
	optEnd         = 255
)

const (
	serverPort = 67
	clientPort = 68

	ipHeader  = 20
	udpHeader = 8
	// fixed is BOOTP's part with the magic cookie (RFC 2131, section 2); options follow it.
	fixed  = 240
	cookie = 0x63825363
	// minimum is the size below which BOOTP relays may drop a message (RFC 1542, section 2.1).
	minimum = 300
)

// wanted is what the client asks the server for.
var wanted = []byte{optMask, optRouter, optDNS, optHostname, optDomain, optMTU, optLeaseTime, optT1, optT2}

// A message is the part of a DHCP message that this client writes or reads.
type message struct {
	kind      byte
	xid       uint32
	mac       [6]byte
	current   [4]byte // ciaddr: the address that the client has, only sent
	server    [4]byte // option 54
	requested [4]byte // option 50, only sent
	lease     Lease   // only received
}

// encode returns the payload of UDP. A request with a current address renews, one without accepts an offer
// (RFC 2131, section 4.3.2).
func (m message) encode() []byte {
	bootp := make([]byte, fixed, minimum)
	bootp[0], bootp[1], bootp[2] = 1, 1, 6 // request, Ethernet, length of a MAC
	binary.BigEndian.PutUint32(bootp[4:], m.xid)
	copy(bootp[12:], m.current[:])
	copy(bootp[28:], m.mac[:])
	binary.BigEndian.PutUint32(bootp[236:], cookie)
	option := func(code byte, value ...byte) {
		bootp = append(append(bootp, code, byte(len(value))), value...)
	}
	option(optMessageType, m.kind)
	if m.kind == request && m.current == [4]byte{} {
		option(optRequestedIP, m.requested[:]...)
		option(optServerID, m.server[:]...)
	}
	option(optMaxSize, 1500>>8, 1500&0xff)
	option(optParameters, wanted...)
	bootp = append(bootp, optEnd)
	for len(bootp) < minimum {
		bootp = append(bootp, optPad)
	}
	return bootp
}

// encapsulate makes an IPv4 packet from 0.0.0.0 to the broadcast address.
func encapsulate(payload []byte) []byte {
	packet := make([]byte, ipHeader+udpHeader, ipHeader+udpHeader+len(payload))
	packet = append(packet, payload...)
	ip, udp := packet[:ipHeader], packet[ipHeader:]

	binary.BigEndian.PutUint16(udp[0:], clientPort)
	binary.BigEndian.PutUint16(udp[2:], serverPort)
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))

	ip[0] = 4<<4 | ipHeader/4
	binary.BigEndian.PutUint16(ip[2:], uint16(len(packet)))
	ip[8], ip[9] = 64, protocolUDP // 64: time to live
	copy(ip[16:], []byte{255, 255, 255, 255})

	// The pseudo header of RFC 768: both addresses, the protocol, the length.
	sum := checksum(udp, addUp(ip[12:20], protocolUDP+uint32(len(udp))))
	if sum == 0 {
		sum = 0xffff // zero would say "no checksum"
	}
	binary.BigEndian.PutUint16(udp[6:], sum)
	binary.BigEndian.PutUint16(ip[10:], checksum(ip, 0))
	return packet
}

func addUp(data []byte, sum uint32) uint32 {
	for ; len(data) >= 2; data = data[2:] {
		sum += uint32(binary.BigEndian.Uint16(data))
	}
	if len(data) == 1 {
		sum += uint32(data[0]) << 8
	}
	return sum
}

// checksum is the Internet checksum (RFC 1071).
func checksum(data []byte, start uint32) uint16 {
	sum := addUp(data, start)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

var errNotOurs = errors.New("not a DHCP reply")

// decapsulate returns the payload of an IPv4 packet to the client's UDP port. Checksums are not verified: an
// offloading NIC leaves them unfinished on packets from the same host, and xid, MAC and cookie are a better filter.
func decapsulate(packet []byte) ([]byte, error) {
	if len(packet) < ipHeader || packet[0]>>4 != 4 || packet[9] != protocolUDP {
		return nil, errNotOurs
	}
	udp := packet[min(int(packet[0]&0xf)*4, len(packet)):]
	if len(udp) < udpHeader || binary.BigEndian.Uint16(udp[2:]) != clientPort {
		return nil, errNotOurs
	}
	return udp[udpHeader:], nil
}

// decode reads what a server sent.
func decode(bootp []byte) (message, error) {
	if len(bootp) < fixed || bootp[0] != 2 || binary.BigEndian.Uint32(bootp[236:]) != cookie {
		return message{}, errNotOurs
	}
	m := message{xid: binary.BigEndian.Uint32(bootp[4:])}
	copy(m.mac[:], bootp[28:])
	copy(m.lease.IP[:], bootp[16:])
	err := m.options(bootp[fixed:])
	m.lease.Server = m.server
	return m, err
}

func (m *message) options(data []byte) error {
	for len(data) > 0 && data[0] != optEnd {
		if data[0] == optPad {
			data = data[1:]
			continue
		}
		if len(data) < 2 || len(data) < 2+int(data[1]) {
			return fmt.Errorf("DHCP option %d is cut off", data[0])
		}
		m.option(data[0], data[2:2+int(data[1])])
		data = data[2+int(data[1]):]
	}
	if m.kind == 0 {
		return errNotOurs // plain BOOTP
	}
	return nil
}

// option ignores values of a wrong length: what is missing shows in the lease.
func (m *message) option(code byte, value []byte) {
	switch code {
	case optMessageType:
		if len(value) == 1 {
			m.kind = value[0]
		}
	case optServerID:
		copyAddress(&m.server, value)
	case optMask:
		copyAddress(&m.lease.Mask, value)
	case optRouter:
		copyAddress(&m.lease.Router, value)
	case optDNS:
		for ; len(value) >= 4; value = value[4:] {
			m.lease.DNS = append(m.lease.DNS, [4]byte(value))
		}
	case optMTU:
		if len(value) == 2 {
			m.lease.MTU = int(binary.BigEndian.Uint16(value))
		}
	case optLeaseTime:
		copySeconds(&m.lease.Duration, value)
	case optT1:
		copySeconds(&m.lease.T1, value)
	case optT2:
		copySeconds(&m.lease.T2, value)
	case optHostname:
		m.lease.Hostname = name(value)
	case optDomain:
		m.lease.Domain = name(value)
	}
}

// copySeconds leaves 0 for what never ends (RFC 2132, section 9.2: all bits set).
func copySeconds(to *time.Duration, value []byte) {
	if len(value) == 4 && [4]byte(value) != [4]byte{255, 255, 255, 255} {
		*to = time.Duration(binary.BigEndian.Uint32(value)) * time.Second
	}
}

func copyAddress(to *[4]byte, value []byte) {
	if len(value) >= 4 {
		copy(to[:], value)
	}
}

// name keeps a host or domain name only when it looks like one: it goes into resolv.conf and hosts.
func name(value []byte) string {
	text := strings.TrimRight(string(value), "\x00")
	for _, c := range text {
		ok := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.'
		if !ok {
			return ""
		}
	}
	return text
}
