package controller

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/blockmover/blockmover/internal/config"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/task"
	"github.com/blockmover/blockmover/internal/volumesnapshot/groupsnapshot"
	"github.com/blockmover/blockmover/internal/volumesnapshot/rehome"
	"github.com/blockmover/blockmover/mover/exposer"
	"github.com/blockmover/blockmover/mover/vmbackup"
)

const (
	veleroNamespace = "velero"
	appNamespace    = "app"
	driver          = "driver.example.com"
	gibi            = 1 << 30

	finalizerPVC     = "kubernetes.io/pvc-protection"
	finalizerVS      = "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection"
	finalizerContent = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection"
	finalizerInGroup = "snapshot.storage.kubernetes.io/volumesnapshot-in-group-protection"
	beingDeleted     = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted"
)

// world is a cluster around the controllers: the storage, and the controllers that delete
// from it if the wrong object is deleted at the wrong time. Each step lets every one of them
// act once.
type world struct {
	t   *testing.T
	ctx context.Context
	// c is the API server. The controllers reach it through faults.
	c client.WithWatch
	// narrow and faulty are the clients of the controllers: one with a cache, and one that
	// always asks the API server.
	narrow, faulty client.Client
	faults         *faults
	// settings are those of the controllers.
	settings *config.Live
	// live counts the reads of the API server.
	live    int
	clock   time.Time
	uploads *engine
	downs   *engine
	sweep   *sweeper

	// mapper knows the kinds that some clusters do not have.
	mapper *meta.DefaultRESTMapper
	// volumes and snapshots are those in the storage. groups has the groups of snapshots that
	// are members of one.
	volumes, snapshots map[string]bool
	groups             map[string]string
	// groupWith returns the name of the VolumeGroupSnapshot with a handle in the storage.
	groupWith  func(handle string) string
	nextVolume int
	// report is what a mover pod reports at its end, unless podEnds decides otherwise.
	report  task.Report
	podEnds func(pod *corev1.Pod) bool
	// pods counts the mover pods that ran.
	pods int
	// stuck keeps mover pods from being scheduled.
	stuck bool
	// log is what mover pods have written.
	log string
}

// podLogs gives every mover pod the log of the world.
type podLogs struct{ w *world }

func (l podLogs) Tail(context.Context, *corev1.Pod) (text string, err error) {
	err = l.w.faults.call(func() error {
		text = l.w.log
		return nil
	})
	return text, err
}

// Follow implements exposer.Logs. The world has no time in which something could be said.
func (l podLogs) Follow(context.Context, *corev1.Pod) (io.ReadCloser, error) {
	return nil, errors.New("nothing is followed in this world")
}

// faults makes calls of the controllers fail: one of them, or some at random, before or after
// they had an effect.
type faults struct {
	calls  int
	failAt int
	after  bool
	fired  bool
	random *rand.Rand
	// refuse, if not nil, may refuse to get, create, patch or delete an object.
	refuse func(verb string, object client.Object) error
	// persisted, if not nil, is told of each call that has changed an object, and what a patch
	// has changed.
	persisted func(verb string, object client.Object, diff string)
}

// done passes on what came of a call that changes an object.
func (f *faults) done(verb string, object client.Object, diff string, err error) error {
	if err == nil && f.persisted != nil {
		f.persisted(verb, object, diff)
	}
	return err
}

// patched is done for a patch. The object is what it was before.
func (f *faults) patched(object client.Object, patch client.Patch, do func() error) error {
	diff, err := patch.Data(object)
	if err != nil {
		return err
	}
	return f.done("patch", object, string(diff), do())
}

// unless calls do, unless the object is refused.
func (f *faults) unless(verb string, object client.Object, do func() error) error {
	if f.refuse != nil {
		if err := f.refuse(verb, object); err != nil {
			return err
		}
	}
	return f.call(do)
}

var errInjected = errors.New("injected fault")

func (f *faults) call(do func() error) error {
	f.calls++
	after := f.after
	if f.random != nil {
		const oneIn = 15
		after = f.random.IntN(2) == 0
		if f.random.IntN(oneIn) != 0 {
			return do()
		}
	} else if f.calls != f.failAt {
		return do()
	}
	f.fired = true
	if after {
		if err := do(); err != nil {
			return err
		}
	}
	return errInjected
}

func (f *faults) funcs() interceptor.Funcs {
	return interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
			return f.unless("get", obj, func() error { return c.Get(ctx, key, obj, opts...) })
		},
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			return f.call(func() error { return c.List(ctx, list, opts...) })
		},
		Create: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
			return f.unless("create", obj, func() error { return f.done("create", obj, "", c.Create(ctx, obj, opts...)) })
		},
		Delete: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.DeleteOption) error {
			return f.unless("delete", obj, func() error { return f.done("delete", obj, "", c.Delete(ctx, obj, opts...)) })
		},
		Update: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.UpdateOption) error {
			return f.unless("update", obj, func() error { return f.done("update", obj, "", c.Update(ctx, obj, opts...)) })
		},
		Patch: func(ctx context.Context, c client.WithWatch, obj client.Object, patch client.Patch, opts ...client.PatchOption) error {
			return f.unless("patch", obj, func() error {
				return f.patched(obj, patch, func() error { return c.Patch(ctx, obj, patch, opts...) })
			})
		},
		SubResourcePatch: func(ctx context.Context, c client.Client, name string, obj client.Object, patch client.Patch, opts ...client.SubResourcePatchOption) error {
			return f.call(func() error {
				return f.patched(obj, patch, func() error { return c.SubResource(name).Patch(ctx, obj, patch, opts...) })
			})
		},
	}
}

// cached sees only what the manager's cache has; see CacheOptions.
func cached(c client.WithWatch) client.WithWatch {
	return interceptor.NewClient(c, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
			label := ""
			switch obj.(type) {
			case *snapshotv1.VolumeSnapshot, *corev1.Pod:
				if label = identity.LabelOperation; key.Namespace != veleroNamespace {
					return fmt.Errorf("unable to get: %s because of unknown namespace for the cache", key)
				}
			case *snapshotv1.VolumeSnapshotContent, *corev1.PersistentVolume:
				label = identity.LabelOperation
			case *corev1.PersistentVolumeClaim:
				if label = identity.LabelOperation; key.Namespace != veleroNamespace {
					label = velerov1.RestoreNameLabel
				}
			}
			if err := c.Get(ctx, key, obj, opts...); err != nil || label == "" {
				return err
			}
			if _, selected := obj.GetLabels()[label]; !selected {
				return apierrors.NewNotFound(schema.GroupResource{Resource: fmt.Sprintf("%T", obj)}, key.Name)
			}
			return nil
		},
	})
}

// worldScheme is made once: that takes as long as many steps of a world.
var worldScheme = sync.OnceValue(func() *runtime.Scheme {
	scheme := runtime.NewScheme()
	if err := AddToScheme(scheme); err != nil {
		panic(err)
	}
	return scheme
})

func newWorld(t *testing.T, objects ...client.Object) *world {
	t.Helper()
	scheme := worldScheme()
	w := &world{
		t:         t,
		ctx:       t.Context(),
		faults:    &faults{},
		clock:     time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
		volumes:   map[string]bool{},
		snapshots: map[string]bool{},
		groups:    map[string]string{},
		mapper:    meta.NewDefaultRESTMapper([]schema.GroupVersion{metadataKind.GroupVersion()}),
		report: task.Report{
			Version: task.Version, SnapshotID: "repo-snapshot-1", Kind: repository.Full, Reason: "NoParent",
			VolumeSize: gibi, BytesRead: 7, BytesUploaded: 5,
		},
		podEnds: func(*corev1.Pod) bool { return true },
	}
	w.mapper.Add(snapshotv1.SchemeGroupVersion.WithKind("VolumeSnapshot"), meta.RESTScopeNamespace)
	uids := 0
	identify := func(object client.Object) {
		uids++
		if object.GetUID() == "" {
			object.SetUID(types.UID(fmt.Sprintf("uid-%d", uids)))
		}
		if created := object.GetCreationTimestamp(); created.IsZero() {
			object.SetCreationTimestamp(metav1.NewTime(w.clock))
		}
	}
	groupContent := &unstructured.Unstructured{}
	groupContent.SetGroupVersionKind(groupKind("VolumeGroupSnapshotContent"))
	objects = append(base(), objects...)
	for _, object := range objects {
		identify(object)
	}
	w.c = fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).
		// The tracker that is the default keeps managed fields, which nobody here reads, and takes half of the time.
		WithObjectTracker(clienttesting.NewObjectTracker(scheme, serializer.NewCodecFactory(scheme).UniversalDecoder())).
		WithStatusSubresource(&snapshotv1.VolumeSnapshotContent{}, groupContent).WithRESTMapper(w.mapper).
		WithIndex(&corev1.Event{}, exposer.EventObject, func(o client.Object) []string {
			event, _ := o.(*corev1.Event)
			return []string{event.InvolvedObject.Name}
		}).
		WithInterceptorFuncs(interceptor.Funcs{Create: func(ctx context.Context, c client.WithWatch, object client.Object, opts ...client.CreateOption) error {
			identify(object)
			return c.Create(ctx, object, opts...)
		}}).Build()
	faulty := interceptor.NewClient(w.c, w.faults.funcs())
	var err error
	w.settings, err = config.Fixed(config.Config{})
	require.NoError(t, err)
	w.narrow, w.faulty = cached(faulty), w.counted(faulty)
	w.restart()
	return w
}

// restart begins the controllers anew: they know nothing.
func (w *world) restart() {
	w.t.Helper()
	counters, err := newMetrics(prometheus.NewRegistry())
	require.NoError(w.t, err)
	x := &exposer.Exposer{Client: w.narrow, Reader: w.faulty, Logs: podLogs{w}, Namespace: veleroNamespace}
	around := surroundings{client: w.narrow, reader: w.faulty, exposer: x, namespace: veleroNamespace, image: "blockmover:1", live: w.settings}
	rehomer := rehome.New(w.narrow, w.faulty, veleroNamespace)
	newEngine := func(kind string, f flow) *engine {
		return &engine{
			flow: f, kind: kind, client: w.narrow, exposer: x, live: w.settings,
			recorder: events.NewFakeRecorder(1000), metrics: counters, now: func() time.Time { return w.clock },
			listener: newListener(x),
		}
	}
	snapshots := &uploads{surroundings: around, rehomer: rehomer}
	vms := &vmbackup.Maker{Client: w.narrow, Reader: w.faulty, Namespace: veleroNamespace, Now: func() time.Time { return w.clock }}
	w.uploads = newEngine(identity.KindDataUpload, byVolume{snapshots: snapshots, disks: &disks{uploads: snapshots, maker: vms}})
	w.downs = newEngine(identity.KindDataDownload, &downloads{surroundings: around})
	w.sweep = &sweeper{
		client: w.c, reader: w.counted(w.c), exposer: x, rehomer: rehomer, groups: groupsnapshot.New(w.narrow, w.faulty), vms: vms, namespace: veleroNamespace,
		recorder: events.NewFakeRecorder(1000), metrics: counters, now: func() time.Time { return w.clock }, held: map[string]bool{},
	}
}

// counted counts the reads of a client.
func (w *world) counted(c client.WithWatch) client.WithWatch {
	return interceptor.NewClient(c, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
			w.live++
			return c.Get(ctx, key, obj, opts...)
		},
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			w.live++
			return c.List(ctx, list, opts...)
		},
	})
}

// base is what every cluster has.
func base() []client.Object {
	late := storagev1.VolumeBindingWaitForFirstConsumer
	return []client.Object{
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}},
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "fast"}, Provisioner: driver, Parameters: map[string]string{"csi.storage.k8s.io/fstype": "xfs"}},
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "late"}, Provisioner: driver, VolumeBindingMode: &late},
		&velerov1.BackupStorageLocation{ObjectMeta: metav1.ObjectMeta{Namespace: veleroNamespace, Name: "default"}},
	}
}

// step lets everything except our controllers act once.
func (w *world) step() {
	w.t.Helper()
	w.clock = w.clock.Add(time.Second)
	w.stepGarbage()
	w.stepRepositories()
	w.stepSnapshots()
	w.stepContents()
	w.stepPods()
	w.stepClaims()
	w.stepVolumes()
}

// run reconciles and steps until the operation ends.
func (w *world) run(e *engine, name string) *operation.View {
	w.t.Helper()
	const enough = 200
	for range enough {
		if _, err := e.Reconcile(w.ctx, requestFor(name)); err != nil {
			require.ErrorIs(w.t, err, errInjected)
		}
		w.step()
		if op := w.operation(e, name); op.Status.Phase.Terminal() {
			return op
		}
	}
	op := w.operation(e, name)
	w.t.Fatalf("%s did not end: phase %q, message %q", name, op.Status.Phase, op.Status.Message)
	return nil
}

// sweepUp runs the sweep until it has nothing to do.
func (w *world) sweepUp() {
	w.t.Helper()
	for range 10 {
		if _, err := w.sweep.sweep(w.ctx); err != nil {
			require.ErrorIs(w.t, err, errInjected)
		}
		w.step()
	}
}

func (w *world) operation(e *engine, name string) *operation.View {
	w.t.Helper()
	key := types.NamespacedName{Namespace: veleroNamespace, Name: name}
	op, err := operation.Find(w.ctx, w.c, e.kind, key)
	require.NoError(w.t, err)
	require.NotNil(w.t, op)
	return op
}

// update writes spec and status, whether or not the kind has a status
// subresource.
func (w *world) update(object client.Object) {
	w.t.Helper()
	current, _ := object.DeepCopyObject().(client.Object)
	if err := w.c.Get(w.ctx, client.ObjectKeyFromObject(object), current); err == nil && equality.Semantic.DeepEqual(current, object) {
		return
	}
	status, _ := object.DeepCopyObject().(client.Object)
	if err := w.c.Update(w.ctx, object); apierrors.IsNotFound(err) {
		return // that was its last finalizer
	} else if err != nil {
		w.t.Fatalf("update %T %s: %v", object, object.GetName(), err)
	}
	status.SetResourceVersion(object.GetResourceVersion())
	if err := w.c.Status().Update(w.ctx, status); err != nil && !apierrors.IsNotFound(err) {
		w.t.Fatalf("update status of %T %s: %v", object, object.GetName(), err)
	}
}

func list[T any, L interface {
	*T
	client.ObjectList
}](w *world, opts ...client.ListOption) L {
	w.t.Helper()
	l := L(new(T))
	require.NoError(w.t, w.c.List(w.ctx, l, opts...))
	return l
}

// get returns nil if the object does not exist.
func get[T any, O interface {
	*T
	client.Object
}](w *world, namespace, name string) O {
	w.t.Helper()
	o := O(new(T))
	err := w.c.Get(w.ctx, client.ObjectKey{Namespace: namespace, Name: name}, o)
	if apierrors.IsNotFound(err) {
		return nil
	}
	require.NoError(w.t, err)
	return o
}

// stepGarbage acts as the garbage collector.
func (w *world) stepGarbage() {
	for _, pod := range list[corev1.PodList](w, client.InNamespace(veleroNamespace)).Items {
		w.collect(&pod)
	}
	for _, claim := range list[corev1.PersistentVolumeClaimList](w, client.InNamespace(veleroNamespace)).Items {
		w.collect(&claim)
	}
}

func (w *world) collect(object client.Object) {
	owner := metav1.GetControllerOf(object)
	if owner == nil || object.GetDeletionTimestamp() != nil {
		return
	}
	var found client.Object = &velerov2alpha1.DataUpload{}
	if owner.Kind == identity.KindDataDownload {
		found = &velerov2alpha1.DataDownload{}
	}
	err := w.c.Get(w.ctx, client.ObjectKey{Namespace: veleroNamespace, Name: owner.Name}, found)
	if err == nil && found.GetUID() == owner.UID {
		return
	}
	require.NoError(w.t, client.IgnoreNotFound(err))
	require.NoError(w.t, w.c.Delete(w.ctx, object))
}

func (w *world) stepRepositories() {
	for _, r := range list[velerov1.BackupRepositoryList](w).Items {
		if r.Status.Phase == "" {
			r.Status.Phase = velerov1.BackupRepositoryPhaseReady
			w.update(&r)
		}
	}
}

// stepSnapshots acts as the snapshot controller.
func (w *world) stepSnapshots() {
	for _, vs := range list[snapshotv1.VolumeSnapshotList](w).Items {
		name := ""
		if vs.Spec.Source.VolumeSnapshotContentName != nil {
			name = *vs.Spec.Source.VolumeSnapshotContentName
		} else if vs.Status != nil && vs.Status.BoundVolumeSnapshotContentName != nil {
			name = *vs.Status.BoundVolumeSnapshotContentName
		}
		content := get[snapshotv1.VolumeSnapshotContent](w, "", name)
		if vs.DeletionTimestamp != nil {
			w.deleteSnapshot(&vs, content)
			continue
		}
		if content == nil {
			continue
		}
		if content.Spec.VolumeSnapshotRef.UID == "" {
			content.Spec.VolumeSnapshotRef.UID = vs.UID
			controllerutil.AddFinalizer(content, finalizerContent)
			w.update(content)
			continue
		}
		controllerutil.AddFinalizer(&vs, finalizerVS)
		if vs.Status == nil {
			vs.Status = &snapshotv1.VolumeSnapshotStatus{}
		}
		vs.Status.BoundVolumeSnapshotContentName = &name
		if content.Status != nil {
			vs.Status.ReadyToUse = content.Status.ReadyToUse
			if handle := content.Status.VolumeGroupSnapshotHandle; handle != nil && w.groupWith != nil {
				// It does so for re-homed members, too: updateSnapshotStatus of external-snapshotter.
				if name := w.groupWith(*handle); name != "" {
					vs.Status.VolumeGroupSnapshotName = &name
				}
			}
		}
		w.update(&vs)
	}
}

func (w *world) deleteSnapshot(vs *snapshotv1.VolumeSnapshot, content *snapshotv1.VolumeSnapshotContent) {
	if content != nil && content.Spec.VolumeSnapshotRef.UID == vs.UID {
		if content.Annotations[beingDeleted] == "" {
			metav1.SetMetaDataAnnotation(&content.ObjectMeta, beingDeleted, "yes")
			w.update(content)
		}
		if content.Spec.DeletionPolicy == snapshotv1.VolumeSnapshotContentDelete {
			if content.DeletionTimestamp == nil {
				require.NoError(w.t, w.c.Delete(w.ctx, content))
			}
			return
		}
	}
	controllerutil.RemoveFinalizer(vs, finalizerVS)
	w.update(vs)
}

// stepContents acts as the snapshotter sidecar.
func (w *world) stepContents() {
	for _, content := range list[snapshotv1.VolumeSnapshotContentList](w).Items {
		if content.DeletionTimestamp == nil {
			if content.Status == nil && content.Spec.Source.SnapshotHandle != nil && w.snapshots[*content.Spec.Source.SnapshotHandle] {
				ready := true
				content.Status = &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: content.Spec.Source.SnapshotHandle, ReadyToUse: &ready}
				if group := w.groups[*content.Spec.Source.SnapshotHandle]; group != "" {
					content.Status.VolumeGroupSnapshotHandle = &group
				}
				w.update(&content)
			}
			continue
		}
		if content.Annotations[beingDeleted] == "" {
			continue
		}
		if content.Spec.DeletionPolicy == snapshotv1.VolumeSnapshotContentDelete && content.Status != nil &&
			content.Status.SnapshotHandle != nil && content.Status.VolumeGroupSnapshotHandle == nil {
			// That of a member may have gone with its group.
			require.True(w.t, w.snapshots[*content.Status.SnapshotHandle] || w.groups[*content.Status.SnapshotHandle] != "", "snapshot %s was deleted before", *content.Status.SnapshotHandle)
			delete(w.snapshots, *content.Status.SnapshotHandle)
		}
		controllerutil.RemoveFinalizer(&content, finalizerContent)
		w.update(&content)
	}
}

// stepPods acts as scheduler and kubelet: a pod runs in one step and ends in the next.
func (w *world) stepPods() {
	for _, pod := range list[corev1.PodList](w, client.InNamespace(veleroNamespace)).Items {
		name := pod.Spec.Volumes[0].PersistentVolumeClaim.ClaimName
		claim := get[corev1.PersistentVolumeClaim](w, veleroNamespace, name)
		switch {
		case pod.Status.Phase == corev1.PodRunning && w.podEnds(&pod):
			text, err := w.report.Encode()
			require.NoError(w.t, err)
			pod.Status.Phase = corev1.PodSucceeded
			code := int32(0)
			if w.report.Error != "" {
				pod.Status.Phase, code = corev1.PodFailed, 1
			}
			pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: exposer.ContainerName, State: corev1.ContainerState{
				Terminated: &corev1.ContainerStateTerminated{Message: text, ExitCode: code},
			}}}
		case w.stuck:
			continue
		case pod.Status.Phase == "" && claim != nil && claim.Status.Phase == corev1.ClaimBound:
			w.pods++
			pod.Spec.NodeName = "node-1"
			pod.Status.Phase = corev1.PodRunning
		default:
			continue
		}
		w.update(&pod)
	}
}

// stepClaims acts as the provisioner, and as the controller that protects PVCs in use.
func (w *world) stepClaims() {
	for _, claim := range list[corev1.PersistentVolumeClaimList](w, client.InNamespace(veleroNamespace)).Items {
		switch {
		case claim.DeletionTimestamp != nil:
			if !w.inUse(claim.Name) {
				controllerutil.RemoveFinalizer(&claim, finalizerPVC)
				w.update(&claim)
			}
		case claim.Spec.VolumeName == "" && w.canProvision(&claim):
			w.provision(&claim)
		case claim.Status.Phase == "":
			w.bindTo(&claim, get[corev1.PersistentVolume](w, "", claim.Spec.VolumeName))
		}
	}
}

// bindTo acts as the PV controller for a PVC that names its volume.
func (w *world) bindTo(claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
	if pv == nil || pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.Namespace != claim.Namespace || pv.Spec.ClaimRef.Name != claim.Name {
		return
	}
	require.Equal(w.t, *claim.Spec.VolumeMode, *pv.Spec.VolumeMode)
	require.Equal(w.t, *claim.Spec.StorageClassName, pv.Spec.StorageClassName)
	pv.Spec.ClaimRef.UID, pv.Status.Phase = claim.UID, corev1.VolumeBound
	w.update(pv)
	controllerutil.AddFinalizer(claim, finalizerPVC)
	claim.Status.Phase = corev1.ClaimBound
	w.update(claim)
}

// inUse reports whether a pod in Velero's namespace has a PVC.
func (w *world) inUse(claim string) bool {
	for _, pod := range list[corev1.PodList](w, client.InNamespace(veleroNamespace)).Items {
		if pod.Spec.Volumes[0].PersistentVolumeClaim.ClaimName == claim {
			return true
		}
	}
	return false
}

func (w *world) canProvision(claim *corev1.PersistentVolumeClaim) bool {
	if source := claim.Spec.DataSource; source != nil {
		vs := get[snapshotv1.VolumeSnapshot](w, claim.Namespace, source.Name)
		return vs != nil && vs.Status != nil && vs.Status.ReadyToUse != nil && *vs.Status.ReadyToUse
	}
	return true
}

func (w *world) provision(claim *corev1.PersistentVolumeClaim) {
	w.nextVolume++
	handle := fmt.Sprintf("volume-%d", w.nextVolume)
	w.volumes[handle] = true
	class := *claim.Spec.StorageClassName
	pv := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pv-" + handle, Annotations: map[string]string{
			"pv.kubernetes.io/provisioned-by":                       driver,
			"volume.kubernetes.io/provisioner-deletion-secret-name": "secret",
		}},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: claim.Spec.Resources.Requests[corev1.ResourceStorage]},
			AccessModes:                   claim.Spec.AccessModes,
			VolumeMode:                    claim.Spec.VolumeMode,
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			StorageClassName:              class,
			PersistentVolumeSource:        corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: handle}},
			ClaimRef:                      &corev1.ObjectReference{Kind: "PersistentVolumeClaim", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID},
		},
		Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound},
	}
	require.NoError(w.t, w.c.Create(w.ctx, pv))
	controllerutil.AddFinalizer(claim, finalizerPVC)
	claim.Spec.VolumeName = pv.Name
	claim.Status.Phase = corev1.ClaimBound
	w.update(claim)
}

// stepVolumes acts as the PV controller, and as the provisioner that deletes.
func (w *world) stepVolumes() {
	for _, pv := range list[corev1.PersistentVolumeList](w).Items {
		ref := pv.Spec.ClaimRef
		if ref == nil || ref.UID == "" {
			continue
		}
		if pv.Status.Phase == corev1.VolumeReleased && pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
			require.True(w.t, w.volumes[pv.Spec.CSI.VolumeHandle], "volume %s was deleted before", pv.Spec.CSI.VolumeHandle)
			delete(w.volumes, pv.Spec.CSI.VolumeHandle)
			require.NoError(w.t, client.IgnoreNotFound(w.c.Delete(w.ctx, &pv)))
			continue
		}
		claim := get[corev1.PersistentVolumeClaim](w, ref.Namespace, ref.Name)
		switch {
		case claim == nil || claim.UID != ref.UID:
			pv.Status.Phase = corev1.VolumeReleased
		case claim.Spec.VolumeName == "":
			require.Equal(w.t, *claim.Spec.VolumeMode, *pv.Spec.VolumeMode)
			claim.Spec.VolumeName = pv.Name
			claim.Status.Phase = corev1.ClaimBound
			w.update(claim)
			continue
		case claim.Spec.VolumeName == pv.Name:
			pv.Status.Phase = corev1.VolumeBound
		}
		w.update(&pv)
	}
}

// requireNothingLeft checks that Velero's namespace and the storage are as before, except for
// the given objects.
func (w *world) requireNothingLeft(volumes []string, snapshots []string) {
	w.t.Helper()
	require.Empty(w.t, list[corev1.PodList](w, client.InNamespace(veleroNamespace)).Items)
	require.Empty(w.t, list[corev1.PersistentVolumeClaimList](w, client.InNamespace(veleroNamespace)).Items)
	require.Empty(w.t, list[corev1.PersistentVolumeList](w, client.HasLabels{identity.LabelOperation}).Items)
	require.Empty(w.t, list[snapshotv1.VolumeSnapshotList](w).Items)
	require.Empty(w.t, list[snapshotv1.VolumeSnapshotContentList](w).Items)
	require.ElementsMatch(w.t, volumes, slices.Collect(maps.Keys(w.volumes)))
	require.ElementsMatch(w.t, snapshots, slices.Collect(maps.Keys(w.snapshots)))
}

func quantity(n int64) resource.Quantity { return *resource.NewQuantity(n, resource.BinarySI) }

func requestFor(name string) ctrl.Request {
	return ctrl.Request{NamespacedName: types.NamespacedName{Namespace: veleroNamespace, Name: name}}
}

// cancel asks a DataUpload or DataDownload to end.
func (w *world) cancel(object client.Object) {
	w.t.Helper()
	switch o := object.(type) {
	case *velerov2alpha1.DataUpload:
		o.Spec.Cancel = true
	case *velerov2alpha1.DataDownload:
		o.Spec.Cancel = true
	}
	w.update(object)
}

// edited returns a changed configuration.
func edited(live *config.Live, edit func(*config.Config)) *config.Live {
	var c config.Config
	if live != nil {
		c = live.Get()
	}
	edit(&c)
	changed, err := config.Fixed(c)
	if err != nil {
		panic(err) // the test wants what cannot be
	}
	return changed
}
