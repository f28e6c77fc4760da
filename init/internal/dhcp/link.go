package dhcp

import (
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// A Link carries DHCP messages to servers and back.
type Link interface {
	Send(message []byte) error
	// Receive waits for a message; it answers ErrTimeout at the given time, ErrInterrupted after Interrupt, and
	// os.ErrClosed after Close.
	Receive(buffer []byte, until time.Time) (int, error)
	Interrupt()
	Close() error
}

// What a Receive without a message answers.
var (
	ErrTimeout     = errors.New("no answer from a DHCP server")
	ErrInterrupted = errors.New("interrupted")
)

const (
	protocolUDP = 17
	// bindToIndex is SO_BINDTOIFINDEX (Linux 5.1): a name might change.
	bindToIndex = 62
)

// ethernetIPv4 is ETH_P_IP in network byte order; both architectures are little-endian.
var ethernetIPv4 = bits.ReverseBytes16(syscall.ETH_P_IP)

// A socketLink is what both kinds of link have in common.
type socketLink struct {
	file        *os.File // non-blocking: the Go runtime waits for it, and Close ends a Receive
	to          syscall.Sockaddr
	raw         bool // packets with IP and UDP headers of our own
	interrupted atomic.Bool
}

// OpenRaw opens a packet socket on the interface with this index, which works before there is an address. The kernel
// writes and strips the Ethernet header.
func OpenRaw(index int) (Link, error) {
	to := &syscall.SockaddrLinklayer{
		Protocol: ethernetIPv4, Ifindex: index, Halen: 6, Addr: [8]byte{255, 255, 255, 255, 255, 255},
	}
	return open(syscall.AF_PACKET, to, true, func(socket int) error {
		// Before it is bound: until then no packet comes that the filter would not see.
		//lint:ignore SA1019 golang.org/x/net would be the init's only dependency
		if err := syscall.AttachLsf(socket, onlyReplies); err != nil {
			return err
		}
		return syscall.Bind(socket, &syscall.SockaddrLinklayer{Protocol: ethernetIPv4, Ifindex: index})
	})
}

// onlyReplies passes UDP to the client's port (see socket(7), SO_ATTACH_FILTER): without it, a machine that looks for
// a new lease while others talk to it would wake up for each of their packets.
var onlyReplies = []syscall.SockFilter{
	{Code: syscall.BPF_LD | syscall.BPF_B | syscall.BPF_ABS, K: 9},                               // the protocol
	{Code: syscall.BPF_JMP | syscall.BPF_JEQ | syscall.BPF_K, K: protocolUDP, Jf: 4},             //
	{Code: syscall.BPF_LDX | syscall.BPF_B | syscall.BPF_MSH, K: 0},                              // the IP header's length
	{Code: syscall.BPF_LD | syscall.BPF_H | syscall.BPF_IND, K: 2},                               // the port after it
	{Code: syscall.BPF_JMP | syscall.BPF_JEQ | syscall.BPF_K, K: clientPort, Jf: 1},              //
	{Code: syscall.BPF_RET | syscall.BPF_K, K: 1 << 16}, {Code: syscall.BPF_RET | syscall.BPF_K}, // all of it, or none
}

// OpenUDP opens the client's port on an interface that has an address: to ask one server, or by broadcast all.
func OpenUDP(index int, server [4]byte) (Link, error) {
	return open(syscall.AF_INET, &syscall.SockaddrInet4{Port: serverPort, Addr: server}, false, func(socket int) error {
		for _, option := range []struct{ name, value int }{
			{bindToIndex, index}, {syscall.SO_BROADCAST, 1}, {syscall.SO_REUSEADDR, 1},
		} {
			if err := syscall.SetsockoptInt(socket, syscall.SOL_SOCKET, option.name, option.value); err != nil {
				return err
			}
		}
		return syscall.Bind(socket, &syscall.SockaddrInet4{Port: clientPort})
	})
}

func open(family int, to syscall.Sockaddr, raw bool, prepare func(socket int) error) (Link, error) {
	socket, err := syscall.Socket(family, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("socket for DHCP: %w", err)
	}
	if err := prepare(socket); err != nil {
		syscall.Close(socket)
		return nil, fmt.Errorf("socket for DHCP: %w", err)
	}
	return &socketLink{file: os.NewFile(uintptr(socket), "DHCP"), to: to, raw: raw}, nil
}

func (l *socketLink) Send(message []byte) error {
	if l.raw {
		message = encapsulate(message)
	}
	connection, err := l.file.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = connection.Control(func(socket uintptr) { sent = syscall.Sendto(int(socket), message, 0, l.to) })
	return errors.Join(err, sent)
}

func (l *socketLink) Receive(buffer []byte, until time.Time) (int, error) {
	if err := l.file.SetReadDeadline(until); err != nil {
		return 0, err
	}
	for {
		// Only now: an Interrupt after this ends the Read, one before it shows here.
		if l.interrupted.Swap(false) {
			return 0, ErrInterrupted
		}
		length, err := l.file.Read(buffer)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if l.interrupted.Swap(false) {
				return 0, ErrInterrupted
			}
			return 0, ErrTimeout
		case errors.Is(err, io.EOF): // a datagram without a byte
			continue
		case err != nil:
			return 0, err
		}
		if !l.raw {
			return length, nil
		}
		if message, err := decapsulate(buffer[:length]); err == nil {
			return copy(buffer, message), nil
		}
	}
}

// Interrupt ends a Receive that waits, or the next one.
func (l *socketLink) Interrupt() {
	l.interrupted.Store(true)
	_ = l.file.SetReadDeadline(time.Unix(1, 0)) // only a closed file fails, and that needs no interruption
}

func (l *socketLink) Close() error { return l.file.Close() }
