package dhcp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"syscall"
	"testing"
	"time"
)

var mac = [6]byte{2, 0, 0, 1, 2, 3}

func TestEncode(t *testing.T) {
	packet := message{kind: request, xid: 0xdeadbeef, mac: mac, server: [4]byte{172, 31, 0, 1}, requested: [4]byte{172, 31, 5, 10}}.encode()
	if checksum(packet[:ipHeader], 0) != 0 {
		t.Error("the IP checksum does not verify")
	}
	udp := packet[ipHeader:]
	if checksum(udp, addUp(packet[12:20], 17+uint32(len(udp)))) != 0 {
		t.Error("the UDP checksum does not verify")
	}
	if len(packet) != ipHeader+udpHeader+minimum || int(binary.BigEndian.Uint16(packet[2:])) != len(packet) {
		t.Errorf("length %d", len(packet))
	}
	bootp := udp[udpHeader:]
	if got := binary.BigEndian.Uint32(bootp[4:]); got != 0xdeadbeef {
		t.Errorf("xid %x", got)
	}
	want := []byte{53, 1, 3, 50, 4, 172, 31, 5, 10, 54, 4, 172, 31, 0, 1, 57, 2, 5, 220, 55, 6, 1, 3, 6, 12, 15, 26, 255}
	if got := bootp[fixed:][:len(want)]; !bytes.Equal(got, want) {
		t.Errorf("options %v, want %v", got, want)
	}
}

// reply builds what a server sends; options are appended as they are.
func reply(xid uint32, to [6]byte, ip [4]byte, options ...byte) []byte {
	packet := make([]byte, ipHeader+udpHeader+fixed)
	packet[0], packet[9] = 0x45, 17
	binary.BigEndian.PutUint16(packet[ipHeader+2:], clientPort)
	bootp := packet[ipHeader+udpHeader:]
	bootp[0] = 2
	binary.BigEndian.PutUint32(bootp[4:], xid)
	copy(bootp[16:], ip[:])
	copy(bootp[28:], to[:])
	binary.BigEndian.PutUint32(bootp[236:], cookie)
	return append(packet, options...)
}

func TestDecode(t *testing.T) {
	full := Lease{
		IP: [4]byte{172, 31, 5, 10}, Mask: [4]byte{255, 255, 240, 0}, Router: [4]byte{172, 31, 0, 1},
		DNS: [][4]byte{{172, 31, 0, 2}, {1, 1, 1, 1}}, MTU: 9001, Hostname: "ip-172-31-5-10", Domain: "ec2.internal",
	}
	options := []byte{53, 1, 5, 0, 0, 54, 4, 172, 31, 0, 1, 1, 4, 255, 255, 240, 0, 3, 4, 172, 31, 0, 1,
		6, 8, 172, 31, 0, 2, 1, 1, 1, 1, 26, 2, 0x23, 0x29, 51, 4, 0, 0, 14, 16}
	options = append(append(options, 12, 14), "ip-172-31-5-10"...)
	options = append(append(options, 15, 13), "ec2.internal\x00"...)
	options = append(options, 255, 12, 4, 'l', 'a', 't', 'e')
	ip := [4]byte{172, 31, 5, 10}
	fragment := reply(7, mac, ip, 53, 1, 5)
	fragment[0] = 0x4f // a header that is longer than the packet's UDP part
	for _, test := range []struct {
		name   string
		packet []byte
		kind   byte
		lease  Lease
		fails  bool
	}{
		{name: "everything", packet: reply(7, mac, ip, options...), kind: ack, lease: full},
		{name: "no end mark", packet: reply(7, mac, ip, 53, 1, 2), kind: offer, lease: Lease{IP: ip}},
		{name: "a hostile name", packet: reply(7, mac, ip, 53, 1, 5, 12, 3, 'a', '\n', 'b'), kind: ack, lease: Lease{IP: ip}},
		{name: "wrong lengths", packet: reply(7, mac, ip, 53, 1, 5, 1, 3, 255, 255, 0, 26, 1, 9, 6, 3, 1, 2, 3), kind: ack, lease: Lease{IP: ip}},
		{name: "option cut off", packet: reply(7, mac, ip, 53, 1, 5, 12, 9, 'a'), fails: true},
		{name: "code without length", packet: reply(7, mac, ip, 53, 1, 5, 12), fails: true},
		{name: "BOOTP", packet: reply(7, mac, ip, 255), fails: true},
		{name: "short", packet: reply(7, mac, ip)[:200], fails: true},
		{name: "long header", packet: fragment[:ipHeader+udpHeader+fixed], fails: true},
		{name: "empty", packet: nil, fails: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := decode(test.packet)
			if test.fails {
				if err == nil {
					t.Fatalf("decoded to %+v", got)
				}
				return
			}
			if err != nil || got.xid != 7 || got.kind != test.kind || !reflect.DeepEqual(got.lease, test.lease) {
				t.Fatalf("got %+v, %v; want %+v", got, err, test.lease)
			}
		})
	}
}

// A server answers the messages it is sent by its script, one line for each.
type server struct {
	t      *testing.T
	script []func(xid uint32) [][]byte
	errors []error // of Send, before the script
	kinds  []byte
	xids   map[uint32]bool
	queue  [][]byte
}

func (s *server) Send(packet []byte) error {
	if len(s.errors) > 0 {
		err := s.errors[0]
		s.errors = s.errors[1:]
		return err
	}
	bootp := packet[ipHeader+udpHeader:]
	xid := binary.BigEndian.Uint32(bootp[4:])
	s.kinds = append(s.kinds, bootp[fixed+2])
	s.xids[xid] = true
	if len(s.script) > 0 {
		s.queue = append(s.queue, s.script[0](xid)...)
		s.script = s.script[1:]
	}
	return nil
}

func (s *server) Receive(buffer []byte, wait time.Duration) (int, error) {
	if len(s.queue) == 0 {
		time.Sleep(min(wait, 20*time.Millisecond))
		return 0, ErrTimeout
	}
	packet := s.queue[0]
	s.queue = s.queue[1:]
	return copy(buffer, packet), nil
}

func TestObtain(t *testing.T) {
	ip, other := [4]byte{10, 0, 0, 5}, [6]byte{2, 0, 0, 9, 9, 9}
	mask := []byte{1, 4, 255, 255, 255, 0}
	silent := func(uint32) [][]byte { return nil }
	answer := func(kind byte, extra ...byte) func(uint32) [][]byte {
		return func(xid uint32) [][]byte {
			return [][]byte{reply(xid, mac, ip, append([]byte{53, 1, kind, 54, 4, 10, 0, 0, 1}, extra...)...)}
		}
	}
	noise := func(xid uint32) [][]byte {
		return [][]byte{
			{1, 2, 3}, reply(xid+1, mac, [4]byte{9, 9, 9, 9}, 53, 1, offer), reply(xid, other, [4]byte{8, 8, 8, 8}, 53, 1, offer),
			reply(xid, mac, [4]byte{7, 7, 7, 7}, 53, 1, ack), reply(xid, mac, ip, 53, 1, offer, 54, 4, 10, 0, 0, 1),
		}
	}
	for _, test := range []struct {
		name   string
		script []func(uint32) [][]byte
		errors []error
		kinds  []byte
		fails  bool
	}{
		{name: "at once", script: []func(uint32) [][]byte{answer(offer), answer(ack, mask...)}, kinds: []byte{1, 3}},
		{name: "first DISCOVER lost", script: []func(uint32) [][]byte{silent, answer(offer), answer(ack, mask...)}, kinds: []byte{1, 1, 3}},
		{name: "first REQUEST lost", script: []func(uint32) [][]byte{answer(offer), silent, answer(ack, mask...)}, kinds: []byte{1, 3, 3}},
		{name: "noise", script: []func(uint32) [][]byte{noise, answer(ack, mask...)}, kinds: []byte{1, 3}},
		{name: "NAK", script: []func(uint32) [][]byte{answer(offer), answer(nak), answer(offer), answer(ack, mask...)}, kinds: []byte{1, 3, 1, 3}},
		{name: "link not up", errors: []error{syscall.ENETDOWN}, script: []func(uint32) [][]byte{answer(offer), answer(ack, mask...)}, kinds: []byte{1, 3}},
		{name: "link gone", errors: []error{syscall.ENXIO}, fails: true},
		{name: "no netmask", script: []func(uint32) [][]byte{answer(offer), answer(ack)}, kinds: []byte{1, 3}, fails: true},
		{name: "nobody there", kinds: []byte{1, 1}, fails: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &server{t: t, script: test.script, errors: test.errors, xids: map[uint32]bool{}}
			lease, err := Obtain(s, mac, time.Now().Add(250*time.Millisecond))
			if test.fails != (err != nil) {
				t.Fatalf("lease %+v, error %v", lease, err)
			}
			if !test.fails && lease.IP != ip {
				t.Fatalf("lease %+v", lease)
			}
			if test.name == "nobody there" {
				if !errors.Is(err, ErrTimeout) || len(s.kinds) < 2 {
					t.Fatalf("sent %v, error %v", s.kinds, err)
				}
			} else if !bytes.Equal(s.kinds, test.kinds) {
				t.Fatalf("sent %v, want %v", s.kinds, test.kinds)
			}
			if len(s.xids) > 1 {
				t.Fatalf("the xid changed: %v", s.xids)
			}
		})
	}
}
