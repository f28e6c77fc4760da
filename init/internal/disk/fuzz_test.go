package disk

import (
	"bytes"
	"strings"
	"testing"
)

// FuzzIdentity feeds what an NVMe controller says of itself: a name has no blanks or zeros about it.
func FuzzIdentity(f *testing.F) {
	identity := func(model, name string) []byte {
		data := make([]byte, vendorSpecific+nameLength)
		copy(data[modelStart:], model)
		copy(data[vendorSpecific:], name)
		return data
	}
	f.Add(ebsModel, "/dev/sdf  \x00")
	f.Add(ebsModel, "")
	f.Add("QEMU NVMe Ctrl", "x")
	f.Fuzz(func(t *testing.T, model, name string) {
		data := identity(model, name)
		found, err := parseIdentity(data)
		if err == nil && (found != strings.Trim(found, " \x00") || len(found) > nameLength) {
			t.Errorf("%q", found)
		}
		if _, err := parseIdentity(data[:len(data)-1]); err == nil {
			t.Error("an identity that is cut short has a name")
		}
		sameName(found, name)
	})
}

// FuzzBlank feeds the start and the end of a volume: it is blank when they are zeros, and only then.
func FuzzBlank(f *testing.F) {
	f.Add([]byte{}, []byte{}, uint8(2))
	f.Add([]byte("XFSB"), []byte{}, uint8(1))
	f.Add([]byte{}, []byte{1}, uint8(0))
	f.Fuzz(func(t *testing.T, start, end []byte, megabytes uint8) {
		device := make([]byte, int(megabytes%4)<<20)
		copy(device, start)
		if len(end) <= len(device) {
			copy(device[len(device)-len(end):], end)
		}
		size, blank, err := Blank(bytes.NewReader(device))
		if size != int64(len(device)) || err == nil && blank != (len(bytes.Trim(device, "\x00")) == 0) && len(device) < 3<<20 {
			t.Errorf("%d bytes of %d, blank %v, %v", size, len(device), blank, err)
		}
	})
}
