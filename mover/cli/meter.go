package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// How often progress is shown on a terminal, and in a log.
const (
	terminalInterval = 200 * time.Millisecond
	lineInterval     = 10 * time.Second
)

// barWidth leaves room for the numbers on a terminal of 80 columns.
const barWidth = 20

// startMeter shows progress until it is stopped: as a bar if out is a terminal, otherwise as
// lines.
func startMeter(out io.Writer, verb string, done, total func() int64) (stop func()) {
	f, ok := out.(*os.File)
	bar := ok && term.IsTerminal(int(f.Fd()))
	interval := lineInterval
	if bar {
		interval = terminalInterval
	}
	start := time.Now()
	stopping, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				show(out, bar, status(verb, done(), total(), time.Since(start)))
			case <-stopping:
				if bar {
					// Erase the bar.
					_, _ = fmt.Fprint(out, "\r\x1b[K")
				}
				return
			}
		}
	}()
	return func() {
		close(stopping)
		<-stopped
	}
}

func show(out io.Writer, bar bool, s meterStatus) {
	if bar {
		_, _ = fmt.Fprint(out, "\r\x1b[K"+s.bar()+s.String())
		return
	}
	printLine(out, "%s", s)
}

// meterStatus is the progress of an operation at one moment.
type meterStatus struct {
	verb        string
	done, total int64
	elapsed     time.Duration
}

func status(verb string, done, total int64, elapsed time.Duration) meterStatus {
	return meterStatus{verb: verb, done: min(done, total), total: total, elapsed: elapsed}
}

// bar is empty until the total is known.
func (s meterStatus) bar() string {
	if s.total == 0 {
		return ""
	}
	full := int(s.done * barWidth / s.total)
	return "[" + strings.Repeat("=", full) + strings.Repeat(" ", barWidth-full) + "] "
}

// String formats the numbers. The throughput is that of the whole operation so far. The
// estimate is made from it.
func (s meterStatus) String() string {
	if s.total == 0 {
		return s.verb + ": starting"
	}
	rate := float64(s.done) / s.elapsed.Seconds()
	text := fmt.Sprintf("%s: %s of %s (%d %%), %s/s", s.verb, formatBytes(s.done), formatBytes(s.total), s.done*100/s.total, formatBytes(int64(rate)))
	if s.done > 0 {
		left := time.Duration(float64(s.total-s.done) / rate * float64(time.Second))
		text += ", " + left.Round(time.Second).String() + " left"
	}
	return text
}
