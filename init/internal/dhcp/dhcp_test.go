package dhcp

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"testing"
	"time"
)

var mac = [6]byte{2, 0, 0, 1, 2, 3}

func TestEncode(t *testing.T) {
	accept := message{kind: request, xid: 0xdeadbeef, mac: mac, server: [4]byte{172, 31, 0, 1}, requested: [4]byte{172, 31, 5, 10}}
	renew := message{kind: request, xid: 1, mac: mac, current: [4]byte{172, 31, 5, 10}}
	tail := []byte{57, 2, 5, 220, 55, 9, 1, 3, 6, 12, 15, 26, 51, 58, 59, 255}
	for _, test := range []struct {
		name    string
		message message
		ciaddr  [4]byte
		options []byte
	}{
		{"DISCOVER", message{kind: discover, xid: 2, mac: mac}, [4]byte{}, []byte{53, 1, 1}},
		{"REQUEST of an offer", accept, [4]byte{}, []byte{53, 1, 3, 50, 4, 172, 31, 5, 10, 54, 4, 172, 31, 0, 1}},
		{"REQUEST to renew", renew, [4]byte{172, 31, 5, 10}, []byte{53, 1, 3}},
	} {
		bootp := test.message.encode()
		if got := binary.BigEndian.Uint32(bootp[4:]); got != test.message.xid || len(bootp) != minimum {
			t.Errorf("%s: xid %x, length %d", test.name, got, len(bootp))
		}
		if got := [4]byte(bootp[12:]); got != test.ciaddr {
			t.Errorf("%s: ciaddr %v", test.name, got)
		}
		want := append(test.options, tail...)
		if got := bootp[fixed:][:len(want)]; !bytes.Equal(got, want) {
			t.Errorf("%s: options %v, want %v", test.name, got, want)
		}
	}
}

func TestEncapsulate(t *testing.T) {
	for _, payload := range []string{"even", "odd", ""} {
		packet := encapsulate([]byte(payload))
		if checksum(packet[:ipHeader], 0) != 0 {
			t.Error("the IP checksum does not verify")
		}
		udp := packet[ipHeader:]
		if checksum(udp, addUp(packet[12:20], 17+uint32(len(udp)))) != 0 {
			t.Error("the UDP checksum does not verify")
		}
		if int(binary.BigEndian.Uint16(packet[2:])) != len(packet) {
			t.Errorf("length %d", len(packet))
		}
		binary.BigEndian.PutUint16(udp[2:], clientPort) // as if a server had sent it
		if got, err := decapsulate(packet); err != nil || string(got) != payload {
			t.Errorf("got %q, %v", got, err)
		}
	}
}

func TestDecapsulateOnlyWhatIsForTheClient(t *testing.T) {
	packet := encapsulate(reply(7, mac, [4]byte{}))
	binary.BigEndian.PutUint16(packet[ipHeader+2:], clientPort)
	if _, err := decapsulate(packet); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func([]byte) []byte{
		"TCP":            func(p []byte) []byte { p[9] = 6; return p },
		"IPv6":           func(p []byte) []byte { p[0] = 0x65; return p },
		"another port":   func(p []byte) []byte { p[ipHeader+3] = 67; return p },
		"a long header":  func(p []byte) []byte { p[0] = 0x4f; return p[:40] },
		"no UDP header":  func(p []byte) []byte { return p[:ipHeader+4] },
		"half IP header": func(p []byte) []byte { return p[:10] },
		"nothing":        func(p []byte) []byte { return nil },
	} {
		if got, err := decapsulate(change(bytes.Clone(packet))); err == nil {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

// reply builds what a server sends; options are appended as they are.
func reply(xid uint32, to [6]byte, ip [4]byte, options ...byte) []byte {
	bootp := make([]byte, fixed)
	bootp[0] = 2
	binary.BigEndian.PutUint32(bootp[4:], xid)
	copy(bootp[16:], ip[:])
	copy(bootp[28:], to[:])
	binary.BigEndian.PutUint32(bootp[236:], cookie)
	return append(bootp, options...)
}

func TestDecode(t *testing.T) {
	full := Lease{
		IP: [4]byte{172, 31, 5, 10}, Mask: [4]byte{255, 255, 240, 0}, Router: [4]byte{172, 31, 0, 1},
		DNS: [][4]byte{{172, 31, 0, 2}, {1, 1, 1, 1}}, MTU: 9001, Hostname: "ip-172-31-5-10", Domain: "ec2.internal",
		Server: [4]byte{172, 31, 0, 1}, Duration: time.Hour, T1: 25 * time.Minute,
	}
	options := []byte{53, 1, 5, 0, 0, 54, 4, 172, 31, 0, 1, 1, 4, 255, 255, 240, 0, 3, 4, 172, 31, 0, 1,
		6, 8, 172, 31, 0, 2, 1, 1, 1, 1, 26, 2, 0x23, 0x29, 51, 4, 0, 0, 14, 16, 58, 4, 0, 0, 5, 220, 59, 4, 255, 255, 255, 255}
	options = append(append(options, 12, 14), "ip-172-31-5-10"...)
	options = append(append(options, 15, 13), "ec2.internal\x00"...)
	options = append(options, 255, 12, 4, 'l', 'a', 't', 'e')
	ip := [4]byte{172, 31, 5, 10}
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
		{name: "a request", packet: message{kind: discover, xid: 7, mac: mac}.encode(), fails: true},
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
