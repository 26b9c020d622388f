package phase_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/phase"
)

var (
	start  = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	limits = phase.Limits{
		Secure: 10 * time.Minute, Prepare: 30 * time.Minute, Deliver: 5 * time.Minute, Release: time.Minute,
		Attempts: 3, Patience: time.Hour, Backoff: 5 * time.Second,
	}
)

// at returns an observation some time after the start, in a first attempt.
func at(after time.Duration, change func(o *phase.Observation)) phase.Observation {
	o := phase.Observation{Now: start.Add(after), Created: start, Accepted: start, Attempt: phase.Attempt{Number: 1}}
	if change != nil {
		change(&o)
	}
	return o
}

func work(s phase.State, detail string) func(o *phase.Observation) {
	return func(o *phase.Observation) { o.Work = phase.Work{State: s, Detail: detail} }
}

func outcome(p phase.Phase, change func(o *phase.Observation)) func(o *phase.Observation) {
	return func(o *phase.Observation) {
		o.Outcome = &phase.Outcome{Phase: p, At: start}
		o.Committed, o.Delivered = true, true
		if change != nil {
			change(o)
		}
	}
}

func TestNext(t *testing.T) {
	for name, tc := range map[string]struct {
		current phase.Phase
		o       phase.Observation
		want    phase.Phase
		outcome phase.Phase
		attempt int
		message string
		after   time.Duration
	}{
		"new waits for its source": {
			o: at(time.Minute, work(phase.Waiting, "snapshot not ready")), want: phase.New, message: "snapshot not ready", after: 9 * time.Minute,
		},
		"new gives up on its source": {
			o:    at(10*time.Minute, work(phase.Waiting, "snapshot not ready")),
			want: phase.New, outcome: phase.Failed, message: "could not start within 10m0s: snapshot not ready",
		},
		"new waits for a slot as long as it takes": {
			o:    at(100*time.Hour, work(phase.Secured, "")),
			want: phase.New, message: "queued: as many operations run as the configuration allows",
		},
		"new with a slot": {
			o:    at(time.Minute, func(o *phase.Observation) { o.Work.State, o.Slot = phase.Secured, true }),
			want: phase.Accepted,
		},
		"new with a broken source": {
			o: at(0, work(phase.Broken, "vanished")), want: phase.New, outcome: phase.Failed, message: "vanished",
		},
		"new canceled": {
			o:    at(0, func(o *phase.Observation) { o.Cancel = true }),
			want: phase.Canceling, outcome: phase.Canceled, message: "canceled on request",
		},
		"accepted waits": {
			current: phase.Accepted, o: at(10*time.Minute, work(phase.Waiting, "unschedulable")),
			want: phase.Accepted, message: "unschedulable", after: 20 * time.Minute,
		},
		"accepted and scheduled": {
			current: phase.Accepted, o: at(0, work(phase.Scheduled, "starts")), want: phase.Prepared, message: "starts", after: 30 * time.Minute,
		},
		"accepted and running": {
			current: phase.Accepted, o: at(0, work(phase.Running, "")), want: phase.InProgress, attempt: 1,
		},
		"accepted and over already": {
			current: phase.Accepted, o: at(0, work(phase.Succeeded, "")), want: phase.InProgress, outcome: phase.Completed,
		},
		"prepared for too long": {
			current: phase.Prepared, o: at(30*time.Minute, work(phase.Scheduled, "ImagePullBackOff")),
			want: phase.Prepared, outcome: phase.Failed, message: "no mover pod runs 30m0s after it was asked for: ImagePullBackOff",
		},
		"in progress runs as long as it takes": {
			current: phase.InProgress,
			o: at(100*time.Hour, func(o *phase.Observation) {
				o.Work.State, o.Attempt.Started = phase.Running, true
			}),
			want: phase.InProgress,
		},
		"in progress failed": {
			current: phase.InProgress, o: at(0, work(phase.Broken, "read device: EIO")),
			want: phase.InProgress, outcome: phase.Failed, message: "read device: EIO",
		},
		"in progress canceled": {
			current: phase.InProgress, o: at(0, func(o *phase.Observation) { o.Cancel = true }),
			want: phase.Canceling, outcome: phase.Canceled, message: "canceled on request",
		},
		"in progress canceled, and the image is saved": {
			current: phase.InProgress, o: at(0, func(o *phase.Observation) { o.Cancel, o.Committed, o.Work.State = true, true, phase.Succeeded }),
			want: phase.InProgress, outcome: phase.Completed,
		},
		"in progress canceled, and the image is not saved": {
			current: phase.InProgress, o: at(0, func(o *phase.Observation) { o.Cancel, o.Committed, o.Work.State = true, true, phase.Running }),
			want: phase.Canceling, outcome: phase.Canceled, message: "canceled on request",
		},
		"in progress canceled, and the volume of a restore is written": {
			current: phase.InProgress, o: at(0, func(o *phase.Observation) { o.Cancel, o.Work.State = true, phase.Succeeded }),
			want: phase.Canceling, outcome: phase.Canceled, message: "canceled on request",
		},
		"canceling without an outcome on record": {
			current: phase.Canceling, o: at(0, work(phase.Succeeded, "")),
			want: phase.Canceling, outcome: phase.Canceled, message: "canceled on request",
		},
		"pod lost": {
			current: phase.InProgress, o: at(time.Hour, work(phase.Lost, "evicted")),
			want: phase.InProgress, attempt: 2, message: "attempt 2 follows (1 of 3 without progress): evicted", after: 5 * time.Second,
		},
		"second attempt has its own time": {
			current: phase.InProgress,
			o: at(100*time.Hour, func(o *phase.Observation) {
				o.Attempt = phase.Attempt{Number: 2, Since: o.Now.Add(-time.Minute)}
				o.Work.Detail = "unschedulable"
			}),
			want: phase.InProgress, message: "unschedulable", after: 29*time.Minute + 5*time.Second,
		},
		"second attempt does not start": {
			current: phase.InProgress,
			o: at(100*time.Hour, func(o *phase.Observation) {
				o.Attempt = phase.Attempt{Number: 2, Since: o.Now.Add(-31 * time.Minute)}
				o.Work.Detail = "unschedulable"
			}),
			want: phase.InProgress, outcome: phase.Failed, message: "no mover pod runs 30m0s after it was asked for: unschedulable",
		},
		"last pod lost": {
			current: phase.InProgress,
			o: at(time.Hour, func(o *phase.Observation) {
				o.Attempt.Number, o.Attempt.Barren, o.Attempt.Lost = 3, 2, 2
				o.Work = phase.Work{State: phase.Lost, Detail: "evicted"}
			}),
			want: phase.InProgress, outcome: phase.Failed, message: "gave up after 3 attempts without progress: evicted",
		},
		"a step fails": {
			o:    at(100*time.Hour, work(phase.Unknown, "get VolumeSnapshot: timeout")),
			want: phase.New, attempt: 1, message: "get VolumeSnapshot: timeout",
		},
		"a step fails for as long as preparing may take": {
			current: phase.Accepted,
			o: at(100*time.Hour, func(o *phase.Observation) {
				o.Attempt.Trouble = o.Now.Add(-30 * time.Minute)
				o.Work = phase.Work{State: phase.Unknown, Detail: "denied by webhook"}
			}),
			want: phase.Accepted, outcome: phase.Failed, message: "failed again and again for 30m0s: denied by webhook",
		},
		"a quota has no limit": {
			current: phase.Accepted,
			o: at(100*time.Hour, func(o *phase.Observation) {
				o.Attempt.Trouble = o.Now.Add(-99 * time.Hour)
				o.Work = phase.Work{State: phase.Held, Detail: "exceeded quota"}
			}),
			want: phase.Accepted, message: "exceeded quota",
		},
		"limits start again after trouble": {
			current: phase.Accepted,
			o: at(100*time.Hour, func(o *phase.Observation) {
				o.Attempt.Trouble = o.Now.Add(-99 * time.Hour)
				o.Work.Detail = "the mover pod was created"
			}),
			want: phase.Accepted, attempt: 1, message: "the mover pod was created", after: 30 * time.Minute,
		},
		"completed waits for its release": {
			current: phase.InProgress,
			o:       at(10*time.Second, outcome(phase.Completed, func(o *phase.Observation) { o.Left = "pod a" })),
			want:    phase.InProgress, message: "pod a", after: 50 * time.Second,
		},
		"completed and released": {
			current: phase.InProgress, o: at(0, outcome(phase.Completed, func(o *phase.Observation) { o.Released = true })),
			want: phase.Completed,
		},
		"completed in spite of what is left": {
			current: phase.InProgress, o: at(time.Minute, outcome(phase.Completed, func(o *phase.Observation) { o.Left = "PVC a" })),
			want: phase.Completed, message: "left to be swept: PVC a",
		},
		"completed is not canceled any more": {
			current: phase.InProgress,
			o:       at(0, outcome(phase.Completed, func(o *phase.Observation) { o.Released, o.Cancel = true, true })),
			want:    phase.Completed,
		},
		"failed and released": {
			current: phase.Accepted,
			o: at(0, outcome(phase.Failed, func(o *phase.Observation) {
				o.Outcome.Message, o.Released, o.Delivered = "vanished", true, false
			})),
			want: phase.Failed, message: "vanished",
		},
		"canceled and released": {
			current: phase.Canceling, o: at(0, outcome(phase.Canceled, func(o *phase.Observation) { o.Released = true })),
			want: phase.Canceled,
		},
		"result waits for delivery": {
			current: phase.InProgress,
			o: at(2*time.Minute, outcome(phase.Completed, func(o *phase.Observation) {
				o.Committed, o.Delivered, o.Left = false, false, "detach"
			})),
			want: phase.InProgress, message: "detach", after: 3 * time.Minute,
		},
		"a result that is late is kept": {
			current: phase.InProgress,
			o: at(100*time.Hour, outcome(phase.Completed, func(o *phase.Observation) {
				o.Committed, o.Delivered, o.Left = false, false, "detach"
			})),
			want:    phase.InProgress,
			message: "the data is complete and is kept; since 2026-03-01T12:00:00Z it waits: detach",
		},
		"result cannot be delivered": {
			current: phase.InProgress,
			o: at(0, outcome(phase.Completed, func(o *phase.Observation) {
				o.Committed, o.Delivered = false, false
				o.Work = phase.Work{State: phase.Broken, Detail: "target deleted"}
			})),
			want: phase.InProgress, outcome: phase.Failed, message: "target deleted",
		},
		"result canceled before it is committed": {
			current: phase.InProgress,
			o: at(0, outcome(phase.Completed, func(o *phase.Observation) {
				o.Committed, o.Delivered, o.Cancel = false, false, true
			})),
			want: phase.Canceling, outcome: phase.Canceled, message: "canceled on request",
		},
		"result committed is not canceled": {
			current: phase.InProgress,
			o: at(0, outcome(phase.Completed, func(o *phase.Observation) {
				o.Delivered, o.Cancel, o.Left = false, true, "binding"
			})),
			want: phase.InProgress, message: "binding", after: 5 * time.Minute,
		},
		"completed stays": {current: phase.Completed, o: at(0, func(o *phase.Observation) { o.Cancel = true }), want: phase.Completed},
		"failed stays":    {current: phase.Failed, o: at(0, work(phase.Succeeded, "")), want: phase.Failed},
		"canceled stays":  {current: phase.Canceled, o: at(0, work(phase.Running, "")), want: phase.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			got := phase.Next(tc.current, tc.o, limits)
			require.Equal(t, tc.want, got.Next)
			require.Equal(t, tc.message, got.Message)
			require.Equal(t, tc.after, got.After)
			if tc.outcome == "" {
				require.Nil(t, got.Outcome)
			} else {
				require.NotNil(t, got.Outcome)
				require.Equal(t, phase.Outcome{Phase: tc.outcome, Message: tc.message, At: tc.o.Now}, *got.Outcome)
			}
			if tc.attempt == 0 {
				require.Nil(t, got.Attempt)
			} else {
				require.Equal(t, tc.attempt, got.Attempt.Number)
			}
		})
	}
}

// TestEveryPhaseEnds: from each phase, with the worst observations, time alone leads to a
// terminal phase.
func TestEveryPhaseEnds(t *testing.T) {
	for _, current := range []phase.Phase{"", phase.New, phase.Accepted, phase.Prepared, phase.InProgress, phase.Canceling} {
		t.Run("from "+string(current), func(t *testing.T) {
			o := at(0, nil)
			for range 10 {
				o.Now = o.Now.Add(24 * time.Hour)
				next := phase.Next(current, o, limits)
				current = next.Next
				if next.Outcome != nil {
					o.Outcome = next.Outcome
				}
				if current.Terminal() {
					return
				}
			}
			t.Fatalf("still %s", current)
		})
	}
}

func TestPause(t *testing.T) {
	for barren, want := range map[int]time.Duration{
		0: 5 * time.Second, 1: 5 * time.Second, 2: 10 * time.Second, 3: 20 * time.Second, 5: 80 * time.Second, 100: 80 * time.Second,
	} {
		require.Equal(t, want, limits.Pause(phase.Attempt{Number: 7, Barren: barren}), "%d barren attempts", barren)
	}
	require.Zero(t, limits.Pause(phase.Attempt{Number: 1}))
}

// TestAttemptsCountSinceProgress: an operation that comes further with each attempt has as
// many as it needs.
func TestAttemptsCountSinceProgress(t *testing.T) {
	o := at(0, work(phase.Lost, "evicted"))
	lose := func(done int64) phase.Transition {
		o.Now = o.Now.Add(time.Hour)
		o.Progress = done
		o.Attempt.BytesRead = 10
		next := phase.Next(phase.InProgress, o, limits)
		if next.Attempt != nil {
			require.True(t, next.Retry)
			o.Attempt = *next.Attempt
		}
		return next
	}
	for done := int64(1); done <= 20; done++ {
		require.Nil(t, lose(done).Outcome)
		require.Equal(t, 1, o.Attempt.Lost)
	}
	require.Equal(t, int64(200), o.Attempt.ReadBefore)
	require.Nil(t, lose(20).Outcome)
	require.Equal(t, 2, o.Attempt.Lost)
	got := lose(19)
	require.NotNil(t, got.Outcome)
	require.Equal(t, "gave up after 3 attempts without progress: evicted", got.Message)
}

// TestOutage: an object store may be away for Patience, however many attempts that takes.
func TestOutage(t *testing.T) {
	o := at(0, work(phase.Suspended, "connection refused"))
	for range 59 {
		next := phase.Next(phase.InProgress, o, limits)
		require.Nil(t, next.Outcome)
		require.Zero(t, next.Attempt.Lost)
		o.Attempt = *next.Attempt
		o.Now = o.Now.Add(time.Minute)
	}
	o.Progress = 1 // it came back, and went away again
	next := phase.Next(phase.InProgress, o, limits)
	require.Equal(t, o.Now, next.Attempt.Outage)
	o.Attempt = *next.Attempt
	o.Now = o.Now.Add(time.Hour)
	require.Equal(t, "gave up after 1h0m0s without an answer of the object store: connection refused", phase.Next(phase.InProgress, o, limits).Message)
}

func TestUnderway(t *testing.T) {
	for p, want := range map[phase.Phase]bool{
		"": false, phase.New: false, phase.Accepted: true, phase.Prepared: true, phase.InProgress: true, phase.Canceling: true,
		phase.Canceled: false, phase.Completed: false, phase.Failed: false,
	} {
		require.Equal(t, want, p.Underway(), p)
	}
}
