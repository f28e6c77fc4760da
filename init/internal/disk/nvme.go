package disk

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"unsafe"
)

// Of linux/nvme_ioctl.h and the NVM Express base specification (figure "Identify - Identify Controller Data
// Structure"). Amazon's controllers hold the device name of the block device mapping in the first 32 of the vendor
// specific bytes, as amazon-ec2-utils' ebsnvme-id reads it.
const (
	nvmeAdminCommand   = 0xC0484E41 // _IOWR('N', 0x41, struct nvme_admin_cmd)
	identify           = 6
	identifyController = 1
	identifyLength     = 4096
	vendorSpecific     = 3072
	nameLength         = 32
	modelStart         = 24
	modelLength        = 40
	ebsModel           = "Amazon Elastic Block Store"
)

// ErrNotFound says that a volume is not there (yet).
var ErrNotFound = errors.New("no such volume")

// Find returns the path of a volume's block device, below dev. The name is the volume's id ("vol-0abc"), which its
// NVMe controller has as serial number, the device name of its mapping ("/dev/sdf", also written "sdf" or "xvdf"), or
// a path that exists. sys is where sysfs is mounted.
func Find(sys, dev, name string) (string, error) {
	if id, isVolume := strings.CutPrefix(name, "vol-"); isVolume {
		serials, err := filepath.Glob(sys + "/block/nvme*/device/serial")
		if err != nil {
			return "", err
		}
		for _, path := range serials {
			serial, err := os.ReadFile(path)
			if err == nil && strings.TrimSpace(string(serial)) == "vol"+id {
				return dev + "/" + filepath.Base(filepath.Dir(filepath.Dir(path))), nil
			}
		}
		return "", ErrNotFound
	}
	if _, err := os.Stat(name); err == nil {
		return name, nil
	}
	// The whole disks alone: nvme1n1, not its partitions.
	disks, err := filepath.Glob(sys + "/block/nvme*")
	if err != nil {
		return "", err
	}
	for _, disk := range disks {
		path := dev + "/" + filepath.Base(disk)
		if mapped, err := mappedName(path); err == nil && sameName(mapped, name) {
			return path, nil
		}
	}
	return "", ErrNotFound
}

// mappedName asks an NVMe controller for the name that its volume was attached under.
func mappedName(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	data := make([]byte, identifyLength)
	command := struct {
		opcode, flags                   uint8
		_                               uint16
		namespace, cdw2, cdw3           uint32
		metadata                        uint64
		address                         unsafe.Pointer
		metadataLength, length          uint32
		cdw10                           uint32
		cdw11, cdw12, cdw13, cdw14, c15 uint32
		timeout, result                 uint32
	}{opcode: identify, address: unsafe.Pointer(&data[0]), length: identifyLength, cdw10: identifyController}
	if err := ioctl(file, nvmeAdminCommand, unsafe.Pointer(&command)); err != nil {
		return "", err
	}
	return parseIdentity(data)
}

// parseIdentity reads the name from a controller's identity.
func parseIdentity(data []byte) (string, error) {
	if len(data) < vendorSpecific+nameLength {
		return "", errors.New("identity cut short")
	}
	if model := strings.TrimSpace(string(data[modelStart : modelStart+modelLength])); model != ebsModel {
		return "", ErrNotFound
	}
	name := string(data[vendorSpecific : vendorSpecific+nameLength])
	return strings.Trim(name, " \x00"), nil
}

// sameName compares device names as EC2 does with those of one volume: /dev/sdf, sdf and xvdf are the same.
func sameName(one, other string) bool {
	short := func(name string) string {
		name = strings.TrimPrefix(name, "/dev/")
		name = strings.TrimPrefix(name, "xvd")
		return strings.TrimPrefix(name, "sd")
	}
	return one != "" && short(one) == short(other)
}
