package controller

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
)

// hopsOfADisk names the hops of a call of the backup of a running VM: those of its own table, and
// from the mover pod on those of any backup.
func hopsOfADisk(c call) []string {
	ofVM := strings.HasPrefix(c.kind, "VirtualMachineBackup") || (c.kind == "PersistentVolumeClaim" && c.namespace == appNamespace) ||
		(c.kind == "PersistentVolumeClaim" && identity.IsVMBackupName(c.name)) || c.kind == "PersistentVolume"
	switch {
	case c.by == manager && c.is("DataUpload", "patch") && c.sets(identity.AnnotationVMBackup):
		hop := "manager: decide"
		if strings.Contains(c.diff, `\"files\"`) {
			hop = "manager: watch"
		}
		return append(hopsOfABackup(c), hop)
	case c.by != manager || !ofVM:
		return hopsOfABackup(c)
	case c.verb == "create" && c.namespace == appNamespace:
		return []string{"manager: begin"}
	case c.is("PersistentVolumeClaim", "delete") && c.namespace == veleroNamespace:
		return []string{"manager: release"}
	}
	return []string{"manager: re-home"}
}

// TestHopsOfAVM kills the processes that back up a running VM. KubeVirt backs it up once, and each
// disk has one image.
func TestHopsOfAVM(t *testing.T) {
	seen := map[string]int{}
	disks := map[string]string{"root-disk": "root", "data": "data-1"}
	way{
		hopsOf: hopsOfADisk,
		world: func(t *testing.T) *hopWorld {
			v := newVM(t)
			h := newHopWorld(t, v.world)
			h.vm, h.also = v, v.stepVMs
			require.NoError(t, h.c.Create(h.ctx, &corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{Namespace: veleroNamespace, Name: "policies"},
				Data:       map[string]string{"policies.yaml": strings.Replace(hopPolicy, "blockmover}", "blockmover-kubevirt}", 1)},
			}))
			for i, claim := range []string{"root-disk", "data"} {
				pvc := get[corev1.PersistentVolumeClaim](h.world, appNamespace, claim)
				_, pv := appVolume(claim, nil)
				pv.Name = pvc.Spec.VolumeName
				require.NoError(t, h.c.Create(h.ctx, pv))
				h.volumes[pv.Spec.CSI.VolumeHandle] = true
				h.fill(disks[claim], byte(i))
			}
			return h
		},
		run: func(h *hopWorld) {
			b := h.addBackup("first")
			h.backUp(b, "root-disk", "data")
			h.setPhase(b, velerov1.BackupPhaseWaitingForPluginOperations)
			h.manage(200)
			h.setPhase(b, velerov1.BackupPhaseCompleted)
			h.settle()
		},
		check: func(h *hopWorld) {
			for claim, disk := range disks {
				du := h.uploadOf(get[velerov1.Backup](h.world, veleroNamespace, "first"), claim)
				h.requireImage(du, h.data[disk])
				h.requireImages(1, claim)
			}
			require.Equal(h.t, 1, h.vm.ends, "QEMU writes the disks once")
			require.Empty(h.t, h.vm.objects("VirtualMachineBackup"))
			h.vm.tracker()
			require.Len(h.t, list[corev1.PersistentVolumeClaimList](h.world, client.InNamespace(appNamespace)).Items, 2)
			require.Len(h.t, list[corev1.PersistentVolumeList](h.world).Items, 2)
			require.Len(h.t, h.volumes, 2)
			h.requireNoOperation()
		},
	}.killEach(t, seen)
	tables := hopTables(t)[wayOfABackup]
	for hop := range seen {
		if slices.Contains(tables[0], hop) && !slices.Contains(tables[1], hop) {
			delete(seen, hop)
		}
	}
	requireTable(t, wayOfABackup, 1, seen)
}
