package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"instantenv/init/internal/atomicfile"
	"instantenv/init/internal/sshkey"
	"instantenv/init/internal/timeline"
)

const passwdFile = "/etc/passwd"

// An account is the login user's line of /etc/passwd.
type account struct {
	name, home string
	owner      atomicfile.Owner
}

func findAccount(passwd, name string) (account, error) {
	text, err := os.ReadFile(passwd)
	if err != nil {
		return account{}, err
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Split(strings.TrimRight(line, "\n"), ":")
		if len(fields) != 7 || fields[0] != name {
			continue
		}
		uid, uidError := strconv.Atoi(fields[2])
		gid, gidError := strconv.Atoi(fields[3])
		if uidError != nil || gidError != nil || !filepath.IsAbs(fields[5]) {
			return account{}, fmt.Errorf("bad line in %s: %q", passwd, line)
		}
		return account{name: name, home: fields[5], owner: atomicfile.Owner{UID: uid, GID: gid}}, nil
	}
	return account{}, fmt.Errorf("no user %q in %s", name, passwd)
}

func (a account) keyFile() string { return filepath.Join(a.home, ".ssh", "authorized_keys") }

// authorize adds public keys to the user's authorized_keys.
func (a account) authorize(keys []sshkey.PublicKey) error {
	if err := a.directory(a.home); err != nil {
		return err
	}
	if err := a.directory(filepath.Dir(a.keyFile())); err != nil {
		return err
	}
	content, err := readPlain(a.keyFile())
	if err != nil {
		return err
	}
	merged := sshkey.Merge(content, keys)
	if merged == content {
		return nil
	}
	return atomicfile.WriteAll(atomicfile.File{
		Path: a.keyFile(), Data: []byte(merged), Mode: 0o600, Owner: a.owner,
	})
}

// directory makes one that belongs to the user alone, unless it is there. What is there must be a real directory:
// following a symbolic link, root would write where the user pointed it.
func (a account) directory(path string) error {
	info, err := os.Lstat(path)
	if err == nil {
		if !info.IsDir() {
			return fmt.Errorf("%s is not a directory", path)
		}
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	return os.Lchown(path, a.owner.UID, a.owner.GID)
}

// readPlain reads a file that is no symbolic link; one that is not there is empty.
func readPlain(path string) (string, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer file.Close()
	text, err := io.ReadAll(file)
	return string(text), err
}

// ensureHostKeys makes SSH host keys unless there are some: they are the machine's identity, made at its first
// start and kept. It returns what to tell of those that it made.
//
// Nobody waits here until they are on the disk. The flush before authorized_keys has its name (authorize), which is
// before anybody gets in, takes them along, and another one follows when sshd serves. A machine that loses power before
// has shown its identity to nobody; what it is left with may be empty, and then makes another.
func ensureHostKeys(directory string, marks *timeline.Timeline) (made []string, err error) {
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

// isWholeKey tells a private key from what a power failure may leave of one: all that sshd reads is armoured text.
func isWholeKey(path string) bool {
	text, err := os.ReadFile(path)
	key := bytes.TrimSpace(text)
	return err != nil || bytes.HasPrefix(key, []byte("-----BEGIN ")) && bytes.HasSuffix(key, []byte("-----"))
}
