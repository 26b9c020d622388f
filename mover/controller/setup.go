// Package controller reconciles DataUploads and DataDownloads of the data mover
// "blockmover": it exposes their volumes to mover pods, follows those to their
// end, and leaves nothing behind.
//
// Who writes what of a DataUpload or DataDownload: Velero and the plugins write
// the spec, and the status is written here. A mover pod writes nothing: its progress
// and its report are read from its log. There is no status subresource and there are no conditions,
// so everything is a patch of the object, of disjoint fields, and phases change
// under an optimistic lock.
//
// One reconciliation observes, lets package phase decide, acts, and patches:
//
//	engine     the steps of both kinds, from reading to patching
//	uploads    re-home the VolumeSnapshot, expose it, release
//	disks      the same for a disk of a running VM, which KubeVirt backs up (package vmbackup)
//	downloads  expose an empty volume, hand it over, release
//	listener   wakes an engine up when a mover pod has said what does not wait
//	grants     who gets the next slot
//	sweeper    releases what ended operations and backups left, and retained snapshots
//	           that no backup needs any more
//
// If the storage does not delete a volume or a snapshot within a minute, the operation ends
// all the same. Its message names what is left, and the sweep keeps trying.
package controller

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlcontroller "sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/blockmover/blockmover/internal/config"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/volumesnapshot/groupsnapshot"
	"github.com/blockmover/blockmover/internal/volumesnapshot/rehome"
	"github.com/blockmover/blockmover/mover/exposer"
	"github.com/blockmover/blockmover/mover/vmbackup"
)

// Options of Setup.
type Options struct {
	// Namespace is Velero's.
	Namespace string
	// WorkerImage is the image of mover pods.
	WorkerImage string
	Settings    *config.Live
	// APIAudiences are the audiences of tokens that the API server accepts.
	APIAudiences []string
	// Logs reads the logs of mover pods.
	Logs exposer.Logs
}

// AddToScheme registers the types that the controllers use.
func AddToScheme(scheme *runtime.Scheme) error {
	return errors.Join(
		appsv1.AddToScheme(scheme),
		corev1.AddToScheme(scheme),
		storagev1.AddToScheme(scheme),
		snapshotv1.AddToScheme(scheme),
		velerov1.AddToScheme(scheme),
		velerov2alpha1.AddToScheme(scheme),
	)
}

// Setup adds the controllers and the sweep to a manager whose cache has
// CacheOptions.
func Setup(ctx context.Context, mgr ctrl.Manager, opts Options) error {
	counters, err := newMetrics(ctrlmetrics.Registry)
	if err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	if err := ctrlmetrics.Registry.Register(newInventory(mgr.GetClient(), opts.Namespace, mgr.Elected(), opts.Settings, time.Now)); err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	around := surroundings{
		client:       mgr.GetClient(),
		reader:       mgr.GetAPIReader(),
		exposer:      &exposer.Exposer{Client: mgr.GetClient(), Reader: mgr.GetAPIReader(), Logs: opts.Logs, Namespace: opts.Namespace},
		namespace:    opts.Namespace,
		image:        opts.WorkerImage,
		live:         opts.Settings,
		apiAudiences: opts.APIAudiences,
	}
	rehomer := rehome.New(around.client, around.reader, opts.Namespace)
	// A sweep lists what may be thousands of objects.
	pages := kube.Paged(around.reader)
	sweep := &sweeper{
		client:    around.client,
		reader:    pages,
		exposer:   around.exposer,
		rehomer:   rehome.New(around.client, pages, opts.Namespace),
		groups:    groupsnapshot.New(around.client, pages),
		vms:       &vmbackup.Maker{Client: around.client, Reader: pages, Namespace: opts.Namespace, Now: time.Now},
		namespace: opts.Namespace,
		recorder:  mgr.GetEventRecorder("blockmover"),
		metrics:   counters,
		now:       time.Now,
		held:      map[string]bool{},
	}
	if err := sweep.setup(mgr); err != nil {
		return fmt.Errorf("set up sweep: %w", err)
	}
	failed := &failedBackups{client: around.client, namespace: opts.Namespace}
	if err := failed.setup(mgr); err != nil {
		return fmt.Errorf("set up controller of failed backups: %w", err)
	}
	if err := addIndexes(ctx, mgr.GetFieldIndexer()); err != nil {
		return err
	}
	makeEngine := func(kind string, f flow) *engine {
		return &engine{
			flow:     f,
			kind:     kind,
			client:   around.client,
			exposer:  around.exposer,
			live:     opts.Settings,
			recorder: mgr.GetEventRecorder("blockmover"),
			metrics:  counters,
			now:      time.Now,
			listener: newListener(around.exposer),
		}
	}
	snapshots := &uploads{surroundings: around, rehomer: rehomer}
	vms := &vmbackup.Maker{Client: around.client, Reader: around.reader, Namespace: opts.Namespace, Now: time.Now}
	up := makeEngine(identity.KindDataUpload, byVolume{snapshots: snapshots, disks: &disks{uploads: snapshots, maker: vms}})
	if err := mgr.Add(opts.Settings); err != nil {
		return fmt.Errorf("follow configuration: %w", err)
	}
	owner := handler.EnqueueRequestsFromMapFunc(ownerOf(up.kind, opts.Namespace))
	uploadController, err := watch(mgr, up, &velerov2alpha1.DataUpload{}).
		Watches(&velerov2alpha1.DataUpload{}, handler.EnqueueRequestsFromMapFunc(up.siblings), builder.WithPredicates(vmBackupMoved())).
		Watches(&velerov1.Backup{}, handler.EnqueueRequestsFromMapFunc(up.disksOf), builder.WithPredicates(backupWritten())).
		Build(up)
	if err != nil {
		return fmt.Errorf("set up DataUpload controller: %w", err)
	}
	if err := mgr.Add(&snapshotWatcher{mgr: mgr, controller: uploadController, owner: owner, source: handler.EnqueueRequestsFromMapFunc(up.referring(indexSource))}); err != nil {
		return fmt.Errorf("set up DataUpload controller: %w", err)
	}
	down := makeEngine(identity.KindDataDownload, &downloads{surroundings: around})
	if err := watch(mgr, down, &velerov2alpha1.DataDownload{}).
		Watches(&corev1.PersistentVolumeClaim{}, handler.EnqueueRequestsFromMapFunc(down.referring(indexTarget))).
		Complete(down); err != nil {
		return fmt.Errorf("set up DataDownload controller: %w", err)
	}
	return nil
}

// concurrency is how many operations of a kind are reconciled at once. A step takes
// milliseconds, unless a call to the API server hangs.
const concurrency = 8

// watch sets up what both controllers watch: the operations, what belongs to them, the
// BackupRepositories that they wait for, and what frees a slot.
func watch(mgr ctrl.Manager, e *engine, object client.Object) *builder.Builder {
	// More may run after a change of the configuration.
	changed := make(chan event.GenericEvent, 1)
	e.live.OnChange(func() {
		select {
		case changed <- event.GenericEvent{Object: object}:
		default: // one is on its way
		}
	})
	owner := handler.EnqueueRequestsFromMapFunc(ownerOf(e.kind, e.exposer.Namespace))
	waiting := handler.EnqueueRequestsFromMapFunc(e.waiting)
	return ctrl.NewControllerManagedBy(mgr).
		Named(strings.ToLower(e.kind)).
		WithOptions(ctrlcontroller.Options{
			MaxConcurrentReconciles: concurrency,
			RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](minErrorInterval, maxErrorInterval),
		}).
		For(object, builder.WithPredicates(ignoreProgress())).
		Watches(object, waiting, builder.WithPredicates(slotFreed())).
		Watches(&corev1.Node{}, waiting, builder.WithPredicates(nodeChanged())).
		Watches(&corev1.Pod{}, owner).
		Watches(&corev1.PersistentVolumeClaim{}, owner).
		Watches(&corev1.PersistentVolume{}, owner).
		Watches(&velerov1.BackupRepository{}, handler.EnqueueRequestsFromMapFunc(e.underway)).
		WatchesRawSource(source.Channel(changed, waiting)).
		WatchesRawSource(source.Channel(e.listener.heard, &handler.EnqueueRequestForObject{}))
}
