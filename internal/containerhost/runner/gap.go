package runner

import (
	"context"
	"time"
)

// Every probePause a published port is tried, each try for at most probeLimit.
const (
	probePause = 10 * time.Millisecond
	probeLimit = time.Second
)

// A prober measures for how long a published port accepted no connection.
type prober struct {
	cancel context.CancelFunc
	gap    chan float64
}

// startProber begins to try the first published port.
func (r *Runner) startProber(ctx context.Context) *prober {
	ctx, cancel := context.WithCancel(ctx)
	p := &prober{cancel, make(chan float64, 1)}
	if len(r.Settings.Ports) == 0 {
		p.gap <- -1
		return p
	}
	port := r.Settings.Ports[0].Host
	begin := time.Now()
	go func() {
		p.gap <- longestGap(begin, func() bool { return sleep(ctx, probePause) }, func() bool {
			ctx, cancel := context.WithTimeout(ctx, probeLimit)
			defer cancel()
			return r.Machine.Connect(ctx, port) == nil
		}, time.Now)
	}()
	return p
}

// stop ends the measurement and returns it in milliseconds.
func (p *prober) stop() float64 {
	p.cancel()
	return <-p.gap
}

// longestGap is the longest time from the first of some failed tries in a row to the next good one, in milliseconds: 0 when
// none failed. A failure that was not followed by a good try lasts until the end.
func longestGap(begin time.Time, next, try func() bool, now func() time.Time) float64 {
	var longest time.Duration
	lost, since := false, begin
	for {
		at := now()
		if try() {
			if lost {
				longest = max(longest, now().Sub(since))
			}
			lost = false
		} else if !lost {
			lost, since = true, at
		}
		if !next() {
			break
		}
	}
	if lost {
		longest = max(longest, now().Sub(since))
	}
	return float64(longest.Microseconds()) / 1000
}
