package backup

import (
	"testing"

	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/plugins/internal/faulty"
)

// TestServerWithoutCSI: Velero would leave the volume out, and the backup would be Completed.
func TestServerWithoutCSI(t *testing.T) {
	yes, no := true, false
	for name, c := range map[string]struct {
		change  func(*world, *PVCAction)
		refused bool
	}{
		"data mover blockmover": {func(*world, *PVCAction) {}, true},
		"the server has it":     {func(_ *world, a *PVCAction) { a.csi = true }, false},
		"another data mover":    {func(w *world, _ *PVCAction) { w.backup.Spec.DataMover = "velero" }, false},
		"data is not moved":     {func(w *world, _ *PVCAction) { w.backup.Spec.SnapshotMoveData = &no }, false},
		"nobody says":           {func(w *world, _ *PVCAction) { w.backup.Spec.SnapshotMoveData = nil }, false},
		"volumes are left out":  {func(w *world, _ *PVCAction) { w.backup.Spec.SnapshotVolumes = &no }, false},
		"no volume":             {func(w *world, _ *PVCAction) { w.pvc.Spec.VolumeName, w.pvc.Status.Phase = "", corev1.ClaimPending }, false},
		"no CSI volume": {func(w *world, _ *PVCAction) {
			w.pv.Spec.CSI = nil
			w.pv.Spec.HostPath = &corev1.HostPathVolumeSource{Path: "/data"}
			require.NoError(w.t, w.api.Update(w.t.Context(), w.pv))
		}, false},
		"file system backup": {func(w *world, _ *PVCAction) {
			require.NoError(w.t, w.api.Create(w.t.Context(), &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: appNS, Name: "db", Annotations: map[string]string{velerov1.VolumesToBackupAnnotation: "data"}},
				Spec: corev1.PodSpec{Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
					PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"},
				}}}},
				Status: corev1.PodStatus{Phase: corev1.PodRunning},
			}))
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.backup.Spec.ResourcePolicy = nil
			w.backup.Spec.SnapshotMoveData, w.backup.Spec.DataMover = &yes, identity.DataMover
			action := w.start(&faulty.Fault{})
			action.csi = false
			c.change(w, action)
			r := w.execute(action)
			if !c.refused {
				require.NoError(t, r.err)
				return
			}
			require.EqualError(t, r.err, "back up PVC app/data with blockmover: Velero's server takes no CSI snapshots: start it with --features=EnableCSI, "+
				"or give the volume to Blockmover by a volume policy")
		})
	}
}

// TestMisspelledMover: nobody else would back the volume up.
func TestMisspelledMover(t *testing.T) {
	w := newWorld(t)
	w.policy = `version: v1
volumePolicies:
- conditions: {csi: {driver: test.csi.example}}
  action:
    type: custom
    parameters: {mover: blockmoover}
`
	require.ErrorContains(t, w.execute(w.start(&faulty.Fault{})).err, "match volume policies for PVC app/data: parse volume policy parameters: mover: blockmoover: want blockmover")
	require.Empty(t, w.snapshots())
}
