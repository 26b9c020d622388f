package controller

import (
	"context"
	"fmt"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlcontroller "sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/source"
)

// snapshotsServed reports whether the cluster serves VolumeSnapshots. A cluster that is built
// again after a disaster may have no CRDs of snapshots yet. Restores need none.
func snapshotsServed(mapper meta.RESTMapper) (bool, error) {
	_, err := mapper.RESTMapping(snapshotv1.SchemeGroupVersion.WithKind("VolumeSnapshot").GroupKind(), snapshotv1.SchemeGroupVersion.Version)
	if meta.IsNoMatchError(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("discover %s: %w", snapshotv1.SchemeGroupVersion, err)
	}
	return true, nil
}

// NewCache makes the cache of the manager. It asks at once whether the kinds in CacheOptions are
// namespaced, also the ones that the cluster does not serve yet.
func NewCache(config *rest.Config, options cache.Options) (cache.Cache, error) {
	options.Mapper = withSnapshots(options.Mapper)
	return cache.New(config, options)
}

// snapshotMapper knows VolumeSnapshots and their contents in any cluster.
type snapshotMapper struct {
	meta.RESTMapper
	snapshots *meta.DefaultRESTMapper
}

func withSnapshots(served meta.RESTMapper) meta.RESTMapper {
	m := snapshotMapper{served, meta.NewDefaultRESTMapper(nil)}
	m.snapshots.Add(snapshotv1.SchemeGroupVersion.WithKind("VolumeSnapshot"), meta.RESTScopeNamespace)
	m.snapshots.Add(snapshotv1.SchemeGroupVersion.WithKind("VolumeSnapshotContent"), meta.RESTScopeRoot)
	return m
}

// RESTMapping implements meta.RESTMapper.
func (m snapshotMapper) RESTMapping(kind schema.GroupKind, versions ...string) (*meta.RESTMapping, error) {
	mapping, err := m.RESTMapper.RESTMapping(kind, versions...)
	if meta.IsNoMatchError(err) {
		if known, knownErr := m.snapshots.RESTMapping(kind, versions...); knownErr == nil {
			return known, nil
		}
	}
	return mapping, err
}

// snapshotInterval is how often a cluster without VolumeSnapshots is asked whether it has them
// now.
const snapshotInterval = 15 * time.Second

// snapshotWatcher makes the controller of DataUploads watch VolumeSnapshots and their contents
// as soon as the cluster serves them.
type snapshotWatcher struct {
	mgr           ctrl.Manager
	controller    ctrlcontroller.Controller
	owner, source handler.EventHandler
}

// Start implements manager.Runnable.
func (w *snapshotWatcher) Start(ctx context.Context) error {
	logger := log.FromContext(ctx)
	told := false
	err := wait.PollUntilContextCancel(ctx, snapshotInterval, true, func(context.Context) (bool, error) {
		served, err := snapshotsServed(w.mgr.GetRESTMapper())
		if err != nil {
			logger.Info("cannot discover VolumeSnapshots", "error", err.Error())
			return false, nil
		}
		if !served && !told {
			told = true
			logger.Info("the cluster does not serve VolumeSnapshots: it can restore, and backs nothing up")
		}
		return served, nil
	})
	if err != nil {
		return nil //nolint:nilerr // the manager stops
	}
	for _, watched := range []struct {
		object client.Object
		to     handler.EventHandler
	}{{&snapshotv1.VolumeSnapshot{}, w.owner}, {&snapshotv1.VolumeSnapshot{}, w.source}, {&snapshotv1.VolumeSnapshotContent{}, w.owner}} {
		if err := w.controller.Watch(source.Kind(w.mgr.GetCache(), watched.object, watched.to)); err != nil {
			return fmt.Errorf("watch %T: %w", watched.object, err)
		}
	}
	return nil
}

// withoutKinds returns no error of a list for one that says that the cluster does not serve the
// kind, or no longer: it has no object of it.
func withoutKinds(err error) error {
	if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
