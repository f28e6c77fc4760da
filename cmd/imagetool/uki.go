package main

import (
	"bytes"
	"compress/gzip"
	"debug/pe"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

const (
	readableData = pe.IMAGE_SCN_CNT_INITIALIZED_DATA | pe.IMAGE_SCN_MEM_READ
	readableCode = pe.IMAGE_SCN_CNT_CODE | pe.IMAGE_SCN_MEM_READ
)

func runUKI(args []string, _ io.Writer) (int, error) {
	flags := flag.NewFlagSet("uki", flag.ContinueOnError)
	stubPath := flags.String("stub", "", "systemd's EFI stub")
	kernelPath := flags.String("kernel", "", "kernel with an EFI stub of its own; gzip is undone")
	cmdline := flags.String("cmdline", "", "kernel command line")
	osReleasePath := flags.String("os-release", "", "os-release file, optional")
	initrdPath := flags.String("initrd", "", "initramfs, optional")
	output := flags.String("output", "", "file to write")
	if err := parse(flags, args); err != nil {
		return exitError, err
	}
	if *stubPath == "" || *kernelPath == "" || *cmdline == "" || *output == "" {
		return exitError, fmt.Errorf("%w: --stub, --kernel, --cmdline and --output are needed", errUsage)
	}
	parts := ukiParts{cmdline: *cmdline}
	for content, path := range map[*[]byte]string{
		&parts.stub: *stubPath, &parts.kernel: *kernelPath, &parts.osRelease: *osReleasePath, &parts.initrd: *initrdPath,
	} {
		if path == "" {
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return exitError, err
		}
		*content = data
	}
	image, err := buildUKI(parts)
	if err != nil {
		return exitError, err
	}
	return exitOK, writeFile(*output, image)
}

// ukiParts is what goes into a unified kernel image; osRelease and initrd may be empty.
type ukiParts struct {
	stub, kernel, osRelease, initrd []byte
	cmdline                         string
}

// buildUKI appends the sections that systemd-stub looks for. The kernel is last, as ukify puts it:
// a kernel that is run where it lies grows beyond its end.
func buildUKI(parts ukiParts) ([]byte, error) {
	stub, err := parsePE(parts.stub)
	if err != nil {
		return nil, fmt.Errorf("stub: %w", err)
	}
	kernel, err := unpackKernel(parts.kernel)
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
	cmdline := strings.TrimSpace(parts.cmdline)
	if strings.ContainsAny(cmdline, "\n\x00") {
		return nil, errors.New("the command line holds a line feed or a zero byte")
	}
	for _, s := range stub.sections {
		if name := string(bytes.TrimRight(s.Name[:], "\x00")); name == ".linux" {
			return nil, errors.New("stub: has a kernel already")
		}
	}
	var sections []peSection
	if len(parts.osRelease) > 0 {
		sections = append(sections, peSection{".osrel", parts.osRelease, readableData})
	}
	sections = append(sections, peSection{".cmdline", []byte(cmdline), readableData})
	if len(parts.initrd) > 0 {
		sections = append(sections, peSection{".initrd", parts.initrd, readableData})
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

// writeFile writes beside the target, syncs and renames: the file may be what the machine boots from.
func writeFile(path string, data []byte) error {
	temporary, err := os.CreateTemp(filepath.Dir(path), ".imagetool-*")
	if err != nil {
		return err
	}
	defer os.Remove(temporary.Name())
	_, err = temporary.Write(data)
	err = errors.Join(err, temporary.Chmod(0o644), temporary.Sync(), temporary.Close())
	if err != nil {
		return err
	}
	return os.Rename(temporary.Name(), path)
}
