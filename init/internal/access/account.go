package access

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"instantenv/init/internal/atomicfile"
	"instantenv/init/internal/sshkey"
	"instantenv/init/internal/userdata"
)

// PasswdFile is the system's list of accounts.
const PasswdFile = "/etc/passwd"

// An Account is the login user's line of /etc/passwd.
type Account struct {
	name, home string
	owner      atomicfile.Owner
}

// FindAccount looks a user up in a file like /etc/passwd.
func FindAccount(passwd, name string) (Account, error) {
	text, err := os.ReadFile(passwd)
	if err != nil {
		return Account{}, err
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Split(strings.TrimRight(line, "\n"), ":")
		if len(fields) != 7 || fields[0] != name {
			continue
		}
		uid, uidError := strconv.Atoi(fields[2])
		gid, gidError := strconv.Atoi(fields[3])
		if uidError != nil || gidError != nil || !filepath.IsAbs(fields[5]) {
			return Account{}, fmt.Errorf("bad line in %s: %q", passwd, line)
		}
		return Account{name: name, home: fields[5], owner: atomicfile.Owner{UID: uid, GID: gid}}, nil
	}
	return Account{}, fmt.Errorf("no user %q in %s", name, passwd)
}

// Find looks an account up that user data names.
func (a Account) Find(name string) (uid, gid int, err error) {
	if name != userdata.LoginUser {
		a, err = FindAccount(PasswdFile, name)
	}
	return a.owner.UID, a.owner.GID, err
}

func (a Account) keyFile() string { return filepath.Join(a.home, ".ssh", "authorized_keys") }

// KeysBelow returns the account's authorized keys that a file system mounted on the directory would hide.
func (a Account) KeysBelow(directory string) []sshkey.PublicKey {
	if !strings.HasPrefix(a.keyFile(), directory+"/") {
		return nil
	}
	text, _ := readPlain(a.keyFile())
	return publicKeysAmong(text)
}

// Authorize adds public keys to the user's authorized_keys.
func (a Account) Authorize(keys []sshkey.PublicKey) error {
	if err := a.keyDirectory(); err != nil {
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

// ReplaceKeys makes the key the only one that lets anybody in as the user: neither those on the disk nor those that are held
// in memory stay. It does not flush the disk.
func (a Account) ReplaceKeys(key sshkey.PublicKey, held string) error {
	if err := a.keyDirectory(); err != nil {
		return err
	}
	// Others that let the user in: a file of sshd's default for AuthorizedKeysFile, and what admit holds in memory.
	os.Remove(a.keyFile() + "2")
	os.Remove(filepath.Join(held, a.name))
	return atomicfile.WriteUnsynced(atomicfile.File{
		Path: a.keyFile(), Data: []byte(key.String() + "\n"), Mode: 0o600, Owner: a.owner,
	})
}

// keyDirectory makes the directory of authorized_keys.
func (a Account) keyDirectory() error {
	if err := a.directory(a.home); err != nil {
		return err
	}
	return a.directory(filepath.Dir(a.keyFile()))
}

// directory makes a directory that only the user can access, unless it exists. An existing one must be a real directory:
// through a symbolic link of the user, root would write anywhere.
func (a Account) directory(path string) error {
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

// readPlain reads a file that is not a symbolic link. A missing file counts as empty.
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
