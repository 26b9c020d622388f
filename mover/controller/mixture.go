package controller

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
)

// refuseMixture returns an error if the snapshot of an upload may show the volume while a restore wrote into it
// in place, or after one that did not come to its end. Such a backup would be Completed, and worth nothing. taken is the time of the
// snapshot by the clock of whoever took it, and later one of our own that is not before it.
func (u *uploads) refuseMixture(ctx context.Context, op *operation.View, taken, later time.Time) error {
	restores, err := u.restoresInPlace(ctx, op.Claim())
	if err != nil {
		return err
	}
	var half *operation.View
	for _, r := range restores {
		s := r.Status
		before := s.Accepted.IsZero() || s.Accepted.After(later)
		after := s.Phase.Terminal() && s.Completed.Before(taken)
		switch {
		case before || strings.Contains(s.Message, unchanged):
		case !after:
			return fmt.Errorf("%w: the snapshot was taken while %s restored PVC %s in place, and may show a mixture of old and restored data: back the volume up again when that has ended",
				phase.ErrBroken, r.Reference(), op.Claim())
		case s.Phase == phase.Completed:
			half = nil
		case strings.Contains(s.Message, halfRestored):
			half = r
		}
	}
	if half == nil {
		return nil
	}
	return fmt.Errorf("%w: PVC %s may hold a mixture of old and restored data, because %s restored it in place and did not complete: restore in place again; or delete the Restore, if the data is what you want",
		phase.ErrBroken, op.Claim(), half.Reference())
}

// restoresInPlace returns the downloads that write, or wrote, into the volume of a live PVC, the oldest first.
func (u *uploads) restoresInPlace(ctx context.Context, key client.ObjectKey) ([]*operation.View, error) {
	all, err := operation.List(ctx, u.client, identity.KindDataDownload, client.InNamespace(u.namespace))
	if err != nil {
		return nil, err
	}
	found := slices.DeleteFunc(all, func(op *operation.View) bool {
		_, ok := inPlaceOf(op.Download)
		return !ok || op.Claim() != key
	})
	if len(found) == 0 {
		return nil, nil
	}
	claim, err := kube.Find(ctx, u.reader, key, &corev1.PersistentVolumeClaim{})
	if err != nil {
		return nil, err
	}
	found = slices.DeleteFunc(found, func(op *operation.View) bool {
		wanted, _ := inPlaceOf(op.Download)
		return claim != nil && wanted.UID != string(claim.UID) // the PVC was deleted, and created again
	})
	slices.SortFunc(found, compareAge)
	return found, nil
}
