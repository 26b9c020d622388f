package controller

import (
	"context"
	"strings"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
)

const (
	// explainAfter is how long a mover pod may take to start until somebody is asked why. A
	// request for each operation would be one too many for those that start at once.
	explainAfter = 5 * time.Second
	// refusalPatience is for how long a volume may be refused: a class or a driver may be there
	// a moment later.
	refusalPatience = 40 * time.Second
)

// explain adds to work why the mover pod does not run, in the words of whoever knows it. It
// ends an operation whose volume the storage refuses.
func (e *engine) explain(ctx context.Context, op *operation.View, work phase.Work) phase.Work {
	if work.State != phase.Waiting && work.State != phase.Scheduled {
		return work
	}
	since := op.Status.Accepted
	if op.Status.Attempt.Since.After(since) {
		since = op.Status.Attempt.Since
	}
	waited := e.now().Sub(since)
	if waited < explainAfter {
		return work
	}
	obstacles, err := e.exposer.Obstacles(ctx, op.Operation)
	if err != nil {
		log.FromContext(ctx).V(1).Info("it is not known why the mover pod does not run", "error", err.Error())
		return work
	}
	texts := []string{work.Detail}
	for _, o := range obstacles {
		if o.Refused && waited >= refusalPatience {
			return phase.Work{State: phase.Broken, Detail: "the storage refuses the volume of the mover pod: " + o.String()}
		}
		texts = append(texts, o.String())
	}
	work.Detail = strings.Join(texts, "; ")
	return work
}
