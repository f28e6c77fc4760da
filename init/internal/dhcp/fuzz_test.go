package dhcp

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// FuzzDecode feeds whole packets, as a raw socket delivers them.
func FuzzDecode(f *testing.F) {
	ip := [4]byte{172, 31, 5, 10}
	for _, bootp := range [][]byte{
		reply(7, mac, ip, 53, 1, 5, 54, 4, 172, 31, 0, 1, 1, 4, 255, 255, 240, 0, 255),
		reply(7, mac, ip, 53, 1, 6),
		message{kind: discover, xid: 7, mac: mac}.encode(),
	} {
		packet := encapsulate(bootp)
		packet[ipHeader+3] = clientPort
		f.Add(packet)
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		before := bytes.Clone(packet)
		var m message
		bootp, err := decapsulate(packet)
		if err == nil {
			m, err = decode(bootp)
		}
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
	if lease, err := m.lease.usable(); err == nil {
		if lease.Duration < 0 || lease.T1 > lease.T2 || lease.T2 > lease.Duration {
			t.Errorf("impossible times: %+v", lease)
		}
		for age := time.Duration(0); age < lease.Duration; age += lease.rest(age) {
			if lease.rest(age) <= 0 {
				t.Fatalf("no rest at the age of %s: %+v", age, lease)
			}
		}
	}
	for _, text := range []string{m.lease.Hostname, m.lease.Domain} {
		if strings.ContainsAny(text, " \t\r\n\x00#/") {
			t.Errorf("%q would be written into configuration files", text)
		}
	}
}
