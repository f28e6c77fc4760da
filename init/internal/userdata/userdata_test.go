package userdata

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"instantenv/init/internal/inittest"
	"instantenv/init/internal/mount"
	"instantenv/init/internal/sshkey"
)

func TestParseUserData(t *testing.T) {
	key, err := sshkey.ParsePublicKey(inittest.Key + " laptop")
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 11, 21, 18, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		name, text string
		want       Data
		complaints string // their beginnings, with | between
	}{
		{name: "nothing"},
		{name: "a script", text: "#!/bin/sh\necho '{\"instant-env\": 1}'\n"},
		{name: "cloud-config", text: "#cloud-config\npackages: []\n"},
		{name: "gzip", text: "\x1f\x8b\x08{"},
		{name: "MIME", text: "Content-Type: multipart/mixed; boundary=x\n"},
		{name: "a list", text: `[{"instant-env": {"ttl_s": 5}}]`},
		{name: "somebody else's object", text: `{"other": {"ttl_s": 5}}`},
		{name: "no wish", text: `{"instant-env": {}}`},
		{name: "a neighbour", text: " \n{\"instant-env\": {\"ttl_s\": 1}, \"mine\": [1]}\n", want: Data{TTL: time.Second}},
		{name: "byte order mark", text: "\ufeff{\"instant-env\": {\"ttl_s\": 1}}", want: Data{TTL: time.Second}},
		{
			name: "everything",
			text: `{"instant-env": {"ttl_s": 3600, "expires_at": "2026-11-21T20:00:00+02:00", "ssh_keys": ["` + inittest.Key +
				` laptop"], "hostname": "build-7.example", "services": ["docker", "my_app@1.2"], "mounts": [` +
				`{"device": "vol-0abc", "path": "/data", "filesystem": "ext4", "format": "blank"},` +
				`{"device": "/dev/nvme1n1", "path": "/srv/x"}]}}`,
			want: Data{
				TTL: time.Hour, ExpiresAt: at, Keys: []sshkey.PublicKey{key}, Hostname: "build-7.example",
				Services: []string{"docker", "my_app@1.2"},
				Mounts: []MountRequest{
					{Device: "vol-0abc", Path: "/data", Filesystem: "ext4", Format: "blank"},
					{Device: "/dev/nvme1n1", Path: "/srv/x"},
				},
			},
		},
		{name: "cut off", text: `{"instant-env":`, complaints: "user data begins like JSON, but is not: "},
		{name: "more than one document", text: `{"instant-env": {}} {}`, complaints: "user data begins like JSON"},
		{name: "no object", text: `{"instant-env": [1]}`, complaints: "user data: instant-env: not an object"},
		{
			name: "unknown fields are named, the rest holds", text: `{"instant-env": {"ttl": 5, "ttl_s": 6, "TTL_S": 7}}`,
			want:       Data{TTL: 6 * time.Second},
			complaints: `user data: instant-env: unknown field "TTL_S"|user data: instant-env: unknown field "ttl"`,
		},
		{name: "no time at all", text: `{"instant-env": {"ttl_s": 0}}`, complaints: "user data: instant-env.ttl_s: 0 is out"},
		{name: "less", text: `{"instant-env": {"ttl_s": -5}}`, complaints: "user data: instant-env.ttl_s: -5 is out"},
		{name: "ages", text: `{"instant-env": {"ttl_s": 1e300}}`, complaints: "user data: instant-env.ttl_s: "},
		{name: "a text", text: `{"instant-env": {"ttl_s": "3600"}}`, complaints: "user data: instant-env.ttl_s: not a whole"},
		{name: "a fraction", text: `{"instant-env": {"ttl_s": 1.5}}`, complaints: "user data: instant-env.ttl_s: not a whole"},
		{
			name: "a time without its zone", text: `{"instant-env": {"expires_at": "2026-11-21T18:00:00", "ttl_s": 9}}`,
			want: Data{TTL: 9 * time.Second}, complaints: "user data: instant-env.expires_at: not a time",
		},
		{
			name: "one bad key", text: `{"instant-env": {"ssh_keys": ["command=\"id\" ` + inittest.Key + `", "` + inittest.Key + ` laptop", 7]}}`,
			want:       Data{Keys: []sshkey.PublicKey{key}},
			complaints: "user data: instant-env.ssh_keys[0]: not a public key|user data: instant-env.ssh_keys[2]: not",
		},
		{name: "a key, not a list", text: `{"instant-env": {"ssh_keys": "` + inittest.Key + `"}}`, complaints: "user data: instant-env.ssh_keys: not a list"},
		{name: "host name", text: `{"instant-env": {"hostname": "a b"}}`, complaints: "user data: instant-env.hostname: not"},
		{
			name: "services", text: `{"instant-env": {"services": ["../x", "docker", "", ".hidden"]}}`, want: Data{Services: []string{"docker"}},
			complaints: "user data: instant-env.services[0]|user data: instant-env.services[2]|user data: instant-env.services[3]",
		},
		{
			name: "a mount is taken whole or not", text: `{"instant-env": {"mounts": [{"device": "vol-1", "path": "/a", "format": "always"},` +
				`{"device": "vol-2", "path": "/b"}, {"path": "/c"}, {"device": "/dev/../etc", "path": "/d"}, {"device": "vol-5", "path": "/"},` +
				`{"device": "vol-6", "path": "/f", "format": "blank"}, {"device": "vol-7", "path": "/g", "options": "ro"}, 8]}}`,
			want: Data{Mounts: []MountRequest{{Device: "vol-2", Path: "/b"}}},
			complaints: `user data: instant-env.mounts[0].format: "always"|user data: instant-env.mounts[0]: this mount is left out|` +
				"user data: instant-env.mounts[2]: this mount is left out: it needs|" +
				"user data: instant-env.mounts[3].device: neither|user data: instant-env.mounts[3]: this|" +
				"user data: instant-env.mounts[4].path: the machine needs|user data: instant-env.mounts[4]: this|" +
				"user data: instant-env.mounts[5]: this mount is left out: format|" +
				`user data: instant-env.mounts[6]: unknown field "options"|user data: instant-env.mounts[6]: this|` +
				"user data: instant-env.mounts[7]: not an object|user data: instant-env.mounts[7]: this",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, complaints := Parse([]byte(test.text))
			got.ExpiresAt = got.ExpiresAt.UTC()
			test.want.ExpiresAt = test.want.ExpiresAt.UTC()
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}
			var want []string
			if test.complaints != "" {
				want = strings.Split(test.complaints, "|")
			}
			if len(complaints) != len(want) {
				t.Fatalf("complaints %q", complaints)
			}
			for i, complaint := range complaints {
				if !strings.HasPrefix(complaint, want[i]) {
					t.Errorf("complaint %q, want %q", complaint, want[i])
				}
			}
		})
	}
}

// What process 1 mounts itself stays as it is.
func TestTheMachinesOwnMountsAreRefused(t *testing.T) {
	for _, entry := range mount.Table {
		if err := new(MountRequest).setPath(entry.Target); err == nil {
			t.Errorf("a volume may be mounted on %s", entry.Target)
		}
	}
}

func TestValidHostname(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "build-7": true, "web.example.com": true, strings.Repeat("a", 63): true, strings.Repeat("a", 64): false,
		"": false, ".": false, "a.": false, "-a": false, "a-": false, "a_b": false, "ä": false, "a\n": false,
		strings.Repeat("a", 40) + "." + strings.Repeat("b", 30): false,
	} {
		if validHostname(name) != want {
			t.Errorf("%q: %v", name, !want)
		}
	}
}

func FuzzUserData(f *testing.F) {
	for _, seed := range []string{
		"", "#!/bin/sh\n", `{"instant-env": {"ttl_s": 60, "ssh_keys": ["` + inittest.Key + `"], "hostname": "a", "services": ["b"]}}`,
		`{"instant-env": {"mounts": [{"device": "vol-1", "path": "/a", "filesystem": "xfs", "format": "blank"}], "later": 1}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		data, complaints := Parse(text)
		if data.TTL < 0 || data.TTL > longest {
			t.Errorf("ttl %v", data.TTL)
		}
		for _, key := range data.Keys {
			if again, err := sshkey.ParsePublicKey(key.String()); err != nil || !again.Same(key) || strings.Contains(key.String(), "\n") {
				t.Errorf("key %q", key)
			}
		}
		for _, request := range data.Mounts {
			if request.Path == "/" || strings.Contains(request.Path, "..") && !cleanPath(request.Path) || request.Device == "" {
				t.Errorf("mount %+v", request)
			}
		}
		for _, complaint := range complaints {
			if strings.ContainsAny(complaint, "\n\x1b") {
				t.Errorf("a complaint with control characters: %q", complaint)
			}
		}
	})
}
