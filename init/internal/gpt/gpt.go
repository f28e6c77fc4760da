// Package gpt enlarges the last partition of a disk that has become larger than its GUID partition table says, and may
// make one for swap behind it.
//
// Layout and checksums are those of the UEFI specification, chapter 5.3, for logical blocks of 512 bytes.
package gpt

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
)

const (
	// SectorSize is the only logical block size that is supported, which is EBS's.
	SectorSize = 512
	// align is where a partition may end, in sectors: whole MiB, as other tools do it.
	align = 2048
	// pageSize is what is written at once at the start of the disk: the protective MBR, the header, and the entries
	// of the first partitions. Header and entry change together, and a header whose checksum does not fit makes
	// Linux see no partition at all; so they must not be torn apart. 4 KiB, aligned, are one block of an EBS volume
	// (which writes up to 16 KiB whole: AWS, "Torn write prevention") and of any SSD.
	pageSize = 4096
	// entrySize and reserved are what all tools write: 128 bytes an entry, and at least 16 KiB for all of them.
	entrySize    = 128
	reserved     = 16384 / SectorSize
	entriesStart = 2
	// InPage is how many entries lie in the first page.
	InPage = (pageSize - entriesStart*SectorSize) / entrySize
	// entriesMost bounds what is read; 128 entries are the rule.
	entriesMost = 1024

	headerSize = 92
	signature  = "EFI PART"
)

// ErrNoTable says that there is no GPT: a disk without partitions, or with those of another kind.
var ErrNoTable = errors.New("no GUID partition table")

// A Write is some bytes for a place of the disk.
type Write struct {
	Offset int64
	Data   []byte
}

// A Partition is where one lies on its disk.
type Partition struct {
	Number       int // from 1
	Start, Bytes int64
}

// A Growth is what has to be written, in this order and each before the next is begun, and what the partition is
// then; Swap is the one that is made behind it, or nil. Before the last write the old table holds, after it the new one.
type Growth struct {
	Writes []Write
	Partition
	Swap *Partition
}

// A Swap is the partition for swap that is to be behind the one that grows. With 0 bytes none is made; where there is
// one with its ID, which is what Linux calls PARTUUID, the partition before it stays as it is.
type Swap struct {
	ID    [16]byte
	Bytes int64
}

// swapType is the partition type of Linux swap, 0657fd6d-a4ab-43c4-84e5-0933c84b4f4f, as it is on a disk.
var swapType = []byte{
	0x6d, 0xfd, 0x57, 0x06, 0xab, 0xa4, 0xc4, 0x43, 0x84, 0xe5, 0x09, 0x33, 0xc8, 0x4b, 0x4f, 0x4f,
}

// ParseID reads a PARTUUID. On the disk the first three of its groups have their lowest byte first (UEFI, appendix A).
func ParseID(text string) (id [16]byte, err error) {
	raw, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
	if err != nil || len(raw) != len(id) || len(text) != 36 {
		return id, fmt.Errorf("%q is no UUID of a partition", text)
	}
	for i, from := range []int{3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15} {
		id[i] = raw[from]
	}
	return id, nil
}

// Plan looks at a disk of so many sectors and tells how its partition of that number, counted from 1, reaches the
// disk's end, or the swap behind it (which may be nil). It is nil when it does already, to within a MiB. The disk is
// not changed. Errors are ErrNoTable, those of the disk, and reasons not to touch the table.
func Plan(disk io.ReaderAt, sectors int64, number int, swap *Swap) (*Growth, error) {
	page := make([]byte, pageSize)
	if _, err := disk.ReadAt(page, 0); err != nil {
		return nil, fmt.Errorf("partition table: %w", err)
	}
	header, err := parseHeader(page[SectorSize : 2*SectorSize])
	if err != nil {
		return nil, err
	}
	entries := make([]byte, header.count*entrySize)
	if _, err := disk.ReadAt(entries, entriesStart*SectorSize); err != nil {
		return nil, fmt.Errorf("partition table: %w", err)
	}
	if checksum(entries) != header.entriesCRC {
		return nil, errors.New("partition table: its entries do not fit their checksum")
	}
	if number < 1 || number > header.count || number > InPage {
		return nil, fmt.Errorf("partition table: no partition %d of %d", number, min(header.count, InPage))
	}
	entry := entries[(number-1)*entrySize : number*entrySize]
	first, last := binary.LittleEndian.Uint64(entry[32:]), binary.LittleEndian.Uint64(entry[40:])
	if !used(entry) || first > last || last >= uint64(sectors) {
		return nil, fmt.Errorf("partition table: partition %d is not on this disk", number)
	}
	free := -1
	wanted := swap != nil && swap.Bytes > 0
	for other := range header.count {
		e := entries[other*entrySize : (other+1)*entrySize]
		switch {
		case !used(e):
			if free < 0 && other < InPage {
				free = other
			}
		case swap != nil && bytes.Equal(e[16:32], swap.ID[:]):
			if binary.LittleEndian.Uint64(e[40:]) > last {
				return nil, nil
			}
			wanted = false
		case binary.LittleEndian.Uint64(e[40:]) > last:
			return nil, fmt.Errorf("partition %d is not the last one: %d lies behind it", number, other+1)
		}
	}
	// The disk's last sector is the backup header, with a copy of the entries before it.
	tableSectors := int64(max(reserved, (len(entries)+SectorSize-1)/SectorSize))
	lastUsable := sectors - tableSectors - 2
	end := (lastUsable + 1) / align * align
	growth := &Growth{}
	if wanted {
		length := (swap.Bytes + align*SectorSize - 1) / (align * SectorSize) * align
		if end -= length; end <= int64(last) || free < 0 {
			return nil, fmt.Errorf("no room for %d MiB of swap behind partition %d", length/align, number)
		}
		e := entries[free*entrySize : (free+1)*entrySize]
		clear(e)
		copy(e, swapType)
		copy(e[16:], swap.ID[:])
		binary.LittleEndian.PutUint64(e[32:], uint64(end))
		binary.LittleEndian.PutUint64(e[40:], uint64(end+length-1))
		growth.Swap = &Partition{Number: free + 1, Start: end * SectorSize, Bytes: length * SectorSize}
	}
	if end > int64(last)+1 {
		binary.LittleEndian.PutUint64(entry[40:], uint64(end-1))
	} else if !wanted {
		return nil, nil
	}
	growth.Partition = Partition{
		Number: number,
		Start:  int64(first) * SectorSize,
		Bytes:  (max(end, int64(last)+1) - int64(first)) * SectorSize,
	}

	// The copy first. While it is written nobody looks there: the header in force still names the old one.
	backup := make([]byte, (tableSectors+1)*SectorSize)
	copy(backup, entries)
	header.lastUsable, header.entriesCRC = uint64(lastUsable), checksum(entries)
	header.put(backup[tableSectors*SectorSize:], uint64(sectors-1), 1, uint64(sectors-1-tableSectors))
	header.put(page[SectorSize:], 1, uint64(sectors-1), entriesStart)
	copy(page[entriesStart*SectorSize:], entries[:min(len(entries), pageSize-entriesStart*SectorSize)])
	protect(page, sectors)
	growth.Writes = []Write{{Offset: (sectors - 1 - tableSectors) * SectorSize, Data: backup}, {Offset: 0, Data: page}}
	return growth, nil
}

// A header is what of the table's header is looked at; raw is all of it.
type header struct {
	raw        []byte
	lastUsable uint64
	count      int
	entriesCRC uint32
}

func parseHeader(sector []byte) (header, error) {
	if !bytes.HasPrefix(sector, []byte(signature)) {
		return header{}, ErrNoTable
	}
	size := binary.LittleEndian.Uint32(sector[12:])
	if size < headerSize || size > SectorSize {
		return header{}, fmt.Errorf("partition table: a header of %d bytes", size)
	}
	raw := bytes.Clone(sector[:size])
	want := binary.LittleEndian.Uint32(raw[16:])
	clear(raw[16:20])
	if checksum(raw) != want {
		return header{}, errors.New("partition table: its header does not fit its checksum")
	}
	if at := binary.LittleEndian.Uint64(raw[24:]); at != 1 {
		return header{}, fmt.Errorf("partition table: its header says that it is sector %d", at)
	}
	if at := binary.LittleEndian.Uint64(raw[72:]); at != entriesStart {
		return header{}, fmt.Errorf("partition table: its entries begin at sector %d", at)
	}
	if size := binary.LittleEndian.Uint32(raw[84:]); size != entrySize {
		return header{}, fmt.Errorf("partition table: entries of %d bytes", size)
	}
	count := binary.LittleEndian.Uint32(raw[80:])
	if count < 1 || count > entriesMost {
		return header{}, fmt.Errorf("partition table: %d entries", count)
	}
	return header{raw, binary.LittleEndian.Uint64(raw[48:]), int(count), binary.LittleEndian.Uint32(raw[88:])}, nil
}

// put writes the header for one of its two places.
func (h header) put(sector []byte, here, other, entries uint64) {
	raw := bytes.Clone(h.raw)
	binary.LittleEndian.PutUint64(raw[24:], here)
	binary.LittleEndian.PutUint64(raw[32:], other)
	binary.LittleEndian.PutUint64(raw[48:], h.lastUsable)
	binary.LittleEndian.PutUint64(raw[72:], entries)
	binary.LittleEndian.PutUint32(raw[88:], h.entriesCRC)
	binary.LittleEndian.PutUint32(raw[16:], checksum(raw))
	copy(sector, raw)
}

// used tells whether an entry is one: those of the type zero are not.
func used(entry []byte) bool { return !bytes.Equal(entry[:16], make([]byte, 16)) }

// protect has the protective MBR's one partition cover the whole disk, as far as 32 bits reach.
func protect(page []byte, sectors int64) {
	const kind, size = 446 + 4, 446 + 12 // of the first of its four
	if page[kind] == 0xEE {
		binary.LittleEndian.PutUint32(page[size:], uint32(min(sectors-1, 0xFFFFFFFF)))
	}
}

// checksum is CRC-32 (IEEE 802.3). Bit by bit: 16 KiB take less time than a table's first use.
func checksum(data []byte) uint32 {
	crc := ^uint32(0)
	for _, b := range data {
		crc ^= uint32(b)
		for range 8 {
			crc = crc>>1 ^ 0xEDB88320&-(crc&1)
		}
	}
	return ^crc
}
