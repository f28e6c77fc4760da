package netif

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"syscall"
	"testing"
)

var home = Address{
	IP: [4]byte{172, 31, 5, 10}, Mask: [4]byte{255, 255, 240, 0}, Gateway: [4]byte{172, 31, 0, 1}, Metric: 300, Table: 10003,
}

func TestParts(t *testing.T) {
	if home.prefix() != 20 || home.network() != [4]byte{172, 31, 0, 0} || home.broadcast() != [4]byte{172, 31, 15, 255} {
		t.Fatalf("%d, %v, %v", home.prefix(), home.network(), home.broadcast())
	}
}

// Byte by byte, by rtnetlink(7) and the kernel's headers; the names are what `ip` of iproute2 calls the same.
func TestMessages(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the bytes are little-endian")
	}
	for _, test := range []struct {
		name, want string
		got        *request
	}{
		{"ip address replace 172.31.5.10/20 broadcast + metric 300 dev 3", "02140000 03000000" +
			"08000200ac1f050a 08000100ac1f050a 08000400ac1f0fff 080009002c010000",
			home.message(syscall.RTM_NEWADDR, 0, 3)},
		{"ip route replace default via 172.31.0.1 dev 3 src 172.31.5.10 metric 300 proto dhcp", "02000000 00100001 00000000" +
			"08000f00fe000000 0800040003000000 08000700ac1f050a 08000500ac1f0001 080006002c010000",
			home.route(3, syscall.RT_TABLE_MAIN, false)},
		{"ip route replace 172.31.0.0/20 dev 3 src 172.31.5.10 table 10003 proto dhcp scope link", "02140000 0010fd01 00000000" +
			"08000f0013270000 0800040003000000 08000700ac1f050a 08000100ac1f0000",
			home.route(3, home.Table, true)},
		{"ip rule add from 172.31.5.10 lookup 10003 pref 10003", "02002000 00000001 00000000" +
			"08000200ac1f050a 0800060013270000 08000f0013270000",
			home.rule(syscall.RTM_NEWRULE, 0)},
	} {
		want, err := hex.DecodeString(strings.ReplaceAll(test.want, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		if got := test.got.data[syscall.SizeofNlMsghdr:]; !bytes.Equal(got, want) {
			t.Errorf("%s:\ngot  %x\nwant %x", test.name, got, want)
		}
	}
}

// The machine that runs the tests has lo, which is no Ethernet.
func TestListIsOfEthernet(t *testing.T) {
	nics, err := List(func(string) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	for i, nic := range nics {
		if nic.Name == "lo" || nic.Name == "" || nic.Index <= Loopback || i > 0 && nics[i-1].Index >= nic.Index {
			t.Errorf("%+v", nics)
		}
	}
	if nics, err := List(func(string) bool { return false }); err != nil || len(nics) != 0 {
		t.Errorf("%v, %v", nics, err)
	}
}

func TestParseLinksOfGarbage(t *testing.T) {
	for _, dump := range [][]byte{{1}, bytes.Repeat([]byte{0xff}, 64), append([]byte{32, 0, 0, 0, 16, 0}, make([]byte, 26)...)} {
		if found, err := parseLinks(dump); err == nil && len(found) > 0 {
			t.Errorf("%x: %+v", dump, found)
		}
	}
}

// Nobody who may not is told that it worked.
func TestTheKernelsRefusalIsAnError(t *testing.T) {
	if err := Up(1 << 30); err == nil {
		t.Error("an interface that is not there was brought up")
	}
	if err := Configure(1<<30, home); err == nil {
		t.Error("an interface that is not there was configured")
	}
}
