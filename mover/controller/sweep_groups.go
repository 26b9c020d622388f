package controller

import (
	"context"
	"errors"
	"fmt"

	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/blockmover/blockmover/internal/volumesnapshot"
)

// sweepGroups takes away the groups of backups that have ended. The plugin does so
// itself in the finalize phase; what is left here is of a backup that never came to
// that, or of a Velero that died, or took longer than the plugin waits.
func (s *sweeper) sweepGroups(ctx context.Context) error {
	s.goesAway = false
	found, err := s.groups.Find(ctx)
	if err != nil || len(found) == 0 {
		return err
	}
	running, err := s.runningBackups(ctx)
	if err != nil {
		return err
	}
	uploads, err := listUploads(ctx, s.reader, s.namespace)
	if err != nil {
		return err
	}
	var errs []error
	for _, ref := range found {
		if running[ref.BackupUID] {
			continue
		}
		left, err := s.groups.Release(ctx, ref, runningUploads(uploads, ref.Namespace))
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep after VolumeGroupSnapshot %s: %w", ref, err))
			continue
		}
		s.goesAway = s.goesAway || len(left) > 0
		log.FromContext(ctx).WithName("sweep").Info("released the group snapshot of a backup that has ended", "volumeGroupSnapshot", ref.String(), "goingAway", left)
	}
	return errors.Join(errs...)
}

// runningUploads are those of a namespace's volumes that have not ended.
func runningUploads(uploads []*operation, namespace string) []volumesnapshot.Upload {
	var running []volumesnapshot.Upload
	for _, op := range uploads {
		if source := sourceOf(op.upload); source.Namespace == namespace && !op.phase.Terminal() {
			running = append(running, volumesnapshot.Upload{Name: op.upload.Name, UID: string(op.upload.UID), VolumeSnapshot: source.Name})
		}
	}
	return running
}
