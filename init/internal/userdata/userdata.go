// Package userdata reads the machine's user data, and keeps the time limit that it and a tag set.
package userdata

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"instantenv/init/internal/imds"
	"instantenv/init/internal/instant"
	"instantenv/init/internal/json"
	"instantenv/init/internal/logging"
	"instantenv/init/internal/sshkey"
)

const (
	Path = "/latest/user-data"
	// userDataKey is the one member of a JSON document in user data that is ours.
	userDataKey = "instant-env"
	// longest is a year: a larger number is more likely a slip than a wish.
	longest = 365 * 24 * time.Hour
	// hostNameMost is the kernel's limit on a host name (__NEW_UTS_LEN).
	hostNameMost = 64
	nameMost     = 100
	// settingMost is of the bytes of a setting's value.
	settingMost = 1024
)

// Data is the machine's user data; docs/user-data.md describes the document. The zero value asks for nothing.
type Data struct {
	TTL       time.Duration // since the start of the kernel; 0: none
	ExpiresAt time.Time     // the zero time: none
	Keys      []sshkey.PublicKey
	Hostname  string // one name or several with dots between; "": as the network says
	Mounts    []MountRequest
	Services  []string          // names of declared services, without a directory or an ending
	Settings  map[string]string // of the image's recipe, by names that can be names of files

	Complaints []string // what Fetch reported
}

// A MountRequest is an extra volume: Device is an EBS volume's id (vol-0abc...) or a clean path below /dev, Path is
// clean and absolute and not the root.
type MountRequest struct {
	Device     string
	Path       string
	Filesystem string // "ext4", "xfs", or "": what is on the device
	Format     string // "blank": make Filesystem when there is nothing on the device; "": never
	Owner      string // the account that gets the root of the file system, LoginUser, or "": as it is
}

// LoginUser stands for the image's login user, whose name whoever launches need not know.
const LoginUser = "login_user"

// system are directories where a volume would hide files that the machine needs: those in below at any depth, the
// others themselves.
var (
	below  = []string{"bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin", "sys", "usr"}
	itself = []string{"/", "/root", "/tmp", "/var", "/var/lib", "/var/lib/instant-init", "/var/lock", "/var/run"}
)

// Parse reads {"instant-env": {...}}. It never fails: complaints have the errors of the document, each
// with the name of its field, and all other fields are used. User data that is not a JSON object (a shell script,
// cloud-config, gzip), or an object without that member, is for another program and causes no complaint.
func Parse(text []byte) (data Data, complaints []string) {
	text = bytes.TrimSpace(bytes.TrimPrefix(text, []byte("\ufeff")))
	if len(text) == 0 || text[0] != '{' {
		return Data{}, nil
	}
	document, err := json.Parse(text)
	if err != nil {
		return Data{}, []string{"user data begins like JSON, but is not: " + err.Error()}
	}
	object, _ := document.(map[string]any)
	wishes, present := object[userDataKey]
	if !present {
		return Data{}, nil
	}
	r := &fieldReader{}
	r.object(userDataKey, wishes, fields{
		"ttl_s":      func(at string, value any) { r.keep(at, value, data.setTTL) },
		"expires_at": func(at string, value any) { r.keep(at, value, data.setExpiresAt) },
		"ssh_keys":   func(at string, value any) { r.list(at, value, data.addKey) },
		"hostname":   func(at string, value any) { r.keep(at, value, data.setHostname) },
		"services":   func(at string, value any) { r.list(at, value, data.addService) },
		"settings": func(at string, value any) {
			r.members(at, value, func(name string, value any) {
				r.keep(at, value, func(any) error { return data.addSetting(name, value) })
			})
		},
		"mounts": func(at string, value any) {
			r.each(at, value, func(at string, value any) { data.addMount(r, at, value) })
		},
	})
	return data, r.complaints
}

func (d *Data) setTTL(value any) error {
	seconds, ok := value.(float64)
	if !ok || seconds != float64(int64(seconds)) {
		return errors.New("not a whole number of seconds")
	}
	if seconds < 1 || seconds > longest.Seconds() {
		return fmt.Errorf("%.0f is out of range: 1 to %.0f", seconds, longest.Seconds())
	}
	d.TTL = time.Duration(seconds) * time.Second
	return nil
}

func (d *Data) setExpiresAt(value any) (err error) {
	text, _ := value.(string)
	d.ExpiresAt, err = parseInstant(text)
	return err
}

// parseInstant reads a time with its zone, such as 2026-11-21T18:00:00Z.
func parseInstant(text string) (time.Time, error) {
	at, err := instant.ParseRFC3339(text)
	if err != nil {
		return time.Time{}, fmt.Errorf("not a time like 2026-11-21T18:00:00Z: %.60q", text)
	}
	return at, nil
}

func (d *Data) addKey(value any) error {
	line, _ := value.(string)
	key, err := sshkey.ParsePublicKey(line)
	if err == nil {
		d.Keys = append(d.Keys, key)
	}
	return err
}

func (d *Data) setHostname(value any) error {
	name, _ := value.(string)
	if !validHostname(name) {
		return fmt.Errorf("not a host name: %.80q", name)
	}
	d.Hostname = name
	return nil
}

// validHostname follows RFC 1123, section 2.1: labels of letters, digits and hyphens.
func validHostname(name string) bool {
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || !ConsistsOf(label, "-") {
			return false
		}
	}
	return len(name) <= hostNameMost
}

func (d *Data) addService(value any) error {
	name, _ := value.(string)
	if !isName(name, "-_.@") {
		return fmt.Errorf("not the name of a service: %.80q", name)
	}
	d.Services = append(d.Services, name)
	return nil
}

// addSetting keeps values to one line, so that a shell reads them without an interpretation.
func (d *Data) addSetting(name string, value any) error {
	text, ok := value.(string)
	if !isName(name, "-_") || !ok || len(text) > settingMost || strings.ContainsFunc(text, isControl) {
		return fmt.Errorf("%.80q is not a name with a line of text", name)
	}
	if d.Settings == nil {
		d.Settings = map[string]string{}
	}
	d.Settings[name] = text
	return nil
}

func isName(name, others string) bool {
	return name != "" && len(name) <= nameMost && name[0] != '.' && ConsistsOf(name, others)
}

// addMount ignores a request with any error: the rest of it could format or hide the wrong thing.
func (d *Data) addMount(r *fieldReader, at string, value any) {
	var request MountRequest
	before := len(r.complaints)
	r.object(at, value, fields{
		"device":     func(at string, value any) { r.keep(at, value, request.setDevice) },
		"path":       func(at string, value any) { r.keep(at, value, request.setPath) },
		"filesystem": func(at string, value any) { r.choose(at, value, &request.Filesystem, "ext4", "xfs") },
		"format":     func(at string, value any) { r.choose(at, value, &request.Format, "blank") },
		"owner":      func(at string, value any) { r.keep(at, value, request.setOwner) },
	})
	if len(r.complaints) > before {
		r.complain(at, errors.New("this mount is left out"))
		return
	}
	switch {
	case request.Device == "" || request.Path == "":
		r.complain(at, errors.New("this mount is left out: it needs device and path"))
	case request.Format != "" && request.Filesystem == "":
		r.complain(at, errors.New("this mount is left out: format needs filesystem"))
	case slices.ContainsFunc(d.Mounts, func(other MountRequest) bool { return other.Path == request.Path }):
		r.complain(at, errors.New("this mount is left out: its path has one"))
	default:
		d.Mounts = append(d.Mounts, request)
	}
}

func (m *MountRequest) setDevice(value any) error {
	device, _ := value.(string)
	id, isVolume := strings.CutPrefix(device, "vol-")
	isVolume = isVolume && id != "" && ConsistsOf(id, "")
	if !isVolume && (!strings.HasPrefix(device, "/dev/") || !cleanPath(device)) {
		return fmt.Errorf("neither a volume's id nor a path below /dev: %.80q", device)
	}
	m.Device = device
	return nil
}

func (m *MountRequest) setPath(value any) error {
	path, _ := value.(string)
	if !filepath.IsAbs(path) || !cleanPath(path) {
		return fmt.Errorf("not a clean absolute path: %.80q", path)
	}
	first, _, _ := strings.Cut(path[1:], "/")
	if slices.Contains(below, first) || slices.Contains(itself, path) {
		return fmt.Errorf("the machine needs what is there: %.80q", path)
	}
	m.Path = path
	return nil
}

func (m *MountRequest) setOwner(value any) error {
	name, _ := value.(string)
	if !isName(name, "-_.") {
		return fmt.Errorf("not the name of a user: %.80q", name)
	}
	m.Owner = name
	return nil
}

func cleanPath(path string) bool {
	return filepath.Clean(path) == path && !strings.ContainsFunc(path, isControl)
}

func isControl(c rune) bool { return c < ' ' || c == 0x7f }

// ConsistsOf reports whether a text has only ASCII letters, digits and the given others.
func ConsistsOf(text, others string) bool {
	return !strings.ContainsFunc(text, func(c rune) bool {
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.ContainsRune(others, c))
	})
}

// fields says what to do with each member of an object; at is its path, for a complaint.
type fields map[string]func(at string, value any)

// A fieldReader walks through a JSON document and collects what is wrong with it.
type fieldReader struct{ complaints []string }

func (r *fieldReader) complain(at string, err error) {
	r.complaints = append(r.complaints, fmt.Sprintf("user data: %s: %v", at, err))
}

func (r *fieldReader) object(at string, value any, known fields) {
	r.members(at, value, func(name string, value any) {
		if read, ok := known[name]; ok {
			read(at+"."+name, value)
		} else {
			r.complain(at, fmt.Errorf("unknown field %.80q", name))
		}
	})
}

// members goes through them in alphabetical order, so that the same document is always read the same way.
func (r *fieldReader) members(at string, value any, read func(name string, value any)) {
	object, ok := value.(map[string]any)
	if !ok {
		r.complain(at, errors.New("not an object"))
		return
	}
	names := make([]string, 0, len(object))
	for name := range object {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		read(name, object[name])
	}
}

func (r *fieldReader) keep(at string, value any, set func(any) error) {
	if err := set(value); err != nil {
		r.complain(at, err)
	}
}

func (r *fieldReader) each(at string, value any, read func(at string, value any)) {
	items, ok := value.([]any)
	if !ok {
		r.complain(at, errors.New("not a list"))
		return
	}
	for i, item := range items {
		read(fmt.Sprintf("%s[%d]", at, i), item)
	}
}

func (r *fieldReader) list(at string, value any, add func(any) error) {
	r.each(at, value, func(at string, value any) { r.keep(at, value, add) })
}

func (r *fieldReader) choose(at string, value any, into *string, choices ...string) {
	text, _ := value.(string)
	if !slices.Contains(choices, text) {
		r.complain(at, fmt.Errorf("%.80q is not one of %s", text, strings.Join(choices, ", ")))
		return
	}
	*into = text
}

// Fetch requests the machine's user data until the deadline. It reports errors in it on the console.
func Fetch(client *imds.Client, deadline time.Time, log *logging.Logger) (Data, error) {
	text, err := client.Get(Path, deadline)
	if errors.Is(err, imds.ErrNotFound) {
		return Data{}, nil
	}
	if err != nil {
		return Data{}, err
	}
	data, complaints := Parse(text)
	for _, complaint := range complaints {
		log.Consolef("%s", complaint)
	}
	data.Complaints = complaints
	return data, nil
}
