package backup

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	groupsnapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/sirupsen/logrus"
	logrustest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"
	"github.com/vmware-tanzu/velero/pkg/apis/velero/shared"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"github.com/vmware-tanzu/velero/pkg/kuberesource"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/policy"
	"github.com/blockmover/blockmover/internal/volumesnapshot"
	"github.com/blockmover/blockmover/internal/volumesnapshot/rehome"
	"github.com/blockmover/blockmover/plugins/internal/faulty"
)

const (
	veleroNS = "velero"
	appNS    = "app"
	driver   = "test.csi.example"
)

// world is a cluster with one PVC, a backup of it, and a CSI driver that takes snapshots.
type world struct {
	t      *testing.T
	backup *velerov1.Backup
	pvc    *corev1.PersistentVolumeClaim
	pv     *corev1.PersistentVolume
	class  *snapshotv1.VolumeSnapshotClass
	policy string
	global string
	// snapshotError is the driver's answer instead of a handle.
	snapshotError string
	// objects are further objects of the cluster. groups is what it has of group snapshots;
	// see group_test.go.
	objects []client.Object
	groups  *groupWorld
	// kinds are further kinds that the cluster serves.
	kinds []schema.GroupVersionKind
	now   time.Time
	logs  *logrustest.Hook
	api   client.WithWatch
}

const oursPolicy = `version: v1
volumePolicies:
- conditions: {csi: {driver: test.csi.example}}
  action:
    type: custom
    parameters: {mover: blockmover}
`

func newWorld(t *testing.T) *world {
	t.Helper()
	class := "block"
	return &world{
		t: t,
		backup: &velerov1.Backup{
			TypeMeta:   metav1.TypeMeta{APIVersion: "velero.io/v1", Kind: "Backup"},
			ObjectMeta: metav1.ObjectMeta{Namespace: veleroNS, Name: "nightly", UID: "backup-uid"},
			Spec: velerov1.BackupSpec{
				StorageLocation:      "default",
				CSISnapshotTimeout:   metav1.Duration{Duration: 10 * time.Minute},
				ItemOperationTimeout: metav1.Duration{Duration: 4 * time.Hour},
				ResourcePolicy:       &corev1.TypedLocalObjectReference{Kind: "configmap", Name: "policies"},
			},
		},
		pvc: &corev1.PersistentVolumeClaim{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"},
			ObjectMeta: metav1.ObjectMeta{Namespace: appNS, Name: "data", UID: "pvc-uid", Labels: map[string]string{"app": "db"}},
			Spec:       corev1.PersistentVolumeClaimSpec{VolumeName: "pv-1", StorageClassName: &class},
			Status:     corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound},
		},
		pv: &corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: "pv-1"},
			Spec: corev1.PersistentVolumeSpec{
				PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: "v1"}},
				ClaimRef:               &corev1.ObjectReference{Namespace: appNS, Name: "data"},
				StorageClassName:       class,
			},
		},
		class: &snapshotv1.VolumeSnapshotClass{
			ObjectMeta:     metav1.ObjectMeta{Name: "snap", Labels: map[string]string{velerov1.VolumeSnapshotClassSelectorLabel: "true"}},
			Driver:         driver,
			DeletionPolicy: snapshotv1.VolumeSnapshotContentRetain,
		},
		policy: oursPolicy,
		now:    time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
}

func testScheme(t *testing.T) *runtime.Scheme {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientgoscheme.AddToScheme, velerov1.AddToScheme, velerov2alpha1.AddToScheme, snapshotv1.AddToScheme, groupsnapshotv1.AddToScheme,
	} {
		require.NoError(t, add(scheme))
	}
	return scheme
}

// start builds the cluster and the action. The calls of the action go through the fault.
func (w *world) start(fault *faulty.Fault) *PVCAction {
	w.t.Helper()
	objects := []client.Object{w.backup.DeepCopy(), w.pvc.DeepCopy()}
	if w.pv != nil {
		objects = append(objects, w.pv)
	}
	if w.class != nil {
		objects = append(objects, w.class)
	}
	for name, text := range map[string]string{"policies": w.policy, "global": w.global} {
		if text != "" {
			objects = append(objects, &corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{Namespace: veleroNS, Name: name},
				Data:       map[string]string{"policies.yaml": text},
			})
		}
	}
	scheme := testScheme(w.t)
	for _, kind := range w.kinds {
		scheme.AddKnownTypeWithName(kind, &unstructured.Unstructured{})
		scheme.AddKnownTypeWithName(kind.GroupVersion().WithKind(kind.Kind+"List"), &unstructured.UnstructuredList{})
	}
	builder := fake.NewClientBuilder().WithScheme(scheme).WithObjects(append(objects, w.objects...)...)
	if w.kinds != nil {
		mapper := meta.NewDefaultRESTMapper(nil)
		for kind := range scheme.AllKnownTypes() {
			mapper.Add(kind, meta.RESTScopeNamespace)
		}
		builder = builder.WithRESTMapper(mapper)
	}
	funcs := interceptor.Funcs{Create: w.create, Delete: w.delete}
	if w.groups != nil {
		builder = builder.WithRESTMapper(w.groups.mapper()).WithStatusSubresource(&snapshotv1.VolumeSnapshotContent{})
		funcs.Create, funcs.Delete = w.groups.create, w.groups.delete
	}
	w.api = builder.WithInterceptorFuncs(funcs).Build()
	var log *logrus.Logger
	log, w.logs = logrustest.NewNullLogger()
	global := ""
	if w.global != "" {
		global = "global"
	}
	action := NewPVCAction(log, fault.Client(w.api), global, true)
	action.poller.Now = func() time.Time { return w.now }
	return action
}

// create acts as the API server's clock and the CSI driver.
func (w *world) create(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
	obj.SetCreationTimestamp(metav1.NewTime(w.now))
	vs, ok := obj.(*snapshotv1.VolumeSnapshot)
	if !ok {
		return c.Create(ctx, obj, opts...)
	}
	content := &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: "content-of-" + vs.Name},
		Spec:       snapshotv1.VolumeSnapshotContentSpec{Driver: driver, DeletionPolicy: w.class.DeletionPolicy},
		Status:     &snapshotv1.VolumeSnapshotContentStatus{},
	}
	if w.snapshotError != "" {
		content.Status.Error = &snapshotv1.VolumeSnapshotError{Message: &w.snapshotError}
	} else {
		handle := "handle-1"
		content.Status.SnapshotHandle = &handle
	}
	vs.Status = &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: &content.Name}
	if err := c.Create(ctx, vs, opts...); err != nil {
		return err
	}
	return c.Create(ctx, content)
}

// delete also deletes the content, as the snapshot controller does if the deletion policy is
// Delete.
func (w *world) delete(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.DeleteOption) error {
	if err := c.Delete(ctx, obj, opts...); err != nil {
		return err
	}
	if _, ok := obj.(*snapshotv1.VolumeSnapshot); !ok {
		return nil
	}
	content := &snapshotv1.VolumeSnapshotContent{}
	if err := c.Get(ctx, client.ObjectKey{Name: "content-of-" + obj.GetName()}, content); err != nil {
		return client.IgnoreNotFound(err)
	}
	if content.Spec.DeletionPolicy != snapshotv1.VolumeSnapshotContentDelete {
		return nil
	}
	return c.Delete(ctx, content)
}

type result struct {
	item        *unstructured.Unstructured
	additional  []velero.ResourceIdentifier
	operationID string
	afterwards  []velero.ResourceIdentifier
	err         error
}

func (w *world) execute(action *PVCAction) result {
	w.t.Helper()
	return w.executeOn(action, w.pvc)
}

func (w *world) executeOn(action *PVCAction, pvc *corev1.PersistentVolumeClaim) result {
	w.t.Helper()
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(pvc)
	require.NoError(w.t, err)
	item, additional, operationID, afterwards, err := action.Execute(&unstructured.Unstructured{Object: content}, w.backup)
	r := result{additional: additional, operationID: operationID, afterwards: afterwards, err: err}
	if err == nil {
		r.item = &unstructured.Unstructured{Object: item.UnstructuredContent()}
	}
	return r
}

func (w *world) uploads() []velerov2alpha1.DataUpload {
	w.t.Helper()
	var list velerov2alpha1.DataUploadList
	require.NoError(w.t, w.api.List(w.t.Context(), &list))
	return list.Items
}

func (w *world) snapshots() []snapshotv1.VolumeSnapshot {
	w.t.Helper()
	var list snapshotv1.VolumeSnapshotList
	require.NoError(w.t, w.api.List(w.t.Context(), &list))
	return list.Items
}

func (w *world) contents() []snapshotv1.VolumeSnapshotContent {
	w.t.Helper()
	var list snapshotv1.VolumeSnapshotContentList
	require.NoError(w.t, w.api.List(w.t.Context(), &list))
	return list.Items
}

func (w *world) requireNothingLeft() {
	w.t.Helper()
	require.Empty(w.t, w.uploads(), "DataUploads")
	require.Empty(w.t, w.snapshots(), "VolumeSnapshots")
	require.Empty(w.t, w.contents(), "VolumeSnapshotContents")
}

// requireQuiet: a line of level Error in a plugin's log is an error of the backup.
func (w *world) requireQuiet() {
	w.t.Helper()
	for _, entry := range w.logs.AllEntries() {
		require.Greater(w.t, entry.Level, logrus.ErrorLevel, "log line %q", entry.Message)
	}
}

func TestExecute(t *testing.T) {
	w := newWorld(t)
	r := w.execute(w.start(&faulty.Fault{}))
	require.NoError(t, r.err)
	w.requireQuiet()

	require.Len(t, w.snapshots(), 1)
	vs := w.snapshots()[0]
	require.Equal(t, identity.VolumeSnapshotName("backup-uid", "pvc-uid"), vs.Name)
	require.Equal(t, appNS, vs.Namespace)
	require.Equal(t, map[string]string{
		identity.LabelBackupUID:         "backup-uid",
		velerov1.ExcludeFromBackupLabel: "true",
	}, vs.Labels, "with velero.io/backup-name Velero would take it for a local snapshot")
	require.Equal(t, "snap", *vs.Spec.VolumeSnapshotClassName)

	require.Len(t, w.uploads(), 1)
	du := w.uploads()[0]
	require.Equal(t, veleroNS, du.Namespace)
	require.Equal(t, identity.DataUploadName("backup-uid", "pvc-uid"), du.Name)
	require.Equal(t, map[string]string{
		velerov1.BackupNameLabel:       "nightly",
		velerov1.BackupUIDLabel:        "backup-uid",
		velerov1.PVCUIDLabel:           "pvc-uid",
		velerov1.AsyncOperationIDLabel: "du-backup-uid.pvc-uid",
	}, du.Labels)
	require.Len(t, du.OwnerReferences, 1)
	require.Equal(t, "Backup", du.OwnerReferences[0].Kind)
	require.Equal(t, velerov2alpha1.DataUploadSpec{
		SnapshotType:          velerov2alpha1.SnapshotTypeCSI,
		CSISnapshot:           &velerov2alpha1.CSISnapshotSpec{VolumeSnapshot: vs.Name, StorageClass: "block", SnapshotClass: "snap", Driver: driver},
		SourcePVC:             "data",
		SourceNamespace:       appNS,
		DataMover:             "blockmover",
		DataMoverConfig:       map[string]string{"parentSnapshot": "auto"},
		BackupStorageLocation: "default",
		OperationTimeout:      metav1.Duration{Duration: 10 * time.Minute},
	}, du.Spec)

	require.Equal(t, "du-backup-uid.pvc-uid", r.operationID)
	require.Equal(t, map[string]string{identity.AnnotationDataUpload: veleroNS + "/" + du.Name}, r.item.GetAnnotations())
	require.Equal(t, []velero.ResourceIdentifier{{
		GroupResource: schema.GroupResource{Group: "velero.io", Resource: "datauploads"}, Namespace: veleroNS, Name: du.Name,
	}}, r.afterwards)
	require.Equal(t, kuberesource.DataUploads, r.afterwards[0].GroupResource)
	require.Empty(t, r.additional)
}

func TestExecuteLongUIDs(t *testing.T) {
	w := newWorld(t)
	w.backup.UID = "0a8cca1e-7e2c-4d4b-8b0c-0d8d8f3e9a11"
	w.pvc.UID = "f1a6d0a2-55a4-4a77-9c1e-3d2f6a7b8c90"
	r := w.execute(w.start(&faulty.Fault{}))
	require.NoError(t, r.err)
	require.LessOrEqual(t, len(r.operationID), 63, "the operation ID is a label value")
	require.Equal(t, r.operationID, w.uploads()[0].Labels[velerov1.AsyncOperationIDLabel])
}

// A PVC that is not ours stays as it was, and nothing is made.
func TestExecuteNotOurs(t *testing.T) {
	custom := func(parameters string) string {
		return strings.Replace(oursPolicy, "{mover: blockmover}", parameters, 1)
	}
	tests := map[string]func(w *world){
		"no policy":             func(w *world) { w.backup.Spec.ResourcePolicy = nil },
		"no policy matches":     func(w *world) { w.policy = strings.Replace(oursPolicy, driver, "other.csi", 1) },
		"action snapshot":       func(w *world) { w.policy = strings.Replace(oursPolicy, "custom", "snapshot", 1) },
		"action skip":           func(w *world) { w.policy = strings.Replace(oursPolicy, "custom", "skip", 1) },
		"custom of another":     func(w *world) { w.policy = custom("{mover: other, backupType: nonsense}") },
		"custom of nobody":      func(w *world) { w.policy = custom("{}") },
		"finalizing":            func(w *world) { w.backup.Status.Phase = velerov1.BackupPhaseFinalizing },
		"finalizing, failed":    func(w *world) { w.backup.Status.Phase = velerov1.BackupPhaseFinalizingPartiallyFailed },
		"pending, not selected": func(w *world) { w.pvc.Status.Phase = corev1.ClaimPending; w.pvc.Spec.VolumeName = "" },
		"lost, not selected":    func(w *world) { w.pv = nil },
		"backup comes before server": func(w *world) {
			w.policy = strings.Replace(oursPolicy, "custom", "skip", 1)
			w.global = oursPolicy
		},
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			change(w)
			r := w.execute(w.start(&faulty.Fault{}))
			require.NoError(t, r.err)
			w.requireQuiet()
			w.requireNothingLeft()
			require.Empty(t, r.operationID)
			require.Empty(t, r.afterwards)
			want, err := runtime.DefaultUnstructuredConverter.ToUnstructured(w.pvc)
			require.NoError(t, err)
			require.Equal(t, want, r.item.Object)
		})
	}
}

func TestExecuteRemovesStaleAnnotation(t *testing.T) {
	w := newWorld(t)
	w.backup.Spec.ResourcePolicy = nil
	w.pvc.Annotations = map[string]string{identity.AnnotationDataUpload: "velero/gone", "keep": "this"}
	r := w.execute(w.start(&faulty.Fault{}))
	require.NoError(t, r.err)
	require.Equal(t, map[string]string{"keep": "this"}, r.item.GetAnnotations())
}

// The ways to select a volume, and the settings in the DataUpload.
func TestExecuteSelected(t *testing.T) {
	parameters := func(text string) func(w *world) {
		return func(w *world) { w.policy = strings.Replace(oursPolicy, "{mover: blockmover}", text, 1) }
	}
	auto, none := map[string]string{"parentSnapshot": "auto"}, map[string]string{"parentSnapshot": "none"}
	yes, no := true, false
	tests := map[string]struct {
		change func(w *world)
		config map[string]string
		class  string
	}{
		"alias":            {change: parameters("{dataMover: blockmover}"), config: auto},
		"full":             {change: parameters("{mover: blockmover, backupType: FULL}"), config: none},
		"fullEvery":        {change: parameters("{mover: blockmover, fullEvery: 168h}"), config: map[string]string{"parentSnapshot": "auto", "fullEvery": "168h0m0s"}},
		"policy of server": {change: func(w *world) { w.backup.Spec.ResourcePolicy, w.policy, w.global = nil, "", oursPolicy }, config: auto},
		"annotation":       {change: func(w *world) { w.backup.Annotations = map[string]string{"blockmover.io/backup-type": "full"} }, config: none},
		"retain":           {change: parameters("{mover: blockmover, retainSnapshot: Always}"), config: map[string]string{"parentSnapshot": "auto", "retainSnapshot": "always"}},
		"retain by annotation": {
			change: func(w *world) {
				parameters("{mover: blockmover, retainSnapshot: always}")(w)
				w.backup.Annotations = map[string]string{"blockmover.io/retain-snapshot": "never"}
			},
			config: map[string]string{"parentSnapshot": "auto", "retainSnapshot": "never"},
		},
		"snapshotVolumes":   {change: func(w *world) { w.backup.Spec.SnapshotVolumes = &no }, config: auto},
		"door 1 and policy": {change: func(w *world) { w.backup.Spec.SnapshotMoveData, w.backup.Spec.DataMover = &yes, "blockmover" }, config: auto},
		"snapshot class": {
			change: func(w *world) {
				w.class.Name, w.class.Labels = "special", nil
				parameters("{mover: blockmover, snapshotClass: special}")(w)
			},
			config: auto, class: "special",
		},
		"server's policy where the backup's has no match": {
			change: func(w *world) {
				w.policy = strings.Replace(oursPolicy, driver, "other.csi", 1)
				w.global = strings.Replace(oursPolicy, "{mover: blockmover}", "{mover: blockmover, backupType: full}", 1)
			},
			config: none,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			test.change(w)
			r := w.execute(w.start(&faulty.Fault{}))
			require.NoError(t, r.err)
			w.requireQuiet()
			require.Len(t, w.uploads(), 1)
			require.Equal(t, test.config, w.uploads()[0].Spec.DataMoverConfig)
			if test.class == "" {
				test.class = "snap"
			}
			require.Equal(t, test.class, w.uploads()[0].Spec.CSISnapshot.SnapshotClass)
		})
	}
}

// A CRD newer than our Velero module may have spec.backupType.
func TestExecuteReadsBackupTypeOfNewerCRD(t *testing.T) {
	w := newWorld(t)
	action := w.start(&faulty.Fault{})
	raw, err := runtime.DefaultUnstructuredConverter.ToUnstructured(w.backup)
	require.NoError(t, err)
	require.NoError(t, unstructured.SetNestedField(raw, "full", "spec", "backupType"))
	action.api = interceptor.NewClient(w.api, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
			if u, ok := obj.(*unstructured.Unstructured); ok && u.GetKind() == "Backup" {
				u.Object = raw
				return nil
			}
			return c.Get(ctx, key, obj, opts...)
		},
	})
	require.NoError(t, w.execute(action).err)
	require.Equal(t, "none", w.uploads()[0].Spec.DataMoverConfig["parentSnapshot"])
}

// A volume of ours that cannot be backed up is an error, and nothing is left.
func TestExecuteErrors(t *testing.T) {
	parameters := func(text string) func(w *world) {
		return func(w *world) { w.policy = strings.Replace(oursPolicy, "{mover: blockmover}", text, 1) }
	}
	pvcPolicy := strings.Replace(oursPolicy, "{csi: {driver: test.csi.example}}", "{pvcLabels: {app: db}}", 1)
	tests := map[string]struct {
		change func(w *world)
		want   []string
	}{
		"unknown parameter":    {parameters("{mover: blockmover, retain: 3}"), []string{"app/data", "retain: 3: unknown key"}},
		"retained for a while": {parameters("{mover: blockmover, retainSnapshot: weekly}"), []string{"retainSnapshot: weekly: want auto, always or never"}},
		"malformed value":      {parameters("{mover: blockmover, fullEvery: weekly}"), []string{"fullEvery: weekly: want a duration"}},
		"malformed annotation": {func(w *world) { w.backup.Annotations = map[string]string{"blockmover.io/backup-type": "diff"} }, []string{`"diff"`}},
		"malformed retain":     {func(w *world) { w.backup.Annotations = map[string]string{"blockmover.io/retain-snapshot": "yes"} }, []string{`"yes"`, "auto, always or never"}},
		"no snapshot class":    {func(w *world) { w.class = nil }, []string{"choose VolumeSnapshotClass of driver test.csi.example"}},
		"unknown class":        {parameters("{mover: blockmover, snapshotClass: gone}"), []string{"VolumeSnapshotClass gone of the volume policy", "not found"}},
		"class of another driver": {func(w *world) {
			w.class.Driver = "other.csi"
			parameters("{mover: blockmover, snapshotClass: snap}")(w)
		}, []string{"is of driver other.csi, the volume of test.csi.example"}},
		"long name": {func(w *world) { w.pvc.Name = strings.Repeat("x", 253) }, []string{"its name has 253 characters, want at most 250"}},
		"pending": {func(w *world) {
			w.policy, w.pvc.Status.Phase, w.pvc.Spec.VolumeName = pvcPolicy, corev1.ClaimPending, ""
		}, []string{"the PVC is Pending, want Bound"}},
		"pending, alias": {func(w *world) {
			w.policy = strings.Replace(pvcPolicy, "mover:", "dataMover:", 1)
			w.pvc.Status.Phase, w.pvc.Spec.VolumeName = corev1.ClaimPending, ""
		}, []string{"the PVC is Pending, want Bound"}},
		"lost":        {func(w *world) { w.policy, w.pvc.Status.Phase = pvcPolicy, corev1.ClaimLost }, []string{"the PVC is Lost, want Bound"}},
		"volume lost": {func(w *world) { w.policy, w.pv = pvcPolicy, nil }, []string{"get PersistentVolume pv-1", "not found"}},
		"not CSI": {func(w *world) {
			w.policy = pvcPolicy
			w.pv.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/x"}}
		}, []string{"not a CSI volume"}},
		"driver fails": {func(w *world) {
			w.snapshotError = "quota exceeded"
			w.backup.Spec.CSISnapshotTimeout.Duration = 300 * time.Millisecond
		}, []string{"wait for snapshot handle", "deadline exceeded", "quota exceeded"}},
		"policies gone": {func(w *world) { w.policy = "" }, []string{"match volume policies for PVC app/data"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			test.change(w)
			r := w.execute(w.start(&faulty.Fault{}))
			require.Error(t, r.err)
			for _, want := range test.want {
				require.ErrorContains(t, r.err, want)
			}
			w.requireNothingLeft()
		})
	}
}

// The storage takes no more snapshots of a volume. The error names the volume, the retained
// snapshots, and what to do.
func TestExecuteExhausted(t *testing.T) {
	w := newWorld(t)
	w.snapshotError = `failed to take snapshot of the volume v1: "rpc error: code = ResourceExhausted desc = volume v1 has 1 snapshots, the maximum is 1"`
	w.backup.Spec.CSISnapshotTimeout.Duration = 300 * time.Millisecond
	action := w.start(&faulty.Fault{})
	for name, pvc := range map[string]string{"pair-1": "data", "pair-2": "other"} {
		require.NoError(t, rehome.New(w.api, w.api, veleroNS).Rebuild(t.Context(), rehome.Retained{
			Name: name, Driver: driver, VolumeHandle: "v1", SnapshotHandle: "handle-of-" + name, SnapshotTime: w.now,
			Keeping: rehome.Keeping{Retention: policy.RetentionAuto, Namespace: appNS, PVC: pvc, Backup: "weekly"},
		}))
	}
	r := w.execute(action)
	require.ErrorIs(t, r.err, volumesnapshot.ErrExhausted)
	for _, want := range []string{
		"back up PVC app/data", "volume v1 has 1 snapshots, the maximum is 1", "retains 1 snapshots of volume app/data",
		"pair-1 of backup weekly (retainSnapshot auto)", "raise the limit", "set retainSnapshot to auto or never",
	} {
		require.ErrorContains(t, r.err, want)
	}
	require.Empty(t, w.uploads())
	require.Empty(t, w.snapshots())
}

// Each call to the API server fails in turn, before or after it had its effect. Execute
// succeeds or leaves nothing behind, and a second try succeeds.
func TestExecuteSurvivesEachFault(t *testing.T) {
	for _, after := range []bool{false, true} {
		for call := 1; ; call++ {
			fault := &faulty.Fault{Call: call, After: after}
			w := newWorld(t)
			action := w.start(fault)
			r := w.execute(action)
			if fault.Fired() == "" {
				require.Greater(t, call, 5, "too few calls to be a test")
				require.NoError(t, r.err)
				break
			}
			name := fmt.Sprintf("call %d (%s), after=%t", call, fault.Fired(), after)
			if r.err != nil {
				w.requireNothingLeft()
				require.ErrorIs(t, r.err, faulty.ErrInjected, name)
			}
			r = w.execute(action)
			require.NoError(t, r.err, name)
			require.Len(t, w.snapshots(), 1, name)
			require.Len(t, w.uploads(), 1, name)
		}
	}
}

// Execute can be repeated, also by another process.
func TestExecuteReplay(t *testing.T) {
	w := newWorld(t)
	action := w.start(&faulty.Fault{})
	first := w.execute(action)
	require.NoError(t, first.err)
	second := w.execute(action)
	require.NoError(t, second.err)
	require.Equal(t, first, second)
	require.Len(t, w.snapshots(), 1)
	require.Len(t, w.uploads(), 1)
}

// A foreign object with our name is neither adopted nor deleted.
func TestExecuteDoesNotAdoptStrangers(t *testing.T) {
	t.Run("VolumeSnapshot", func(t *testing.T) {
		w := newWorld(t)
		action := w.start(&faulty.Fault{})
		require.NoError(t, w.api.Create(t.Context(), &snapshotv1.VolumeSnapshot{
			ObjectMeta: metav1.ObjectMeta{Namespace: appNS, Name: identity.VolumeSnapshotName("backup-uid", "pvc-uid")},
		}))
		r := w.execute(action)
		require.ErrorContains(t, r.err, "adopt VolumeSnapshot")
		require.Len(t, w.snapshots(), 1)
		require.Empty(t, w.uploads())
	})
	t.Run("DataUpload", func(t *testing.T) {
		w := newWorld(t)
		action := w.start(&faulty.Fault{})
		require.NoError(t, w.api.Create(t.Context(), &velerov2alpha1.DataUpload{
			ObjectMeta: metav1.ObjectMeta{Namespace: veleroNS, Name: identity.DataUploadName("backup-uid", "pvc-uid")},
		}))
		r := w.execute(action)
		require.ErrorContains(t, r.err, "adopt DataUpload")
		require.Len(t, w.uploads(), 1)
		require.Empty(t, w.snapshots())
	})
}

// started is a world with an upload in the given phase.
func started(t *testing.T, fault *faulty.Fault, change func(du *velerov2alpha1.DataUpload)) (*world, *PVCAction, string) {
	t.Helper()
	w := newWorld(t)
	r := w.execute(w.start(&faulty.Fault{}))
	require.NoError(t, r.err)
	if change != nil {
		du := w.uploads()[0]
		change(&du)
		require.NoError(t, w.api.Update(t.Context(), &du))
	}
	action := NewPVCAction(logrus.New(), fault.Client(w.api), "", true)
	action.log.(*logrus.Logger).SetOutput(&strings.Builder{})
	action.poller.Now = func() time.Time { return w.now }
	return w, action, r.operationID
}

func TestProgress(t *testing.T) {
	start := metav1.NewTime(time.Date(2026, 1, 2, 4, 0, 0, 0, time.UTC))
	end := metav1.NewTime(start.Add(time.Minute))
	tests := map[string]struct {
		status velerov2alpha1.DataUploadStatus
		want   velero.OperationProgress
	}{
		"unaccepted": {want: velero.OperationProgress{Description: "waiting for the blockmover manager to accept the DataUpload"}},
		"in progress": {
			status: velerov2alpha1.DataUploadStatus{Phase: velerov2alpha1.DataUploadPhaseInProgress, StartTimestamp: &start, Progress: progressOf(3, 7)},
			want:   velero.OperationProgress{Description: "InProgress", OperationUnits: "Bytes", NCompleted: 3, NTotal: 7, Started: start.Time},
		},
		"queued": {
			status: velerov2alpha1.DataUploadStatus{Message: "queued: as many operations run as the configuration allows"},
			want:   velero.OperationProgress{Description: "queued: as many operations run as the configuration allows"},
		},
		"waiting for something": {
			status: velerov2alpha1.DataUploadStatus{Phase: velerov2alpha1.DataUploadPhaseAccepted, Message: "no node has room"},
			want:   velero.OperationProgress{Description: "Accepted: no node has room", OperationUnits: "Bytes"},
		},
		"completed": {
			status: velerov2alpha1.DataUploadStatus{Phase: velerov2alpha1.DataUploadPhaseCompleted, StartTimestamp: &start, CompletionTimestamp: &end, Progress: progressOf(7, 7)},
			want:   velero.OperationProgress{Completed: true, Description: "Completed", OperationUnits: "Bytes", NCompleted: 7, NTotal: 7, Started: start.Time, Updated: end.Time},
		},
		"failed": {
			status: velerov2alpha1.DataUploadStatus{Phase: velerov2alpha1.DataUploadPhaseFailed, Message: "disk on fire"},
			want:   velero.OperationProgress{Completed: true, Err: "disk on fire", Description: "Failed", OperationUnits: "Bytes"},
		},
		"failed without a word": {
			status: velerov2alpha1.DataUploadStatus{Phase: velerov2alpha1.DataUploadPhaseFailed},
			want:   velero.OperationProgress{Completed: true, Err: "DataUpload failed without a message", Description: "Failed", OperationUnits: "Bytes"},
		},
		"canceled": {
			status: velerov2alpha1.DataUploadStatus{Phase: velerov2alpha1.DataUploadPhaseCanceled},
			want:   velero.OperationProgress{Completed: true, Err: "DataUpload was canceled", Description: "Canceled", OperationUnits: "Bytes"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w, action, operationID := started(t, &faulty.Fault{}, func(du *velerov2alpha1.DataUpload) { du.Status = test.status })
			got, err := action.Progress(operationID, w.backup)
			require.NoError(t, err)
			require.True(t, test.want.Started.Equal(got.Started) && test.want.Updated.Equal(got.Updated))
			test.want.Started, test.want.Updated = got.Started, got.Updated
			require.Equal(t, test.want, got)
		})
	}
}

// No manager accepts. After the timeout the operation fails with the likely cause, and
// nothing holds the snapshot any more.
func TestProgressGivesUp(t *testing.T) {
	w, action, operationID := started(t, &faulty.Fault{}, nil)
	w.now = w.now.Add(5*time.Minute - time.Second)
	got, err := action.Progress(operationID, w.backup)
	require.NoError(t, err)
	require.False(t, got.Completed)
	require.Len(t, w.snapshots(), 1)

	w.now = w.now.Add(time.Second)
	got, err = action.Progress(operationID, w.backup)
	require.NoError(t, err)
	require.True(t, got.Completed)
	du := w.uploads()[0]
	want := "DataUpload velero/" + du.Name + " was not accepted within 5m0s: is the blockmover manager running in namespace velero?"
	require.Equal(t, want, got.Err)
	require.Equal(t, velerov2alpha1.DataUploadPhaseFailed, du.Status.Phase)
	require.Equal(t, want, du.Status.Message)
	require.True(t, du.Spec.Cancel)
	require.Empty(t, w.snapshots())
	require.Empty(t, w.contents(), "the class says Retain")
}

// An operation that a manager has queued waits as long as it takes. Only the manager cancels
// it.
func TestQueuedIsNotGivenUp(t *testing.T) {
	for name, change := range map[string]func(du *velerov2alpha1.DataUpload){
		"message": func(du *velerov2alpha1.DataUpload) { du.Status.Message = "queued" },
		"annotation": func(du *velerov2alpha1.DataUpload) {
			du.Annotations = map[string]string{"blockmover.io/secured": "true"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, action, operationID := started(t, &faulty.Fault{}, change)
			w.now = w.now.Add(3 * time.Hour)
			got, err := action.Progress(operationID, w.backup)
			require.NoError(t, err)
			require.False(t, got.Completed)
			require.NoError(t, action.Cancel(operationID, w.backup))
			require.Empty(t, w.uploads()[0].Status.Phase)
			require.True(t, w.uploads()[0].Spec.Cancel)
			require.Len(t, w.snapshots(), 1)
		})
	}
}

// The manager accepts at the moment at which the plugin gives up.
func TestProgressGivesUpTooLate(t *testing.T) {
	w, action, operationID := started(t, &faulty.Fault{}, nil)
	w.now = w.now.Add(time.Hour)
	action.poller.API = interceptor.NewClient(w.api, interceptor.Funcs{
		Patch: func(ctx context.Context, c client.WithWatch, obj client.Object, patch client.Patch, opts ...client.PatchOption) error {
			du := w.uploads()[0]
			du.Status.Phase = velerov2alpha1.DataUploadPhaseAccepted
			require.NoError(t, c.Update(ctx, &du))
			return c.Patch(ctx, obj, patch, opts...)
		},
	})
	got, err := action.Progress(operationID, w.backup)
	require.NoError(t, err)
	require.False(t, got.Completed)
	require.Len(t, w.snapshots(), 1)
	require.Equal(t, velerov2alpha1.DataUploadPhaseAccepted, w.uploads()[0].Status.Phase)
	require.False(t, w.uploads()[0].Spec.Cancel)
}

func TestProgressAcceptTimeout(t *testing.T) {
	config := func(data map[string]string) *corev1.ConfigMap {
		return &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: veleroNS, Name: "blockmover-plugin", Labels: map[string]string{
				"velero.io/plugin-config": "", PVCActionName: "BackupItemActionV2",
			}},
			Data: data,
		}
	}
	t.Run("configured", func(t *testing.T) {
		w, action, operationID := started(t, &faulty.Fault{}, nil)
		require.NoError(t, w.api.Create(t.Context(), config(map[string]string{"acceptTimeout": "30s"})))
		w.now = w.now.Add(31 * time.Second)
		got, err := action.Progress(operationID, w.backup)
		require.NoError(t, err)
		require.Contains(t, got.Err, "within 30s")
	})
	t.Run("ends before Velero's own timeout", func(t *testing.T) {
		w, action, operationID := started(t, &faulty.Fault{}, nil)
		w.backup.Spec.ItemOperationTimeout.Duration = time.Minute
		w.now = w.now.Add(30 * time.Second)
		got, err := action.Progress(operationID, w.backup)
		require.NoError(t, err)
		require.Contains(t, got.Err, "within 30s")
	})
	for name, data := range map[string]map[string]string{
		"unknown key": {"acceptTimout": "30s"}, "malformed": {"acceptTimeout": "30"}, "negative": {"acceptTimeout": "-1s"},
	} {
		t.Run(name+" is found before the snapshot is taken", func(t *testing.T) {
			w := newWorld(t)
			action := w.start(&faulty.Fault{})
			require.NoError(t, w.api.Create(t.Context(), config(data)))
			require.ErrorContains(t, w.execute(action).err, "plugin ConfigMap velero/blockmover-plugin")
			w.requireNothingLeft()
		})
	}
}

// An error of Progress ends the operation for good. So only a DataUpload that is gone is an
// error.
func TestProgressErrors(t *testing.T) {
	for call := 1; ; call++ {
		fault := &faulty.Fault{Call: call}
		w, action, operationID := started(t, fault, nil)
		w.now = w.now.Add(time.Hour)
		got, err := action.Progress(operationID, w.backup)
		require.NoError(t, err)
		if fault.Fired() == "" {
			require.Greater(t, call, 3)
			break
		}
		if !got.Completed {
			require.Contains(t, got.Description, "injected fault")
			got, err = action.Progress(operationID, w.backup)
			require.NoError(t, err)
			require.True(t, got.Completed)
			require.Empty(t, w.snapshots())
		} else {
			require.Contains(t, got.Err, "was not accepted")
			require.Contains(t, got.Err, "injected fault", "what was not released is said")
		}
	}
	w, action, operationID := started(t, &faulty.Fault{}, nil)
	du := w.uploads()[0]
	require.NoError(t, w.api.Delete(t.Context(), &du))
	_, err := action.Progress(operationID, w.backup)
	require.ErrorContains(t, err, "0 DataUploads")
	_, err = action.Progress("", w.backup)
	require.Error(t, err)
}

func TestCancel(t *testing.T) {
	t.Run("accepted: the mover is asked", func(t *testing.T) {
		w, action, operationID := started(t, &faulty.Fault{}, func(du *velerov2alpha1.DataUpload) {
			du.Status.Phase = velerov2alpha1.DataUploadPhaseInProgress
		})
		require.NoError(t, action.Cancel(operationID, w.backup))
		require.True(t, w.uploads()[0].Spec.Cancel)
		require.Equal(t, velerov2alpha1.DataUploadPhaseInProgress, w.uploads()[0].Status.Phase)
		require.Len(t, w.snapshots(), 1)
	})
	t.Run("unaccepted: it ends at once", func(t *testing.T) {
		w, action, operationID := started(t, &faulty.Fault{}, nil)
		require.NoError(t, action.Cancel(operationID, w.backup))
		require.Equal(t, velerov2alpha1.DataUploadPhaseCanceled, w.uploads()[0].Status.Phase)
		require.Empty(t, w.snapshots())
		require.Empty(t, w.contents())
	})
	t.Run("ended: nothing happens", func(t *testing.T) {
		w, action, operationID := started(t, &faulty.Fault{}, func(du *velerov2alpha1.DataUpload) {
			du.Status.Phase = velerov2alpha1.DataUploadPhaseCompleted
		})
		require.NoError(t, action.Cancel(operationID, w.backup))
		require.False(t, w.uploads()[0].Spec.Cancel)
	})
	t.Run("accepted in this moment", func(t *testing.T) {
		w, action, operationID := started(t, &faulty.Fault{}, nil)
		accepted := false
		action.poller.API = interceptor.NewClient(w.api, interceptor.Funcs{
			Patch: func(ctx context.Context, c client.WithWatch, obj client.Object, patch client.Patch, opts ...client.PatchOption) error {
				if !accepted {
					accepted = true
					du := w.uploads()[0]
					du.Status.Phase = velerov2alpha1.DataUploadPhaseAccepted
					require.NoError(t, c.Update(ctx, &du))
				}
				return c.Patch(ctx, obj, patch, opts...)
			},
		})
		require.NoError(t, action.Cancel(operationID, w.backup))
		require.True(t, w.uploads()[0].Spec.Cancel)
		require.Equal(t, velerov2alpha1.DataUploadPhaseAccepted, w.uploads()[0].Status.Phase)
		require.Len(t, w.snapshots(), 1)
	})
	t.Run("each call fails in turn", func(t *testing.T) {
		for call := 1; ; call++ {
			fault := &faulty.Fault{Call: call}
			w, action, operationID := started(t, fault, nil)
			err := action.Cancel(operationID, w.backup)
			if fault.Fired() == "" {
				require.NoError(t, err)
				break
			}
			require.True(t, errors.Is(err, faulty.ErrInjected), fault.Fired())
		}
	})
	require.Error(t, (&PVCAction{}).Cancel("", &velerov1.Backup{}))
}

func TestAppliesTo(t *testing.T) {
	selector, err := (&PVCAction{}).AppliesTo()
	require.NoError(t, err)
	require.Equal(t, velero.ResourceSelector{IncludedResources: []string{"persistentvolumeclaims"}}, selector)
	require.Equal(t, "blockmover.io/pvc-backup", (&PVCAction{}).Name())
}

func TestFailedReadsKeepsTheFirst(t *testing.T) {
	reads := &failedReads{Client: fake.NewClientBuilder().WithScheme(testScheme(t)).Build()}
	for _, name := range []string{"one", "two"} {
		require.Error(t, reads.Get(t.Context(), client.ObjectKey{Name: name}, &corev1.PersistentVolume{}))
	}
	require.True(t, apierrors.IsNotFound(reads.first))
	require.ErrorContains(t, reads.first, "one")
}

func progressOf(done, total int64) shared.DataMoveOperationProgress {
	return shared.DataMoveOperationProgress{BytesDone: done, TotalBytes: total}
}

// TestExecuteSkipsEphemeralVolumes: Kubernetes makes the PVC of a generic ephemeral volume for its
// pod, and a restored pod does not start with another one.
func TestExecuteSkipsEphemeralVolumes(t *testing.T) {
	w := newWorld(t)
	controller := true
	w.pvc.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "web-0", Controller: &controller}}
	r := w.execute(w.start(&faulty.Fault{}))
	require.NoError(t, r.err)
	require.Empty(t, r.operationID)
	require.Equal(t, "true", r.item.GetAnnotations()[velerov1.SkipFromBackupAnnotation])
	require.Empty(t, w.snapshots())
}
