package backup

import (
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/kuberesource"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kubevirt"
	"github.com/blockmover/blockmover/plugins/internal/faulty"
)

const kubevirtPolicy = `version: v1
volumePolicies:
- conditions: {pvcLabels: {of: snapshots}}
  action: {type: snapshot}
- conditions: {pvcLabels: {of: nobody}}
  action: {type: skip}
- conditions: {csi: {driver: test.csi.example}}
  action:
    type: custom
    parameters: {mover: blockmover-kubevirt, skipQuiesce: true}
`

// newVM is a running VM named name, whose disks are in PVCs.
func newVM(name string, claims ...string) *unstructured.Unstructured {
	vm := kubevirt.New(kubevirt.VirtualMachine)
	vm.SetNamespace(appNS)
	vm.SetName(name)
	vm.SetUID("uid-of-vm")
	var volumes []any
	for _, claim := range claims {
		volumes = append(volumes, map[string]any{"name": "disk-" + claim, "persistentVolumeClaim": map[string]any{"claimName": claim}})
	}
	vm.Object["spec"] = map[string]any{"runStrategy": "Always", "template": map[string]any{"spec": map[string]any{"volumes": volumes}}}
	vm.Object["status"] = map[string]any{"created": true, "printableStatus": "Running", "changedBlockTracking": map[string]any{"state": "Enabled"}}
	return vm
}

// vmWorld has a VM with the PVC as a disk, and a second disk that the policy skips.
func vmWorld(t *testing.T) (*world, *unstructured.Unstructured) {
	w := newWorld(t)
	w.policy = kubevirtPolicy
	w.kinds = []schema.GroupVersionKind{kubevirt.VirtualMachine, kubevirt.Backup, kubevirt.Tracker}
	other := w.pvc.DeepCopy()
	other.Name, other.UID, other.Labels = "other", "other-uid", map[string]string{"of": "nobody"}
	vm := newVM("vm", "data", "other")
	w.objects = append(w.objects, vm, other)
	return w, vm
}

func TestDiskOfVM(t *testing.T) {
	w, _ := vmWorld(t)
	r := w.execute(w.start(&faulty.Fault{}))
	require.NoError(t, r.err)
	require.NotEmpty(t, r.operationID)
	require.Empty(t, w.snapshots(), "KubeVirt backs it up")
	uploads := w.uploads()
	require.Len(t, uploads, 1)
	require.Equal(t, map[string]string{
		"parentSnapshot": "auto", "skipQuiesce": "true", "vm": "vm", "vmUID": "uid-of-vm", "vmVolume": "disk-data",
		"vmBackup": identity.VMBackupName("backup-uid", "uid-of-vm"),
	}, uploads[0].Spec.DataMoverConfig)
	require.Equal(t, kubevirt.Driver, uploads[0].Spec.CSISnapshot.Driver)
	require.Equal(t, identity.DataMover, uploads[0].Spec.DataMover)
}

// TestDiskGoesTheCSIWay: what KubeVirt cannot back up now, the storage snapshots, and the DataUpload
// says why.
func TestDiskGoesTheCSIWay(t *testing.T) {
	set := func(value string, fields ...string) func(w *world, vm *unstructured.Unstructured) {
		return func(w *world, vm *unstructured.Unstructured) {
			require.NoError(w.t, unstructured.SetNestedField(vm.Object, value, fields...))
		}
	}
	for want, spoil := range map[string]func(w *world, vm *unstructured.Unstructured){
		"VMNotRunning":      set("Stopped", "status", "printableStatus"),
		"VMNotTracked":      set("PendingRestart", "status", "changedBlockTracking", "state"),
		"VMBackupNotServed": func(w *world, _ *unstructured.Unstructured) { w.kinds, w.objects = nil, nil },
		"NotAVMDisk":        func(w *world, _ *unstructured.Unstructured) { w.objects = nil },
		"SharedVMDisk":      func(w *world, _ *unstructured.Unstructured) { w.objects = append(w.objects, newVM("second", "data")) },
	} {
		t.Run(want, func(t *testing.T) {
			w, vm := vmWorld(t)
			spoil(w, vm)
			r := w.execute(w.start(&faulty.Fault{}))
			require.NoError(t, r.err)
			require.Len(t, w.snapshots(), 1)
			uploads := w.uploads()
			require.Len(t, uploads, 1)
			require.Equal(t, want, uploads[0].Spec.DataMoverConfig[identity.ConfigVMReason])
			require.Empty(t, uploads[0].Spec.DataMoverConfig[identity.ConfigVMBackup])
			var warnings strings.Builder
			for _, entry := range w.logs.AllEntries() {
				if entry.Level == logrus.WarnLevel {
					warnings.WriteString(entry.Message)
				}
			}
			require.Contains(t, warnings.String(), want)
		})
	}
}

func TestOtherDisksOfTheVM(t *testing.T) {
	w, _ := vmWorld(t)
	other, _ := w.objects[1].(*corev1.PersistentVolumeClaim)
	other.Labels["of"] = "snapshots"
	r := w.execute(w.start(&faulty.Fault{}))
	require.ErrorContains(t, r.err, `disk disk-other of VM vm, PVC app/other, has the volume policy action "snapshot", want custom or skip`)
	w.requireNothingLeft()
}

func TestPersistentStateIsSkipped(t *testing.T) {
	w, _ := vmWorld(t)
	w.pvc.Name, w.pvc.Labels = "persistent-state-for-vm-x1", map[string]string{labelPersistentState: "vm"}
	r := w.execute(w.start(&faulty.Fault{}))
	require.NoError(t, r.err)
	require.Equal(t, "true", r.item.GetAnnotations()[velerov1.SkipFromBackupAnnotation])
	require.Empty(t, r.operationID)
	w.requireNothingLeft()
}

func TestVMAction(t *testing.T) {
	w, vm := vmWorld(t)
	vm.SetAnnotations(map[string]string{identity.AnnotationVMDisks: "stale"})
	action := &VMAction{policies: w.start(&faulty.Fault{}).policies, api: w.api}
	item, additional, operationID, _, err := action.Execute(vm, w.backup)
	require.NoError(t, err)
	require.Empty(t, operationID)
	require.Equal(t, []velero.ResourceIdentifier{{GroupResource: kuberesource.PersistentVolumeClaims, Namespace: appNS, Name: "data"}}, additional)
	require.Equal(t, "data", (&unstructured.Unstructured{Object: item.UnstructuredContent()}).GetAnnotations()[identity.AnnotationVMDisks])

	w, vm = vmWorld(t)
	vm.SetAnnotations(map[string]string{identity.AnnotationVMDisks: "stale"})
	w.policy = strings.Replace(kubevirtPolicy, "blockmover-kubevirt, skipQuiesce: true", "other", 1)
	action = &VMAction{policies: w.start(&faulty.Fault{}).policies, api: w.api}
	item, additional, _, _, err = action.Execute(vm, w.backup)
	require.NoError(t, err)
	require.Empty(t, additional)
	require.Empty(t, (&unstructured.Unstructured{Object: item.UnstructuredContent()}).GetAnnotations())

	selector, err := action.AppliesTo()
	require.NoError(t, err)
	require.Equal(t, []string{"virtualmachines.kubevirt.io"}, selector.IncludedResources)
	require.Equal(t, VMActionName, action.Name())
	_, err = action.Progress("x", w.backup)
	require.Error(t, err)
	require.Error(t, action.Cancel("x", w.backup))
}
