package dhcp

import (
	"errors"
	"fmt"
	"math/bits"
	"syscall"
	"time"
)

// ethernetIPv4 is ETH_P_IP in network byte order; both architectures are little-endian.
var ethernetIPv4 = bits.ReverseBytes16(syscall.ETH_P_IP)

// A PacketLink is a packet socket on one interface, which works before the interface has an address. The
// kernel writes and strips the Ethernet header.
type PacketLink struct {
	socket int
	to     syscall.SockaddrLinklayer
}

// OpenLink opens the interface with the given index.
func OpenLink(index int) (*PacketLink, error) {
	socket, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, int(ethernetIPv4))
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	to := syscall.SockaddrLinklayer{
		Protocol: ethernetIPv4, Ifindex: index, Halen: 6, Addr: [8]byte{255, 255, 255, 255, 255, 255},
	}
	if err := syscall.Bind(socket, &syscall.SockaddrLinklayer{Protocol: ethernetIPv4, Ifindex: index}); err != nil {
		syscall.Close(socket)
		return nil, fmt.Errorf("bind packet socket: %w", err)
	}
	return &PacketLink{socket, to}, nil
}

// Close frees the socket.
func (l *PacketLink) Close() error { return syscall.Close(l.socket) }

// Send broadcasts an IPv4 packet.
func (l *PacketLink) Send(packet []byte) error { return syscall.Sendto(l.socket, packet, 0, &l.to) }

// Receive implements Link.
func (l *PacketLink) Receive(buffer []byte, wait time.Duration) (int, error) {
	// A zero timeval would wait for ever.
	limit := syscall.NsecToTimeval(max(wait, time.Millisecond).Nanoseconds())
	if err := syscall.SetsockoptTimeval(l.socket, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &limit); err != nil {
		return 0, err
	}
	length, _, err := syscall.Recvfrom(l.socket, buffer, 0)
	if errors.Is(err, syscall.EAGAIN) {
		return 0, ErrTimeout
	}
	return length, err
}
