package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"instantenv/internal/uki"
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
	parts := uki.Parts{Cmdline: *cmdline}
	for content, path := range map[*[]byte]string{
		&parts.Stub: *stubPath, &parts.Kernel: *kernelPath, &parts.OSRelease: *osReleasePath, &parts.Initrd: *initrdPath,
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
	image, err := uki.Build(parts)
	if err != nil {
		return exitError, err
	}
	return exitOK, writeFile(*output, image)
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
