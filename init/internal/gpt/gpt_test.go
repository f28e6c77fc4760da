package gpt

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const mib = 1 << 20

type table struct {
	PartitionTable struct {
		ID, Label         string
		FirstLBA, LastLBA int64
		Partitions        []map[string]any
	} `json:"partitiontable"`
}

// image makes a disk of a size with a table by sfdisk, as a plain file.
func image(t *testing.T, size int64, script string) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	command := exec.Command("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", path)
	command.Stdin = strings.NewReader(script)
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v: %s", err, out)
	}
	return file
}

// enlarge is what ModifyVolume, or a launch with a larger root, does.
func enlarge(t *testing.T, file *os.File, size int64) int64 {
	t.Helper()
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return size / SectorSize
}

func apply(t *testing.T, file *os.File, writes []Write) {
	t.Helper()
	for _, write := range writes {
		if _, err := file.WriteAt(write.Data, write.Offset); err != nil {
			t.Fatal(err)
		}
	}
}

// look is sfdisk's reading; complaints are what it and, where there is one, sgdisk find wrong.
func look(t *testing.T, file *os.File) (read table, complaints string) {
	t.Helper()
	dump := exec.Command("sfdisk", "--json", file.Name())
	var stderr bytes.Buffer
	dump.Stderr = &stderr
	text, err := dump.Output()
	if err != nil {
		return read, err.Error() + stderr.String()
	}
	if err := json.Unmarshal(text, &read); err != nil {
		t.Fatal(err)
	}
	verify, err := exec.Command("sfdisk", "--verify", file.Name()).CombinedOutput()
	if err != nil {
		complaints += string(verify)
	}
	if path, missing := exec.LookPath("sgdisk"); missing == nil {
		verify, err := exec.Command(path, "--verify", file.Name()).CombinedOutput()
		if err != nil || !bytes.Contains(verify, []byte("No problems found")) {
			complaints += string(verify)
		}
	}
	return read, complaints + stderr.String()
}

// Layouts of the images that this runs on.
const (
	debian = "label: gpt\nlabel-id: 11111111-2222-3333-4444-555555555555\n14 : start=2048, size=6144, type=21686148-6449-6E6F-744E-656564454649\n" +
		"15 : start=8192, size=20480, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n1 : start=28672, size=32768, name=root\n"
	amazon = "label: gpt\n1 : start=24576, size=36864, name=Linux\n127 : start=22528, size=2048\n128 : start=2048, size=20480\n"
)

func TestTheLastPartitionReachesTheEnd(t *testing.T) {
	for _, test := range []struct {
		name, script      string
		number            int
		before, after     int64
		lastSector, start int64
	}{
		{"debian", debian, 1, 32 * mib, 64 * mib, 63*2048 - 1, 28672},
		{"amazon", amazon, 1, 32 * mib, 1 << 40, (1<<40)/512 - 2048 - 1, 24576},
		{"not a whole MiB", debian, 1, 32 * mib, 64*mib + 7*SectorSize, 63*2048 - 1, 28672},
		{"only one", "label: gpt\nsize=14M\n", 1, 16 * mib, 20 * mib, 19*2048 - 1, 2048},
		{"few entries", "label: gpt\ntable-length: 8\nsize=14M\n", 1, 16 * mib, 20 * mib, 19*2048 - 1, 2048},
		{"number 24", "label: gpt\n24 : start=2048, size=14M\n", 24, 16 * mib, 20 * mib, 19*2048 - 1, 2048},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := image(t, test.before, test.script)
			original, _ := look(t, file)
			sectors := enlarge(t, file, test.after)
			growth, err := Plan(file, sectors, test.number, nil)
			if err != nil || growth == nil {
				t.Fatalf("%v, %v", growth != nil, err)
			}
			if growth.Start != test.start*SectorSize || growth.Start+growth.Bytes != (test.lastSector+1)*SectorSize {
				t.Errorf("from %d, %d bytes", growth.Start, growth.Bytes)
			}

			// Cut short before the last write, in its middle as far as a disk can be, and after it.
			for done, write := range growth.Writes {
				if read, complaints := look(t, file); fmt.Sprint(read.PartitionTable.Partitions) !=
					fmt.Sprint(original.PartitionTable.Partitions) {
					t.Errorf("after %d writes: %v, %s", done, read, complaints)
				}
				apply(t, file, []Write{write})
			}
			read, complaints := look(t, file)
			if complaints != "" {
				t.Errorf("after all: %s", complaints)
			}
			if read.PartitionTable.ID != original.PartitionTable.ID {
				t.Errorf("another disk: %s", read.PartitionTable.ID)
			}
			grown := 0
			for i, partition := range read.PartitionTable.Partitions {
				was := original.PartitionTable.Partitions[i]
				if int64(partition["start"].(float64)) == test.start {
					grown++
					if end := partition["start"].(float64) + partition["size"].(float64); int64(end) != test.lastSector+1 {
						t.Errorf("ends at %f", end)
					}
					partition["size"] = was["size"]
				}
				if fmt.Sprint(partition) != fmt.Sprint(was) {
					t.Errorf("partition %v was %v", partition, was)
				}
			}
			if grown != 1 {
				t.Errorf("%d partitions are the one", grown)
			}
			if growth, err := Plan(file, sectors, test.number, nil); growth != nil || err != nil {
				t.Errorf("there is more to do: %v, %v", growth != nil, err)
			}
		})
	}
}

// What Linux will call resume=PARTUUID=.
const swapUUID = "2f5c6e1a-93d4-5b07-8a11-c0ffee00beef"

func TestRoomForSwap(t *testing.T) {
	id, err := ParseID(swapUUID)
	if err != nil {
		t.Fatal(err)
	}
	file := image(t, 32*mib, debian)
	before, _ := look(t, file)
	sectors := enlarge(t, file, 96*mib)
	for _, swap := range []*Swap{nil, {ID: id}} {
		growth, err := Plan(file, sectors, 1, swap)
		if err != nil || growth.Swap != nil || growth.Start+growth.Bytes < 94*mib {
			t.Fatalf("%+v: %+v, %v", swap, growth, err)
		}
	}
	growth, err := Plan(file, sectors, 1, &Swap{id, 20*mib + 1})
	if err != nil {
		t.Fatal(err)
	}
	if growth.Swap.Number != 2 || growth.Swap.Bytes != 21*mib || growth.Start+growth.Bytes != growth.Swap.Start {
		t.Fatalf("%+v, swap %+v", growth.Partition, growth.Swap)
	}
	apply(t, file, growth.Writes)
	after, complaints := look(t, file)
	if complaints != "" {
		t.Error(complaints)
	}
	made := after.PartitionTable.Partitions[1]
	if made["type"] != "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F" || !strings.EqualFold(made["uuid"].(string), swapUUID) ||
		int64(made["start"].(float64))*SectorSize != growth.Swap.Start {
		t.Errorf("made %v", made)
	}
	if len(after.PartitionTable.Partitions) != len(before.PartitionTable.Partitions)+1 {
		t.Errorf("partitions %v", after.PartitionTable.Partitions)
	}
	// Later starts leave it, and the root before it, as they are, on a larger volume, too.
	for _, bytes := range []int64{0, 20 * mib, 40 * mib} {
		if growth, err := Plan(file, enlarge(t, file, 128*mib), 1, &Swap{id, bytes}); growth != nil || err != nil {
			t.Errorf("%d bytes: %+v, %v", bytes, growth, err)
		}
	}
	if _, err := Plan(file, 128*mib/SectorSize, 1, nil); err == nil {
		t.Error("there is a partition behind the first, and nobody said whose")
	}
	if _, err := Plan(image(t, 32*mib, debian), 32*mib/SectorSize, 1, &Swap{id, 20 * mib}); err == nil {
		t.Error("swap found room where the root is")
	}
}

func TestParseID(t *testing.T) {
	for _, text := range []string{"", "2f5c6e1a93d45b078a11c0ffee00beef", swapUUID + "0", swapUUID[:35] + "g", "0123abcd-02"} {
		if _, err := ParseID(text); err == nil {
			t.Errorf("%q is no UUID", text)
		}
	}
}

// The header alone decides which table Linux sees: it must not change apart from the entries that it checks.
func TestHeaderAndEntryAreOneBlock(t *testing.T) {
	file := image(t, 32*mib, debian)
	growth, err := Plan(file, enlarge(t, file, 64*mib), 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	last := growth.Writes[len(growth.Writes)-1]
	if last.Offset != 0 || len(last.Data) != 4096 {
		t.Errorf("the last write is of %d bytes at %d", len(last.Data), last.Offset)
	}
	old := make([]byte, 33*SectorSize)
	if _, err := file.ReadAt(old, 0); err != nil {
		t.Fatal(err)
	}
	for _, write := range growth.Writes[:len(growth.Writes)-1] {
		if write.Offset < 33*1024*1024 {
			t.Errorf("a write at %d, where the old table or a partition is", write.Offset)
		}
	}
	if !bytes.Equal(old[446+16:SectorSize], last.Data[446+16:SectorSize]) || !bytes.Equal(old[:446], last.Data[:446]) {
		t.Error("boot code or another partition of the MBR changed")
	}
	if got := binary.LittleEndian.Uint32(last.Data[458:]); got != 64*mib/SectorSize-1 {
		t.Errorf("the protective partition has %d sectors", got)
	}
}

// After the first header is lost, the copy at the end is what repairs the disk.
func TestTheBackupIsWhole(t *testing.T) {
	file := image(t, 32*mib, debian)
	growth, err := Plan(file, enlarge(t, file, 64*mib), 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	apply(t, file, growth.Writes)
	want, _ := look(t, file)
	apply(t, file, []Write{{SectorSize, make([]byte, 33*SectorSize)}})
	got, complaints := look(t, file)
	if fmt.Sprint(got.PartitionTable.Partitions) != fmt.Sprint(want.PartitionTable.Partitions) || len(want.PartitionTable.Partitions) != 3 {
		t.Errorf("from the backup: %v, %s", got, complaints)
	}
}

func TestWhenNotToTouchATable(t *testing.T) {
	change := func(offset int64, fix bool, bytes ...byte) func(*testing.T, *os.File) {
		return func(t *testing.T, file *os.File) {
			apply(t, file, []Write{{offset, bytes}})
			if fix { // the header's checksum
				raw := make([]byte, headerSize)
				if _, err := file.ReadAt(raw, SectorSize); err != nil {
					t.Fatal(err)
				}
				clear(raw[16:20])
				apply(t, file, []Write{{SectorSize + 16, binary.LittleEndian.AppendUint32(nil, checksum(raw))}})
			}
		}
	}
	for _, test := range []struct {
		name, script string
		number       int
		after        int64
		damage       func(*testing.T, *os.File)
		cause        string
	}{
		{"nothing to do", "label: gpt\nsize=30M\n", 1, 32 * mib, nil, ""},
		{"less than a MiB more", "label: gpt\nsize=30M\n", 1, 32*mib + 16*SectorSize, nil, ""},
		{"no table", "label: gpt\n", 1, 64 * mib, change(SectorSize, false, 0), "no GUID"},
		{"MBR", "label: dos\nsize=14M\n", 1, 64 * mib, nil, "no GUID"},
		{"not the last", debian, 15, 64 * mib, nil, "1 lies behind"},
		{"no such", debian, 3, 64 * mib, nil, "not on this disk"},
		{"zero", debian, 0, 64 * mib, nil, "no partition 0"},
		{"beyond the page", amazon, 128, 64 * mib, nil, "no partition 128"},
		{"header damaged", debian, 1, 64 * mib, change(SectorSize+60, false, 1), "header does not fit"},
		{"entries damaged", debian, 1, 64 * mib, change(1024+60, false, 1), "entries do not fit"},
		{"late entry damaged", debian, 1, 64 * mib, change(1024+127*128, false, 1), "entries do not fit"},
		{"header too long", debian, 1, 64 * mib, change(SectorSize+12, true, 0xff, 0xff), "a header of 65535"},
		{"another place", debian, 1, 64 * mib, change(SectorSize+24, true, 2), "it is sector 2"},
		{"entries elsewhere", debian, 1, 64 * mib, change(SectorSize+72, true, 3), "begin at sector 3"},
		{"large entries", debian, 1, 64 * mib, change(SectorSize+84, true, 0, 1), "entries of 256"},
		{"many entries", debian, 1, 64 * mib, change(SectorSize+80, true, 0, 0, 0, 1), "16777216 entries"},
		{"smaller disk", debian, 1, 16 * mib, nil, "not on this disk"},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := image(t, 32*mib, test.script)
			sectors := enlarge(t, file, test.after)
			if test.damage != nil {
				test.damage(t, file)
			}
			growth, err := Plan(file, sectors, test.number, nil)
			if growth != nil || (err == nil) != (test.cause == "") || err != nil && !strings.Contains(err.Error(), test.cause) {
				t.Errorf("planned: %v, %v", growth != nil, err)
			}
			if missing := test.cause == "no GUID"; errors.Is(err, ErrNoTable) != missing {
				t.Errorf("ErrNoTable: %v", err)
			}
		})
	}
}

func TestChecksum(t *testing.T) {
	if got := checksum([]byte("123456789")); got != 0xCBF43926 { // the check value of CRC-32
		t.Errorf("%#x", got)
	}
}

// Whatever is on a disk: no panic, and what is planned fits the disk and keeps the table readable.
func FuzzPlan(f *testing.F) {
	file, err := os.CreateTemp(f.TempDir(), "disk")
	if err != nil {
		f.Fatal(err)
	}
	if err := file.Truncate(4 * mib); err != nil {
		f.Fatal(err)
	}
	command := exec.Command("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", file.Name())
	command.Stdin = strings.NewReader("label: gpt\nsize=1M\nsize=1M\n")
	if out, err := command.CombinedOutput(); err != nil {
		f.Fatalf("%v: %s", err, out)
	}
	start := make([]byte, 34*SectorSize)
	if _, err := file.ReadAt(start, 0); err != nil {
		f.Fatal(err)
	}
	// The header and the first entries are what is to be tried: with the whole of the table as a seed, minimising it took
	// all of the time.
	header, entries := start[SectorSize:SectorSize+headerSize], start[2*SectorSize:2*SectorSize+4*entrySize]
	f.Add(header, entries, int64(8*mib/SectorSize), 2)
	f.Add(header, entries, int64(100), 1)
	f.Fuzz(func(t *testing.T, header, entries []byte, sectors int64, number int) {
		if sectors < 0 || sectors > 1<<40 {
			return
		}
		start := make([]byte, 34*SectorSize)
		copy(start[SectorSize:2*SectorSize], header)
		copy(start[2*SectorSize:], entries)
		// The checksums would stop nearly everything; the fields are what is to be tried.
		count := binary.LittleEndian.Uint32(start[SectorSize+80:])
		if most := (len(start) - 1024) / entrySize; count <= uint32(most) {
			binary.LittleEndian.PutUint32(start[SectorSize+88:], checksum(start[1024:1024+count*entrySize]))
		}
		if size := binary.LittleEndian.Uint32(start[SectorSize+12:]); size >= headerSize && size <= SectorSize {
			clear(start[SectorSize+16 : SectorSize+20])
			crc := checksum(start[SectorSize : SectorSize+size])
			binary.LittleEndian.PutUint32(start[SectorSize+16:], crc)
		}
		growth, err := Plan(bytes.NewReader(start), sectors, number, nil)
		if err != nil || growth == nil {
			return
		}
		end := (growth.Start + growth.Bytes) / SectorSize
		for i, write := range growth.Writes {
			from, to := write.Offset/SectorSize, (write.Offset+int64(len(write.Data)))/SectorSize
			if to > sectors || from < 0 || i == 0 && from < end {
				t.Errorf("write %d from %d to %d; the disk has %d, the partition ends at %d", i, from, to, sectors, end)
			}
		}
		if growth.Bytes <= 0 || growth.Start < 0 {
			t.Errorf("from %d, %d bytes", growth.Start, growth.Bytes)
		}
	})
}
