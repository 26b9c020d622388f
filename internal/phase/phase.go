// Package phase is the life of one operation, a DataUpload or a DataDownload, as a pure
// function: Next takes the current phase and an Observation, and returns the next phase,
// what to record, and when to look again.
//
//	New ──▶ Accepted ──▶ Prepared ──▶ InProgress ──▶ Completed
//	  │         │            │             │
//	  │         │            │             ├───────▶ Failed (from every phase on the left)
//	  └─────────┴────────────┴─────────────┴───────▶ Canceling ──▶ Canceled
//
// # Two steps to an end
//
// First the Outcome is decided and recorded, while everything that proves it still
// exists. Then the controller releases what the operation used, and only then the
// terminal phase is set. So a crash at any point leaves either the proof or the record,
// and a terminal operation leaves nothing behind. If the release itself runs out of time,
// the message names what is left.
//
// # The phases
//
//	phase        the operation                        next                       at most
//	New          makes its source safe, then waits    Accepted: safe, slot free  Secure for the source;
//	             for a slot                                                      Velero's timeout for the slot
//	Accepted     waits for the node and the volume    Prepared: pod scheduled    Prepare, per attempt
//	             of the mover pod
//	Prepared     waits for the mover pod to start     InProgress: pod runs       Prepare, per attempt
//	InProgress   moves data                           Outcome: pod reported      the deadline of the pod
//	Canceling    was canceled; releases               Canceled: all is released  Release
//	Completed    ended; the data is in its place      none
//	Failed       ended; the message says why          none
//	Canceled     ended on request                     none
//
// An operation with an Outcome of Completed or Failed keeps its phase until everything is
// released (at most Release). A completed result may have to reach its destination first
// (at most Deliver). Velero's item operation timeout cancels an operation in any phase.
//
// The phase never goes back. A second attempt stays in the phase that the first one had
// reached: Prepare bounds the time until its pod runs.
//
// # Scenario: the first mover pod is lost
//
// The node of the mover pod goes away. The second attempt waits for Limits.Backoff, and
// continues from the checkpoint of the first, which is in the repository.
//
//	Work       Scheduled   Running     Lost                       Waiting   Running   Succeeded
//	phase      Prepared ─▶ InProgress ─────────────────────────────────────────────▶ Completed
//	Attempt    1           1 Started   2, Since = now, Reason     2         2 Started    ▲
//	After      Prepare                 Backoff                    Prepare                │ released
//	Outcome                                                                 Completed ───┘
//
// Started tells a pod that is gone from one that does not exist yet: only an attempt that
// was seen running can be lost by having no pod. When as many attempts as Limits.Attempts
// are lost, the outcome is Failed.
//
// # Scenario: canceled while queued
//
// All slots are taken. There is no pod, so there is nothing to stop; the re-homed
// VolumeSnapshot of an upload has to be released all the same.
//
//	Work       Secured             (not observed)
//	Slot       false
//	Cancel     false               true
//	phase      New ──────────────▶ Canceling ────────────────▶ Canceled
//	message    queued: …           canceled on request         canceled on request
//	Outcome                        Canceled                    Released, or Release has passed
//
// A queued operation has no limit of its own: Cancel or a free slot ends the wait.
//
// # Scenario: a restore whose hand-over waits
//
// The mover pod has written the volume. The storage takes minutes to detach it from the
// node of that pod, and until then the target PVC cannot have it.
//
//	             pod reported    detaching    reserved    target PVC bound    released
//	Work         Succeeded       (not observed any more)
//	Outcome      Completed       Completed    Completed   Completed           Completed
//	Committed                    false        true        true                true
//	Delivered                    false        false       true                true
//	phase        InProgress ───────────────────────────────────────────────▶ Completed
//	canceled                     Canceling;   ignored: the volume is the user's now
//	                             the volume
//	                             is deleted
//
// Until the result is delivered, Deliver is the limit, and the message is what Left names.
// If Deliver passes first, the outcome becomes Failed.
//
// The package is pure.
package phase

import (
	"fmt"
	"time"
)

// Phase is the status.phase of a DataUpload or DataDownload.
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

// Terminal reports whether this phase ends an operation.
func (p Phase) Terminal() bool { return p == Canceled || p == Completed || p == Failed }

// Underway reports whether an operation in this phase occupies a slot.
func (p Phase) Underway() bool {
	return p == Accepted || p == Prepared || p == InProgress || p == Canceling
}

// State is how far the work of an operation has come.
type State int

// The states of the work.
const (
	// Waiting means that something has to happen in the cluster first.
	Waiting State = iota
	// Secured means that the source of the operation is safe and may be exposed.
	Secured
	// Scheduled means that the mover pod has its node and its volume.
	Scheduled
	// Running means that the mover pod runs.
	Running
	// Succeeded means that the mover pod reported success.
	Succeeded
	// Broken means that the mover pod reported an error, or that another attempt would
	// fail in the same way.
	Broken
	// Lost means that the mover pod ended without a report, or is gone.
	Lost
)

// Work is the observed state of an operation's work. Detail tells people what the
// operation waits for, or what broke.
type Work struct {
	State  State
	Detail string
}

// Attempt is one mover pod. The first attempt has number 1.
type Attempt struct {
	Number int `json:"number"`
	// Since is when the attempt was decided on. It is zero for the first one.
	Since time.Time `json:"since,omitzero"`
	// Started is set once the attempt's pod was seen running. From then on, a missing pod
	// is a lost pod, and not one that has yet to be created.
	Started bool `json:"started,omitempty"`
	// Reason is why the previous attempt was lost.
	Reason string `json:"reason,omitempty"`
}

// Outcome is how an operation ends. It is decided once, and replaced only if a completed
// result is canceled before it is committed, or cannot be delivered.
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
	// Accepted is when the operation was accepted. It is zero until then.
	Accepted time.Time
	// Cancel is set if somebody canceled the operation, or is deleting it.
	Cancel bool
	// Slot is set if the limits of concurrency allow one more operation.
	Slot bool
	// Work is observed until there is an Outcome. After that, only Broken counts, which
	// the delivery of a result may report.
	Work    Work
	Attempt Attempt
	// Outcome is the outcome on record, or nil. The fields below it are observed only if it
	// is set.
	Outcome *Outcome
	// Committed is set once a completed result cannot be taken back, Delivered once it has
	// reached its destination.
	Committed, Delivered bool
	// Released is set once nothing of the operation is left in the cluster. Until then,
	// Left names what is.
	Released bool
	Left     string
}

// Limits bound the phases; see the package documentation.
type Limits struct {
	Secure, Prepare, Deliver, Release time.Duration
	// Attempts is how many mover pods may be lost before the operation fails, 1 or more.
	// Backoff is the pause before the second attempt. It doubles with each further one.
	Attempts int
	Backoff  time.Duration
}

// Pause is how long to wait before creating the mover pod of an attempt.
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
	// Outcome, if not nil, has just been decided. The caller must record it, and the result
	// that it rests on, before it releases anything.
	Outcome *Outcome
	// Attempt, if not nil, replaces the attempt on record.
	Attempt *Attempt
	// After is when to look again if nothing happens. 0 means never.
	After time.Duration
}

// Next decides what follows an observation. It never leaves a terminal phase.
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

// accept accepts a new operation once its source is safe and a slot is free.
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

// work follows the mover pod of an accepted operation.
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
	default: // the pod does not run yet
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

// retry starts another attempt after a lost mover pod, or gives up.
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

// end waits for delivery and release until their limits pass.
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

// decide returns an outcome and the phase in which the operation is released.
func decide(next Phase, out Outcome) Transition {
	return Transition{Next: next, Message: out.Message, Outcome: &out}
}

func join(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}
