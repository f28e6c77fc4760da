package uki

import (
	"bytes"
	"debug/pe"
	"testing"
)

// FuzzPE feeds the headers of a stub and of a kernel: an image that is built can be parsed again, with its command line.
func FuzzPE(f *testing.F) {
	kernel := fakePE{machine: pe.IMAGE_FILE_MACHINE_AMD64, sections: 1, headerSize: 0x200, firstAddress: 0x1000, sectionAlignment: 0x1000}
	f.Add(tightStub.build(f), kernel.build(f), "console=ttyS0")
	f.Add(amd64Stub.build(f), kernel.build(f), "")
	f.Add(arm64Stub.build(f), kernel.build(f), "")
	f.Add([]byte("MZ"), []byte("\x1f\x8b"), "x")
	f.Fuzz(func(t *testing.T, stub, kernel []byte, cmdline string) {
		image, err := Build(Parts{Stub: stub, Kernel: kernel, Cmdline: cmdline})
		if err != nil {
			return
		}
		if _, err := parsePE(image); err != nil {
			t.Fatalf("what was built cannot be parsed: %v", err)
		}
		if !bytes.Contains(image, []byte(".cmdline")) {
			t.Error("the image has no command line")
		}
	})
}
