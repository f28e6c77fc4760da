package access

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"

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

// isWholeKey tells a private key from a file that a power failure cut short: every format that sshd reads is armoured text.
func isWholeKey(path string) bool {
	text, err := os.ReadFile(path)
	key := bytes.TrimSpace(text)
	return err != nil || bytes.HasPrefix(key, []byte("-----BEGIN ")) && bytes.HasSuffix(key, []byte("-----"))
}
