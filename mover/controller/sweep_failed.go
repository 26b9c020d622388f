package controller

import (
	"context"
	"errors"
	"fmt"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/blockmover/blockmover/internal/forget"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
)

// noteFailed names the images of failed backups to Velero's deletion controller. A backup that is Failed
// may have no contents in the object store, and when it is deleted, Velero does not call the delete item
// action. Then nobody would know its images any more.
func (s *sweeper) noteFailed(ctx context.Context) error {
	backups := &velerov1.BackupList{}
	if err := s.client.List(ctx, backups, client.InNamespace(s.namespace)); err != nil {
		return fmt.Errorf("list Backups: %w", err)
	}
	failed := map[types.UID]*velerov1.Backup{}
	for i := range backups.Items {
		if b := &backups.Items[i]; b.Status.Phase == velerov1.BackupPhaseFailed {
			failed[b.UID] = b
		}
	}
	before := s.noted
	s.noted = map[types.UID]bool{}
	if len(failed) == 0 {
		return nil
	}
	uploads := &velerov2alpha1.DataUploadList{}
	if err := s.client.List(ctx, uploads, client.InNamespace(s.namespace)); err != nil {
		return fmt.Errorf("list DataUploads: %w", err)
	}
	var errs []error
	for i := range uploads.Items {
		u := &uploads.Items[i]
		owner := metav1.GetControllerOf(u)
		if u.Spec.DataMover != identity.DataMover || u.Status.SnapshotID == "" || owner == nil || failed[owner.UID] == nil {
			continue
		}
		if !before[u.UID] {
			if err := kube.Ensure(ctx, s.client, forget.Note(u, failed[owner.UID])); err != nil {
				errs = append(errs, fmt.Errorf("note repo snapshot of %s/%s: %w", u.Namespace, u.Name, err))
				continue
			}
			log.FromContext(ctx).Info("the image of a failed backup will be deleted with it",
				"dataUpload", u.Namespace+"/"+u.Name, "backup", owner.Name, "repoSnapshot", u.Status.SnapshotID)
		}
		s.noted[u.UID] = true
	}
	return errors.Join(errs...)
}
