package main

import "testing"

func TestPathRules(t *testing.T) {
	const shadowOK = "root:*:19000:0:99999:7:::\nadmin:!:19000::::::\nec2-user:!!:1::::::\nx:!*:::::::\ny:*LOCK*:14600::::::\n"
	const passwd = "root:x:0:0:root:/root:/bin/bash\nsshd:x:101:65534::/run/sshd:/usr/sbin/nologin\n" +
		"admin:x:1000:1000::/home/admin:/bin/bash\nnobody:x:65534:65534::/:/bin/sh\n"
	for name, c := range map[string]struct {
		path, content, rule, detail string // no rule: nothing to find
	}{
		"host key":             {"etc/ssh/ssh_host_rsa_key", "x", "host-key", "1 bytes"},
		"public half":          {"etc/ssh/ssh_host_rsa_key.pub", "x", "host-key", "1 bytes"},
		"emptied":              {"etc/ssh/ssh_host_rsa_key", "", "", ""},
		"sshd_config":          {"etc/ssh/sshd_config", "x", "", ""},
		"dropbear":             {"etc/dropbear/dropbear_ed25519_host_key", "x", "host-key", "1 bytes"},
		"authorized keys":      {"home/admin/.ssh/authorized_keys", "# c\n\nssh-ed25519 AAAA a\n", "authorized-keys", "1 lines"},
		"of root":              {"root/.ssh/authorized_keys2", "ssh-ed25519 AAAA a", "authorized-keys", "1 lines"},
		"comments only":        {"root/.ssh/authorized_keys", "# none\n\n", "", ""},
		"locked":               {"etc/shadow", shadowOK, "", ""},
		"password":             {"etc/shadow", shadowOK + "u:$y$j9T$abc:1::::::\n", "password", "u has a password hash"},
		"old crypt":            {"etc/shadow-", "u:abJnggxhB/yWI:1::::::\n", "password", "u has a password hash"},
		"locked with its hash": {"etc/shadow", "u:!$y$j9T$abc:1::::::\n", "password", "u has a password hash"},
		"no password":          {"etc/shadow", "u::1::::::\nv::1::::::\n", "password", "u needs no password, v needs no password"},
		"passwd":               {"etc/passwd", passwd, "", ""},
		"hash in passwd":       {"etc/passwd", "u:abJnggxhB/yWI:1:1::/:/usr/sbin/nologin\n", "password", "u has a password field of its own"},
		"builder's account":    {"etc/passwd", passwd + "bob:x:1001:1001::/home/bob:/bin/bash\n", "account", "bob can log in"},
		"second root":          {"etc/passwd", passwd + "toor:x:0:0::/root:/usr/sbin/nologin\n", "root-account", "toor has user id 0"},
		"root with more zeros": {"etc/passwd", passwd + "toor:x:000:0::/root:/sbin/nologin\n", "root-account", "toor has user id 0"},
		"system shell":         {"etc/passwd", passwd + "www:x:33:33::/:/bin/sh\n", "system-account", `www has the shell "/bin/sh"`},
		"empty shell":          {"etc/passwd", passwd + "www:x:33:33::/:\n", "system-account", `www has the shell ""`},
		"nologin elsewhere":    {"etc/passwd", passwd + "www:x:33:33::/:/tmp/nologin\n", "system-account", `www has the shell "/tmp/nologin"`},
		"another's sync":       {"etc/passwd", passwd + "www:x:33:33::/:/bin/sync\n", "system-account", `www has the shell "/bin/sync"`},
		"closed accounts": {"etc/passwd", passwd + "sync:x:4:65534::/bin:/bin/sync\nshutdown:x:6:0::/sbin:/sbin/shutdown\n" +
			"halt:x:7:0::/sbin:/usr/sbin/halt\ntss:x:59:59::/:/bin/false\n_apt:x:42:65534::/nonexistent:/usr/sbin/nologin\n", "", ""},
		"service account":      {"etc/passwd", passwd + "svc:x:1001:1001::/:/usr/sbin/nologin\n", "", ""},
		"history":              {"root/.bash_history", "ls\n", "history", "3 bytes"},
		"less":                 {"home/a/.lesshst", "x", "history", "1 bytes"},
		"empty history":        {"root/.bash_history", "", "", ""},
		"no history":           {"usr/share/doc/bash_history", "x", "", ""},
		"machine id":           {"etc/machine-id", "0123456789abcdef0123456789abcdef\n", "machine-id", "is set"},
		"empty machine id":     {"etc/machine-id", "\n", "", ""},
		"uninitialized":        {"etc/machine-id", "uninitialized\n", "", ""},
		"D-Bus":                {"var/lib/dbus/machine-id", "01", "machine-id", "is set"},
		"cloud-init":           {"var/lib/cloud/instances/i-1", "", "cloud-init", "is there"},
		"cloud-init's link":    {"var/lib/cloud/instance", "", "cloud-init", "is there"},
		"cloud-init's scripts": {"var/lib/cloud/scripts", "", "", ""},
		"previous instance":    {"var/lib/cloud/data/previous-instance-id", "i-1", "cloud-init", "3 bytes"},
		"bake":                 {"var/tmp/instant-bake-1", "", "bake-leftover", "is there"},
		"bake, home":           {"home/admin/instant-bake.sh", "x", "bake-leftover", "is there"},
		"random seed":          {"var/lib/systemd/random-seed", "x", "random-seed", "1 bytes"},
	} {
		var rule, detail string
		for _, r := range pathRules([]string{"admin"}) {
			if !r.matches(c.path) {
				continue
			}
			if text, found := r.judge([]byte(c.content)); found {
				rule, detail = r.name, text
			}
		}
		if rule != c.rule || detail != c.detail && c.rule != "" {
			t.Errorf("%s: %q %q, want %q %q", name, rule, detail, c.rule, c.detail)
		}
	}
	for _, r := range pathRules(nil) {
		if r.name == "account" {
			t.Error("accounts are judged without --allow-user")
		}
	}
}
