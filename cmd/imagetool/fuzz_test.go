package main

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"testing"
)

// FuzzRoot feeds a partition table's header and entries: a root partition that is found lies where the table says.
func FuzzRoot(f *testing.F) {
	header := make([]byte, 92)
	copy(header, "EFI PART")
	binary.LittleEndian.PutUint32(header[12:], 92)
	binary.LittleEndian.PutUint64(header[72:], 2)
	binary.LittleEndian.PutUint32(header[80:], 2)
	binary.LittleEndian.PutUint32(header[84:], 128)
	entry := make([]byte, 128)
	for kind := range rootTypes {
		copy(entry, kind[:])
	}
	binary.LittleEndian.PutUint64(entry[32:], 4)
	binary.LittleEndian.PutUint64(entry[40:], 9)
	f.Add(header, entry)
	f.Add([]byte("EFI PART"), []byte{})
	f.Fuzz(func(t *testing.T, header, entries []byte) {
		disk := make([]byte, 10<<9)
		copy(disk[512:1024], header)
		copy(disk[1024:2048], entries)
		copy(disk[2048:], "XFSB")
		sealGPT(disk)
		root, err := findRoot(bytes.NewReader(disk))
		if err == nil && (root.offset < 0 || root.size < 0 || root.filesystem == "") {
			t.Errorf("%+v", root)
		}
	})
}

// sealGPT makes the checksums right, which would stop nearly everything.
func sealGPT(disk []byte) {
	header := disk[512:1024]
	size, count, each := binary.LittleEndian.Uint32(header[12:]), binary.LittleEndian.Uint32(header[80:]), binary.LittleEndian.Uint32(header[84:])
	if start, length := binary.LittleEndian.Uint64(header[72:]), uint64(count)*uint64(each); start < 10 && length <= uint64(len(disk))-start*512 {
		binary.LittleEndian.PutUint32(header[88:], crc32.ChecksumIEEE(disk[start*512:start*512+length]))
	}
	if size >= 92 && size <= 512 {
		clear(header[16:20])
		binary.LittleEndian.PutUint32(header[16:], crc32.ChecksumIEEE(header[:size]))
	}
}

// FuzzExtents: the place in a file that a byte of the disk is attributed to lies within one of its extents.
func FuzzExtents(f *testing.F) {
	f.Add([]byte{1, 0, 4, 3, 9, 2, 8, 1, 1}, int64(5))
	f.Add([]byte{}, int64(-1))
	f.Fuzz(func(t *testing.T, numbers []byte, offset int64) {
		var l layout
		for ; len(numbers) >= 3; numbers = numbers[3:] {
			l = append(l, extent{path: "/a", physical: int64(numbers[0]), length: int64(numbers[1]), logical: int64(numbers[2])})
		}
		l.sort()
		path, place := l.owner(offset)
		if path == "" {
			if place != offset {
				t.Errorf("no file's byte %d became %d", offset, place)
			}
			return
		}
		for _, e := range l {
			if place >= e.logical && place < e.logical+e.length && offset-e.physical == place-e.logical {
				return
			}
		}
		t.Errorf("byte %d is byte %d of %s in %+v", offset, place, path, l)
	})
}

// FuzzJudges feeds the files that path rules read, and capabilities: a finding says what it is.
func FuzzJudges(f *testing.F) {
	for _, seed := range []string{
		"root:x:0:0::/root:/bin/sh\n", "root:$y$j9T$a:1::::::\n", "password = a\n", "[a]\nPrivateKey: b", "https://a:b@c/", "A_TOKEN=abcd", "a * b *\n", "\x01\x00\x00\x02",
	} {
		f.Add([]byte(seed))
	}
	rules := pathRules([]string{"admin"})
	f.Fuzz(func(t *testing.T, content []byte) {
		for _, rule := range rules {
			if detail, found := rule.judge(content); found && detail == "" {
				t.Errorf("%s of %s says nothing", rule.name, rule.pattern)
			}
		}
		if detail, found := newModeRules(nil).judgeCapabilities("/a", content); found && detail == "" {
			t.Error("capabilities say nothing")
		}
		result := &report{}
		result.add("a", string(content), "b")
		result.settle(nil)
		if err := result.print(io.Discard, true); err != nil {
			t.Error(err)
		}
	})
}

// FuzzPatterns: sshd_config's pattern for keys, whatever it is, is a rule that matches paths without a fault.
func FuzzPatterns(f *testing.F) {
	f.Add("%h/.ssh/keys", "home/admin/.ssh/keys")
	f.Add("/etc/keys/%u", "etc/keys/admin")
	f.Add("../**/[", "a/b")
	f.Fuzz(func(t *testing.T, file, path string) {
		pattern := keyFilePattern(file)
		if pattern == "" {
			return
		}
		index := newRuleIndex([]pathRule{{"authorized-keys", pattern, holdsLines, ""}})
		index.matching(path)
	})
}
