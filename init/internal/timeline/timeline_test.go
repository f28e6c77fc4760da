package timeline

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"instantenv/init/internal/boottime"
)

func TestTimeline(t *testing.T) {
	now := 800 * time.Millisecond
	marks := New(func() time.Duration { now += 1500 * time.Microsecond; return now }, true)
	first := marks.Mark("init_start")
	mounted := marks.Stage("mounts")
	marks.Stage("network")
	mounted()
	again := marks.Mark("init_start")
	marks.MarkReads("init_start", DiskReads{Requests: 3, Bytes: 12288})
	want := `{"version":2,"clock":"CLOCK_BOOTTIME","pid1":true,"marks":[{"name":"init_start","boottime_ms":801.5}],` +
		`"stages":[{"name":"mounts","start_ms":803,"end_ms":806},{"name":"network","start_ms":804.5,"end_ms":null}],` +
		`"root_reads":[{"mark":"init_start","requests":3,"bytes":12288}]}`
	if !json.Valid(New(boottime.Now, false).JSON()) {
		t.Error("an empty one is not JSON")
	}
	if got := string(marks.JSON()); got != want || !first || again {
		t.Errorf("%v, %v\ngot  %s\nwant %s", first, again, got, want)
	}
}

func TestTimelineOfWaking(t *testing.T) {
	now := time.Duration(0)
	marks := New(func() time.Duration { now += time.Millisecond; return now }, true)
	for _, name := range []string{"init_start", KeyWritten, "first_login"} {
		marks.Mark(name)
	}
	for range 2 {
		marks.Wake()
		if !marks.Mark(KeyWritten) {
			t.Error("the key that came after the sleep is not recorded")
		}
	}
	if marks.Mark("init_start") || marks.Mark("first_login") {
		t.Error("what happens once is recorded twice")
	}
	want := `"marks":[{"name":"init_start","boottime_ms":1},{"name":"first_login","boottime_ms":3},` +
		`{"name":"resumed","boottime_ms":6},{"name":"key_written","boottime_ms":7}]`
	if got := string(marks.JSON()); !strings.Contains(got, want) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestParseDiskStat(t *testing.T) {
	line := "     435      599    42294     1025       73       96     1344      393        0      992     1497"
	if got, err := parseDiskStat(line); got != (DiskReads{Requests: 435, Bytes: 42294 * 512}) || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	for _, line := range []string{"", "1 2", "x 2 3", "1 2 x"} {
		if got, err := parseDiskStat(line); err == nil {
			t.Errorf("%q: got %+v", line, got)
		}
	}
}
