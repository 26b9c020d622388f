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
	// Unknown means that a step failed with an error that may pass. How far the work is, is
	// not known.
	Unknown
	// Held means that a quota leaves no room for now, or that somebody else has to finish
	// something first, for as long as that takes.
	Held
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
	// Lost means that the mover pod ended without a report, is gone, or reported an error
	// that another attempt may not meet.
	Lost
	// Suspended means that the mover pod reported that the object store does not answer.
	Suspended
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
	// Since is when the attempt was decided on, or when its limits started again. It is zero
	// for a first attempt without trouble.
	Since time.Time `json:"since,omitzero"`
	// Started is set once the attempt's pod was seen running. From then on, a missing pod
	// is a lost pod, and not one that has yet to be created.
	Started bool `json:"started,omitempty"`
	// Reason is why the previous attempt was lost.
	Reason string `json:"reason,omitempty"`
	// Trouble is since when every step fails. It is zero while steps succeed.
	Trouble time.Time `json:"trouble,omitzero"`
	// Barren counts the attempts before this one since the last that made progress, and Lost
	// those of them that were not Suspended.
	Barren int `json:"barren,omitempty"`
	Lost   int `json:"lost,omitempty"`
	// Outage is when the first of a row of suspended attempts ended, without progress since.
	Outage time.Time `json:"outage,omitzero"`
	// Progress is the most bytes that an earlier attempt had done.
	Progress int64 `json:"progress,omitempty"`
	// Wrote is set if an earlier attempt may have written to a live volume.
	Wrote bool `json:"wrote,omitempty"`
	// BytesRead is what the attempt has read, and ReadBefore what those before it had.
	BytesRead  int64 `json:"bytesRead,omitempty"`
	ReadBefore int64 `json:"readBefore,omitempty"`
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
	// Progress is how many bytes of the volume the attempt has done.
	Progress int64
	// Wrote is set if this attempt, or one before it, may have written to a live volume.
	Wrote bool
	// Outcome is the outcome on record, or nil. The fields below it are observed only if it
	// is set.
	Outcome *Outcome
	// Committed is set once a completed result cannot be taken back, Delivered once it has
	// reached its destination. A backup is committed as soon as its work has succeeded, without an
	// outcome: its image is saved.
	Committed, Delivered bool
	// Released is set once nothing of the operation is left in the cluster. Until then,
	// Left names what is.
	Released bool
	Left     string
}

// Limits bound the phases; see the package documentation.
type Limits struct {
	Secure, Prepare, Deliver, Release time.Duration
	// Attempts is how many mover pods in a row may be lost without progress before the
	// operation fails, 1 or more. Patience is for how long the object store may be away.
	// Backoff is the pause before the second attempt. It doubles with each further one that
	// makes no progress.
	Attempts int
	Patience time.Duration
	Backoff  time.Duration
}

// Pause is how long to wait before creating the mover pod of an attempt.
func (l Limits) Pause(a Attempt) time.Duration {
	if a.Number < 2 {
		return 0
	}
	const maxDoublings = 4 // 16 times the first pause is long enough
	return l.Backoff << min(max(a.Barren-1, 0), maxDoublings)
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
	// Retry is set if Attempt is another attempt.
	Retry bool
	// Overdue is set if a completed result waits for its delivery for longer than Deliver.
	Overdue bool
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
	case o.Committed && o.Work.State == Succeeded:
		return work(current, o, l) // a cancellation comes too late
	case o.Cancel || current == Canceling:
		return decide(Canceling, Outcome{Phase: Canceled, Message: "canceled on request", At: o.Now})
	case o.Work.State == Broken:
		return decide(current, Outcome{Phase: Failed, Message: o.Work.Detail, At: o.Now})
	case o.Work.State == Unknown || o.Work.State == Held:
		return endure(current, o, l)
	}
	var recovered *Attempt
	if !o.Attempt.Trouble.IsZero() {
		o.Attempt.Trouble, o.Attempt.Since = time.Time{}, o.Now
		recovered = &o.Attempt
	}
	step := work
	if current == New {
		step = accept
	}
	t := step(current, o, l)
	if t.Attempt == nil {
		t.Attempt = recovered
	}
	return t
}

// endure waits until steps succeed again.
func endure(current Phase, o Observation, l Limits) Transition {
	t := Transition{Next: current, Message: o.Work.Detail}
	if o.Attempt.Trouble.IsZero() {
		troubled := o.Attempt
		troubled.Trouble = o.Now
		t.Attempt = &troubled
		return t
	}
	if lasted := o.Now.Sub(o.Attempt.Trouble); o.Work.State == Unknown && lasted >= l.Prepare {
		return decide(current, Outcome{
			Phase:   Failed,
			Message: fmt.Sprintf("failed again and again for %s: %s", lasted.Round(time.Second), o.Work.Detail),
			At:      o.Now,
		})
	}
	return t
}

// accept accepts a new operation once its source is safe and a slot is free.
func accept(_ Phase, o Observation, l Limits) Transition {
	if o.Work.State != Waiting {
		if o.Slot {
			return Transition{Next: Accepted}
		}
		return Transition{Next: New, Message: "queued: as many operations run as the configuration allows"}
	}
	left := o.since(o.Created).Add(l.Secure).Sub(o.Now)
	if left <= 0 {
		return decide(New, Outcome{
			Phase:   Failed,
			Message: fmt.Sprintf("could not start within %s: %s", l.Secure, o.Work.Detail),
			At:      o.Now,
		})
	}
	return Transition{Next: New, Message: o.Work.Detail, After: left}
}

// since returns when the clock of the attempt started: at the given time, or later.
func (o Observation) since(start time.Time) time.Time {
	if o.Attempt.Since.After(start) {
		return o.Attempt.Since
	}
	return start
}

// work follows the mover pod of an accepted operation.
func work(current Phase, o Observation, l Limits) Transition {
	switch o.Work.State {
	case Succeeded:
		return decide(InProgress, Outcome{Phase: Completed, At: o.Now})
	case Lost, Suspended:
		return retry(current, o, l)
	case Running:
		t := Transition{Next: InProgress, Message: o.Work.Detail}
		if !o.Attempt.Started {
			started := o.Attempt
			started.Started = true
			t.Attempt = &started
		}
		return t
	default: // the pod does not run yet
	}
	left := o.since(o.Accepted).Add(l.Prepare + l.Pause(o.Attempt)).Sub(o.Now)
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

// retry starts another attempt after a mover pod that was lost or suspended, or gives up.
func retry(current Phase, o Observation, l Limits) Transition {
	next := Attempt{
		Number: o.Attempt.Number + 1, Since: o.Now, Reason: o.Work.Detail,
		Barren: o.Attempt.Barren, Lost: o.Attempt.Lost, Outage: o.Attempt.Outage,
		Wrote:    o.Wrote,
		Progress: max(o.Attempt.Progress, o.Progress), ReadBefore: o.Attempt.ReadBefore + o.Attempt.BytesRead,
	}
	if o.Progress > o.Attempt.Progress {
		next.Barren, next.Lost, next.Outage = 0, 0, time.Time{}
	}
	next.Barren++
	suspended := o.Work.State == Suspended
	switch {
	case !suspended:
		next.Lost++
	case next.Outage.IsZero():
		next.Outage = o.Now
	}
	switch {
	case !suspended && next.Lost >= l.Attempts:
		return decide(current, Outcome{
			Phase:   Failed,
			Message: fmt.Sprintf("gave up after %d attempts without progress: %s", next.Lost, o.Work.Detail),
			At:      o.Now,
		})
	case suspended && o.Now.Sub(next.Outage) >= l.Patience:
		return decide(current, Outcome{
			Phase:   Failed,
			Message: fmt.Sprintf("gave up after %s without an answer of the object store: %s", l.Patience, o.Work.Detail),
			At:      o.Now,
		})
	}
	message := fmt.Sprintf("attempt %d follows: %s", next.Number, o.Work.Detail)
	if !suspended {
		message = fmt.Sprintf("attempt %d follows (%d of %d without progress): %s", next.Number, next.Lost, l.Attempts, o.Work.Detail)
	}
	return Transition{Next: current, Attempt: &next, Retry: true, Message: message, After: l.Pause(next)}
}

// end waits for delivery, and then for release until its limit passes.
func end(current Phase, o Observation, l Limits) Transition {
	out := *o.Outcome
	undelivered := out.Phase == Completed && !o.Delivered
	left := out.At.Add(l.Release).Sub(o.Now)
	late := o.Now.Sub(out.At)
	switch {
	case undelivered && o.Cancel && !o.Committed:
		return decide(Canceling, Outcome{Phase: Canceled, Message: "canceled on request", At: o.Now})
	case undelivered && o.Work.State == Broken:
		return decide(current, Outcome{Phase: Failed, Message: o.Work.Detail, At: o.Now})
	case undelivered && late >= l.Deliver:
		return Transition{
			Next:    current,
			Message: fmt.Sprintf("the data is complete and is kept; since %s it waits: %s", out.At.UTC().Format(time.RFC3339), o.Left),
			Overdue: true,
		}
	case undelivered:
		return Transition{Next: current, Message: join(out.Message, o.Left), After: l.Deliver - late}
	case o.Released:
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
