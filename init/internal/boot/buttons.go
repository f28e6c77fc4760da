package boot

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// Of linux/input-event-codes.h and struct input_event on 64-bit machines.
const (
	evKey          = 1
	keyPower       = 116
	keySleep       = 142
	inputEventSize = 24
)

// buttonDelay is how long the buttons may wait for a boot that does not get to sshd.
const buttonDelay = 5 * time.Second

// watchButtons turns a press of the ACPI power button, which is how EC2 stops an instance, into a shutdown, and one of
// the sleep button, which is how it hibernates one, into that. It lets the way to sshd and to the first login go
// first: the modules cost time on a processor that these need.
func (m *machine) watchButtons() error {
	select {
	case <-m.serving:
		m.awaitLogin(loginDelay)
	case <-time.After(buttonDelay):
	}
	if tree, err := m.modules(); err == nil {
		for _, name := range []string{"evdev", "button"} {
			if err := tree.Load(name); err != nil && !errors.Is(err, os.ErrNotExist) {
				m.log.Consolef("power button: %v", err)
			}
		}
	}
	devices, err := filepath.Glob("/dev/input/event*")
	if err != nil || len(devices) == 0 {
		m.log.Consolef("no power button: stopping the machine will take as long as its host waits")
		return err
	}
	sleep := make(chan struct{}) // without a buffer: a key that is pressed while the machine goes to sleep is lost
	m.tasks.Spawn("sleep", func() error {
		for range sleep {
			m.hibernate()
		}
		return nil
	})
	for _, device := range devices {
		// Non-blocking, so that the Go runtime polls it and no thread waits in read.
		file, err := os.OpenFile(device, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			m.log.Consolef("power button: %v", err)
			continue
		}
		m.tasks.Spawn("events of "+device, func() error {
			defer file.Close()
			buffer := make([]byte, 64*inputEventSize)
			for {
				length, err := file.Read(buffer)
				if err != nil {
					m.log.Journalf("power button: %v", err) // a keyboard was taken away
					return nil
				}
				keys := pressed(buffer[:length])
				if slices.Contains(keys, keyPower) {
					m.powerOff("the power button was pressed")
				}
				if slices.Contains(keys, keySleep) {
					select {
					case sleep <- struct{}{}:
					default:
					}
				}
			}
		})
	}
	return nil
}

// pressed returns the keys that go down in a row of struct input_event.
func pressed(events []byte) (keys []uint16) {
	for ; len(events) >= inputEventSize; events = events[inputEventSize:] {
		kind := binary.NativeEndian.Uint16(events[16:])
		code := binary.NativeEndian.Uint16(events[18:])
		value := binary.NativeEndian.Uint32(events[20:])
		if kind == evKey && value == 1 {
			keys = append(keys, code)
		}
	}
	return keys
}
