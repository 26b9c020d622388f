package controller

import (
	"context"
	"errors"
	"fmt"

	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/volumesnapshot/groupsnapshot"
)

// sweepGroups releases the groups of backups that have ended. The plugin does so in the
// finalize phase. A group is left if the backup did not reach that phase, if Velero died, or
// if the release took longer than the plugin waits.
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
		s.count(sweptGroup, group.String())
		log.FromContext(ctx).Info("released the group snapshot of a backup that has ended", "volumeGroupSnapshot", group.String(), "goingAway", left)
	}
	return goingAway, errors.Join(errs...)
}

// uploadsFrom returns the uploads whose VolumeSnapshot is in a namespace.
func uploadsFrom(namespace string, uploads []*operation.View) []groupsnapshot.Upload {
	var from []groupsnapshot.Upload
	for _, op := range uploads {
		if source := sourceOf(op.Upload); source.Namespace == namespace {
			from = append(from, groupsnapshot.Upload{Operation: op.Operation, VolumeSnapshot: source.Name})
		}
	}
	return from
}
