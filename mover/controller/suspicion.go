package controller

import (
	"context"
	"slices"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/anomaly"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/repository"
)

// resultSuspicion is the key of a DataUpload's result that says why the increment is suspicious.
const resultSuspicion = "suspicion"

// suspect compares an increment with those before it of the same volume. The result of the DataUpload
// is written already.
func (u *uploads) suspect(ctx context.Context, op *operation.View) (string, error) {
	now, ok := figuresOf(op)
	if !ok {
		return "", nil
	}
	all, err := operation.List(ctx, u.client, identity.KindDataUpload, client.InNamespace(op.Namespace))
	if err != nil {
		return "", err
	}
	all = slices.DeleteFunc(all, func(other *operation.View) bool {
		return other.UID == op.UID || other.Status.Phase != phase.Completed || other.Claim() != op.Claim()
	})
	slices.SortFunc(all, func(a, b *operation.View) int { return a.Created.Compare(b.Created) })
	var before []anomaly.Figures
	for _, other := range all {
		if f, ok := figuresOf(other); ok {
			before = append(before, f)
		}
	}
	return anomaly.Suspect(before, now), nil
}

// figuresOf returns the figures of an increment.
func figuresOf(op *operation.View) (anomaly.Figures, bool) {
	result := op.Result()
	return anomaly.Figures{
		Size: result.Number("volumeSize"), Changed: result.Number("bytesRead"),
		New: result.Number("bytesUploaded"), Incompressible: result.Number("incompressibleBytes"),
	}, result["kind"] == string(repository.Incremental)
}

// suspicionOf says why an upload that has ended is suspicious, or returns "".
func suspicionOf(op *operation.View) string { return op.Result()[resultSuspicion] }
