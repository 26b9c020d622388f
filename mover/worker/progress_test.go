package worker

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/task"
)

// output is a log that can be made to fail.
type output struct {
	mu      sync.Mutex
	text    bytes.Buffer
	failing atomic.Bool
	calls   atomic.Int32
}

func (o *output) Write(p []byte) (int, error) {
	o.calls.Add(1)
	if o.failing.Load() {
		return 0, errors.New("no space left on device")
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) last() task.Progress {
	o.mu.Lock()
	defer o.mu.Unlock()
	p, _ := task.LastProgress(o.text.String())
	return p
}

func (o *output) lines() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Count(o.text.String(), "\n")
}

func TestPublish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var done atomic.Int64
		out := &output{}
		now := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		go publish(ctx, logr.Discard(), out, time.Second, now, func() task.Progress { return task.Progress{Done: done.Load(), Total: 100} })
		time.Sleep(5500 * time.Millisecond)
		require.Equal(t, task.Progress{Total: 100}, out.last())
		require.Equal(t, 1, out.lines(), "progress that has not changed is published once")
		done.Store(40)
		time.Sleep(time.Second)
		require.Equal(t, task.Progress{Done: 40, Total: 100}, out.last())
		done.Store(50)
		now <- struct{}{}
		synctest.Wait()
		require.Equal(t, task.Progress{Done: 50, Total: 100}, out.last(), "it is published when asked for")
		done.Store(100)
		cancel()
		synctest.Wait()
		require.Equal(t, task.Progress{Done: 100, Total: 100}, out.last(), "the last progress is published at the end")
	})
}

func TestPublishFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var warnings atomic.Int32
		log := funcr.New(func(string, string) { warnings.Add(1) }, funcr.Options{})
		out := &output{}
		out.failing.Store(true)
		ctx, cancel := context.WithCancel(t.Context())
		go publish(ctx, log, out, time.Second, nil, func() task.Progress { return task.Progress{Done: 1, Total: 2} })
		time.Sleep(3500 * time.Millisecond)
		out.failing.Store(false)
		time.Sleep(time.Second)
		require.Equal(t, task.Progress{Done: 1, Total: 2}, out.last(), "it is published later")
		require.EqualValues(t, 3, warnings.Load())
		cancel()
		synctest.Wait()
	})
}

func TestStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l life
		stopped := make(chan error, 1)
		begun := time.Now()
		go l.watch(t.Context(), time.Minute, time.Second, func(err error) { stopped <- err })
		time.Sleep(59 * time.Second)
		l.beats.Add(1)
		require.ErrorIs(t, <-stopped, errStalled)
		require.InDelta(t, 2*time.Minute, time.Since(begun), float64(2*time.Second))
	})
}

// TestCutOff: a restore that does not reach the API server stops in time. A moment without it
// is no reason.
func TestCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		away := time.Now().Add(2 * time.Minute)
		stopped := make(chan error, 1)
		begun := time.Now()
		go watchAPI(t.Context(), time.Minute, time.Second, func(context.Context) error {
			if now := time.Since(begun); time.Now().After(away) || now > 10*time.Second && now < time.Minute {
				return errors.New("connection refused")
			}
			return nil
		}, func(err error) { stopped <- err })
		err := <-stopped
		require.ErrorIs(t, err, errCutOff)
		require.ErrorContains(t, err, "connection refused")
		require.InDelta(t, 3*time.Minute, time.Since(begun), float64(3*time.Second))
	})
}
