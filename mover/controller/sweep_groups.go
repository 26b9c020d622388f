package controller

import (
	"context"
	"errors"
	"fmt"

	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/volumesnapshot/groupsnapshot"
)

// sweepGroups takes away the groups of backups that have ended. The plugin does so
// itself in the finalize phase; what is left here is of a backup that never came to
// that, or of a Velero that died, or took longer than the plugin waits.
//
// It returns how many objects are going away.
func (s *sweeper) sweepGroups(ctx context.Context, found []groupsnapshot.Group, o owners) (int, error) {
	running := o.running()
	goingAway := 0
	var errs []error
	for _, group := range found {
		if !o.hasEnded(group.BackupUID) {
			continue
		}
		left, err := group.Release(ctx, uploadsFrom(group.Namespace, running))
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep after VolumeGroupSnapshot %s: %w", group, err))
			continue
		}
		goingAway += len(left)
		log.FromContext(ctx).Info("released the group snapshot of a backup that has ended", "volumeGroupSnapshot", group.String(), "goingAway", left)
	}
	return goingAway, errors.Join(errs...)
}

// uploadsFrom are those whose VolumeSnapshot is in a namespace.
func uploadsFrom(namespace string, uploads []*operation.View) []groupsnapshot.Upload {
	var from []groupsnapshot.Upload
	for _, op := range uploads {
		if source := sourceOf(op.Upload); source.Namespace == namespace {
			from = append(from, groupsnapshot.Upload{Operation: op.Operation, VolumeSnapshot: source.Name})
		}
	}
	return from
}
