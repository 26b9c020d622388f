package controller

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/config"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/inplace"
	"github.com/blockmover/blockmover/internal/kubevirt"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/task"
)

// tasks keeps the tasks of the mover pods by the volume, and gives each disk a repo snapshot.
func (h *hypervisor) tasks() map[string]task.Request {
	tasks := map[string]task.Request{}
	h.podEnds = func(pod *corev1.Pod) bool {
		r, err := task.DecodeRequest(pod.Spec.Containers[0].Env[0].Value)
		require.NoError(h.t, err)
		tasks[r.Backup.DiskFile.Volume] = r
		h.report.Kind = repository.Incremental
		if r.Backup.DiskFile.Since == "" {
			h.report.Kind = repository.Full
		}
		return true
	}
	return tasks
}

func requirePhase(t *testing.T, want phase.Phase, ended map[string]*operation.View) {
	t.Helper()
	for _, op := range ended {
		require.Equal(t, want, op.Status.Phase, "%s: %s", op.Name, op.Status.Message)
	}
}

// restoredInPlace labels the PVC of a disk as a restore in place does.
func (h *hypervisor) restoredInPlace(by string) {
	claim := get[corev1.PersistentVolumeClaim](h.world, appNamespace, "data")
	claim.Labels = map[string]string{identity.LabelRestored: by}
	h.update(claim)
}

// TestDiskRestoredInPlace: QEMU does not see what a restore in place writes. The first backup after it is full, and the next one builds on that.
func TestDiskRestoredInPlace(t *testing.T) {
	h := vmWorld(t)
	tasks := h.tasks()
	requirePhase(t, phase.Completed, h.runAll("backup-1"))
	h.restoredInPlace("dd-1")
	for _, want := range []repository.Kind{repository.Full, repository.Incremental} {
		clear(tasks)
		name := "backup-" + string(want)
		h.backUp(name)
		ended := h.runAll(name)
		requirePhase(t, phase.Completed, ended)
		for volume, op := range ended {
			require.Equal(t, want == repository.Incremental, tasks[volume].Backup.DiskFile.Since != "", "%s: %v", volume, tasks[volume].Backup.DiskFile)
			require.Equal(t, volume == "data-1", (*op.Upload.Status.DataMoverResult)[resultRestored] == "dd-1")
		}
	}
}

// TestHalfRestoredDisk: a disk that a restore has left half written is not backed up. The other one is.
func TestHalfRestoredDisk(t *testing.T) {
	h := vmWorld(t)
	long := &metav1.Time{Time: h.clock.Add(-time.Hour)}
	require.NoError(t, h.c.Create(h.ctx, &velerov2alpha1.DataDownload{
		ObjectMeta: metav1.ObjectMeta{Namespace: veleroNamespace, Name: "half"},
		Spec: velerov2alpha1.DataDownloadSpec{
			TargetVolume: velerov2alpha1.TargetVolumeSpec{Namespace: appNamespace, PVC: "data"}, DataMover: identity.DataMover,
			DataMoverConfig: map[string]string{identity.ConfigInPlace: "uid-of-data", identity.ConfigInPlaceVolume: string(inplace.SameVolume)},
		},
		Status: velerov2alpha1.DataDownloadStatus{
			Phase: velerov2alpha1.DataDownloadPhaseFailed, Message: "killed; " + halfRestored, AcceptedTimestamp: long, CompletionTimestamp: long,
		},
	}))
	h.tasks()
	ended := h.runAll("backup-1")
	require.Equal(t, phase.Completed, ended["root"].Status.Phase, ended["root"].Status.Message)
	require.Equal(t, phase.Failed, ended["data-1"].Status.Phase)
	require.Contains(t, ended["data-1"].Status.Message, "PVC app/data may hold a mixture of old and restored data, because DataDownload/velero/half restored it in place")
	h.sweepVMs()
	h.requireClean()
}

func TestDisks(t *testing.T) {
	for _, modern := range []bool{false, true} {
		h := vmWorld(t)
		h.modern = modern
		tasks := h.tasks()
		ended := h.runAll("backup-1")
		requirePhase(t, phase.Completed, ended)
		name := identity.VMBackupName("uid-of-backup-1", vmUID)
		first := name + "-1-checkpoint-1"
		for volume, op := range ended {
			require.Equal(t, first, (*op.Upload.Status.DataMoverResult)["checkpoint"])
			require.Equal(t, "vm", (*op.Upload.Status.DataMoverResult)["vm"])
			r := tasks[volume]
			require.Equal(t, "/volume", r.Device)
			require.Equal(t, &task.DiskFile{
				Instance: "vm", Backup: name + "-1", Volume: volume,
				Full: []chain.Step{{Reason: "NoParent", Detail: "the VM has no checkpoint: this is its first backup, or QEMU was killed since the last one"}},
			}, r.Backup.DiskFile)
			require.Equal(t, vmUID+"/"+first, r.Backup.SnapshotHandle)
			require.Equal(t, vmUID+"/uid-of-"+op.Upload.Spec.SourcePVC, r.Backup.VolumeHandle)
			require.EqualValues(t, gibi, r.Backup.Capacity)
		}
		h.requireClean()

		h.backUp("backup-2")
		requirePhase(t, phase.Completed, h.runAll("backup-2"))
		for _, r := range tasks {
			require.Equal(t, vmUID+"/"+first, r.Backup.DiskFile.Since)
			require.Empty(t, r.Backup.DiskFile.Full)
		}
		h.requireClean()
	}
}

// TestDisksSurviveFaults: a call of the controllers fails, before it has an effect or after. There
// are hundreds of calls; every fifth is tried.
func TestDisksSurviveFaults(t *testing.T) {
	const stride = 5
	for _, after := range []bool{false, true} {
		for failAt := 1; ; failAt += stride {
			h := vmWorld(t)
			h.tasks()
			h.faults.failAt, h.faults.after = failAt, after
			requirePhase(t, phase.Completed, h.runAll("backup-1"))
			h.sweepVMs()
			h.requireClean()
			if !h.faults.fired {
				require.Greater(t, failAt, 50)
				break
			}
		}
	}
}

// TestDisksCanceledAtAnyTime: the backup is canceled, or the DataUploads are deleted. Nothing is
// left, and the VM can be backed up again.
func TestDisksCanceledAtAnyTime(t *testing.T) {
	for n := range 20 {
		for _, volume := range []string{"root", "data-1", ""} {
			h := vmWorld(t)
			h.tasks()
			for range n {
				for _, v := range []string{"root", "data-1"} {
					_, err := h.uploads.Reconcile(h.ctx, requestFor("backup-1-"+v))
					require.NoError(t, err)
				}
				h.step()
				h.stepVMs()
			}
			for _, v := range []string{"root", "data-1"} {
				if op := h.operation(h.uploads, "backup-1-"+v); volume == v || volume == "" {
					h.cancel(op.Upload)
				}
			}
			h.runAll("backup-1")
			h.sweepVMs()
			h.requireClean()
			h.backUp("backup-2")
			requirePhase(t, phase.Completed, h.runAll("backup-2"))
			h.requireClean()
		}
	}
}

// TestSweepOfVMsTrustsNoLabels: a tenant gives our label to a PVC of its own.
func TestSweepOfVMsTrustsNoLabels(t *testing.T) {
	h := vmWorld(t)
	claim := get[corev1.PersistentVolumeClaim](h.world, appNamespace, "data")
	claim.Labels = map[string]string{identity.LabelVMBackup: identity.VMBackupName("some", "vm")}
	h.update(claim)
	h.sweepVMs()
	require.Nil(t, get[corev1.PersistentVolumeClaim](h.world, appNamespace, "data").DeletionTimestamp)
}

// sweepVMs runs the sweep beside KubeVirt.
func (h *hypervisor) sweepVMs() {
	for range 6 {
		h.sweepUp()
		h.stepVMs()
	}
}

// backupError makes the event that KubeVirt makes of a backup that it cannot begin.
func (h *hypervisor) backupError(message string, in time.Duration) {
	h.t.Helper()
	require.NoError(h.t, h.c.Create(h.ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: appNamespace, Name: "e"},
		InvolvedObject: corev1.ObjectReference{Name: "vm"}, Reason: "BackupError", Message: message, LastTimestamp: metav1.NewTime(h.clock.Add(in)),
	}))
}

// TestDiskTraps: what KubeVirt does wrong, and what others do to its objects.
func TestDiskTraps(t *testing.T) {
	nth := func(name string, n string) bool { return strings.HasSuffix(name, "-"+n) }
	for name, tc := range map[string]struct {
		// spoil happens before the second backup.
		spoil func(h *hypervisor)
		want  phase.Phase
		// reason is why the second backup is full, or "".
		reason string
		// message is in the messages if it fails.
		message string
	}{
		"nothing": {func(*hypervisor) {}, phase.Completed, "", ""},
		"too small once": {func(h *hypervisor) {
			h.end = func(vmb *unstructured.Unstructured) string {
				if nth(vmb.GetName(), "1") {
					return "No space left on device"
				}
				claim := get[corev1.PersistentVolumeClaim](h.world, appNamespace, vmb.GetName())
				size := claim.Spec.Resources.Requests[corev1.ResourceStorage]
				require.Greater(h.t, size.Value(), int64(4*gibi))
				return ""
			}
		}, phase.Completed, "", ""},
		"too small for ever": {func(h *hypervisor) {
			h.end = func(*unstructured.Unstructured) string { return "No space left on device" }
		}, phase.Failed, "", "No space left on device; this was attempt 3"},
		"incremental does not begin": {func(h *hypervisor) {
			h.stuck = func(vmb *unstructured.Unstructured) bool { return nth(vmb.GetName(), "1") }
		}, phase.Completed, "IncrementalStuck", ""},
		"no room for a directory": {func(h *hypervisor) {
			h.stuck = func(vmb *unstructured.Unstructured) bool { return nth(vmb.GetName(), "1") }
			h.backupError("mkdir /var/run/kubevirt/hotplug-disks/vm: no space left on device", time.Hour)
		}, phase.Completed, "", ""},
		"no room, long ago": {func(h *hypervisor) {
			h.stuck = func(vmb *unstructured.Unstructured) bool { return nth(vmb.GetName(), "1") }
			h.backupError("mkdir /var/run/kubevirt/hotplug-disks/vm: no space left on device", -time.Hour)
		}, phase.Completed, "IncrementalStuck", ""},
		"nothing begins": {func(h *hypervisor) {
			h.stuck = func(*unstructured.Unstructured) bool { return true }
			h.backupError("checkpoint inconsistent: missing or broken bitmap", time.Hour)
		}, phase.Failed, "", "has not begun within 20s: checkpoint inconsistent: missing or broken bitmap"},
		"QEMU is killed": {func(h *hypervisor) {
			h.end = func(vmb *unstructured.Unstructured) string {
				if nth(vmb.GetName(), "1") {
					h.setCheckpoint("", nil)
					return "VMI backup status was lost"
				}
				return ""
			}
		}, phase.Completed, "IncrementalStuck", ""},
		"another backup moved the checkpoint": {func(h *hypervisor) {
			h.setCheckpoint("nightly-2026", []any{map[string]any{"volumeName": "root"}, map[string]any{"volumeName": "data-1"}})
		}, phase.Completed, "CheckpointUnknown", ""},
		"the checkpoint moves while it runs": {func(h *hypervisor) {
			h.stuck = func(vmb *unstructured.Unstructured) bool {
				if nth(vmb.GetName(), "1") && vmb.Object["status"] != nil {
					h.setCheckpoint("nightly-2026", nil)
					return true
				}
				return false
			}
		}, phase.Completed, "IncrementalStuck", ""},
		"the tracker lost its checkpoint": {func(h *hypervisor) { h.setCheckpoint("", nil) }, phase.Completed, "NoParent", ""},
		"the tracker was deleted":         {func(h *hypervisor) { require.NoError(h.t, h.c.Delete(h.ctx, h.tracker())) }, phase.Completed, "NoParent", ""},
		"a disk was added": {func(h *hypervisor) {
			h.editVM(func(vm *unstructured.Unstructured) {
				volumes, _, _ := unstructured.NestedSlice(vm.Object, "spec", "template", "spec", "volumes")
				volumes = append(volumes, map[string]any{"name": "more", "persistentVolumeClaim": map[string]any{"claimName": "more"}})
				require.NoError(h.t, unstructured.SetNestedSlice(vm.Object, volumes, "spec", "template", "spec", "volumes"))
			})
		}, phase.Completed, "DisksChanged", ""},
		"a disk was restored in place": {func(h *hypervisor) { h.restoredInPlace("dd-1") }, phase.Completed, "DiskRestored", ""},
		"a disk is restored in place after the decision": {func(h *hypervisor) {
			h.stuck = func(vmb *unstructured.Unstructured) bool {
				if nth(vmb.GetName(), "1") && vmb.Object["status"] != nil {
					h.restoredInPlace("dd-1")
				}
				return false
			}
		}, phase.Completed, "IncrementalStuck", ""},
		"KubeVirt makes a full": {func(h *hypervisor) {
			h.end = func(vmb *unstructured.Unstructured) string {
				status, _ := vmb.Object["status"].(map[string]any)
				status["type"] = kubevirt.Full
				return ""
			}
		}, phase.Completed, "CheckpointLost", ""},
		"somebody deletes the backup": {func(h *hypervisor) {
			deleted := false
			h.stuck = func(vmb *unstructured.Unstructured) bool {
				if !deleted {
					deleted = true
					require.NoError(h.t, h.c.Delete(h.ctx, vmb))
					return true
				}
				return false
			}
		}, phase.Completed, "", ""},
		"the VM was created anew": {func(h *hypervisor) {
			vm := h.vm()
			require.NoError(h.t, h.c.Delete(h.ctx, vm))
			vm.SetUID("another")
			vm.SetResourceVersion("")
			require.NoError(h.t, h.c.Create(h.ctx, vm))
		}, phase.Failed, "", "VM app/vm was deleted since Velero backed it up"},
		"the manager has no rights on VMs": {func(h *hypervisor) {
			h.faults.refuse = func(verb string, object client.Object) error {
				if verb == "get" && object.GetObjectKind().GroupVersionKind() == kubevirt.VirtualMachine {
					return apierrors.NewForbidden(schema.GroupResource{Resource: "virtualmachines"}, "vm", errors.New("no rule"))
				}
				return nil
			}
		}, phase.Failed, "", "no rule: install the component deploy/kubevirt"},
		"the VM is stopped": {func(h *hypervisor) {
			h.editVM(func(vm *unstructured.Unstructured) {
				require.NoError(h.t, unstructured.SetNestedField(vm.Object, "Stopped", "status", "printableStatus"))
			})
			h.uploads.live = edited(h.uploads.live, func(c *config.Config) { c.PreparingTimeout.Duration = minuteOfWorld })
		}, phase.Failed, "", "VM app/vm is Stopped, want Running"},
		"another's backup runs for a while": {func(h *hypervisor) {
			other := kubevirt.NewBackup(kubevirt.BackupSpec{Tracker: h.tracker().GetName(), Claim: "x"})
			other.SetNamespace(appNamespace)
			other.SetName("nightly")
			require.NoError(h.t, h.c.Create(h.ctx, other))
			h.uploads.live = edited(h.uploads.live, func(c *config.Config) { c.PreparingTimeout.Duration = minuteOfWorld }) // no clock runs
			left := 20
			h.stuck = func(vmb *unstructured.Unstructured) bool {
				if vmb.GetName() != "nightly" {
					return false
				}
				if left--; left == 0 {
					require.NoError(h.t, h.c.Delete(h.ctx, vmb))
				}
				return true
			}
		}, phase.Completed, "", ""},
		"Velero has not written the backup": {func(h *hypervisor) {
			backup := get[velerov1.Backup](h.world, veleroNamespace, "backup-2")
			backup.Status.Phase = velerov1.BackupPhaseInProgress
			h.update(backup)
			for range 2 {
				_, err := h.uploads.Reconcile(h.ctx, requestFor("backup-2-root"))
				require.NoError(h.t, err)
				h.clock = h.clock.Add(time.Hour)
			}
			require.Empty(h.t, h.objects("VirtualMachineBackup"))
			require.Contains(h.t, h.operation(h.uploads, "backup-2-root").Status.Message, "waits until Velero has written Backup backup-2")
			backup.Status.Phase = velerov1.BackupPhaseWaitingForPluginOperations
			h.update(backup)
		}, phase.Completed, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := vmWorld(t)
			tasks := h.tasks()
			requirePhase(t, phase.Completed, h.runAll("backup-1"))
			h.backUp("backup-2")
			clear(tasks)
			tc.spoil(h)
			ended := h.runAll("backup-2")
			requirePhase(t, tc.want, ended)
			for _, op := range ended {
				require.Contains(t, op.Status.Message, tc.message)
			}
			if tc.want == phase.Completed {
				require.Len(t, tasks, 2)
			}
			for _, r := range tasks {
				reason := ""
				if len(r.Backup.DiskFile.Full) > 0 {
					reason = string(r.Backup.DiskFile.Full[0].Reason)
				}
				require.Equal(t, tc.reason, reason, "%v", r.Backup.DiskFile)
				require.Equal(t, tc.reason == "", r.Backup.DiskFile.Since != "")
			}
			h.sweepVMs()
			h.requireClean()
		})
	}
}

func (h *hypervisor) vm() *unstructured.Unstructured {
	vm := kubevirt.New(kubevirt.VirtualMachine)
	require.NoError(h.t, h.c.Get(h.ctx, client.ObjectKey{Namespace: appNamespace, Name: "vm"}, vm))
	return vm
}

func (h *hypervisor) editVM(edit func(vm *unstructured.Unstructured)) {
	vm := h.vm()
	edit(vm)
	h.put(vm)
}
