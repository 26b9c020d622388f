// Package controller reconciles DataUploads and DataDownloads of the data mover
// "blockmover": it exposes their volumes to mover pods, follows those to their
// end, and leaves nothing behind.
//
// Who writes what of a DataUpload or DataDownload: Velero and the plugins write
// the spec, the worker in the mover pod writes status.progress while it runs,
// and everything else of the status is written here. There is no status
// subresource and there are no conditions, so everything is a patch of the
// object, of disjoint fields, and phases change under an optimistic lock.
//
// One reconciliation observes, lets package phase decide, acts, and patches:
//
//	engine     what both kinds have in common, from reading to patching
//	uploads    re-home the VolumeSnapshot, expose it, release
//	downloads  expose an empty volume, rebind it to its user, release
//	sweeper    releases what operations and backups left that cannot do so
//	           themselves, and retained snapshots that are needed no more
//
// Not promised: that a storage which refuses to delete a volume or a snapshot is
// waited for longer than a minute. The operation ends, its message names what is
// left, and the sweep goes on trying.
package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlcontroller "sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/blockmover/blockmover/internal/config"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/volumesnapshot/groupsnapshot"
	"github.com/blockmover/blockmover/internal/volumesnapshot/rehome"
	"github.com/blockmover/blockmover/mover/exposer"
)

// Options of Setup.
type Options struct {
	// Namespace is Velero's.
	Namespace string
	// WorkerImage is the image of mover pods.
	WorkerImage string
	Config      config.Config
	// APIAudiences are the audiences of tokens that the API server accepts.
	APIAudiences []string
}

// AddToScheme registers the types that the controllers use.
func AddToScheme(scheme *runtime.Scheme) error {
	return errors.Join(
		corev1.AddToScheme(scheme),
		storagev1.AddToScheme(scheme),
		snapshotv1.AddToScheme(scheme),
		velerov1.AddToScheme(scheme),
		velerov2alpha1.AddToScheme(scheme),
	)
}

// CacheOptions keeps the cache to what is watched: Velero's namespace, and in
// there of pods, PVCs and VolumeSnapshots, as of PVs and contents, only what
// belongs to an operation. Elsewhere only PVCs that a Velero restore made.
func CacheOptions(namespace string) (cache.Options, error) {
	ours, err := hasLabel(identity.LabelOperation)
	if err != nil {
		return cache.Options{}, err
	}
	restored, err := hasLabel(velerov1.RestoreNameLabel)
	if err != nil {
		return cache.Options{}, err
	}
	return cache.Options{
		DefaultNamespaces: map[string]cache.Config{namespace: {}},
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Pod{}:                       {Label: ours},
			&corev1.PersistentVolume{}:          {Label: ours},
			&snapshotv1.VolumeSnapshot{}:        {Label: ours},
			&snapshotv1.VolumeSnapshotContent{}: {Label: ours},
			&corev1.PersistentVolumeClaim{}: {Namespaces: map[string]cache.Config{
				namespace:           {LabelSelector: ours},
				cache.AllNamespaces: {LabelSelector: restored},
			}},
		},
	}, nil
}

func hasLabel(key string) (labels.Selector, error) {
	requirement, err := labels.NewRequirement(key, selection.Exists, nil)
	if err != nil {
		return nil, fmt.Errorf("select by label %s: %w", key, err)
	}
	return labels.NewSelector().Add(*requirement), nil
}

// Setup adds the controllers and the sweep to a manager whose cache has
// CacheOptions.
func Setup(mgr ctrl.Manager, opts Options) error {
	counters, err := newMetrics(ctrlmetrics.Registry)
	if err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	around := surroundings{
		client:       mgr.GetClient(),
		reader:       mgr.GetAPIReader(),
		exposer:      &exposer.Exposer{Client: mgr.GetClient(), Reader: mgr.GetAPIReader(), Namespace: opts.Namespace},
		namespace:    opts.Namespace,
		image:        opts.WorkerImage,
		config:       opts.Config,
		apiAudiences: opts.APIAudiences,
	}
	rehomer := rehome.New(around.client, around.reader, opts.Namespace)
	sweep := &sweeper{
		client:    around.client,
		reader:    around.reader,
		exposer:   around.exposer,
		rehomer:   rehomer,
		groups:    groupsnapshot.New(around.client, around.reader),
		namespace: opts.Namespace,
		interval:  sweepInterval,
		wake:      make(chan struct{}, 1),
	}
	if err := mgr.Add(sweep); err != nil {
		return fmt.Errorf("add sweep: %w", err)
	}
	makeEngine := func(kind string, f flow) *engine {
		return &engine{
			flow:     f,
			kind:     kind,
			client:   around.client,
			exposer:  around.exposer,
			config:   opts.Config,
			recorder: mgr.GetEventRecorder("blockmover"),
			metrics:  counters,
			now:      time.Now,
		}
	}
	up := makeEngine(identity.KindDataUpload, &uploads{surroundings: around, rehomer: rehomer})
	if err := watch(mgr, up, &velerov2alpha1.DataUpload{}, sweep).
		Watches(&snapshotv1.VolumeSnapshot{}, handler.EnqueueRequestsFromMapFunc(ownerOf(identity.KindDataUpload, opts.Namespace))).
		Watches(&snapshotv1.VolumeSnapshotContent{}, handler.EnqueueRequestsFromMapFunc(ownerOf(identity.KindDataUpload, opts.Namespace))).
		Complete(up); err != nil {
		return fmt.Errorf("set up DataUpload controller: %w", err)
	}
	down := makeEngine(identity.KindDataDownload, &downloads{surroundings: around})
	if err := watch(mgr, down, &velerov2alpha1.DataDownload{}, sweep).
		Watches(&corev1.PersistentVolumeClaim{}, handler.EnqueueRequestsFromMapFunc(down.targetedBy)).
		Complete(down); err != nil {
		return fmt.Errorf("set up DataDownload controller: %w", err)
	}
	return nil
}

// concurrency is how many operations of a kind are reconciled at once: a step
// takes milliseconds, unless a call to the API server hangs.
const concurrency = 8

// watch sets up what both controllers watch: the operations, what belongs to
// them, and the BackupRepositories that they wait for.
func watch(mgr ctrl.Manager, e *engine, object client.Object, sweep *sweeper) *builder.Builder {
	owner := handler.EnqueueRequestsFromMapFunc(ownerOf(e.kind, e.exposer.Namespace))
	return ctrl.NewControllerManagedBy(mgr).
		Named(strings.ToLower(e.kind)).
		WithOptions(ctrlcontroller.Options{MaxConcurrentReconciles: concurrency}).
		For(object, builder.WithPredicates(ignoreProgress())).
		Watches(object, handler.EnqueueRequestsFromMapFunc(e.queue), builder.WithPredicates(slotFreed(sweep))).
		Watches(&corev1.Pod{}, owner).
		Watches(&corev1.PersistentVolumeClaim{}, owner).
		Watches(&corev1.PersistentVolume{}, owner).
		Watches(&velerov1.BackupRepository{}, handler.EnqueueRequestsFromMapFunc(e.underway))
}

// ownerOf maps an object of an operation to the operation.
func ownerOf(kind, namespace string) handler.MapFunc {
	return func(_ context.Context, object client.Object) []reconcile.Request {
		op, ok := identity.OperationOf(object.GetLabels(), object.GetAnnotations())
		if !ok || op.Kind != kind || op.Namespace != namespace {
			return nil
		}
		return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: op.Namespace, Name: op.Name}}}
	}
}

// ignoreProgress drops the events that a worker's progress makes.
func ignoreProgress() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		return !equality.Semantic.DeepEqual(withoutProgress(e.ObjectOld), withoutProgress(e.ObjectNew))
	}}
}

func withoutProgress(object client.Object) client.Object {
	object, _ = object.DeepCopyObject().(client.Object)
	object.SetResourceVersion("")
	object.SetManagedFields(nil)
	object.SetGeneration(0)
	switch o := object.(type) {
	case *velerov2alpha1.DataUpload:
		o.Status.Progress.BytesDone, o.Status.Progress.TotalBytes = 0, 0
	case *velerov2alpha1.DataDownload:
		o.Status.Progress.BytesDone, o.Status.Progress.TotalBytes = 0, 0
	}
	return object
}

// slotFreed passes the end of an operation, after which others may start. One
// that is deleted before its end is swept after, and the end of an upload may
// make retained snapshots needless.
func slotFreed(sweep *sweeper) predicate.Predicate {
	return predicate.Funcs{
		CreateFunc:  func(event.CreateEvent) bool { return false },
		GenericFunc: func(event.GenericEvent) bool { return false },
		UpdateFunc: func(e event.UpdateEvent) bool {
			passes := !ended(e.ObjectOld) && ended(e.ObjectNew)
			if _, isUpload := e.ObjectNew.(*velerov2alpha1.DataUpload); passes && isUpload {
				sweep.poke()
			}
			return passes
		},
		DeleteFunc: func(e event.DeleteEvent) bool {
			if !ended(e.Object) {
				sweep.poke()
			}
			return !ended(e.Object)
		},
	}
}

func ended(object client.Object) bool {
	op := operation.Of(object)
	return op != nil && op.Status.Phase.Terminal()
}

// queue maps to the new operations, oldest first.
func (e *engine) queue(ctx context.Context, _ client.Object) []reconcile.Request {
	return e.requests(ctx, func(op *operation.View) bool { return op.Status.Phase == phase.New })
}

// underway maps to the operations that are being prepared.
func (e *engine) underway(ctx context.Context, _ client.Object) []reconcile.Request {
	return e.requests(ctx, func(op *operation.View) bool { return op.Status.Phase.Underway() })
}

func (e *engine) requests(ctx context.Context, want func(*operation.View) bool) []reconcile.Request {
	all, err := e.list(ctx)
	if err != nil {
		return nil // polling finds them later
	}
	all = slices.DeleteFunc(all, func(op *operation.View) bool { return !want(op) })
	slices.SortFunc(all, compareAge)
	out := make([]reconcile.Request, len(all))
	for i, op := range all {
		out[i].NamespacedName = op.Key()
	}
	return out
}

// targetedBy maps a PVC to the DataDownloads that restore it.
func (e *engine) targetedBy(ctx context.Context, pvc client.Object) []reconcile.Request {
	key := client.ObjectKeyFromObject(pvc)
	return e.requests(ctx, func(op *operation.View) bool {
		return op.Download != nil && !op.Status.Phase.Terminal() && targetOf(op.Download) == key
	})
}
