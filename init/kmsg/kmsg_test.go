package kmsg

import (
	"syscall"
	"testing"
	"time"
)

func TestFindHandoff(t *testing.T) {
	const ours = "7,400,1500000,-;" + clockWords + "\n"
	const run = "6,339,900000,-;Run /usr/sbin/instant-init as init process\n"
	for _, test := range []struct {
		name    string
		records []string
		want    time.Duration
		fails   bool
	}{
		{name: "found", records: []string{
			"6,1,0,-;Linux version 6.1\n", run, "7,340,900001,-;  with arguments:\n SUBSYSTEM=none\n", ours, run,
		}, want: 1450 * time.Millisecond},
		{name: "overwritten records", records: []string{"", run, ours}, want: 1450 * time.Millisecond},
		{name: "not there", records: []string{"6,1,0,-;Run away\n", "junk", ";", "6,x,y,-;Run /a as init process\n", ours}, fails: true},
		{name: "our record is lost", records: []string{run}, fails: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := findHandoff(2050*time.Millisecond, func(buffer []byte) (int, error) {
				if len(test.records) == 0 {
					return 0, syscall.EAGAIN
				}
				record := test.records[0]
				test.records = test.records[1:]
				if record == "" {
					return 0, syscall.EPIPE
				}
				return copy(buffer, record), nil
			})
			if got != test.want || test.fails != (err != nil) {
				t.Errorf("got %v, %v; want %v", got, err, test.want)
			}
		})
	}
}
