package boottime

import (
	"testing"
	"time"
)

func TestNowRuns(t *testing.T) {
	first := Now()
	time.Sleep(2 * time.Millisecond)
	if second := Now(); first <= 0 || second-first < 2*time.Millisecond {
		t.Fatalf("%v, then %v", first, second)
	}
}
