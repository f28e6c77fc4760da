package access

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"instantenv/init/internal/atomicfile"
	"instantenv/init/internal/sshkey"
	"instantenv/init/internal/timeline"
)

// EnsureHostKeys makes SSH host keys unless there are some: they are the machine's identity, made at its first
// start and kept. It returns log lines about the keys that it made.
//
// It does not flush them to the disk. The flush before authorized_keys gets its name (Authorize), which is before any
// login, includes them, and another flush follows when sshd serves. A machine that loses power before that has shown its
// identity to nobody; its key files may be empty then, and the next start makes others.
func EnsureHostKeys(directory string, marks *timeline.Timeline) (made []string, err error) {
	present, err := filepath.Glob(filepath.Join(directory, "ssh_host_*_key"))
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(present, isWholeKey) {
		keys, err := sshkey.GenerateHostKeys()
		if err != nil {
			return nil, err
		}
		var files []atomicfile.File
		for _, key := range keys {
			private := filepath.Join(directory, key.File)
			// The public half first: a private key that is there means that the pair is complete.
			files = append(files, atomicfile.File{Path: private + ".pub", Data: key.Public, Mode: 0o644},
				atomicfile.File{Path: private, Data: key.Private, Mode: 0o600})
			made = append(made, "made "+private+": "+strings.TrimSpace(string(key.Public)))
		}
		if err := atomicfile.WriteUnsynced(files...); err != nil {
			return nil, err
		}
	}
	marks.Mark("host_keys")
	return made, nil
}

// PrintHostKeys writes the public host keys of a directory to the console, between the lines that cloud-init uses
// (cc_keys_to_console): who reads the machine's console through its cloud can compare them before the first login.
func PrintHostKeys(directory, console string) error {
	files, err := filepath.Glob(filepath.Join(directory, "ssh_host_*_key.pub"))
	if err != nil {
		return err
	}
	block := []byte("-----BEGIN SSH HOST KEY KEYS-----\n")
	for _, file := range files {
		key, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		block = append(append(block, bytes.TrimSpace(key)...), '\n')
	}
	block = append(block, "-----END SSH HOST KEY KEYS-----\n"...)
	device, err := os.OpenFile(console, os.O_WRONLY|syscall.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	_, err = device.Write(block) // in one piece: others write to it, too
	return errors.Join(err, device.Close())
}

// isWholeKey tells a private key from a file that a power failure cut short: every format that sshd reads is armoured text.
func isWholeKey(path string) bool {
	text, err := os.ReadFile(path)
	key := bytes.TrimSpace(text)
	return err != nil || bytes.HasPrefix(key, []byte("-----BEGIN ")) && bytes.HasSuffix(key, []byte("-----"))
}
