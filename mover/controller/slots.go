package controller

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
)

// grants are the slots that one engine has given away and that its cache may not show
// yet. Slots are granted one at a time, under the lock: otherwise operations that are
// reconciled at once would each miss the others.
type grants struct {
	mu sync.Mutex
	// uids has the operations that have a grant and were new when they were last listed.
	uids map[string]bool
}

// take grants a slot to a secured operation, or reports false.
func (e *engine) take(ctx context.Context, op *operation.View) (bool, error) {
	e.grants.mu.Lock()
	defer e.grants.mu.Unlock()
	all, limits, err := e.load(ctx)
	if err != nil {
		return false, err
	}
	delete(e.grants.uids, op.UID)
	if !hasSlot(op, all, e.grants.uids, limits) {
		return false, nil
	}
	e.grants.uids[op.UID] = true
	return true, nil
}

// giveBack ends a grant that the operation could not use.
func (g *grants) giveBack(op *operation.View) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.uids, op.UID)
}

// next returns the operations that may start now, the oldest first.
func (e *engine) next(ctx context.Context) ([]*operation.View, error) {
	e.grants.mu.Lock()
	defer e.grants.mu.Unlock()
	all, limits, err := e.load(ctx)
	if err != nil {
		return nil, err
	}
	return startable(all, e.grants.uids, limits), nil
}

// load lists the operations and counts the slots, both from the cache. It forgets the
// grants that the list shows. The caller holds the lock.
func (e *engine) load(ctx context.Context) (all []*operation.View, limits slots, err error) {
	if limits, err = countSlots(ctx, e.client, e.live.Get()); err != nil {
		return nil, slots{}, err
	}
	if all, err = e.list(ctx); err != nil {
		return nil, slots{}, err
	}
	still := map[string]bool{}
	for _, op := range all {
		if e.grants.uids[op.UID] && op.Status.Phase == phase.New {
			still[op.UID] = true
		}
	}
	e.grants.uids = still
	return all, limits, nil
}

// startable returns the new operations that may start now. Slots go to the oldest of
// those that are secured. So none starves. One that waits for its consumer, its
// snapshot, or a slot of the only node that can use its volume holds up nobody.
func startable(all []*operation.View, granted map[string]bool, limits slots) []*operation.View {
	taken := slots{on: map[string]int{}}
	var queue []*operation.View
	for _, op := range all {
		switch {
		case op.Status.Phase == phase.New && granted[op.UID]:
			taken.add(op, weight{underway: 1, preparing: 1})
		case op.Status.Phase != phase.New:
			taken.add(op, weigh(op))
		case canAccept(op):
			queue = append(queue, op)
		}
	}
	slices.SortFunc(queue, compareAge)
	var may []*operation.View
	for _, op := range queue {
		if limits.allow(taken, op) {
			may = append(may, op)
			taken.add(op, weight{underway: 1, preparing: 1})
		}
	}
	return may
}

// hasSlot reports whether an operation that is secured may start now.
func hasSlot(op *operation.View, all []*operation.View, granted map[string]bool, limits slots) bool {
	secured := *op
	secured.Status.Secured = true
	others := slices.DeleteFunc(slices.Clone(all), func(other *operation.View) bool { return other.UID == op.UID })
	return slices.Contains(startable(append(others, &secured), granted, limits), &secured)
}

// slots counts operations of one kind that are underway, or that may be.
type slots struct {
	total int
	// on has the nodes that can run mover pods.
	on map[string]int
	// preparing is for those whose mover pod does not run yet. As a limit, 0 is none.
	preparing int
}

// add counts an operation.
func (s *slots) add(op *operation.View, w weight) {
	s.total += w.underway
	s.preparing += w.preparing
	s.on[cmp.Or(op.Status.Node, op.Status.Place)] += w.underway
}

// allow reports whether one more operation may start beside those that have a slot. On a node
// that cannot run mover pods, it may: the scheduler then says why it does not run.
func (s slots) allow(taken slots, op *operation.View) bool {
	if taken.total >= s.total || s.preparing > 0 && taken.preparing >= s.preparing {
		return false
	}
	there, known := s.on[op.Status.Place]
	return !known || taken.on[op.Status.Place] < there
}

// weight is what an operation takes of the limits.
type weight struct{ underway, preparing int }

// weigh returns the weight of an operation. One that may take the next slot weighs as
// if it had: those behind it wait for it.
func weigh(op *operation.View) weight {
	switch {
	case op.Status.Outcome != nil && op.Status.Phase != phase.Canceling:
		return weight{} // its mover pod has ended, or never ran
	case op.Status.Phase == phase.New && canAccept(op),
		op.Status.Phase == phase.Accepted, op.Status.Phase == phase.Prepared:
		return weight{underway: 1, preparing: 1}
	case op.Status.Phase.Underway():
		return weight{underway: 1}
	}
	return weight{}
}

// canAccept reports whether a new operation takes the next slot that is free.
func canAccept(op *operation.View) bool {
	return op.Status.Secured && !op.Cancel && op.Status.Outcome == nil && op.Damage == nil
}

// compareAge orders operations by creation; names decide between those of one
// second.
func compareAge(a, b *operation.View) int {
	return cmp.Or(
		a.Created.Compare(b.Created),
		strings.Compare(a.Name, b.Name),
	)
}
