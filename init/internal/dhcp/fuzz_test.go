package dhcp

import (
	"bytes"
	"strings"
	"testing"
)

// FuzzDecode feeds whole packets, as the socket delivers them.
func FuzzDecode(f *testing.F) {
	ip := [4]byte{172, 31, 5, 10}
	f.Add(reply(7, mac, ip, 53, 1, 5, 54, 4, 172, 31, 0, 1, 1, 4, 255, 255, 240, 0, 255))
	f.Add(reply(7, mac, ip, 53, 1, 6))
	f.Add(message{kind: discover, xid: 7, mac: mac}.encode())
	f.Fuzz(func(t *testing.T, packet []byte) {
		before := bytes.Clone(packet)
		m, err := decode(packet)
		if !bytes.Equal(packet, before) {
			t.Fatal("the packet was changed")
		}
		if err == nil {
			check(t, m)
		}
	})
}

// FuzzOptions feeds the options of an otherwise good reply.
func FuzzOptions(f *testing.F) {
	f.Add([]byte{53, 1, 5, 6, 8, 172, 31, 0, 2, 1, 1, 1, 1, 26, 2, 0x23, 0x29, 51, 4, 0, 0, 14, 16, 255})
	f.Add([]byte("\x35\x01\x02\x0c\x03web\x0f\x0cec2.internal\x00\x00\xff"))
	f.Add([]byte{12, 255})
	f.Fuzz(func(t *testing.T, options []byte) {
		m, err := decode(reply(7, mac, [4]byte{10, 0, 0, 5}, options...))
		if err == nil {
			check(t, m)
		}
	})
}

// check is what the rest of the program relies on.
func check(t *testing.T, m message) {
	if m.kind == 0 {
		t.Error("a message without a type")
	}
	for _, text := range []string{m.lease.Hostname, m.lease.Domain} {
		if strings.ContainsAny(text, " \t\r\n\x00#/") {
			t.Errorf("%q would be written into configuration files", text)
		}
	}
}
