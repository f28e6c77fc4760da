package access

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"instantenv/init/internal/inittest"
	"instantenv/init/internal/sshkey"
)

func TestLoginKeys(t *testing.T) {
	connect := "#Timestamp=1795000000\n#Instance=i-0abc\n#Caller=arn:aws:iam::123456789012:user/me\n#Request=1\n" +
		inittest.Key + "\nc2lnbmF0dXJl\n"
	for _, test := range []struct {
		name, user string
		items      map[string][]string
		held       string
		want       string
		status     int
	}{
		{name: "none", user: "admin"},
		{name: "by Instance Connect", user: "admin", items: map[string][]string{connectPath + "admin": {connect}}, want: inittest.Key + "\n"},
		{name: "by the tag", user: "admin", items: map[string][]string{keyTagPath: {inittest.OtherKey + " me@home"}}, want: inittest.OtherKey + " me@home\n"},
		{
			name: "both", user: "admin", items: map[string][]string{connectPath + "admin": {connect}, keyTagPath: {inittest.OtherKey}},
			want: inittest.Key + "\n" + inittest.OtherKey + "\n",
		},
		{name: "of somebody else", user: "root", items: map[string][]string{connectPath + "root": {connect}, keyTagPath: {inittest.OtherKey}}},
		{name: "options are no key", user: "admin", items: map[string][]string{keyTagPath: {`command="id" ` + inittest.Key}}},
		{name: "garbage", user: "admin", items: map[string][]string{connectPath + "admin": {"<html>"}, keyTagPath: {"\x00\xff"}}},
		{name: "for an instant busy", user: "admin", items: map[string][]string{keyTagPath: {"503", inittest.Key}}, want: inittest.Key + "\n"},
		{name: "held in memory", user: "admin", held: inittest.Key + "\n", want: inittest.Key + "\n"},
		{
			name: "held in memory, and no service", user: "admin", held: inittest.Key + "\n", want: inittest.Key + "\n",
			items: map[string][]string{"/latest/api/token": {"403"}},
		},
		{name: "turned off", user: "admin", items: map[string][]string{"/latest/api/token": {"403"}}, status: 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, client := inittest.Serve(t, test.items)
			held := t.TempDir()
			if test.held != "" {
				inittest.Write(t, filepath.Join(held, "admin"), test.held)
			}
			var stdout, stderr bytes.Buffer
			if status := LoginKeys(test.user, "admin", held, "", client, &stdout, &stderr); status != test.status {
				t.Errorf("status %d, %q", status, stderr.String())
			}
			if stdout.String() != test.want {
				t.Errorf("got %q, want %q", stdout.String(), test.want)
			}
		})
	}
}

func TestAMachineThatWasHandedOverGetsNoFurtherKeys(t *testing.T) {
	_, client := inittest.Serve(t, map[string][]string{connectPath + "admin": {inittest.Key}, keyTagPath: {inittest.OtherKey}})
	mark := inittest.Write(t, filepath.Join(t.TempDir(), "handed-out"), "")
	var stdout, stderr bytes.Buffer
	if status := LoginKeys("admin", "admin", t.TempDir(), mark, client, &stdout, &stderr); status != 0 || stdout.Len() != 0 {
		t.Errorf("status %d, %q, %q", status, stdout.String(), stderr.String())
	}
}

func FuzzPublicKeys(f *testing.F) {
	f.Add("#Timestamp=1\n" + inittest.Key + "\nc2lnbmF0dXJl\n")
	f.Add("ssh-rsa AAAA\r\n\x00")
	f.Fuzz(func(t *testing.T, text string) {
		for _, key := range publicKeysAmong(text) {
			if again, err := sshkey.ParsePublicKey(key.String()); err != nil || again != key || strings.ContainsAny(key.String(), "\n\r\x00") {
				t.Errorf("%q", key)
			}
		}
	})
}
