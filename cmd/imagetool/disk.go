package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// GUIDs are stored with the first three groups little-endian; these are the types as on disk.
var rootTypes = map[[16]byte]bool{
	// 0FC63DAF-8483-4772-8E79-3D69D8477DE4, Linux file system
	{0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4}: true,
	// 4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, root of x86-64 (Discoverable Partitions Specification)
	{0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09}: true,
	// B921B045-1DF0-41C3-AF44-4C6F280D3FAE, root of arm64
	{0x45, 0xb0, 0x21, 0xb9, 0xf0, 0x1d, 0xc3, 0x41, 0xaf, 0x44, 0x4c, 0x6f, 0x28, 0x0d, 0x3f, 0xae}: true,
}

// rootPartition is where the root file system lies on the device, in bytes.
type rootPartition struct {
	offset, size int64
	filesystem   string // "ext4" or "xfs"; "ext4" stands for ext2 and ext3 too
}

// gptHeader is the header of a GUID partition table, UEFI specification 5.3.2.
type gptHeader struct {
	Signature               [8]byte
	Revision, Size          uint32
	CRC, Reserved           uint32
	Current, Backup         uint64
	FirstUsable, LastUsable uint64
	GUID                    [16]byte
	Entries                 uint64
	EntryCount, EntrySize   uint32
	EntriesCRC              uint32
}

// gptEntry is one partition; addresses are blocks, the last one included.
type gptEntry struct {
	Type, GUID  [16]byte
	First, Last uint64
	Flags       uint64
	Name        [72]byte
}

// findRoot returns the largest Linux partition, or the whole device when it holds a file system
// without a partition table.
func findRoot(device io.ReaderAt) (rootPartition, error) {
	if filesystem := probe(device, 0); filesystem != "" {
		return rootPartition{0, 0, filesystem}, nil
	}
	for _, block := range []int64{512, 4096} {
		partitions, err := readGPT(device, block)
		if errors.Is(err, errNoGPT) {
			continue
		}
		if err != nil {
			return rootPartition{}, err
		}
		root := rootPartition{}
		for _, p := range partitions {
			if p.size > root.size {
				root = p
			}
		}
		if root.size == 0 {
			return root, errors.New("the partition table has no Linux partition")
		}
		if root.filesystem = probe(device, root.offset); root.filesystem == "" {
			return root, errors.New("the root partition holds neither ext4 nor XFS")
		}
		return root, nil
	}
	return rootPartition{}, errNoGPT
}

var errNoGPT = errors.New("the device has no GUID partition table")

// readGPT returns the Linux partitions of the primary table, whose checksums must be right.
func readGPT(device io.ReaderAt, block int64) ([]rootPartition, error) {
	raw := make([]byte, block)
	if _, err := device.ReadAt(raw, block); err != nil {
		return nil, errNoGPT
	}
	header := gptHeader{}
	if err := binary.Read(bytes.NewReader(raw), binary.LittleEndian, &header); err != nil {
		return nil, err
	}
	if string(header.Signature[:]) != "EFI PART" {
		return nil, errNoGPT
	}
	const entryBytes = 128 // the smallest size of an entry; larger ones only add to its end
	if header.Size < 92 || int64(header.Size) > block || header.EntrySize < entryBytes ||
		header.EntrySize > 4096 || header.EntryCount > 1024 {
		return nil, errors.New("the partition table's header has sizes outside of what UEFI allows")
	}
	clear(raw[16:20]) // the checksum is made with its own field zero
	if crc32.ChecksumIEEE(raw[:header.Size]) != header.CRC {
		return nil, errors.New("the partition table's header has a wrong checksum")
	}
	table := make([]byte, int(header.EntryCount)*int(header.EntrySize))
	if _, err := device.ReadAt(table, int64(header.Entries)*block); err != nil {
		return nil, fmt.Errorf("reading the partition table: %w", err)
	}
	if crc32.ChecksumIEEE(table) != header.EntriesCRC {
		return nil, errors.New("the partition table has a wrong checksum")
	}
	var found []rootPartition
	for ; len(table) > 0; table = table[header.EntrySize:] {
		entry := gptEntry{}
		if err := binary.Read(bytes.NewReader(table[:entryBytes]), binary.LittleEndian, &entry); err != nil {
			return nil, err
		}
		if rootTypes[entry.Type] && entry.Last >= entry.First {
			found = append(found, rootPartition{
				offset: int64(entry.First) * block, size: int64(entry.Last-entry.First+1) * block,
			})
		}
	}
	return found, nil
}

// probe returns the file system at that offset, "ext4" or "xfs" by its magic number, else "".
func probe(device io.ReaderAt, offset int64) string {
	superblock := make([]byte, 2048)
	if _, err := device.ReadAt(superblock, offset); err != nil {
		return ""
	}
	switch {
	case bytes.HasPrefix(superblock, []byte("XFSB")):
		return "xfs"
	case binary.LittleEndian.Uint16(superblock[1024+56:]) == 0xef53:
		return "ext4"
	}
	return ""
}
