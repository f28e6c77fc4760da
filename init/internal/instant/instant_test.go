package instant

import (
	"math/rand"
	"testing"
	"time"
)

const httpDate = "Mon, 02 Jan 2006 15:04:05 GMT"

// Both forms of random times, from the year 0 to 9999, against package time.
func TestReadsWhatPackageTimeWrites(t *testing.T) {
	numbers := rand.New(rand.NewSource(1))
	first, last := time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC).Unix(), time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC).Unix()
	for range 20_000 {
		zone := time.FixedZone("", (numbers.Intn(2*1439)-1439)*60)
		want := time.Unix(first+86400+numbers.Int63n(last-first), 0).In(zone)
		if got, err := ParseRFC3339(want.Format(time.RFC3339)); err != nil || !got.Equal(want) {
			t.Fatalf("%s: %v, %v", want.Format(time.RFC3339), got, err)
		}
		if got, err := ParseHTTP(want.UTC().Format(httpDate)); err != nil || !got.Equal(want) {
			t.Fatalf("%s: %v, %v", want.UTC().Format(httpDate), got, err)
		}
	}
}

func TestEveryDayOfFourCenturies(t *testing.T) {
	for day := time.Date(1999, 12, 31, 0, 0, 0, 0, time.UTC); day.Year() < 2401; day = day.AddDate(0, 0, 1) {
		if got, err := ParseRFC3339(day.Format(time.RFC3339)); err != nil || !got.Equal(day) {
			t.Fatalf("%v: %v, %v", day, got, err)
		}
	}
}

func TestAFractionIsDropped(t *testing.T) {
	got, err := ParseRFC3339("2026-11-21T18:00:00.999+01:00")
	if want := time.Date(2026, 11, 21, 17, 0, 0, 0, time.UTC); err != nil || !got.Equal(want) {
		t.Errorf("%v, %v", got, err)
	}
}

// FuzzAgainstPackageTime: what is a time for one is the same time for the other. Package time also reads a fraction after a
// comma, and single digits of an hour, with a blank before them too: such a text is not what package time would write.
func FuzzAgainstPackageTime(f *testing.F) {
	for _, text := range []string{
		"", "2026-11-21T18:00:00Z", "2026-11-21T18:00:00.5Z", "2026-02-29T00:00:00Z", "2024-02-29T23:59:59-00:30", "2026-13-01T00:00:00Z",
		"2026-11-21T24:00:00Z", "2026-11-21T18:60:00Z", "2026-11-21T18:00:60Z", "2026-11-21T18:00:00", "2026-11-21T18:00:00Z ",
		"2026-11-21T18:00:00.Z", "2026-11-00T18:00:00Z", "2026-04-31T18:00:00Z", "2026-11-21t18:00:00z", "+026-11-21T18:00:00Z",
		"Sat, 21 Nov 2026 18:00:00 GMT", "Sat, 21 Nox 2026 18:00:00 GMT", "Sat, 31 Nov 2026 18:00:00 GMT", "Sat, 21 an  2026 18:00:00 GMT",
		"Sat, 21 Nov 2026 18:00:00 CET", "21 Nov 2026 18:00:00 GMT", "Sat, 21",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if got, err := ParseRFC3339(text); err == nil {
			want, wantErr := time.Parse(time.RFC3339, text)
			if wantErr != nil || !got.Equal(want.Truncate(time.Second)) && got.Year() > 0 {
				t.Errorf("%q: %v; package time: %v, %v", text, got, want, wantErr)
			}
		} else if _, other := time.Parse("2006-01-02T15:04:05Z", text); other == nil && len(text) == len("2006-01-02T15:04:05Z") {
			t.Errorf("%q: refused", text)
		}
		if got, err := ParseHTTP(text); err == nil && len(text) == len(httpDate) {
			if want, wantErr := time.Parse("02 Jan 2006 15:04:05 GMT", text[5:]); wantErr != nil || !got.Equal(want) {
				t.Errorf("%q: %v; package time: %v, %v", text, got, want, wantErr)
			}
		} else if same, other := time.Parse(httpDate, text); other == nil && same.Format(httpDate)[5:] == text[5:] {
			t.Errorf("%q: refused", text)
		}
	})
}
