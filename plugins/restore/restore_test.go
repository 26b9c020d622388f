package restore

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	logrustest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/plugins/internal/faulty"
)

const (
	veleroNS = "velero"
	appNS    = "app"
	upload   = "blockmover-0123456789abcdef0123"
)

// world is a cluster in which a backup of one PVC is restored.
type world struct {
	t       *testing.T
	restore *velerov1.Restore
	backup  *velerov1.Backup
	// pvc is the PVC of the backup.
	pvc     *corev1.PersistentVolumeClaim
	results map[string]velerov2alpha1.DataUploadResult
	// more objects of the cluster.
	more []client.Object
	now  time.Time
	logs *logrustest.Hook
	api  client.WithWatch
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return &world{
		t: t,
		restore: &velerov1.Restore{
			ObjectMeta: metav1.ObjectMeta{Namespace: veleroNS, Name: "again", UID: "restore-uid"},
			Spec:       velerov1.RestoreSpec{BackupName: "nightly", ItemOperationTimeout: metav1.Duration{Duration: 4 * time.Hour}},
		},
		backup: &velerov1.Backup{
			ObjectMeta: metav1.ObjectMeta{Namespace: veleroNS, Name: "nightly"},
			Spec:       velerov1.BackupSpec{CSISnapshotTimeout: metav1.Duration{Duration: 10 * time.Minute}},
		},
		pvc: &corev1.PersistentVolumeClaim{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"},
			ObjectMeta: metav1.ObjectMeta{
				Namespace: appNS, Name: "data", UID: "pvc-uid", Labels: map[string]string{identity.LabelRestored: "uid-of-an-old-restore"},
				Annotations: map[string]string{
					identity.AnnotationDataUpload:        veleroNS + "/" + upload,
					"pv.kubernetes.io/bind-completed":    "yes",
					"volume.kubernetes.io/selected-node": "node-1",
					"keep":                               "this",
				},
			},
			Spec: corev1.PersistentVolumeClaimSpec{
				VolumeName: "pv-1",
				DataSource: &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: "template"},
				Resources:  corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{"storage": resource.MustParse("1Gi")}},
			},
			Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound, Capacity: corev1.ResourceList{"storage": resource.MustParse("1Gi")}},
		},
		results: map[string]velerov2alpha1.DataUploadResult{upload: {
			BackupStorageLocation: "default", DataMover: "blockmover", SnapshotID: "k123", SnapshotSize: 1 << 30, SourceNamespace: appNS, NodeOS: "linux",
		}},
		now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
}

func (w *world) start(fault *faulty.Fault) *PVCAction {
	w.t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, velerov1.AddToScheme, velerov2alpha1.AddToScheme} {
		require.NoError(w.t, add(scheme))
	}
	objects := append([]client.Object{w.restore.DeepCopy(), w.backup.DeepCopy()}, w.more...)
	for name, result := range w.results {
		text, err := json.Marshal(result)
		require.NoError(w.t, err)
		objects = append(objects, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: veleroNS, Name: name + "-x7r2p", Labels: map[string]string{
				velerov1.RestoreUIDLabel:       "restore-uid",
				velerov1.PVCNamespaceNameLabel: "app.data",
				velerov1.ResourceUsageLabel:    "DataUpload",
			}},
			Data: map[string]string{"restore-uid": string(text)},
		})
	}
	w.api = fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).Build()
	var log *logrus.Logger
	log, w.logs = logrustest.NewNullLogger()
	action := NewPVCAction(log, fault.Client(w.api))
	action.poller.Now = func() time.Time { return w.now }
	return action
}

// execute passes the PVC as Velero does: without its status.
func (w *world) execute(action *PVCAction) (*corev1.PersistentVolumeClaim, string, error) {
	w.t.Helper()
	fromBackup, err := runtime.DefaultUnstructuredConverter.ToUnstructured(w.pvc)
	require.NoError(w.t, err)
	stripped := w.pvc.DeepCopy()
	stripped.Status, stripped.UID = corev1.PersistentVolumeClaimStatus{}, ""
	item, err := runtime.DefaultUnstructuredConverter.ToUnstructured(stripped)
	require.NoError(w.t, err)
	output, err := action.Execute(&velero.RestoreItemActionExecuteInput{
		Item: &unstructured.Unstructured{Object: item}, ItemFromBackup: &unstructured.Unstructured{Object: fromBackup}, Restore: w.restore,
	})
	if err != nil {
		return nil, "", err
	}
	require.False(w.t, output.SkipRestore)
	require.Empty(w.t, output.AdditionalItems)
	pvc := &corev1.PersistentVolumeClaim{}
	require.NoError(w.t, runtime.DefaultUnstructuredConverter.FromUnstructured(output.UpdatedItem.UnstructuredContent(), pvc))
	return pvc, output.OperationID, nil
}

func (w *world) downloads() []velerov2alpha1.DataDownload {
	w.t.Helper()
	var list velerov2alpha1.DataDownloadList
	require.NoError(w.t, w.api.List(w.t.Context(), &list))
	return list.Items
}

func TestExecute(t *testing.T) {
	w := newWorld(t)
	pvc, operationID, err := w.execute(w.start(&faulty.Fault{}))
	require.NoError(t, err)

	require.Equal(t, "dd-restore-uid.pvc-uid", operationID)
	require.Len(t, w.downloads(), 1)
	dd := w.downloads()[0]
	require.Equal(t, identity.DataDownloadName("restore-uid", "pvc-uid"), dd.Name)
	require.Equal(t, veleroNS, dd.Namespace)
	require.Equal(t, map[string]string{
		velerov1.RestoreNameLabel:      "again",
		velerov1.RestoreUIDLabel:       "restore-uid",
		velerov1.AsyncOperationIDLabel: operationID,
	}, dd.Labels)
	require.Equal(t, "Restore", dd.OwnerReferences[0].Kind)
	require.Equal(t, velerov2alpha1.DataDownloadSpec{
		TargetVolume:          velerov2alpha1.TargetVolumeSpec{Namespace: appNS, PVC: "data"},
		BackupStorageLocation: "default",
		DataMover:             "blockmover",
		SnapshotID:            "k123",
		SnapshotSize:          1 << 30,
		SourceNamespace:       appNS,
		NodeOS:                "linux",
		OperationTimeout:      metav1.Duration{Duration: 10 * time.Minute},
	}, dd.Spec)

	require.Equal(t, map[string]string{"keep": "this"}, pvc.Annotations)
	require.Empty(t, pvc.Spec.VolumeName)
	require.Nil(t, pvc.Spec.DataSource)
	require.Equal(t, "1Gi", pvc.Spec.Resources.Requests.Storage().String())
	require.Empty(t, pvc.Labels)
	require.Equal(t, map[string]string{velerov1.DynamicPVRestoreLabel: pvc.Spec.Selector.MatchLabels[velerov1.DynamicPVRestoreLabel]}, pvc.Spec.Selector.MatchLabels)
	value := pvc.Spec.Selector.MatchLabels[velerov1.DynamicPVRestoreLabel]
	require.Contains(t, value, "app.data.")
	require.LessOrEqual(t, len(value), 63)
}

func TestExecuteNamespaceMapping(t *testing.T) {
	w := newWorld(t)
	w.restore.Spec.NamespaceMapping = map[string]string{appNS: "copy"}
	// The PVC in the old namespace does not matter to this restore.
	w.more = append(w.more, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: appNS, Name: "data"}})
	pvc, operationID, err := w.execute(w.start(&faulty.Fault{}))
	require.NoError(t, err)
	require.NotEmpty(t, operationID)
	require.Equal(t, "copy", w.downloads()[0].Spec.TargetVolume.Namespace)
	require.Equal(t, appNS, w.downloads()[0].Spec.SourceNamespace)
	require.Equal(t, appNS, pvc.Namespace, "Velero maps the namespace of the item itself")
	require.Contains(t, pvc.Spec.Selector.MatchLabels[velerov1.DynamicPVRestoreLabel], "copy.data.")
}

func TestExecuteUploaderConfig(t *testing.T) {
	w := newWorld(t)
	no := false
	w.restore.Spec.UploaderConfig = &velerov1.UploaderConfigForRestore{WriteSparseFiles: &no}
	_, _, err := w.execute(w.start(&faulty.Fault{}))
	require.NoError(t, err)
	require.Equal(t, map[string]string{"WriteSparseFiles": "false"}, w.downloads()[0].Spec.DataMoverConfig)
}

// TestExecuteAsksForTheSize: the PVC asks for what it asked for, which a LimitRange or a quota of
// the namespace allows. The DataDownload has the size of the volume, which may be larger.
func TestExecuteAsksForTheSize(t *testing.T) {
	tests := map[string]struct {
		capacity string
		snapshot int64
		want     int64
	}{
		"request is enough":       {"1Gi", 1 << 30, 1 << 30},
		"volume was larger":       {"3Gi", 1 << 30, 3 << 30},
		"device was larger still": {"3Gi", 4 << 30, 4 << 30},
		"size unknown":            {"0", 0, 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.pvc.Status.Capacity["storage"] = resource.MustParse(test.capacity)
			result := w.results[upload]
			result.SnapshotSize = test.snapshot
			w.results[upload] = result
			pvc, _, err := w.execute(w.start(&faulty.Fault{}))
			require.NoError(t, err)
			require.Equal(t, "1Gi", pvc.Spec.Resources.Requests.Storage().String())
			require.Equal(t, test.want, w.downloads()[0].Spec.SnapshotSize)
		})
	}
}

// A PVC without data in the backup stays as it is, and gets no operation.
func TestExecuteWithoutOperation(t *testing.T) {
	yes, no := true, false
	tests := map[string]struct {
		change     func(w *world)
		volumeName string
	}{
		"not marked": {func(w *world) { delete(w.pvc.Annotations, identity.AnnotationDataUpload) }, "pv-1"},
		"of Velero's own action": {func(w *world) {
			w.pvc.Annotations[velerov1.DataUploadNameAnnotation] = "velero/other"
			w.backup.Spec.SnapshotMoveData = &yes
		}, "pv-1"},
		"without volumes": {func(w *world) { w.restore.Spec.RestorePVs = &no }, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			test.change(w)
			pvc, operationID, err := w.execute(w.start(&faulty.Fault{}))
			require.NoError(t, err)
			require.Empty(t, operationID)
			require.Empty(t, w.downloads())
			require.Equal(t, test.volumeName, pvc.Spec.VolumeName)
			require.Nil(t, pvc.Spec.Selector)
			require.NotContains(t, pvc.Annotations, identity.AnnotationDataUpload)
		})
	}
}

// A live PVC keeps its data. The PVC that Velero compares with it differs, so Velero warns, and an event
// of the Restore says what of. With the policy update nothing may differ: Velero would write it to the
// live PVC.
func TestExecuteOverLivePVC(t *testing.T) {
	for _, tc := range []struct {
		policy velerov1.PolicyType
		marked bool
	}{{"", true}, {velerov1.PolicyTypeNone, true}, {velerov1.PolicyTypeUpdate, false}} {
		w := newWorld(t)
		w.restore.Spec.ExistingResourcePolicy = tc.policy
		live := map[string]string{identity.LabelRestored: "uid-of-a-restore"}
		w.more = append(w.more, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: appNS, Name: "data", Labels: live}})
		pvc, operationID, err := w.execute(w.start(&faulty.Fault{}))
		require.NoError(t, err)
		require.Empty(t, operationID)
		require.Empty(t, w.downloads())
		require.Equal(t, "pv-1", pvc.Spec.VolumeName)
		require.Equal(t, live, pvc.Labels, "with the policy update, Velero writes the labels to the live PVC")
		_, marked := pvc.Annotations[identity.AnnotationDataUpload]
		require.Equal(t, tc.marked, marked, "policy %q", tc.policy)
		events := &corev1.EventList{}
		require.NoError(t, w.api.List(t.Context(), events))
		require.Len(t, events.Items, 1)
		require.Equal(t, "Restore "+w.restore.Name, events.Items[0].InvolvedObject.Kind+" "+events.Items[0].InvolvedObject.Name)
		require.Contains(t, events.Items[0].Message, "PVC "+appNS+"/data already exists: its data is not restored")
	}
}

// A PVC of a volume policy in a backup with snapshotMoveData is ours, too.
func TestExecuteInBackupOfDoorOne(t *testing.T) {
	yes := true
	w := newWorld(t)
	w.backup.Spec.SnapshotMoveData = &yes
	_, operationID, err := w.execute(w.start(&faulty.Fault{}))
	require.NoError(t, err)
	require.NotEmpty(t, operationID)
}

func TestExecuteErrors(t *testing.T) {
	change := func(edit func(*velerov2alpha1.DataUploadResult)) func(w *world) {
		return func(w *world) {
			result := w.results[upload]
			edit(&result)
			w.results[upload] = result
		}
	}
	tests := map[string]struct {
		change func(w *world)
		want   string
	}{
		"no repo snapshot": {change(func(r *velerov2alpha1.DataUploadResult) { r.SnapshotID = "" }), "the backup of this volume did not complete"},
		"another mover":    {change(func(r *velerov2alpha1.DataUploadResult) { r.DataMover = "velero" }), `data mover "velero", want "blockmover"`},
		"no DataUpload":    {func(w *world) { w.results = nil }, "the backup holds no DataUpload of this volume"},
		"only a stranger's": {func(w *world) {
			w.results = map[string]velerov2alpha1.DataUploadResult{"other-upload": w.results[upload]}
		}, "the backup holds no DataUpload of this volume"},
		"no backup": {func(w *world) { w.restore.Spec.BackupName = "gone" }, "get Backup velero/gone"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			test.change(w)
			_, _, err := w.execute(w.start(&faulty.Fault{}))
			require.ErrorContains(t, err, "restore PVC app/data with blockmover")
			require.ErrorContains(t, err, test.want)
			require.Empty(t, w.downloads())
		})
	}
}

// A backup of Velero's namespace has the DataUploads of other backups.
func TestExecutePicksItsOwnResult(t *testing.T) {
	w := newWorld(t)
	w.results["blockmover-ffffffffffffffffffff"] = velerov2alpha1.DataUploadResult{DataMover: "blockmover", SnapshotID: "k999"}
	_, _, err := w.execute(w.start(&faulty.Fault{}))
	require.NoError(t, err)
	require.Equal(t, "k123", w.downloads()[0].Spec.SnapshotID)
}

func TestExecuteSurvivesEachFault(t *testing.T) {
	for _, after := range []bool{false, true} {
		for call := 1; ; call++ {
			fault := &faulty.Fault{Call: call, After: after}
			w := newWorld(t)
			action := w.start(fault)
			_, operationID, err := w.execute(action)
			if fault.Fired() == "" {
				require.Greater(t, call, 5)
				require.NoError(t, err)
				break
			}
			name := fmt.Sprintf("call %d (%s), after=%t", call, fault.Fired(), after)
			if err != nil {
				require.ErrorIs(t, err, faulty.ErrInjected, name)
				require.Empty(t, w.downloads(), name)
				_, operationID, err = w.execute(action)
			}
			require.NoError(t, err, name)
			require.NotEmpty(t, operationID, name)
			require.Len(t, w.downloads(), 1, name)
		}
	}
}

func TestExecuteReplay(t *testing.T) {
	w := newWorld(t)
	action := w.start(&faulty.Fault{})
	first, firstID, err := w.execute(action)
	require.NoError(t, err)
	second, secondID, err := w.execute(action)
	require.NoError(t, err)
	require.Equal(t, first, second)
	require.Equal(t, firstID, secondID)
	require.Len(t, w.downloads(), 1)
}

func TestExecuteDoesNotAdoptStrangers(t *testing.T) {
	w := newWorld(t)
	w.more = append(w.more, &velerov2alpha1.DataDownload{
		ObjectMeta: metav1.ObjectMeta{Namespace: veleroNS, Name: identity.DataDownloadName("restore-uid", "pvc-uid")},
	})
	_, _, err := w.execute(w.start(&faulty.Fault{}))
	require.ErrorContains(t, err, "adopt DataDownload")
}

func TestProgressAndCancel(t *testing.T) {
	begin := func(fault *faulty.Fault, phase velerov2alpha1.DataDownloadPhase) (*world, *PVCAction, string) {
		w := newWorld(t)
		_, operationID, err := w.execute(w.start(&faulty.Fault{}))
		require.NoError(t, err)
		dd := w.downloads()[0]
		dd.CreationTimestamp = metav1.NewTime(w.now)
		dd.Status.Phase = phase
		if phase != "" && phase != velerov2alpha1.DataDownloadPhaseNew {
			dd.Status.Message = "said by the mover"
		}
		dd.Status.Progress.BytesDone, dd.Status.Progress.TotalBytes = 3, 7
		require.NoError(t, w.api.Update(t.Context(), &dd))
		log, _ := logrustest.NewNullLogger()
		action := NewPVCAction(log, fault.Client(w.api))
		action.poller.Now = func() time.Time { return w.now }
		return w, action, operationID
	}
	t.Run("in progress", func(t *testing.T) {
		w, action, id := begin(&faulty.Fault{}, velerov2alpha1.DataDownloadPhaseInProgress)
		got, err := action.Progress(id, w.restore)
		require.NoError(t, err)
		require.Equal(t, velero.OperationProgress{Description: "InProgress: said by the mover", OperationUnits: "Bytes", NCompleted: 3, NTotal: 7}, got)
		require.NoError(t, action.Cancel(id, w.restore))
		require.True(t, w.downloads()[0].Spec.Cancel)
	})
	for phase, want := range map[velerov2alpha1.DataDownloadPhase]string{
		velerov2alpha1.DataDownloadPhaseCompleted: "",
		velerov2alpha1.DataDownloadPhaseFailed:    "said by the mover",
		velerov2alpha1.DataDownloadPhaseCanceled:  "said by the mover",
	} {
		t.Run(string(phase), func(t *testing.T) {
			w, action, id := begin(&faulty.Fault{}, phase)
			got, err := action.Progress(id, w.restore)
			require.NoError(t, err)
			require.True(t, got.Completed)
			require.Equal(t, want, got.Err)
			require.NoError(t, action.Cancel(id, w.restore))
			require.False(t, w.downloads()[0].Spec.Cancel)
		})
	}
	t.Run("nobody accepts", func(t *testing.T) {
		w, action, id := begin(&faulty.Fault{}, "")
		w.now = w.now.Add(5 * time.Minute)
		got, err := action.Progress(id, w.restore)
		require.NoError(t, err)
		require.True(t, got.Completed)
		require.Contains(t, got.Err, "was not accepted within 5m0s: is the blockmover manager running in namespace velero?")
		require.Equal(t, velerov2alpha1.DataDownloadPhaseFailed, w.downloads()[0].Status.Phase)
	})
	t.Run("canceled before anybody accepted", func(t *testing.T) {
		w, action, id := begin(&faulty.Fault{}, velerov2alpha1.DataDownloadPhaseNew)
		require.NoError(t, action.Cancel(id, w.restore))
		require.Equal(t, velerov2alpha1.DataDownloadPhaseCanceled, w.downloads()[0].Status.Phase)
	})
	t.Run("each call fails in turn", func(t *testing.T) {
		for call := 1; ; call++ {
			fault := &faulty.Fault{Call: call}
			w, action, id := begin(fault, "")
			w.now = w.now.Add(time.Hour)
			got, err := action.Progress(id, w.restore)
			require.NoError(t, err)
			if fault.Fired() == "" {
				require.Greater(t, call, 2)
				require.True(t, got.Completed)
				break
			}
			require.False(t, got.Completed)
			require.Contains(t, got.Description, "injected fault")
		}
	})
	t.Run("lost", func(t *testing.T) {
		w, action, id := begin(&faulty.Fault{}, "")
		dd := w.downloads()[0]
		require.NoError(t, w.api.Delete(t.Context(), &dd))
		_, err := action.Progress(id, w.restore)
		require.ErrorContains(t, err, "0 DataDownloads")
		require.Error(t, action.Cancel(id, w.restore))
		_, err = action.Progress("", w.restore)
		require.Error(t, err)
		require.Error(t, action.Cancel("", w.restore))
	})
}

func TestPVAction(t *testing.T) {
	claim := &corev1.ObjectReference{Namespace: appNS, Name: "data"}
	tests := map[string]struct {
		change func(w *world)
		claim  *corev1.ObjectReference
		skip   bool
	}{
		"ours":              {claim: claim, skip: true},
		"ours, failed":      {claim: claim, skip: true, change: func(w *world) { w.results[upload] = velerov2alpha1.DataUploadResult{DataMover: "blockmover"} }},
		"no claim":          {},
		"no DataUpload":     {claim: claim, change: func(w *world) { w.results = nil }},
		"another PVC":       {claim: &corev1.ObjectReference{Namespace: appNS, Name: "other"}},
		"built-in mover":    {claim: claim, change: func(w *world) { w.results[upload] = velerov2alpha1.DataUploadResult{DataMover: "velero"} }},
		"built-in, unnamed": {claim: claim, change: func(w *world) { w.results[upload] = velerov2alpha1.DataUploadResult{} }},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if test.change != nil {
				test.change(w)
			}
			w.start(&faulty.Fault{})
			log, _ := logrustest.NewNullLogger()
			pv := &corev1.PersistentVolume{
				TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolume"},
				ObjectMeta: metav1.ObjectMeta{Name: "pv-1"},
				Spec:       corev1.PersistentVolumeSpec{ClaimRef: test.claim, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain},
			}
			content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(pv)
			require.NoError(t, err)
			item := &unstructured.Unstructured{Object: content}
			input := &velero.RestoreItemActionExecuteInput{Item: item, ItemFromBackup: item, Restore: w.restore}
			output, err := NewPVAction(log, w.api).Execute(input)
			require.NoError(t, err)
			require.Equal(t, test.skip, output.SkipRestore)
			require.Equal(t, content, output.UpdatedItem.UnstructuredContent())

			if test.claim != nil {
				_, err = NewPVAction(log, (&faulty.Fault{Call: 1}).Client(w.api)).Execute(input)
				require.ErrorIs(t, err, faulty.ErrInjected, "whoever cannot know does not restore an old volume")
			}
		})
	}
}

func TestSelectors(t *testing.T) {
	for name, test := range map[string]struct {
		action interface {
			AppliesTo() (velero.ResourceSelector, error)
			Name() string
		}
		name, resource string
	}{
		"PVC": {&PVCAction{}, "blockmover.io/pvc-restore", "persistentvolumeclaims"},
		"PV":  {&PVAction{}, "blockmover.io/pv-restore", "persistentvolumes"},
	} {
		t.Run(name, func(t *testing.T) {
			selector, err := test.action.AppliesTo()
			require.NoError(t, err)
			require.Equal(t, velero.ResourceSelector{IncludedResources: []string{test.resource}}, selector)
			require.Equal(t, test.name, test.action.Name())
		})
	}
}

// TestExecuteSkipsEphemeralVolumes: Kubernetes makes the PVC of a generic ephemeral volume for its
// pod, and the pod does not start with another one.
func TestExecuteSkipsEphemeralVolumes(t *testing.T) {
	w := newWorld(t)
	controller := true
	w.pvc.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "web-0", Controller: &controller}}
	item, err := runtime.DefaultUnstructuredConverter.ToUnstructured(w.pvc)
	require.NoError(t, err)
	object := &unstructured.Unstructured{Object: item}
	output, err := w.start(&faulty.Fault{}).Execute(&velero.RestoreItemActionExecuteInput{Item: object, ItemFromBackup: object.DeepCopy(), Restore: w.restore})
	require.NoError(t, err)
	require.True(t, output.SkipRestore)
	require.Empty(t, w.downloads())
}
