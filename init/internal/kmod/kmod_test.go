package kmod

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
)

// Lines as depmod writes them for Debian's 6.1 cloud kernel.
const (
	dep = `kernel/drivers/net/ethernet/amazon/ena/ena.ko:
kernel/drivers/net/virtio_net.ko: kernel/drivers/net/net_failover.ko kernel/net/core/failover.ko kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/char/hw_random/virtio-rng.ko.xz: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio.ko
`
	alias = `# Aliases extracted from modules themselves.
alias pci:v00001D0Fd0000EC20sv*sd*bc*sc*i* ena
alias pci:v00001D0Fd00000EC2sv*sd*bc*sc*i* ena
alias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci
alias virtio:d00000001v* virtio_net
alias virtio:d00000004v* virtio_rng
alias pci:v00008086d*sv*sd*bc01sc06i[0-9]* ahci
`
)

func tree(t *testing.T, inserted *[]string, fail error) *Tree {
	t.Helper()
	directory := t.TempDir()
	for name, content := range map[string]string{"modules.dep": dep, "modules.alias": alias} {
		if err := os.WriteFile(filepath.Join(directory, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := Open(directory)
	if err != nil {
		t.Fatal(err)
	}
	tree.insert = func(path string) error {
		*inserted = append(*inserted, strings.TrimPrefix(path, directory+"/"))
		return fail
	}
	return tree
}

func TestResolve(t *testing.T) {
	for _, test := range []struct {
		name       string
		modaliases []string
		want       []string
	}{
		{"ENA", []string{"pci:v00001D0Fd0000EC20sv00001D0Fsd0000EC20bc02sc00i00"}, []string{"ena"}},
		{"virtio, first pass", []string{"pci:v00001AF4d00001000sv00001AF4sd00000001bc02sc00i00"}, []string{"virtio_pci"}},
		{"virtio, second pass", []string{"virtio:d00000001v00001AF4"}, []string{"virtio_net"}},
		{"two devices, one driver", []string{
			"pci:v00001D0Fd0000EC20sv0sd0bc02sc00i00", "pci:v00001D0Fd0000EC20sv1sd1bc02sc00i00",
		}, []string{"ena"}},
		{"a class in brackets", []string{"pci:v00008086d00002922sv0sd0bc01sc06i01"}, []string{"ahci"}},
		{"unknown", []string{"pci:v0000FFFFd0000FFFFsv0sd0bc02sc00i00", ""}, nil},
		{"nothing", nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := tree(t, new([]string), nil).Resolve(test.modaliases)
			if err != nil || !reflect.DeepEqual(got, test.want) {
				t.Fatalf("got %v, %v; want %v", got, err, test.want)
			}
		})
	}
}

func TestLoadOrder(t *testing.T) {
	for name, want := range map[string][]string{
		"ena": {"kernel/drivers/net/ethernet/amazon/ena/ena.ko"},
		"virtio_net": {
			"kernel/drivers/virtio/virtio_ring.ko", "kernel/drivers/virtio/virtio.ko",
			"kernel/net/core/failover.ko", "kernel/drivers/net/net_failover.ko", "kernel/drivers/net/virtio_net.ko",
		},
		"virtio_rng": {
			"kernel/drivers/virtio/virtio_ring.ko", "kernel/drivers/virtio/virtio.ko",
			"kernel/drivers/char/hw_random/virtio-rng.ko.xz",
		},
	} {
		for _, answer := range []error{nil, syscall.EEXIST} {
			var inserted []string
			if err := tree(t, &inserted, answer).Load(name); err != nil {
				t.Fatalf("%s with %v: %v", name, answer, err)
			}
			if !reflect.DeepEqual(inserted, want) {
				t.Fatalf("%s: inserted %v, want %v", name, inserted, want)
			}
		}
	}
}

func TestLoadInsertsASharedNeedOnce(t *testing.T) {
	var inserted []string
	modules := tree(t, &inserted, nil)
	for _, name := range []string{"virtio_pci", "virtio_net", "virtio-net"} {
		if err := modules.Load(name); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		"kernel/drivers/virtio/virtio.ko", "kernel/drivers/virtio/virtio_pci.ko", "kernel/drivers/virtio/virtio_ring.ko",
		"kernel/net/core/failover.ko", "kernel/drivers/net/net_failover.ko", "kernel/drivers/net/virtio_net.ko",
	}
	if !reflect.DeepEqual(inserted, want) {
		t.Fatalf("inserted %v, want %v", inserted, want)
	}
}

func TestLoadErrors(t *testing.T) {
	var inserted []string
	if err := tree(t, &inserted, nil).Load("nvme"); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("unknown module: %v", err)
	}
	if err := tree(t, &inserted, syscall.EKEYREJECTED).Load("ena"); !errors.Is(err, syscall.EKEYREJECTED) {
		t.Fatalf("kernel refuses: %v", err)
	}
	if _, err := Open(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("no modules.dep: %v", err)
	}
}
