// Package phase is the life of one operation (a DataUpload or a DataDownload)
// as a pure function: the current phase and what was observed give the next
// phase, what to record, and when to look again.
//
//	New ──▶ Accepted ──▶ Prepared ──▶ InProgress ──▶ Completed
//	  │         │            │             ├───────▶ Failed
//	  └─────────┴────────────┴─────────────┴───────▶ Canceling ──▶ Canceled
//
// An operation ends in two steps. First its Outcome is decided and recorded,
// while everything that proves it still exists. Then what it used is released,
// and only then is the terminal phase set. So a crash at any point finds either
// the proof or the record of it, and a terminal operation leaves nothing behind
// unless the release itself ran out of time, which its message then says.
//
// Every state is bounded:
//
//	New                   Limits.Secure for the early steps; a wait for a free slot
//	                      is bounded by Velero's item operation timeout, which cancels
//	Accepted, Prepared    Limits.Prepare, per attempt
//	InProgress            the deadline of the mover pod, and Velero's item operation
//	                      timeout; a new attempt has Limits.Prepare to get going
//	outcome decided       Limits.Deliver for a result that has to reach its
//	                      destination yet, else Limits.Release
//
// The package is pure.
package phase

import (
	"fmt"
	"time"
)

// Phase is the value of status.phase of a DataUpload or DataDownload.
type Phase string

// The phases, as Velero spells them. A missing phase is New.
const (
	New        Phase = "New"
	Accepted   Phase = "Accepted"
	Prepared   Phase = "Prepared"
	InProgress Phase = "InProgress"
	Canceling  Phase = "Canceling"
	Canceled   Phase = "Canceled"
	Completed  Phase = "Completed"
	Failed     Phase = "Failed"
)

// Terminal reports whether an operation in this phase has ended.
func (p Phase) Terminal() bool { return p == Canceled || p == Completed || p == Failed }

// Underway reports whether an operation in this phase occupies a slot.
func (p Phase) Underway() bool {
	return p == Accepted || p == Prepared || p == InProgress || p == Canceling
}

// State says how far the work of an operation has come.
type State int

// The states of work.
const (
	// Waiting: something has to happen in the cluster first.
	Waiting State = iota
	// Secured: what the operation reads from is safe, and it may be exposed.
	Secured
	// Scheduled: the mover pod has its node and its volume.
	Scheduled
	// Running: the mover pod runs.
	Running
	// Succeeded: the mover pod reported success.
	Succeeded
	// Broken: the mover pod reported an error, or something is wrong that no
	// further attempt cures.
	Broken
	// Lost: the mover pod ended without a report, or is gone.
	Lost
)

// Work is the observed state of an operation's work. Detail is a text for
// people: what is waited for, what broke.
type Work struct {
	State  State
	Detail string
}

// Attempt is one mover pod's try. The first has number 1.
type Attempt struct {
	Number int `json:"number"`
	// Since is when the attempt was decided on; zero for the first one.
	Since time.Time `json:"since,omitzero"`
	// Started is set once the attempt's pod was seen running, so that a pod that
	// is not there is known to be gone and not merely to be made yet.
	Started bool `json:"started,omitempty"`
	// Reason says why the attempt before this one was lost.
	Reason string `json:"reason,omitempty"`
}

// Outcome is how an operation ends: decided once, replaced only when a result
// cannot be delivered or is canceled before it is.
type Outcome struct {
	// Phase is Completed, Failed or Canceled.
	Phase   Phase     `json:"phase"`
	Message string    `json:"message,omitempty"`
	At      time.Time `json:"at"`
}

// Observation is all that Next looks at.
type Observation struct {
	Now     time.Time
	Created time.Time
	// Accepted is when the operation was accepted; zero before.
	Accepted time.Time
	// Cancel is set when the operation is asked to end, or is being deleted.
	Cancel bool
	// Slot is set when the limits of concurrency allow one more operation.
	Slot bool
	// Work is observed as long as there is no Outcome.
	Work    Work
	Attempt Attempt
	// Outcome is what was decided before, or nil. The fields below it are observed
	// only when it is set.
	Outcome *Outcome
	// Committed is set when a completed result can no longer be taken back,
	// Delivered when it has reached its destination.
	Committed, Delivered bool
	// Released is set when nothing of the operation is left in the cluster; Left
	// names what is, otherwise.
	Released bool
	Left     string
}

// Limits bound the states.
type Limits struct {
	Secure, Prepare, Deliver, Release time.Duration
	// Attempts is how many mover pods may be lost before the operation fails, 1 or
	// more. Backoff is the pause before the second attempt; it doubles each time.
	Attempts int
	Backoff  time.Duration
}

// Pause is how long to wait before the mover pod of an attempt is made.
func (l Limits) Pause(number int) time.Duration {
	if number < 2 {
		return 0
	}
	const maxDoublings = 6 // 64 times the first pause is long enough
	return l.Backoff << min(number-2, maxDoublings)
}

// Transition is what to do next.
type Transition struct {
	Next    Phase
	Message string
	// Outcome, when not nil, has just been decided. It must be recorded, with the
	// result it rests on, before anything is released.
	Outcome *Outcome
	// Attempt, when not nil, replaces the attempt on record.
	Attempt *Attempt
	// After is when to look again if nothing happens; 0 is never.
	After time.Duration
}

// Next decides. It never leaves a terminal phase.
func Next(current Phase, o Observation, l Limits) Transition {
	if current == "" {
		current = New
	}
	switch {
	case current.Terminal():
		return Transition{Next: current}
	case o.Outcome != nil:
		return end(current, o, l)
	case o.Cancel || current == Canceling:
		return decide(Canceling, Outcome{Phase: Canceled, Message: "canceled on request", At: o.Now})
	case o.Work.State == Broken:
		return decide(current, Outcome{Phase: Failed, Message: o.Work.Detail, At: o.Now})
	case current == New:
		return accept(o, l)
	default:
		return work(current, o, l)
	}
}

// accept moves a new operation on when its source is safe and a slot is free.
func accept(o Observation, l Limits) Transition {
	if o.Work.State != Waiting {
		if o.Slot {
			return Transition{Next: Accepted}
		}
		return Transition{Next: New, Message: "queued: as many operations run as the configuration allows"}
	}
	left := o.Created.Add(l.Secure).Sub(o.Now)
	if left <= 0 {
		return decide(New, Outcome{
			Phase:   Failed,
			Message: fmt.Sprintf("could not start within %s: %s", l.Secure, o.Work.Detail),
			At:      o.Now,
		})
	}
	return Transition{Next: New, Message: o.Work.Detail, After: left}
}

// work moves an accepted operation on with its mover pod.
func work(current Phase, o Observation, l Limits) Transition {
	switch o.Work.State {
	case Succeeded:
		return decide(InProgress, Outcome{Phase: Completed, At: o.Now})
	case Lost:
		return retry(current, o, l)
	case Running:
		t := Transition{Next: InProgress}
		if !o.Attempt.Started {
			started := o.Attempt
			started.Started = true
			t.Attempt = &started
		}
		return t
	default: // it is not there yet
	}
	since := o.Accepted
	if o.Attempt.Since.After(since) {
		since = o.Attempt.Since
	}
	left := since.Add(l.Prepare + l.Pause(o.Attempt.Number)).Sub(o.Now)
	if left <= 0 {
		return decide(current, Outcome{
			Phase:   Failed,
			Message: fmt.Sprintf("no mover pod runs %s after it was asked for: %s", l.Prepare, o.Work.Detail),
			At:      o.Now,
		})
	}
	next := current
	if current == Accepted && o.Work.State == Scheduled {
		next = Prepared
	}
	return Transition{Next: next, Message: o.Work.Detail, After: left}
}

// retry counts a lost mover pod.
func retry(current Phase, o Observation, l Limits) Transition {
	if o.Attempt.Number >= l.Attempts {
		return decide(current, Outcome{
			Phase:   Failed,
			Message: fmt.Sprintf("gave up after %d attempts: %s", o.Attempt.Number, o.Work.Detail),
			At:      o.Now,
		})
	}
	next := Attempt{Number: o.Attempt.Number + 1, Since: o.Now, Reason: o.Work.Detail}
	return Transition{
		Next:    current,
		Attempt: &next,
		Message: fmt.Sprintf("attempt %d of %d follows: %s", next.Number, l.Attempts, o.Work.Detail),
		After:   l.Pause(next.Number),
	}
}

// end waits for delivery and release, for as long as they may take.
func end(current Phase, o Observation, l Limits) Transition {
	out := *o.Outcome
	undelivered := out.Phase == Completed && !o.Delivered
	limit := l.Release
	if undelivered {
		limit = l.Deliver
	}
	left := out.At.Add(limit).Sub(o.Now)
	switch {
	case undelivered && o.Cancel && !o.Committed:
		return decide(Canceling, Outcome{Phase: Canceled, Message: "canceled on request", At: o.Now})
	case undelivered && o.Work.State == Broken:
		return decide(current, Outcome{Phase: Failed, Message: o.Work.Detail, At: o.Now})
	case undelivered && left <= 0:
		return decide(current, Outcome{
			Phase:   Failed,
			Message: fmt.Sprintf("the result could not be handed over within %s: %s", limit, o.Left),
			At:      o.Now,
		})
	case o.Released && !undelivered:
		return Transition{Next: out.Phase, Message: out.Message}
	case left <= 0:
		return Transition{Next: out.Phase, Message: join(out.Message, "left to be swept: "+o.Left)}
	}
	return Transition{Next: current, Message: join(out.Message, o.Left), After: left}
}

// decide records an outcome in a phase that is not terminal yet.
func decide(next Phase, out Outcome) Transition {
	return Transition{Next: next, Message: out.Message, Outcome: &out}
}

func join(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}
