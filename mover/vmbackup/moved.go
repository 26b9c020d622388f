package vmbackup

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/kubevirt"
)

// checkpointMoved says why the files do not hold what changed since the checkpoint that was read
// before the attempt, or returns "". While the attempt runs, only its own end moves the checkpoint.
func (m *Maker) checkpointMoved(ctx context.Context, r Request, s *State, vmb *unstructured.Unstructured) (string, error) {
	if s.Since == "" {
		return "", nil
	}
	tracker, err := m.find(ctx, kubevirt.Tracker, r.key(identity.VMTrackerName(r.UID, r.Location)))
	if err != nil {
		return "", err
	}
	now := ""
	if tracker != nil {
		now = kubevirt.CheckpointOf(tracker).Name
	}
	if now != s.Since && !strings.HasPrefix(now, vmb.GetName()+"-") {
		return fmt.Sprintf("the checkpoint of VM %s/%s was %s, and is %q now", r.Namespace, r.VM, s.Since, now), nil
	}
	restored, err := m.restoresOf(ctx, r)
	for _, d := range r.Disks {
		if restored[d.Volume] != s.Restored[d.Volume] && err == nil {
			return fmt.Sprintf("DataDownload %s has restored disk %s in place meanwhile", restored[d.Volume], d.Volume), nil
		}
	}
	return "", err
}

// restoresOf reads which restores have written the disks of a VM in place. A VM that runs keeps them away.
func (m *Maker) restoresOf(ctx context.Context, r Request) (map[string]string, error) {
	restored := map[string]string{}
	for _, d := range r.Disks {
		claim, err := kube.Find(ctx, m.Reader, r.key(d.Claim), &corev1.PersistentVolumeClaim{})
		if err != nil {
			return nil, err
		}
		if claim != nil && claim.Labels[identity.LabelRestored] != "" {
			restored[d.Volume] = claim.Labels[identity.LabelRestored]
		}
	}
	return restored, nil
}
