package restore

import (
	"testing"
	"time"

	logrustest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kubevirt"
	"github.com/blockmover/blockmover/plugins/internal/faulty"
)

// backedUpVM is a VM in a backup, with the disks root and data.
func backedUpVM(spec map[string]any) *unstructured.Unstructured {
	vm := kubevirt.New(kubevirt.VirtualMachine)
	vm.SetNamespace(appNS)
	vm.SetName("vm")
	vm.SetAnnotations(map[string]string{identity.AnnotationVMDisks: "root,data", "keep": "this"})
	spec["template"] = map[string]any{"spec": map[string]any{"volumes": []any{
		map[string]any{"name": "root", "dataVolume": map[string]any{"name": "root"}},
		map[string]any{"name": "data", "persistentVolumeClaim": map[string]any{"claimName": "data"}},
	}}}
	vm.Object["spec"] = spec
	return vm
}

// vmWorld has the DataDownloads of the disks.
type vmWorld struct {
	*world
	action *VMAction
}

func newVMWorld(t *testing.T, more ...client.Object) *vmWorld {
	w := newWorld(t)
	w.more = more
	w.start(&faulty.Fault{})
	log, _ := logrustest.NewNullLogger()
	return &vmWorld{w, NewVMAction(log, w.api)}
}

func (w *vmWorld) execute(vm *unstructured.Unstructured) *velero.RestoreItemActionExecuteOutput {
	w.t.Helper()
	output, err := w.action.Execute(&velero.RestoreItemActionExecuteInput{Item: vm.DeepCopy(), ItemFromBackup: vm, Restore: w.restore})
	require.NoError(w.t, err)
	return output
}

func (w *vmWorld) vm(namespace string) *unstructured.Unstructured {
	w.t.Helper()
	vm := kubevirt.New(kubevirt.VirtualMachine)
	require.NoError(w.t, w.api.Get(w.t.Context(), client.ObjectKey{Namespace: namespace, Name: "vm"}, vm))
	return vm
}

// download makes the DataDownload of a disk, or changes its phase.
func (w *vmWorld) download(namespace, claim string, phase velerov2alpha1.DataDownloadPhase) {
	w.t.Helper()
	dd := &velerov2alpha1.DataDownload{
		ObjectMeta: metav1.ObjectMeta{Namespace: veleroNS, Name: "dd-" + namespace + claim, Labels: map[string]string{velerov1.RestoreUIDLabel: "restore-uid"}},
		Spec:       velerov2alpha1.DataDownloadSpec{DataMover: identity.DataMover, TargetVolume: velerov2alpha1.TargetVolumeSpec{Namespace: namespace, PVC: claim}},
	}
	if err := w.api.Create(w.t.Context(), dd); err != nil {
		require.NoError(w.t, w.api.Get(w.t.Context(), client.ObjectKeyFromObject(dd), dd))
	}
	dd.Status.Phase, dd.Status.Message = phase, "as it says"
	require.NoError(w.t, w.api.Update(w.t.Context(), dd))
}

// TestVMStartsAfterItsDisks: the VM is restored halted into another namespace, and gets its run
// strategy back with the last disk, once.
func TestVMStartsAfterItsDisks(t *testing.T) {
	for name, spec := range map[string]map[string]any{"run strategy": {"runStrategy": "Always"}, "running": {"running": true}} {
		t.Run(name, func(t *testing.T) {
			w := newVMWorld(t)
			w.restore.Spec.NamespaceMapping = map[string]string{appNS: "copy"}
			output := w.execute(backedUpVM(spec))
			require.Equal(t, "blockmover-vm.copy/vm", output.OperationID)
			vm := &unstructured.Unstructured{Object: output.UpdatedItem.UnstructuredContent()}
			require.Equal(t, map[string]string{identity.AnnotationRunStrategy: "Always", "keep": "this"}, vm.GetAnnotations())
			require.Equal(t, "Halted", runStrategy(vm))
			require.NotContains(t, vm.Object["spec"], "running")
			vm.SetNamespace("copy")
			require.NoError(t, w.api.Create(t.Context(), vm))

			w.download("copy", "root", velerov2alpha1.DataDownloadPhaseCompleted)
			w.download("copy", "data", velerov2alpha1.DataDownloadPhaseInProgress)
			w.download("another", "data", velerov2alpha1.DataDownloadPhaseFailed)
			w.download("copy", "of-no-vm", velerov2alpha1.DataDownloadPhaseFailed)
			progress, err := w.action.Progress(output.OperationID, w.restore)
			require.NoError(t, err)
			require.False(t, progress.Completed)
			require.Equal(t, "1 of 2 disks", progressText(progress))
			require.Equal(t, "Halted", runStrategy(w.vm("copy")))

			w.download("copy", "data", velerov2alpha1.DataDownloadPhaseCompleted)
			for range 2 {
				progress, err = w.action.Progress(output.OperationID, w.restore)
				require.NoError(t, err)
				require.True(t, progress.Completed)
				require.Empty(t, progress.Err)
				require.Equal(t, "Always", runStrategy(w.vm("copy")))
				require.Equal(t, map[string]string{"keep": "this"}, w.vm("copy").GetAnnotations())
			}
		})
	}
}

func progressText(p velero.OperationProgress) string {
	return time.Duration(p.NCompleted).String()[:1] + " of " + time.Duration(p.NTotal).String()[:1] + " " + p.OperationUnits
}

func TestVMStaysHalted(t *testing.T) {
	for _, phase := range []velerov2alpha1.DataDownloadPhase{velerov2alpha1.DataDownloadPhaseFailed, velerov2alpha1.DataDownloadPhaseCanceled} {
		w := newVMWorld(t)
		output := w.execute(backedUpVM(map[string]any{"runStrategy": "RerunOnFailure"}))
		progress, err := w.action.Progress(output.OperationID, w.restore)
		require.NoError(t, err)
		require.True(t, progress.Completed)
		require.Contains(t, progress.Err, "VM app/vm does not exist")

		vm := &unstructured.Unstructured{Object: output.UpdatedItem.UnstructuredContent()}
		require.NoError(t, w.api.Create(t.Context(), vm))
		w.download(appNS, "root", velerov2alpha1.DataDownloadPhaseCompleted)
		w.download(appNS, "data", phase)
		progress, err = w.action.Progress(output.OperationID, w.restore)
		require.NoError(t, err)
		require.True(t, progress.Completed)
		require.Contains(t, progress.Err, "VM app/vm stays halted: the restore of its disk, PVC data, is "+string(phase)+": as it says")
		require.Equal(t, "Halted", runStrategy(w.vm(appNS)))
		require.NoError(t, w.action.Cancel(output.OperationID, w.restore))
	}
}

// TestVMIsLeftAsItIs: the action touches only VMs whose disks it restores.
func TestVMIsLeftAsItIs(t *testing.T) {
	no := false
	for name, tc := range map[string]struct {
		change func(w *vmWorld, vm *unstructured.Unstructured)
		spec   map[string]any
		more   []client.Object
	}{
		"no disk of ours": {func(_ *vmWorld, vm *unstructured.Unstructured) { vm.SetAnnotations(nil) }, map[string]any{"runStrategy": "Always"}, nil},
		"halted before":   {func(*vmWorld, *unstructured.Unstructured) {}, map[string]any{"runStrategy": "Halted"}, nil},
		"not running":     {func(*vmWorld, *unstructured.Unstructured) {}, map[string]any{"running": false}, nil},
		"without volumes": {func(w *vmWorld, _ *unstructured.Unstructured) { w.restore.Spec.RestorePVs = &no }, map[string]any{"runStrategy": "Always"}, nil},
		"it exists":       {func(*vmWorld, *unstructured.Unstructured) {}, map[string]any{"runStrategy": "Always"}, []client.Object{backedUpVM(map[string]any{})}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newVMWorld(t, tc.more...)
			vm := backedUpVM(tc.spec)
			tc.change(w, vm)
			output := w.execute(vm)
			require.Empty(t, output.OperationID)
			require.False(t, output.SkipRestore)
			restored := &unstructured.Unstructured{Object: output.UpdatedItem.UnstructuredContent()}
			require.Equal(t, vm.Object["spec"], restored.Object["spec"])
			require.NotContains(t, restored.GetAnnotations(), identity.AnnotationVMDisks)
			require.NotContains(t, restored.GetAnnotations(), identity.AnnotationRunStrategy)
		})
	}
}

func TestVMBackupsAreNotRestored(t *testing.T) {
	w := newVMWorld(t)
	for _, object := range []*unstructured.Unstructured{kubevirt.NewTracker("vm"), kubevirt.NewBackup(kubevirt.BackupSpec{Tracker: "t", Claim: "c"})} {
		require.True(t, w.execute(object).SkipRestore)
	}
	instance := kubevirt.New(kubevirt.VirtualMachineInstance)
	require.False(t, w.execute(instance).SkipRestore, "nobody else makes it")
	instance.SetOwnerReferences([]metav1.OwnerReference{{Kind: "VirtualMachine", Name: "vm"}})
	require.True(t, w.execute(instance).SkipRestore)
	selector, err := w.action.AppliesTo()
	require.NoError(t, err)
	require.Contains(t, selector.IncludedResources, "virtualmachinebackuptrackers.backup.kubevirt.io")
	require.Equal(t, VMActionName, w.action.Name())
	ready, err := w.action.AreAdditionalItemsReady(nil, nil)
	require.NoError(t, err)
	require.True(t, ready)
	for _, id := range []string{"", "blockmover-vm.noslash", "dd-1.a/b"} {
		_, err := w.action.Progress(id, w.restore)
		require.Error(t, err)
	}
}

// TestDownloadOfADisk: the DataDownload of a VM's disk names the VM. The mover then makes a file of
// it in a Filesystem volume.
func TestDownloadOfADisk(t *testing.T) {
	w := newWorld(t)
	result := w.results[upload]
	result.DataMoverResult = &map[string]string{"vm": "vm", "kind": "Full"}
	w.results[upload] = result
	_, _, err := w.execute(w.start(&faulty.Fault{}))
	require.NoError(t, err)
	require.Equal(t, map[string]string{"vm": "vm"}, w.downloads()[0].Spec.DataMoverConfig)
}

func TestPodsOfVMsAreNotRestored(t *testing.T) {
	log, _ := logrustest.NewNullLogger()
	action := NewVMPodAction(log)
	output, err := action.Execute(&velero.RestoreItemActionExecuteInput{Item: &unstructured.Unstructured{Object: map[string]any{}}})
	require.NoError(t, err)
	require.True(t, output.SkipRestore)
	selector, err := action.AppliesTo()
	require.NoError(t, err)
	require.Equal(t, velero.ResourceSelector{IncludedResources: []string{"pods"}, LabelSelector: "kubevirt.io in (virt-launcher, hotplug-disk)"}, selector)
	require.Equal(t, VMPodActionName, action.Name())
	_, err = action.Progress("", nil)
	require.Error(t, err)
	require.Error(t, action.Cancel("", nil))
	ready, err := action.AreAdditionalItemsReady(nil, nil)
	require.NoError(t, err)
	require.True(t, ready)
}
