package access

import (
	"os"
	"path/filepath"
	"testing"

	"instantenv/init/internal/atomicfile"
	"instantenv/init/internal/inittest"
	"instantenv/init/internal/userdata"
)

// someone is a user with a home under a temporary directory; the files belong to whoever runs the test.
func someone(t *testing.T) Account {
	return Account{"admin", filepath.Join(t.TempDir(), "home", "admin"), atomicfile.Owner{UID: os.Geteuid(), GID: os.Getegid()}}
}

func TestFindAccount(t *testing.T) {
	passwd := inittest.Write(t, filepath.Join(t.TempDir(), "passwd"),
		"root:x:0:0:root:/root:/bin/bash\nadmin:x:1000:1001:Debian:/home/admin:/bin/bash\n"+
			"bad:x:one:1:x:/home/bad:/bin/sh\nrelative:x:1:1::home:/bin/sh\nshort:x:1\n")
	got, err := FindAccount(passwd, "admin")
	if want := (Account{"admin", "/home/admin", atomicfile.Owner{UID: 1000, GID: 1001}}); err != nil || got != want {
		t.Fatalf("got %+v, %v", got, err)
	}
	for _, name := range []string{"bad", "relative", "short", "nobody", "", "adm"} {
		if got, err := FindAccount(passwd, name); err == nil {
			t.Errorf("%q was found: %+v", name, got)
		}
	}
}

func TestAuthorize(t *testing.T) {
	user := someone(t)
	for range 2 { // the second time changes nothing
		if err := user.Authorize(inittest.Keys(t, inittest.Key+" laptop")); err != nil {
			t.Fatal(err)
		}
		if got := inittest.Read(t, user.keyFile()); got != inittest.Key+" laptop\n" {
			t.Fatalf("content %q", got)
		}
	}
	for path, mode := range map[string]os.FileMode{
		user.home: 0o700, filepath.Dir(user.keyFile()): 0o700, user.keyFile(): 0o600,
	} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: mode %v, %v; want %v", path, info.Mode(), err, mode)
		}
	}
}

func TestReplaceKeysLeavesNoOther(t *testing.T) {
	user, held := someone(t), t.TempDir()
	inittest.Write(t, user.keyFile(), inittest.OtherKey+"\n")
	inittest.Write(t, user.keyFile()+"2", inittest.OtherKey+"\n")
	inittest.Write(t, filepath.Join(held, "admin"), inittest.OtherKey+"\n")
	key := inittest.Keys(t, inittest.Key)[0]
	for range 2 {
		if err := user.ReplaceKeys(key, held); err != nil {
			t.Fatal(err)
		}
	}
	if got := inittest.Read(t, user.keyFile()); got != inittest.Key+"\n" {
		t.Errorf("content %q", got)
	}
	if info, err := os.Stat(user.keyFile()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	for _, other := range []string{user.keyFile() + "2", filepath.Join(held, "admin")} {
		if _, err := os.Stat(other); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", other, err)
		}
	}
}

func TestReplaceKeysMakesTheDirectory(t *testing.T) {
	user := someone(t)
	if err := user.ReplaceKeys(inittest.Keys(t, inittest.Key)[0], t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if got := inittest.Read(t, user.keyFile()); got != inittest.Key+"\n" {
		t.Errorf("content %q", got)
	}
}

func TestAuthorizeKeepsWhatTheUserAdded(t *testing.T) {
	user := someone(t)
	inittest.Write(t, user.keyFile(), "# mine\nfrom=\"10.0.0.1\" "+inittest.Key+" other")
	if err := user.Authorize(inittest.Keys(t, inittest.Key)); err != nil {
		t.Fatal(err)
	}
	if got, want := inittest.Read(t, user.keyFile()), "# mine\nfrom=\"10.0.0.1\" "+inittest.Key+" other\n"+inittest.Key+"\n"; got != want {
		t.Fatalf("content %q, want %q", got, want)
	}
}

func TestAuthorizeDoesNotFollowTheUsersLinks(t *testing.T) {
	for _, name := range []string{".ssh", ".ssh/authorized_keys"} {
		user := someone(t)
		target := filepath.Join(t.TempDir(), "target")
		if name == ".ssh" {
			if err := os.Mkdir(target, 0o700); err != nil {
				t.Fatal(err)
			}
		} else {
			inittest.Write(t, target, "secret of root\n")
		}
		link := filepath.Join(user.home, name)
		if err := os.MkdirAll(filepath.Dir(link), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
		if err := user.Authorize(inittest.Keys(t, inittest.Key)); err == nil {
			t.Errorf("%s as a link was followed", name)
		}
	}
}

func TestAccountsThatUserDataNames(t *testing.T) {
	login := Account{name: "somebody", owner: atomicfile.Owner{UID: 1234, GID: 5678}}
	if uid, gid, err := login.Find(userdata.LoginUser); uid != 1234 || gid != 5678 || err != nil {
		t.Errorf("the login user: %d, %d, %v", uid, gid, err)
	}
	if uid, gid, err := login.Find("root"); uid != 0 || gid != 0 || err != nil {
		t.Errorf("root: %d, %d, %v", uid, gid, err)
	}
	if _, _, err := login.Find("nobody-has-this-name"); err == nil {
		t.Error("a user that does not exist")
	}
}
