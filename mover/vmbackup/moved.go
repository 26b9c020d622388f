package vmbackup

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

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
	if err != nil {
		return "", err
	}
	for _, d := range r.Disks {
		if restored[d.Volume] != s.Restored[d.Volume] {
			return fmt.Sprintf("DataDownload %s has restored disk %s in place meanwhile", restored[d.Volume], d.Volume), nil
		}
	}
	return "", nil
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

// HasDisk reports whether KubeVirt may know what has changed on a PVC: it is a disk of a VM that has a tracker. Who may not ask has to
// assume so.
func HasDisk(ctx context.Context, reader client.Reader, key client.ObjectKey) (bool, error) {
	trackers := kubevirt.NewList(kubevirt.Tracker)
	err := reader.List(ctx, trackers, client.InNamespace(key.Namespace))
	switch {
	case err != nil && notServed(err):
		return false, nil
	case apierrors.IsForbidden(err):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("list %ss: %w", kubevirt.Tracker.Kind, err)
	}
	for i := range trackers.Items {
		_, name := kubevirt.SourceOf(&trackers.Items[i])
		vm, err := kube.Find(ctx, reader, client.ObjectKey{Namespace: key.Namespace, Name: name}, kubevirt.New(kubevirt.VirtualMachine))
		if err != nil {
			return false, err
		}
		if vm == nil {
			continue
		}
		if _, is := kubevirt.DiskOf(vm, key.Name); is {
			return true, nil
		}
	}
	return false, nil
}
