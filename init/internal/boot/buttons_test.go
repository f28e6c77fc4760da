package boot

import (
	"encoding/binary"
	"fmt"
	"testing"
)

func TestPressed(t *testing.T) {
	event := func(kind, code uint16, value uint32) string {
		raw := make([]byte, inputEventSize)
		binary.NativeEndian.PutUint16(raw[16:], kind)
		binary.NativeEndian.PutUint16(raw[18:], code)
		binary.NativeEndian.PutUint32(raw[20:], value)
		return string(raw)
	}
	for _, test := range []struct{ name, events, want string }{
		{"power", event(evKey, keyPower, 1) + event(0, 0, 0), "[116]"},
		{"sleep", event(evKey, keySleep, 1) + event(0, 0, 0), "[142]"},
		{"after others", event(0, 0, 0) + event(evKey, 30, 1) + event(evKey, keyPower, 1), "[30 116]"},
		{"released", event(evKey, keyPower, 0), "[]"},
		{"another kind", event(2, keyPower, 1), "[]"},
		{"cut off", event(evKey, keyPower, 1)[:20], "[]"},
		{"nothing", "", "[]"},
	} {
		if got := fmt.Sprint(pressed([]byte(test.events))); got != test.want {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}
