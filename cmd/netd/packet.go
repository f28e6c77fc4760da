package main

import (
	"encoding/binary"
	"net/netip"
)

const (
	etherHeader  = 14
	etherTypeIP  = 0x0800
	etherTypeARP = 0x0806
	ipHeader     = 20
	udpHeader    = 8
	tcpHeader    = 20
	defaultTTL   = 64

	protoICMP = 1
	protoTCP  = 6
	protoUDP  = 17

	flagFIN = 0x01
	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10
)

type hardwareAddr [6]byte

var broadcast = hardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// packet is an IPv4 packet with what decides its way taken out of it. Ports of ICMP are its type and code, or
// the identifier of an echo on both sides, so that a reply matches its request.
type packet struct {
	ip               []byte // header and payload, without padding of the frame
	payload          []byte // behind the IP header
	src, dst         netip.Addr
	proto            byte
	srcPort, dstPort uint16
	tcpFlags         byte
	fragment         bool // not the first one: its ports are unknown
	identification   uint16
	moreFragments    bool
}

// parseIP reads an IPv4 packet; false when it is none or is cut short.
func parseIP(data []byte) (packet, bool) {
	if len(data) < ipHeader || data[0]>>4 != 4 {
		return packet{}, false
	}
	header, total := int(data[0]&15)*4, int(binary.BigEndian.Uint16(data[2:]))
	if header < ipHeader || total < header || total > len(data) {
		return packet{}, false
	}
	offset := binary.BigEndian.Uint16(data[6:])
	p := packet{
		ip: data[:total], payload: data[header:total], proto: data[9],
		src: netip.AddrFrom4([4]byte(data[12:16])), dst: netip.AddrFrom4([4]byte(data[16:20])),
		fragment: offset&0x1fff != 0, moreFragments: offset&0x2000 != 0,
		identification: binary.BigEndian.Uint16(data[4:]),
	}
	if p.fragment {
		return p, true
	}
	switch p.proto {
	case protoTCP:
		if len(p.payload) < tcpHeader {
			return packet{}, false
		}
		p.tcpFlags = p.payload[13]
	case protoUDP:
		if len(p.payload) < udpHeader {
			return packet{}, false
		}
	case protoICMP:
		if len(p.payload) < 8 {
			return packet{}, false
		}
		if kind := p.payload[0]; kind == icmpEchoRequest || kind == icmpEchoReply {
			p.srcPort = binary.BigEndian.Uint16(p.payload[4:])
			p.dstPort = p.srcPort
		}
		return p, true
	default:
		return p, true
	}
	p.srcPort = binary.BigEndian.Uint16(p.payload[0:])
	p.dstPort = binary.BigEndian.Uint16(p.payload[2:])
	return p, true
}

const (
	icmpEchoReply    = 0
	icmpUnreachable  = 3
	icmpEchoRequest  = 8
	codeNet          = 0 // network unreachable
	codePort         = 3 // port unreachable
	icmpQuotedOctets = 8 // of the payload, behind the IP header (RFC 792)
)

// checksum is the Internet checksum (RFC 1071) over parts that each have an even length, but the last.
func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, part := range parts {
		for ; len(part) >= 2; part = part[2:] {
			sum += uint32(part[0])<<8 | uint32(part[1])
		}
		if len(part) == 1 {
			sum += uint32(part[0]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// buildIP puts a header in front of a payload whose own checksum is done.
func buildIP(src, dst netip.Addr, proto byte, payload []byte) []byte {
	out := make([]byte, ipHeader, ipHeader+len(payload))
	out[0] = 0x45
	binary.BigEndian.PutUint16(out[2:], uint16(ipHeader+len(payload)))
	binary.BigEndian.PutUint16(out[6:], 0x4000) // do not fragment
	out[8], out[9] = defaultTTL, proto
	copy(out[12:], src.AsSlice())
	copy(out[16:], dst.AsSlice())
	binary.BigEndian.PutUint16(out[10:], checksum(out))
	return append(out, payload...)
}

func pseudoHeader(src, dst netip.Addr, proto byte, length int) []byte {
	out := make([]byte, 0, 12)
	out = append(out, src.AsSlice()...)
	out = append(out, dst.AsSlice()...)
	return append(out, 0, proto, byte(length>>8), byte(length))
}

func buildUDP(src, dst netip.AddrPort, data []byte) []byte {
	datagram := make([]byte, udpHeader, udpHeader+len(data))
	binary.BigEndian.PutUint16(datagram[0:], src.Port())
	binary.BigEndian.PutUint16(datagram[2:], dst.Port())
	binary.BigEndian.PutUint16(datagram[4:], uint16(udpHeader+len(data)))
	datagram = append(datagram, data...)
	sum := checksum(pseudoHeader(src.Addr(), dst.Addr(), protoUDP, len(datagram)), datagram)
	if sum == 0 {
		sum = 0xffff // 0 means none (RFC 768)
	}
	binary.BigEndian.PutUint16(datagram[6:], sum)
	return buildIP(src.Addr(), dst.Addr(), protoUDP, datagram)
}

// buildTCP makes a segment without data or options, which is all that probes and resets need.
func buildTCP(src, dst netip.AddrPort, sequence, acknowledged uint32, flags byte) []byte {
	segment := make([]byte, tcpHeader)
	binary.BigEndian.PutUint16(segment[0:], src.Port())
	binary.BigEndian.PutUint16(segment[2:], dst.Port())
	binary.BigEndian.PutUint32(segment[4:], sequence)
	binary.BigEndian.PutUint32(segment[8:], acknowledged)
	segment[12], segment[13] = tcpHeader/4<<4, flags
	binary.BigEndian.PutUint16(segment[14:], 1024)
	sum := checksum(pseudoHeader(src.Addr(), dst.Addr(), protoTCP, len(segment)), segment)
	binary.BigEndian.PutUint16(segment[16:], sum)
	return buildIP(src.Addr(), dst.Addr(), protoTCP, segment)
}

// buildUnreachable is the ICMP answer to a packet that goes nowhere; Linux ends a connect at once on it.
func buildUnreachable(from netip.Addr, p packet, code byte) []byte {
	header := len(p.ip) - len(p.payload)
	quoted := p.ip[:min(len(p.ip), header+icmpQuotedOctets)]
	message := append([]byte{icmpUnreachable, code, 0, 0, 0, 0, 0, 0}, quoted...)
	binary.BigEndian.PutUint16(message[2:], checksum(message))
	return buildIP(from, p.src, protoICMP, message)
}

// etherFrame puts an Ethernet header in front of a packet.
func etherFrame(to, from hardwareAddr, kind uint16, payload []byte) []byte {
	out := make([]byte, 0, etherHeader+len(payload))
	out = append(out, to[:]...)
	out = append(out, from[:]...)
	out = binary.BigEndian.AppendUint16(out, kind)
	return append(out, payload...)
}
