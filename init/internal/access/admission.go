// Package access decides who may log in: it installs the SSH keys that the machine's metadata names, makes host keys, and
// answers sshd's questions for further keys.
package access

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"instantenv/init/internal/atomicfile"
	"instantenv/init/internal/imds"
	"instantenv/init/internal/logging"
	"instantenv/init/internal/paths"
	"instantenv/init/internal/sshkey"
	"instantenv/init/internal/timeline"
	"instantenv/init/internal/userdata"
)

// askedQuickly is how long the key may take so that user data, which is likely to take as long, costs nobody time.
const askedQuickly = 250 * time.Millisecond

// MemoryKeys is a file per user, in memory.
const MemoryKeys = paths.Runtime + "/keys"

// Of the metadata service.
const (
	keysPath = "/latest/meta-data/public-keys/"
	keyPath  = keysPath + "0/openssh-key"
)

// patience is how long to wait for the metadata service: before saying so, before saying so again, for keys that can
// be done without because there are others, and before asking again for what was no good.
type patience struct{ first, next, others, pause time.Duration }

var bootPatience = patience{first: 5 * time.Second, next: 30 * time.Second, others: 10 * time.Second, pause: time.Second}

// An Admission sees to it that those get in whom the machine's metadata names.
type Admission struct {
	Client   *imds.Client
	User     Account
	patience patience
	held     string // the directory of keys that cannot be written to the disk
	marks    *timeline.Timeline
	log      *logging.Logger

	data      userdata.Data
	dataKnown bool
}

// New admits people to an account.
func New(client *imds.Client, user Account, marks *timeline.Timeline, log *logging.Logger) *Admission {
	return &Admission{Client: client, User: user, patience: bootPatience, held: MemoryKeys, marks: marks, log: log}
}

// BeforeSSHD installs the key that was named at launch and returns when sshd may start: nobody who has a right to
// log in may be turned away because he was quick. Without such a key it is the keys in user data that are waited for;
// where there are keys of an earlier start, none for long. Otherwise it waits for as long as it takes, and says so.
// Where the service answers quickly, user data is asked for once in any case: sshd is still loading then.
// An error means that there is no place for the keys, neither on the disk nor in memory.
func (a *Admission) BeforeSSHD() error {
	w := a.waitingFor("the SSH key")
	for {
		keys, err := a.launchKeys()
		if err == nil {
			a.marks.Mark(timeline.KeyReceived)
			if err := a.admit(keys); err != nil {
				return err
			}
			a.marks.Mark(timeline.KeyWritten)
			if time.Since(w.since) < askedQuickly {
				_ = a.tryUserData(time.Now()) // AfterSSHD asks again
			}
			return nil
		}
		if errors.Is(err, imds.ErrNotFound) {
			break
		}
		if w.tell(err) > a.patience.others && a.User.hasKeys() {
			a.log.Consolef("the SSH keys of an earlier start stay: %v", err)
			return nil
		}
	}
	if err := a.tryUserData(time.Now().Add(a.patience.others)); err != nil {
		a.log.Consolef("no SSH key was named at launch, and user data is not known yet: %v", err)
	} else if len(a.data.Keys) == 0 && !a.User.hasKeys() {
		a.log.Consolef("no SSH key was named at launch or in user data: nobody can log in until one is handed over")
	}
	return nil
}

// tryUserData reads user data and lets in whom it names.
func (a *Admission) tryUserData(deadline time.Time) error {
	data, err := userdata.Fetch(a.Client, deadline, a.log)
	if err != nil {
		return err
	}
	a.data, a.dataKnown = data, true
	a.install(data.Keys)
	return nil
}

// launchKeys asks for the key that was named at launch for a few seconds.
func (a *Admission) launchKeys() ([]sshkey.PublicKey, error) {
	text, err := a.Client.Get(keyPath, time.Now().Add(a.patience.first))
	if err != nil {
		return nil, err
	}
	return sshkey.ParsePublicKeys(string(text))
}

// admit adds keys to authorized_keys. Where that cannot be written (the disk is full, or read-only), they go where
// login-keys finds them: whoever is to repair such a machine has to get in.
func (a *Admission) admit(keys []sshkey.PublicKey) error {
	if len(keys) == 0 {
		return nil
	}
	err := a.User.Authorize(keys)
	if err == nil {
		return nil
	}
	held := filepath.Join(a.held, a.User.name)
	a.log.Consolef("SSH keys of %s: %v; they are in %s until the next start", a.User.name, err, held)
	content, readError := readPlain(held)
	writeError := os.MkdirAll(a.held, 0o755)
	if writeError == nil {
		// All may read it: login-keys runs as nobody, and these are public keys.
		writeError = atomicfile.Write(held, []byte(sshkey.Merge(content, keys)), 0o644, atomicfile.Root)
	}
	if readError != nil || writeError != nil {
		return fmt.Errorf("SSH keys of %s: %w", a.User.name, errors.Join(err, readError, writeError))
	}
	return nil
}

// AfterSSHD reads user data, for as long as it takes, and lets in whom it names, and whoever else has a key in the
// metadata.
func (a *Admission) AfterSSHD() userdata.Data {
	w := a.waitingFor("user data")
	for !a.dataKnown {
		if err := a.tryUserData(time.Now().Add(a.patience.first)); err != nil {
			w.tell(err)
		}
	}
	for _, index := range a.listedKeys() {
		text, err := a.Client.Get(keysPath+index+"/openssh-key", time.Now().Add(a.patience.others))
		if err != nil {
			a.log.Consolef("SSH key: %v", err)
			continue
		}
		keys, err := sshkey.ParsePublicKeys(string(text))
		if err != nil {
			a.log.Consolef("SSH key %s: %v", index, err)
			continue
		}
		a.install(keys)
	}
	return a.data
}

// listedKeys are the indices in public-keys/, which has lines like 0=name. EC2 names one key at launch; other
// services with this interface several.
func (a *Admission) listedKeys() (indices []string) {
	listing, err := a.Client.Get(keysPath, time.Now().Add(a.patience.others))
	if err != nil && !errors.Is(err, imds.ErrNotFound) {
		a.log.Consolef("SSH keys: %v", err)
	}
	for line := range strings.Lines(string(listing)) {
		index, _, named := strings.Cut(strings.TrimSpace(line), "=")
		if named && index != "" && strings.Trim(index, "0123456789") == "" {
			indices = append(indices, index)
		}
	}
	return indices
}

func (a *Admission) install(keys []sshkey.PublicKey) {
	if err := a.admit(keys); err != nil {
		a.log.Consolef("%v", err)
	}
}

// hasKeys tells whether there is anything in the user's authorized_keys.
func (a Account) hasKeys() bool {
	info, err := os.Stat(a.keyFile())
	return err == nil && info.Size() > 0
}

// HandOverAgain asks for the key of the launch once more: who keeps machines asleep wakes one for somebody else.
// Its client is its own, since the other one is in use.
func HandOverAgain(user Account, marks *timeline.Timeline, log *logging.Logger) error {
	client := imds.New(imds.Default)
	defer client.Close()
	again := New(client, user, marks, log)
	w := again.waitingFor("the SSH key")
	for {
		keys, err := again.launchKeys()
		if errors.Is(err, imds.ErrNotFound) {
			return nil
		}
		if err == nil {
			marks.Mark(timeline.KeyReceived)
			if err := again.admit(keys); err != nil {
				return err
			}
			marks.Mark(timeline.KeyWritten)
			return nil
		}
		w.tell(err) // the network may be late
	}
}

// waiting tells on the console what is being waited for, now and then, and keeps whoever waits from asking too often.
type waiting struct {
	what        string
	patience    patience
	log         *logging.Logger
	since, next time.Time
}

func (a *Admission) waitingFor(what string) *waiting {
	now := time.Now()
	return &waiting{what: what, patience: a.patience, log: a.log, since: now, next: now.Add(a.patience.first)}
}

// tell is called after each failure; it returns how long the waiting has taken so far.
func (w *waiting) tell(cause error) time.Duration {
	time.Sleep(w.patience.pause)
	now := time.Now()
	if !now.Before(w.next) {
		w.log.Consolef("waiting for %s, %.0f s so far: %v", w.what, now.Sub(w.since).Seconds(), cause)
		w.next = now.Add(w.patience.next)
	}
	return now.Sub(w.since)
}
