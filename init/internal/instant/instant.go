// Package instant reads the two forms of a time of day that process 1 meets. It stands in for time.Parse, whose layouts make
// the binary larger by 25 kB.
package instant

import (
	"errors"
	"strings"
	"time"
)

var errForm = errors.New("not a time of this form")

// ParseRFC3339 reads 2026-11-21T18:00:00Z, or with an offset as +01:00 instead of the Z. A fraction of a second is
// dropped.
func ParseRFC3339(text string) (time.Time, error) {
	r := reader{rest: text}
	year := r.number(4)
	r.word("-")
	month := r.number(2)
	r.word("-")
	day := r.number(2)
	r.word("T")
	seconds := r.clock()
	if strings.HasPrefix(r.rest, ".") {
		r.rest = r.rest[1:]
		r.number(1)
		r.rest = strings.TrimLeft(r.rest, "0123456789")
	}
	return r.time(year, month, day, seconds-r.offset())
}

// ParseHTTP reads IMF-fixdate of RFC 9110, section 5.6.7: Sat, 21 Nov 2026 18:00:00 GMT. The day of the week is not
// compared with the date.
func ParseHTTP(text string) (time.Time, error) {
	_, date, _ := strings.Cut(text, ", ")
	r := reader{rest: date}
	day := r.number(2)
	name := r.rest[:min(5, len(r.rest))]
	month, ok := strings.Index(" Jan  Feb  Mar  Apr  May  Jun  Jul  Aug  Sep  Oct  Nov  Dec ", name), len(name) == 5
	r.bad = r.bad || !ok || month < 0 || month%5 != 0
	r.word(name)
	year := r.number(4)
	r.word(" ")
	seconds := r.clock()
	r.word(" GMT")
	return r.time(year, month/5+1, day, seconds)
}

// A reader goes through a text, and remembers that something was not what it should be.
type reader struct {
	rest string
	bad  bool
}

func (r *reader) word(expected string) {
	rest, found := strings.CutPrefix(r.rest, expected)
	r.rest, r.bad = rest, r.bad || !found
}

func (r *reader) number(digits int) (value int) {
	if len(r.rest) < digits {
		r.rest, r.bad = "", true
		return 0
	}
	for _, c := range []byte(r.rest[:digits]) {
		r.bad = r.bad || c < '0' || c > '9'
		value = value*10 + int(c-'0')
	}
	r.rest = r.rest[digits:]
	return value
}

// within is a number of two digits below a limit.
func (r *reader) within(limit int) int {
	value := r.number(2)
	r.bad = r.bad || value >= limit
	return value
}

// clock is the time of day in seconds.
func (r *reader) clock() int {
	hours := r.within(24)
	r.word(":")
	minutes := r.within(60)
	r.word(":")
	return hours*3600 + minutes*60 + r.within(60)
}

// offset is that of the zone, in seconds.
func (r *reader) offset() int {
	sign := 1
	switch {
	case strings.HasPrefix(r.rest, "-"):
		sign = -1
	case !strings.HasPrefix(r.rest, "+"):
		r.word("Z")
		return 0
	}
	r.rest = r.rest[1:]
	hours := r.within(24)
	r.word(":")
	return sign * (hours*3600 + r.within(60)*60)
}

// time adds seconds to a day of the Gregorian calendar, unless there is no such day or the text goes on.
func (r *reader) time(year, month, day, seconds int) (time.Time, error) {
	if r.bad || r.rest != "" || month < 1 || month > 12 || day < 1 || day > length(year, month) {
		return time.Time{}, errForm
	}
	// Years begin in March here, so a leap day is the last day of its year, and months follow a pattern of 153 days in five.
	if month < 3 {
		year, month = year-1, month+12
	}
	year += 400 // none is negative
	days := 365*year + year/4 - year/100 + year/400 + (153*month-457)/5 + day - 306
	const epoch = 719163 + 146097 // 1 January 1970, and the 400 years
	return time.Unix(int64(days-epoch)*86400+int64(seconds), 0).UTC(), nil
}

// length is a month's, in days.
func length(year, month int) int {
	if month == 2 {
		if year%4 == 0 && year%100 != 0 || year%400 == 0 {
			return 29
		}
		return 28
	}
	return 30 + (month+month/8)%2
}
