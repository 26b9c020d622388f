package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/mover/exposer"
)

// copyFor copies what the driver of a volume looks for beside its PVC, and returns what it waits for.
// The names are saved before anything is copied, so that it is found again.
func (s *surroundings) copyFor(ctx context.Context, op *operation.View, namespace string, wanted exposer.Copies) (waiting string, err error) {
	if all := wanted.With(exposer.Copies(op.Status.Copies)); string(all) != op.Status.Copies {
		op.Status.Copies = string(all)
		return "what is copied for the driver is recorded", nil
	}
	return s.exposer.EnsureCopies(ctx, op.Operation, namespace, wanted)
}

// releaseVolume releases the volume of an operation, and after that what its driver needed.
func (s *surroundings) releaseVolume(ctx context.Context, op *operation.View) (left []string, err error) {
	if left, err = s.exposer.Release(ctx, op.Operation); err != nil || len(left) > 0 {
		return left, err
	}
	err = s.exposer.ReleaseCopies(ctx, op.Operation, exposer.Copies(op.Status.Copies))
	if err == nil {
		op.Status.Copies = ""
	}
	return nil, err
}

// sweepCopies releases the copies of operations that have ended, and of which nothing else is left.
// Copies of operations that are gone belong to nobody: Kubernetes deletes them.
func (s *sweeper) sweepCopies(ctx context.Context) error {
	uploads, uploadsErr := operation.List(ctx, s.client, identity.KindDataUpload, client.InNamespace(s.namespace))
	downloads, downloadsErr := operation.List(ctx, s.client, identity.KindDataDownload, client.InNamespace(s.namespace))
	errs := []error{uploadsErr, downloadsErr}
	for _, op := range slices.Concat(uploads, downloads) {
		if !op.Status.Phase.Terminal() || op.Status.Copies == "" {
			continue
		}
		left, err := s.exposer.Release(ctx, op.Operation)
		if err == nil && len(left) == 0 {
			err = s.exposer.ReleaseCopies(ctx, op.Operation, exposer.Copies(op.Status.Copies))
			if err == nil {
				op.Status.Copies = ""
				err = op.Save(ctx, s.client)
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep after %s: %w", op.Reference(), err))
		}
	}
	return errors.Join(errs...)
}

// cacheClass returns the storage class of the cache of a restore, or "". A class that would keep the
// volume of each cache is not used.
func (s *surroundings) cacheClass(ctx context.Context, size int64) (string, error) {
	name := s.live.Get().CacheClass(size)
	if name == "" {
		return "", nil
	}
	class, err := s.storageClass(ctx, name)
	switch {
	case err != nil:
		return "", err
	case class == nil:
		log.FromContext(ctx).Info("cachePVC is not used: its storage class does not exist", "storageClass", name)
		return "", nil
	case exposer.Keeps(class):
		log.FromContext(ctx).Info("cachePVC is not used: its storage class does not delete volumes", "storageClass", name, "reclaimPolicy", *class.ReclaimPolicy)
		return "", nil
	}
	return name, nil
}
