package main

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"instantenv/internal/secrets"
)

// place is where a tool keeps something that must not be in an image: what its finding is, patterns as of pathRule, a
// judge, and which tool or manual puts it there.
type place struct {
	name, patterns, source string
	judge                  func(content []byte) (detail string, found bool)
}

// credentialPlaces are where tools put credentials and what was typed.
var credentialPlaces = []place{
	{"authorized-keys", "authorized_keys authorized_keys2 **/.ssh/authorized_keys.* **/.ssh/authorized_keys.d/* **/.ssh2/authorization", "sshd(8); Fedora CoreOS (afterburn, ignition)", holdsLines},
	{"authorized-keys", "etc/ssh/authorized_keys/** etc/ssh/authorized_keys.d/** etc/ssh/authorized-keys/** etc/ssh/keys/** etc/ssh/userkeys/** etc/authorized_keys/**", "layouts for sshd_config(5)'s AuthorizedKeysFile; what the image's own says is added", holdsLines},
	{"history", ".*_history .lesshst .viminfo .zhistory .histfile", "bash(1), zsh(1), python(1), less(1), vim(1)", notEmpty},
	{"history", "fish_history python_history ConsoleHost_history.txt **/nushell/history.txt **/nushell/history.sqlite3 **/xonsh/xonsh-*.json **/nvim/shada/*.shada **/mc/history **/atuin/history.db **/.bash_sessions/* **/.zsh_sessions/*", "fish(1), Python 3.13, PowerShell, Nushell, xonsh, Neovim, mc(1), atuin; macOS's shells", notEmpty},
	{"password", "etc/shadow etc/shadow- etc/shadow~ etc/shadow.* var/backups/shadow*", "shadow(5), vipw(8), Debian's dpkg-db-backup", judgeShadow},
	{"password", "etc/gshadow etc/gshadow- etc/gshadow~ etc/gshadow.* var/backups/gshadow*", "gshadow(5), vigr(8)", judgeGroupShadow},
	{"password", "etc/passwd etc/passwd- var/backups/passwd*", "passwd(5)", judgePasswd},
	{"password", "etc/security/opasswd etc/security/opasswd.*", "pam_pwhistory(8), pam_unix(8)", holdsLines},
	{"password", ".htpasswd etc/nginx/htpasswd etc/apache2/htpasswd etc/httpd/htpasswd", "htpasswd(1)", holdsLines},
	{"password", "boot/grub/user.cfg boot/grub2/user.cfg", "grub2-setpassword(8)", holds("GRUB2_PASSWORD")},
	{"password", "etc/mysql/debian.cnf .my.cnf", "mysql(1), Debian's mariadb-server", assigns("password", "pass")},
	{"password", ".mylogin.cnf var/lib/samba/private/passdb.tdb var/lib/samba/private/secrets.tdb etc/samba/smbpasswd", "mysql_config_editor(1), smbpasswd(5)", notEmpty},
	{"password", ".smbcredentials .cifs etc/cifs-credentials etc/samba/credentials", "mount.cifs(8)", assigns("password", "pass")},
	{"password", "etc/fstab", "mount.cifs(8)", assigns("password", "pass")},
	{"password", "etc/ppp/chap-secrets etc/ppp/pap-secrets", "pppd(8)", judgeDialSecrets},
	{"password", "etc/ipsec.secrets etc/ipsec.d/*.secrets", "ipsec.secrets(5)", holds(" PSK ", " XAUTH ", " EAP ", " NTLM ")},
	{"password", "etc/ldap.secret etc/pam_ldap.secret etc/libnss-ldap.secret etc/ldap/ldap.secret", "pam_ldap(5), nss_ldap(5)", notEmpty},
	{"password", "etc/nslcd.conf", "nslcd.conf(5)", assigns("bindpw", "rootpwmodpw")},
	{"password", "etc/sssd/sssd.conf etc/sssd/conf.d/*", "sssd-ldap(5)", assigns("ldap_default_authtok")},
	{"password", "etc/NetworkManager/system-connections/*", "nm-settings-keyfile(5)", assigns("psk", "password", "private-key", "wep-key0", "secret")},
	{"password", "etc/wpa_supplicant/*.conf etc/wpa_supplicant.conf var/lib/iwd/*", "wpa_supplicant.conf(5), iwd.network(5)", assigns("psk", "password", "PreSharedKey", "Passphrase", "wep_key0")},
	{"private-key", "etc/wireguard/*.conf etc/systemd/network/*.netdev", "wg(8), systemd.netdev(5)", assigns("PrivateKey", "PresharedKey")},
	{"private-key", "**/.gnupg/private-keys-v1.d/* **/.gnupg/secring.gpg", "gpg-agent(1)", notEmpty},
	{"private-key", "*.p12 *.pfx *.kdbx *.keytab etc/krb5.keytab", "gitleaks pkcs12-file; KeePass; keytab(5)", notEmpty},
	{"token", "**/.aws/credentials **/.aws/sso/cache/*.json **/.aws/cli/cache/*.json **/.aws/login/cache/*.json", "AWS CLI: configuration and credential files, SSO token cache", notEmpty},
	{"token", "**/.aws/config .boto", "AWS CLI, boto", assigns("aws_secret_access_key", "aws_session_token", "gs_secret_access_key")},
	{"token", ".s3cfg .passwd-s3fs etc/passwd-s3fs", "s3cmd(1), s3fs(1)", holds("secret_key = ", ":")},
	{"token", "**/gcloud/application_default_credentials.json **/gcloud/credentials.db **/gcloud/access_tokens.db **/gcloud/legacy_credentials/*/*", "gcloud: Application Default Credentials, gcloud auth", notEmpty},
	{"token", "**/.azure/msal_token_cache.* **/.azure/accessTokens.json **/.azure/service_principal_entries.* **/.azure/servicePrincipal.*", "Azure CLI: MSAL-based token cache", notEmpty},
	{"token", "**/.oci/sessions/*/token **/.bluemix/config.json **/.config/doctl/config.yaml **/.config/hcloud/cli.toml **/.fly/config.yml **/.config/scw/config.yaml **/.config/linode-cli", "CLIs of Oracle, IBM, DigitalOcean, Hetzner, Fly.io, Scaleway, Linode", holds("token", "Token", "secret_key")},
	{"token", ".vault-token **/.huggingface/token **/.cache/huggingface/token **/.kaggle/kaggle.json **/.config/op/config", "vault login, huggingface_hub, kaggle, 1Password CLI", notEmpty},
	{"token", "**/.docker/config.json **/containers/auth.json .dockercfg var/lib/kubelet/config.json", "docker login, containers-auth.json(5), kubelet", holds(`"auth"`, `"identitytoken"`, `"registrytoken"`, `"password"`)},
	{"token", "**/.kube/config kubeconfig *.kubeconfig etc/kubernetes/*.conf etc/rancher/*/*.yaml var/lib/kubelet/kubeconfig", "kubectl, kubeadm init (admin.conf, super-admin.conf, kubelet.conf), k3s, RKE2", holds("token:", "client-key-data:", "password:", `"token":`, `"client-key-data":`)},
	{"token", "var/lib/rancher/*/server/token var/lib/rancher/*/server/node-token var/lib/rancher/*/agent/node-password etc/rancher/node/password", "k3s, RKE2", notEmpty},
	{"token", "**/serviceaccount/token", "Kubernetes: projected service account tokens", notEmpty},
	{"token", "**/.config/gh/hosts.yml **/.config/hub **/.config/glab-cli/config.yml", "gh auth login, hub, glab", holds("oauth_token", " token: ")},
	{"token", ".git-credentials **/.config/git/credentials", "git-credential-store(1)", notEmpty},
	{"token", ".netrc _netrc", "ftp(1), curl(1)", holds("password")},
	{"token", ".npmrc .yarnrc.yml .yarnrc", "npm, Yarn", holds("_auth", "_password", "npmAuthToken", "npmAuthIdent")},
	{"token", ".pypirc", "twine", holds("password")},
	{"token", "**/pypoetry/auth.toml **/poetry/auth.toml **/uv/credentials/* **/.composer/auth.json **/composer/auth.json **/.gem/credentials **/.local/share/gem/credentials **/.cargo/credentials.toml **/.cargo/credentials **/.hex/hex.config **/.terraform.d/credentials.tfrc.json", "Poetry, uv, Composer, RubyGems, Cargo, Hex, terraform login", notEmpty},
	{"token", "**/.m2/settings.xml **/.m2/settings-security.xml NuGet.Config nuget.config NuGet.config", "Maven; gitleaks nuget-config-password", holds("<password>", "<passphrase>", "<master>", "ClearTextPassword", `key="Password"`)},
	{"token", "**/.gradle/gradle.properties **/.sbt/credentials **/.ivy2/.credentials .terraformrc", "Gradle, sbt, Terraform", assignsLike("password", "token", "secret")},
	{"token", ".pgpass pgpass.conf", "psql(1)", holdsLines},
	{"token", "rclone.conf .databrickscfg **/.snowsql/config **/.jfrog/jfrog-cli.conf*", "rclone, Databricks, SnowSQL, JFrog CLI", holdsAssignment("pass", "token", "secret", "key", "password", "accesstoken")},
	{"token", "etc/apt/auth.conf etc/apt/auth.conf.d/* etc/zypp/credentials.d/*", "apt_auth.conf(5), zypper(8)", holds("password")},
	{"token", "etc/yum.repos.d/* etc/dnf/dnf.conf etc/yum.conf", "dnf.conf(5)", assigns("password", "proxy_password")},
	{"token", ".env .env.*", "dotenv; docker compose", judgeEnvironment},
	{"url-password", "pip.conf **/.pip/pip.conf **/pip/pip.conf .gitconfig etc/gitconfig **/.git/config **/.hg/hgrc .hgrc .condarc .gemrc **/.bundle/config .curlrc .wgetrc etc/wgetrc **/uv/uv.toml", "pip, git-config(1), Mercurial, conda, RubyGems, Bundler, curl(1), wget(1), uv", judgeURLs},
	{"url-password", "etc/environment etc/profile.d/* etc/default/* etc/sysconfig/* etc/apt/apt.conf etc/apt/apt.conf.d/* etc/apt/sources.list etc/apt/sources.list.d/* etc/yum.repos.d/* etc/dnf/dnf.conf etc/systemd/system.conf.d/* etc/docker/daemon.json etc/systemd/system/*/*.conf", "pam_env(8), apt.conf(5), dnf.conf(5), systemd-system.conf(5): proxies and repositories", judgeURLs},
	{"daemon-identity", "etc/docker/key.json var/lib/docker/engine-id var/lib/docker/swarm/**", "dockerd: key of 20.10 and before, id since 23.0 (moby #43555), swarm's node", notEmpty},
	{"daemon-identity", "var/lib/containerd/io.containerd.*introspection*/uuid var/lib/docker/containerd/daemon/io.containerd.*introspection*/uuid", "containerd: its introspection service", notEmpty},
	{"daemon-identity", "var/lib/buildkit/*/workerid var/lib/docker/buildkit/*/workerid", "buildkitd", notEmpty},
	{"cloud-agent", "var/lib/amazon/ssm/** var/lib/tailscale/tailscaled.state etc/salt/pki/** etc/puppetlabs/puppet/ssl/private_keys/*", "SSM agent, Tailscale, Salt, Puppet: registrations", notEmpty},
}

// rules are the places as path rules.
func (p place) rules() (rules []pathRule) {
	for pattern := range strings.FieldsSeq(p.patterns) {
		rules = append(rules, pathRule{p.name, pattern, p.judge, p.source})
	}
	return rules
}

// assigns looks for one of these names with a value: name = value, name: value, or name=value within options.
func assigns(names ...string) func([]byte) (string, bool) {
	return holdsName(`(?m)(?:^|[\s,;"'])(`+alternatives(names)+`)["']?[ \t]*[=:][ \t]*["']?([^\s"',;]+)`, names)
}

// assignsLike is assigns for names that contain one of these words.
func assignsLike(words ...string) func([]byte) (string, bool) {
	return holdsName(`(?mi)^[ \t]*([\w.-]*(?:`+alternatives(words)+`)[\w.-]*)[ \t]*[=:][ \t]*["']?([^\s"',;]+)`, words)
}

// holdsAssignment is assigns for names at the start of a line or in JSON, in any case.
func holdsAssignment(names ...string) func([]byte) (string, bool) {
	return holdsName(`(?mi)(?:^|["\s])(`+alternatives(names)+`)"?[ \t]*[=:][ \t]*"?([^\s"',;]+)`, names)
}

func alternatives(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = regexp.QuoteMeta(w)
	}
	return strings.Join(quoted, "|")
}

// holdsName tells which name has a value. A comment, a variable and a stand-in in brackets are none.
func holdsName(expression string, _ []string) func([]byte) (string, bool) {
	compiled := regexp.MustCompile(expression)
	return func(content []byte) (string, bool) {
		for line := range bytes.Lines(content) {
			if trimmed := bytes.TrimSpace(line); len(trimmed) == 0 || trimmed[0] == '#' || trimmed[0] == ';' {
				continue
			}
			for _, match := range compiled.FindAllSubmatch(line, -1) {
				if value := match[2]; !bytes.ContainsAny(value[:1], "$<{*") {
					return fmt.Sprintf("sets %s", match[1]), true
				}
			}
		}
		return "", false
	}
}

var secretVariable = regexp.MustCompile(`(?m)^[ \t]*(?:export[ \t]+)?(\w*(?i:password|passwd|secret|token|api_?key|access_?key|private_?key|credential|database_url|_dsn)\w*)[ \t]*=[ \t]*["']?([^\s"'#]{4,})`)

// judgeEnvironment looks for variables whose names say that they are secret.
func judgeEnvironment(content []byte) (string, bool) {
	for _, match := range secretVariable.FindAllSubmatch(content, -1) {
		value := strings.ToLower(string(match[2]))
		if strings.ContainsAny(value[:1], "$<{*") || strings.Contains(value, "changeme") || strings.Contains(value, "your") || strings.Contains(value, "xxx") || value == "true" || value == "false" || value == "null" {
			continue
		}
		return fmt.Sprintf("sets %s", match[1]), true
	}
	return "", false
}

func judgeURLs(content []byte) (string, bool) {
	return "holds a URL with a password", secrets.HoldsURLPassword(content)
}

// judgeDialSecrets: Debian ships pap-secrets with lines for every account that take no password ("*" and "-").
func judgeDialSecrets(content []byte) (string, bool) {
	count := 0
	for line := range strings.Lines(string(content)) {
		fields := strings.Fields(line)
		if len(fields) >= 3 && !strings.HasPrefix(fields[0], "#") && !slices.Contains([]string{`""`, `"*"`, "-", "*", "."}, fields[2]) {
			count++
		}
	}
	return fmt.Sprintf("%d lines", count), count > 0
}

// keyFileRules are what the image's own sshd_config says of authorized keys: they may lie anywhere.
func keyFileRules(directory string) (rules []pathRule, err error) {
	files, err := filepath.Glob(filepath.Join(directory, "etc/ssh/sshd_config.d/*"))
	if err != nil {
		return nil, err
	}
	for _, name := range append(files, filepath.Join(directory, "etc/ssh/sshd_config")) {
		content, err := readRegular(name)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(content)) {
			fields := strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t\r\n=\"", r) })
			if len(fields) < 2 || !strings.EqualFold(fields[0], "AuthorizedKeysFile") {
				continue
			}
			for _, file := range fields[1:] {
				if pattern := keyFilePattern(file); pattern != "" {
					rules = append(rules, pathRule{"authorized-keys", pattern, holdsLines, "sshd_config(5)"})
				}
			}
		}
	}
	return rules, nil
}

// keyFilePattern makes a pattern of AuthorizedKeysFile's: %u is an account's name, %U its number, %h its home directory,
// where a relative path is, too. "" is for none, and for a pattern that is no path.
func keyFilePattern(file string) string {
	pattern := strings.NewReplacer("%u", "*", "%U", "*", "%%", "%", "%h", "**", "[", "", "]", "", "?", "", `\`, "").Replace(file)
	if file == "none" || strings.Contains(pattern, "%") {
		return ""
	}
	pattern = path.Clean(pattern)
	if absolute, ok := strings.CutPrefix(pattern, "/"); ok {
		return absolute
	}
	if strings.HasPrefix(pattern, "**/") {
		return pattern
	}
	return "**/" + pattern
}

// readRegular returns the start of a regular file, and nothing where there is none.
func readRegular(name string) ([]byte, error) {
	info, err := os.Lstat(name)
	if os.IsNotExist(err) || err == nil && !info.Mode().IsRegular() {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return readJudged(name)
}
