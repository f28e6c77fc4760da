package uki

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"errors"
	"fmt"
)

// Sizes and offsets of Microsoft's PE format that debug/pe keeps to itself.
const (
	peOffsetField        = 0x3c // file offset of the "PE\0\0" signature, in the DOS header
	coffHeaderSize       = 20
	sectionHeaderSize    = 40
	symbolSize           = 18
	securityDirectory    = 4 // index of the certificate table in the data directories
	debugDirectory       = 6
	localSymbolsStripped = 0x0008

	// A section's address in memory is aligned to a page, also where the stub asks for less: Debian
	// 12's has SectionAlignment 0x200.
	pageSize = 0x1000
	// Offsets and sizes in PE headers have 32 bits; the file is kept well below that.
	maxImageSize = 1 << 31
	// PE Format, Optional Header Windows-Specific Fields. Without it a small stub became an image of a gigabyte.
	maxFileAlignment = 64 << 10
)

// peSection is a section to append.
type peSection struct {
	name            string
	data            []byte
	characteristics uint32
}

// peImage is a parsed PE file: the headers as values, everything else as bytes at its place.
type peImage struct {
	data       []byte
	coffOffset int // of the COFF header, after the signature
	coff       pe.FileHeader
	optional   pe.OptionalHeader64
	sections   []pe.SectionHeader32
}

func roundUp(value, alignment uint32) uint32 { return (value + alignment - 1) / alignment * alignment }

// parsePE reads the headers of a 64-bit EFI image. debug/pe checks that they are consistent with the
// file; the header values are then read again because debug/pe gives sections in a form of its own.
func parsePE(data []byte) (*peImage, error) {
	if !bytes.HasPrefix(data, []byte("MZ")) || len(data) < peOffsetField+4 {
		return nil, errors.New("not a PE file")
	}
	if len(data) > maxImageSize {
		return nil, errors.New("larger than 2 GiB")
	}
	if binary.LittleEndian.Uint32(data[peOffsetField:]) < peOffsetField+4 {
		return nil, errors.New("the PE header lies within the DOS header")
	}
	file, err := pe.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("not a usable PE file: %w", err)
	}
	optional, ok := file.OptionalHeader.(*pe.OptionalHeader64)
	if !ok {
		return nil, errors.New("not a 64-bit PE file")
	}
	image := &peImage{data: data, coff: file.FileHeader, optional: *optional}
	image.coffOffset = int(binary.LittleEndian.Uint32(data[peOffsetField:])) + 4
	image.sections = make([]pe.SectionHeader32, len(file.Sections))
	table := bytes.NewReader(data[image.sectionTable():])
	if err := binary.Read(table, binary.LittleEndian, image.sections); err != nil {
		return nil, fmt.Errorf("section table: %w", err)
	}
	return image, nil
}

func (p *peImage) sectionTable() int {
	return p.coffOffset + coffHeaderSize + int(p.coff.SizeOfOptionalHeader)
}

// stripSymbols drops the COFF symbol table when it is the end of the file, as ukify does: old stubs
// have one, and sections appended behind it would be out of order.
func (p *peImage) stripSymbols() {
	start := uint64(p.coff.PointerToSymbolTable)
	size := uint64(p.coff.NumberOfSymbols) * symbolSize
	length := uint64(len(p.data))
	if start == 0 || start+size > length {
		return
	}
	end := start + size
	if end+4 <= length { // the string table follows; its first word is its size
		end += uint64(binary.LittleEndian.Uint32(p.data[end:]))
	}
	if end != length {
		return
	}
	p.data = p.data[:start]
	p.coff.PointerToSymbolTable, p.coff.NumberOfSymbols = 0, 0
	p.coff.Characteristics |= localSymbolsStripped
}

// directory tells whether the image has the data directory of that index.
func (p *peImage) directory(index int) bool {
	return index < int(p.optional.NumberOfRvaAndSizes) && p.optional.DataDirectory[index].Size != 0
}

// firstRawData is the file offset where the first section's bytes begin.
func (p *peImage) firstRawData() uint32 {
	first := uint32(len(p.data))
	for _, s := range p.sections {
		if s.SizeOfRawData > 0 {
			first = min(first, s.PointerToRawData)
		}
	}
	return first
}

// makeRoom sees to it that count more section headers fit before the first section's bytes. When they
// do not, everything behind the headers moves up by whole file alignments, as far as the first
// section's address in memory allows: headers are loaded too, and must not run into it.
func (p *peImage) makeRoom(count int) error {
	tableEnd := uint32(p.sectionTable() + len(p.sections)*sectionHeaderSize)
	needed := roundUp(tableEnd+uint32(count*sectionHeaderSize), p.optional.FileAlignment)
	first := p.firstRawData()
	if first < tableEnd {
		return fmt.Errorf("a section's bytes begin at %#x, within the headers, which end at %#x", first, tableEnd)
	}
	if needed > first {
		lowest := uint32(maxImageSize)
		for _, s := range p.sections {
			lowest = min(lowest, s.VirtualAddress)
		}
		if needed > lowest {
			return fmt.Errorf("no room for %d more section headers: they end at %#x, the first section is loaded at %#x",
				count, needed, lowest)
		}
		if p.directory(debugDirectory) {
			return errors.New("no room for more section headers, and a debug directory that holds file offsets")
		}
		shift := roundUp(needed-first, p.optional.FileAlignment)
		moved := make([]byte, 0, len(p.data)+int(shift))
		moved = append(moved, p.data[:first]...)
		moved = append(moved, make([]byte, shift)...)
		p.data = append(moved, p.data[first:]...)
		for i := range p.sections {
			if p.sections[i].SizeOfRawData > 0 {
				p.sections[i].PointerToRawData += shift
			}
		}
		if p.coff.PointerToSymbolTable != 0 {
			p.coff.PointerToSymbolTable += shift
		}
	}
	p.optional.SizeOfHeaders = max(p.optional.SizeOfHeaders, needed)
	// What lies there is padding (of zeros, or of NOPs in Debian's arm64 stub), unless a data directory
	// points to it, as old linkers did with bound imports.
	for i := range min(p.optional.NumberOfRvaAndSizes, 16) {
		if d := p.optional.DataDirectory[i]; d.Size != 0 && d.VirtualAddress >= tableEnd && d.VirtualAddress < needed {
			return fmt.Errorf("data directory %d is in the space behind the section table", i)
		}
	}
	return nil
}

// add appends the sections, in order, to the file and to the image in memory.
func (p *peImage) add(sections []peSection) error {
	if p.directory(securityDirectory) {
		return errors.New("signed; a changed image would not verify")
	}
	if p.optional.FileAlignment == 0 || p.optional.SectionAlignment == 0 {
		return errors.New("a zero alignment")
	}
	if alignment := p.optional.FileAlignment; alignment > maxFileAlignment || alignment&(alignment-1) != 0 {
		return fmt.Errorf("the file alignment is %#x; it has to be a power of two up to 64 KiB", alignment)
	}
	p.stripSymbols()
	if err := p.makeRoom(len(sections)); err != nil {
		return err
	}
	alignment := max(p.optional.SectionAlignment, pageSize)
	address := uint32(0)
	for _, s := range p.sections {
		address = max(address, s.VirtualAddress+max(s.VirtualSize, s.SizeOfRawData))
	}
	for _, s := range sections {
		if len(s.name) > 8 {
			return fmt.Errorf("section name %s is longer than 8 bytes", s.name)
		}
		if len(p.data)+len(s.data) > maxImageSize-2*pageSize {
			return errors.New("the image would be larger than 2 GiB")
		}
		header := pe.SectionHeader32{
			VirtualSize:      uint32(len(s.data)),
			VirtualAddress:   roundUp(address, alignment),
			SizeOfRawData:    roundUp(uint32(len(s.data)), p.optional.FileAlignment),
			PointerToRawData: roundUp(uint32(len(p.data)), p.optional.FileAlignment),
			Characteristics:  s.characteristics,
		}
		copy(header.Name[:], s.name)
		p.data = append(p.data, make([]byte, int(header.PointerToRawData)-len(p.data))...)
		p.data = append(p.data, s.data...)
		p.data = append(p.data, make([]byte, int(header.SizeOfRawData)-len(s.data))...)
		p.sections = append(p.sections, header)
		p.optional.SizeOfInitializedData += header.SizeOfRawData
		address = header.VirtualAddress + header.VirtualSize
	}
	p.optional.SizeOfImage = roundUp(address, alignment)
	p.optional.CheckSum = 0 // EFI firmware does not look at it
	p.coff.NumberOfSections = uint16(len(p.sections))
	return p.writeHeaders()
}

// writeHeaders puts the changed values back into the file's bytes. Only as much of the optional
// header is written as the file has: it may have fewer than 16 data directories.
func (p *peImage) writeHeaders() error {
	var out bytes.Buffer
	if err := binary.Write(&out, binary.LittleEndian, p.optional); err != nil {
		return err
	}
	optionalSize := int(p.coff.SizeOfOptionalHeader)
	optional := out.Bytes()[:min(out.Len(), optionalSize)]
	copy(p.data[p.coffOffset+coffHeaderSize:], optional)

	for at, value := range map[int]any{p.coffOffset: p.coff, p.sectionTable(): p.sections} {
		var out bytes.Buffer
		if err := binary.Write(&out, binary.LittleEndian, value); err != nil {
			return err
		}
		copy(p.data[at:], out.Bytes())
	}
	return nil
}
