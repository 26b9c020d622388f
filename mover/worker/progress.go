package worker

import (
	"context"
	"io"
	"time"

	"github.com/go-logr/logr"

	"github.com/blockmover/blockmover/internal/task"
)

// progressInterval is shorter than the interval at which the manager looks.
const progressInterval = 2 * time.Second

// publish writes what read returns to the log of the pod: at each interval and after each now, if it
// has changed, and a last time when ctx ends.
func publish(ctx context.Context, log logr.Logger, out io.Writer, interval time.Duration, now <-chan struct{}, read func() task.Progress) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	var published task.Progress
	write := func() {
		p := read()
		if p == published {
			return
		}
		line, err := p.Line()
		if err == nil {
			_, err = io.WriteString(out, line+"\n")
		}
		if err != nil {
			log.Info("Cannot publish progress", "severity", "warning", "error", err.Error())
			return
		}
		published = p
	}
	for {
		select {
		case <-ctx.Done():
			write()
			return
		case <-now:
			write()
		case <-ticker.C:
			write()
		}
	}
}
