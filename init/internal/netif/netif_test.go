package netif

import (
	"testing"
	"unsafe"
)

// The kernel's own sizes and offsets (linux/if.h, linux/route.h, 64 bits).
func TestKernelLayouts(t *testing.T) {
	var r route
	for _, test := range []struct {
		name      string
		got, want uintptr
	}{
		{"sizeof ifreq", unsafe.Sizeof(request{}), 40},
		{"sizeof rtentry", unsafe.Sizeof(r), 120},
		{"rt_dst", unsafe.Offsetof(r.destination), 8},
		{"rt_gateway", unsafe.Offsetof(r.gateway), 24},
		{"rt_genmask", unsafe.Offsetof(r.mask), 40},
		{"rt_flags", unsafe.Offsetof(r.flags), 56},
		{"rt_metric", unsafe.Offsetof(r.metric), 80},
		{"rt_dev", unsafe.Offsetof(r.device), 88},
	} {
		if test.got != test.want {
			t.Errorf("%s is %d, want %d", test.name, test.got, test.want)
		}
	}
}

func TestParseMAC(t *testing.T) {
	if got, err := parseMAC("02:ab:00:ff:10:9c"); err != nil || got != [6]byte{2, 0xab, 0, 0xff, 0x10, 0x9c} {
		t.Fatalf("got %v, %v", got, err)
	}
	for _, text := range []string{"", "02:ab:00:ff:10", "02:ab:00:ff:10:9c:00", "02:ab:00:ff:10:xx", "02:ab:00:ff:10:100"} {
		if _, err := parseMAC(text); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}

func TestBroadcast(t *testing.T) {
	got := broadcast(Address{IP: [4]byte{172, 31, 5, 10}, Mask: [4]byte{255, 255, 240, 0}})
	if got != [4]byte{172, 31, 15, 255} {
		t.Fatalf("got %v", got)
	}
}
