// Package uki makes unified kernel images: systemd's EFI stub with a kernel and its command line as PE sections.
package uki

import (
	"bytes"
	"compress/gzip"
	"debug/pe"
	"errors"
	"fmt"
	"io"
	"strings"
)

const (
	readableData = pe.IMAGE_SCN_CNT_INITIALIZED_DATA | pe.IMAGE_SCN_MEM_READ
	readableCode = pe.IMAGE_SCN_CNT_CODE | pe.IMAGE_SCN_MEM_READ
)

// Parts is what goes into a unified kernel image; OSRelease and Initrd may be empty. A kernel in gzip is unpacked.
type Parts struct {
	Stub, Kernel, OSRelease, Initrd []byte
	Cmdline                         string
}

// Build returns the image: the stub with the sections appended that it looks for. The kernel is last, as ukify puts it:
// a kernel that is run where it lies grows beyond its end.
func Build(parts Parts) ([]byte, error) {
	stub, err := parsePE(parts.Stub)
	if err != nil {
		return nil, fmt.Errorf("stub: %w", err)
	}
	kernel, err := unpackKernel(parts.Kernel)
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	kernelImage, err := parsePE(kernel)
	if err != nil {
		return nil, fmt.Errorf("kernel: %w; it must be built with CONFIG_EFI_STUB", err)
	}
	if kernelImage.coff.Machine != stub.coff.Machine {
		return nil, fmt.Errorf("the stub is for machine %#x and the kernel for %#x", stub.coff.Machine, kernelImage.coff.Machine)
	}
	cmdline := strings.TrimSpace(parts.Cmdline)
	if strings.ContainsAny(cmdline, "\n\x00") {
		return nil, errors.New("the command line holds a line feed or a zero byte")
	}
	for _, s := range stub.sections {
		if name := string(bytes.TrimRight(s.Name[:], "\x00")); name == ".linux" {
			return nil, errors.New("stub: has a kernel already")
		}
	}
	var sections []peSection
	if len(parts.OSRelease) > 0 {
		sections = append(sections, peSection{".osrel", parts.OSRelease, readableData})
	}
	sections = append(sections, peSection{".cmdline", []byte(cmdline), readableData})
	if len(parts.Initrd) > 0 {
		sections = append(sections, peSection{".initrd", parts.Initrd, readableData})
	}
	sections = append(sections, peSection{".linux", kernel, readableCode})
	if err := stub.add(sections); err != nil {
		return nil, fmt.Errorf("stub: %w", err)
	}
	return stub.data, nil
}

// unpackKernel undoes gzip, the form of arm64 kernels in many distributions: EFI cannot run it.
func unpackKernel(kernel []byte) ([]byte, error) {
	if !bytes.HasPrefix(kernel, []byte{0x1f, 0x8b}) {
		return kernel, nil
	}
	reader, err := gzip.NewReader(bytes.NewReader(kernel))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(reader, maxImageSize))
}
