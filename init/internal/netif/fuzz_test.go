package netif

import (
	"encoding/binary"
	"syscall"
	"testing"
)

// FuzzLinks feeds what the kernel answers to a request for all links.
func FuzzLinks(f *testing.F) {
	link := make([]byte, syscall.SizeofNlMsghdr+syscall.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(link, uint32(len(link)+12+8))
	binary.NativeEndian.PutUint16(link[4:], syscall.RTM_NEWLINK)
	binary.NativeEndian.PutUint16(link[18:], syscall.ARPHRD_ETHER)
	link = append(link, 10, 0, syscall.IFLA_ADDRESS, 0, 2, 0, 0, 0, 0, 1, 0, 0)
	link = append(link, 7, 0, syscall.IFLA_IFNAME, 0, 'e', '0', 0, 0)
	f.Add(link)
	f.Add(link[:40])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, dump []byte) {
		links, err := parseLinks(dump)
		if err == nil && len(links)*(syscall.SizeofNlMsghdr+syscall.SizeofIfInfomsg) > len(dump) {
			t.Errorf("%d links in %d bytes", len(links), len(dump))
		}
	})
}
