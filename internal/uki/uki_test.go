package uki

import (
	"bytes"
	"compress/gzip"
	"debug/pe"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// fakePE describes a PE file to build. It is laid out as linkers do: headers, then sections.
type fakePE struct {
	machine          uint16
	sections         int
	headerSize       uint32 // where the first section's bytes begin
	firstAddress     uint32
	sectionAlignment uint32
	symbols          uint32
	directory        int // index of a data directory to fill in, 0 for none
	filler           byte
}

func (f fakePE) build(t testing.TB) []byte {
	t.Helper()
	var out bytes.Buffer
	put := func(value any) {
		if err := binary.Write(&out, binary.LittleEndian, value); err != nil {
			t.Fatal(err)
		}
	}
	dos := make([]byte, 0x40)
	copy(dos, "MZ")
	dos[peOffsetField] = 0x40
	out.Write(dos)
	out.WriteString("PE\x00\x00")
	const sectionSize = 0x200
	coff := pe.FileHeader{
		Machine: f.machine, NumberOfSections: uint16(f.sections), SizeOfOptionalHeader: 240,
		NumberOfSymbols: f.symbols, Characteristics: 0x206,
	}
	if f.symbols > 0 {
		coff.PointerToSymbolTable = f.headerSize + uint32(f.sections)*sectionSize
	}
	put(coff)
	optional := pe.OptionalHeader64{
		Magic: 0x20b, SectionAlignment: f.sectionAlignment, FileAlignment: 0x200, SizeOfHeaders: f.headerSize,
		NumberOfRvaAndSizes: 16, CheckSum: 0x1234,
	}
	if f.directory != 0 {
		optional.DataDirectory[f.directory] = pe.DataDirectory{VirtualAddress: f.firstAddress, Size: 8}
	}
	put(optional)
	for i := range f.sections {
		s := pe.SectionHeader32{
			VirtualSize: 0x180, VirtualAddress: f.firstAddress + uint32(i)*0x1000, SizeOfRawData: sectionSize,
			PointerToRawData: f.headerSize + uint32(i)*sectionSize, Characteristics: readableData,
		}
		copy(s.Name[:], fmt.Sprintf(".s%d", i))
		put(s)
	}
	out.Write(bytes.Repeat([]byte{f.filler}, int(f.headerSize)-out.Len()))
	for i := range f.sections {
		out.Write(bytes.Repeat([]byte{byte('a' + i)}, sectionSize))
	}
	if f.symbols > 0 {
		out.Write(make([]byte, f.symbols*symbolSize))
		put(uint32(4 + 2)) // string table: its own size, then one string
		out.WriteString("x\x00")
	}
	return out.Bytes()
}

var (
	amd64Stub = fakePE{machine: pe.IMAGE_FILE_MACHINE_AMD64, sections: 2, headerSize: 0x400, firstAddress: 0x4000, sectionAlignment: 0x200, symbols: 3}
	arm64Stub = fakePE{machine: pe.IMAGE_FILE_MACHINE_ARM64, sections: 2, headerSize: 0x1000, firstAddress: 0x1000, sectionAlignment: 0x1000, filler: 0x1f}
	tightStub = fakePE{machine: pe.IMAGE_FILE_MACHINE_AMD64, sections: 4, headerSize: 0x200, firstAddress: 0x1000, sectionAlignment: 0x1000}
)

// read returns the sections of a built image through Go's own parser, after checks that hold for all.
func read(t *testing.T, image []byte) map[string][]byte {
	t.Helper()
	file, err := pe.NewFile(bytes.NewReader(image))
	if err != nil {
		t.Fatalf("the image does not parse: %v", err)
	}
	optional := file.OptionalHeader.(*pe.OptionalHeader64)
	found := map[string][]byte{}
	address, offset := optional.SizeOfHeaders, optional.SizeOfHeaders
	for _, s := range file.Sections {
		data, err := s.Data()
		if err != nil {
			t.Fatalf("%s: %v", s.Name, err)
		}
		if s.VirtualAddress < address || s.Offset < offset || s.Offset%optional.FileAlignment != 0 {
			t.Errorf("%s at %#x, offset %#x overlaps or is not aligned", s.Name, s.VirtualAddress, s.Offset)
		}
		address, offset = s.VirtualAddress+s.VirtualSize, s.Offset+s.Size
		found[s.Name] = data[:min(uint32(len(data)), s.VirtualSize)]
	}
	tableEnd := int64(binary.LittleEndian.Uint32(image[peOffsetField:])) + 4 + coffHeaderSize +
		int64(file.SizeOfOptionalHeader) + int64(len(file.Sections))*sectionHeaderSize
	if tableEnd > int64(optional.SizeOfHeaders) || tableEnd > int64(file.Sections[0].Offset) {
		t.Errorf("section headers end at %#x, behind SizeOfHeaders %#x or the first section", tableEnd, optional.SizeOfHeaders)
	}
	if optional.SizeOfImage < address || optional.SizeOfImage%optional.SectionAlignment != 0 {
		t.Errorf("SizeOfImage %#x for an end at %#x", optional.SizeOfImage, address)
	}
	if optional.CheckSum != 0 || file.NumberOfSymbols != 0 {
		t.Errorf("checksum %#x, %d symbols left", optional.CheckSum, file.NumberOfSymbols)
	}
	return found
}

func TestBuild(t *testing.T) {
	for name, stub := range map[string]fakePE{"amd64": amd64Stub, "arm64": arm64Stub, "headers have to grow": tightStub} {
		t.Run(name, func(t *testing.T) {
			kernel := fakePE{machine: stub.machine, sections: 1, headerSize: 0x400, firstAddress: 0x1000, sectionAlignment: 0x1000}.build(t)
			var zipped bytes.Buffer
			writer := gzip.NewWriter(&zipped)
			writer.Write(kernel)
			writer.Close()
			for form, content := range map[string][]byte{"plain": kernel, "gzip": zipped.Bytes()} {
				image, err := Build(Parts{
					Stub: stub.build(t), Kernel: content, OSRelease: []byte("ID=x\n"), Initrd: []byte("i"), Cmdline: " root=/dev/x quiet\n",
				})
				if err != nil {
					t.Fatalf("%s: %v", form, err)
				}
				sections := read(t, image)
				for section, want := range map[string]string{
					".osrel": "ID=x\n", ".cmdline": "root=/dev/x quiet", ".initrd": "i", ".linux": string(kernel),
					".s0": strings.Repeat("a", 0x180), ".s1": strings.Repeat("b", 0x180),
				} {
					if got := string(sections[section]); got != want {
						t.Errorf("%s: %s holds %.40q, want %.40q", form, section, got, want)
					}
				}
			}
		})
	}
}

func TestBuildRefuses(t *testing.T) {
	stub := amd64Stub.build(t)
	kernel := fakePE{machine: pe.IMAGE_FILE_MACHINE_AMD64, sections: 1, headerSize: 0x400, firstAddress: 0x1000, sectionAlignment: 0x1000}.build(t)
	signed, full := amd64Stub, tightStub
	signed.directory = securityDirectory
	full.firstAddress = 0x200
	done, err := Build(Parts{Stub: stub, Kernel: kernel, Cmdline: "x"})
	if err != nil {
		t.Fatal(err)
	}
	for want, parts := range map[string]Parts{
		"stub: not a PE file":          {Stub: []byte("x"), Kernel: kernel, Cmdline: "x"},
		"stub: not a usable PE file":   {Stub: stub[:0x60], Kernel: kernel, Cmdline: "x"},
		"stub: signed":                 {Stub: signed.build(t), Kernel: kernel, Cmdline: "x"},
		"stub: no room for 2 more":     {Stub: full.build(t), Kernel: kernel, Cmdline: "x"},
		"stub: has a kernel already":   {Stub: done, Kernel: kernel, Cmdline: "x"},
		"kernel: not a PE file":        {Stub: stub, Kernel: []byte("\x7fELF"), Cmdline: "x"},
		"kernel: gzip: invalid header": {Stub: stub, Kernel: []byte("\x1f\x8bxxxxxxxxxx"), Cmdline: "x"},
		"the stub is for machine":      {Stub: arm64Stub.build(t), Kernel: kernel, Cmdline: "x"},
		"the command line holds":       {Stub: stub, Kernel: kernel, Cmdline: "a\nb"},
	} {
		if _, err := Build(parts); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// TestRealStub takes systemd's own stub where it is installed, and lets binutils judge the result.
func TestRealStub(t *testing.T) {
	const stub = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"
	if _, err := os.Stat(stub); err != nil {
		t.Skip("systemd's EFI stub is not installed")
	}
	content, err := os.ReadFile(stub)
	if err != nil {
		t.Fatal(err)
	}
	kernel := fakePE{machine: pe.IMAGE_FILE_MACHINE_AMD64, sections: 1, headerSize: 0x400, firstAddress: 0x1000, sectionAlignment: 0x1000}.build(t)
	image, err := Build(Parts{Stub: content, Kernel: kernel, Cmdline: "a=b"})
	if err != nil {
		t.Fatal(err)
	}
	output := filepath.Join(t.TempDir(), "uki.efi")
	if err := os.WriteFile(output, image, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := string(read(t, image)[".cmdline"]); got != "a=b" {
		t.Errorf("command line %q", got)
	}
	if objdump, err := exec.LookPath("objdump"); err == nil {
		out, err := exec.Command(objdump, "-h", output).CombinedOutput()
		if err != nil || !strings.Contains(string(out), ".linux") {
			t.Errorf("objdump: %v\n%s", err, out)
		}
	}
}
