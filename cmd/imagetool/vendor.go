package main

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Distributions ship secrets that everybody knows: self tests in libgnutls, examples in the
// manuals of cloud-init and the AWS CLI. One that is in a file as its package has it is public, and
// so is the same elsewhere: in a .pyc made from the file, or on the bare device.

// knownPublicKeys are fingerprints of such secrets where no package vouches for them: in packages that a bake removes,
// whose bytes may be left in free space, and in programs that come as archives.
var knownPublicKeys = map[string]string{
	"33998881ecb6ca2c": "a shared access signature in AWS DataSync's documentation (botocore/data/datasync/2018-11-09)",
	// Of code-server 4.139.1 and Node 24.19.0 (recipes/programs/code-server), which their digests pin.
	"0739020d3a2d8f66": "the key by which ssh2 finds out whether Node has Ed25519 (ssh2/lib/protocol/constants.js)",
	"3729232bb90ac21a": "no token: a part of a table in base64 that is compiled into Node",
	"51fb552dfad78676": "an example in an error message of dotenv (ms-vscode.js-debug/src/extension.js)",
}

// vendorFiles compares files of the image with their packages, by the databases of dpkg and rpm in the image.
type vendorFiles struct {
	directory string            // where the image is mounted
	md5       map[string]string // dpkg: path without leading slash -> MD5 in hex
	rpm       []byte            // rpm: everything its database holds
}

func openVendorFiles(directory string) (*vendorFiles, error) {
	v := &vendorFiles{directory: directory, md5: map[string]string{}}
	lists, err := filepath.Glob(filepath.Join(directory, "var/lib/dpkg/info/*.md5sums"))
	if err != nil {
		return nil, err
	}
	for _, list := range lists {
		content, err := os.ReadFile(list)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(content)) {
			if sum, path, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  "); ok {
				v.md5[path] = sum
			}
		}
	}
	for _, database := range []string{"var/lib/rpm/rpmdb.sqlite", "usr/lib/sysimage/rpm/rpmdb.sqlite"} {
		for _, part := range []string{"", "-wal"} {
			content, err := os.ReadFile(filepath.Join(directory, database+part))
			if err == nil {
				v.rpm = append(append(v.rpm, content...), joinPages(content)...)
			}
		}
	}
	return v, nil
}

// joinPages puts SQLite's overflow pages together: a record longer than a page goes on in pages whose
// first four bytes are a link. rpm writes a package's header at once, so they follow each other.
func joinPages(database []byte) []byte {
	const page, link = 4096, 4
	joined := make([]byte, 0, len(database))
	for len(database) >= page {
		joined = append(joined, database[link:page]...)
		database = database[page:]
	}
	return joined
}

// vouched reports whether the file at that path (with leading slash) has the content that its package gave it.
func (v *vendorFiles) vouched(path string) (bool, error) {
	name := strings.TrimPrefix(path, "/")
	// Debian's packages of before the merge of /usr list lib/x for what is now usr/lib/x.
	want, listed := v.md5[name]
	if !listed {
		want, listed = v.md5[strings.TrimPrefix(name, "usr/")]
	}
	if !listed && len(v.rpm) == 0 {
		return false, nil
	}
	file, err := os.Open(filepath.Join(v.directory, name))
	if err != nil {
		return false, err
	}
	defer file.Close()
	md5Sum, sha256Sum := md5.New(), sha256.New()
	if _, err := io.Copy(io.MultiWriter(md5Sum, sha256Sum), file); err != nil {
		return false, err
	}
	if listed && want == hex.EncodeToString(md5Sum.Sum(nil)) {
		return true, nil
	}
	digest := hex.EncodeToString(sha256Sum.Sum(nil))
	return bytes.Contains(v.rpm, []byte(digest)), nil
}

// publicKeys returns the fingerprints of the found keys that everybody has. The package databases are
// only read when there is a key that is not in the list above.
func publicKeys(directory string, findings []finding) (map[string]bool, error) {
	public := map[string]bool{}
	var vendor *vendorFiles
	for _, f := range findings {
		if _, known := knownPublicKeys[f.fingerprint]; known {
			public[f.fingerprint] = true
		}
		if f.fingerprint == "" || f.Path == "" || public[f.fingerprint] {
			continue
		}
		if vendor == nil {
			var err error
			if vendor, err = openVendorFiles(directory); err != nil {
				return nil, err
			}
		}
		vouched, err := vendor.vouched(f.Path)
		if err != nil {
			return nil, err
		}
		if vouched {
			public[f.fingerprint] = true
		}
	}
	return public, nil
}
