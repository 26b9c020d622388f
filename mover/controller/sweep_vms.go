package controller

import (
	"context"
	"errors"
	"fmt"

	"sigs.k8s.io/controller-runtime/pkg/log"
)

// sweepVMs releases the objects of backups of VMs of which no DataUpload runs any more, and
// returns how many are going away.
func (s *sweeper) sweepVMs(ctx context.Context, names []string, o owners) (int, error) {
	running := map[string]bool{}
	for _, op := range o.running() {
		running[vmBackupOf(op)] = true
	}
	goingAway := 0
	var errs []error
	for _, name := range names {
		if running[name] {
			continue
		}
		left, err := s.vms.Release(ctx, name)
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep after the backup of a VM: %w", err))
			continue
		}
		goingAway += len(left)
		s.count(sweptVM, name)
		log.FromContext(ctx).Info("released what the backup of a VM left", "vmBackup", name, "goingAway", left)
	}
	return goingAway, errors.Join(errs...)
}
