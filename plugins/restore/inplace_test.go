package restore

import (
	"testing"

	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/plugins/internal/faulty"
)

// liveWorld is a world in which the PVC of the backup exists, and the restore is in place.
func liveWorld(t *testing.T, mode string) (*world, *corev1.PersistentVolumeClaim, *corev1.PersistentVolume) {
	t.Helper()
	w := newWorld(t)
	w.restore.Annotations = map[string]string{identity.AnnotationInPlace: mode}
	w.restore.Spec.ExistingResourcePolicy = velerov1.PolicyTypeUpdate
	result := w.results[upload]
	result.DataMoverResult = &map[string]string{identity.ConfigVolumeHandle: "volume-1"}
	w.results[upload] = result
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: appNS, Name: "data", UID: "live-uid"},
		Spec:       corev1.PersistentVolumeClaimSpec{VolumeName: "pv-1"},
		Status:     corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound},
	}
	pv := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pv-1"},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:               corev1.ResourceList{"storage": resource.MustParse("1Gi")},
			ClaimRef:               &corev1.ObjectReference{Namespace: appNS, Name: "data", UID: "live-uid"},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "driver", VolumeHandle: "volume-1"}},
		},
	}
	return w, claim, pv
}

// executeInPlace requires that Velero leaves the PVC alone if there is an operation.
func (w *world) executeInPlace(action *PVCAction) (operationID string, err error) {
	w.t.Helper()
	item, err := runtime.DefaultUnstructuredConverter.ToUnstructured(w.pvc)
	require.NoError(w.t, err)
	output, err := action.Execute(&velero.RestoreItemActionExecuteInput{
		Item: &unstructured.Unstructured{Object: item}, ItemFromBackup: &unstructured.Unstructured{Object: item}, Restore: w.restore,
	})
	if err != nil {
		return "", err
	}
	require.Equal(w.t, output.OperationID != "", output.SkipRestore)
	return output.OperationID, nil
}

func TestInPlace(t *testing.T) {
	w, claim, pv := liveWorld(t, "true")
	w.more = append(w.more, claim, pv)
	action := w.start(&faulty.Fault{})
	for range 2 { // the second time, it adopts
		operationID, err := w.executeInPlace(action)
		require.NoError(t, err)
		require.Equal(t, "dd-restore-uid.pvc-uid", operationID)
	}
	require.Len(t, w.downloads(), 1)
	spec := w.downloads()[0].Spec
	require.Equal(t, map[string]string{"inPlace": "live-uid", "inPlaceVolume": "true", "volumeHandle": "volume-1"}, spec.DataMoverConfig)
	require.Equal(t, velerov2alpha1.TargetVolumeSpec{Namespace: appNS, PVC: "data"}, spec.TargetVolume)
	require.EqualValues(t, 1<<30, spec.SnapshotSize)
}

// TestInPlaceWithoutPVC: a PVC that does not exist is restored as ever.
func TestInPlaceWithoutPVC(t *testing.T) {
	w, _, _ := liveWorld(t, "true")
	pvc, operationID, err := w.execute(w.start(&faulty.Fault{}))
	require.NoError(t, err)
	require.NotEmpty(t, operationID)
	require.NotNil(t, pvc.Spec.Selector)
	require.Empty(t, w.downloads()[0].Spec.DataMoverConfig)
}

// TestInPlaceOfVelerosAction: PVCs that Velero's own action has marked are ours if the mover is.
func TestInPlaceOfVelerosAction(t *testing.T) {
	w, claim, pv := liveWorld(t, "true")
	w.more = append(w.more, claim, pv)
	delete(w.pvc.Annotations, identity.AnnotationDataUpload)
	w.pvc.Annotations[velerov1.DataUploadNameAnnotation] = veleroNS + "/" + upload
	operationID, err := w.executeInPlace(w.start(&faulty.Fault{}))
	require.NoError(t, err)
	require.NotEmpty(t, operationID)

	result := w.results[upload]
	result.DataMover = "velero"
	w.results[upload] = result
	_, err = w.executeInPlace(w.start(&faulty.Fault{}))
	require.ErrorContains(t, err, `data mover "velero", want "blockmover"`)
}

func TestInPlaceRefuses(t *testing.T) {
	no := false
	for name, tc := range map[string]struct {
		mode   string
		change func(w *world, claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume)
		want   string
	}{
		"unknown value": {mode: "yes", want: `annotation blockmover.io/in-place of the Restore is "yes", want true, any-volume or false`},
		"another volume": {
			mode: "true", change: func(_ *world, _ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
				pv.Spec.CSI.VolumeHandle = "volume-2"
			},
			want: `restore PVC app/data with blockmover: in place: PVC app/data has volume "volume-2"`,
		},
		"another volume, as asked for": {
			mode: "any-volume", change: func(_ *world, _ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
				pv.Spec.CSI.VolumeHandle = "volume-2"
			},
		},
		"not bound": {
			mode: "true", change: func(_ *world, claim *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
				claim.Spec.VolumeName, claim.Status.Phase = "", corev1.ClaimPending
			},
			want: "in place: PVC app/data is not bound to a volume",
		},
		"too small": {
			mode: "true", change: func(w *world, _ *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
				w.pvc.Status.Capacity["storage"] = resource.MustParse("2Gi")
			},
			want: "in place: the volume of PVC app/data has 1073741824 bytes and the image 2147483648",
		},
		"in use": {
			mode: "true", change: func(w *world, _ *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
				w.more = append(w.more, &corev1.Pod{
					ObjectMeta: metav1.ObjectMeta{Namespace: appNS, Name: "app-0"},
					Spec: corev1.PodSpec{Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
						PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"},
					}}}},
				})
			},
			want: "in place: the volume is in use: pod app-0 uses PVC app/data",
		},
		"the disk of a VM in a file": {
			mode: "true", change: func(w *world, _ *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
				(*w.results[upload].DataMoverResult)[identity.ConfigVM] = "vm"
			},
			want: "in place: PVC app/data has the disk of VM vm in a file",
		},
		"no repo snapshot": {
			mode: "true", change: func(w *world, _ *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
				result := w.results[upload]
				result.SnapshotID = ""
				w.results[upload] = result
			},
			want: "the backup of this volume did not complete",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, claim, pv := liveWorld(t, tc.mode)
			if tc.change != nil {
				tc.change(w, claim, pv)
			}
			w.more = append(w.more, claim, pv)
			operationID, err := w.executeInPlace(w.start(&faulty.Fault{}))
			if tc.want == "" {
				require.NoError(t, err)
				require.NotEmpty(t, operationID)
				return
			}
			require.ErrorContains(t, err, tc.want)
			require.Empty(t, w.downloads())
		})
	}

	// A restore without volumes, or with the annotation false, leaves the PVC alone.
	for name, change := range map[string]func(w *world){
		"without volumes": func(w *world) { w.restore.Spec.RestorePVs = &no },
		"false":           func(w *world) { w.restore.Annotations[identity.AnnotationInPlace] = "false" },
		"no annotation":   func(w *world) { w.restore.Annotations = nil },
	} {
		t.Run(name, func(t *testing.T) {
			w, claim, pv := liveWorld(t, "true")
			change(w)
			w.more = append(w.more, claim, pv)
			operationID, err := w.executeInPlace(w.start(&faulty.Fault{}))
			require.NoError(t, err)
			require.Empty(t, operationID)
			require.Empty(t, w.downloads())
		})
	}
}
