package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"instantenv/internal/secrets/secretstest"
)

// plant is one thing that must not be in an image, as a file of it.
type plant struct {
	path, content string
	mode          os.FileMode // 0644 when it is zero
	found         []string    // rules, in order of their names; none: it may be there
}

func plants(t *testing.T) []plant {
	key := secretstest.Ed25519Key(t)
	log, leased := []string{"log"}, []string{"lease"}
	token, cache, leftover := []string{"token"}, []string{"package-cache"}, []string{"bake-leftover"}
	return []plant{
		{"etc/ssh/ssh_host_ed25519_key", key, 0o600, []string{"host-key", "private-key"}},
		{"etc/ssh/ssh_host_rsa_key.pub", "ssh-rsa AAAA", 0, []string{"host-key"}},
		{"etc/ssh/sshd_config", "Port 22\n", 0, nil},
		{"var/lib/systemd/credential.secret", "0123", 0o400, []string{"host-key"}},
		{"root/.ssh/authorized_keys", "ssh-ed25519 AAAA a\n", 0o600, []string{"authorized-keys"}},
		{"etc/shadow", "root:$y$j9T$abc:1::::::\n", 0o640, []string{"password"}},
		{"etc/passwd", "root:x:0:0::/root:/bin/sh\nbob:x:1000:1000::/:/bin/sh\n" +
			"toor:x:0:0::/root:/bin/sh\nsvc:x:998:998::/:/bin/sh\n", 0, []string{"account", "root-account", "system-account"}},
		{"etc/gshadow", "wheel:$y$j9T$abc::\nadm:*::\nx:!::\n", 0o640, []string{"password"}},
		{"root/.aws/credentials", "[default]\n", 0o600, token},
		{"srv/aws.env", "AWS_ACCESS_KEY_ID=" + secretstest.KeyID + "\nAWS_SECRET_ACCESS_KEY=" + secretstest.Secret + "\n", 0, []string{"aws-credentials"}},
		{"root/.docker/config.json", `{"auths": {"https://a": {"auth": "dTpw"}}}`, 0o600, token},
		{"home/admin/.docker/config.json", `{"auths": {}}`, 0o600, nil},
		{"root/.git-credentials", "https://u:p@a\n", 0o600, token},
		{"root/.netrc", "machine a login b password c\n", 0o600, token},
		{"root/.npmrc", "registry=https://a\n", 0, nil},
		{"home/admin/.npmrc", "//a/:_authToken=b\n", 0, token},
		{"root/.kube/config", "users:\n- user:\n    token: abc\n", 0o600, token},
		{"root/.cargo/credentials.toml", "[registry]\n", 0o600, token},
		{"opt/app/.env", "GITHUB=" + secretstest.GitHubToken + "\n", 0, token},
		{"opt/app/.env.production", "# database\nDB_PASSWORD=hunter2\n", 0, token},
		{"opt/app/.env.example", "DB_PASSWORD=changeme\nTOKEN=${TOKEN}\nDEBUG=true\n", 0, nil},
		{"etc/kubernetes/admin.conf", "users:\n- user:\n    client-key-data: abc\n", 0o600, token},
		{"etc/kubernetes/kubelet.conf", "users:\n- user:\n    client-key: /var/lib/kubelet/pki/x\n", 0o600, nil},
		{"etc/rancher/k3s/k3s.yaml", "users:\n- user:\n    password: abc\n", 0o600, token},
		{"root/.config/containers/auth.json", `{"auths": {"quay.io": {"auth": "dTpw"}}}`, 0o600, token},
		{"root/.dockercfg", `{"https://a": {"auth": "dTpw"}}`, 0o600, token},
		{"root/.config/gcloud/application_default_credentials.json", `{"type": "authorized_user"}`, 0o600, token},
		{"root/.config/gcloud/legacy_credentials/a@b.c/adc.json", `{}`, 0o600, token},
		{"root/.config/gcloud/configurations/config_default", "[core]\n", 0o600, nil},
		{"root/.azure/msal_token_cache.json", `{}`, 0o600, token},
		{"root/.aws/sso/cache/0123.json", `{}`, 0o600, token},
		{"root/.aws/config", "[default]\nregion = eu-west-1\n", 0o600, nil},
		{"etc/pip.conf", "[global]\nindex-url = https://build:hunter2@pypi.corp.internal/simple\n", 0, []string{"url-password"}},
		{"home/admin/.config/pip/pip.conf", "[global]\nindex-url = https://pypi.corp.internal/simple\n", 0, nil},
		{"srv/site/.git/config", "[remote \"origin\"]\n\turl = https://deploy:abc@git.corp.internal/site.git\n", 0, []string{"url-password"}},
		{"etc/apt/apt.conf.d/80proxy", `Acquire::http::Proxy "http://joe:proxy@10.0.0.1:3128";` + "\n", 0, []string{"url-password"}},
		{"etc/apt/auth.conf.d/corp.conf", "machine deb.corp.internal login a password b\n", 0o600, token},
		{"etc/wireguard/wg0.conf", "[Interface]\nPrivateKey = x\n", 0o600, []string{"private-key"}},
		{"etc/NetworkManager/system-connections/office", "[wifi-security]\npsk=hunter2\n", 0o600, []string{"password"}},
		{"etc/NetworkManager/system-connections/wired", "[connection]\nid=wired\n", 0o600, nil},
		{"etc/security/opasswd", "admin:1000:1:$y$j9T$old\n", 0o600, []string{"password"}},
		{"etc/gshadow-", "wheel:$y$j9T$abc::\n", 0o640, []string{"password"}},
		{"var/backups/shadow.bak", "root:$y$j9T$abc:1::::::\n", 0o640, []string{"password"}},
		{"etc/ssh/authorized_keys/admin", "ssh-ed25519 AAAA a\n", 0o600, []string{"authorized-keys"}},
		{"home/admin/.ssh/authorized_keys.d/ignition", "ssh-ed25519 AAAA a\n", 0o600, []string{"authorized-keys"}},
		{"etc/ssh/sshd_config.d/10-keys.conf", "# keys\nAuthorizedKeysFile /etc/people/%u/keys .ssh/keys2\n", 0, nil},
		{"etc/people/admin/keys", "ssh-ed25519 AAAA a\n", 0o600, []string{"authorized-keys"}},
		{"home/admin/.ssh/keys2", "ssh-ed25519 AAAA a\n", 0o600, []string{"authorized-keys"}},
		{"etc/ppp/chap-secrets", "# client server secret\nme * hunter2 *\n", 0o600, []string{"password"}},
		{"etc/ppp/pap-secrets", "guest\thost\t\"*\"\t-\n* host \"\" *\n", 0o600, nil},
		{"etc/fstab", "//nas/x /mnt cifs username=a,password=b 0 0\n", 0, []string{"password"}},
		{"etc/mysql/debian.cnf", "[client]\npassword =\n", 0o600, nil},
		{"root/.my.cnf", "[client]\npassword = x\n", 0o600, []string{"password"}},
		{"root/.gnupg/private-keys-v1.d/0123.key", "x", 0o600, []string{"private-key"}},
		{"srv/people.kdbx", "x", 0o600, []string{"private-key"}},
		{"root/.m2/settings.xml", "<settings><servers><server><password>x</password></server></servers></settings>", 0, token},
		{"root/.vault-token", "x", 0o600, token},
		{"root/.local/share/fish/fish_history", "- cmd: ls\n", 0o600, []string{"history"}},
		{"root/.local/share/nvim/shada/main.shada", "x", 0o600, []string{"history"}},
		{"srv/wide.ini", "\xff\xfet\x00=\x00" + wide(secretstest.GitHubToken), 0, token},
		{"srv/stripe.json", `{"key": "` + secretstest.Random(t, `sk_live_[0-9A-Za-z]{24}`) + `"}`, 0, token},
		{"srv/notes.txt", "curl -u deploy:" + secretstest.Random(t, `(?:[a-z][0-9][A-Z]){5}`) + " https://a\n", 0, []string{"named-secret"}},
		{"root/.bash_history", "ls\n", 0o600, []string{"history"}},
		{"home/admin/.python_history", "1+1\n", 0o600, []string{"history"}},
		{"root/.lesshst", "x", 0o600, []string{"history"}},
		{"etc/machine-id", "0123456789abcdef0123456789abcdef\n", 0o444, []string{"machine-id"}},
		{"var/lib/systemd/random-seed", "seed", 0o600, []string{"random-seed"}},
		{"etc/hostname", "ip-10-0-0-1\n", 0, []string{"hostname"}},
		{"var/lib/cloud/instances/i-1/user-data.txt", "#!/bin/sh\n", 0o600, nil}, // told by its directory
		{"var/lib/cloud/data/instance-id", "i-1\n", 0, []string{"cloud-init"}},
		{"var/lib/cloud/seed/nocloud/user-data", "#!/bin/sh\n", 0o600, []string{"cloud-init"}},
		{"var/lib/cloud/scripts/per-boot/a", "#!/bin/sh\n", 0o755, nil},
		{"var/lib/amazon/ssm/registration", "{}", 0o600, []string{"cloud-agent"}},
		{"etc/docker/key.json", `{"crv":"P-256","d":"` + secretstest.Random(t, `(?:[a-z][0-9][A-Z]){14}[AEIMQUYcgkosw048]`) + `","kty":"EC"}`, 0o600, []string{"daemon-identity", "private-key"}},
		{"etc/docker/daemon.json", `{"log-driver": "local", "kty": "d"}`, 0, nil},
		{"var/lib/docker/engine-id", "1e2d3c4b-0000-4000-8000-0123456789ab", 0o600, []string{"daemon-identity"}},
		{"var/lib/docker/swarm/docker-state.json", "{}", 0o600, []string{"daemon-identity"}},
		{"var/lib/containerd/io.containerd.grpc.v1.introspection/uuid", "1e2d3c4b-0000-4000-8000-0123456789ab", 0, []string{"daemon-identity"}},
		{"var/lib/buildkit/runc-overlayfs/workerid", "abc", 0o600, []string{"daemon-identity"}},
		{"var/log/auth.log", "Accepted publickey\n", 0o640, log},
		{"var/log/deep/er/x.log.1", "words", 0o640, log},
		{"var/log/journal/0123/system.journal", "LPKSHHRH", 0o640, log},
		{"var/log/faillog", strings.Repeat("\x00", 512), 0, nil},
		{"var/log/wtmp", "", 0o664, nil},
		{"var/spool/mail/root", "From: a\n", 0o600, log},
		{"etc/resolv.conf", "# by us\nnameserver 10.0.0.2\n", 0, []string{"resolver"}},
		{"var/lib/dhcp/dhclient.eth0.leases", "lease {}\n", 0, leased},
		{"var/lib/NetworkManager/internal-1-eth0.lease", "ADDRESS=10.0.0.1\n", 0, leased},
		{"var/lib/systemd/network/lease", "x", 0, leased},
		{"var/cache/apt/pkgcache.bin", "x", 0, cache},
		{"var/cache/apt/archives/a_1_all.deb", "x", 0, cache},
		{"var/lib/apt/lists/deb.debian.org_debian_dists_bookworm_InRelease", "x", 0, cache},
		{"var/cache/dnf/amazonlinux-0123/repodata/primary.xml.gz", "x", 0, cache},
		{"var/lib/dnf/history.sqlite", "x", 0, cache},
		{"instant-bake.zero", "", 0o600, leftover},
		{"root/instant-bake.sh", "x", 0, leftover},
		{"usr/sbin/update-initramfs.instant-bake", "x", 0o755, leftover},
		{"etc/kernel/install.d/50-dracut.install", "", 0, leftover},
		{"tmp/deep/notes", "x", 0, leftover},
		{"var/tmp/empty", "", 0, nil},
		{"run/instant-bake/01-strip.sh", "x", 0, leftover}, // it should have been memory
		{"usr/bin/sudo", "x", 0o755 | os.ModeSetuid, nil},
		{"usr/bin/wall", "x", 0o755 | os.ModeSetgid, nil},
		{"usr/bin/fping", "x", 0o755 | os.ModeSetuid, nil}, // allowed by flag
		{"usr/local/bin/rootsh", "x", 0o755 | os.ModeSetuid, []string{"setuid"}},
		{"usr/local/bin/group", "x", 0o755 | os.ModeSetgid, []string{"setuid"}},
		{"var/lib/docker/overlay2/0123/diff/bin/su", "x", 0o755 | os.ModeSetuid, nil}, // allowed by flag
		{"var/lib/docker/overlay2/0123/diff/open", "x", 0o666, nil},
		{"etc/open.conf", "x", 0o666, []string{"world-writable"}},
	}
}

// wide is text in UTF-16.
func wide(text string) string { return strings.Join(strings.Split(text, ""), "\x00") + "\x00" }

// plantTree writes the things below a directory; file systems are made of it without root.
func plantTree(t *testing.T, things []plant) string {
	t.Helper()
	tree := filepath.Join(t.TempDir(), "tree")
	for _, thing := range things {
		path := filepath.Join(tree, thing.path)
		mode := thing.mode
		if mode == 0 {
			mode = 0o644
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(thing.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range map[string]os.FileMode{"srv/open": 0o777, "srv/sticky": 0o777 | os.ModeSticky, "srv/group": 0o775 | os.ModeSetgid, "dev": 0o755} {
		path := filepath.Join(tree, name)
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../run/systemd/resolve/stub-resolv.conf", filepath.Join(tree, "etc/link.conf")); err != nil {
		t.Fatal(err)
	}
	return tree
}

func wantOf(things []plant) (want []string) {
	for _, thing := range things {
		for _, rule := range thing.found {
			want = append(want, rule+"@/"+thing.path)
		}
	}
	return append(want, "cloud-init@/var/lib/cloud/instances/i-1", "world-writable@/srv/open",
		"bake-leftover@/run/instant-bake", "device-node@/opt/null", "private-key@raw")
}

// capabilities are programs with the attribute, which only mkfs.ext4 and debugfs can plant.
func capabilities() []plant {
	return []plant{
		{"usr/bin/ping", "x", 0o755, nil},
		{"usr/bin/mtr-packet", "x", 0o755, []string{"capability"}}, // more than a distribution gives it
		{"usr/local/bin/sniff", "x", 0o755, []string{"capability"}},
		{"usr/local/bin/torn", "x", 0o755, []string{"capability"}},
		{"var/lib/docker/overlay2/0123/diff/bin/ping", "x", 0o755, nil}, // allowed by flag
	}
}

// plantCapabilities writes the attribute of each; numbers are those of linux/capability.h.
func plantCapabilities(t *testing.T, disk string) {
	t.Helper()
	for path, value := range map[string][]byte{
		"usr/bin/ping":                               capabilityValue(13),
		"usr/bin/mtr-packet":                         capabilityValue(13, 21),
		"usr/local/bin/sniff":                        capabilityValue(40),
		"usr/local/bin/torn":                         {1, 2, 3},
		"var/lib/docker/overlay2/0123/diff/bin/ping": capabilityValue(7),
	} {
		file := filepath.Join(t.TempDir(), "value")
		if err := os.WriteFile(file, value, 0o600); err != nil {
			t.Fatal(err)
		}
		command(t, "", "debugfs", "-w", "-R", "ea_set -f "+file+" /"+path+" "+capabilityAttribute, disk)
	}
}

// capabilityValue is the attribute's second revision, effective, with these permitted.
func capabilityValue(numbers ...int) []byte {
	words := [5]uint32{0x02000001}
	for _, number := range numbers {
		words[1+number/32*2] |= 1 << (number % 32)
	}
	value := make([]byte, 20)
	for i, word := range words {
		binary.LittleEndian.PutUint32(value[4*i:], word)
	}
	return value
}

func TestCapabilitiesAreParsed(t *testing.T) {
	namespaced := append(capabilityValue(7), 0, 0, 1, 0) // revision 3: with the root of a namespace
	namespaced[3] = 3
	inheritable := make([]byte, 20)
	inheritable[3], inheritable[8] = 2, 1<<6
	for name, c := range map[string]struct {
		path   string
		value  []byte
		detail string // empty: nothing to find
	}{
		"as shipped":         {"/usr/bin/ping", capabilityValue(13), ""},
		"more than shipped":  {"/usr/bin/ping", capabilityValue(13, 21), "has cap_sys_admin"},
		"above 31":           {"/usr/bin/x", capabilityValue(0, 40), "has cap_chown, cap_checkpoint_restore"},
		"newer than we know": {"/usr/bin/x", capabilityValue(63), "has cap_63"},
		"revision 1":         {"/usr/bin/x", []byte{0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0}, "has cap_dac_override"},
		"revision 3":         {"/usr/bin/x", namespaced, "has cap_setuid"},
		"inheritable":        {"/usr/bin/x", inheritable, "has cap_setgid"},
		"none at all":        {"/usr/bin/x", capabilityValue(), ""},
		"cut short":          {"/usr/bin/x", capabilityValue(13)[:19], "malformed security.capability"},
		"unknown revision":   {"/usr/bin/x", make([]byte, 20), "malformed security.capability"},
		"empty":              {"/usr/bin/x", []byte{}, "malformed security.capability"},
		"allowed":            {"/usr/bin/fping", capabilityValue(21), ""},
		"a setuid program":   {"/usr/bin/sudo", capabilityValue(21), "has cap_sys_admin"},
	} {
		detail, found := newModeRules([]string{"/usr/bin/fping"}).judgeCapabilities(c.path, c.value)
		if found != (c.detail != "") || found && detail != c.detail {
			t.Errorf("%s: %v %q, want %q", name, found, detail, c.detail)
		}
	}
}

func makeExt4(t *testing.T, things []plant, deleted string) string {
	tools(t, "mkfs.ext4", "debugfs")
	things = append(slices.Clone(things), plant{path: "root/deleted", content: deleted})
	things = append(things, capabilities()...)
	disk := filepath.Join(t.TempDir(), "disk")
	command(t, "", "mkfs.ext4", "-q", "-b", "1024", "-d", plantTree(t, things), disk, "16M")
	command(t, "rm root/deleted\ncd opt\nmknod null c 1 3\ncd ../dev\nmknod null c 1 3\n", "debugfs", "-w", "-f", "-", disk)
	plantCapabilities(t, disk)
	return disk
}

// makeXFS writes the deleted bytes to where no file is: there is no tool that deletes without a mount.
func makeXFS(t *testing.T, things []plant, deleted string) string {
	tools(t, "mkfs.xfs")
	tree := plantTree(t, things)
	directory := t.TempDir()
	disk, proto := filepath.Join(directory, "disk"), filepath.Join(directory, "proto")
	var lines bytes.Buffer
	lines.WriteString("-\n0 0\n")
	protoDirectory(t, &lines, tree, "", 0o755)
	if err := os.WriteFile(proto, lines.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	const size = 320 << 20 // mkfs.xfs makes none below 300 MB
	file, err := os.Create(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	command(t, "", "mkfs.xfs", "-q", "-p", proto, disk)
	place := make([]byte, len(deleted))
	if _, err := file.ReadAt(place, size-1<<20); err != nil || len(bytes.Trim(place, "\x00")) > 0 {
		t.Fatalf("no free space at the end: %v", err)
	}
	if _, err := file.WriteAt([]byte(deleted), size-1<<20); err != nil {
		t.Fatal(err)
	}
	return disk
}

// protoDirectory writes mkfs.xfs's prototype of a directory and what is below it.
func protoDirectory(t *testing.T, out *bytes.Buffer, path, name string, mode os.FileMode) {
	t.Helper()
	flags := func(kind string, mode os.FileMode) string {
		setuid, setgid := "-", "-"
		if mode&os.ModeSetuid != 0 {
			setuid = "u"
		}
		if mode&os.ModeSetgid != 0 {
			setgid = "g"
		}
		return fmt.Sprintf("%s%s%s%03o 0 0", kind, setuid, setgid, mode.Perm())
	}
	fmt.Fprintf(out, "%s %s\n", name, flags("d", mode))
	entries, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		full := filepath.Join(path, entry.Name())
		info, err := entry.Info()
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case entry.Name() == "sticky": // a prototype has no sticky bit
		case entry.IsDir():
			protoDirectory(t, out, full, entry.Name(), info.Mode())
		case info.Mode()&os.ModeSymlink != 0:
			target, _ := os.Readlink(full)
			fmt.Fprintf(out, "%s %s %s\n", entry.Name(), flags("l", 0o777), target)
		default:
			fmt.Fprintf(out, "%s %s %s\n", entry.Name(), flags("-", info.Mode()), full)
		}
	}
	if base := filepath.Base(path); name != "" && (base == "opt" || base == "dev") {
		fmt.Fprintf(out, "null %s 1 3\n", flags("c", 0o666))
	}
	fmt.Fprintln(out, "$")
}

// TestPlanted plants each thing in a small file system made without root, and sees it found: with the reason, and
// nothing else.
func TestPlanted(t *testing.T) {
	needMounts(t)
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	things := plants(t)
	for name, make := range map[string]func(*testing.T, []plant, string) string{"ext4": makeExt4, "xfs": makeXFS} {
		t.Run(name, func(t *testing.T) {
			disk := make(t, things, secretstest.Ed25519Key(t))
			found, result := auditOf(t, exitFindings, "--device", disk, "--allow-user", "admin", "--allow-mode", "/usr/bin/fping", "--allow-mode", "/var/lib/docker/**")
			planted := things
			if name == "ext4" {
				planted = slices.Concat(things, capabilities())
			}
			want := wantOf(planted)
			slices.Sort(found)
			slices.Sort(want)
			for _, one := range want {
				if !slices.Contains(found, one) {
					t.Errorf("not found: %s", one)
				}
			}
			for _, one := range found {
				if !slices.Contains(want, one) {
					t.Errorf("found, and it was not planted: %s", one)
				}
			}
			if result.Filesystem != name || len(found) != len(want) {
				t.Errorf("%s, %d findings of %d", result.Filesystem, len(found), len(want))
			}
			for _, f := range result.Findings {
				if f.Reason == "" {
					t.Errorf("%s has no reason", f.Rule)
				}
			}
		})
	}
}

// TestRulesAreDocumented: every rule has a reason, every reason a rule, and docs/audit.md has the table.
func TestRulesAreDocumented(t *testing.T) {
	var table bytes.Buffer
	if status := run([]string{"audit", "--rules"}, &table, os.Stderr); status != exitOK {
		t.Fatalf("exit status %d", status)
	}
	for _, rule := range pathRules([]string{""}) {
		if reasons[rule.name] == "" {
			t.Errorf("%s has no reason", rule.name)
		}
	}
	if strings.Contains(table.String(), "|  |") {
		t.Errorf("a reason that no rule has:\n%s", table.String())
	}
	document, err := os.ReadFile("../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(document), table.String()) {
		t.Errorf("docs/audit.md has another table; it should be\n%s", table.String())
	}
}
