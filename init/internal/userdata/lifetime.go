package userdata

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"instantenv/init/internal/boottime"
	"instantenv/init/internal/handover"
	"instantenv/init/internal/imds"
	"instantenv/init/internal/logging"
)

// expiryTagPath is where the tag is that says when the machine's time is up. It is there when the instance's metadata
// options allow tags in metadata.
const expiryTagPath = "/latest/meta-data/tags/instance/instant-env:expires-at"

// How often the clock and the tag are read. CLOCK_BOOTTIME runs on during hibernation and Go's timers do not, hence the
// short pauses.
const (
	clockPause = time.Second
	tagPause   = 5 * time.Second
	// sleepGap is a pause that took so long that the machine may have slept. A pause that is late for another reason
	// costs one question to the metadata service.
	sleepGap = clockPause + 2*time.Second
	// answerLimit is how long an end waits for the tag to be read, after a start and after a sleep.
	answerLimit = 30 * time.Second
)

// A Lifetime knows the machine's time limit: the tag's if there is one, otherwise the earlier one of user data.
//
// A machine that was handed over has the limit of its hand-over until the tag has another value than it had then: whoever
// handed it over may have failed before the tag was set, and a pool's machines live long.
//
// The end is a point of CLOCK_BOOTTIME, which cannot be set. Every answer of the metadata service has the service's time,
// by which a time of day is converted, so the machine's own clock may be wrong or jump. If the service sends no time, the
// machine's clock counts at the moment when a time of day is first seen.
type Lifetime struct {
	clock func() time.Duration // CLOCK_BOOTTIME
	now   func() time.Time     // the machine's time of day
	log   *logging.Logger

	mutex   sync.Mutex
	ttl     time.Duration // since the start of the kernel, which is when clock began
	expires expiry        // of user data
	tag     expiry
	handed  handover.Mark
	mark    expiry        // of the hand-over; none before it
	date    time.Time     // the service's time, by its newest answer that had it
	dated   time.Duration // when that was, on CLOCK_BOOTTIME
	asked   time.Duration // when the newest answered question for the tag was begun, on CLOCK_BOOTTIME
	badTag  string
	told    string

	markFile string
}

// An expiry is a time of day, and the point of CLOCK_BOOTTIME that it is.
type expiry struct {
	at  time.Time
	end time.Duration
}

// NewLifetime begins with what user data says; date is the service's time when it said so, or the zero time.
func NewLifetime(data Data, date time.Time, log *logging.Logger) *Lifetime {
	l := &Lifetime{clock: boottime.Now, now: time.Now, log: log, ttl: data.TTL, markFile: handover.File}
	l.date, l.dated = date, l.clock()
	l.expires.set(data.ExpiresAt, l.dated, date, l.now)
	return l
}

// Watch reads the tag for ever, at once for the first time.
func (l *Lifetime) Watch(client *imds.Client) {
	for {
		begun := l.clock()
		text, err := client.Get(expiryTagPath, time.Now())
		if err == nil || errors.Is(err, imds.ErrNotFound) {
			l.update(client.Date(), string(text)) // no text when there is no tag
			l.answered(begun)
		}
		time.Sleep(tagPause)
	}
}

// update is called with each answer of the service: its time, or the zero time, and the tag's value, or "".
func (l *Lifetime) update(date time.Time, text string) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	boot := l.clock()
	if !date.IsZero() {
		l.date, l.dated = date, boot
	}
	text = strings.TrimSpace(text)
	at := l.tag.at
	if text == "" {
		at = time.Time{}
	} else if parsed, err := parseInstant(text); err == nil {
		at = parsed
	} else if text != l.badTag {
		// Whatever held before still holds: a slip must not end the machine, nor let it live for ever.
		l.log.Consolef("tag instant-env:expires-at: %v", err)
		l.badTag = text
	}
	l.tag.set(at, boot, date, l.now)
	l.expires.set(l.expires.at, boot, date, l.now)
	l.mark.set(l.mark.at, boot, date, l.now)
	l.tell()
}

// look reads the mark of the hand-over, once there is one.
func (l *Lifetime) look() {
	if l.mark.end != 0 {
		return
	}
	l.handed, _ = handover.Read(l.markFile)
	boot, date := l.clock(), l.date
	if !date.IsZero() {
		date = date.Add(boot - l.dated)
	}
	l.mark.set(l.handed.ExpiresAt, boot, date, l.now)
	l.tell()
}

// set makes it the given time of day; date is the service's, if it is known.
func (e *expiry) set(at time.Time, boot time.Duration, date time.Time, now func() time.Time) {
	switch {
	case at.IsZero():
		*e = expiry{}
	case !date.IsZero():
		*e = expiry{at, later(boot, at.Sub(date))}
	case e.end == 0 || !at.Equal(e.at):
		*e = expiry{at, later(boot, at.Sub(now()))}
	}
}

// later is a point of CLOCK_BOOTTIME, at least 1, since 0 is none. A time that is centuries away (9999-12-31 for "never") is
// the longest Duration, to which nothing can be added.
func later(boot, left time.Duration) time.Duration {
	return max(min(left, math.MaxInt64-boot)+boot, 1)
}

// end is the point of CLOCK_BOOTTIME at which the time is up, 0 when it never is, and why.
func (l *Lifetime) end() (time.Duration, string) {
	switch {
	case l.mark.end != 0 && (l.tag.end == 0 || l.tag.at.Equal(l.handed.Replaces)):
		return l.mark.end, "it was handed over until " + l.mark.at.Format(time.RFC3339)
	case l.tag.end != 0:
		return l.tag.end, "the tag instant-env:expires-at says " + l.tag.at.Format(time.RFC3339)
	case l.expires.end != 0 && (l.ttl == 0 || l.expires.end < l.ttl):
		return l.expires.end, "user data says expires_at " + l.expires.at.Format(time.RFC3339)
	case l.ttl != 0:
		return l.ttl, fmt.Sprintf("user data says ttl_s %.0f", l.ttl.Seconds())
	}
	return 0, ""
}

// tell logs each change of the end.
func (l *Lifetime) tell() {
	end, why := l.end()
	if why == l.told {
		return
	}
	l.told = why
	if end == 0 {
		l.log.Consolef("no time limit any more")
		return
	}
	l.log.Journalf("powering off in %s: %s", (end - l.clock()).Round(time.Second), why)
}

// answered notes that a question for the tag, begun at a point of CLOCK_BOOTTIME, was answered.
func (l *Lifetime) answered(begun time.Duration) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.asked = begun
}

// Await returns the reason when the time is up. A machine that was stopped or asleep when its end passed may have been
// given a later one before it was started again: so, after a start and after a sleep, an end counts once the tag was read.
// It works without the metadata service, too: then the end counts after answerLimit.
func (l *Lifetime) Await(sleep func(time.Duration)) string {
	awake := l.clock() // since when the machine has been running
	for last := awake; ; {
		clock := l.clock()
		if clock-last > sleepGap {
			awake = clock
		}
		last = clock
		l.mutex.Lock()
		l.look()
		end, why := l.end()
		current := l.asked >= awake
		l.mutex.Unlock()
		if end != 0 && clock >= end && (current || clock-awake >= answerLimit) {
			return why
		}
		sleep(clockPause)
	}
}
