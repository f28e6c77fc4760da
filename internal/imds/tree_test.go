package imds

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// with returns the fixture with more in its tree and beside it.
func with(tree, fields string) string {
	file := strings.Replace(fixture, `"tree":{`, `"tree":{`+tree, 1)
	return strings.Replace(file, `"version":1`, `"version":1`+fields, 1)
}

// expect asks for paths with a valid token; "" stands for 404.
func expect(t *testing.T, s *Server, answers map[string]string) {
	t.Helper()
	key := token(t, s, 21600)
	for path, want := range answers {
		head, body := get(t, s, path, key)
		if want == "" {
			if !strings.HasPrefix(head, "HTTP/1.1 404 ") {
				t.Errorf("%s: %.40q, want 404; body %q", path, head, body)
			}
		} else if !strings.HasPrefix(head, "HTTP/1.1 200 ") || body != want {
			t.Errorf("%s: %.40q\n got %q\nwant %q", path, head, body, want)
		}
	}
}

func TestAVersionLacksWhatCameLater(t *testing.T) {
	s := serviceFor(t, with(`"placement":{"availability-zone":"us-east-1a","region":"us-east-1"},
"services":{"domain":"amazonaws.com","partition":"aws"},`, ""))
	expect(t, s, map[string]string{
		"/1.0/":                                  "meta-data\nuser-data",
		"/2009-04-04":                            "dynamic\nmeta-data\nuser-data",
		"/2008-09-01/dynamic/instance-identity":  "",
		"/1.0/meta-data/":                        "ami-id\ninstance-id\npublic-keys/\nsecurity-groups",
		"/2009-04-04/meta-data/placement/":       "availability-zone",
		"/2009-04-04/meta-data/placement/region": "",
		"/2020-10-27/meta-data/placement/region": "us-east-1",
		"/2014-02-25/meta-data/services/":        "domain",
		"/2020-10-27/meta-data/tags/instance":    "",
		"/2021-03-23/meta-data/tags/instance":    "Name\nteam/a",
		"/2010-01-01/meta-data/":                 "",
	})
}

func TestKeysOfInstanceConnectExpire(t *testing.T) {
	soon, later := clock.Add(10*time.Second).Unix(), clock.Add(60*time.Second).Unix()
	s := serviceFor(t, with(`"managed-ssh-keys":{"signer-cert":"PEM"},`, fmt.Sprintf(
		`,"active_keys":[{"user":"admin","text":"one\n","expires":%d},{"user":"admin","text":"two\n","expires":%d},
		{"user":"root","text":"three\n","expires":%d}]`, soon, later, soon)))
	const keys = "/latest/meta-data/managed-ssh-keys/"
	expect(t, s, map[string]string{
		keys: "active-keys/\nsigner-cert", keys + "active-keys/": "admin\nroot",
		keys + "active-keys/admin/": "one\ntwo\n", keys + "active-keys/root": "three\n", keys + "active-keys/me": "",
	})
	s.now = func() time.Time { return clock.Add(10 * time.Second) }
	expect(t, s, map[string]string{
		keys + "active-keys/": "admin", keys + "active-keys/admin": "two\n", keys + "active-keys/root": "",
	})
	s.now = func() time.Time { return clock.Add(time.Minute) }
	expect(t, s, map[string]string{keys: "signer-cert", keys + "active-keys/": "", keys + "active-keys/admin": ""})
}

func TestKeysOfInstanceConnectNeedNothingBesideThem(t *testing.T) {
	s := serviceFor(t, with("", fmt.Sprintf(
		`,"active_keys":[{"user":"admin","text":"one","expires":%d}]`, clock.Add(time.Minute).Unix())))
	expect(t, s, map[string]string{
		"/latest/meta-data/": "ami-id\ninstance-id\nmanaged-ssh-keys/\nnetwork/\npublic-keys/\nsecurity-groups\ntags/",
		"/latest/meta-data/managed-ssh-keys/active-keys/admin": "one",
	})
}

func TestThereAreNoEmptyDirectories(t *testing.T) {
	expect(t, serviceFor(t, with(`"iam":{},`, "")), map[string]string{"/latest/meta-data/iam/": ""})
}

func TestALeafOfJSONIsSentAsItStands(t *testing.T) {
	s := serviceFor(t, with(`"spot":{"instance-action":"{\"action\": \"stop\"}"},`, ""))
	expect(t, s, map[string]string{
		"/latest/meta-data/spot/":                              "instance-action",
		"/latest/meta-data/spot/instance-action":               `{"action": "stop"}`,
		"/latest/meta-data/spot/termination-time":              "",
		"/2016-04-19/meta-data/spot/instance-action":           "",
		"/latest/meta-data/autoscaling/target-lifecycle-state": "",
	})
}
