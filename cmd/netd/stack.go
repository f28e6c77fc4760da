package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	nicID = 1
)

// hostStack is gVisor's TCP, at every address that is not a guest's. It terminates the connections of guests to
// services and to the internet, and opens those of clients on the host to guests.
type hostStack struct {
	stack *stack.Stack
	link  *link
}

// link hands the stack's packets over without a queue in between.
type link struct {
	*channel.Endpoint
	out func(to netip.Addr, packet []byte)
}

func (l *link) WritePackets(packets stack.PacketBufferList) (int, tcpip.Error) {
	written := 0
	for _, packet := range packets.AsSlice() {
		data := packet.ToView().AsSlice()
		if len(data) >= ipHeader {
			l.out(netip.AddrFrom4([4]byte(data[16:20])), data)
		}
		written++
	}
	return written, nil
}

// segmentHandler takes a TCP segment that belongs to no connection.
type segmentHandler func(stack.TransportEndpointID, *stack.PacketBuffer) bool

func newHostStack(out func(to netip.Addr, packet []byte), handle segmentHandler) (*hostStack, error) {
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})
	sack, moderate := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true)
	for _, option := range []tcpip.SettableTransportProtocolOption{&sack, &moderate} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, option); err != nil {
			return nil, errors.New(err.String())
		}
	}
	l := &link{channel.New(0, guestMTU, ""), out}
	// Frames come over a Unix socket from a guest that has just computed the checksum.
	l.LinkEPCapabilities = stack.CapabilityRXChecksumOffload
	if err := s.CreateNIC(nicID, l); err != nil {
		return nil, errors.New(err.String())
	}
	for _, set := range []func(tcpip.NICID, bool) tcpip.Error{s.SetPromiscuousMode, s.SetSpoofing} {
		if err := set(nicID, true); err != nil {
			return nil, errors.New(err.String())
		}
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nicID}})
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, handle)
	return &hostStack{s, l}, nil
}

// inject gives an IP packet of a guest to the stack.
func (h *hostStack) inject(packet []byte) {
	buffered := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(packet)})
	h.link.InjectInbound(header.IPv4ProtocolNumber, buffered)
	buffered.DecRef()
}

// guestConn is a TCP connection to a guest.
type guestConn struct {
	*gonet.TCPConn
	endpoint tcpip.Endpoint
}

// SetTTL sets the IP time-to-live of what is sent from now on: IMDS's hop limit.
func (c *guestConn) SetTTL(ttl uint8) error {
	if err := c.endpoint.SetSockOptInt(tcpip.IPv4TTLOption, int(ttl)); err != nil {
		return errors.New(err.String())
	}
	return nil
}

// Reset ends the connection by RST.
func (c *guestConn) Reset() { c.endpoint.Abort() }

// complete finishes the handshake of a guest's connection.
func complete(request *tcp.ForwarderRequest) (*guestConn, error) {
	var queue waiter.Queue
	endpoint, err := request.CreateEndpoint(&queue)
	request.Complete(err != nil)
	if err != nil {
		return nil, errors.New(err.String())
	}
	endpoint.SocketOptions().SetKeepAlive(true)
	return &guestConn{gonet.NewTCPConn(&queue, endpoint), endpoint}, nil
}

var errRefused = errors.New("the guest refused the connection")

// dial connects to a guest. errRefused when it answers by RST.
func (h *hostStack) dial(ctx context.Context, from netip.Addr, to netip.AddrPort) (*guestConn, error) {
	var queue waiter.Queue
	endpoint, err := h.stack.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, &queue)
	if err != nil {
		return nil, errors.New(err.String())
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	queue.EventRegister(&entry)
	defer queue.EventUnregister(&entry)
	if err := endpoint.Bind(fullAddress(netip.AddrPortFrom(from, 0))); err != nil {
		endpoint.Close()
		return nil, errors.New(err.String())
	}
	err = endpoint.Connect(fullAddress(to))
	if _, started := err.(*tcpip.ErrConnectStarted); started {
		select {
		case <-ctx.Done():
			endpoint.Abort()
			return nil, ctx.Err()
		case <-ready:
		}
		err = endpoint.LastError()
	}
	switch err.(type) {
	case nil:
		return &guestConn{gonet.NewTCPConn(&queue, endpoint), endpoint}, nil
	case *tcpip.ErrConnectionRefused, *tcpip.ErrConnectionReset:
		endpoint.Close()
		return nil, errRefused
	}
	endpoint.Close()
	return nil, errors.New(err.String())
}

func fullAddress(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom4(a.Addr().As4()), Port: a.Port()}
}

func address(a tcpip.Address) netip.Addr { return netip.AddrFrom4(a.As4()) }

// splice carries bytes both ways until both sides have ended; the end of one direction leaves the other open,
// and a reset on one side is a reset on the other.
func splice(host *net.TCPConn, guest *guestConn) {
	reset := func() {
		host.SetLinger(0) // an error means that it is closed already
		host.Close()
		guest.Reset()
	}
	var done sync.WaitGroup
	done.Add(2)
	go func() {
		defer done.Done()
		if _, err := io.Copy(guest, onlyReader{host}); err != nil || guest.CloseWrite() != nil {
			reset()
		}
	}()
	go func() {
		defer done.Done()
		if _, err := io.Copy(onlyWriter{host}, guest); err != nil || host.CloseWrite() != nil {
			reset()
		}
	}()
	done.Wait()
	host.Close()
	guest.Close()
}

// onlyReader and onlyWriter hide the methods by which io.Copy would try the kernel's splice(2), in vain.
type onlyReader struct{ io.Reader }
type onlyWriter struct{ io.Writer }

// ender closes a spliced pair by force.
type ender struct {
	host  *net.TCPConn
	guest *guestConn
}

func (e ender) Close() error {
	e.host.SetLinger(0)
	e.guest.Reset()
	return e.host.Close()
}
