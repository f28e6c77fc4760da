package access

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"instantenv/init/internal/handover"
	"instantenv/init/internal/imds"
	"instantenv/init/internal/sshkey"
	"instantenv/init/internal/userdata"
)

// Where keys are that were handed over to a running machine.
const (
	// EC2 Instance Connect's: keys that hold for 60 seconds, with signatures between them.
	connectPath = "/latest/meta-data/managed-ssh-keys/active-keys/"
	// An ed25519 key fits into a tag's 256 characters, and an RSA key does not.
	keyTagPath = "/latest/meta-data/tags/instance/instant-env:ssh-key"
)

// loginKeysLimit bounds how long a login waits for the metadata service.
const loginKeysLimit = 3 * time.Second

// LoginKeys prints the keys that a user was given for the running machine, as sshd's AuthorizedKeysCommand, and returns
// the exit status. Only the login user gets any, and not on a machine that was handed over. sshd ignores the output if the status is not 0, so it is 0 whenever there
// are keys.
func LoginKeys(user, login, held, mark string, client *imds.Client, stdout, stderr io.Writer) int {
	if user != login || handover.HandedOut(mark) || !userdata.ConsistsOf(user, "-_.") {
		return 0
	}
	text, err := readPlain(filepath.Join(held, user))
	keys := publicKeysAmong(text)
	deadline := time.Now().Add(loginKeysLimit)
	for _, path := range []string{connectPath + user, keyTagPath} {
		if err != nil {
			break
		}
		var text []byte
		if text, err = client.Get(path, deadline); errors.Is(err, imds.ErrNotFound) {
			err = nil
		}
		keys = append(keys, publicKeysAmong(string(text))...)
	}
	for _, key := range keys {
		fmt.Fprintln(stdout, key)
	}
	if err != nil {
		fmt.Fprintln(stderr, "instant-init:", err)
		if len(keys) == 0 {
			return 1
		}
	}
	return 0
}

// publicKeysAmong returns the lines that are keys. Instance Connect's text also has comments and signatures. The signatures
// are not verified: the metadata service is trusted, as it is for the key of the launch, which has none.
func publicKeysAmong(text string) (keys []sshkey.PublicKey) {
	for line := range strings.Lines(text) {
		if key, err := sshkey.ParsePublicKey(line); err == nil {
			keys = append(keys, key)
		}
	}
	return keys
}
