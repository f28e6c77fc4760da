package task

import (
	"strings"
	"testing"
)

func TestGuardTurnsAPanicIntoAnError(t *testing.T) {
	err := (&Group{}).guard("network", func() error { panic("slice out of luck") })
	if err == nil || !strings.Contains(err.Error(), "network: panic: slice out of luck") {
		t.Fatalf("got %v", err)
	}
}
