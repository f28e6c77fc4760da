package userdata

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"instantenv/init/internal/inittest"
	"instantenv/init/internal/logging"
)

// A life is a machine's clocks, and a lifetime that goes by them.
type life struct {
	boot time.Duration // CLOCK_BOOTTIME
	wall time.Time     // the machine's time of day
	date time.Time     // the metadata service's
	log  bytes.Buffer
	*Lifetime
}

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func begin(data Data, dated bool) *life {
	l := &life{boot: 10 * time.Second, wall: noon}
	if dated {
		l.date = noon
	}
	l.Lifetime = &Lifetime{
		clock: func() time.Duration { return l.boot }, now: func() time.Time { return l.wall }, ttl: data.TTL,
		log: &logging.Logger{Journal: &l.log},
	}
	l.expires.set(data.ExpiresAt, l.boot, l.date, l.now)
	return l
}

// pass lets time pass for all clocks.
func (l *life) pass(d time.Duration) {
	l.boot += d
	l.wall = l.wall.Add(d)
	if !l.date.IsZero() {
		l.date = l.date.Add(d)
	}
}

// handOver leaves a mark, and has it seen.
func (l *life) handOver(until, replaces string) {
	text := `{"version": 1, "lease": "lease-1", "expires_at": "` + until + `", "replaces": "` + replaces + `"}`
	if err := os.WriteFile(l.markFile, []byte(text), 0o644); err != nil {
		panic(err)
	}
	l.look()
}

func in(d time.Duration) string { return noon.Add(d).Format(time.RFC3339) }

func TestLifetime(t *testing.T) {
	for _, test := range []struct {
		name   string
		data   Data
		silent bool // the service does not tell its time
		happen func(l *life)
		end    time.Duration // on CLOCK_BOOTTIME, 0: never
		why    string
	}{
		{name: "none"},
		{name: "ttl_s", data: Data{TTL: time.Hour}, end: time.Hour, why: "ttl_s 3600"},
		{name: "expires_at", data: Data{ExpiresAt: noon.Add(time.Hour)}, end: time.Hour + 10*time.Second, why: "expires_at"},
		{name: "the earlier one, ttl_s", data: Data{TTL: time.Minute, ExpiresAt: noon.Add(time.Hour)}, end: time.Minute, why: "ttl_s"},
		{name: "the earlier one, expires_at", data: Data{TTL: time.Hour, ExpiresAt: noon.Add(time.Minute)}, end: 70 * time.Second, why: "expires_at"},
		{
			name: "centuries away, which stands for never",
			data: Data{ExpiresAt: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)}, end: math.MaxInt64, why: "expires_at",
		},
		{name: "in the past", data: Data{ExpiresAt: noon.Add(-time.Hour)}, end: 1, why: "expires_at"},
		{
			name: "a tag extends", data: Data{TTL: time.Minute}, end: time.Hour + 10*time.Second, why: "tag",
			happen: func(l *life) { l.pass(30 * time.Second); l.update(l.date, in(time.Hour)) },
		},
		{
			name: "a tag shortens", data: Data{TTL: time.Hour}, end: 70 * time.Second, why: "tag",
			happen: func(l *life) { l.update(l.date, in(time.Minute)) },
		},
		{
			name: "a tag moves", end: 130 * time.Second, why: "tag",
			happen: func(l *life) { l.update(l.date, in(time.Minute)); l.update(l.date, in(2*time.Minute)) },
		},
		{
			name: "a tag goes", data: Data{TTL: time.Hour}, end: time.Hour, why: "ttl_s",
			happen: func(l *life) { l.update(l.date, in(time.Minute)); l.update(l.date, "") },
		},
		{
			name: "a bad tag changes nothing", data: Data{TTL: time.Hour}, end: time.Minute + 10*time.Second, why: "tag",
			happen: func(l *life) { l.update(l.date, in(time.Minute)); l.update(l.date, "tomorrow") },
		},
		{
			name: "the machine's clock steps", data: Data{ExpiresAt: noon.Add(time.Hour)}, end: time.Hour + 10*time.Second, why: "expires_at",
			happen: func(l *life) { l.wall = noon.Add(24 * time.Hour); l.pass(time.Minute); l.update(l.date, "") },
		},
		{
			name: "the machine's clock was wrong", end: time.Hour + 10*time.Second, why: "tag",
			happen: func(l *life) { l.wall = time.Unix(0, 0); l.update(l.date, in(time.Hour)) },
		},
		{
			name: "CLOCK_BOOTTIME missed a sleep", data: Data{ExpiresAt: noon.Add(time.Hour)}, end: 10*time.Minute + 10*time.Second, why: "expires_at",
			happen: func(l *life) { l.date = l.date.Add(50 * time.Minute); l.update(l.date, "") },
		},
		{
			name: "the service does not tell its time", silent: true, data: Data{ExpiresAt: noon.Add(time.Hour)}, end: time.Hour + 10*time.Second, why: "expires_at",
			happen: func(l *life) { l.wall = noon.Add(-24 * time.Hour); l.pass(time.Minute); l.update(l.date, "") },
		},
		{
			name: "nor for a tag", silent: true, end: time.Hour + 10*time.Second, why: "tag",
			happen: func(l *life) {
				l.update(l.date, in(time.Hour))
				l.wall = noon.Add(24 * time.Hour)
				l.update(l.date, in(time.Hour))
			},
		},
		{
			name: "a hand-over shortens a pool's life while the tag is the pool's", end: 10*time.Minute + 10*time.Second, why: "handed over",
			happen: func(l *life) {
				l.update(l.date, in(12*time.Hour))
				l.handOver(in(10*time.Minute), in(12*time.Hour))
				l.pass(time.Minute)
				l.update(l.date, in(12*time.Hour))
			},
		},
		{
			name: "the tag rules once it has another value", end: time.Hour + 10*time.Second, why: "tag",
			happen: func(l *life) { l.handOver(in(10*time.Minute), in(12*time.Hour)); l.update(l.date, in(time.Hour)) },
		},
		{
			name: "an earlier one, too", end: time.Minute + 10*time.Second, why: "tag",
			happen: func(l *life) { l.handOver(in(10*time.Minute), in(12*time.Hour)); l.update(l.date, in(time.Minute)) },
		},
		{
			name: "a hand-over of a machine without a tag", data: Data{TTL: 12 * time.Hour}, end: 10*time.Minute + 10*time.Second, why: "handed over",
			happen: func(l *life) { l.handOver(in(10*time.Minute), "") },
		},
		{
			name: "a bad tag leaves the hand-over's end", end: 10*time.Minute + 10*time.Second, why: "handed over",
			happen: func(l *life) {
				l.update(l.date, in(12*time.Hour))
				l.handOver(in(10*time.Minute), in(12*time.Hour))
				l.update(l.date, "tomorrow")
			},
		},
		{
			name: "a tag of another zone is the same time", end: 10*time.Minute + 10*time.Second, why: "handed over",
			happen: func(l *life) {
				l.handOver(in(10*time.Minute), noon.Add(12*time.Hour).In(time.FixedZone("", 3600)).Format(time.RFC3339))
				l.update(l.date, in(12*time.Hour))
			},
		},
		{
			name: "the hand-over's end goes by the service's clock", end: 10*time.Minute + 10*time.Second, why: "handed over",
			happen: func(l *life) {
				l.update(l.date, in(12*time.Hour))
				l.wall = noon.Add(24 * time.Hour)
				l.pass(3 * time.Second)
				l.handOver(in(10*time.Minute), in(12*time.Hour))
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := begin(test.data, !test.silent)
			l.markFile = filepath.Join(t.TempDir(), "handed-out")
			if test.happen != nil {
				test.happen(l)
			}
			end, why := l.end()
			if end != test.end || !strings.Contains(why, test.why) {
				t.Errorf("end %v because %q, want %v because of %q", end, why, test.end, test.why)
			}
		})
	}
}

func TestLifetimeSaysABadTagOnce(t *testing.T) {
	l := begin(Data{}, true)
	for range 3 {
		l.update(l.date, "tomorrow")
	}
	if got := strings.Count(l.log.String(), "tomorrow"); got != 1 {
		t.Errorf("said %d times: %q", got, l.log.String())
	}
}

// ask is a question for the tag that is answered at once.
func (l *life) ask(tag string) {
	l.update(l.date, tag)
	l.answered(l.boot)
}

func TestAwait(t *testing.T) {
	l := begin(Data{TTL: time.Minute}, true)
	naps := 0
	why := l.Await(func(d time.Duration) {
		naps++
		switch naps {
		case 3:
			l.ask(in(time.Hour)) // extended
		case 5:
			l.pass(2 * time.Hour) // asleep meanwhile
		case 6:
			l.ask(in(time.Hour)) // as before
		case 7:
			t.Fatal("the end was not noticed after the sleep")
		}
		l.pass(d)
	})
	if !strings.Contains(why, "tag") || naps != 6 {
		t.Errorf("%q after %d naps", why, naps)
	}
	if !strings.Contains(l.log.String(), "powering off in 50s: user data says ttl_s 60") {
		t.Errorf("log %q", l.log.String())
	}
}

// await runs until the time is up, and returns for how long that was since the nap in which the machine slept.
func (l *life) await(asleepFrom int, asleepFor time.Duration, after func(awake int)) (time.Duration, string) {
	naps := 0
	var woke time.Duration
	why := l.Await(func(d time.Duration) {
		naps++
		l.pass(d)
		if naps == asleepFrom {
			l.pass(asleepFor)
			woke = l.boot
		}
		after(naps - asleepFrom)
	})
	return l.boot - woke, why
}

func TestAHandOverIsSeenWhileTheMachineRuns(t *testing.T) {
	l := begin(Data{}, true)
	l.markFile = filepath.Join(t.TempDir(), "handed-out")
	l.ask(in(12 * time.Hour))
	naps := 0
	why := l.Await(func(d time.Duration) {
		if naps++; naps == 3 {
			l.pass(d)
			text := `{"lease": "lease-1", "expires_at": "` + in(time.Minute) + `", "replaces": "` + in(12*time.Hour) + `"}`
			if err := os.WriteFile(l.markFile, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			return
		}
		l.pass(d)
		l.ask(in(12 * time.Hour))
	})
	if !strings.Contains(why, "handed over until "+in(time.Minute)) || l.boot < 70*time.Second || l.boot > 72*time.Second {
		t.Errorf("off at %s: %q", l.boot, why)
	}
}

// After a restart the hand-over's end may have passed long ago, and the lease was extended by its tag.
func TestAfterARestartTheTagOfALeaseIsReadFirst(t *testing.T) {
	l := begin(Data{}, true)
	l.markFile = filepath.Join(t.TempDir(), "handed-out")
	l.handOver(in(-time.Hour), in(-2*time.Hour))
	_, why := l.await(0, 0, func(naps int) {
		if naps == 2 {
			l.ask(in(time.Hour))
		}
	})
	if l.boot < time.Hour || !strings.Contains(why, "tag") {
		t.Errorf("off at %s: %q", l.boot, why)
	}
}

func TestAnEndThatPassedDuringASleepCountsOnceTheTagWasRead(t *testing.T) {
	l := begin(Data{}, true)
	l.ask(in(time.Minute))
	lived, why := l.await(3, time.Hour, func(awake int) {
		if awake == 4 {
			l.ask(in(2 * time.Hour)) // renewed before the start
		}
	})
	if lived < 50*time.Minute || !strings.Contains(why, in(2*time.Hour)) {
		t.Errorf("off %s after it woke up: %q", lived, why)
	}
}

func TestAnEndThatPassedDuringASleepCountsWithoutTheService(t *testing.T) {
	l := begin(Data{}, true)
	l.ask(in(time.Minute))
	lived, why := l.await(3, time.Hour, func(int) {})
	if lived < answerLimit || lived > answerLimit+2*time.Second || !strings.Contains(why, "tag") {
		t.Errorf("off %s after it woke up: %q", lived, why)
	}
}

func TestAnEndOfUserDataThatPassedWhileTheMachineWasStoppedWaitsForTheTag(t *testing.T) {
	l := begin(Data{ExpiresAt: noon.Add(-time.Hour)}, true)
	_, why := l.await(0, 0, func(naps int) {
		if naps == 2 {
			l.ask(in(time.Hour))
		}
	})
	if l.boot < time.Hour || !strings.Contains(why, "tag") {
		t.Errorf("off at %s: %q", l.boot, why)
	}
}

func TestWatch(t *testing.T) {
	_, client := inittest.Serve(t, map[string][]string{expiryTagPath: {in(time.Hour)}})
	l := begin(Data{}, true)
	l.Lifetime.now = time.Now
	go l.Watch(client)
	inittest.WaitFor(t, "the tag to be seen", func() bool {
		l.mutex.Lock()
		defer l.mutex.Unlock()
		at, _ := l.end()
		return at != 0
	})
}
