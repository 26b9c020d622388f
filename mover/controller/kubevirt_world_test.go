package controller

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kubevirt"
	"github.com/blockmover/blockmover/internal/operation"
)

const (
	vmUID        = "vm-uid"
	finalizerVMB = "backup.kubevirt.io/vmbackup-protection"
)

// hypervisor acts as KubeVirt with one VM, which has the disks root and data-1.
type hypervisor struct {
	*world
	// end decides what becomes of a VirtualMachineBackup in which QEMU writes. "" is success.
	end func(vmb *unstructured.Unstructured) string
	// stuck keeps those from beginning whose name it has.
	stuck func(vmb *unstructured.Unstructured) bool
	// modern writes the conditions of KubeVirt 1.9.
	modern bool
	ends   int
}

// vmWorld has the VM and a DataUpload for each of its disks, of one Backup.
func vmWorld(t *testing.T) *hypervisor {
	t.Helper()
	h := newVM(t)
	h.backUp("backup-1")
	return h
}

// newVM has the VM.
func newVM(t *testing.T) *hypervisor {
	t.Helper()
	h := &hypervisor{world: newWorld(t), end: func(*unstructured.Unstructured) string { return "" }, stuck: func(*unstructured.Unstructured) bool { return false }}
	for _, kind := range []string{"VirtualMachineBackup", "VirtualMachineBackupTracker"} {
		h.mapper.Add(kubevirt.Backup.GroupVersion().WithKind(kind), meta.RESTScopeNamespace)
	}
	h.mapper.Add(kubevirt.VirtualMachine, meta.RESTScopeNamespace)
	vm := kubevirt.New(kubevirt.VirtualMachine)
	vm.SetNamespace(appNamespace)
	vm.SetName("vm")
	vm.SetUID(vmUID)
	vm.Object["spec"] = map[string]any{"template": map[string]any{"spec": map[string]any{"volumes": []any{
		map[string]any{"name": "root", "dataVolume": map[string]any{"name": "root-disk"}},
		map[string]any{"name": "data-1", "persistentVolumeClaim": map[string]any{"claimName": "data"}},
	}}}}
	vm.Object["status"] = map[string]any{"created": true, "printableStatus": "Running", "changedBlockTracking": map[string]any{"state": "Enabled"}}
	require.NoError(t, h.c.Create(h.ctx, vm))
	fast, block := "fast", corev1.PersistentVolumeBlock
	for _, name := range []string{"root-disk", "data"} {
		require.NoError(t, h.c.Create(h.ctx, &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: appNamespace, Name: name, UID: types.UID("uid-of-" + name)},
			Spec:       corev1.PersistentVolumeClaimSpec{StorageClassName: &fast, VolumeMode: &block, VolumeName: "pv-of-" + name},
			Status:     corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound, Capacity: corev1.ResourceList{corev1.ResourceStorage: quantity(gibi)}},
		}))
	}
	return h
}

// backUp makes the DataUploads of a Backup that Velero has written.
func (h *hypervisor) backUp(name string) {
	h.t.Helper()
	require.NoError(h.t, h.c.Create(h.ctx, &velerov1.Backup{
		ObjectMeta: metav1.ObjectMeta{Namespace: veleroNamespace, Name: name, UID: types.UID("uid-of-" + name)},
		Status:     velerov1.BackupStatus{Phase: velerov1.BackupPhaseWaitingForPluginOperations},
	}))
	for volume, claim := range map[string]string{"root": "root-disk", "data-1": "data"} {
		require.NoError(h.t, h.c.Create(h.ctx, &velerov2alpha1.DataUpload{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: veleroNamespace, Name: name + "-" + volume,
				Labels:          map[string]string{velerov1.PVCUIDLabel: "uid-of-" + claim, velerov1.BackupNameLabel: name, velerov1.BackupUIDLabel: "uid-of-" + name},
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "velero.io/v1", Kind: "Backup", Name: name, UID: types.UID("uid-of-" + name)}},
			},
			Spec: velerov2alpha1.DataUploadSpec{
				SnapshotType: velerov2alpha1.SnapshotTypeCSI, CSISnapshot: &velerov2alpha1.CSISnapshotSpec{StorageClass: "fast", Driver: kubevirt.Driver},
				SourcePVC: claim, SourceNamespace: appNamespace, DataMover: identity.DataMover,
				DataMoverConfig: map[string]string{
					identity.ConfigParentSnapshot: identity.ParentAuto, identity.ConfigVM: "vm", identity.ConfigVMUID: vmUID,
					identity.ConfigVMVolume: volume, identity.ConfigVMBackup: identity.VMBackupName("uid-of-"+name, vmUID),
				},
				BackupStorageLocation: "default", OperationTimeout: metav1.Duration{Duration: 2 * minuteOfWorld},
			},
		}))
	}
}

// minuteOfWorld is a time that is short enough for a test to wait.
const minuteOfWorld = 10 * time.Second

// runAll reconciles the DataUploads of a Backup in turn until they have ended.
func (h *hypervisor) runAll(backup string) map[string]*operation.View {
	h.t.Helper()
	ended := map[string]*operation.View{}
	const enough = 400
	for range enough {
		for _, volume := range []string{"root", "data-1"} {
			name := backup + "-" + volume
			if _, err := h.uploads.Reconcile(h.ctx, requestFor(name)); err != nil {
				require.ErrorIs(h.t, err, errInjected)
			}
			if op := h.operation(h.uploads, name); op.Status.Phase.Terminal() {
				ended[volume] = op
			}
		}
		h.step()
		h.stepVMs()
		if len(ended) == 2 {
			return ended
		}
	}
	for _, volume := range []string{"root", "data-1"} {
		op := h.operation(h.uploads, backup+"-"+volume)
		h.t.Errorf("%s: phase %q, message %q, state %s", op.Name, op.Status.Phase, op.Status.Message, op.Status.VMBackup)
	}
	h.t.FailNow()
	return nil
}

func (h *hypervisor) objects(kind string) []unstructured.Unstructured {
	list := kubevirt.NewList(kubevirt.Backup.GroupVersion().WithKind(kind))
	require.NoError(h.t, h.c.List(h.ctx, list))
	return list.Items
}

func (h *hypervisor) tracker() *unstructured.Unstructured {
	trackers := h.objects("VirtualMachineBackupTracker")
	require.Len(h.t, trackers, 1)
	return &trackers[0]
}

// stepVMs acts as KubeVirt, and as the provisioner in the namespace of the VM.
func (h *hypervisor) stepVMs() {
	h.t.Helper()
	for _, vmb := range h.objects("VirtualMachineBackup") {
		h.stepVM(&vmb)
	}
	for _, claim := range list[corev1.PersistentVolumeClaimList](h.world, client.InNamespace(appNamespace), client.HasLabels{identity.LabelVMBackup}).Items {
		if claim.DeletionTimestamp != nil {
			controllerutil.RemoveFinalizer(&claim, finalizerPVC)
			h.update(&claim)
		} else if claim.Spec.VolumeName == "" {
			h.provision(&claim)
		}
	}
	for _, pv := range list[corev1.PersistentVolumeList](h.world).Items {
		ref := pv.Spec.ClaimRef
		if ref == nil || ref.UID != "" {
			continue
		}
		claim := get[corev1.PersistentVolumeClaim](h.world, ref.Namespace, ref.Name)
		if claim != nil && claim.Spec.VolumeName == pv.Name {
			ref.UID, pv.Status.Phase, claim.Status.Phase = claim.UID, corev1.VolumeBound, corev1.ClaimBound
			h.update(&pv)
			h.update(claim)
		}
	}
}

func (h *hypervisor) stepVM(vmb *unstructured.Unstructured) {
	switch {
	case vmb.GetDeletionTimestamp() != nil:
		controllerutil.RemoveFinalizer(vmb, finalizerVMB)
		h.put(vmb)
	case controllerutil.AddFinalizer(vmb, finalizerVMB):
		h.put(vmb)
	case kubevirt.IsOver(vmb), h.stuck(vmb):
	case vmb.Object["status"] == nil:
		kind := kubevirt.Incremental
		forced, _, _ := unstructured.NestedBool(vmb.Object, "spec", "forceFullBackup")
		if forced || kubevirt.CheckpointOf(h.tracker()).Name == "" {
			kind = kubevirt.Full
		}
		vmb.Object["status"] = map[string]any{"type": kind, "conditions": []any{map[string]any{"type": "Progressing", "status": "True", "reason": "Backup is in progress"}}}
		h.put(vmb)
	default:
		h.finish(vmb)
	}
}

// finish ends a VirtualMachineBackup, and moves the checkpoint of the tracker if it succeeds.
func (h *hypervisor) finish(vmb *unstructured.Unstructured) {
	h.ends++
	checkpoint := fmt.Sprintf("%s-checkpoint-%d", vmb.GetName(), h.ends)
	volumes := []any{map[string]any{"volumeName": "root"}, map[string]any{"volumeName": "data-1"}}
	status, _ := vmb.Object["status"].(map[string]any)
	text := h.end(vmb)
	status["checkpointName"], status["includedVolumes"] = checkpoint, volumes
	switch {
	case text == "" && h.modern:
		status["conditions"] = []any{map[string]any{"type": "Complete", "status": "True", "reason": "Completed"}}
	case text == "":
		status["conditions"] = []any{map[string]any{"type": "Done", "status": "True", "reason": "Successfully completed VirtualMachineBackup"}}
	case h.modern:
		status["conditions"] = []any{map[string]any{"type": "Failed", "status": "True", "reason": "Failed", "message": "Backup has failed: " + text}}
	default:
		status["conditions"] = []any{map[string]any{"type": "Done", "status": "True", "reason": "Backup has failed: " + text}}
	}
	h.put(vmb)
	if text == "" {
		h.setCheckpoint(checkpoint, volumes)
	}
}

func (h *hypervisor) setCheckpoint(name string, volumes []any) {
	tracker := h.tracker()
	tracker.Object["status"] = map[string]any{"latestCheckpoint": map[string]any{"name": name, "volumes": volumes}}
	h.put(tracker)
}

func (h *hypervisor) put(object *unstructured.Unstructured) {
	h.t.Helper()
	if err := h.c.Update(h.ctx, object); err != nil && !apierrors.IsNotFound(err) {
		h.t.Fatalf("update %s: %v", object.GetName(), err)
	}
}

// requireClean checks that only the tracker is left.
func (h *hypervisor) requireClean() {
	h.t.Helper()
	require.Empty(h.t, h.objects("VirtualMachineBackup"))
	for _, claim := range list[corev1.PersistentVolumeClaimList](h.world).Items {
		require.False(h.t, strings.HasPrefix(claim.Name, "blockmover-"), claim.Name)
	}
	require.Empty(h.t, list[corev1.PersistentVolumeList](h.world).Items)
	h.requireNothingLeft(nil, nil)
}
