package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	crdsv1 "github.com/vmware-tanzu/velero/config/crd/v1/crds"
	crdsv2alpha1 "github.com/vmware-tanzu/velero/config/crd/v2alpha1/crds"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/mover/controller"
)

const (
	velero = "velero"
	app    = "app"
	driver = "bench.csi.example.com"
)

// world is an API server, and a manager that works on it.
type world struct {
	dir     string
	stop    func() // ends the watch, for which the API server would wait
	env     *envtest.Environment
	client  client.WithWatch
	manager *exec.Cmd
	metrics string
}

// newWorld starts etcd and the API server. The world is to be closed, also after an error.
func newWorld(ctx context.Context, o options) (*world, error) {
	w := &world{}
	var err error
	if w.dir, err = os.MkdirTemp("", "benchqueue-"); err != nil {
		return w, fmt.Errorf("make directory: %w", err)
	}
	for _, name := range []string{"etcd", "kube-apiserver"} {
		script := fmt.Sprintf("#!/bin/sh\nexec %q %s \"$@\"\n", o.kube, name)
		if err := os.WriteFile(filepath.Join(w.dir, name), []byte(script), 0o700); err != nil { //nolint:gosec // it is a program
			return w, fmt.Errorf("write script: %w", err)
		}
	}
	scheme := runtime.NewScheme()
	if err := controller.AddToScheme(scheme); err != nil {
		return w, fmt.Errorf("register kinds: %w", err)
	}
	env := &envtest.Environment{
		Scheme:                scheme,
		BinaryAssetsDirectory: w.dir,
		CRDDirectoryPaths:     []string{o.crds},
		CRDs:                  slices.Concat(crdsv1.CRDs, crdsv2alpha1.CRDs),
		ErrorIfCRDPathMissing: true,

		ControlPlaneStartTimeout: 2 * time.Minute,
		ControlPlaneStopTimeout:  2 * time.Minute,
	}
	config, err := env.Start()
	if err != nil {
		return w, fmt.Errorf("start API server: %w", err)
	}
	w.env = env
	config.QPS = -1 // no limit
	if w.client, err = client.NewWithWatch(config, client.Options{Scheme: scheme}); err != nil {
		return w, fmt.Errorf("make client: %w", err)
	}
	for _, object := range []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: velero}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: app}},
	} {
		if err := w.client.Create(ctx, object); err != nil {
			return w, fmt.Errorf("create %s: %w", object.GetName(), err)
		}
	}
	err = w.addNode(ctx)
	return w, err
}

// addNode adds a node that can run mover pods. The API server taints a new one as not ready.
func (w *world) addNode(ctx context.Context) error {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}}
	if err := w.client.Create(ctx, node); err != nil {
		return fmt.Errorf("create node: %w", err)
	}
	node.Spec.Taints = nil
	if err := w.client.Update(ctx, node); err != nil {
		return fmt.Errorf("remove taint from node: %w", err)
	}
	return nil
}

func (w *world) close() error {
	var errs []error
	if w.stop != nil {
		w.stop()
	}
	if w.manager != nil {
		_ = w.manager.Process.Signal(syscall.SIGTERM)
		_ = w.manager.Wait() // its exit status does not matter
	}
	if w.env != nil {
		errs = append(errs, w.env.Stop())
	}
	return errors.Join(append(errs, os.RemoveAll(w.dir))...)
}

// create makes DataUploads with the VolumeSnapshots of a driver that has taken them.
func (w *world) create(ctx context.Context, n int) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(16)
	for i := range n {
		group.Go(func() error { return w.createUpload(ctx, fmt.Sprintf("disk-%04d", i)) })
	}
	return group.Wait()
}

func (w *world) createUpload(ctx context.Context, name string) error {
	var (
		taken   = metav1.Now()
		nanos   = taken.UnixNano()
		ready   = true
		size    = resource.MustParse("1Gi")
		bytes   = size.Value()
		handle  = "handle of " + name
		content = "content-" + name
	)
	vs := &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Namespace: app, Name: name},
		Spec:       snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &name}},
	}
	if err := w.client.Create(ctx, vs); err != nil {
		return fmt.Errorf("create VolumeSnapshot: %w", err)
	}
	vs.Status = &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: &content, CreationTime: &taken, ReadyToUse: &ready, RestoreSize: &size}
	if err := w.client.Status().Update(ctx, vs); err != nil {
		return fmt.Errorf("update VolumeSnapshot: %w", err)
	}
	vsc := &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: content},
		Spec: snapshotv1.VolumeSnapshotContentSpec{
			Driver: driver, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete,
			Source:            snapshotv1.VolumeSnapshotContentSource{VolumeHandle: &name},
			VolumeSnapshotRef: corev1.ObjectReference{Namespace: app, Name: name, UID: vs.UID},
		},
	}
	if err := w.client.Create(ctx, vsc); err != nil {
		return fmt.Errorf("create VolumeSnapshotContent: %w", err)
	}
	vsc.Status = &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: &handle, CreationTime: &nanos, RestoreSize: &bytes, ReadyToUse: &ready}
	if err := w.client.Status().Update(ctx, vsc); err != nil {
		return fmt.Errorf("update VolumeSnapshotContent: %w", err)
	}
	const hours = 4
	err := w.client.Create(ctx, &velerov2alpha1.DataUpload{
		ObjectMeta: metav1.ObjectMeta{Namespace: velero, Name: name},
		Spec: velerov2alpha1.DataUploadSpec{
			SnapshotType: velerov2alpha1.SnapshotTypeCSI,
			CSISnapshot:  &velerov2alpha1.CSISnapshotSpec{VolumeSnapshot: name, StorageClass: "fast", SnapshotClass: "fast", Driver: driver},
			SourcePVC:    name, SourceNamespace: app, DataMover: identity.DataMover, BackupStorageLocation: "default",
			OperationTimeout: metav1.Duration{Duration: hours * time.Hour},
			DataMoverConfig:  map[string]string{identity.ConfigParentSnapshot: identity.ParentAuto},
		},
	})
	if err != nil {
		return fmt.Errorf("create DataUpload: %w", err)
	}
	return nil
}

// startManager starts a manager with one slot.
func (w *world) startManager(path string, o options) error {
	configFile, kubeconfig := filepath.Join(w.dir, "config.yaml"), filepath.Join(w.dir, "kubeconfig")
	settings := fmt.Sprintf("loadConcurrency: {globalConfig: 1}\npreparingTimeout: %s\n", o.timeout)
	if err := errors.Join(os.WriteFile(configFile, []byte(settings), 0o600), os.WriteFile(kubeconfig, w.env.KubeConfig, 0o600)); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	var err error
	if w.metrics, err = freeAddress(); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(w.dir, "manager.log"))
	if err != nil {
		return fmt.Errorf("create log: %w", err)
	}
	defer log.Close()                                                //nolint:errcheck // the manager has its own
	w.manager = exec.Command(path, "manager", "--namespace", velero, //nolint:noctx // close ends it
		"--config", configFile, "--worker-image", "none", "--leader-elect=false",
		"--metrics-bind-address", w.metrics, "--health-probe-bind-address", "0", "--kube-api-qps", "500", "--kube-api-burst", "1000")
	w.manager.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig, "GOMEMLIMIT=256MiB") // as in deploy/deployment.yaml
	w.manager.Stdout, w.manager.Stderr = log, log
	if err := w.manager.Start(); err != nil {
		w.manager = nil
		return fmt.Errorf("start manager: %w", err)
	}
	return nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it is closed at once
	if err != nil {
		return "", fmt.Errorf("find free port: %w", err)
	}
	return l.Addr().String(), l.Close()
}

// requests is how many requests the manager has sent to the API server.
func (w *world) requests(ctx context.Context) (float64, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+w.metrics+"/metrics", http.NoBody)
	if err != nil {
		return 0, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, fmt.Errorf("read metrics: %w", err)
	}
	defer response.Body.Close() //nolint:errcheck // it was read
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(response.Body)
	if err != nil {
		return 0, fmt.Errorf("read metrics: %w", err)
	}
	var sum float64
	for _, m := range families["rest_client_requests_total"].GetMetric() {
		sum += m.GetCounter().GetValue()
	}
	if sum == 0 {
		return 0, errors.New("read metrics: rest_client_requests_total is missing")
	}
	return sum, nil
}

// waitUntilSecured waits until every VolumeSnapshot is re-homed.
func (w *world) waitUntilSecured(ctx context.Context, n int) error {
	const limit = 20 * time.Minute
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		origins := &snapshotv1.VolumeSnapshotList{}
		if err := w.client.List(ctx, origins, client.InNamespace(app)); err != nil {
			return fmt.Errorf("list VolumeSnapshots: %w", err)
		}
		if len(origins.Items) == 0 {
			return nil
		}
		if err := sleep(ctx, time.Second); err != nil {
			return fmt.Errorf("wait until %d operations are secured (%d are not): %w", n, len(origins.Items), err)
		}
	}
}

// turn is the start of one operation.
type turn struct {
	// before is when the operation before it ended.
	before, accepted time.Time
}

type turns struct{ events chan turn }

func (t turns) next(ctx context.Context) (turn, error) {
	select {
	case <-ctx.Done():
		return turn{}, ctx.Err()
	case next, ok := <-t.events:
		if !ok {
			return turn{}, errors.New("the watch of DataUploads ended")
		}
		return next, nil
	}
}

// actAsSidecar lets go of contents that are being deleted, as the snapshotter sidecar of a
// driver does when the storage has deleted the snapshot.
func (w *world) actAsSidecar(ctx context.Context) error {
	watcher, err := w.client.Watch(ctx, &snapshotv1.VolumeSnapshotContentList{})
	if err != nil {
		return fmt.Errorf("watch VolumeSnapshotContents: %w", err)
	}
	go func() {
		defer watcher.Stop()
		for event := range watcher.ResultChan() {
			content, ok := event.Object.(*snapshotv1.VolumeSnapshotContent)
			if !ok || content.DeletionTimestamp == nil || len(content.Finalizers) == 0 {
				continue
			}
			patch := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`))
			if err := client.IgnoreNotFound(w.client.Patch(ctx, content, patch)); err != nil && ctx.Err() == nil {
				fmt.Fprintln(os.Stderr, "benchqueue: delete VolumeSnapshotContent:", err)
			}
		}
	}()
	return nil
}

// watch reports the operations that start after one has ended.
func (w *world) watch(ctx context.Context) (turns, error) {
	ctx, w.stop = context.WithCancel(ctx)
	if err := w.actAsSidecar(ctx); err != nil {
		return turns{}, err
	}
	watcher, err := w.client.Watch(ctx, &velerov2alpha1.DataUploadList{}, client.InNamespace(velero))
	if err != nil {
		return turns{}, fmt.Errorf("watch DataUploads: %w", err)
	}
	t := turns{make(chan turn, 16)}
	go func() {
		defer watcher.Stop()
		defer close(t.events)
		phases, decided := map[string]phase.Phase{}, map[string]bool{}
		var ended time.Time
		for event := range watcher.ResultChan() {
			du, ok := event.Object.(*velerov2alpha1.DataUpload)
			if !ok {
				return
			}
			view := operation.Of(du)
			was := phases[du.Name]
			phases[du.Name] = view.Status.Phase
			switch {
			// An operation holds its slot until its end is decided, not until it is released.
			case view.Status.Outcome != nil && !decided[du.Name]:
				decided[du.Name] = true
				ended = time.Now()
			case view.Status.Phase == phase.Accepted && was != phase.Accepted && !ended.IsZero():
				select {
				case t.events <- turn{ended, time.Now()}:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return t, nil
}
