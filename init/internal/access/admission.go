// Package access decides who may log in: it installs the SSH keys that the machine's metadata names, makes host keys, and
// prints further keys for sshd's AuthorizedKeysCommand.
package access

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"instantenv/init/internal/atomicfile"
	"instantenv/init/internal/handover"
	"instantenv/init/internal/imds"
	"instantenv/init/internal/logging"
	"instantenv/init/internal/paths"
	"instantenv/init/internal/sshkey"
	"instantenv/init/internal/timeline"
	"instantenv/init/internal/userdata"
)

// askedQuickly is the longest time for the key after which user data is requested before sshd: it is likely to take as
// long, and so delays nobody.
const askedQuickly = 250 * time.Millisecond

// MemoryKeys is a directory in memory, with a file per user.
const MemoryKeys = paths.Runtime + "/keys"

// Of the metadata service.
const (
	keysPath = "/latest/meta-data/public-keys/"
	keyPath  = keysPath + "0/openssh-key"
)

// patience is how long to wait for the metadata service: before the first report on the console, before each further one,
// for keys that are not needed because there are others, and before a request is repeated.
type patience struct{ first, next, others, pause time.Duration }

var bootPatience = patience{first: 5 * time.Second, next: 30 * time.Second, others: 10 * time.Second, pause: time.Second}

// An Admission installs the keys that the machine's metadata names.
type Admission struct {
	Client   *imds.Client
	User     Account
	patience patience
	held     string // the directory of keys that cannot be written to the disk
	mark     string // the file of the hand-over
	marks    *timeline.Timeline
	log      *logging.Logger

	data      userdata.Data
	dataKnown bool
}

// New admits people to an account.
func New(client *imds.Client, user Account, marks *timeline.Timeline, log *logging.Logger) *Admission {
	return &Admission{Client: client, User: user, patience: bootPatience, held: MemoryKeys, mark: handover.File, marks: marks, log: log}
}

// BeforeSSHD installs the key that was named at launch and returns when sshd may accept connections: an early client with
// a valid key must not be rejected. If no key was named, it waits for the keys in user data. If there are keys of an
// earlier start, it does not wait long. Otherwise it waits without a limit, and reports that on the console. If the service
// answers quickly, it also requests user data once, because sshd is still loading then.
// An error means that the keys could be stored neither on the disk nor in memory.
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

// tryUserData reads user data and installs its keys. Their marks count if no key was named at launch: a machine of a pool
// gets its user's key here.
func (a *Admission) tryUserData(deadline time.Time) error {
	data, err := userdata.Fetch(a.Client, deadline, a.log)
	if err != nil {
		return err
	}
	a.data, a.dataKnown = data, true
	if len(data.Keys) > 0 {
		a.marks.Mark(timeline.KeyReceived)
		a.install(data.Keys)
		a.marks.Mark(timeline.KeyWritten)
	}
	return nil
}

// launchKeys requests the key that was named at launch, for a few seconds.
func (a *Admission) launchKeys() ([]sshkey.PublicKey, error) {
	text, err := a.Client.Get(keyPath, time.Now().Add(a.patience.first))
	if err != nil {
		return nil, err
	}
	return sshkey.ParsePublicKeys(string(text))
}

// admit adds keys to authorized_keys. If that cannot be written (the disk is full, or read-only), it stores them in memory
// for login-keys, so that somebody can log in to repair the machine. A machine that was handed over is the lessee's: no key
// of its launch or of the pool comes back, whatever the metadata say.
func (a *Admission) admit(keys []sshkey.PublicKey) error {
	if len(keys) == 0 || handover.HandedOut(a.mark) {
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

// AfterSSHD reads user data, without a time limit, and installs its keys and all others in the metadata.
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

// hasKeys reports whether the user's authorized_keys has any content.
func (a Account) hasKeys() bool {
	info, err := os.Stat(a.keyFile())
	return err == nil && info.Size() > 0
}

// HandOverAgain installs the key of the launch again after a resume: a pool of hibernated machines hands them to users by
// changing that key. It has a client of its own, because the other one is in use.
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

// waiting reports on the console what is being waited for, and limits the rate of requests.
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

// tell is called after each failure. It sleeps, and returns the time waited so far.
func (w *waiting) tell(cause error) time.Duration {
	time.Sleep(w.patience.pause)
	now := time.Now()
	if !now.Before(w.next) {
		w.log.Consolef("waiting for %s, %.0f s so far: %v", w.what, now.Sub(w.since).Seconds(), cause)
		w.next = now.Add(w.patience.next)
	}
	return now.Sub(w.since)
}
