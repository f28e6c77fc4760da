//go:build coverage

package main

import (
	"os"
	"path/filepath"
	"runtime/coverage"
	"time"

	"instantenv/init/internal/sysfs"
)

// coverageDirectory is where a test build (go build -cover -tags coverage) leaves what it has run, on the root's disk:
// process 1 never exits, which is when other programs write it. Each start has a directory of its own there.
// benchmarks/init_coverage.py fetches them.
const coverageDirectory = "/var/lib/instant-init-coverage"

// coverageInterval is how much of a shutdown may be missing.
const coverageInterval = 100 * time.Millisecond

func init() {
	if os.Getpid() != 1 {
		return
	}
	go func() {
		for {
			time.Sleep(coverageInterval)
			start, err := sysfs.ReadLine("/proc/sys/kernel/random/boot_id")
			if err != nil {
				continue // not mounted yet, or not any more
			}
			directory := filepath.Join(coverageDirectory, start)
			if os.MkdirAll(directory, 0o755) != nil || coverage.WriteMetaDir(directory) != nil {
				continue // the root is read-only
			}
			before, _ := filepath.Glob(directory + "/covcounters.*")
			if coverage.WriteCountersDir(directory) != nil {
				continue
			}
			for _, path := range before {
				os.Remove(path)
			}
		}
	}()
}
