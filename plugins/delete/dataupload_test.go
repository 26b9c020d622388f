package delete

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/sirupsen/logrus"
	logrustest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/label"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	"github.com/vmware-tanzu/velero/pkg/podvolume"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/policy"
	"github.com/blockmover/blockmover/internal/volumesnapshot/rehome"
	"github.com/blockmover/blockmover/plugins/internal/faulty"
)

// world is a cluster in which a backup with one DataUpload is deleted.
type world struct {
	t      *testing.T
	backup *velerov1.Backup
	upload *velerov2alpha1.DataUpload
	vs     *snapshotv1.VolumeSnapshot
	api    client.WithWatch
	logs   *logrustest.Hook
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return &world{
		t: t,
		backup: &velerov1.Backup{
			ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "nightly", UID: "backup-uid"},
			Spec:       velerov1.BackupSpec{StorageLocation: "default"},
		},
		upload: &velerov2alpha1.DataUpload{
			ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "blockmover-1", UID: "upload-uid", Labels: map[string]string{
				velerov1.BackupNameLabel: "nightly", velerov1.BackupUIDLabel: "backup-uid",
			}},
			Spec: velerov2alpha1.DataUploadSpec{
				DataMover: "blockmover", SourceNamespace: "app", SourcePVC: "data",
				CSISnapshot: &velerov2alpha1.CSISnapshotSpec{VolumeSnapshot: "vs-1"},
			},
			Status: velerov2alpha1.DataUploadStatus{Phase: velerov2alpha1.DataUploadPhaseCompleted, SnapshotID: "k123"},
		},
	}
}

func (w *world) leaveVolumeSnapshot(labels map[string]string) {
	content := "content-1"
	w.vs = &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: "vs-1", Labels: labels},
		Status:     &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: &content},
	}
}

func (w *world) start(fault *faulty.Fault) *DataUploadAction {
	w.t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientgoscheme.AddToScheme, velerov1.AddToScheme, velerov2alpha1.AddToScheme, snapshotv1.AddToScheme,
	} {
		require.NoError(w.t, add(scheme))
	}
	builder := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&snapshotv1.VolumeSnapshotContent{})
	if w.vs != nil {
		builder = builder.WithObjects(w.vs, &snapshotv1.VolumeSnapshotContent{
			ObjectMeta: metav1.ObjectMeta{Name: "content-1"},
			Spec:       snapshotv1.VolumeSnapshotContentSpec{DeletionPolicy: snapshotv1.VolumeSnapshotContentRetain},
		})
	}
	w.api = builder.Build()
	var log *logrus.Logger
	log, w.logs = logrustest.NewNullLogger()
	action := NewDataUploadAction(log, fault.Client(w.api))
	action.cacheLag, action.endPoll = 0, time.Millisecond
	action.backoff = wait.Backoff{Duration: time.Millisecond, Steps: 3}
	return action
}

func (w *world) execute(action *DataUploadAction) error {
	w.t.Helper()
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(w.upload)
	require.NoError(w.t, err)
	return action.Execute(&velero.DeleteItemActionExecuteInput{Item: &unstructured.Unstructured{Object: content}, Backup: w.backup})
}

// repoSnapshot has the fields of Velero's pkg/repository/types.SnapshotIdentifier
// that its deletion controller uses.
type repoSnapshot struct {
	VolumeNamespace       string `json:"volumeNamespace"`
	BackupStorageLocation string `json:"backupStorageLocation"`
	SnapshotID            string `json:"snapshotID"`
	RepositoryType        string `json:"repositoryType"`
}

// found returns the repo snapshots that Velero's deletion controller would delete, found in
// the way in which it looks.
func (w *world) found() []repoSnapshot {
	w.t.Helper()
	byBackup := client.MatchingLabels{velerov1.BackupNameLabel: label.GetValidName(w.backup.Name)}
	var pvbs velerov1.PodVolumeBackupList
	require.NoError(w.t, w.api.List(w.t.Context(), &pvbs, byBackup))
	var found []repoSnapshot
	for _, ids := range podvolume.GetSnapshotIdentifier(&pvbs) {
		for _, id := range ids {
			found = append(found, repoSnapshot{id.VolumeNamespace, id.BackupStorageLocation, id.SnapshotID, id.RepositoryType})
		}
	}
	if w.backup.Spec.SnapshotMoveData == nil || !*w.backup.Spec.SnapshotMoveData {
		return found
	}
	var configs corev1.ConfigMapList
	require.NoError(w.t, w.api.List(w.t.Context(), &configs, client.InNamespace("velero"), byBackup,
		client.MatchingLabels{velerov1.DataUploadSnapshotInfoLabel: "true"}))
	for _, config := range configs.Items {
		text, err := json.Marshal(config.Data)
		require.NoError(w.t, err)
		var id repoSnapshot
		require.NoError(w.t, json.Unmarshal(text, &id))
		found = append(found, id)
	}
	return found
}

// requireForgotten checks that the controller finds only the repo snapshot, and finds it
// once.
func (w *world) requireForgotten(why ...any) {
	w.t.Helper()
	require.Equal(w.t, []repoSnapshot{{"app", "default", "k123", "kopia"}}, w.found(), why...)
}

func (w *world) volumeSnapshots() int {
	w.t.Helper()
	var list snapshotv1.VolumeSnapshotList
	require.NoError(w.t, w.api.List(w.t.Context(), &list))
	return len(list.Items)
}

func TestExecute(t *testing.T) {
	yes, no := true, false
	for name, moveData := range map[string]*bool{"door 1": &yes, "door 2": nil, "door 2, said": &no} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.backup.Spec.SnapshotMoveData = moveData
			action := w.start(&faulty.Fault{})
			for range 2 { // a deletion that failed is repeated
				require.NoError(t, w.execute(action))
				w.requireForgotten()
			}
		})
	}
}

// TestExecuteReadsTheCluster: the DataUpload in the backup may be older than its image.
func TestExecuteReadsTheCluster(t *testing.T) {
	const runs = velerov2alpha1.DataUploadPhaseInProgress
	ends := func(as velerov2alpha1.DataUploadPhase, snapshotID string) func(*velerov2alpha1.DataUpload) {
		return func(live *velerov2alpha1.DataUpload) { live.Status.Phase, live.Status.SnapshotID = as, snapshotID }
	}
	tests := map[string]struct {
		live func(live *velerov2alpha1.DataUpload)
		// manager is what the manager does once it is asked to cancel.
		manager func(live *velerov2alpha1.DataUpload)
		asked   bool
		found   bool
		err     string
	}{
		"completed since":      {live: ends(velerov2alpha1.DataUploadPhaseCompleted, "k123"), found: true},
		"failed since":         {live: ends(velerov2alpha1.DataUploadPhaseFailed, "")},
		"runs, and is stopped": {live: ends(runs, ""), manager: ends(velerov2alpha1.DataUploadPhaseCanceled, ""), asked: true},
		"runs, too late":       {live: ends(runs, ""), manager: ends(velerov2alpha1.DataUploadPhaseCompleted, "k123"), asked: true, found: true},
		"has not begun":        {live: ends(velerov2alpha1.DataUploadPhaseNew, ""), asked: true},
		"does not end":         {live: ends(runs, ""), asked: true, err: "cancel DataUpload velero/blockmover-1: it does not end"},
		"of another cluster": {live: func(live *velerov2alpha1.DataUpload) {
			live.UID, live.Status.SnapshotID = "uid-here", "k-here"
		}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			live := w.upload.DeepCopy()
			w.upload.Status = velerov2alpha1.DataUploadStatus{Phase: runs}
			tc.live(live)
			action := w.start(&faulty.Fault{})
			if tc.manager == nil {
				action.endTimeout = 50 * time.Millisecond
			}
			require.NoError(t, w.api.Create(t.Context(), live))
			key := client.ObjectKeyFromObject(live)
			done := make(chan error)
			go func() { done <- w.execute(action) }()
			if tc.manager != nil {
				require.Eventually(t, func() bool {
					return w.api.Get(t.Context(), key, live) == nil && live.Spec.Cancel
				}, 10*time.Second, time.Millisecond)
				tc.manager(live)
				require.NoError(t, w.api.Update(t.Context(), live))
			}
			err := <-done
			if tc.err == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, tc.err)
			}
			if tc.found {
				w.requireForgotten()
			} else {
				require.Empty(t, w.found())
			}
			require.NoError(t, w.api.Get(t.Context(), key, live))
			require.Equal(t, tc.asked, live.Spec.Cancel)
		})
	}
}

// The PodVolumeBackup must be one that nobody works on, and that is deleted with the backup.
func TestExecutePodVolumeBackup(t *testing.T) {
	w := newWorld(t)
	require.NoError(t, w.execute(w.start(&faulty.Fault{})))
	var pvbs velerov1.PodVolumeBackupList
	require.NoError(t, w.api.List(t.Context(), &pvbs))
	require.Len(t, pvbs.Items, 1)
	pvb := pvbs.Items[0]
	require.Equal(t, velerov1.PodVolumeBackupPhaseCompleted, pvb.Status.Phase)
	require.Empty(t, pvb.Spec.Node)
	require.Empty(t, pvb.Spec.Pod.Name)
	require.Empty(t, pvb.Annotations)
	require.Equal(t, w.backup.UID, pvb.OwnerReferences[0].UID)
}

func TestExecuteLongBackupName(t *testing.T) {
	w := newWorld(t)
	w.backup.Name = strings.Repeat("nightly-", 12)
	w.upload.Labels[velerov1.BackupNameLabel] = label.GetValidName(w.backup.Name)
	require.NoError(t, w.execute(w.start(&faulty.Fault{})))
	w.requireForgotten()
}

func TestExecuteLeavesAlone(t *testing.T) {
	tests := map[string]struct {
		change func(w *world)
		warns  bool
	}{
		"of another mover":  {change: func(w *world) { w.upload.Spec.DataMover = "velero" }},
		"of another backup": {func(w *world) { w.upload.Labels[velerov1.BackupNameLabel] = "weekly" }, true},
		"of nobody":         {func(w *world) { w.upload.Labels = nil }, true},
		"no repo snapshot":  {change: func(w *world) { w.upload.Status.SnapshotID = "" }},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			test.change(w)
			require.NoError(t, w.execute(w.start(&faulty.Fault{})))
			require.Empty(t, w.found())
			require.Equal(t, test.warns, len(w.logs.AllEntries()) > 0)
		})
	}
}

func TestExecuteReleasesVolumeSnapshot(t *testing.T) {
	tests := map[string]struct {
		labels map[string]string
		left   int
	}{
		"taken by us":             {map[string]string{identity.LabelBackupUID: "backup-uid"}, 0},
		"taken by Velero":         {map[string]string{velerov1.BackupNameLabel: "nightly"}, 0},
		"of another backup":       {map[string]string{identity.LabelBackupUID: "other-uid"}, 1},
		"of another one's Velero": {map[string]string{velerov1.BackupNameLabel: "weekly"}, 1},
		"of somebody else":        {nil, 1},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.upload.Status.SnapshotID = "" // its upload failed
			w.leaveVolumeSnapshot(test.labels)
			require.NoError(t, w.execute(w.start(&faulty.Fault{})))
			require.Equal(t, test.left, w.volumeSnapshots())
			content := &snapshotv1.VolumeSnapshotContent{}
			require.NoError(t, w.api.Get(t.Context(), client.ObjectKey{Name: "content-1"}, content))
			require.Equal(t, test.left == 0, content.Spec.DeletionPolicy == snapshotv1.VolumeSnapshotContentDelete)
		})
	}
}

// The manager releases what it has taken over.
func TestExecuteLeavesTakenOver(t *testing.T) {
	w := newWorld(t)
	w.leaveVolumeSnapshot(map[string]string{identity.LabelBackupUID: "backup-uid"})
	action := w.start(&faulty.Fault{})
	content := &snapshotv1.VolumeSnapshotContent{}
	require.NoError(t, w.api.Get(t.Context(), client.ObjectKey{Name: "content-1"}, content))
	content.Labels = map[string]string{identity.LabelOperation: "upload-uid"}
	require.NoError(t, w.api.Update(t.Context(), content))
	require.NoError(t, w.execute(action))
	require.Equal(t, 1, w.volumeSnapshots())
	w.requireForgotten()
}

// Any single failure is retried. Objects of an earlier attempt are updated.
func TestExecuteSurvivesEachFault(t *testing.T) {
	for _, after := range []bool{false, true} {
		for call := 1; ; call++ {
			fault := &faulty.Fault{Call: call, After: after}
			w := newWorld(t)
			w.leaveVolumeSnapshot(map[string]string{identity.LabelBackupUID: "backup-uid"})
			action := w.start(fault)
			require.NoError(t, w.execute(action))
			name := fmt.Sprintf("call %d (%s), after=%t", call, fault.Fired(), after)
			w.requireForgotten(name)
			require.Zero(t, w.volumeSnapshots(), name)
			require.NoError(t, w.execute(action), "replay after "+name)
			w.requireForgotten(name)
			if fault.Fired() == "" {
				require.Greater(t, call, 5)
				break
			}
		}
	}
}

// retain makes the storage snapshot of the backup a retained one, as the manager does: the
// pair, and the note on the DataUpload in the cluster.
func (w *world) retain() rehome.Retained {
	w.t.Helper()
	retained := rehome.Retained{
		Name: "blockmover-upload-uid", Driver: "driver", VolumeHandle: "volume-1", SnapshotHandle: "snapshot-1", SnapshotTime: time.Unix(1, 0).UTC(),
		Keeping: rehome.Keeping{
			Retention: policy.RetentionAuto, Namespace: "app", PVC: "data", Location: "default", Backup: "nightly", BackupUID: "backup-uid",
		},
	}
	require.NoError(w.t, rehome.New(w.api, w.api, "velero").Rebuild(w.t.Context(), retained))
	note, err := json.Marshal(retained)
	require.NoError(w.t, err)
	live := w.upload.DeepCopy()
	live.Annotations = map[string]string{identity.AnnotationRetained: string(note)}
	require.NoError(w.t, w.api.Create(w.t.Context(), live))
	return retained
}

// pair is the content of the retained pair, or nil.
func (w *world) pair() *snapshotv1.VolumeSnapshotContent {
	w.t.Helper()
	content := &snapshotv1.VolumeSnapshotContent{}
	err := w.api.Get(w.t.Context(), client.ObjectKey{Name: "blockmover-upload-uid"}, content)
	if apierrors.IsNotFound(err) {
		return nil
	}
	require.NoError(w.t, err)
	return content
}

// requireReleased checks that the content and the storage snapshot are gone.
func (w *world) requireReleased(why ...any) {
	w.t.Helper()
	content := w.pair()
	require.NotNil(w.t, content, why...)
	require.NotNil(w.t, content.DeletionTimestamp, why...)
	require.Equal(w.t, snapshotv1.VolumeSnapshotContentDelete, content.Spec.DeletionPolicy, why...)
	require.Equal(w.t, "snapshot-1", *content.Status.SnapshotHandle, why...)
}

// The retained snapshot is deleted with its backup, and with no other: velero#9835 and #10304
// (it stays forever), #9842 (a snapshot of another backup).
func TestExecuteReleasesRetained(t *testing.T) {
	tests := map[string]struct {
		change   func(t *testing.T, w *world)
		released bool
		there    bool
	}{
		"kept": {func(*testing.T, *world) {}, true, true},
		"pair is gone": {func(t *testing.T, w *world) {
			require.NoError(t, w.api.Delete(t.Context(), w.pair()))
		}, true, true},
		"pair is gone, and released before": {func(t *testing.T, w *world) {
			require.NoError(t, w.api.Delete(t.Context(), w.pair()))
			live := w.upload.DeepCopy()
			require.NoError(t, w.api.Get(t.Context(), client.ObjectKeyFromObject(live), live))
			live.Annotations = nil
			require.NoError(t, w.api.Update(t.Context(), live))
		}, false, false},
		"pair is gone, backup of another cluster": {func(t *testing.T, w *world) {
			require.NoError(t, w.api.Delete(t.Context(), w.pair()))
			w.upload.UID = "uid-there"
		}, false, false},
		"pair and DataUpload are gone": {func(t *testing.T, w *world) {
			require.NoError(t, w.api.Delete(t.Context(), w.pair()))
			require.NoError(t, w.api.Delete(t.Context(), w.upload.DeepCopy()))
		}, false, false},
		"another backup": {func(_ *testing.T, w *world) { w.upload.Labels[velerov1.BackupNameLabel] = "weekly" }, false, true},
		"an upload of the volume runs": {func(t *testing.T, w *world) {
			other := w.upload.DeepCopy()
			other.Name, other.UID, other.Status.Phase = "blockmover-2", "other-uid", velerov2alpha1.DataUploadPhaseInProgress
			require.NoError(t, w.api.Create(t.Context(), other))
		}, false, true},
		"uploads of other volumes run": {func(t *testing.T, w *world) {
			for i, namespace := range []string{"app", "elsewhere"} {
				other := w.upload.DeepCopy()
				other.Name, other.UID, other.Status.Phase = fmt.Sprint("other-", i), "other-uid", velerov2alpha1.DataUploadPhaseInProgress
				other.Spec.SourceNamespace, other.Spec.SourcePVC = namespace, map[string]string{"app": "logs", "elsewhere": "data"}[namespace]
				require.NoError(t, w.api.Create(t.Context(), other))
			}
		}, true, true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			action := w.start(&faulty.Fault{})
			w.retain()
			test.change(t, w)
			for range 2 {
				require.NoError(t, w.execute(action))
				if test.released {
					w.requireReleased()
				} else {
					require.Equal(t, test.there, w.pair() != nil)
					require.True(t, w.pair() == nil || w.pair().DeletionTimestamp == nil)
				}
			}
		})
	}
}

func TestExecuteReleasesRetainedSurvivesEachFault(t *testing.T) {
	for _, after := range []bool{false, true} {
		for call := 1; ; call++ {
			fault := &faulty.Fault{Call: call, After: after}
			w := newWorld(t)
			action := w.start(fault)
			w.retain()
			require.NoError(t, w.api.Delete(t.Context(), w.pair()))
			require.NoError(t, w.execute(action))
			name := fmt.Sprintf("call %d (%s), after=%t", call, fault.Fired(), after)
			w.requireForgotten(name)
			w.requireReleased(name)
			if fault.Fired() == "" {
				require.Greater(t, call, 8)
				break
			}
		}
	}
}

func TestExecuteUpdatesWhatWasLeft(t *testing.T) {
	yes := true
	w := newWorld(t)
	w.backup.Spec.SnapshotMoveData = &yes
	action := w.start(&faulty.Fault{})
	require.NoError(t, w.api.Create(t.Context(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "blockmover-1-info"},
		Data:       map[string]string{"snapshotID": "old"},
	}))
	require.NoError(t, w.execute(action))
	w.requireForgotten()
}

func TestAppliesTo(t *testing.T) {
	selector, err := (&DataUploadAction{}).AppliesTo()
	require.NoError(t, err)
	require.Equal(t, velero.ResourceSelector{IncludedResources: []string{"datauploads.velero.io"}}, selector)
}
