package boot

import (
	"time"

	"instantenv/init/internal/boottime"
	"instantenv/init/internal/timeline"
	"instantenv/init/internal/volumes"
)

// hibernate writes the machine's memory to the swap that the kernel's command line names as resume= and powers off. At the
// next start the kernel finds it there, before it mounts the root, and continues here. An image without resume= ignores
// the key, because nothing would read the memory again.
func (m *machine) hibernate() {
	select {
	case <-m.grown: // the first start has made the swap
	case <-time.After(volumes.ConfiguredPatience):
	}
	device, err := volumes.ResumeDevice("/sys")
	if err != nil {
		m.log.Consolef("the sleep key is ignored: %v", err)
		return
	}
	m.log.Consolef("hibernating to %s", device)
	begin := boottime.Now()
	if err := volumes.Suspend(device); err != nil {
		m.log.Consolef("cannot hibernate: %v", err)
		return
	}
	m.marks.Wake()
	if err := m.marks.Write(timeline.File); err != nil { // now: somebody may be in before the key of the launch came
		m.log.Consolef("timeline: %v", err)
	}
	m.log.Consolef("awake again, after %s", (boottime.Now() - begin).Round(time.Second))
	m.hooksMutex.Lock()
	defer m.hooksMutex.Unlock()
	for _, hook := range m.hooks {
		m.tasks.SpawnOptional("after the sleep", hook)
	}
}

// onResume registers a function to call after each resume; its error is logged.
func (m *machine) onResume(hook func() error) {
	m.hooksMutex.Lock()
	defer m.hooksMutex.Unlock()
	m.hooks = append(m.hooks, hook)
}
