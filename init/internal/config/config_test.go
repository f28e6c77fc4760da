package config

import (
	"path/filepath"
	"testing"

	"instantenv/init/internal/inittest"
)

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "instant-init.json")
	for _, test := range []struct {
		content string
		want    Config
		fails   bool
	}{
		{content: "", want: Config{"ec2-user", "/usr/sbin/sshd", ""}},
		{content: `{"login_user":"admin"}`, want: Config{"admin", "/usr/sbin/sshd", ""}},
		{content: `{"login_user":"admin","sshd":"/opt/sshd"}`, want: Config{"admin", "/opt/sshd", ""}},
		{content: `{"ssm_keys":"/team/keys"}`, want: Config{"ec2-user", "/usr/sbin/sshd", "/team/keys"}},
		{content: `{"loginuser":"admin"}`, fails: true},
		{content: `login_user: admin`, fails: true},
	} {
		if test.content != "" {
			inittest.Write(t, path, test.content)
		}
		got, err := Load(path)
		if test.fails != (err != nil) || err == nil && got != test.want {
			t.Errorf("%q: got %+v, %v", test.content, got, err)
		}
	}
}
